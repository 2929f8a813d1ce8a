"""Formulas: columns computed in the model give the same numbers in scikit-learn and in ONNX, to the last bit."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from compiling_support import DAY, PROBLEMS, WON, boosting, fit, nasty_frame, training
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from ondol.contract import Column, Contract, encode, fit_encodings
from ondol.deployment.onnx import compile_model, convert_formulas, shape_formulas
from ondol.evaluation.scoring import Scorer, open_session
from ondol.registry.registry import TRUSTED
from ondol.training.formulas import Formulas

FORMULAS = {
    "ratio": "a / b",
    "share": "a / (a + b) * 100",
    "change": "-(b - a) / abs(b)",
    "root": "sqrt(abs(a)) - sqrt(b)",
    "range": "max(a, b) - min(a, 0.5)",
    "flags": "(a > b) + 2 * (a >= 1) + 4 * (b < 0) + 8 * (b <= a) + 16 * (a == b)",
    "named": 'column["a b"] * 0.1 + 1',
    "alone": "a",
}
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 0.1, 3.0, np.nan, np.inf, -np.inf, 1e-38, 1e-45, 3e38, 16777217.0, -2.5]


def frame() -> pd.DataFrame:
    """Every pair of special values, and random ones of all sizes."""
    a, b = (part.ravel() for part in np.meshgrid(SPECIAL, SPECIAL))
    rng = np.random.default_rng(0)
    many = rng.normal(size=(20_000, 3)) * 10.0 ** rng.integers(-20, 20, (20_000, 3))
    made = np.vstack([np.column_stack([a, b, b]), many]).astype(np.float32)
    return encoded(pd.DataFrame(made, columns=["a", "b", "a b"]))


def encoded(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a frame as `encode` returns it, of columns that need no offset."""
    rows.attrs["affine"] = {}
    return rows


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("affine", [{}, {"b": (1_700_000_001.0, 3.0)}])
def test_onnx_gives_the_same_numbers_to_the_last_bit(affine):
    rows = frame()
    formulas = Formulas(FORMULAS)
    rows.attrs["affine"] = affine
    formulas.fit(rows)
    model = convert_sklearn(
        formulas,
        initial_types=[("rows", FloatTensorType([None, 3]))],
        custom_conversion_functions={Formulas: convert_formulas},
        custom_shape_calculators={Formulas: shape_formulas},
        target_opset={"": 21, "ai.onnx.ml": 3},
    )
    (found,) = open_session(model.SerializeToString()).run(None, {"rows": rows.to_numpy()})
    expected = formulas.transform(rows)
    for name, ours, theirs in zip(formulas.get_feature_names_out(), expected.T, np.asarray(found).T, strict=True):
        np.testing.assert_array_equal(theirs, ours, err_msg=name)


def test_values_are_those_of_the_formulas():
    rows = pd.DataFrame({"a": [1.0, 6.0, np.nan, 1.0], "b": [2.0, 3.0, 1.0, 0.0], "a b": [10.0, 20.0, 30.0, 40.0]})
    formulas = Formulas(FORMULAS).fit(encoded(rows))
    names = list(formulas.get_feature_names_out())
    assert names == ["a", "b", "a b", *FORMULAS]
    made = pd.DataFrame(formulas.transform(rows), columns=names)
    np.testing.assert_array_equal(made["ratio"], [0.5, 2.0, np.nan, np.nan])
    np.testing.assert_array_equal(made["flags"], [2.0, 1 + 2 + 8, 0.0, 1 + 2 + 8])
    np.testing.assert_allclose(made["named"], [2.0, 3.0, 4.0, 5.0])
    np.testing.assert_array_equal(made["range"], [1.5, 5.5, np.nan, 0.5])


def test_constants_equal_the_values_of_columns():
    rows = pd.DataFrame({"a": np.array([0.1, 0.2, 0.3], np.float32)})
    made = Formulas({"same": "a == 0.1", "most": "a <= 0.2"}).fit(encoded(rows)).transform(rows)
    np.testing.assert_array_equal(made[:, 1:], [[1, 1], [0, 1], [0, 0]])


