"""Fits and applies the table that says how each column becomes a tensor.

Everything downstream sees float32, so what float32 cannot hold must be shifted or scaled first: integers above
2^24 (sums in won, epoch seconds) are moved by an offset and divided by their common step.
"""

from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from flows.contract.columns import MISSING_TEXT, Column, Contract, Encoding

EXACT = 2**24  # every integer up to here is a float32 of its own
LARGEST = float(np.finfo(np.float32).max)
MOST_KNOWN = 1000
PROBE_ROWS = 100_000
DAY = pd.Timedelta(days=1)


def fit_encodings(contract: Contract, frame: pd.DataFrame) -> Contract:
    """Return `contract` with encodings, input names and classes learned from the training rows.

    Args:
        contract: What `describe` returned.
        frame: Valid training rows in the contract's dtypes, under the columns' real names.
    """
    inputs = {column.name: f"c{i}" for i, column in enumerate(contract.features)}
    columns = tuple(
        c.model_copy(update={"input": inputs[c.name], "encoding": _fit(c, frame[c.name])}) if c.name in inputs else c
        for c in contract.columns
    )
    classes = None if contract.problem == "regression" else _classes(frame[contract.target])
    return contract.model_copy(update={"columns": columns, "classes": classes})


def encode(contract: Contract, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the features of `frame` as the model sees them: real names, float32 columns or strings."""
    columns = {c.name: encode_column(c, frame[c.name]) for c in contract.features}
    return pd.DataFrame(columns, index=frame.index, copy=False)


def encode_column(column: Column, values: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return one column as its tensor's values, by `column.encoding`."""
    rule = column.encoding
    if rule is None:
        raise ValueError(f"column {column.name} has no encoding: fit_encodings comes first")
    if rule.tensor == "string":
        return _encode_text(values, rule.missing or MISSING_TEXT)
    numbers = _numbers(column, values, rule.origin)
    if rule.offset or rule.scale != 1.0:
        numbers = (numbers - rule.offset) / rule.scale
    return pd.Series(numbers.astype(np.float32, copy=False), index=values.index, copy=False)


def encode_target(contract: Contract, values: "pd.Series[Any]") -> np.ndarray:
    """Return the target as float64 values or as int64 indexes into the classes, -1 for a class never trained on."""
    if contract.classes is None:
        return values.to_numpy(dtype=np.float64)
    return pd.Index(contract.classes).get_indexer(pd.Index(values)).astype(np.int64)


def _encode_text(values: "pd.Series[Any]", missing: str) -> "pd.Series[Any]":
    """Return texts as Python strings, equal ones as one object: encoders then look them up three times as fast."""
    codes, texts = pd.factorize(values.astype("str"))
    known = np.array([missing if text == "" else text for text in texts] + [missing], dtype=object)
    return pd.Series(known[codes], index=values.index, dtype=object)  # code -1, missing, is the last


def _numbers(column: Column, values: "pd.Series[Any]", origin: str | None) -> np.ndarray:
    """Return values as float64, NaN where missing; dates as days since `origin`."""
    if column.kind == "date":
        return ((values - pd.Timestamp(origin)) / DAY).to_numpy(dtype=np.float64)  # type: ignore[arg-type]
    if values.dtype.kind in "f" and isinstance(values.dtype, np.dtype):
        return values.to_numpy()
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _fit(column: Column, values: "pd.Series[Any]") -> Encoding:
    if column.kind == "text":
        known = sorted(str(v) for v in values.dropna().unique() if v != "")
        return Encoding(tensor="string", missing=MISSING_TEXT, known=tuple(known) if len(known) <= MOST_KNOWN else None)
    origin = None
    if column.kind == "date":
        first = values.min()
        origin = "1970-01-01T00:00:00" if pd.isna(first) else datetime(first.year, first.month, first.day).isoformat()
    offset, scale = _fit_float32(_numbers(column, values, origin))
    return Encoding(tensor="float32", offset=offset, scale=scale, origin=origin)


def _fit_float32(numbers: np.ndarray) -> tuple[float, float]:
    """Return the offset and scale under which float32 keeps the values apart, (0, 1) where none is needed."""
    finite = numbers[np.isfinite(numbers)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    largest = max(abs(low), abs(high))
    if largest <= EXACT and _keeps_apart(finite):
        return 0.0, 1.0
    middle = float(np.floor(low / 2 + high / 2))
    if largest > LARGEST / 4:
        return middle, max(high - middle, middle - low) or 1.0
    if largest < 2**53 and np.array_equal(finite, np.floor(finite)):
        above = finite.astype(np.int64) - int(low)
        step = max(int(np.gcd.reduce(above)), 1)
        return low + float(int(above.max()) // 2 // step * step), float(step)
    return (middle, 1.0) if high - low < largest else (0.0, 1.0)


def _keeps_apart(finite: np.ndarray) -> bool:
    """Tell whether distinct values stay distinct as float32, on evenly spaced rows of a long column."""
    probe = np.unique(finite[:: max(1, finite.size // PROBE_ROWS)])
    return np.unique(probe.astype(np.float32)).size == probe.size


def _classes(values: "pd.Series[Any]") -> tuple[Any, ...]:
    """Return the target's distinct values, sorted, as JSON scalars."""
    unique = [v.item() if isinstance(v, np.generic) else v for v in values.dropna().unique()]
    return tuple(sorted(unique))
