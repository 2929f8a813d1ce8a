"""Converts raw columns to the contract's types, value by value; unreadable values are marked, without an exception.

`ondol_serving.grammar` defines how texts are parsed. Arrow parses texts of forms for which it gives the same result;
the grammar parses every other distinct text. So a value never depends on its neighbours.
"""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ondol.contract.schema import Column, Kind, require_columns, required_dtype
from ondol_serving.grammar import (
    ISO_DATE,
    LONGEST_SECONDS,
    MICROSECONDS,
    NUMBER,
    DateGrammar,
    date_grammar,
    normalize,
    parse_boolean,
    parse_duration,
    parse_integer,
    parse_number,
)

GAPPED = {pa.int64(): pd.Int64Dtype()}
DIGITS = "-?[0-9]{1,18}"
MOMENT = pa.timestamp("us")
FIRST, LAST = -62_135_596_800, 253_402_300_799  # seconds of the years 1 and 9999, the limits of a date
PER_SECOND = {"s": 1, "ms": 1_000, "us": MICROSECONDS, "ns": 1_000_000_000}
SMALL, PART = 64, 4096  # rows
UNREADABLE: dict[Kind, str] = {
    "number": "not a finite number",
    "integer": "not a whole number",
    "boolean": "not true or false",
    "text": "not a text",
    "date": "not a date",
    "duration": "not a duration",
}


