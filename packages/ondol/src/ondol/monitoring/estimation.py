"""Estimates of the metrics of a window without its labels, from the probabilities alone (CBPE).

If the probabilities are right, they say how often a prediction is wrong. So labels are drawn from them many times, and
each draw gives the metrics that these labels would give; the mean is the estimate. This is confidence-based performance
estimation (Białek et al., 2024, arXiv 2407.08649) by simulation, for any metric. The probabilities are calibrated
first, on the reference: the held-out rows in the bundle, whose labels are known. The interval is three standard
deviations of the draws on both sides. They have the chance of the labels and, since each calibration uses other
reference rows, that of the calibration.

The estimate cannot see a change of the rule by which the target follows from the features, and it is worth little for
rows that are unlike those of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ondol.config import Monitor
from ondol.contract import encode_target
from ondol.evaluation.gates import show_interval
from ondol.evaluation.metrics import MANY_CLASSES, METRICS, Decided, Interval, choose_metric, score_metrics
from ondol.evaluation.targets import Reference
from ondol.monitoring.drift import DriftComparison, Sides, share_limit
from ondol.training.calibration import Floats, apply_sigmoids, fit_sigmoids, log_odds
from ondol_serving.decision import DecisionRule

REFITS, DRAWS = 50, 200  # calibrations, and draws of the labels
DEVIATIONS = 3.0  # on both sides of the estimate: the calibration of shifted rows is never quite that of the reference
ROWS = 5_000  # of a window that are drawn at most
SEED = 0


class Estimate(BaseModel):
    """The estimated metrics of a window.

    Attributes:
        metric: The metric that decides.
        rows: The number of rows.
        figures: The estimate of every metric with its interval.
        calibrated: Whether the probabilities were calibrated on the reference.
        doubts: Why the estimate is unreliable, as parts of a sentence; empty if nothing is known.
    """

    metric: str
    rows: int
    figures: dict[str, Interval]
    calibrated: bool
    doubts: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The estimate in words."""
        figure = self.figures[self.metric]
        doubt = f", unreliable: {'; '.join(self.doubts)}" if self.doubts else ""
        return f"{self.metric} {show_interval(figure.value, figure.low, figure.high)} estimated without labels{doubt}"


@dataclass(frozen=True)
class Estimator:
    """Estimates the metrics of rows from their probabilities.

    Attributes:
        problem: "binary" or "multiclass".
        sigmoids: The sigmoids of the classes, fitted on different rows of the reference; empty if the probabilities are
            used as they are.
        rule: What decides the labels; None for the most probable class.
    """

    problem: str
    sigmoids: tuple[list[Any], ...]
    rule: DecisionRule | None = None

    @classmethod
    def fit(cls, reference: Reference) -> "Estimator":
        """Fit the sigmoids on `REFITS` bootstrap samples of the reference.

        Without the probabilities of its rows (a bundle of more than two classes from before 0.6.0), or without a row of
        each class, there are none.
        """
        problem, known = reference.contract.problem, reference.probabilities
        rule = reference.contract.decision
        if known is None:
            return cls(problem, (), rule)
        target = encode_target(reference.contract, reference.frame[reference.contract.target])
        scores, target = _log_odds(known[target >= 0]), target[target >= 0]
        rng = np.random.default_rng(SEED)
        samples = [rng.integers(0, len(target), len(target)) for _ in range(REFITS)] if len(target) else []
        whole = [rows for rows in samples if len(np.unique(target[rows])) == known.shape[1]]
        return cls(problem, tuple(fit_sigmoids(scores[rows], target[rows]) for rows in whole), rule)

    def estimate(self, probabilities: Floats, metrics: Sequence[str] | None = None) -> dict[str, Interval]:
        """Return the estimate of each metric with its interval; of many rows, a seeded sample is used.

        Args:
            probabilities: Those that the service answered with, [N, K].
            metrics: The metrics; default: all (`roc_auc_ovr` only for up to ten classes).
        """
        rng = np.random.default_rng(SEED)
        if len(probabilities) > ROWS:
            probabilities = probabilities[np.sort(rng.choice(len(probabilities), ROWS, replace=False))]
        scores, found = _log_odds(probabilities), dict[str, list[float]]()
        decided = Decided.by(self.rule, probabilities)
        left_out = {"roc_auc_ovr"} if probabilities.shape[1] > MANY_CLASSES else set()
        for draw in range(DRAWS):
            if self.sigmoids:
                likely = apply_sigmoids(self.sigmoids[draw % len(self.sigmoids)], scores)
            else:
                likely = probabilities
            upto = np.cumsum(likely, axis=1)[:, :-1]
            drawn = (rng.random((len(upto), 1)) > upto).sum(axis=1)
            for name, value in score_metrics(self.problem, drawn, decided).items():
                if name in metrics if metrics else name not in left_out:
                    found.setdefault(name, []).append(value)
        return {
            name: _interval(self.problem, name, np.array(values))
            for name, values in found.items()
            if 2 * len(values) >= DRAWS
        }


