"""What is fitted on the features. Yours to edit.

The candidates are compared by cross-validation on the training rows, and the best one is fitted. `[train.params]` in
`config.toml` replaces them all. Classes are numbered from 0 in sorted order.
"""

from typing import Any

from sklearn.base import BaseEstimator
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge

DEFAULTS: dict[str, Any] = {"learning_rate": 0.08, "max_leaf_nodes": 15, "min_samples_leaf": 10}  # of boosting


def list_candidates(problem: str) -> list[dict[str, Any]]:
    """Return the parameters of `build_estimator` for each candidate; without a comparison the first one is fitted.

    Boosting without `early_stopping` gets as many rounds as improve the rows that it is not fitted on.
    """
    usual = {"learning_rate": 0.1, "max_leaf_nodes": 31, "min_samples_leaf": 20, "early_stopping": False}
    balanced = [] if problem == "regression" else [{"kind": "boosting", "class_weight": "balanced"}]  # for rare classes
    return [
        {"kind": "boosting"},
        {"kind": "boosting", **usual},  # as scikit-learn's defaults
        {"kind": "boosting", "max_leaf_nodes": 5, "min_samples_leaf": 20},
        {"kind": "boosting", "max_leaf_nodes": 31, "min_samples_leaf": 20},
        *balanced,
        {"kind": "linear"},
        {"kind": "forest"},
        {"kind": "forest", "min_samples_leaf": 3},
    ]


def suggest_params(trial: Any, problem: str) -> dict[str, Any]:
    """Return the parameters of `build_estimator` and `build_features` for a trial of `ml tune`, an Optuna trial.

    They are written to `config.toml`: text, numbers and true or false.
    """
    kind = trial.suggest_categorical("kind", ["boosting", "linear", "forest"])
    if kind == "linear":
        penalty = "alpha" if problem == "regression" else "C"
        return {"kind": kind, penalty: trial.suggest_float(penalty, 1e-3, 1e3, log=True)}
    shared = {"kind": kind, "texts": trial.suggest_categorical("texts", ["codes", "targets"])}
    if kind == "forest":
        return shared | {
            "min_samples_leaf": trial.suggest_int("forest_leaf", 1, 30, log=True),
            "max_features": trial.suggest_float("forest_features", 0.1, 1.0),
        }
    params = {
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.3, log=True),
        "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 3, 63, log=True),
        "min_samples_leaf": trial.suggest_int("min_samples_leaf", 3, 100, log=True),
        "l2_regularization": trial.suggest_float("l2_regularization", 1e-3, 30.0, log=True),
        "max_features": trial.suggest_float("max_features", 0.2, 1.0),
    }
    if problem != "regression" and trial.suggest_categorical("balanced", [False, True]):
        params["class_weight"] = "balanced"
    return shared | params


def build_estimator(problem: str, seed: int, kind: str = "boosting", **params: Any) -> BaseEstimator:
    """Return the unfitted estimator for `problem` ("binary", "multiclass" or "regression")."""
    regression = problem == "regression"
    if kind == "linear":
        return Ridge(**params) if regression else LogisticRegression(**{"max_iter": 1_000} | params)
    if kind == "forest":
        forest = RandomForestRegressor if regression else RandomForestClassifier
        return forest(random_state=seed, **params)
    boosting = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
    return boosting(random_state=seed, **DEFAULTS | params)