def clean(table: pa.Table, columns: Sequence[Column]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Convert the rows of `table` to the contract's kinds; also return a reason for each unreadable cell.

    Raises:
        UserError: a column is missing.
    """
    require_columns(table.schema.names, columns)
    series: dict[str, pd.Series[Any]] = {}
    reasons = []
    for column in columns:
        raw = table.column(column.name)
        series[column.name], unreadable = clean_column(raw, column)
        if unreadable.any():
            rows = np.flatnonzero(unreadable)
            values = raw.take(pa.array(rows)).to_pandas().astype("str").to_numpy()
            reasons.append(reasons_of(rows, column.name, UNREADABLE[column.kind], values))
    return pd.DataFrame(series, copy=False), join_reasons(reasons)


def typed(frame: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """Return cleaned, valid rows in the contract's dtypes."""
    return pd.DataFrame({c.name: to_required(frame[c.name], c) for c in columns}, index=frame.index, copy=False)


def reasons_of(rows: np.ndarray, column: Any, check: Any, values: Any) -> pd.DataFrame:
    """Return a table with a row for each reason: row, column, check, value (as text)."""
    made = {"row": rows, "column": column, "check": check, "value": values}
    return pd.DataFrame(made).astype({"column": "str", "check": "str", "value": "str"})


def join_reasons(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Return all reasons, grouped by row."""
    if not parts:
        return reasons_of(np.empty(0, np.int64), "", "", "")
    return pd.concat(parts).sort_values(["row", "column"], kind="stable", ignore_index=True)


def clean_column(values: pa.ChunkedArray, column: Column) -> tuple["pd.Series[Any]", np.ndarray]:
    """Convert a raw column to its kind, with unreadable values missing; also return which rows were unreadable.

    Args:
        values: The column as a source gave it.
        column: The contract's column.

    Returns:
        The values (float64 with NaN for numbers, and for booleans that have gaps; int64, or Int64 with gaps; `str`;
        datetime64[us] in UTC without a zone; timedelta64[us]) and a mask of length rows.
    """
    values = _blank_to_missing(_plain(values))
    missing = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else np.zeros(len(values), bool)
    series = READERS[column.kind](values, column)
    unreadable = series.isna().to_numpy() & ~missing
    return series, unreadable


def to_required(values: "pd.Series[Any]", column: Column) -> "pd.Series[Any]":
    """Return the valid values of a cleaned column in the contract's dtype."""
    wanted = required_dtype(column)
    return values if str(values.dtype) == wanted else values.astype(wanted)


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the column with unchanged values, and all texts in one type."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _plain(values.cast(kind.value_type))
    if pa.types.is_null(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return values.cast(pa.string())
    return values.cast(pa.float32()) if pa.types.is_float16(kind) else values


def _blank_to_missing(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_floating(values.type):
        gaps = pc.is_nan(values)
        return pc.if_else(gaps, None, values) if pc.any(gaps).as_py() else values
    if not pa.types.is_string(values.type):
        return values
    blank = pc.or_(pc.equal(values, ""), pc.utf8_is_space(values))
    return pc.if_else(blank, None, values) if pc.any(blank).as_py() else values


def read_distinct(texts: pa.ChunkedArray, parse: Callable[[str], Any], kind: pa.DataType) -> pa.ChunkedArray:
    """Parse each text with `parse`, called once for each distinct text; None becomes null."""
    encoded = texts.combine_chunks().dictionary_encode()
    read = pa.array([parse(text) for text in encoded.dictionary.to_pylist()], kind)
    return pa.chunked_array([read.take(encoded.indices)])


def _read_texts(
    texts: pa.ChunkedArray, pattern: str, kind: pa.DataType, parse: Callable[[str], Any]
) -> pa.ChunkedArray:
    """Convert texts to `kind`: by Arrow's cast if they match `pattern` (the result is the same), else by `parse`."""
    quick = pc.fill_null(pc.match_substring_regex(texts, f"^({pattern})$"), False)
    rest = pc.if_else(quick, None, texts)
    parts = pc.if_else(quick, texts, None).combine_chunks()
    found = [
        _cast(pa.chunked_array([parts[start : start + PART]]), parse, kind) for start in range(0, len(parts), PART)
    ]
    made = pa.chunked_array([chunk for part in found for chunk in part.chunks], kind)
    return made if rest.null_count == len(rest) else pc.coalesce(made, read_distinct(rest, parse, kind))


def _cast(texts: pa.ChunkedArray, parse: Callable[[str], Any], kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:  # such as 30 February
        return read_distinct(texts, parse, kind)


def _casts(texts: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    """Cast all texts to `kind`; None if one cannot be cast. A sample is tried first, because failing texts are slow."""
    try:
        texts.slice(0, SMALL).cast(kind)
        return texts.cast(kind)
    except pa.ArrowInvalid:
        return None


def _nothing(values: pa.ChunkedArray, dtype: str) -> "pd.Series[Any]":
    return pd.Series(np.full(len(values), np.nan if dtype == "float64" else "NaT", dtype=dtype))


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _number(values: pa.ChunkedArray) -> "pd.Series[Any]":
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.string())  # Arrow's cast of a decimal to a float rounds twice
    if pa.types.is_string(values.type):
        numbers = _parse(pc.utf8_trim_whitespace(values)).to_pandas()
    elif _is_number(values.type):
        numbers = values.cast(pa.float64(), safe=False).to_pandas()
    else:
        return _nothing(values, "float64")
    return _finite(numbers)


def _finite(numbers: "pd.Series[Any]") -> "pd.Series[Any]":
    infinite = np.isinf(numbers.to_numpy())
    return numbers.mask(infinite) if infinite.any() else numbers


def _parse(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Parse texts as numbers; only finite ones are valid, although Arrow also parses `inf` and `nan`."""
    found = _casts(texts, pa.float64())
    return _read_texts(texts, NUMBER, pa.float64(), parse_number) if found is None else found


def _integer(values: pa.ChunkedArray) -> "pd.Series[Any]":
    """Parse whole numbers exactly, since ids and sums may exceed the integers that float64 represents."""
    kind = values.type
    if pa.types.is_decimal(kind) or pa.types.is_uint64(kind):
        values = values.cast(pa.string())
    if pa.types.is_string(values.type):
        values = _whole_texts(pc.utf8_trim_whitespace(values))
    elif pa.types.is_integer(kind):
        values = values.cast(pa.int64())
    elif pa.types.is_floating(kind):
        values = _whole(_number(values))
    else:
        values = pa.chunked_array([pa.nulls(len(values), pa.int64())])
    return values.to_pandas(types_mapper=GAPPED.get) if values.null_count else values.to_pandas()


def _whole(numbers: "pd.Series[Any]") -> pa.ChunkedArray:
    """Convert numbers to int64; those that are not whole or do not fit are missing."""
    array = numbers.to_numpy()
    fits = (array % 1 == 0) & (array >= -(2.0**63)) & (array < 2.0**63)
    return pa.chunked_array([pa.array(np.where(fits, array, 0).astype(np.int64), mask=~fits)])


def _whole_texts(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    found = _casts(texts, pa.int64())
    if found is None or pc.any(pc.match_substring(texts, "x", ignore_case=True)).as_py():  # Arrow reads 0x10 as 16
        return _read_texts(texts, DIGITS, pa.int64(), parse_integer)
    return found


def _boolean(values: pa.ChunkedArray) -> "pd.Series[Any]":
    if pa.types.is_string(values.type):
        values = read_distinct(values, parse_boolean, pa.bool_())
    if pa.types.is_boolean(values.type):
        return values.to_pandas() if not values.null_count else values.cast(pa.float64()).to_pandas()
    numbers = _number(values)
    return numbers.where(numbers.isin((0.0, 1.0)))


def _text(values: pa.ChunkedArray) -> "pd.Series[Any]":
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type):
        return pd.Series([None] * len(values), dtype="str")
    texts = normalize_texts(values) if pa.types.is_string(values.type) else values.cast(pa.string())
    return texts.to_pandas().astype("str")


def normalize_texts(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert texts to Unicode's normal form C."""
    if all(map(_is_normal, texts.chunks)):
        return texts
    return read_distinct(texts, normalize, pa.string())


def _is_normal(texts: pa.StringArray) -> bool:
    """Return True if all texts are certainly in normal form C; they are joined for a single check."""
    if not len(texts) or texts.null_count == len(texts):
        return True
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    written = bytes(texts.buffers()[2][int(offsets[0]) : int(offsets[-1])])
    return written.isascii() or unicodedata.is_normalized("NFC", written.decode("utf-8"))


def _date(values: pa.ChunkedArray, column: Column) -> "pd.Series[Any]":
    kind, grammar = values.type, date_grammar(column.formats)
    if _is_number(kind) and grammar.reads_digits:  # 20240131, where its format is listed
        values = _whole(_number(values)).cast(pa.string())
    if pa.types.is_string(values.type):
        dates = _read_dates(pc.utf8_trim_whitespace(values), grammar).to_pandas()
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        dates = _convert_dates(values)
    else:
        return _nothing(values, "datetime64[us]")
    return dates.astype("datetime64[us]")


def _read_dates(texts: pa.ChunkedArray, grammar: DateGrammar) -> pa.ChunkedArray:
    if not grammar.reads_iso:
        return read_distinct(texts, grammar.parse, MOMENT)
    found = _casts(texts, MOMENT)
    if found is None or (pc.min(found.cast(pa.int64())).as_py() or 0) < FIRST * MICROSECONDS:  # Arrow accepts a year 0
        return _read_texts(texts, ISO_DATE, MOMENT, grammar.parse)
    return found


def _convert_dates(values: pa.ChunkedArray) -> "pd.Series[Any]":
    """Convert dates of any unit to microseconds; those before the year 1 or after 9999 become missing."""
    kind = values.type
    if pa.types.is_date(kind):
        values = values.cast(pa.date32()).cast(pa.int32()).cast(pa.int64())
        values, unit = pc.multiply(values, 86_400), "s"
    else:
        values, unit = values.cast(pa.int64()), kind.unit
    numbers, per_second = pc.fill_null(values, 0).to_numpy(), PER_SECOND[unit]
    known = (numbers // per_second >= FIRST) & (numbers // per_second <= LAST)
    known &= ~values.is_null().to_numpy()
    micros = numbers // (per_second // MICROSECONDS) if unit == "ns" else numbers * (MICROSECONDS // per_second)
    return pd.Series(np.where(known, micros, 0).view("datetime64[us]")).where(known)


def _duration(values: pa.ChunkedArray) -> "pd.Series[Any]":
    kind = values.type
    if pa.types.is_duration(kind):
        return _convert_durations(values)
    if _is_number(kind):
        return _from_seconds(_number(values))
    if pa.types.is_time(kind):
        values = values.cast(pa.string())
    if not pa.types.is_string(values.type):
        return _nothing(values, "timedelta64[us]")
    texts = pc.utf8_trim_whitespace(values)
    found = _casts(texts, pa.float64())
    if found is not None:
        return _from_seconds(_finite(found.to_pandas()))
    return read_distinct(texts, parse_duration, pa.duration("us")).to_pandas().astype("timedelta64[us]")


def _from_seconds(seconds: "pd.Series[Any]") -> "pd.Series[Any]":
    known = seconds.abs().to_numpy() <= LONGEST_SECONDS
    micros = np.round(np.where(known, seconds, 0.0) * MICROSECONDS).astype(np.int64)
    return pd.Series(micros.view("timedelta64[us]")).where(known)


def _convert_durations(values: pa.ChunkedArray) -> "pd.Series[Any]":
    """Convert durations of any unit to microseconds, rounded like those in texts; too long ones become missing."""
    unit, missing = values.type.unit, values.is_null().to_numpy()
    numbers = pc.fill_null(values.cast(pa.int64()), 0).to_numpy()
    if unit == "ns":
        micros, rest = np.divmod(numbers, 1_000)
        micros = micros + ((rest > 500) | ((rest == 500) & (micros % 2 == 1)))
        known = ~missing
    else:
        limit = int(LONGEST_SECONDS) * PER_SECOND[unit]
        known = (numbers >= -limit) & (numbers <= limit) & ~missing
        micros = np.where(known, numbers, 0) * (MICROSECONDS // PER_SECOND[unit])
    return pd.Series(np.where(known, micros, 0).view("timedelta64[us]")).where(known)


READERS: dict[Kind, Callable[[pa.ChunkedArray, Column], "pd.Series[Any]"]] = {
    "number": lambda values, _: _number(values),
    "integer": lambda values, _: _integer(values),
    "boolean": lambda values, _: _boolean(values),
    "text": lambda values, _: _text(values),
    "date": _date,
    "duration": lambda values, _: _duration(values),
}
