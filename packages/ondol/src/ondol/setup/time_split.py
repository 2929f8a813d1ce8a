"""Finds tables that follow time: a random split flatters a model there, since its neighbours in time are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondol.contract import Column
from ondol.contract.encoding import CYCLES
from ondol.evaluation.metrics import METRICS, bootstrap
from ondol.setup.inference import Goal, Profile
from ondol.setup.schema_file import Field
from ondol.validation.leakage import as_numbers, label

LEAST_ROWS, MOST_ROWS = 200, 10_000
SHARE = 0.2  # of the rows that are predicted
RESAMPLES = 50


@dataclass(frozen=True)
class SplitComparison:
    """A quick model on two splits of the same rows.

    Attributes:
        metric: The metric.
        random: Its value where a random fifth of the rows is held out.
        later: Its value where the latest fifth is held out.
        flatters: Whether the random split is better by more than chance.
    """

    metric: str
    random: float
    later: float
    flatters: bool


def compare_splits(profiles: Sequence[Profile], fields: Sequence[Field], goal: Goal) -> SplitComparison | None:
    """Compare a random split with one by time; None without a time, or with too few rows.

    Both splits fit scikit-learn's boosting with its defaults on at most `MOST_ROWS` rows.

    Args:
        profiles: The columns.
        fields: The contract's field of each, in the same order.
        goal: The target and the problem.
    """
    time = next((p for p, field in zip(profiles, fields, strict=True) if field.role == "time"), None)
    aim = next(p for p in profiles if p.name == goal.field.name)
    if time is None:
        return None
    usable = np.flatnonzero((time.values.notna() & aim.values.notna()).to_numpy(bool))
    rows = np.random.default_rng(0).permutation(usable)[:MOST_ROWS]
    if len(rows) < LEAST_ROWS or time.values.iloc[rows].nunique() < 2:
        return None
    seen = [p for p, field in zip(profiles, fields, strict=True) if field.seen]
    columns = [as_numbers(p.values.iloc[rows], Column(name=p.name, kind=p.kind)) for p in seen]
    columns += [getattr(time.values.dt, part).iloc[rows].to_numpy(np.float64) for part in CYCLES if time in seen]
    if not columns:
        return None
    features = np.column_stack(columns)
    truth = label(aim.values.iloc[rows], goal.problem)
    if goal.problem != "regression":
        truth = truth.astype(np.int64)
    metric = next(iter(METRICS[goal.problem]))
    last = len(rows) - max(1, round(SHARE * len(rows)))
    order = np.argsort(time.values.iloc[rows].to_numpy(), kind="stable")
    found = [_measure(goal.problem, metric, features, truth, one, last) for one in (np.arange(len(rows)), order)]
    if any(interval is None for interval in found):
        return None
    (random, random_error), (later, later_error) = [one for one in found if one is not None]
    return SplitComparison(metric, random, later, random - later > 2 * float(np.hypot(random_error, later_error)))


def _measure(
    problem: str, metric: str, rows: NDArray[np.float64], truth: NDArray[Any], order: NDArray[np.intp], last: int
) -> tuple[float, float] | None:
    """Return the metric and its standard error on the rows from `last` on in this order."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    fit, predict = order[:last], order[last:]
    if problem == "regression":
        regressor = HistGradientBoostingRegressor(random_state=0).fit(rows[fit], truth[fit])
        predicted = regressor.predict(rows[predict])
    else:
        if len(np.unique(truth[fit])) < 2:
            return None
        classifier = HistGradientBoostingClassifier(random_state=0).fit(rows[fit], truth[fit])
        predicted = np.zeros((len(predict), int(truth.max()) + 1))
        predicted[:, classifier.classes_] = classifier.predict_proba(rows[predict])
    found = bootstrap(problem, truth[predict], predicted, resamples=RESAMPLES, metrics=[metric]).get(metric)
    if found is None or found.low is None or found.high is None:
        return None
    return found.value, (found.high - found.low) / 4  # the interval has 95%, two standard errors on each side
