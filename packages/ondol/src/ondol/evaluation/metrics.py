"""Metrics of predictions, with bootstrap intervals.

For classification, y are indices of the contract's classes, and predictions are probabilities [N, K], or `Decided` if
a rule decides the labels; in binary problems index 1 is the positive class. For regression, y and predictions are
values [N] in the target's unit.

Intervals are percentile bootstrap intervals over the holdout's rows (Efron, 1979), with a seed. A resample is a vector
of weights (how often each row was drawn): rows are sorted once, and 200 resamples cost 200 passes over prepared arrays
instead of 200 sorts. A metric that is undefined for the weighted rows is NaN. Three rules:

- Above `SAMPLE_ROWS` rows, resamples are drawn from a seeded sample of that many rows, and the interval is shifted to
  the figure of all rows. Its width is that of 50,000 rows: slightly too wide, never too narrow.
- A resample for which a figure is undefined (one class only) is left out; with fewer than half of the resamples left,
  the interval is unknown.
- With fewer than `LEAST_ROWS` rows it is unknown too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ondol.errors import UserError, nearest
from ondol.project import EVALUATION, FILE, OWN_ERRORS, describe_error, read_extension
from ondol_serving.decision import Costs, DecisionRule, decide

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
ScoreFunction = Callable[[Floats], float]
NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Decided:
    """Probabilities of rows, and the labels that a rule decides from them.

    Attributes:
        probabilities: The probabilities, [N, K].
        labels: The indexes of the labels, [N].
        costs: The cost of each true class (rows) and label (columns), [K, K]; None if none are set.
    """

    probabilities: Floats
    labels: Integers
    costs: Costs | None = None

    @classmethod
    def by(
        cls, rule: DecisionRule | None, probabilities: Floats, judge: DecisionRule | None = None
    ) -> "Decided | Floats":
        """Return the probabilities with the labels by `rule`, and the costs of `judge` (default: `rule`).

        Without both, it is the probabilities alone.
        """
        judge = judge or rule
        return probabilities if judge is None else cls(probabilities, decide(rule, probabilities), judge.costs)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)

    def __getitem__(self, rows: "Array | slice") -> "Decided":
        """Return some of the rows."""
        return Decided(self.probabilities[rows], self.labels[rows], self.costs)


def numbers_of(prediction: "Decided | Floats") -> Floats:
    """Return the probabilities [N, K] or values [N] of predictions."""
    return prediction.probabilities if isinstance(prediction, Decided) else prediction


def labels_of(prediction: "Decided | Floats") -> Integers:
    """Return the indexes of the labels of predictions, [N]."""
    return prediction.labels if isinstance(prediction, Decided) else decide(None, prediction)


def prepare_scorers(problem: str, y: Integers | Floats, prediction: Decided | Floats) -> dict[str, ScoreFunction]:
    """Return each metric of `problem` as a function of the rows' weights.

    Args:
        problem: "binary", "multiclass" or "regression".
        y: The true targets, length N: the index of the class, or the value.
        prediction: Probabilities [N, K], or values [N].

    Raises:
        ValueError: the shapes do not match.
    """
    numbers = numbers_of(prediction)
    if len(y) != len(numbers) or np.ndim(numbers) != (1 if problem == "regression" else 2):
        raise ValueError(f"{problem}: {np.shape(y)} truths and {np.shape(numbers)} predictions")
    if problem == "regression":
        return _prepare_regression(np.asarray(y, np.float64), np.asarray(numbers, np.float64))
    y = np.asarray(y, np.int64)
    confusion = Confusion(y, prediction)
    prepare = _prepare_binary if problem == "binary" else _prepare_multiclass
    scorers = prepare(y, numbers, confusion)
    return scorers | _prepare_decided(problem, confusion, prediction) if isinstance(prediction, Decided) else scorers


def _prepare_decided(problem: str, confusion: "Confusion", prediction: Decided) -> dict[str, ScoreFunction]:
    """Return the metrics that are about a rule for labels."""
    costs = prediction.costs
    made: dict[str, ScoreFunction] = {}
    if problem == "binary":
        made |= {"precision": confusion.precision, "recall": confusion.recall}
    if costs is not None:
        made["cost"] = partial(confusion.cost, np.array(costs))
    return made


def _prepare_own(y: Integers | Floats, prediction: Decided | Floats) -> dict[str, ScoreFunction]:
    numbers = numbers_of(prediction)
    return {name: partial(_score_own, name, metric, y, numbers) for name, metric in own_metrics().items()}


def _score_own(name: str, metric: "Metric", y: Integers | Floats, prediction: Floats, weights: Floats) -> float:
    assert metric.score is not None
    try:
        return float(metric.score(y, prediction, weights))
    except OWN_ERRORS as error:
        raise UserError(f'The metric "{name}" of {FILE(EVALUATION)} failed: {describe_error(error)}.') from error


def _prepare_binary(y: Integers, probabilities: Floats, confusion: "Confusion") -> dict[str, ScoreFunction]:
    score = np.asarray(probabilities[:, 1], np.float64)
    ranking = Ranking(y == 1, score)
    return {
        "roc_auc": ranking.roc_auc,
        "average_precision": ranking.average_precision,
        "log_loss": _log_loss(y, probabilities),
        "brier": _mean((score - y) ** 2),
        "accuracy": confusion.accuracy,
        "balanced_accuracy": confusion.balanced_accuracy,
        "f1": confusion.f1,
    }


def _prepare_multiclass(y: Integers, probabilities: Floats, confusion: "Confusion") -> dict[str, ScoreFunction]:
    rankings = [Ranking(y == k, probabilities[:, k]) for k in range(probabilities.shape[1])]

    def roc_auc_ovr(weights: Floats) -> float:
        """Average the one-against-the-rest ROC AUC over the classes in the rows."""
        areas = np.array([r.roc_auc(weights) for r in rankings])
        return float(np.mean(areas[~np.isnan(areas)])) if not np.isnan(areas).all() else NAN

    return {
        "f1_macro": confusion.f1_macro,
        "accuracy": confusion.accuracy,
        "balanced_accuracy": confusion.balanced_accuracy,
        "log_loss": _log_loss(y, probabilities),
        "roc_auc_ovr": roc_auc_ovr,
    }


def _prepare_regression(y: Floats, value: Floats) -> dict[str, ScoreFunction]:
    error = value - y
    squared, absolute = _mean(error**2), np.abs(error)
    centred = y - y.mean() if len(y) else y  # for an exact sum of squares if targets are far from 0
    first, second = _mean(centred), _mean(centred**2)
    order = np.argsort(absolute)

    def r2(weights: Floats) -> float:
        variance = second(weights) - first(weights) ** 2
        return 1 - squared(weights) / variance if variance > 1e-12 * second(weights) else NAN

    scorers: dict[str, ScoreFunction] = {
        "r2": r2,
        "rmse": lambda weights: squared(weights) ** 0.5,
        "mae": _mean(absolute),
        "median_absolute_error": lambda weights: _median(absolute[order], weights[order]),
    }
    size = np.abs(y)
    if len(y) and size.min() > 0.01 * size.mean():  # near 0 a percentage has no meaning
        scorers["mape"] = _mean(absolute / size)
    return scorers


class Ranking:
    """Rows ordered by a score, for metrics over all thresholds."""

    def __init__(self, positive: NDArray[np.bool_], score: Floats) -> None:
        """Store which rows are positive, and their scores; they are sorted on first use."""
        self.positive = positive
        self.score = score

    @cached_property
    def order(self) -> Integers:
        """The rows from the highest score to the lowest."""
        return np.argsort(-self.score, kind="stable")

    @cached_property
    def ends(self) -> Integers:
        """The last position of each run of equal scores."""
        ranked = self.score[self.order]
        return np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)

    @cached_property
    def hits(self) -> Floats:
        """1 for positive rows, in this order."""
        return self.positive[self.order].astype(np.float64)

    def count(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the true and the false positives at each threshold, from the highest to the lowest."""
        ranked = weights[self.order]
        true = np.cumsum(ranked * self.hits)[self.ends]
        return true, np.cumsum(ranked)[self.ends] - true

    def roc_auc(self, weights: Floats) -> float:
        """Return the area under the ROC curve; NaN if one class is absent."""
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
    """The confusion matrix of weighted rows."""

    def __init__(self, y: Integers, prediction: Decided | Floats) -> None:
        """Store each row's cell."""
        self.classes = numbers_of(prediction).shape[1]
        self.cell = y * self.classes + labels_of(prediction)

    def count(self, weights: Floats) -> Floats:
        """Return the weighted rows by true class (rows) and predicted class (columns)."""
        counts = np.bincount(self.cell, weights, minlength=self.classes**2).astype(np.float64)
        return counts.reshape(self.classes, self.classes)

    def accuracy(self, weights: Floats) -> float:
        """Return the share of rows classified correctly."""
        counts = self.count(weights)
        return float(np.trace(counts) / counts.sum())

    def balanced_accuracy(self, weights: Floats) -> float:
        """Return the mean recall over the classes in the rows."""
        counts = self.count(weights)
        truths = counts.sum(axis=1)
        return float(np.mean(counts.diagonal()[truths > 0] / truths[truths > 0]))

    def precision(self, weights: Floats) -> float:
        """Return the share of rows with label 1 that are of class 1; NaN if no row has this label."""
        counts = self.count(weights)
        return float(counts[1, 1] / counts[:, 1].sum()) if counts[:, 1].any() else NAN

    def recall(self, weights: Floats) -> float:
        """Return the share of rows of class 1 that have label 1; NaN if there is no such row."""
        counts = self.count(weights)
        return float(counts[1, 1] / counts[1].sum()) if counts[1].any() else NAN

    def cost(self, costs: Floats, weights: Floats) -> float:
        """Return the mean cost of a row, with the cost of each true class (rows) and label (columns)."""
        counts = self.count(weights)
        return float((counts * costs).sum() / counts.sum())

    def f1(self, weights: Floats) -> float:
        """Return the F1 of class 1; 0 if it is neither true nor predicted in any row."""
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


