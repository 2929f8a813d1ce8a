"""Rows with the most extreme values that a contract allows, each alone and many together."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ondol.contract import Column, Contract

FLOAT32 = float(np.finfo(np.float32).max)
REACH = 3.4028234e38  # the largest number that the service takes, before it is scaled
BEYOND = 1e30  # from where on sums of products overflow float32
FAR = (10.0, 1e3, 1e6)  # times the span of the column's own values
LARGE = (1e6, 1e12, 1e20, 1e30)
DATES = ("0001-01-01", "1900-01-01", "1970-01-01", "2100-01-01", "9999-12-31T23:59:59")
LONGEST_SECONDS = 1e11
TEXTS = ("never seen ☃", "x" * 1000, "0", "nan")
MOST_CATEGORIES, MOST_ALONE, TOGETHER = 5, 3000, 100


class Extremes(NamedTuple):
    """Rows with extreme values.

    Attributes:
        rows: The features; numbers as float64.
        together: Whether many of a row's values are extreme.
        columns: The column whose value is extreme, empty where many are.
    """

    rows: pd.DataFrame
    together: np.ndarray
    columns: list[str]


def make_extremes(contract: Contract, frame: pd.DataFrame) -> Extremes:
    """Return rows of `frame` with extreme values put in: one in each, at most 3,000, then many in each of a hundred.

    Args:
        contract: With encodings.
        frame: Rows in the contract's dtypes.
    """
    names = [column.name for column in contract.features]
    values = {column.name: list(_extremes_of(column, frame[column.name])) for column in contract.features}
    changes = [(name, value) for name in names for value in values[name]]
    if not changes or frame.empty:
        return Extremes(frame.iloc[:0], np.zeros(0, bool), [])
    if len(changes) > MOST_ALONE:
        changes = [changes[place] for place in np.linspace(0, len(changes) - 1, MOST_ALONE).astype(int)]
    rng = np.random.default_rng(0)
    sets = [{name: value} for name, value in changes]
    sets += [{name: picked[0] for name, picked in values.items() if picked}]
    sets += [{name: picked[-1] for name, picked in values.items() if picked}]
    sets += [
        {name: picked[rng.integers(len(picked))] for name, picked in values.items() if picked} for _ in range(TOGETHER)
    ]
    base = frame[names].iloc[np.linspace(0, len(frame) - 1, len(sets)).astype(int)].reset_index(drop=True)
    columns = {column.name: _put(column, base[column.name], sets) for column in contract.features}
    together = np.arange(len(sets)) >= len(changes)
    return Extremes(pd.DataFrame(columns), together, [name for name, _ in changes] + [""] * (len(sets) - len(changes)))


def name_extreme(extremes: Extremes, place: int) -> str:
    """Return what is extreme about a row, as in `"age" = 1e+30`."""
    name = extremes.columns[place]
    if not name:
        return "many at once"
    value = extremes.rows[name].iloc[place]
    shown = f"{value:g}" if isinstance(value, float) else f"{value}"[:40]
    return f'"{name}" = {shown}'


def _put(column: Column, base: "pd.Series[Any]", sets: list[dict[str, Any]]) -> "pd.Series[Any]":
    """Return a column with the values that are set put in."""
    if column.kind in ("number", "integer"):
        made = base.to_numpy(np.float64, na_value=np.nan).copy()
    elif column.kind in ("date", "duration"):
        made = base.to_numpy(f"{base.dtype.kind}8[us]").copy()
    else:
        made = base.to_numpy(object).copy()
    for place, values in enumerate(sets):
        if column.name in values:
            made[place] = values[column.name]
    return pd.Series(made, dtype=base.dtype if made.dtype == object else made.dtype)


def _extremes_of(column: Column, values: "pd.Series[Any]") -> Iterator[Any]:
    """Yield the extreme values of a column, in order, those that its bounds forbid left out."""
    if column.nullable:
        yield (
            np.datetime64("NaT", "us")
            if column.kind == "date"
            else (np.timedelta64("NaT", "us") if column.kind == "duration" else np.nan if _is_number(column) else None)
        )
    if column.categories is not None:
        yield from column.categories[:MOST_CATEGORIES]
    elif column.kind == "boolean":
        yield from (False, True)
    elif column.kind == "text":
        yield from TEXTS
    elif column.kind == "date":
        for moment in (np.datetime64(text, "us") for text in DATES):
            if _is_allowed(column, float(moment.astype(np.int64)) / 1e6):
                yield moment
        yield from (np.datetime64(round(bound * 1e6), "us") for bound in _bounds(column, 1e-6))
    elif column.kind == "duration":
        for seconds in sorted({-LONGEST_SECONDS, -86400.0, 0.0, 86400.0, LONGEST_SECONDS, *_bounds(column, 1e-6)}):
            if _is_allowed(column, seconds):
                yield np.timedelta64(round(seconds * 1e6), "us")
    else:
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        yield from (number for number in sorted(_numbers(column, numbers)) if _is_allowed(column, number))


def _numbers(column: Column, known: np.ndarray) -> set[float]:
    """Return extreme numbers, whether allowed or not: bounds, zero, far from those known, and the service's limits."""
    rule, step = column.encoding, 1.0 if column.kind == "integer" else 0.0
    offset, reach = (rule.offset, REACH * rule.scale) if rule else (0.0, REACH)
    made = {0.0, 1.0, -1.0, offset - reach, offset + reach, *_bounds(column, step), *LARGE, *(-n for n in LARGE)}
    known = known[np.isfinite(known)]
    if len(known):
        low, high = float(known.min()), float(known.max())
        with np.errstate(over="ignore"):
            far = {end + sign * times * (high - low) for times in FAR for end, sign in ((low, -1), (high, 1))}
        made |= {low, high} | far
    inside = {number for number in made if np.isfinite(number) and offset - reach <= number <= offset + reach}
    return {float(np.floor(number)) for number in inside} if step else inside


def _is_number(column: Column) -> bool:
    return column.kind in ("number", "integer")


def _bounds(column: Column, step: float) -> list[float]:
    """Return the smallest and the largest number that is allowed, where there are bounds."""
    low, high = column.exclusive_minimum, column.exclusive_maximum
    made = [bound for bound in (column.minimum, column.maximum) if bound is not None]
    made += [low + step if step else float(np.nextafter(low, np.inf))] if low is not None else []
    made += [high - step if step else float(np.nextafter(high, -np.inf))] if high is not None else []
    return [float(bound) for bound in made]


def _is_allowed(column: Column, number: float) -> bool:
    low, high = column.exclusive_minimum, column.exclusive_maximum
    return (
        (column.minimum is None or number >= column.minimum)
        and (column.maximum is None or number <= column.maximum)
        and (low is None or number > low)
        and (high is None or number < high)
    )
