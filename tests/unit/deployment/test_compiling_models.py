"""Other common pipelines: each predicts like scikit-learn after compilation, also labels at ties."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from compiling_support import (
    COLUMNS,
    DAY,
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
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import LinearSVC

from ondol.contract import Column, encode
from ondol.deployment.onnx import check_parity, compile_model
from ondol.evaluation.scoring import Scorer

TOLERANCE = 1e-6
TEXTS = make_column_selector(dtype_exclude="number")
CODES: dict[str, Any] = {"handle_unknown": "use_encoded_value", "unknown_value": -1}


def coded(**params: Any) -> ColumnTransformer:
    return ColumnTransformer([("t", OrdinalEncoder(**params), TEXTS)], remainder="passthrough")


def small() -> Any:
    return HistGradientBoostingRegressor(max_iter=10)


def boosted(features: Any) -> Any:
    return make_pipeline(features, HistGradientBoostingClassifier(max_iter=10))


MODELS: dict[str, tuple[str, Any]] = {
    "boosting, quantile": ("regression", boosting("regression", loss="quantile", quantile=0.7)),
    "forest with gaps": ("binary", make_pipeline(ordinal_features(), RandomForestClassifier(30, random_state=0))),
    "bagged trees": ("regression", make_pipeline(ordinal_features(), BaggingRegressor(n_estimators=5, random_state=0))),
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
        make_pipeline(onehot_features(), VotingRegressor([("a", Ridge()), ("b", small())])),
    ),
    "stacking": (
        "regression",
        make_pipeline(
            onehot_features(),
            StackingRegressor([("a", Ridge()), ("b", small())], cv=3),
        ),
    ),
    "search": ("binary", GridSearchCV(boosting("binary"), {"estimator__max_iter": [5, 10]}, cv=2)),
    "weighted voting": (
        "multiclass",
        make_pipeline(
            onehot_features(),
            VotingClassifier(
                [("a", LogisticRegression(max_iter=500)), ("b", HistGradientBoostingClassifier(max_iter=10))],
                voting="soft",
                weights=[2, 1],
            ),
        ),
    ),
    "weighted voting on numbers": (
        "regression",
        make_pipeline(onehot_features(), VotingRegressor([("a", Ridge()), ("b", small())], weights=[0.3, 2])),
    ),
    "stochastic gradient": ("binary", make_pipeline(onehot_features(), SGDClassifier(loss="log_loss", random_state=0))),
    "missing text imputed": (
        "binary",
        boosted(
            ColumnTransformer(
                [
                    (
                        "t",
                        make_pipeline(
                            SimpleImputer(missing_values="<missing>", strategy="most_frequent"),
                            OrdinalEncoder(**CODES),
                        ),
                        TEXTS,
                    )
                ],
                remainder="passthrough",
            )
        ),
    ),
    "unknown as NaN": ("binary", boosted(coded(handle_unknown="use_encoded_value", unknown_value=np.nan))),
    "rare together": ("binary", boosted(coded(min_frequency=300, **CODES))),
    "numbers coded, gaps named": (
        "binary",
        boosted(
            ColumnTransformer(
                [
                    ("t", OrdinalEncoder(**CODES), TEXTS),
                    ("n", OrdinalEncoder(encoded_missing_value=-2, **CODES), ["자동이체?", DAY]),
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
    "the rest dropped": (
        "binary",
        boosted(ColumnTransformer([("n", "passthrough", ["a_b"])], remainder="drop")),
    ),
    "columns by mask and slice": (
        "binary",
        boosted(
            ColumnTransformer(
                [
                    ("t", OrdinalEncoder(**CODES), np.array([False] * 7 + [True] * 3 + [False] * 3)),
                    ("x", "drop", slice("a_b", "a.b")),
                ],
                remainder="passthrough",
            )
        ),
    ),
    "columns from the end": (
        "binary",
        boosted(ColumnTransformer([("t", OrdinalEncoder(**CODES), [-4, -5])])),
    ),
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
    assert parity.verified
    assert (parity.rows, parity.probes) == (1000, 1000) and parity.extremes > 100


@pytest.mark.parametrize("name", ["forest with gaps", "weighted voting", "stacking"])
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


def test_thresholds_round_down_so_that_unit_steps_near_1e8_are_kept() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"won": 10**8 + rng.integers(0, 200, 3000), "떠남": rng.normal(size=3000)})
    frame["떠남"] += frame["won"] % 7
    columns = (Column(name="won", kind="integer"),)
    fitted, contract = fit(HistGradientBoostingRegressor(max_iter=30), "regression", frame, columns)
    assert check_parity(compile_model(fitted, contract), fitted, contract, frame, TOLERANCE).verified


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
    assert check_parity(compile_model(fitted, contract), fitted, contract, training("binary"), TOLERANCE).verified


@pytest.mark.parametrize("kind", ["text", "number"])
def test_a_table_of_one_kind_compiles_with_the_features_that_every_project_starts_with(kind: str) -> None:
    columns = tuple(c for c in COLUMNS if c.kind == kind)
    fitted, contract = fit(boosting("binary"), "binary", training("binary"), columns)
    assert check_parity(compile_model(fitted, contract), fitted, contract, training("binary"), TOLERANCE).verified
