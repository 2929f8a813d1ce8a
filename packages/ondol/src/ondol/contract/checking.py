"""Converts raw columns to the contract's types, checks rows with the contract, and reports every reason.

Values are converted one by one; unreadable ones are marked, without an exception. `ondol_serving.grammar` defines how
texts are parsed. Arrow parses texts of forms for which it gives the same result; the grammar parses every other
distinct text. So a value never depends on its neighbours.

Rows that repeat unique values of an earlier row are found with two 64-bit hashes of each row's values (16 bytes a row).
Equal hashes count as equal values; for 10,000,000 rows, the probability of an error is below 1e-24.
"""

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ondol.contract.schema import Column, Kind, require_columns, required_dtype
from ondol.errors import UserError
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

if TYPE_CHECKING:
    from pandera.pandas import DataFrameSchema

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


AS_VALUE = {"date": partial(pd.Timestamp, unit="s"), "duration": partial(pd.Timedelta, unit="s")}
KEYS = ("0123456789abcdef", "fedcba9876543210")
MISSING = np.uint64(0x9E3779B97F4A7C15)
EXACT = 2.0**53
ALONE, TOGETHER = "field_uniqueness", "multiple_fields_uniqueness"  # Pandera's names of these checks


@dataclass(frozen=True)
class Checked:
    """Cleaned rows and the errors in them.

    Attributes:
        frame: All rows, numbered from 0; unreadable cells are missing.
        reasons: One row for each reason, grouped by row: row, column, check, value (as text).
        columns: The columns that were checked.
    """

    frame: pd.DataFrame
    reasons: pd.DataFrame
    columns: tuple[Column, ...]

    @property
    def bad(self) -> np.ndarray:
        """The numbers of the invalid rows, in order."""
        return np.unique(self.reasons["row"].to_numpy(dtype=np.int64))

    def sentences(self) -> pa.ListArray:
        """Return the reasons of each row in `bad` as sentences."""
        reasons = self.reasons
        texts = reasons["column"] + " = " + reasons["value"].fillna("missing") + ": " + reasons["check"]
        _, starts = np.unique(reasons["row"].to_numpy(dtype=np.int64), return_index=True)
        ends = np.append(starts, len(texts)).astype(np.int32)
        return pa.ListArray.from_arrays(ends, pa.array(texts.to_numpy(object), pa.string()))

    def valid(self) -> pd.DataFrame:
        """Return the valid rows with their numbers, in the contract's dtypes."""
        good = self.frame.drop(index=self.bad) if len(self.reasons) else self.frame
        return typed(good, self.columns)

    def without_unlabelled(self, target: str) -> tuple["Checked", np.ndarray]:
        """Return a copy without the reasons of unlabelled rows, and the numbers of these rows, in order.

        An unlabelled row is not invalid, but cannot be used for training. A label that cannot be read is an error.
        """
        reasons = self.reasons
        unread = reasons["row"][(reasons["column"] == target) & reasons["check"].isin(UNREADABLE.values())]
        bare = np.setdiff1d(np.flatnonzero(self.frame[target].isna()), unread)
        return replace(self, reasons=reasons[~reasons["row"].isin(bare)].reset_index(drop=True)), bare

    def with_repeats(self, names: Sequence[str], rows: np.ndarray) -> "Checked":
        """Return a copy with a further reason: `rows` repeat earlier rows in the unique columns `names`."""
        if not len(rows):
            return self
        check, shown = ALONE if len(names) == 1 else TOGETHER, [name for name in names if name in self.frame]
        made = join_reasons(
            [reasons_of(rows, name, check, self.frame[name].loc[rows].to_numpy(object)) for name in shown]
        )
        found = _show_whole(_unless_known(made, self.reasons), self.columns)
        return replace(self, reasons=join_reasons([self.reasons, found]))


def check_rows(table: pa.Table, columns: Sequence[Column], schema: "DataFrameSchema | None" = None) -> Checked:
    """Clean the rows of `table` and validate them with the checks of `schema`, except uniqueness.

    Args:
        table: Raw rows, of a whole table or of a part.
        columns: The columns to check; others are ignored.
        schema: The Pandera schema, such as `load_schema().to_schema()`; default: one built from `columns`.

    Raises:
        UserError: a column is missing.
    """
    frame, unreadable = clean(table, columns)
    found = _failures(frame, _untyped(columns, schema))
    found = _show_whole(_unless_known(found, unreadable), columns)
    reasons = join_reasons([part for part in (unreadable, found) if len(part)])
    return Checked(frame, reasons, tuple(columns))


