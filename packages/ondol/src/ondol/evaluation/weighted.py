"""Metrics of rows that count more than once: rows are sorted or looked up once, then any weights are quick.

A resample of the bootstrap is a vector of weights (how often each row was drawn), so 200 resamples cost 200
passes over prepared arrays instead of 200 sorts. A metric that the weighted rows leave undefined is NaN.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Scorer = Callable[[Floats], float]
NAN = float("nan")


def prepare_scorers(problem: str, y: Integers | Floats, prediction: Floats) -> dict[str, Scorer]:
    """Return each metric of `problem` as a function of the rows' weights.

    Args:
        problem: "binary", "multiclass" or "regression".
        y: What is true, length N: the index of the class, or the value.
        prediction: Probabilities [N, K], or values [N].

    Raises:
        ValueError: the shapes do not fit.
    """
    if len(y) != len(prediction) or np.ndim(prediction) != (1 if problem == "regression" else 2):
        raise ValueError(f"{problem}: {np.shape(y)} truths and {np.shape(prediction)} predictions")
    if problem == "regression":
        return _prepare_regression(np.asarray(y, np.float64), np.asarray(prediction, np.float64))
    y = np.asarray(y, np.int64)
    return _prepare_binary(y, prediction) if problem == "binary" else _prepare_multiclass(y, prediction)


def _prepare_binary(y: Integers, probabilities: Floats) -> dict[str, Scorer]:
    score = np.asarray(probabilities[:, 1], np.float64)
    ranking, confusion = Ranking(y == 1, score), Confusion(y, probabilities)
    return {
        "roc_auc": ranking.roc_auc,
        "average_precision": ranking.average_precision,
        "log_loss": _log_loss(y, probabilities),
        "brier": _mean((score - y) ** 2),
        "accuracy": confusion.accuracy,
        "balanced_accuracy": confusion.balanced_accuracy,
        "f1": confusion.f1,
    }


def _prepare_multiclass(y: Integers, probabilities: Floats) -> dict[str, Scorer]:
    confusion = Confusion(y, probabilities)
    rankings = [Ranking(y == k, probabilities[:, k]) for k in range(probabilities.shape[1])]

    def roc_auc_ovr(weights: Floats) -> float:
        """Average one class against the rest over the classes that the rows hold."""
        areas = np.array([r.roc_auc(weights) for r in rankings])
        return float(np.mean(areas[~np.isnan(areas)])) if not np.isnan(areas).all() else NAN

    return {
        "f1_macro": confusion.f1_macro,
        "accuracy": confusion.accuracy,
        "balanced_accuracy": confusion.balanced_accuracy,
        "log_loss": _log_loss(y, probabilities),
        "roc_auc_ovr": roc_auc_ovr,
    }


def _prepare_regression(y: Floats, value: Floats) -> dict[str, Scorer]:
    error = value - y
    squared, absolute = _mean(error**2), np.abs(error)
    centred = y - y.mean() if len(y) else y  # keeps the sum of squares exact for targets far from 0
    first, second = _mean(centred), _mean(centred**2)
    order = np.argsort(absolute)

    def r2(weights: Floats) -> float:
        variance = second(weights) - first(weights) ** 2
        return 1 - squared(weights) / variance if variance > 1e-12 * second(weights) else NAN

    scorers: dict[str, Scorer] = {
        "r2": r2,
        "rmse": lambda weights: squared(weights) ** 0.5,
        "mae": _mean(absolute),
        "median_absolute_error": lambda weights: _median(absolute[order], weights[order]),
    }
    size = np.abs(y)
    if len(y) and size.min() > 0.01 * size.mean():  # near 0 a percentage says nothing
        scorers["mape"] = _mean(absolute / size)
    return scorers


class Ranking:
    """Rows in order of a score, for metrics that look at every threshold."""

    def __init__(self, positive: NDArray[np.bool_], score: Floats) -> None:
        """Remember which rows are positive, and their score; sorting waits until it is needed."""
        self.positive = positive
        self.score = score

    @cached_property
    def order(self) -> Integers:
        """The rows from the highest score to the lowest."""
        return np.argsort(-self.score, kind="stable")

    @cached_property
    def ends(self) -> Integers:
        """The last place of each run of equal scores."""
        ranked = self.score[self.order]
        return np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)

    @cached_property
    def hits(self) -> Floats:
        """1 where the row in this place is positive."""
        return self.positive[self.order].astype(np.float64)

    def count(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the true and the false positives at each threshold, from the highest down."""
        ranked = weights[self.order]
        true = np.cumsum(ranked * self.hits)[self.ends]
        return true, np.cumsum(ranked)[self.ends] - true

    def roc_auc(self, weights: Floats) -> float:
        """Return the area under the ROC curve; NaN where one class is absent."""
        true, false = self.count(weights)
        if true[-1] == 0 or false[-1] == 0:
            return NAN
        beaten = np.diff(false, prepend=0) @ (true - np.diff(true, prepend=0) / 2)  # a tie counts half
        return float(beaten / (true[-1] * false[-1]))

    def average_precision(self, weights: Floats) -> float:
        """Return the area under the precision-recall curve, by steps; NaN without a positive row."""
        true, false = self.count(weights)
        if true[-1] == 0:
            return NAN
        precision = true / np.maximum(true + false, 1e-300)
        return float(np.diff(true, prepend=0) @ precision / true[-1])


