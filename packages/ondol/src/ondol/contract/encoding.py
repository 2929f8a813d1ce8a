"""Fits and applies the encodings: how each column becomes a tensor.

Everything downstream sees float32, so what float32 cannot hold must be shifted or scaled first: integers above
2^24 (sums in won, epoch seconds) are moved by an offset and divided by their common step.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Any, get_args

import numpy as np
import pandas as pd

from ondol.contract.schema import MISSING_TEXT, Column, Contract, DatePart, Encoding
from ondol.errors import UserError

LARGEST_TARGET, SMALLEST_TARGET = 1e37, 1e-30
EXACT = 2**24  # every integer up to here is a float32 of its own
LARGEST = float(np.finfo(np.float32).max)
MOST_KNOWN = 1000
AFFINE = "affine"  # in an encoded frame's `attrs`
PROBE_ROWS = 100_000
MANY = 255  # values that a histogram of scikit-learn distinguishes
CYCLES: dict[DatePart, pd.Timedelta] = {
    "month": pd.Timedelta(days=366),
    "weekday": pd.Timedelta(days=14),
    "hour": pd.Timedelta(days=2),
}
DAY, SECOND = pd.Timedelta(days=1), pd.Timedelta(seconds=1)
# One of nanoseconds could not be subtracted from a date after 2262, such as 9999-12-31.
EPOCH = pd.Timestamp(0).as_unit("s")


def fit_encodings(contract: Contract, frame: pd.DataFrame, parts: bool = True) -> Contract:
    """Return `contract` with encodings, input names and classes learned from the training rows.

    Args:
        contract: What `describe` returned.
        frame: Valid training rows in the contract's dtypes, under the columns' real names.
        parts: Whether dates get theirs.
    """
    inputs = {column.name: f"c{i}" for i, column in enumerate(contract.features)}
    names = {column.name for column in contract.columns}
    columns = tuple(
        c.model_copy(update={"input": inputs[c.name], "encoding": _fit(c, frame[c.name], names if parts else None)})
        if c.name in inputs
        else c
        for c in contract.columns
    )
    classes = None if contract.problem == "regression" else _classes(frame[contract.target])
    return contract.model_copy(update={"columns": columns, "classes": classes})


def encode(contract: Contract, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the features of `frame` as the model sees them: real names, float32 columns or strings.

    Texts of many values are of dtype `str`, others of dtype `object`. The parts of dates follow all columns.
    `attrs` has the offset and the scale of the columns that have one.
    """
    columns = {c.name: encode_column(c, frame[c.name]) for c in contract.features}
    for column in contract.features:
        for part, name in ((column.encoding and column.encoding.parts) or {}).items():
            columns[name] = _part(frame[column.name], part).astype(np.float32)
    made = pd.DataFrame(columns, index=frame.index, copy=False)
    made.attrs[AFFINE] = {c.name: pair for c in contract.features if (pair := _affine(c)) != (0.0, 1.0)}
    return made


def _affine(column: Column) -> tuple[float, float]:
    """Return the offset and the scale that give back a column's real values, of dates the days since 1970."""
    rule = column.encoding
    if rule is None or rule.tensor == "string":
        return 0.0, 1.0
    days = 0.0 if rule.origin is None else (pd.Timestamp(rule.origin) - EPOCH) / DAY
    return rule.offset + days, rule.scale