def _unless_known(found: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Return `found` without the reasons of cells that cannot be read, since these already have one."""
    unread = known[known["check"].isin(UNREADABLE.values())]
    if not len(unread) or not len(found):
        return found
    seen = pd.MultiIndex.from_frame(unread[["row", "column"]])
    return found[~pd.MultiIndex.from_frame(found[["row", "column"]]).isin(seen)]


def _show_whole(reasons: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """Return the reasons with whole numbers shown without a fraction, also if missing values made the column float."""
    whole = reasons["column"].isin([c.name for c in columns if c.kind in ("integer", "boolean")])
    return reasons.assign(value=reasons["value"].mask(whole, reasons["value"].str.removesuffix(".0")))


def _failures(frame: pd.DataFrame, schema: "DataFrameSchema") -> pd.DataFrame:
    from pandera.errors import SchemaErrors

    # A check of several columns uses the names in the schema.
    written = {normalize(str(name)): name for name in schema.columns}
    frame = frame.rename(columns=written)
    # The owner's checks compare missing values as NaN, not as NA, which is neither true nor false.
    gapped = [name for name in frame if isinstance(frame[name].dtype, pd.Int64Dtype)]
    try:
        schema.validate(frame.astype(dict.fromkeys(gapped, "float64")), lazy=True, inplace=True)
    except SchemaErrors as error:
        cases = error.failure_cases
        rowless = cases["index"].isna()
        if rowless.any():
            case = cases[rowless].iloc[0]
            whose = f' of "{case["column"]}"' if isinstance(case["column"], str) else ""
            raise UserError(
                f"The check {case['check']}{whose} in model/schema.py failed as a whole: {case['failure_case']}."
            ) from None
        rows = cases["index"].to_numpy(dtype=np.int64)
        named = cases["column"].astype("str").map(normalize).to_numpy()
        return reasons_of(rows, named, cases["check"].astype("str").to_numpy(), cases["failure_case"].astype("str"))
    return join_reasons([])


def _untyped(columns: Sequence[Column], schema: "DataFrameSchema | None") -> "DataFrameSchema":
    """Return Pandera's checks of `columns` without types, which `clean` has converted already.

    Uniqueness is not checked either, because it concerns the whole table; see `find_repeats`.
    """
    import pandera.pandas as pa_

    if schema is None:
        return pa_.DataFrameSchema({c.name: pa_.Column(None, _checks(c), nullable=c.nullable) for c in columns})
    known = {column.name: column for column in columns}
    kept = {
        name: pa_.Column(None, checks=_normal_checks(field.checks), nullable=field.nullable)
        for name, field in schema.columns.items()
        if normalize(str(name)) in known
    }
    return pa_.DataFrameSchema(kept, checks=schema.checks)


def _normal_checks(checks: list[Any]) -> list[Any]:
    """Return the checks with their closed sets in normal form C, like the values."""
    import pandera.pandas as pa_

    made = []
    for check in checks:
        allowed = list(check.statistics["allowed_values"]) if check.name == "isin" else []
        normal = [normalize(value) if isinstance(value, str) else value for value in allowed]
        made.append(check if normal == allowed else pa_.Check.isin(normal))
    return made


def _checks(column: Column) -> list[Any]:
    import pandera.pandas as pa_

    as_value: Callable[[float], Any] = AS_VALUE.get(column.kind, lambda bound: bound)
    made: list[tuple[float | None, Callable[[Any], Any]]] = [
        (column.minimum, pa_.Check.ge),
        (column.maximum, pa_.Check.le),
        (column.exclusive_minimum, pa_.Check.gt),
        (column.exclusive_maximum, pa_.Check.lt),
    ]
    checks = [check(as_value(bound)) for bound, check in made if bound is not None]
    return checks + ([pa_.Check.isin(list(column.categories))] if column.categories else [])


def unique_sets(schema: "DataFrameSchema", names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the sets of columns that must be unique in `schema`, limited to sets with one of `names`."""
    alone = {normalize(str(name)) for name, column in schema.columns.items() if column.unique}
    listed: Any = schema.unique or []
    together = [tuple(map(normalize, one)) for one in ([listed] if listed and isinstance(listed[0], str) else listed)]
    return [(name,) for name in names if name in alone] + [one for one in together if set(one) & set(names)]


def find_repeats(hashes: Iterable[np.ndarray]) -> np.ndarray:
    """Return the numbers of the rows, in order, with the same hashes as an earlier row.

    Args:
        hashes: The hashes of a table's rows in order: arrays of shape [rows, 2] from `hash_rows`.
    """
    parts = list(hashes)
    whole = np.concatenate(parts) if parts else np.empty((0, len(KEYS)), np.uint64)
    parts.clear()
    ordered = np.sort(whole[:, 0])  # many times as fast as argsort
    shared = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(shared):
        return np.empty(0, np.int64)
    places = np.searchsorted(shared, whole[:, 0]).clip(max=len(shared) - 1)
    near = np.flatnonzero(shared[places] == whole[:, 0])
    near = near[np.lexsort((near, whole[near, 1], whole[near, 0]))]
    return np.sort(near[1:][(whole[near[1:]] == whole[near[:-1]]).all(axis=1)])


def hash_rows(frame: pd.DataFrame) -> np.ndarray:
    """Return two hashes for each row of cleaned columns, [rows, 2], equal for equal values of any type."""
    columns = [_hash(frame[name]) for name in frame]
    return np.stack([_combine(hashes) for hashes in zip(*columns, strict=True)], axis=1)


def hash_content(table: pa.Table, names: Sequence[str], columns: Mapping[str, Column]) -> np.ndarray:
    """Return two hashes for each raw row, [rows, 2], equal for equal rows of any types.

    Args:
        table: Rows as a source gave them.
        names: The columns to hash; a column that the table lacks counts as missing values.
        columns: The contract's columns, by name: values are hashed as the contract reads them, unreadable ones as text.
    """
    absent = pa.chunked_array([pa.nulls(len(table))])
    present = set(table.schema.names)
    hashes = [_hash_raw(table.column(name) if name in present else absent, columns.get(name)) for name in names]
    return np.stack([_combine(one) for one in zip(*hashes, strict=True)], axis=1)


def _hash_raw(values: pa.ChunkedArray, column: Column | None) -> list[np.ndarray]:
    if column is None:
        return _hash(_as_text(values).to_pandas())
    read, unreadable = clean_column(values, column)
    hashes = _hash(read)
    if unreadable.any():
        texts = _hash(values.filter(pa.array(unreadable)).cast(pa.string()).to_pandas())
        for known, raw in zip(hashes, texts, strict=True):
            known[unreadable] = raw
    return hashes


def _as_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values as text; whole numbers like integers, because another part may store them as integers."""
    if pa.types.is_string(values.type):
        return normalize_texts(values)
    if not pa.types.is_floating(values.type):
        return values.cast(pa.string())
    whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), EXACT))
    integers = pc.if_else(whole, values, None).cast(pa.int64()).cast(pa.string())
    return pc.coalesce(integers, values.cast(pa.string()))


def _hash(values: "pd.Series[Any]") -> list[np.ndarray]:
    """Return a hash of each value for each of `KEYS`."""
    missing = values.isna().to_numpy()
    if values.dtype.kind in "biufmM" or isinstance(values.dtype, pd.BooleanDtype | pd.Int64Dtype):
        moments = values.dtype.kind in "mM"
        hashed = pd.util.hash_array(values.to_numpy().view(np.int64)) if moments else _hash_numbers(values, missing)
        hashes = [hashed ^ np.uint64(int(key, 16)) for key in KEYS]
    else:
        texts = values.astype(object).to_numpy()
        hashes = [pd.util.hash_array(texts, hash_key=key, categorize=False) for key in KEYS]
    return [np.where(missing, MISSING, one) for one in hashes]


def _hash_numbers(values: "pd.Series[Any]", missing: np.ndarray) -> np.ndarray:
    """Hash numbers so that 1, 1.0 and true are equal, and integers beyond 2^53 are not rounded."""
    if values.dtype.kind == "f":
        numbers = values.to_numpy(np.float64) + 0.0  # -0.0 equals 0.0
        whole = (np.abs(numbers) < 2.0**63) & (np.trunc(numbers) == numbers)
        bits = np.where(whole, np.where(whole, numbers, 0).astype(np.int64), numbers.view(np.int64) ^ np.int64(1) << 62)
    else:
        bits = values.to_numpy(np.int64, na_value=0) if missing.any() else values.to_numpy(np.int64)
    return pd.util.hash_array(bits)


def _combine(hashes: Sequence[np.ndarray]) -> np.ndarray:
    made = hashes[0]
    with np.errstate(over="ignore"):
        for other in hashes[1:]:
            made = (made * np.uint64(0x100000001B3)) ^ (
                other + MISSING + (made << np.uint64(6)) + (made >> np.uint64(2))
            )
    return made