def _mean(values: Floats) -> ScoreFunction:
    return lambda weights: float(weights @ values / weights.sum())


def _log_loss(y: Integers, probabilities: Floats) -> ScoreFunction:
    """Return the mean of `log_losses`."""
    return _mean(log_losses(y, probabilities))


def log_losses(y: Integers, probabilities: Floats) -> Floats:
    """Return the negative log-likelihood of each row, [N]; probabilities are clipped at their type's precision."""
    tiny = np.finfo(probabilities.dtype).eps
    chosen = np.asarray(probabilities, np.float64)[np.arange(len(y)), y]
    return np.asarray(-np.log(np.clip(chosen, tiny, 1 - tiny)))


def _median(ordered: Floats, weights: Floats) -> float:
    """Return the median of sorted values that count `weights` times each."""
    upto = np.cumsum(weights)
    middle = [np.floor((upto[-1] + 1) / 2), np.ceil((upto[-1] + 1) / 2)]
    return float(ordered[np.searchsorted(upto, middle)].mean())


Array = NDArray[Any]
ScoreFunctions = Mapping[str, ScoreFunction]
SAMPLE_ROWS = 50_000
LEAST_ROWS = 10


@dataclass(frozen=True)
class Interval:
    """A figure with its interval; `low` and `high` are None if there are too few rows."""

    value: float
    low: float | None
    high: float | None


