"""A compiled model says what scikit-learn says, for whatever people put into a pipeline."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from compiling_support import (
    COLUMNS,
    DAY,
    PROBLEMS,
    REGION,
    add_target,
    boosting,
    fit,
    nasty_frame,
    onehot_features,
    ordinal_features,
    training,
)
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import (
    BaggingRegressor,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from flows.compiling import check_parity, compile_model
from flows.compiling.prepare import floor_to_float32
from flows.contract import Column, encode
from flows.scoring import Scorer, open_session

TOLERANCE = 1e-6
TEXTS = make_column_selector(dtype_exclude="number")
UNKNOWN_AS_MINUS_1: dict[str, Any] = {"handle_unknown": "use_encoded_value", "unknown_value": -1}


def coded(**params: Any) -> ColumnTransformer:
    return ColumnTransformer([("t", OrdinalEncoder(**params), TEXTS)], remainder="passthrough")


def boosted(features: Any) -> Any:
    return make_pipeline(features, HistGradientBoostingClassifier(max_iter=10))


MODELS: dict[str, tuple[str, Any]] = {
    "boosting, binary": ("binary", boosting("binary")),
    "boosting, multiclass": ("multiclass", boosting("multiclass")),
    "boosting, regression": ("regression", boosting("regression")),
    "boosting, quantile": ("regression", boosting("regression", loss="quantile", quantile=0.7)),
    "forest with gaps": ("binary", make_pipeline(ordinal_features(), RandomForestClassifier(30, random_state=0))),
    "forest, multiclass": ("multiclass", make_pipeline(ordinal_features(), RandomForestClassifier(20, random_state=0))),
    "forest, regression": ("regression", make_pipeline(ordinal_features(), RandomForestRegressor(20, random_state=0))),
    "extra trees": ("multiclass", make_pipeline(ordinal_features(), ExtraTreesClassifier(20, random_state=0))),
    "one tree": ("binary", make_pipeline(ordinal_features(), DecisionTreeClassifier(max_depth=6, random_state=0))),
    "bagged trees": ("regression", make_pipeline(ordinal_features(), BaggingRegressor(n_estimators=5, random_state=0))),
    "old boosting": ("multiclass", make_pipeline(onehot_features(), GradientBoostingClassifier(n_estimators=10))),
    "old boosting, regression": ("regression", make_pipeline(onehot_features(), GradientBoostingRegressor(n_estimators=10))),
    "logistic": ("binary", make_pipeline(onehot_features(), LogisticRegression(max_iter=500))),
    "logistic, multiclass": ("multiclass", make_pipeline(onehot_features(), LogisticRegression(max_iter=500))),
    "ridge": ("regression", make_pipeline(onehot_features(), Ridge())),
    "calibrated SVC": ("binary", make_pipeline(onehot_features(), CalibratedClassifierCV(LinearSVC(), cv=3))),
    "calibrated boosting": (
        "binary",
        make_pipeline(ordinal_features(), CalibratedClassifierCV(HistGradientBoostingClassifier(max_iter=10), cv=3)),
    ),
    "voting": (
        "binary",
        make_pipeline(
            onehot_features(),
            VotingClassifier(
                [("a", LogisticRegression(max_iter=500)), ("b", HistGradientBoostingClassifier(max_iter=10))],
                voting="soft",
            ),
        ),
    ),
    "voting on scaled numbers": (
        "regression",
        make_pipeline(onehot_features(), VotingRegressor([("a", Ridge()), ("b", HistGradientBoostingRegressor(max_iter=10))])),
    ),
    "stacking": (
        "regression",
        make_pipeline(
            onehot_features(), StackingRegressor([("a", Ridge()), ("b", HistGradientBoostingRegressor(max_iter=10))], cv=3)
        ),
    ),
    "search": ("binary", GridSearchCV(boosting("binary"), {"estimator__max_iter": [5, 10]}, cv=2)),
    "neighbours": ("binary", make_pipeline(onehot_features(), KNeighborsClassifier())),
    "missing text imputed": (
        "binary",
        boosted(
            ColumnTransformer(
                [
                    (
                        "t",
                        make_pipeline(
                            SimpleImputer(missing_values="<missing>", strategy="most_frequent"),
                            OrdinalEncoder(**UNKNOWN_AS_MINUS_1),
                        ),
                        TEXTS,
                    )
                ],
                remainder="passthrough",
            )
        ),
    ),
    "unknown as NaN": ("binary", boosted(coded(handle_unknown="use_encoded_value", unknown_value=np.nan))),
    "rare together": ("binary", boosted(coded(min_frequency=300, **UNKNOWN_AS_MINUS_1))),
    "numbers coded, gaps named": (
        "binary",
        boosted(
            ColumnTransformer(
                [
                    ("t", OrdinalEncoder(**UNKNOWN_AS_MINUS_1), TEXTS),
                    ("n", OrdinalEncoder(encoded_missing_value=-2, **UNKNOWN_AS_MINUS_1), ["자동이체?", DAY]),
                ],
                remainder="passthrough",
            )
        ),
    ),
    "first indicator dropped": (
        "binary",
        boosted(
            ColumnTransformer(
                [("t", OneHotEncoder(handle_unknown="ignore", drop="first", sparse_output=False), TEXTS)],
                remainder="passthrough",
            )
        ),
    ),
    "the rest dropped": ("binary", boosted(ColumnTransformer([("n", "passthrough", ["a_b", "a.b"])], remainder="drop"))),
    "columns by mask and slice": (
        "binary",
        boosted(
            ColumnTransformer(
                [
                    ("t", OrdinalEncoder(**UNKNOWN_AS_MINUS_1), np.array([False] * 7 + [True] * 3)),
                    ("x", "drop", slice("a_b", "a.b")),
                ],
                remainder="passthrough",
            )
        ),
    ),
    "columns from the end": ("binary", boosted(ColumnTransformer([("t", OrdinalEncoder(**UNKNOWN_AS_MINUS_1), [-1, -2])]))),
    "an empty step": (
        "binary",
        Pipeline([("f", onehot_features()), ("no", "passthrough"), ("e", LogisticRegression(max_iter=500))]),
    ),
    "pandas inside": ("binary", boosted(ordinal_features().set_output(transform="pandas"))),
}

@pytest.mark.parametrize("name", MODELS)
def test_compiled_model_equals_scikit_learn_on_nasty_rows(name: str) -> None:
    problem, model = MODELS[name]
    fitted, contract = fit(model, problem, training(problem))
    rows = add_target(nasty_frame(1000, seed=7, unknown=True), problem)
    parity = check_parity(compile_model(fitted, contract), fitted, contract, rows, TOLERANCE)
    assert parity.proved
    assert (parity.rows, parity.probes) == (1000, 1000)


@pytest.mark.parametrize("name", ["boosting, multiclass", "forest with gaps", "neighbours", "stacking"])
def test_the_same_model_compiles_to_the_same_bytes(name: str) -> None:
    problem, model = MODELS[name]
    fitted, contract = fit(model, problem, training(problem))
    assert compile_model(fitted, contract) == compile_model(fitted, contract)


def test_a_model_read_back_from_skops_compiles_to_the_same_bytes() -> None:
    import skops.io

    fitted, contract = fit(boosting("binary"), "binary", training("binary"))
    dumped = skops.io.dumps(fitted)
    back = skops.io.loads(dumped, trusted=skops.io.get_untrusted_types(data=dumped))
    assert compile_model(back, contract) == compile_model(fitted, contract)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_inputs_and_outputs_are_those_of_the_bundle(problem: str) -> None:
    fitted, contract = fit(boosting(problem), problem, training(problem))
    session = open_session(compile_model(fitted, contract))
    inputs = [(i.name, i.type, i.shape[1]) for i in session.get_inputs()]
    kinds = {"float32": "tensor(float)", "string": "tensor(string)"}
    assert inputs == [(c.input, kinds[c.encoding.tensor], 1) for c in contract.features if c.encoding]
    assert [o.name for o in session.get_outputs()] == (["value"] if problem == "regression" else ["label", "probabilities"])
    outputs = Scorer.from_onnx(compile_model(fitted, contract), contract).run(encode(contract, training(problem).head(3)))
    classes = len(contract.classes or ())
    wanted = [("float32", (3, 1))] if problem == "regression" else [("int64", (3,)), ("float32", (3, classes))]
    assert [(o.dtype.name, o.shape) for o in outputs] == wanted


def test_compiling_leaves_the_pipeline_as_it_was() -> None:
    fitted, contract = fit(boosting("binary"), "binary", training("binary"))
    encoded = encode(contract, training("binary"))
    before = fitted.predict_proba(encoded)
    nodes = fitted[-1]._predictors[0][0].nodes.copy()
    compile_model(fitted, contract)
    assert np.array_equal(fitted.predict_proba(encoded), before)
    assert np.array_equal(fitted[-1]._predictors[0][0].nodes, nodes)
    assert list(fitted[0].feature_names_in_) == [c.name for c in contract.features]


def test_names_that_the_converter_would_merge_keep_their_values_apart() -> None:
    """`a b`, `a_b` and `a.b` all become `a_b` in the converter: inputs are told apart by position."""
    fitted, contract = fit(boosting("regression"), "regression", training("regression"))
    scorer = Scorer.from_onnx(compile_model(fitted, contract), contract)
    rows = training("regression").head(200)
    for name in ("a_b", DAY):
        other = rows.assign(**{name: 2.0})
        assert not np.allclose(scorer.predict(other), scorer.predict(rows))
        assert np.allclose(scorer.predict(other), fitted.predict(encode(contract, other)), rtol=1e-5, atol=10)


def test_missing_text_is_not_the_text_nan() -> None:
    fitted, contract = fit(boosting("binary"), "binary", training("binary"))
    scorer = Scorer.from_onnx(compile_model(fitted, contract), contract)
    rows = training("binary").head(300)
    shown = {text: scorer.predict(rows.assign(**{REGION: pd.Series([text] * 300, dtype="str")})) for text in ("nan", None)}
    assert not np.array_equal(shown["nan"], shown[None])
    for text, found in shown.items():
        rows = rows.assign(**{REGION: pd.Series([text] * 300, dtype="str")})
        assert np.allclose(found, fitted.predict_proba(encode(contract, rows)), atol=TOLERANCE)


def test_thresholds_round_down_so_that_unit_steps_near_1e8_are_kept() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"won": 10**8 + rng.integers(0, 200, 3000), "떠남": rng.normal(size=3000)})
    frame["떠남"] += frame["won"] % 7
    columns = (Column(name="won", kind="integer"),)
    fitted, contract = fit(HistGradientBoostingRegressor(max_iter=30), "regression", frame, columns)
    assert check_parity(compile_model(fitted, contract), fitted, contract, frame, TOLERANCE).proved


def test_floor_to_float32_never_rounds_up() -> None:
    values = np.array([0.1, -0.1, 1e8 + 1, -1e8 - 1, 0.5, 16777217.0, np.inf, -np.inf])
    floored = floor_to_float32(values)
    finite = np.isfinite(values)
    assert (floored[finite].astype(np.float64) <= values[finite]).all()
    assert (np.nextafter(floored[finite], np.float32(np.inf)).astype(np.float64) > values[finite]).all()
    assert np.array_equal(floored[~finite], values[~finite].astype(np.float32))


def test_a_forest_breaks_ties_as_scikit_learn_does() -> None:
    frame = training("binary")
    model = make_pipeline(ordinal_features(), RandomForestClassifier(10, random_state=0))
    fitted, contract = fit(model, "binary", frame)
    rows = add_target(nasty_frame(3000, seed=3), "binary")
    encoded = encode(contract, rows)
    labels = Scorer.from_onnx(compile_model(fitted, contract), contract).run(encoded)[0]
    assert (np.ptp(fitted.predict_proba(encoded), axis=1) == 0).sum() > 20
    assert np.array_equal(labels, fitted.predict(encoded))


def test_a_pipeline_of_numbers_alone_needs_no_column_transformer() -> None:
    columns = tuple(c for c in COLUMNS if c.kind != "text")
    model = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression())
    fitted, contract = fit(model, "binary", training("binary"), columns)
    assert check_parity(compile_model(fitted, contract), fitted, contract, training("binary"), TOLERANCE).proved


@pytest.mark.parametrize("kind", ["text", "number"])
def test_a_table_of_one_kind_compiles_with_the_features_that_every_project_starts_with(kind: str) -> None:
    columns = tuple(c for c in COLUMNS if c.kind == kind)
    fitted, contract = fit(boosting("binary"), "binary", training("binary"), columns)
    assert check_parity(compile_model(fitted, contract), fitted, contract, training("binary"), TOLERANCE).proved


def test_compiling_gives_no_warning() -> None:
    fitted, contract = fit(boosting("binary"), "binary", training("binary"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compile_model(fitted, contract)
    assert caught == []