def estimate_window(
    reference: Reference,
    probabilities: Floats,
    sides: Sides,
    comparison: DriftComparison,
    metric: str | None,
    rules: Monitor,
) -> Estimate | None:
    """Return the estimate for a window; None if the metric that decides cannot be estimated.

    Args:
        reference: The reference in the bundle.
        probabilities: Those that the service answered with, [N, K].
        sides: Reference and window; see `ondol.monitoring.drift`.
        comparison: What drifted.
        metric: The metric that decides; None for the default of the problem.
        rules: The limits.
    """
    metric = choose_metric(reference.contract.problem, metric)
    estimator = Estimator.fit(reference)
    figures = estimator.estimate(probabilities)
    if metric not in figures:
        return None
    return Estimate(
        metric=metric,
        rows=len(probabilities),
        figures=figures,
        calibrated=bool(estimator.sigmoids),
        doubts=(*find_doubts(sides, reference.output, rules), *_name_drift(comparison, rules)),
    )


def _interval(problem: str, name: str, values: Floats) -> Interval:
    """Return the mean and `DEVIATIONS` standard deviations on both sides, within what the metric can be."""
    mean, reach = float(values.mean()), DEVIATIONS * float(values.std(ddof=1))
    low, high = mean - reach, mean + reach
    if name in METRICS[problem]:
        low, high = max(low, 0.0), min(high, 1.0) if METRICS[problem][name].greater_is_better else high
    return Interval(mean, low, high)


def _log_odds(probabilities: Floats) -> Floats:
    """Return the log-odds of each class, [N, K]; of two, those of the second, [N, 1]."""
    return log_odds(probabilities[:, 1:] if probabilities.shape[1] == 2 else probabilities)


def _name_drift(comparison: DriftComparison, rules: Monitor) -> tuple[str, ...]:
    drifted = [
        name
        for name, found in (
            ("columns", comparison.share >= rules.drift_share),
            ("predictions", comparison.prediction.drifted),
        )
        if found
    ]
    return tuple(f"the {name} drifted" for name in drifted)


def find_doubts(sides: Sides, output: str, rules: Monitor) -> tuple[str, ...]:
    """Return why an estimate is unreliable: rows with values that the reference does not have.

    A row counts if a number is outside the range of the reference, or if a category or a gap is not in it. About two
    rows of as many as the reference has are outside the range of a column by chance.
    """
    before, now = sides.reference, sides.window
    features = [name for name in sides.kinds if name != output]
    outside = np.zeros(len(now), bool)
    for name in features:
        outside |= _is_outside(sides, name)
    share, numbers = float(outside.mean()), sum(sides.kinds[name] == "number" for name in features)
    limit = share_limit(rules.unseen, 0.0, min(1.0, 2 * numbers / (len(before) + 1)), len(before), len(now))
    doubts = [f"{share:.0%} of the rows have values outside those of the reference"] if share > limit else []
    for name, (ours, theirs) in sides.unseen.items():
        if theirs - ours > share_limit(rules.unseen, ours, theirs, len(before), len(now)):
            doubts.append(f"{theirs:.0%} of the values of {name} were never seen in training")
    return tuple(doubts)


def _is_outside(sides: Sides, name: str) -> NDArray[np.bool_]:
    ours, theirs = sides.reference[name], sides.window[name]
    gap = theirs.isna() & (not ours.isna().any())
    if sides.kinds[name] == "number":
        return np.asarray((theirs < ours.min()) | (theirs > ours.max()) | gap)
    return np.asarray((~theirs.isin(set(ours.dropna())) & theirs.notna()) | gap)