def estimate(
    prepare: Callable[[Array | slice], ScoreFunctions],
    rows: int,
    *,
    confidence: float,
    resamples: int,
    seed: int,
    groups: Array | None = None,
) -> dict[str, Interval]:
    """Return each figure that is defined on all rows, with its interval.

    Args:
        prepare: Returns the figures of the rows at given positions, as functions of their weights.
        rows: The number of rows.
        confidence: The coverage of the intervals, such as 0.95.
        resamples: How many times the rows are drawn.
        seed: Of the sample and of the resamples.
        groups: The number of each row's group, [N]: rows that depend on each other are drawn together. Default: each
            row is drawn alone.
    """
    scorers = prepare(slice(None))
    values = score_all(scorers, rows)
    sample = sample_rows(rows, seed)
    if sample is not None:
        scorers, rows = prepare(sample), len(sample)
        groups = None if groups is None else np.unique(groups[sample], return_inverse=True)[1]
    scorers = {name: scorers[name] for name in values if name in scorers}
    centres = score_all(scorers, rows) if sample is not None else values
    figures = _resample(scorers, np.arange(rows) if groups is None else groups, resamples, seed)
    return {
        name: _interval(value, value - centres.get(name, value), figures.get(name), confidence)
        for name, value in values.items()
    }


