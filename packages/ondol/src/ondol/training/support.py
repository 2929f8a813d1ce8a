"""The support of a model: which values its training rows have. Predictions for other values were never tested."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from pydantic import BaseModel

from ondol.contract import Column, Contract

COMMON = 5  # a text in fewer rows may identify a person
MOST_VALUES = 12  # of a column that are listed
TAIL = 0.01  # the share of the rows on each side of the range; the extreme values may identify a person


class ColumnSupport(BaseModel):
    """The values of one column in the training rows.

    Attributes:
        name: Its name.
        kind: Its kind in the contract.
        missing: The share of missing values.
        distinct: The number of different values.
        low: The value below which 1% of the values are, as text; None for texts and booleans.
        high: The value above which 1% of the values are.
        common: The shares of the most common values, by value; empty for numbers and dates.
    """

    name: str
    kind: str
    missing: float
    distinct: int
    low: str | None = None
    high: str | None = None
    common: dict[str, float] = {}


class Support(BaseModel):
    """The values of the training rows.

    Attributes:
        rows: The number of rows.
        first: The earliest time of a row, ISO 8601; None if no column is the row's time.
        last: The latest one.
        columns: The features, in the order of the contract.
        target: The target.
    """

    rows: int
    first: str | None
    last: str | None
    columns: list[ColumnSupport]
    target: ColumnSupport


def describe_support(contract: Contract, frame: pd.DataFrame) -> Support:
    """Return the support of rows in the contract's dtypes."""
    time = contract.role("time")
    times = frame[time.name].dropna() if time is not None else pd.Series(dtype="datetime64[us]")
    return Support(
        rows=len(frame),
        first=times.min().isoformat() if len(times) else None,
        last=times.max().isoformat() if len(times) else None,
        columns=[_describe(column, frame[column.name]) for column in contract.features],
        target=_describe(contract.target_column, frame[contract.target], contract.classes),
    )


def _describe(column: Column, values: "pd.Series[Any]", classes: Sequence[Any] | None = None) -> ColumnSupport:
    present = values.dropna()
    found = ColumnSupport(
        name=column.name,
        kind=column.kind,
        missing=float(values.isna().mean()) if len(values) else 0.0,
        distinct=int(present.nunique()),
    )
    if column.kind in ("text", "boolean") or column.categories is not None or classes is not None:
        counts = present.value_counts()
        counts = counts[counts >= COMMON] if classes is None else counts
        shares = {str(value): count / len(present) for value, count in counts.head(MOST_VALUES).items()}
        return found.model_copy(update={"common": shares})
    if present.empty:
        return found
    low, high = present.quantile(TAIL, interpolation="lower"), present.quantile(1 - TAIL, interpolation="higher")
    return found.model_copy(update={"low": _show(low), "high": _show(high)})


def _show(value: Any) -> str:
    if isinstance(value, pd.Timestamp):
        return value.isoformat(" ", "seconds") if value.normalize() != value else f"{value:%Y-%m-%d}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
