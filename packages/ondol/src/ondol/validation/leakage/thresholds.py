"""Classes that are cut from an expression of two columns, such as late = delivered - due > 0."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from ondol.config.base import Problem
from ondol.contract import Column
from ondol.validation.leakage.alarms import FEWEST_ROWS, Alarm, label
from ondol.validation.leakage.identities import (
    Expression,
    Operand,
    Target,
    choose_paired,
    pair_expressions,
    read_operands,
)

SEPARATED = 0.995  # balanced accuracy of the cuts, on rows that they were not chosen on
ALMOST = 0.97  # on fewer rows, from where on an expression is looked at
FEWEST_OF_CLASS, MOST_CLASSES = 20, 20
FEWEST_VALUES = 10  # of a column: an expression of flags and codes is a code itself
FEW_ROWS, MOST_TRIED = 1500, 50


def find_thresholds(frame: pd.DataFrame, columns: Sequence[Column], target: str, problem: Problem) -> list[Alarm]:
    """Return an alarm for the sum, difference, product, quotient or span of two columns that is cut into the classes.

    Cost: as for pairs in `ondol.validation.leakage.identities`, a sort of 1,500 values for each.

    Args:
        frame: A sample of the rows to train on, in random order, none without a target.
        columns: The features; those that alone predict the target should not be among them.
        target: The column to predict.
        problem: What kind of prediction it is.
    """
    if problem == "regression" or len(frame) < FEWEST_ROWS:
        return []
    y = label(frame[target], problem).astype(np.int64)
    counts = np.bincount(y)
    if not 2 <= len(counts) <= MOST_CLASSES or np.sort(counts)[-2] < FEWEST_OF_CLASS:
        return []
    varied = [o for o in read_operands(frame, columns) if len(np.unique(o.values)) >= FEWEST_VALUES]
    operands = choose_paired(varied, Target(y.astype(np.float64), 0.0, 1.0))
    rows = slice(0, FEW_ROWS)
    few = [Operand(o.name, o.values[rows], o.step, o.date) for o in operands]
    scores = {place: _separate(one.values, y[rows]) for place, one in enumerate(pair_expressions(few))}
    likely = [place for place in sorted(scores, key=lambda place: -scores[place]) if scores[place] >= ALMOST]
    best: tuple[float, Expression] | None = None
    tried = set(likely[:MOST_TRIED])
    for place, one in enumerate(pair_expressions(operands) if tried else ()):
        if place in tried and len(one.columns) > 1:
            score = _separate(one.values, y)
            if score >= SEPARATED and (best is None or score > best[0]):
                best = (score, one)
    return [_tell(*best, target)] if best else []


def _separate(values: np.ndarray, y: np.ndarray) -> float:
    """Return the balanced accuracy of cutting `values` into runs of one class each, judged on every other row."""
    known = np.isfinite(values)
    if known.sum() < max(FEWEST_ROWS, len(y) / 2):
        return 0.0
    values, y = values[known], y[known]
    learn = np.arange(len(y)) % 2 == 0
    classes = np.flatnonzero(np.bincount(y[learn], minlength=int(y.max()) + 1) >= FEWEST_OF_CLASS / 2)
    if len(classes) < 2:
        return 0.0
    by_class = [np.sort(values[learn & (y == one)]) for one in classes]
    order = np.argsort([np.median(part) for part in by_class])
    cuts = [_cut(by_class[a], by_class[b]) for a, b in pairwise(order)]
    said = classes[order][np.searchsorted(np.maximum.accumulate(cuts), values[~learn], side="left")]
    rest = y[~learn]
    shares = [float((said[rest == one] == one).mean()) for one in classes if (rest == one).any()]
    return min(float(np.mean(shares)), 1.0)


def _cut(low: np.ndarray, high: np.ndarray) -> float:
    """Return the value at or below which the lower of two classes lies, with the fewest mistakes as shares of each."""
    places = np.concatenate([low, high])
    above = 1 - np.searchsorted(low, places, side="right") / len(low)
    below = np.searchsorted(high, places, side="right") / len(high)
    best = int((above + below).argmin())
    after = high[np.searchsorted(high, places[best], side="right") :]
    return float(places[best] / 2 + after[0] / 2) if len(after) else float(places[best])


def _tell(score: float, expression: Expression, target: str) -> Alarm:
    names = " and ".join(f'"{name}"' for name in expression.columns)
    text = expression.text.removeprefix("(").removesuffix(")") + (" in days" if expression.days else "")
    return Alarm(
        "threshold",
        expression.columns,
        score,
        f'{names} give the target: cuts of {text} tell the classes of "{target}" apart ({score:.3f} of 1)',
        "give those that are known only afterwards the role ignored",
    )