class Confusion:
    """How often each class was called each class."""

    def __init__(self, y: Integers, probabilities: Floats) -> None:
        """Remember each row's cell; the predicted class is the likeliest, the first of equals."""
        self.classes = probabilities.shape[1]
        self.cell = y * self.classes + probabilities.argmax(axis=1)

    def count(self, weights: Floats) -> Floats:
        """Return the weighted rows by true class (rows) and predicted class (columns)."""
        counts = np.bincount(self.cell, weights, minlength=self.classes**2).astype(np.float64)
        return counts.reshape(self.classes, self.classes)

    def accuracy(self, weights: Floats) -> float:
        """Return the share of rows called rightly."""
        counts = self.count(weights)
        return float(np.trace(counts) / counts.sum())

    def balanced_accuracy(self, weights: Floats) -> float:
        """Return the mean recall over the classes that the rows hold."""
        counts = self.count(weights)
        truths = counts.sum(axis=1)
        return float(np.mean(counts.diagonal()[truths > 0] / truths[truths > 0]))

    def f1(self, weights: Floats) -> float:
        """Return the F1 of class 1; 0 where it is neither true nor predicted."""
        return float(self.f1_by_class(weights)[1])

    def f1_macro(self, weights: Floats) -> float:
        """Return the mean F1 over the classes that are true or predicted in any row."""
        counts = self.count(weights)
        present = counts.sum(axis=0) + counts.sum(axis=1) > 0
        return float(self.f1_by_class(weights)[present].mean())

    def f1_by_class(self, weights: Floats) -> Floats:
        """Return the F1 of each class."""
        counts = self.count(weights)
        both = counts.sum(axis=0) + counts.sum(axis=1)
        f1: Floats = 2 * counts.diagonal() / np.maximum(both, 1e-300)
        return f1


def _mean(values: Floats) -> Scorer:
    return lambda weights: float(weights @ values / weights.sum())


def _log_loss(y: Integers, probabilities: Floats) -> Scorer:
    """Return the mean negative log-likelihood; probabilities are clipped at their type's precision."""
    tiny = np.finfo(probabilities.dtype).eps
    chosen = np.asarray(probabilities, np.float64)[np.arange(len(y)), y]
    return _mean(-np.log(np.clip(chosen, tiny, 1 - tiny)))


def _median(ordered: Floats, weights: Floats) -> float:
    """Return the median of sorted values that count `weights` times each."""
    upto = np.cumsum(weights)
    middle = [np.floor((upto[-1] + 1) / 2), np.ceil((upto[-1] + 1) / 2)]
    return float(ordered[np.searchsorted(upto, middle)].mean())
