"""The dummy model that a candidate must beat."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondol.contract import Contract

Array = NDArray[Any]
ABSOLUTE = ("mae", "median_absolute_error", "mape")


def predict_dummy(problem: str, metric: str, baseline: Sequence[float] | Array, rows: int, seed: int = 0) -> Array:
    """Return what the dummy predicts for `rows` rows: probabilities [rows, K], or values [rows].

    In regression it is the mean, for absolute errors the last of `baseline`. In classification it is each
    class's share, but for two metrics that this would let any guess beat: for `f1` it always says the
    positive class, and for `f1_macro` it draws classes by their shares (no guess does better on average).

    Args:
        problem: "binary", "multiclass" or "regression".
        metric: The metric that decides.
        baseline: Of the training rows: each class's share, [K]; or the mean, or mean and median.
        rows: How many predictions are wanted.
        seed: Of the draws.
    """
    figures = np.asarray(baseline, np.float64)
    if problem == "regression":
        return np.full(rows, figures[-1] if metric in ABSOLUTE else figures[0])
    if metric == "f1":
        return np.tile([0.0, 1.0], (rows, 1))
    if metric == "f1_macro":
        drawn = np.random.default_rng(seed).choice(len(figures), rows, p=figures / figures.sum())
        return np.asarray(np.eye(len(figures))[drawn])
    return np.tile(figures, (rows, 1))


def baseline_of(contract: Contract, target: np.ndarray) -> list[float]:
    """Return what a dummy model knows: each class's share, or the mean and the median."""
    if contract.classes is None:
        return [float(target.mean()), float(np.median(target))]
    return [float(share) for share in np.bincount(target, minlength=len(contract.classes)) / len(target)]
