"""What is fitted on the features. Yours to edit.

`params` are the `[train.params]` of `config.toml`. Classes are numbered from 0 in sorted order.
"""

from typing import Any

from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

DEFAULTS: dict[str, Any] = {"learning_rate": 0.08, "max_leaf_nodes": 15, "min_samples_leaf": 10}


def build_estimator(problem: str, seed: int, **params: Any) -> BaseEstimator:
    """Return the unfitted estimator for `problem` ("binary", "multiclass" or "regression")."""
    chosen = DEFAULTS | params
    if problem == "regression":
        return HistGradientBoostingRegressor(random_state=seed, **chosen)
    return HistGradientBoostingClassifier(random_state=seed, **chosen)
