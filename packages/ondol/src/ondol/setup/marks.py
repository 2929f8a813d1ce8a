"""Numbers and dates that systems write where they have no value: 999, -1, 9999-12-31."""

import numpy as np
import pandas as pd

from ondol.contract import Column

LIMITS = {sign * (2**bits - 1) for bits in (15, 16, 31, 32, 63) for sign in (1, -1)} | {-(2**15), -(2**31), -(2**63)}
FIRST_DAYS = ("0001-01-01", "1753-01-01", "1899-12-30", "1899-12-31", "1900-01-01", "1970-01-01")
LAST_YEAR = 2999
LARGEST = 1e30  # beyond it stand the limits of floating point numbers


def find_marks(values: np.ndarray, column: Column) -> np.ndarray:
    """Return which values are probably marks for a missing one: they look like one and lie apart from all others.

    A number must lie farther from the others than these do from each other; -1 and its like may also be the only
    negative ones. A date must be the first day of a calendar or lie in the year 2999 or later.

    Args:
        values: Those of the column that are present; dates in seconds since 1970.
        column: The column, by the contract.
    """
    if column.kind == "duration" or not len(values):
        return np.zeros(len(values), dtype=bool)
    known = {value: _looks_so(value, column) for value in np.unique(values).tolist()}
    marks = np.array([value for value, so in known.items() if so])
    others = np.array([value for value, so in known.items() if not so])
    if not len(marks) or not len(others):
        return np.zeros(len(values), dtype=bool)
    low, high = others.min(), others.max()
    if column.kind == "date":
        apart = (marks < low) | (marks > high)
    else:
        spread = max(high - low, 1.0)
        apart = (marks > high + spread) | (marks < low - spread) | ((marks < 0) & (low >= 0))
    return np.isin(values, marks[apart])


def _looks_so(value: float, column: Column) -> bool:
    if column.kind == "date":
        first = {pd.Timestamp(day, tz="UTC").timestamp() for day in FIRST_DAYS}
        return value in first or value >= pd.Timestamp(f"{LAST_YEAR}-01-01", tz="UTC").timestamp()
    if not np.isfinite(value) or abs(value) >= LARGEST or value == -1 or value in LIMITS:
        return True
    digits = f"{abs(value):.10g}".replace(".", "").removesuffix("0") if abs(value) < 1e10 else f"{abs(value):.0f}"
    return len(digits) > (0 if value < 0 else 1) and set(digits) == {"9"}
