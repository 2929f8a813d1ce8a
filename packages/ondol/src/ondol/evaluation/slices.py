"""The error of a model in parts of the held-out rows: by sensitive columns, by slices of the project, and the weakest.

The weakest slices are searched among the values of each column and the fifths of each number. A slice that is weak by
chance is common among so many, so it is found on one half of the rows and must be confirmed on the other half; both
halves take each part, and the chance of any false finding is at most `ALPHA` (Holm, Scandinavian Journal of Statistics
6(2), 1979).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel

from ondol.contract import Column, Contract
from ondol.errors import UserError
from ondol.evaluation.metrics import Decided, labels_of, numbers_of
from ondol.project import EVALUATION, FILE, OWN_ERRORS, describe_error, read_extension

LEAST_ROWS = 30  # in a slice, of each half
MOST_VALUES, PARTS = 30, 5
CONFIRMED, PROMISING = 5, 1.0  # slices of one half that the other half confirms, and their least z
ALPHA = 0.05
Z95 = 1.96
Mask = NDArray[np.bool_]
Losses = NDArray[np.float64]
Kind = Literal["weak", "sensitive", "own"]
Slices = Mapping[str, Callable[[pd.DataFrame], Any]]  # `SLICES` in model/evaluation.py


class Slice(BaseModel):
    """The error in one slice.

    Attributes:
        name: Its condition in words, such as `region is 서울`.
        kind: "sensitive" (a value of a sensitive column), "own" (of the project) or "weak" (found, and confirmed).
        rows: Its held-out rows.
        error: The share of wrong labels in it, or the mean absolute error.
        rest: The same in all other rows.
        low: The low end of the 95% interval of the difference between both.
        high: The high end.
        worse: By how much the error is larger than the champion's on the same rows; None without a champion.
        worse_low: The low end of its 95% interval.
    """

    name: str
    kind: Kind
    rows: int
    error: float
    rest: float
    low: float
    high: float
    worse: float | None = None
    worse_low: float | None = None


def measure_slices(contract: Contract, frame: pd.DataFrame, losses: Losses, champion: Losses | None) -> list[Slice]:
    """Return the error by sensitive columns and slices of the project, then the confirmed weak slices.

    Args:
        contract: The contract.
        frame: The held-out rows, [N].
        losses: The loss of each row, [N], see `row_losses`.
        champion: The champion's losses of the same rows; None if there is no champion.

    Raises:
        UserError: `SLICES` of `model/evaluation.py` is wrong.
    """
    sensitive = [c for c in contract.features if c.role == "sensitive"]
    known: list[tuple[Kind, str, Mask]] = [("own", name, mask) for name, mask in own_slices(frame)]
    known += [
        ("sensitive", name, mask) for column in sensitive for name, mask in conditions(column, frame[column.name])
    ]
    known = [one for one in known if 1 < one[2].sum() < len(frame) - 1]
    weak = find_weak_slices(contract.timeless_features, frame, losses)
    known += [("weak", name, mask) for name, mask in weak]
    return [_measure(name, kind, mask, losses, champion) for kind, name, mask in known]


def row_losses(problem: str, y: NDArray[Any], prediction: Decided | NDArray[Any]) -> Losses:
    """Return the loss of each row: 1 for a wrong label and 0 for a right one, or the absolute error."""
    wrong = labels_of(prediction) != y if problem != "regression" else np.abs(numbers_of(prediction) - y)
    return np.asarray(wrong, np.float64)


def own_slices(frame: pd.DataFrame) -> Iterator[tuple[str, Mask]]:
    """Yield the names and the rows of `SLICES` in `model/evaluation.py`.

    Raises:
        UserError: it is not a mapping of names to functions of the rows that return a truth value for each.
    """
    own = read_extension(EVALUATION, "SLICES") or {}
    if not isinstance(own, Mapping) or not all(callable(function) for function in own.values()):
        raise UserError(f"SLICES in {FILE(EVALUATION)} is wrong: map a name to a function of the rows.")
    for name, function in own.items():
        try:
            mask = np.asarray(pd.Series(function(frame)).fillna(False), dtype=bool)
        except OWN_ERRORS as error:
            raise UserError(f'The slice "{name}" of {FILE(EVALUATION)} failed: {describe_error(error)}.') from error
        if mask.shape != (len(frame),):
            raise UserError(f'The slice "{name}" of {FILE(EVALUATION)} must return one truth value for each row.')
        yield str(name), mask


def conditions(column: Column, values: "pd.Series[Any]") -> Iterator[tuple[str, Mask]]:
    """Yield conditions on one column, in words, and the rows that meet them: values, or fifths of numbers."""
    missing = values.isna().to_numpy(bool)
    if missing.any():
        yield f"{column.name} is missing", missing
    present = values[~missing]
    if column.kind in ("text", "boolean") or present.nunique() <= PARTS:
        for value in present.value_counts().index[:MOST_VALUES]:
            yield f"{column.name} is {value}", (values == value).fillna(False).to_numpy(bool)
        return
    edges = np.unique(present.quantile(np.linspace(0, 1, PARTS + 1), interpolation="lower"))
    for low, high in pairwise(edges):
        last = high == edges[-1]
        inside = ((values >= low) & ((values <= high) if last else (values < high))).fillna(False)
        yield f"{column.name} from {_show(low)} to {_show(high)}", inside.to_numpy(bool)


def _show(value: Any) -> str:
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def find_weak_slices(columns: Sequence[Column], frame: pd.DataFrame, losses: Losses) -> list[tuple[str, Mask]]:
    """Return slices with a larger error than the other rows, which one half of the rows showed and the other confirmed.

    Args:
        columns: The columns whose values make slices.
        frame: The rows, [N].
        losses: The loss of each row, [N].
    """
    order = np.random.default_rng(0).permutation(len(frame))
    halves = [order[: len(order) // 2], order[len(order) // 2 :]]
    found = [
        (name, mask)
        for column in columns
        for name, mask in conditions(column, frame[column.name])
        if all(LEAST_ROWS <= mask[half].sum() <= len(half) - LEAST_ROWS for half in halves)
    ]
    scores = [[_z(mask[half], losses[half]) for _, mask in found] for half in halves]
    confirmed: dict[int, float] = {}
    for one, other in ((0, 1), (1, 0)):
        best = [place for place in np.argsort(scores[one])[::-1][:CONFIRMED] if scores[one][place] > PROMISING]
        chances = sorted((_chance(scores[other][place]), int(place)) for place in best)
        for number, (chance, place) in enumerate(chances):
            if chance > ALPHA / 2 / (len(chances) - number):
                break
            confirmed[place] = max(scores[0][place], scores[1][place])
    places = sorted(confirmed, key=lambda place: -confirmed[place])
    return [found[place] for place in places]


def _z(mask: Mask, losses: Losses) -> float:
    """Return Welch's statistic for a larger mean loss inside than outside."""
    difference, error = _compare(mask, losses)
    return difference / error if error else 0.0


