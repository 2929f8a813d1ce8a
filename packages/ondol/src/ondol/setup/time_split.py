"""Finds tables that follow time, and whether their rows' time is worth being a feature.

A random split flatters a model of such a table: the neighbours of each row in time are known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondol.contract import Column
from ondol.contract.encoding import CYCLES
from ondol.evaluation.metrics import METRICS, bootstrap, paired_difference, score_metrics
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


@dataclass(frozen=True)
class TimeGain:
    """A quick model on the latest fifth of the rows, with and without their time as a feature.

    Attributes:
        metric: The metric.
        without: Its value without the time.
        gained: Its value with the time, which is better by more than chance.
    """

    metric: str
    without: float
    gained: float


def compare_splits(profiles: Sequence[Profile], fields: Sequence[Field], goal: Goal) -> SplitComparison | None:
    """Compare a random split with one by time; None without a time, or with too few rows.

    Both splits fit scikit-learn's boosting with its defaults on at most `MOST_ROWS` rows.

    Args:
        profiles: The columns.
        fields: The contract's field of each, in the same order.
        goal: The target and the problem.
    """
    quick = QuickModel.prepare(profiles, goal, fields)
    if quick is None:
        return None
    shuffled = quick.predict(fields, np.arange(len(quick.truth)))
    later = quick.predict(fields, quick.order)
    if shuffled is None or later is None:
        return None
    (random, random_error), (late, late_error) = (quick.score(*one) for one in (shuffled, later))
    flatters = random - late > 2 * math.hypot(random_error, late_error)
    return None if math.isnan(random + late) else SplitComparison(quick.metric, random, late, flatters)


def weigh_time(profiles: Sequence[Profile], fields: Sequence[Field], goal: Goal) -> TimeGain | None:
    """Return what the rows' time gains as a feature, on later rows than the model has seen; None if nothing for sure.

    A time that some rows lack is left out: that it is missing may tell the target, as an end date does.

    Args:
        profiles: The columns.
        fields: The contract's field of each, in the same order.
        goal: The target and the problem.
    """
    time = next((p for p, field in zip(profiles, fields, strict=True) if field.role == "time"), None)
    quick = QuickModel.prepare(profiles, goal, fields)
    if time is None or quick is None or time.values.isna().any():
        return None
    without = quick.predict(fields, quick.order)
    gained = quick.predict([replace(field, time_feature=field.role == "time") for field in fields], quick.order)
    if without is None or gained is None:
        return None
    (truth, before), (_, after) = without, gained
    gain = paired_difference(quick.problem, quick.metric, truth, after, before)
    if gain is None or gain.low is None or gain.low <= 0:
        return None
    scores = [score_metrics(quick.problem, truth, one)[quick.metric] for one in (before, after)]
    return TimeGain(quick.metric, *scores)


def explain_time(fields: Sequence[Field], gain: TimeGain | None) -> dict[str, str]:
    """Return a sentence, by the name of the rows' time, on whether a model sees it; empty without a time."""
    time = next((field for field in fields if field.role == "time"), None)
    if time is None:
        return {}
    sentence = f'"{time.name}" is taken for the row\'s time'
    if not time.time_feature:
        return {
            time.name: f'{sentence}. A model sees it only with "feature": True in its metadata in model/schema.py: '
            "write that if it is known when a prediction is asked for."
        }
    reason = "since there is no other feature"
    if gain is not None:
        reason = (
            f"since a quick model reaches {gain.metric} {gain.gained:.2f} with it on the latest fifth of the rows, and "
            f"{gain.without:.2f} without"
        )
    return {
        time.name: f'{sentence} and a model sees it, {reason}. Remove "feature": True from its metadata in '
        "model/schema.py if it is not known when a prediction is asked for."
    }


@dataclass(frozen=True)
class QuickModel:
    """Scikit-learn's boosting with its defaults on a sample of the rows.

    Attributes:
        problem: The problem.
        metric: The metric.
        profiles: The columns.
        rows: The sampled rows, whose time and target are known, in a random order.
        time: The place of the time among the columns.
        truth: The target of the rows.
    """

    problem: str
    metric: str
    profiles: Sequence[Profile]
    rows: NDArray[np.intp]
    time: int
    truth: NDArray[Any]

    @classmethod
    def prepare(cls, profiles: Sequence[Profile], goal: Goal, fields: Sequence[Field]) -> "QuickModel | None":
        """Return the model; None without a time, or with too few rows."""
        place = next((place for place, field in enumerate(fields) if field.role == "time"), None)
        if place is None:
            return None
        times, aim = profiles[place].values, next(p for p in profiles if p.name == goal.field.name)
        usable = np.flatnonzero((times.notna() & aim.values.notna()).to_numpy(bool))
        rows = np.random.default_rng(0).permutation(usable)[:MOST_ROWS]
        if len(rows) < LEAST_ROWS or times.iloc[rows].nunique() < 2:
            return None
        truth = label(aim.values.iloc[rows], goal.problem)
        truth = truth if goal.problem == "regression" else truth.astype(np.int64)
        return cls(goal.problem, next(iter(METRICS[goal.problem])), profiles, rows, place, truth)

    @property
    def order(self) -> NDArray[np.intp]:
        """The order of the rows by time."""
        return np.argsort(self.profiles[self.time].values.iloc[self.rows].to_numpy(), kind="stable")

    def predict(self, fields: Sequence[Field], order: NDArray[np.intp]) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Fit on the first rows in this order; return the target of the last fifth, and its predictions.

        None if there are no features or no two classes.
        """
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        seen = [p for p, field in zip(self.profiles, fields, strict=True) if field.seen]
        columns = [as_numbers(p.values.iloc[self.rows], Column(name=p.name, kind=p.kind)) for p in seen]
        if fields[self.time].seen:
            times = self.profiles[self.time].values.iloc[self.rows].dt
            columns += [getattr(times, part).to_numpy(np.float64) for part in CYCLES]
        last = len(order) - max(1, round(SHARE * len(order)))
        fit, predict = order[:last], order[last:]
        if not columns or (self.problem != "regression" and len(np.unique(self.truth[fit])) < 2):
            return None
        rows = np.column_stack(columns)
        if self.problem == "regression":
            regressor = HistGradientBoostingRegressor(random_state=0).fit(rows[fit], self.truth[fit])
            return self.truth[predict], regressor.predict(rows[predict])
        classifier = HistGradientBoostingClassifier(random_state=0).fit(rows[fit], self.truth[fit])
        probabilities = np.zeros((len(predict), int(self.truth.max()) + 1))
        probabilities[:, classifier.classes_] = classifier.predict_proba(rows[predict])
        return self.truth[predict], probabilities

    def score(self, truth: NDArray[Any], predictions: NDArray[Any]) -> tuple[float, float]:
        """Return the metric and its standard error; NaN where one is undefined."""
        found = bootstrap(self.problem, truth, predictions, resamples=RESAMPLES, metrics=[self.metric]).get(self.metric)
        if found is None or found.low is None or found.high is None:
            return math.nan, math.nan
        return found.value, (found.high - found.low) / 4  # the interval has 95%, two standard errors on each side
