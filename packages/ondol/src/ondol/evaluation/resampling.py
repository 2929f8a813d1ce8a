"""Intervals by the bootstrap: rows drawn anew, many times, as weights.

They are percentile intervals over resamples of the holdout's rows (Efron, 1979), seeded. Three rules:

- Above `SAMPLE_ROWS` rows, resamples are drawn from a seeded sample of that many rows, and the interval is
  moved to the figure of all rows: its width is that of 50,000 rows, a little wide, never narrow.
- A resample that leaves a figure undefined (one class only) is left out; with fewer than half of the
  resamples left the interval is unknown.
- With fewer than `LEAST_ROWS` rows it is unknown too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondol.evaluation.weighted import Scorer

Array = NDArray[Any]
Scorers = Mapping[str, Scorer]
SAMPLE_ROWS = 50_000
LEAST_ROWS = 10


@dataclass(frozen=True)
class Interval:
    """A figure and the interval around it; `low` and `high` are None where there are too few rows to tell."""

    value: float
    low: float | None
    high: float | None


def estimate(
    prepare: Callable[[Array | slice], Scorers], rows: int, *, confidence: float, resamples: int, seed: int
) -> dict[str, Interval]:
    """Return each figure that all rows define, with its interval.

    Args:
        prepare: Gives the figures of the rows at some positions, as functions of their weights.
        rows: How many rows there are.
        confidence: The intervals' coverage, such as 0.95.
        resamples: How many times the rows are drawn anew.
        seed: Of the sample and of the resamples.
    """
    scorers = prepare(slice(None))
    values = score_all(scorers, rows)
    sample = sample_rows(rows, seed)
    if sample is not None:
        scorers, rows = prepare(sample), len(sample)
    scorers = {name: scorers[name] for name in values if name in scorers}
    centres = score_all(scorers, rows) if sample is not None else values
    figures = _resample(scorers, rows, resamples, seed)
    return {
        name: _interval(value, value - centres.get(name, value), figures.get(name), confidence)
        for name, value in values.items()
    }


def score_all(scorers: Scorers, rows: int) -> dict[str, float]:
    """Return the figures of `rows` rows that count once each, without those that are undefined."""
    weights = np.ones(rows)
    scores = {name: float(score(weights)) for name, score in scorers.items()}
    return {name: score for name, score in scores.items() if np.isfinite(score)}


def sample_rows(rows: int, seed: int, most: int = SAMPLE_ROWS) -> Array | None:
    """Return the sorted positions of a seeded sample of `most` rows; None where all rows are few enough."""
    if rows <= most:
        return None
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False, shuffle=False))


def _resample(scorers: Mapping[str, Scorer], rows: int, resamples: int, seed: int) -> dict[str, Array]:
    """Return each metric on each resample, [resamples]; empty where the rows are too few."""
    if rows < LEAST_ROWS:
        return {}
    rng = np.random.default_rng(seed)
    figures = {name: np.empty(resamples) for name in scorers}
    for i in range(resamples):
        weights = np.bincount(rng.integers(0, rows, rows), minlength=rows).astype(np.float64)
        for name, score in scorers.items():
            figures[name][i] = score(weights)
    return figures


def _interval(value: float, moved: float, figures: Array | None, confidence: float) -> Interval:
    """Return the percentiles of `figures` plus `moved`, where at least half of them are defined."""
    defined = figures[np.isfinite(figures)] if figures is not None else np.empty(0)
    if figures is None or 2 * len(defined) < len(figures):
        return Interval(value, None, None)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2]) + moved
    return Interval(value, float(low), float(high))
