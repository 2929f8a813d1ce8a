"""Brings raw columns to the contract's types, value by value: what cannot be read is marked, not raised."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from flows.contract.columns import Column, Kind
from flows.contract.durations import read_durations
from flows.contract.schema import required_dtype

GAPPED = {pa.int64(): pd.Int64Dtype()}
DIGITS = 19  # of the largest int64
WHOLE = r"^[+-]?[0-9]+(\.0*)?$"
TRUE, FALSE = ("true", "1"), ("false", "0")
# Tried in this order for each value, so that what a value means never depends on its neighbours.
DATE_FORMATS = (
    "ISO8601",
    *(day + time for day in ("%Y/%m/%d", "%Y.%m.%d", "%m/%d/%Y", "%d.%m.%Y") for time in ("", " %H:%M", " %H:%M:%S")),
    *("%Y년 %m월 %d일", "%b %d, %Y", "%B %d, %Y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%Y/%m", "%b %Y", "%B %Y"),
)
UNREADABLE: dict[Kind, str] = {
    "number": "not a finite number",
    "integer": "not a whole number",
    "boolean": "not true or false",
    "text": "not a text",
    "date": "not a date",
    "duration": "not a duration",
}


def clean_column(values: pa.ChunkedArray, column: Column) -> tuple["pd.Series[Any]", np.ndarray]:
    """Return a raw column as its kind, missing where unreadable, and which rows were unreadable.

    Args:
        values: The column as a source gave it.
        column: What the contract says of it.

    Returns:
        The values (float64 with NaN for numbers, and for booleans that have gaps; int64, or Int64 with gaps; `str`;
        datetime64[us] in UTC without a zone; timedelta64[us]) and a mask of length rows.
    """
    values = _blank_to_missing(_plain(values))
    missing = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else np.zeros(len(values), bool)
    series = READERS[column.kind](values)
    unreadable = series.isna().to_numpy() & ~missing
    return series, unreadable


def to_required(values: "pd.Series[Any]", column: Column) -> "pd.Series[Any]":
    """Return the valid values of a cleaned column in the dtype that the contract asks for."""
    wanted = required_dtype(column)
    return values if str(values.dtype) == wanted else values.astype(wanted)


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = values.type
    if pa.types.is_dictionary(kind):
        return values.cast(kind.value_type)
    if pa.types.is_null(kind):
        return values.cast(pa.string())
    return values


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _blank_to_missing(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_floating(values.type):
        gaps = pc.is_nan(values)
        return pc.if_else(gaps, None, values) if pc.any(gaps).as_py() else values
    if not _is_text(values.type):
        return values
    blank = pc.or_(pc.equal(values, ""), pc.utf8_is_space(values))
    return pc.if_else(blank, None, values) if pc.any(blank).as_py() else values


def _number(values: pa.ChunkedArray) -> "pd.Series[Any]":
    if _is_text(values.type):
        numbers = _parse(pc.utf8_trim_whitespace(values))
    elif pa.types.is_temporal(values.type) or pa.types.is_nested(values.type):
        return pd.Series(np.full(len(values), np.nan))
    else:
        numbers = values.cast(pa.float64(), safe=False).to_pandas()
    infinite = np.isinf(numbers.to_numpy())
    return numbers.mask(infinite) if infinite.any() else numbers


def _parse(texts: pa.ChunkedArray) -> "pd.Series[Any]":
    """Return texts as numbers, missing where they are none; Arrow is quick but gives up on the first that is none."""
    try:
        return texts.cast(pa.float64()).to_pandas()
    except pa.ArrowInvalid:
        return pd.to_numeric(texts.to_pandas(), errors="coerce").astype(np.float64)


def _integer(values: pa.ChunkedArray) -> "pd.Series[Any]":
    """Return whole numbers exactly: ids and sums go beyond what a float64 tells apart."""
    if not pa.types.is_integer(values.type):
        values = _whole_texts(values) if _is_text(values.type) else _whole(_number(values))
    values = values.cast(pa.int64())
    return values.to_pandas(types_mapper=GAPPED.get) if values.null_count else values.to_pandas()


def _whole(numbers: "pd.Series[Any]") -> pa.ChunkedArray:
    """Return numbers as int64, missing where they are not whole or do not fit."""
    array = numbers.to_numpy()
    fits = (array % 1 == 0) & (array >= -(2.0**63)) & (array < 2.0**63)
    return pa.chunked_array([pa.array(np.where(fits, array, 0).astype(np.int64), mask=~fits)])


def _whole_texts(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts as int64: digits as they stand, what is written otherwise (`1e3`) by way of float64."""
    texts = pc.utf8_trim_whitespace(texts)
    plain = pc.fill_null(pc.match_substring_regex(texts, WHOLE), False)
    digits = pc.replace_substring_regex(pc.if_else(plain, texts, None), r"^\+|\.0*$", "")
    try:
        found = digits.cast(pa.int64())
    except pa.ArrowInvalid:  # one has too many
        found = pa.chunked_array([[_fitting(text) for text in digits.to_pylist()]], pa.int64())
    others = pc.if_else(plain, None, texts)
    if others.null_count == len(others):
        return found
    numbers = _number(others)  # beyond 2^53 a fraction may have been lost
    return pc.if_else(plain, found, _whole(numbers.where(numbers.abs() < 2.0**53)))


def _fitting(text: str | None) -> int | None:
    if text is None or len(text.lstrip("-0")) > DIGITS:
        return None
    return int(text) if -(2**63) <= int(text) < 2**63 else None


def _boolean(values: pa.ChunkedArray) -> "pd.Series[Any]":
    if pa.types.is_boolean(values.type):
        return values.to_pandas() if not values.null_count else values.cast(pa.float64()).to_pandas()
    if pa.types.is_temporal(values.type) or pa.types.is_nested(values.type):
        return pd.Series(np.full(len(values), np.nan))
    texts = values.to_pandas() if _is_text(values.type) else values.cast(pa.float64()).to_pandas()
    known: dict[Any, float] = {1.0: 1.0, 0.0: 0.0}
    if _is_text(values.type):
        texts = texts.str.strip().str.lower()
        known = dict.fromkeys(TRUE, 1.0) | dict.fromkeys(FALSE, 0.0)
    return texts.map(known).astype(np.float64)


def _text(values: pa.ChunkedArray) -> "pd.Series[Any]":
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type):
        return pd.Series([None] * len(values), dtype="str")
    texts = values if _is_text(values.type) else values.cast(pa.string())
    return texts.to_pandas().astype("str")


def _date(values: pa.ChunkedArray) -> "pd.Series[Any]":
    kind = values.type
    if _is_text(kind):
        texts = values.to_pandas()
        dates = pd.to_datetime(texts, errors="coerce", format=DATE_FORMATS[0], utc=True)
        for form in DATE_FORMATS[1:]:
            left = dates.isna() & texts.notna()
            if not left.any():
                break
            dates = dates.mask(left, pd.to_datetime(texts[left], errors="coerce", format=form, utc=True))
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        dates = values.cast(pa.timestamp("us", tz=getattr(kind, "tz", None))).to_pandas()
        dates = pd.to_datetime(dates, utc=True, cache=False)
    else:
        return pd.Series(np.full(len(values), np.datetime64("NaT", "us")))
    return dates.dt.tz_localize(None).astype("datetime64[us]")


READERS: dict[Kind, Callable[[pa.ChunkedArray], "pd.Series[Any]"]] = {
    "number": _number,
    "integer": _integer,
    "boolean": _boolean,
    "text": _text,
    "date": _date,
    "duration": read_durations,
}
