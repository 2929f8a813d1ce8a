"""Brings reference and window into one shape that can be compared: numbers as float64, all else as categories."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from ondol.contract import Column
from ondol.contract.cleaning import clean_column
from ondol.deployment.reference import Reference
from ondol.monitoring.log import Logged

MOST_CATEGORIES = 30  # the rest of the reference's values share one, so that names and free texts compare too
OTHERS = "(others)"
LEAST_SPREAD = 0.01  # below it Evidently's norm (at least 0.001) would not be the column's standard deviation
DAY, SECOND = pd.Timedelta(days=1), pd.Timedelta(seconds=1)

As = Literal["number", "category"]


@dataclass(frozen=True)
class Sides:
    """Both sides of the comparison, the same columns in both.

    Attributes:
        reference: The reference's columns: float64 or categories as text, missing values as NaN or None.
        window: The window's.
        kinds: As what each column is compared.
        dates: The columns that are dates, compared as days since 1970.
        unseen: By text column, each side's share of values that training never saw.
    """

    reference: pd.DataFrame
    window: pd.DataFrame
    kinds: dict[str, As]
    dates: frozenset[str]
    unseen: dict[str, tuple[float, float]]


def window_frame(reference: Reference, logged: Sequence[Logged]) -> pd.DataFrame:
    """Return logged rows with the reference's features and predictions as columns."""
    columns = {c.name: _parse([row.features.get(c.name) for row in logged], c) for c in reference.features}
    answers = [row.prediction for row in logged]
    classes = reference.contract.classes
    columns[reference.prediction] = pd.Series([a.get("value" if classes is None else "label") for a in answers])
    if reference.probability:  # the service names the classes in the contract's order
        columns[reference.probability] = pd.Series([list(a["probabilities"].values())[1] for a in answers])
    return pd.DataFrame(columns)


def pair(reference: Reference, window: pd.DataFrame) -> Sides:
    """Return both sides with the features and the model's output as they are compared."""
    sides: dict[str, tuple[pd.Series[Any], pd.Series[Any]]] = {}
    kinds: dict[str, As] = {}
    unseen: dict[str, tuple[float, float]] = {}
    for column in reference.features:
        ours, theirs = reference.frame[column.name], window[column.name]
        kinds[column.name] = _kind(column, ours)
        sides[column.name] = _shape(kinds[column.name], ours, theirs)
        if column.encoding is not None and column.encoding.known is not None:
            unseen[column.name] = (_unseen(ours, column.encoding.known), _unseen(theirs, column.encoding.known))
    output = reference.output
    is_label = reference.contract.classes is not None and not reference.probability
    kinds[output] = "category" if is_label else "number"
    sides[output] = _shape(kinds[output], reference.frame[output], window[output])
    before, now = (pd.DataFrame({name: both[side] for name, both in sides.items()}) for side in (0, 1))
    dates = frozenset(c.name for c in reference.features if c.kind == "date" and kinds[c.name] == "number")
    return Sides(before, now, kinds, dates, unseen)


def _parse(values: list[Any], column: Column) -> "pd.Series[Any]":
    """Return one column of the log as its kind; what cannot be read, as from an older contract, is missing."""
    try:
        raw = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # numbers and texts mixed
        raw = pa.array([None if v is None else str(v) for v in values])
    return clean_column(pa.chunked_array([raw]), column)[0]


def _kind(column: Column, reference: "pd.Series[Any]") -> As:
    """Return as what a column is compared: numbers with two values at most are flags, and flags are categories."""
    if column.kind in ("text", "boolean") or reference.nunique() <= 2:
        return "category"
    return "number"


def _shape(kind: As, reference: "pd.Series[Any]", window: "pd.Series[Any]") -> "tuple[pd.Series[Any], pd.Series[Any]]":
    if kind == "category":
        ours, theirs = (_texts(side) for side in (reference, window))
        known = set(ours.value_counts().index[:MOST_CATEGORIES])
        return tuple(side.where(side.isin(known) | side.isna(), OTHERS) for side in (ours, theirs))  # type: ignore[return-value]
    ours, theirs = (_numbers(side) for side in (reference, window))
    low, high = np.nanmin(ours), np.nanmax(ours)
    # One absurd value must not make a column drift: beyond the reference's range and as much again, all is one.
    clipped = [side.clip(2 * low - high, 2 * high - low) for side in (ours, theirs)]
    spread = float(np.nanstd(ours))
    unit = 10.0 ** np.floor(np.log10(spread)) if 0 < spread < LEAST_SPREAD else 1.0
    return clipped[0] / unit, clipped[1] / unit


def _texts(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return values as texts; 1, 1.0 and True are one, since JSON and gaps turn one into the other."""
    plain = values.astype("float64") if values.dtype.kind in "biuf" or str(values.dtype) == "boolean" else values
    return plain.map(lambda value: None if pd.isna(value) else plain_text(value)).astype(object)


def plain_text(value: Any) -> str:
    """Return a value as text, whole numbers without a fraction."""
    return str(int(value)) if isinstance(value, bool | int | float) and float(value).is_integer() else str(value)


def _numbers(values: "pd.Series[Any]") -> "pd.Series[Any]":
    if values.dtype.kind == "M":
        return ((values - pd.Timestamp(0)) / DAY).astype("float64")
    if values.dtype.kind == "m":
        return (values / SECOND).astype("float64")
    return pd.Series(values.to_numpy(dtype=np.float64, na_value=np.nan))


def _unseen(values: "pd.Series[Any]", known: Sequence[str]) -> float:
    present = values.dropna()
    return float((~present.isin(known)).mean()) if len(present) else 0.0