def _compare(mask: Mask, losses: Losses) -> tuple[float, float]:
    inside, outside = losses[mask], losses[~mask]
    error = math.sqrt(inside.var(ddof=1) / len(inside) + outside.var(ddof=1) / len(outside))
    return float(inside.mean() - outside.mean()), error


def _chance(z: float) -> float:
    """Return the probability of so large a statistic by chance."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def _measure(name: str, kind: Kind, mask: Mask, losses: Losses, champion: Losses | None) -> Slice:
    difference, error = _compare(mask, losses)
    rest, rows = float(losses[~mask].mean()), int(mask.sum())
    made = Slice(
        name=name,
        kind=kind,
        rows=rows,
        error=rest + difference,
        rest=rest,
        low=difference - Z95 * error,
        high=difference + Z95 * error,
    )
    if champion is None:
        return made
    paired = losses[mask] - champion[mask]
    worse = float(paired.mean())
    low = worse - Z95 * float(paired.std(ddof=1)) / math.sqrt(rows)
    return made.model_copy(update={"worse": worse, "worse_low": low})


def name_error(problem: str) -> str:
    """Return what the error of a slice is, in words."""
    return "mean absolute error" if problem == "regression" else "share of wrong labels"


def _show_error(error: float, problem: str) -> str:
    return f"{error:.4g}" if problem == "regression" else f"{error:.1%}"


def slice_rows(slices: Sequence[Slice], problem: str) -> list[dict[str, str]]:
    """Return the slices as table rows, by heading."""
    show = partial(_show_error, problem=problem)
    return [
        {
            "slice": one.name,
            "kind": one.kind,
            "rows": f"{one.rows:,}",
            name_error(problem): show(one.error),
            "in the other rows": show(one.rest),
            "difference": f"{show(one.low)} to {show(one.high)}",
        }
        for one in slices
    ]


def describe_weak(slices: Sequence[Slice], problem: str) -> list[str]:
    """Return a sentence for each confirmed weak slice."""
    error, show = name_error(problem), partial(_show_error, problem=problem)
    return [
        f"Weak where {one.name} ({one.rows:,} rows): the {error} is {show(one.error)}, and {show(one.rest)} in the "
        "other rows."
        for one in slices
        if one.kind == "weak"
    ]
