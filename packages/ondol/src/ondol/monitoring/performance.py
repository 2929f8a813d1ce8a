"""Metrics of the labelled predictions of a window, beside the metric on the holdout."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from ondol.config import Gates, Monitor
from ondol.contract import Contract, encode_target
from ondol.evaluation.gates import show_figure
from ondol.evaluation.metrics import Interval, bootstrap, choose_metric, metrics_of, score_metrics


class Performance(BaseModel):
    """The metric that decides, on the labelled rows of a window.

    Attributes:
        metric: Its name.
        rows: How many rows had a label.
        figure: Its figure with interval.
        before: The holdout's, None if it is not known.
        metrics: Every metric's figure.
        lost: Whether it is worse than the holdout's beyond chance and by more than is allowed.
    """

    metric: str
    rows: int
    figure: Interval
    before: Interval | None
    metrics: dict[str, float]
    lost: bool

    @property
    def sentence(self) -> str:
        """The finding in words."""
        before = "unknown" if self.before is None else _show(self.before)
        return f"{self.metric} {_show(self.figure)} on {self.rows:,} labelled rows, {before} on the holdout"


def measure(
    contract: Contract, holdout: dict[str, Any], rows: pd.DataFrame, gates: Gates, rules: Monitor
) -> Performance | None:
    """Return how good the labelled rows' predictions were; None if the metric is undefined on them.

    Args:
        contract: The model's.
        holdout: The metrics of the bundle's `meta.json`.
        rows: Columns `prediction` (lists of numbers) and `label` (in the target's dtype).
        gates: The metric and how its interval is found.
        rules: The allowed loss, and how sure it must be.
    """
    y = encode_target(contract, rows["label"])
    predicted = np.array(rows["prediction"].tolist(), dtype=np.float64)
    good = np.isfinite(predicted).all(axis=1) & ((y >= 0) if contract.classes else np.isfinite(y))
    predicted = predicted[good] if contract.classes else predicted[good, 0]
    y = y[good]
    metric = choose_metric(contract.problem, gates.metric)
    options = {"confidence": gates.confidence, "resamples": gates.resamples}
    figure = bootstrap(contract.problem, y, predicted, metrics=[metric], **options).get(metric)  # type: ignore[arg-type]
    if figure is None:
        return None
    before = Interval(**holdout[metric]) if metric in holdout else None
    return Performance(
        metric=metric,
        rows=len(y),
        figure=figure,
        before=before,
        metrics=score_metrics(contract.problem, y, predicted),
        lost=before is not None and is_lost(contract.problem, metric, figure, before, gates.confidence, rules),
    )


def is_lost(problem: str, metric: str, now: Interval, before: Interval, coverage: float, rules: Monitor) -> bool:
    """Return True if a figure is worse than before by more than `[monitor] loss`, and by more than chance.

    The figures are of different rows, so their standard errors, read from their intervals of that coverage, add up in
    squares; the fall must exceed the one-sided bound of the normal distribution at `[monitor] confidence`.
    """
    kind = metrics_of(problem)[metric]
    if now.low is None or now.high is None or before.low is None or before.high is None:
        return False
    normal = NormalDist()
    fall = before.value - now.value if kind.greater_is_better else now.value - before.value
    widths = math.hypot(now.high - now.low, before.high - before.low)
    error = widths / (2 * normal.inv_cdf((1 + coverage) / 2))
    return fall > max(
        normal.inv_cdf(rules.confidence) * error, rules.loss * (abs(before.value) if kind.relative else 1.0)
    )


def _show(figure: Interval) -> str:
    if figure.low is None or figure.high is None:
        return show_figure(figure.value)
    return f"{show_figure(figure.value)} ({show_figure(figure.low)} to {show_figure(figure.high)})"
