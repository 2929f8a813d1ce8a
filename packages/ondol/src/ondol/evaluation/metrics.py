"""How good predictions are, with intervals by the bootstrap.

Classification takes y as indices into the contract's classes and probabilities [N, K]; in binary problems
index 1 is the positive class. Regression takes y and predicted values, both [N], in the target's unit.

How intervals are found, and when they are unknown, stands in `ondol.evaluation.resampling`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondol.errors import UserError, nearest
from ondol.evaluation.resampling import Interval, estimate, sample_rows, score_all
from ondol.evaluation.weighted import Scorer, prepare_scorers

__all__ = ["METRICS", "Interval", "Metric", "bootstrap", "choose_metric", "paired_difference", "sample_rows"]
__all__ += ["score_metrics"]

Array = NDArray[Any]
MANY_CLASSES = 10  # above it one-against-the-rest areas get no interval by default: one pass per class


@dataclass(frozen=True)
class Metric:
    """What must be known of a metric to compare two figures.

    Attributes:
        greater_is_better: The direction.
        relative: The figure has the target's unit, so margins are shares of the champion's figure.
    """

    greater_is_better: bool
    relative: bool = False


METRICS: Mapping[str, Mapping[str, Metric]] = {
    "binary": {
        "roc_auc": Metric(True),
        "average_precision": Metric(True),
        "log_loss": Metric(False),
        "brier": Metric(False),
        "accuracy": Metric(True),
        "balanced_accuracy": Metric(True),
        "f1": Metric(True),
    },
    "multiclass": {
        "f1_macro": Metric(True),
        "accuracy": Metric(True),
        "balanced_accuracy": Metric(True),
        "log_loss": Metric(False),
        "roc_auc_ovr": Metric(True),
    },
    "regression": {
        "r2": Metric(True),
        "rmse": Metric(False, relative=True),
        "mae": Metric(False, relative=True),
        "median_absolute_error": Metric(False, relative=True),
        "mape": Metric(False),
    },
}


def choose_metric(problem: str, name: str | None) -> str:
    """Return the metric that decides: `name`, or the problem's first.

    Raises:
        UserError: the problem has no such metric.
    """
    known = METRICS[problem]
    if name is not None and name not in known:
        hint = nearest(name, known) or f" Known here: {', '.join(known)}."
        raise UserError(f'gates.metric is "{name}", which is no metric of a {problem} problem.{hint}')
    return name or next(iter(known))


def score_metrics(problem: str, y: Array, prediction: Array) -> dict[str, float]:
    """Return every metric of `problem` that these rows define.

    A metric is left out where it is undefined: ROC AUC of one class, R² of one value, percentages near 0.

    Raises:
        UserError: a prediction is no finite number.
    """
    return score_all(_prepare(problem, y, prediction), len(y))


def bootstrap(
    problem: str,
    y: Array,
    prediction: Array,
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
    metrics: Sequence[str] | None = None,
) -> dict[str, Interval]:
    """Return each defined metric with its interval.

    Args:
        problem: "binary", "multiclass" or "regression".
        y: What is true, [N].
        prediction: Probabilities [N, K] or values [N].
        confidence: The interval's coverage, such as 0.95.
        resamples: How many times the rows are drawn anew.
        seed: Of the sample and of the resamples.
        metrics: Which ones; default: all (`roc_auc_ovr` up to ten classes).
    """
    costly = np.ndim(prediction) == 2 and np.shape(prediction)[1] > MANY_CLASSES

    def prepare(rows: Array | slice) -> dict[str, Scorer]:
        scorers = _prepare(problem, y[rows], prediction[rows])
        names = metrics or [n for n in scorers if not (costly and n == "roc_auc_ovr")]
        return {name: scorers[name] for name in names if name in scorers}

    return estimate(prepare, len(y), confidence=confidence, resamples=resamples, seed=seed)


def paired_difference(
    problem: str,
    metric: str,
    y: Array,
    candidate: Array,
    other: Array,
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> Interval | None:
    """Return by how much `candidate` is better than `other`; above 0 is better, whatever the metric.

    Each resample scores both on the same rows. None where the metric is undefined on the rows.
    """
    sign = 1.0 if METRICS[problem][metric].greater_is_better else -1.0

    def prepare(rows: Array | slice) -> dict[str, Scorer]:
        ours, theirs = (_prepare(problem, y[rows], p[rows]).get(metric) for p in (candidate, other))
        if ours is None or theirs is None:
            return {}
        return {metric: lambda weights: sign * (ours(weights) - theirs(weights))}

    found = estimate(prepare, len(y), confidence=confidence, resamples=resamples, seed=seed)
    return found.get(metric)


def _prepare(problem: str, y: Array, prediction: Array) -> dict[str, Scorer]:
    bad = np.count_nonzero(~np.isfinite(prediction))
    if bad:
        raise UserError(f"The model gave {bad:,} predictions that are no finite numbers: look at model/estimator.py.")
    return prepare_scorers(problem, y, prediction) if len(y) else {}
