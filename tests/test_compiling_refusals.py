"""What cannot be compiled faithfully is refused in one sentence that says what to do; parity catches the rest."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from compiling_support import DAY, REGION, boosting, fit, nasty_frame, onehot_features, ordinal_features, training
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder
from sklearn.svm import LinearSVC

from flows.compiling import check_parity, compile_model
from flows.compiling.parity import UNKNOWN, make_probes
from flows.contract import Column
from flows.errors import UserError

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
        ["Doubled has no converter", "model/converters.py", SKLEARN],
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


def test_a_loss_with_a_link_is_refused() -> None:
    model = make_pipeline(ordinal_features(), HistGradientBoostingRegressor(loss="poisson", max_iter=5))
    frame = training("regression")
    fitted, contract = fit(model, "regression", frame.assign(떠남=frame["떠남"].abs()))
    with pytest.raises(UserError, match='loss="poisson"'):
        compile_model(fitted, contract)


@pytest.mark.parametrize("encoder", [OrdinalEncoder(), OneHotEncoder(sparse_output=False)])
def test_an_encoder_that_fails_on_the_unknown_is_refused_where_the_set_is_open(encoder: Any) -> None:
    """The converter's OrdinalEncoder would answer -1, and nobody would know."""
    fitted, contract = fit(columns(("t", encoder, [REGION])), "binary", training("binary"))
    with pytest.raises(UserError, match="handle_unknown"):
        check_parity(compile_model(fitted, contract), fitted, contract, training("binary"), 1e-6)


def test_an_encoder_that_fails_on_the_unknown_passes_where_the_set_is_closed() -> None:
    fitted, contract = fit(columns(("t", OrdinalEncoder(), ["class"])), "binary", training("binary"))
    assert check_parity(compile_model(fitted, contract), fitted, contract, training("binary"), 1e-6).proved


@pytest.mark.parametrize("problem", ["binary", "regression"])
def test_another_model_fails_parity(problem: str) -> None:
    fitted, contract = fit(boosting(problem), problem, training(problem))
    other, _ = fit(boosting(problem, max_iter=5), problem, training(problem))
    with pytest.raises(UserError, match="differs from scikit-learn on the held-out rows") as error:
        check_parity(compile_model(other, contract), fitted, contract, training(problem), 1e-5)
    assert "Nothing was deployed" in str(error.value)


class OffOnOutliers(BaseEstimator):
    """A model that differs from another on rows with a large `a.b` alone."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        values = np.asarray(self.model.predict(X))
        return np.where(X["a.b"] > 1000, values * 1.001, values)


def test_parity_is_over_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.compiling.parity.CHUNK", 100)
    frame = training("regression").head(450).copy()
    fitted, contract = fit(boosting("regression"), "regression", training("regression"))
    model = compile_model(fitted, contract)
    assert check_parity(model, OffOnOutliers(fitted), contract, frame, 1e-5).proved
    frame.loc[449, "a.b"] = 1e6
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
    assert (parity.proved, parity.probes) == (True, 0)
