"""A model that cannot be compiled correctly is refused with a remedy; the parity check finds the rest."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from compiling_support import (
    COLUMNS,
    DAY,
    REGION,
    boosting,
    contract_for,
    fit,
    nasty_frame,
    onehot_features,
    ordinal_features,
    training,
)
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder
from sklearn.svm import LinearSVC

from ondol.contract import Column, encode, fit_encodings
from ondol.deployment.onnx import UNKNOWN, check_parity, compile_model, make_extremes, make_probes
from ondol.errors import UserError
from ondol.project import import_extension

TEXTS = make_column_selector(dtype_exclude="number")
CODES: dict[str, Any] = {"handle_unknown": "use_encoded_value", "unknown_value": -1}


class Doubled(TransformerMixin, BaseEstimator):
    """A transformer of one's own, without a converter."""

    def fit(self, X: Any, y: Any = None) -> "Doubled":
        self.fitted_ = True
        return self

    def transform(self, X: Any) -> np.ndarray:
        return np.asarray(X) * 2


def columns(*steps: Any) -> Any:
    return make_pipeline(ColumnTransformer(list(steps)), HistGradientBoostingClassifier(max_iter=5))


SKLEARN = 'runtime = "sklearn" under [deploy] in config.toml'
REFUSED: dict[str, tuple[Any, list[str]]] = {
    "native categories": (boosting("binary", categorical_features=[0, 1]), ["OrdinalEncoder in front", SKLEARN]),
    "native categories, nested": (
        make_pipeline(
            ordinal_features(),
            CalibratedClassifierCV(HistGradientBoostingClassifier(max_iter=5, categorical_features=[0]), cv=2),
        ),
        ["HistGradientBoostingClassifier with categorical_features", SKLEARN],
    ),
    "no probabilities": (make_pipeline(onehot_features(), LinearSVC()), ["LinearSVC", "CalibratedClassifierCV"]),
    "no probabilities either": (make_pipeline(onehot_features(), RidgeClassifier()), ["CalibratedClassifierCV"]),
    "own threshold": (
        make_pipeline(
            ordinal_features(), FixedThresholdClassifier(HistGradientBoostingClassifier(max_iter=5), threshold=0.3)
        ),
        ["FixedThresholdClassifier", SKLEARN],
    ),
    "missing indicator": (
        columns(("n", SimpleImputer(add_indicator=True), make_column_selector(dtype_include="number"))),
        ["SimpleImputer with add_indicator=True", SKLEARN],
    ),
    "rare indicators": (
        columns(
            ("t", OneHotEncoder(min_frequency=300, handle_unknown="infrequent_if_exist", sparse_output=False), TEXTS)
        ),
        ["OneHotEncoder with min_frequency", "OrdinalEncoder"],
    ),
    "gaps in coded numbers": (columns(("n", OrdinalEncoder(**CODES), [DAY])), ["encoded_missing_value=-2"]),
    "indicators of fractions": (
        columns(("n", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["a.b"])),
        ['the column "a.b"', "need not be whole"],
    ),
    "a function": (
        make_pipeline(ColumnTransformer([("n", FunctionTransformer(np.log1p), ["a.b"])]), LogisticRegression()),
        ["FunctionTransformer", SKLEARN],
    ),
    "a class of one's own": (
        make_pipeline(ColumnTransformer([("n", Doubled(), ["a.b"])]), LogisticRegression()),
        ["Doubled has no converter", "model/converters.py", "or use another class."],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_convert_wrongly_is_refused_with_the_way_out(name: str) -> None:
    model, said = REFUSED[name]
    fitted, contract = fit(model, "binary", training("binary"))
    with pytest.raises(UserError) as error:
        compile_model(fitted, contract)
    assert all(words in str(error.value) for words in said), str(error.value)
    assert "\n" not in str(error.value)


HALVED = """import sys

import numpy as np
from skl2onnx import update_registered_converter
from sklearn.base import BaseEstimator, TransformerMixin


class Halved(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def transform(self, X):
        return np.asarray(X) / 2


def shape(operator):
    operator.outputs[0].type = operator.inputs[0].type


def convert(scope, operator, container):
    {mistake}


update_registered_converter(Halved, "Halved", shape, convert)
"""


def write_converters(root: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `root` a project with this `model/converters.py`, and the one in which this process runs."""
    (root / "model").mkdir()
    for name, content in {"config.toml": "", "model/__init__.py": "", "model/converters.py": text}.items():
        (root / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root)
    for name in ("model", "model.converters"):
        monkeypatch.setitem(sys.modules, name, None)  # so that what is imported now is removed afterwards
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def (", r"SyntaxError: invalid syntax \(converters\.py, line 1\)\.$"),
        ("\nimport no_such_package\n", r"ModuleNotFoundError: .* \(model/converters\.py, line 2\)\.$"),
    ],
)
def test_converters_that_cannot_be_imported_are_one_sentence(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_converters(tmp_path, text, monkeypatch)
    fitted, contract = fit(boosting("binary"), "binary", training("binary"))
    with pytest.raises(UserError, match=rf"^model/converters\.py cannot be imported: {said}"):
        compile_model(fitted, contract)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [("{}['half']", "KeyError: 'half'"), ("sys.exit(3)", r"it calls sys\.exit\(3\), which ends the process")],
)
def test_a_converter_that_fails_is_named_with_its_line(
    mistake: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_converters(tmp_path, HALVED.replace("{mistake}", mistake), monkeypatch)
    halved = import_extension("converters").Halved()  # type: ignore[union-attr]
    model = make_pipeline(ColumnTransformer([("n", halved, ["a.b"])]), LogisticRegression())
    fitted, contract = fit(model, "binary", training("binary"))
    with pytest.raises(
        UserError, match=rf"^A converter of the project failed: {said} \(model/converters\.py, line 22\)"
    ):
        compile_model(fitted, contract)


def test_a_loss_with_a_link_is_refused() -> None:
    model = make_pipeline(ordinal_features(), HistGradientBoostingRegressor(loss="poisson", max_iter=5))
    frame = training("regression")
    fitted, contract = fit(model, "regression", frame.assign(떠남=frame["떠남"].abs()))
    with pytest.raises(UserError, match='loss="poisson"'):
        compile_model(fitted, contract)


@pytest.mark.parametrize("encoder", [OrdinalEncoder(), OneHotEncoder(sparse_output=False)])
def test_an_encoder_that_fails_on_the_unknown_is_refused_where_the_set_is_open(encoder: Any) -> None:
    """The converter's OrdinalEncoder would silently return -1."""
    fitted, contract = fit(columns(("t", encoder, [REGION])), "binary", training("binary"))
    with pytest.raises(UserError, match="handle_unknown"):
        check_parity(compile_model(fitted, contract), fitted, contract, training("binary"), 1e-6)


def test_an_encoder_that_fails_on_the_unknown_passes_where_the_set_is_closed() -> None:
    fitted, contract = fit(columns(("t", OrdinalEncoder(), ["class"])), "binary", training("binary"))
    assert check_parity(compile_model(fitted, contract), fitted, contract, training("binary"), 1e-6).verified


@pytest.mark.parametrize("problem", ["binary", "regression"])
def test_another_model_fails_parity(problem: str) -> None:
    fitted, contract = fit(boosting(problem), problem, training(problem))
    other, _ = fit(boosting(problem, max_iter=5), problem, training(problem))
    with pytest.raises(UserError, match="differs from scikit-learn on the held-out rows") as error:
        check_parity(compile_model(other, contract), fitted, contract, training(problem), 1e-5)
    assert "Nothing was deployed" in str(error.value)


class OffOnOutliers(BaseEstimator):
    """A model that differs from another only on rows with an `a.b` around 2500."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        values = np.asarray(self.model.predict(X))
        return np.where(X["a.b"].between(2000, 3000), values * 1.001, values)


def test_parity_is_over_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ondol.deployment.onnx.CHUNK", 100)
    frame = training("regression").head(450).copy()
    fitted, contract = fit(boosting("regression"), "regression", training("regression"))
    model = compile_model(fitted, contract)
    assert check_parity(model, OffOnOutliers(fitted), contract, frame, 1e-5).verified
    frame.loc[449, "a.b"] = 2500
    with pytest.raises(UserError, match="row 449"):
        check_parity(model, OffOnOutliers(fitted), contract, frame, 1e-5)


def test_probes_put_in_only_what_the_contract_allows() -> None:
    _, contract = fit(boosting("binary"), "binary", training("binary"))
    frame = nasty_frame(50)
    probes = make_probes(contract, frame.head(1))
    assert not probes["class"].isna().any() and set(probes["class"]) <= {"basic", "플러스"}
    assert (probes[REGION] == UNKNOWN).sum() == 1
    assert not probes["a.b"].isna().any()
    assert probes.dtypes.equals(frame.dtypes)


def test_a_table_without_open_or_nullable_columns_needs_no_probes() -> None:
    columns_ = (Column(name="a.b", kind="number"),)
    fitted, contract = fit(HistGradientBoostingClassifier(max_iter=5), "binary", training("binary"), columns_)
    parity = check_parity(compile_model(fitted, contract), fitted, contract, training("binary"), 1e-6)
    assert (parity.verified, parity.probes) == (True, 0)


FAR: dict[str, Any] = {
    "neighbours": KNeighborsClassifier(),
    "neighbours of numbers": KNeighborsRegressor(),
    "naive Bayes": GaussianNB(),
}


def dense_features() -> Any:
    return onehot_features().set_params(sparse_threshold=0)


@pytest.mark.parametrize("name", FAR)
def test_a_model_that_differs_far_from_training_is_refused_with_the_ways_out(name: str) -> None:
    problem = "regression" if name == "neighbours of numbers" else "binary"
    fitted, contract = fit(make_pipeline(dense_features(), FAR[name]), problem, training(problem))
    with pytest.raises(UserError, match=r"rows with extreme values that model/schema\.py allows, such as \"") as error:
        check_parity(compile_model(fitted, contract), fitted, contract, training(problem), 1e-5)
    assert all(words in str(error.value) for words in ("ge=…, le=…", SKLEARN, "Nothing was deployed"))
    assert "\n" not in str(error.value)


class OffFarAway(OffOnOutliers):
    """A model that differs from another where `a.b` is very large."""

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        values = np.asarray(self.model.predict(X))
        return np.where(X["a.b"] > 1e9, values * 1.001, values)


@pytest.mark.parametrize("maximum", [None, 1e6])
def test_bounds_let_a_model_pass_that_differs_only_beyond_them(maximum: float | None) -> None:
    bounded = tuple(c.model_copy(update={"maximum": maximum}) if c.name == "a.b" else c for c in COLUMNS)
    fitted, contract = fit(boosting("regression"), "regression", training("regression"), bounded)
    model, frame = compile_model(fitted, contract), training("regression").head(100)
    if maximum is None:
        with pytest.raises(UserError, match=r'such as "a\.b" = 1e\+'):
            check_parity(model, OffFarAway(fitted), contract, frame, 1e-5)
    else:
        assert check_parity(model, OffFarAway(fitted), contract, frame, 1e-5).extremes > 100


def test_extreme_rows_hold_what_the_contract_allows_and_no_more() -> None:
    columns_ = (
        Column(name="n", kind="integer", minimum=0, exclusive_maximum=10),
        Column(name="x", kind="number", nullable=True),
        Column(name="d", kind="date", minimum=0.0, nullable=True),
        Column(name="t", kind="duration", maximum=0.0),
        Column(name="c", kind="text", categories=("a", "b")),
        Column(name="o", kind="text"),
        Column(name="f", kind="boolean"),
    )
    frame = pd.DataFrame(
        {
            "n": [1, 5, 9],
            "x": [0.5, np.nan, 7.0],
            "d": pd.Series(pd.to_datetime(["2024-01-01", None, "2024-03-01"])).astype("datetime64[us]"),
            "t": pd.Series(pd.to_timedelta([-1, -2, -3], "h")).astype("timedelta64[us]"),
            "c": pd.Series(["a", "b", "a"], dtype="str"),
            "o": pd.Series(["가", "나", "다"], dtype="str"),
            "f": [True, False, True],
            "떠남": [1.0, 2.0, 3.0],
        }
    )
    contract = fit_encodings(contract_for("regression", columns_), frame)
    rows, together, _ = make_extremes(contract, frame)
    assert together.sum() >= 100 and set(rows["n"]) >= {0, 9} and rows["n"].between(0, 9).all()
    assert (rows["x"].max(), rows["x"].min()) == (3.4028234e38, -3.4028234e38) and rows["x"].isna().any()
    assert rows["d"].isna().any() and rows["d"].min() == pd.Timestamp(0) and rows["d"].max().year == 9999
    assert rows["t"].to_numpy().astype("int64").max() == 0 and rows["t"].to_numpy().astype("int64").min() == -(10**17)
    assert set(rows["c"]) == {"a", "b"} and len(set(rows["o"])) >= 5 and set(rows["f"]) == {True, False}
    encode(contract, rows)
