"""Metrics of the labelled predictions of a window, compared with the holdout."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from ondol.config import Gates, Monitor
from ondol.contract import Contract, encode_target
from ondol.evaluation.gates import show_figure
from ondol.evaluation.metrics import Decided, Interval, bootstrap, choose_metric, metrics_of, score_metrics
from ondol.monitoring.estimation import Estimator


class Performance(BaseModel):
    """The deciding metric on the labelled rows of a window.

    Attributes:
        metric: Its name.
        rows: The number of labelled rows.
        figure: The figure with its interval.
        before: The figure on the holdout; None if it is not known.
        metrics: The figure of every metric.
        lost: Whether it is significantly worse than on the holdout, by more than the allowed loss.
        estimated: What was estimated for the same rows without labels; None if nothing was.
    """

    metric: str
    rows: int
    figure: Interval
    before: Interval | None
    metrics: dict[str, float]
    lost: bool
    estimated: Interval | None = None

    @property
    def as_estimated(self) -> bool | None:
        """Whether the figure is within the interval of its estimate; None without one."""
        found = self.estimated
        if found is None or found.low is None or found.high is None:
            return None
        return found.low <= self.figure.value <= found.high

    @property
    def sentence(self) -> str:
        """The result in words."""
        before = "unknown" if self.before is None else _show(self.before)
        said = f"{self.metric} {_show(self.figure)} on {self.rows:,} labelled rows, {before} on the holdout"
        if self.estimated is None:
            return said
        word = "as estimated" if self.as_estimated else "not as estimated"
        return f"{said}, {word} without labels ({_show(self.estimated)})"


def measure(
    contract: Contract,
    holdout: dict[str, Any],
    rows: pd.DataFrame,
    gates: Gates,
    rules: Monitor,
    estimator: Estimator | None = None,
) -> Performance | None:
    """Compute the metrics of the labelled rows; None if the deciding metric is undefined on them.

    Args:
        contract: The contract of the model.
        holdout: The metrics in the bundle's `meta.json`.
        rows: Columns `prediction` (lists of numbers) and `label` (in the target's dtype).
        gates: The metric and the settings of its interval.
        rules: The allowed loss and the confidence level.
        estimator: Estimates the metric of the same rows without their labels; None for no estimate.
    """
    y = encode_target(contract, rows["label"])
    predicted = np.array(rows["prediction"].tolist(), dtype=np.float64)
    good = np.isfinite(predicted).all(axis=1) & ((y >= 0) if contract.classes else np.isfinite(y))
    predicted = predicted[good] if contract.classes else predicted[good, 0]
    y, decided = y[good], Decided.by(contract.decision, predicted)
    metric = choose_metric(contract.problem, gates.metric)
    options = {"confidence": gates.confidence, "resamples": gates.resamples}
    figure = bootstrap(contract.problem, y, decided, metrics=[metric], **options).get(metric)  # type: ignore[arg-type]
    if figure is None:
        return None
    before = Interval(**holdout[metric]) if metric in holdout else None
    estimated = estimator.estimate(predicted, [metric]) if estimator else {}
    return Performance(
        metric=metric,
        rows=len(y),
        figure=figure,
        before=before,
        metrics=score_metrics(contract.problem, y, decided),
        lost=before is not None and is_lost(contract.problem, metric, figure, before, gates.confidence, rules),
        estimated=estimated.get(metric),
    )


def is_lost(problem: str, metric: str, now: Interval, before: Interval, coverage: float, rules: Monitor) -> bool:
    """Return True if a figure is worse than before by more than `[monitor] loss`, and significantly so.

    The figures come from different rows, so the squares of their standard errors, derived from their intervals, add up.
    The fall must exceed the one-sided bound of the normal distribution at `[monitor] confidence`.
    """
    kind = metrics_of(problem)[metric]
    if now.low is None or now.high is None or before.low is None or before.high is None:
        return False
    normal = NormalDist()
    fall = kind.sign * (before.value - now.value)
    widths = math.hypot(now.high - now.low, before.high - before.low)
    error = widths / (2 * normal.inv_cdf((1 + coverage) / 2))
    return fall > max(
        normal.inv_cdf(rules.confidence) * error, rules.loss * (abs(before.value) if kind.relative else 1.0)
    )


def _show(figure: Interval) -> str:
    if figure.low is None or figure.high is None:
        return show_figure(figure.value)
    return f"{show_figure(figure.value)} ({show_figure(figure.low)} to {show_figure(figure.high)})"
