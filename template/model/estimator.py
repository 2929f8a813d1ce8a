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