def encode_column(column: Column, values: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return one column as its tensor's values, by `column.encoding`."""
    rule = column.encoding
    if rule is None:
        raise ValueError(f"column {column.name} has no encoding: fit_encodings comes first")
    if rule.tensor == "string":
        texts = _encode_text(values, rule.missing or MISSING_TEXT)
        return texts.astype("str") if rule.many else texts
    numbers = _numbers(column, values, rule)
    if rule.offset or rule.scale != 1.0:
        numbers = (numbers - rule.offset) / rule.scale
    return pd.Series(numbers.astype(np.float32, copy=False), index=values.index, copy=False)


def encode_target(contract: Contract, values: "pd.Series[Any]") -> np.ndarray:
    """Return the target as float64 values or as int64 indexes into the classes, -1 for a class never trained on."""
    if contract.classes is None:
        return values.to_numpy(dtype=np.float64)
    return pd.Index(contract.classes).get_indexer(pd.Index(values)).astype(np.int64)


def require_answerable(name: str, values: "pd.Series[Any]") -> None:
    """Check that a number target is within what a model computes and answers in, which is float32.

    Raises:
        UserError: it is not; says by what to divide it.
    """
    numbers = np.abs(values.to_numpy(np.float64, na_value=np.nan))
    known = numbers[np.isfinite(numbers)]
    largest = float(known.max()) if known.size else 0.0
    if largest > LARGEST_TARGET:
        size, what = "as large as", "a model answers in float32 and needs room for its sums"
    elif 0 < largest < SMALLEST_TARGET:
        size, what = "all below", "a model answers in float32, whose parts they are too small for"
    else:
        return
    raise UserError(
        f'The target "{name}" has values {size} {largest:.2g}, and {what} (from {SMALLEST_TARGET:.0e} to '
        f"{LARGEST_TARGET:.0e}): divide it by 1e{int(np.floor(np.log10(largest)))} in the source, and multiply the "
        "answers by that."
    )


def _encode_text(values: "pd.Series[Any]", missing: str) -> "pd.Series[Any]":
    """Return texts as Python strings, equal ones as one object: encoders then look them up three times as fast."""
    codes, texts = pd.factorize(values.astype("str"))
    known = np.array([missing if text == "" else text for text in texts] + [missing], dtype=object)
    return pd.Series(known[codes], index=values.index, dtype=object)  # code -1, missing, is the last


def _numbers(column: Column, values: "pd.Series[Any]", rule: Encoding) -> np.ndarray:
    """Return values as float64, NaN where missing: dates as days, durations as seconds, ordered texts as ranks."""
    if rule.order is not None:
        codes = pd.Index(rule.order).get_indexer(pd.Index(values)).astype(np.float64)
        return np.where(codes < 0, np.nan, codes)
    if column.kind == "date":
        return ((values - pd.Timestamp(rule.origin)) / DAY).to_numpy(dtype=np.float64)  # type: ignore[arg-type]
    if column.kind == "duration":
        return (values / SECOND).to_numpy(dtype=np.float64)
    if values.dtype.kind in "f" and isinstance(values.dtype, np.dtype):
        return values.to_numpy()
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _part(dates: "pd.Series[Any]", part: DatePart) -> "pd.Series[Any]":
    """Return the month (1 to 12), weekday (0 for Monday) or hour of dates, NaN where missing."""
    return getattr(dates.dt, part)


def _fit(column: Column, values: "pd.Series[Any]", names: Collection[str] | None) -> Encoding:
    """Return the encoding of a column; where `names` are taken, a date gets parts under others."""
    if column.ordered:
        return Encoding(tensor="float32", order=tuple(map(str, column.categories or ())))
    if column.kind == "text":
        known = sorted(str(v) for v in values.dropna().unique() if v != "")
        listed = tuple(known) if len(known) <= MOST_KNOWN else None
        return Encoding(tensor="string", missing=MISSING_TEXT, known=listed, many=len(known) > MANY)
    made = Encoding(tensor="float32")
    if column.kind == "date":
        first = values.min()
        origin = "1970-01-01T00:00:00" if pd.isna(first) else datetime(first.year, first.month, first.day).isoformat()
        made = made.model_copy(update={"origin": origin, "parts": _fit_parts(column.name, values, names)})
    offset, scale = _fit_float32(_numbers(column, values, made))
    return made.model_copy(update={"offset": offset, "scale": scale})


def _fit_parts(column: str, dates: "pd.Series[Any]", names: Collection[str] | None) -> dict[DatePart, str] | None:
    if names is None:
        return None
    return {part: _name_part(column, part, names) for part in get_args(DatePart) if _recurs(dates, part)} or None


def _recurs(dates: "pd.Series[Any]", part: DatePart) -> bool:
    """Return True if a part of the dates comes round in training, so that it says what the days alone do not."""
    found, span = dates.dropna(), dates.max() - dates.min()
    if found.empty or span < CYCLES[part] or _part(found, part).nunique() < 2:
        return False
    return part != "weekday" or found.dt.day.nunique() > 1  # on the first of each month, it is chance


def _name_part(column: str, part: DatePart, taken: Collection[str]) -> str:
    name = f"{column}.{part}"
    while name in taken:
        name += "_"
    return name


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
    """Return True if distinct values stay distinct as float32, on evenly spaced rows of a long column."""
    probe = np.unique(finite[:: max(1, finite.size // PROBE_ROWS)])
    return np.unique(probe.astype(np.float32)).size == probe.size


def _classes(values: "pd.Series[Any]") -> tuple[Any, ...]:
    """Return the target's distinct values, sorted, as JSON scalars."""
    unique = [v.item() if isinstance(v, np.generic) else v for v in values.dropna().unique()]
    return tuple(sorted(unique))