def test_formulas_see_real_values_however_columns_are_encoded():
    """Sums above 2^24 and dates arrive shifted by what training saw; a formula must not change with that."""
    columns = (
        Column(name="paid", kind="integer"),
        Column(name="begun", kind="date"),
        Column(name="ended", kind="date"),
        Column(name="y", kind="number", role="target"),
    )
    contract = Contract(problem="regression", target="y", columns=columns)
    first = pd.Timestamp("2024-02-29")
    frame = pd.DataFrame(
        {
            "paid": [2**40 + 3, 2**40 + 1_000, 2**40 + 7_777],
            "begun": [first, first + pd.Timedelta(days=10), first],
            "ended": [first + pd.Timedelta(hours=12), pd.Timestamp("2025-02-28"), pd.Timestamp("2031-01-01")],
            "y": [1.0, 2.0, 3.0],
        }
    )
    formulas = {"thousands": "paid / 1000", "above": "paid - 1099511627776", "days": "ended - begun"}
    fitted = fit_encodings(contract, frame)
    assert fitted.features[0].encoding.offset > 2**40
    pipeline = Pipeline([("features", ColumnTransformer([("f", Formulas(formulas), ["paid", "begun", "ended"])]))])
    made = pipeline.fit_transform(encode(fitted, frame))[:, 3:]
    days = (frame["ended"] - frame["begun"]) / pd.Timedelta(days=1)
    np.testing.assert_allclose(made[:, 0], frame["paid"] / 1000, rtol=1e-7)
    np.testing.assert_array_equal(made[:, 1], [3, 1_000, 7_777])
    np.testing.assert_allclose(made[:, 2], days, rtol=1e-6)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_model_with_formulas_compiles(problem):
    model = boosting(problem)
    formulas = {"sum": f'a_b + column["{DAY}"] * 2', "large": f'column["{WON}"] / 1000'}
    model[0].transformers.insert(0, ("formulas", Formulas(formulas), ["a_b", DAY, WON]))
    model, contract = fit(model, problem, training(problem))
    assert {"sum", "large"} <= set(model[0].get_feature_names_out())
    again = skops.io.loads(skops.io.dumps(model), trusted=list(TRUSTED))
    rows = encode(contract, nasty_frame(1_000, seed=1))
    outputs = Scorer.from_onnx(compile_model(again, contract), contract).run(rows)
    expected = model.predict(rows) if problem == "regression" else model.predict_proba(rows)
    np.testing.assert_allclose(
        outputs[-1].reshape(expected.shape), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).mean()
    )


def test_formulas_are_cloned_and_saved_as_any_transformer():
    formulas = Formulas({"ratio": "a / b"})
    assert clone(formulas).get_params() == {"formulas": {"ratio": "a / b"}}
    rows = frame()
    saved = skops.io.loads(skops.io.dumps(formulas.fit(rows)), trusted=list(TRUSTED))
    np.testing.assert_array_equal(saved.transform(rows), formulas.transform(rows))


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        ("a +", 'the formula "made" cannot be read: a +'),
        ("a + c", 'the formula "a + c" names "c", which is not one of its columns'),
        ("a ** b", '"a ** b" in it, which is not supported'),
        ("log(a)", '"log(a)" in it, which is not supported'),
        ("max(a)", '"max(a)" in it, which is not supported'),
        ("__import__('os')", "in it, which is not supported"),
        ("a.real", "in it, which is not supported"),
        ("'x'", "in it, which is not supported"),
        ("1 < a < 2", "in it, which is not supported"),
        ("-1", 'the formula "made" names no column: -1'),
        ("1 + 1", 'the formula "made" names no column: 1 + 1'),
    ],
)
def test_what_is_not_a_formula_is_refused(formula, said):
    with pytest.raises(ValueError) as caught:
        Formulas({"made": formula}).fit(frame())
    assert said in str(caught.value)


def test_texts_are_refused():
    rows: Any = pd.DataFrame({"a": ["x", "y"]})
    with pytest.raises(ValueError, match="Formulas take numbers, and one of a is not a number"):
        Formulas({"made": "a + 1"}).fit(encoded(rows))


def test_columns_that_another_step_has_changed_are_refused():
    rows = frame()
    changed: Any = pd.DataFrame(rows.to_numpy(), columns=rows.columns)
    for given in (changed, rows.to_numpy()):
        with pytest.raises(ValueError, match="Formulas must be the first step for their columns"):
            Formulas({"made": "a + 1"}).fit(given)
