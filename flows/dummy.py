"""The dummy model that a candidate must beat: the best that a metric allows without the features."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BY_MEDIAN = ("mae", "median_absolute_error", "mape")


def predict_dummy(
    problem: str, metric: str, y_train: Array, rows: int, classes: int = 0, seed: int = 0
) -> Array:
    """Return what the dummy predicts for `rows` rows: probabilities [rows, classes], or values [rows].

    In regression it is the training rows' mean, or their median for absolute errors. In classification it is
    each class's share of the training rows, but for two metrics that this would let any guess beat: for `f1`
    it always says the positive class, and for `f1_macro` it draws classes by their shares (no guess does
    better on average).

    Args:
        problem: "binary", "multiclass" or "regression".
        metric: The metric that decides.
        y_train: The training rows' truths: indices of classes, or values.
        rows: How many predictions are wanted.
        classes: How many classes there are.
        seed: Of the draws.
    """
    if problem == "regression":
        return np.full(rows, float(np.median(y_train) if metric in BY_MEDIAN else np.mean(y_train)))
    shares = np.bincount(np.asarray(y_train, np.int64), minlength=classes) / len(y_train)
    if metric == "f1":
        return np.tile([0.0, 1.0], (rows, 1))
    if metric == "f1_macro":
        drawn = np.random.default_rng(seed).choice(len(shares), rows, p=shares)
        return np.eye(len(shares))[drawn]
    return np.tile(shares, (rows, 1))