def score_all(scorers: ScoreFunctions, rows: int) -> dict[str, float]:
    """Return the defined figures of `rows` rows with a weight of 1 each."""
    weights = np.ones(rows)
    scores = {name: float(score(weights)) for name, score in scorers.items()}
    return {name: score for name, score in scores.items() if np.isfinite(score)}


def sample_rows(rows: int, seed: int, most: int = SAMPLE_ROWS) -> Array | None:
    """Return the sorted positions of a seeded sample of `most` rows; None if there are no more rows than that."""
    if rows <= most:
        return None
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False, shuffle=False))


def _resample(scorers: Mapping[str, ScoreFunction], groups: Array, resamples: int, seed: int) -> dict[str, Array]:
    """Return each metric on each resample of the groups of rows, [resamples]; empty if they are too few."""
    number = int(groups.max()) + 1 if len(groups) else 0
    if number < LEAST_ROWS:
        return {}
    rng = np.random.default_rng(seed)
    figures = {name: np.empty(resamples) for name in scorers}
    for i in range(resamples):
        weights = np.bincount(rng.integers(0, number, number), minlength=number)[groups].astype(np.float64)
        for name, score in scorers.items():
            figures[name][i] = score(weights)
    return figures


def _interval(value: float, moved: float, figures: Array | None, confidence: float) -> Interval:
    """Return the percentiles of `figures` plus `moved`, if at least half of them are defined."""
    defined = figures[np.isfinite(figures)] if figures is not None else np.empty(0)
    if figures is None or 2 * len(defined) < len(figures):
        return Interval(value, None, None)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2]) + moved
    return Interval(value, float(low), float(high))


MANY_CLASSES = 10  # with more classes, one-against-the-rest areas get no interval by default: each class needs a pass


@dataclass(frozen=True)
class Metric:
    """The properties of a metric that are needed to compare two figures.

    Attributes:
        greater_is_better: Whether greater figures are better.
        relative: Whether the figure has the target's unit, so that margins are shares of the champion's figure.
        score: For the project's own metrics: a function of the true values [N], the predictions ([N, K] probabilities,
            or [N] values) and the rows' weights [N], like scikit-learn's metrics. It returns NaN if the metric is
            undefined on the rows.
    """

    greater_is_better: bool
    relative: bool = False
    score: Callable[[Any, Any, Floats], float] | None = None

    @property
    def sign(self) -> float:
        """1 if greater figures are better, else -1: with it, a positive difference is an improvement."""
        return 1.0 if self.greater_is_better else -1.0


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


