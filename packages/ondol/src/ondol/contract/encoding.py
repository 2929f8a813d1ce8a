"""Fits and applies the encodings, which convert columns to tensors.

All later steps use float32, so numbers that float32 cannot represent are shifted or scaled first: integers above 2^24
(sums in won, epoch seconds) are shifted by an offset and divided by their common step.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Any, get_args

import numpy as np
import pandas as pd

from ondol.contract.schema import MISSING_TEXT, Column, Contract, DatePart, Encoding
from ondol.errors import UserError

LARGEST_TARGET, SMALLEST_TARGET = 1e37, 1e-30
EXACT = 2**24  # float32 represents every integer up to here exactly
LARGEST = float(np.finfo(np.float32).max)
MOST_KNOWN = 1000
AFFINE = "affine"  # key in an encoded frame's `attrs`
PROBE_ROWS = 100_000
MANY = 255  # bins of scikit-learn's histograms
CYCLES: dict[DatePart, pd.Timedelta] = {
    "month": pd.Timedelta(days=366),
    "weekday": pd.Timedelta(days=14),
    "hour": pd.Timedelta(days=2),
}
DAY, SECOND = pd.Timedelta(days=1), pd.Timedelta(seconds=1)
# A timestamp in nanoseconds could not be subtracted from a date after 2262, such as 9999-12-31.
EPOCH = pd.Timestamp(0).as_unit("s")


def fit_encodings(contract: Contract, frame: pd.DataFrame, parts: bool = True) -> Contract:
    """Fit encodings, input names and classes on the training rows, and return `contract` with them.

    Args:
        contract: The contract, as returned by `describe`.
        frame: Valid training rows in the contract's dtypes, under the columns' real names.
        parts: Whether to add the parts of dates (month, weekday, hour).
    """
    inputs = {column.name: f"c{i}" for i, column in enumerate(contract.features)}
    names = {column.name for column in contract.columns}
    columns = tuple(
        c.model_copy(update={"input": inputs[c.name], "encoding": _fit(c, frame[c.name], names if parts else None)})
        if c.name in inputs
        else c
        for c in contract.columns
    )
    classes = None if contract.problem == "regression" else list_classes(frame[contract.target])
    return contract.model_copy(update={"columns": columns, "classes": classes})


def encode(contract: Contract, frame: pd.DataFrame) -> pd.DataFrame:
    """Encode the features of `frame` for the model: real names, float32 columns or strings.

    Texts with many distinct values have the dtype `str`, others `object`. The parts of dates follow all columns.
    `attrs` holds the offset and the scale of the columns that have them.
    """
    columns = {c.name: encode_column(c, frame[c.name]) for c in contract.features}
    for column in contract.features:
        for part, name in ((column.encoding and column.encoding.parts) or {}).items():
            columns[name] = _part(frame[column.name], part).astype(np.float32)
    made = pd.DataFrame(columns, index=frame.index, copy=False)
    made.attrs[AFFINE] = {c.name: pair for c in contract.features if (pair := _affine(c)) != (0.0, 1.0)}
    return made


def _affine(column: Column) -> tuple[float, float]:
    """Return the offset and the scale that restore a column's real values (dates: days since 1970)."""
    rule = column.encoding
    if rule is None or rule.tensor == "string":
        return 0.0, 1.0
    days = 0.0 if rule.origin is None else (pd.Timestamp(rule.origin) - EPOCH) / DAY
    return rule.offset + days, rule.scale


def encode_column(column: Column, values: "pd.Series[Any]") -> "pd.Series[Any]":
    """Encode one column with `column.encoding`."""
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
    """Encode the target as float64 values, or as int64 indexes of the classes, -1 for a class not seen in training."""
    if contract.classes is None:
        return values.to_numpy(dtype=np.float64)
    return pd.Index(contract.classes).get_indexer(pd.Index(values)).astype(np.int64)


def require_answerable(name: str, values: "pd.Series[Any]") -> None:
    """Check that a numeric target is within the range of float32, in which a model computes and answers.

    Raises:
        UserError: it is not; the message has the number to divide it by.
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
    """Return texts as Python strings, equal ones as the same object: encoders are then three times as fast."""
    codes, texts = pd.factorize(values.astype("str"))
    known = np.array([missing if text == "" else text for text in texts] + [missing], dtype=object)
    return pd.Series(known[codes], index=values.index, dtype=object)  # code -1 (missing) selects the last entry


def _numbers(column: Column, values: "pd.Series[Any]", rule: Encoding) -> np.ndarray:
    """Convert values to float64, NaN if missing: dates to days, durations to seconds, ordered texts to ranks."""
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
    """Fit the encoding of a column; the parts of a date get names that are not in `names`."""
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
    """Return True if a part of the dates (such as the month) recurs in training, so that it adds information."""
    found, span = dates.dropna(), dates.max() - dates.min()
    if found.empty or span < CYCLES[part] or _part(found, part).nunique() < 2:
        return False
    # For dates on the first of each month, the weekday is arbitrary.
    return part != "weekday" or found.dt.day.nunique() > 1


def _name_part(column: str, part: DatePart, taken: Collection[str]) -> str:
    name = f"{column}.{part}"
    while name in taken:
        name += "_"
    return name


def _fit_float32(numbers: np.ndarray) -> tuple[float, float]:
    """Return the offset and scale with which float32 keeps the values distinct; (0, 1) if none is needed."""
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
    """Return True if distinct values stay distinct as float32; of a long column, evenly spaced rows are checked."""
    probe = np.unique(finite[:: max(1, finite.size // PROBE_ROWS)])
    return np.unique(probe.astype(np.float32)).size == probe.size


def list_classes(values: "pd.Series[Any]") -> tuple[Any, ...]:
    """Return the target's distinct values, sorted, as JSON scalars."""
    unique = [v.item() if isinstance(v, np.generic) else v for v in values.dropna().unique()]
    return tuple(sorted(unique))