# Those that need `[decision]`. A metric of the project's own may have such a name, and replaces it.
DECISION_METRICS: Mapping[str, Mapping[str, Metric]] = {
    "binary": {"precision": Metric(True), "recall": Metric(True), "cost": Metric(False, relative=True)},
    "multiclass": {"cost": Metric(False, relative=True)},
    "regression": {},
}


def metrics_of(problem: str) -> Mapping[str, Metric]:
    """Return the metrics of `problem` by name, the project's own metrics last."""
    return {**METRICS[problem], **DECISION_METRICS[problem], **own_metrics()}


def own_metrics() -> Mapping[str, Metric]:
    """Return the metrics that `METRICS` in `model/evaluation.py` names.

    Raises:
        UserError: it is not a mapping of names to metrics with a score, or a name is already used.
    """
    own = read_extension(EVALUATION, "METRICS") or {}
    taken = {name for known in METRICS.values() for name in known}
    for name, metric in own.items() if isinstance(own, Mapping) else [(own, None)]:
        if not isinstance(metric, Metric) or metric.score is None:
            raise UserError(
                f"METRICS in {FILE(EVALUATION)} is wrong at {name!r}: map a name to Metric(…, score=function)."
            )
        if name in taken or not str(name).isidentifier():
            raise UserError(
                f'METRICS in {FILE(EVALUATION)} has the name "{name}", which is taken or no identifier: rename it.'
            )
    return dict(own)


def choose_metric(problem: str, name: str | None) -> str:
    """Return the deciding metric: `name`, or the first of the problem.

    Raises:
        UserError: the problem has no such metric.
    """
    known = metrics_of(problem)
    if name is not None and name not in known:
        hint = nearest(name, known) or f" Known here: {', '.join(known)}."
        raise UserError(f'gates.metric is "{name}", which is not a metric of a {problem} problem.{hint}')
    return name or next(iter(known))


class DecisionLike(Protocol):
    """How labels are decided: `[decision]`, or the rule of a version."""

    @property
    def costs(self) -> Any:
        """The costs; None if none are set."""


def require_decision(problem: str, name: str | None, decision: DecisionLike | None) -> None:
    """Check that labels are decided as a deciding metric needs it.

    Args:
        problem: "binary", "multiclass" or "regression".
        name: `[gates] metric`.
        decision: How labels are decided; None for the most probable class.

    Raises:
        UserError: it is a metric of `[decision]`, and the section or its costs are missing.
    """
    if name is None or name not in DECISION_METRICS[problem] or name in own_metrics():
        return
    if decision is None or (name == "cost" and decision.costs is None):
        needed = "costs" if name == "cost" else "costs, precision or recall"
        raise UserError(f'gates.metric is "{name}", which needs {needed} under [decision] in config.toml.')


def score_metrics(problem: str, y: Array, prediction: Decided | Array) -> dict[str, float]:
    """Return every metric of `problem` that is defined on these rows.

    A metric is left out where it is undefined: ROC AUC of one class, R² of one value, percentages near 0.

    Raises:
        UserError: a prediction is not a finite number.
    """
    return score_all(_prepare(problem, y, prediction), len(y))


def bootstrap(
    problem: str,
    y: Array,
    prediction: Decided | Array,
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
    metrics: Sequence[str] | None = None,
    needed: str | None = None,
    groups: Array | None = None,
) -> dict[str, Interval]:
    """Return each defined metric with its interval.

    Args:
        problem: "binary", "multiclass" or "regression".
        y: The true targets, [N].
        prediction: Probabilities [N, K] or values [N].
        confidence: The interval's coverage, such as 0.95.
        resamples: How many times the rows are drawn.
        seed: Of the sample and of the resamples.
        metrics: The metrics; default: all (`roc_auc_ovr` only for up to ten classes).
        needed: A metric that the default includes for any number of classes.
        groups: The number of each row's group, from 0; default: each row is a group of its own.
    """
    numbers = numbers_of(prediction)
    many = np.ndim(numbers) == 2 and np.shape(numbers)[1] > MANY_CLASSES
    left_out = {"roc_auc_ovr"} - {needed} if many else set()

    def prepare(rows: Array | slice) -> dict[str, ScoreFunction]:
        scorers = _prepare(problem, y[rows], prediction[rows])
        names = metrics or [n for n in scorers if n not in left_out]
        return {name: scorers[name] for name in names if name in scorers}

    return estimate(prepare, len(y), confidence=confidence, resamples=resamples, seed=seed, groups=groups)


def paired_difference(
    problem: str,
    metric: str,
    y: Array,
    candidate: Decided | Array,
    other: Decided | Array,
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
    groups: Array | None = None,
) -> Interval | None:
    """Return the improvement of `candidate` over `other`; above 0 is better for every metric.

    Each resample scores both on the same rows. None if the metric is undefined on the rows. For `groups`, see
    `estimate`.
    """
    sign = metrics_of(problem)[metric].sign

    def prepare(rows: Array | slice) -> dict[str, ScoreFunction]:
        ours, theirs = (_prepare(problem, y[rows], p[rows]).get(metric) for p in (candidate, other))
        if ours is None or theirs is None:
            return {}
        return {metric: lambda weights: sign * (ours(weights) - theirs(weights))}

    found = estimate(prepare, len(y), confidence=confidence, resamples=resamples, seed=seed, groups=groups)
    return found.get(metric)


IMPORTANCE_ROWS, IMPORTANCE_COLUMNS = 2_000, 50


def measure_importance(
    problem: str,
    metric: str,
    y: Array,
    frame: "pd.DataFrame",
    columns: Sequence[str],
    predict: "Callable[[pd.DataFrame], Decided | Array]",
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return how much worse the metric gets with a column's values in random order, most important column first.

    This is permutation importance (Breiman, Machine Learning 45, 2001). The interval is that of `paired_difference`:
    each row gets one value of another row. Of more columns than `IMPORTANCE_COLUMNS`, the least important are left out.

    Args:
        problem: "binary", "multiclass" or "regression".
        metric: The metric.
        y: The true targets, [N].
        frame: The rows, [N]; of more than `IMPORTANCE_ROWS`, a seeded sample is used.
        columns: The columns to measure.
        predict: Returns the predictions for rows like those of `frame`.
        confidence: The coverage of the intervals.
        resamples: How many times the rows are drawn.
        seed: Of the sample, of the orders and of the resamples.
    """
    chosen = sample_rows(len(y), seed, IMPORTANCE_ROWS)
    if chosen is not None:
        y, frame = y[chosen], frame.iloc[chosen]
    order = np.random.default_rng(seed).permutation(len(y))
    right, sign = predict(frame), metrics_of(problem)[metric].sign
    ones, losses, shuffled = np.ones(len(y)), {}, {}
    for column in columns:
        made = predict(frame.assign(**{column: frame[column].iloc[order].set_axis(frame.index)}))
        score = _prepare(problem, y, made).get(metric)
        shuffled[column] = made
        losses[column] = -sign * score(ones) if score else NAN
    first = sorted(columns, key=lambda column: -losses[column])[:IMPORTANCE_COLUMNS]
    how: Any = {"confidence": confidence, "resamples": resamples, "seed": seed}
    found = {column: paired_difference(problem, metric, y, right, shuffled[column], **how) for column in first}
    return {column: interval for column, interval in found.items() if interval is not None}


def _prepare(problem: str, y: Array, prediction: Decided | Array) -> dict[str, ScoreFunction]:
    bad = np.count_nonzero(~np.isfinite(numbers_of(prediction)))
    if bad:
        raise UserError(f"The model gave {bad:,} predictions that are not finite numbers: check model/estimator.py.")
    return prepare_scorers(problem, y, prediction) | _prepare_own(y, prediction) if len(y) else {}
