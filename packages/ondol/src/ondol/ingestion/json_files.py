"""JSON and JSON Lines files: Arrow parses regular rows, Python the others."""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from itertools import islice
from math import isfinite
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as arrow_json

from ondol.errors import UserError
from ondol.ingestion.columns import BATCH_ROWS, EXACT, Lists, Row, Unusual, ValueKinds, by_name, flatten, to_batch
from ondol.ingestion.files import (
    FileSource,
    NoRows,
    check_names,
    explain_encoding,
    explain_read_errors,
    is_array,
    read_elements,
)
from ondol_serving.grammar import normalize

LARGEST_PART = 1 << 30  # bytes: Arrow reads a part as one block, and the size of a block is limited to 31 bits
LEARNED = 500  # lines of the first part, which usually contain all types
DEEPEST = 100  # the most levels of nested objects: too many would overflow Arrow's stack
Flatten = Callable[[], Sequence[Row]]


class JsonReader:
    """Reads parts of one source and learns the types of its columns, so that Arrow need not infer them each time.

    The arguments of its methods are objects as text, one on each line, and a function that parses the same objects into
    flat rows, or raises an error. That function is called if Arrow cannot parse them, or if its result may differ from
    the text.
    """

    def __init__(self) -> None:
        """Start without types."""
        self.renamed: set[str] = set()  # names that are not in normal form C in the source
        self._schema = pa.schema([])

    def columns(self, lines: Sequence[str], flatten: Flatten) -> Lists:
        """Return the columns of `lines`, those of nested objects named `object.member`."""
        try:
            return self._read(lines)
        except (Unusual, pa.ArrowException):
            return by_name(flatten())

    def batch(self, lines: Sequence[str], schema: pa.Schema, uri: str, flatten: Flatten) -> pa.RecordBatch:
        """Return the rows of `lines` in the types of `schema`; see `to_batch`."""
        try:
            return to_batch(self._read(lines), len(lines), schema, uri)
        except (Unusual, pa.ArrowException):
            return to_batch(by_name(flatten()), len(lines), schema, uri)

    def _read(self, lines: Sequence[str]) -> Lists:
        text = "".join(lines).encode()
        if len(text) > LARGEST_PART or max(line.count("{") + line.count("[") for line in lines) > DEEPEST:
            raise Unusual
        table = self._parse(text, lines)
        if table.num_rows != len(lines) or not all(line.rstrip().endswith("}") for line in lines):  # one a line
            raise Unusual
        found = list(_flatten(table, ""))
        columns = {normalize(name): column for name, column in found}
        self.renamed |= columns.keys() - {name for name, _ in found}
        if len(columns) < len(found):  # {"a.b": 1, "a": {"b": 2}}, or one name in two forms
            raise Unusual
        return columns

    def _parse(self, text: bytes, lines: Sequence[str]) -> pa.Table:
        for known in (lines[:0], lines[:LEARNED]):
            if known:
                self._learn(_parse("".join(known).encode(), None).schema)
            with suppress(pa.ArrowException):
                return _parse(text, self._schema)
        self._learn(_parse(text, None).schema)
        return _parse(text, self._schema)

    def _learn(self, found: pa.Schema) -> None:
        """Add the types that Arrow found to the known ones, where they are compatible."""
        found = pa.schema([field.with_type(_without_dates(field.type)) for field in found])
        try:
            self._schema = pa.unify_schemas([self._schema, found], promote_options="permissive")
        except pa.ArrowException:
            self._schema = found


def _parse(text: bytes, schema: pa.Schema | None) -> pa.Table:
    """Parse objects with the types of `schema`, or with inferred types.

    Raises:
        ArrowException: they are not objects, or a name, or a value's type, is not in `schema`.
    """
    return arrow_json.read_json(
        io.BytesIO(text),
        arrow_json.ReadOptions(use_threads=False, block_size=len(text) + 1),
        arrow_json.ParseOptions(schema, unexpected_field_behavior="infer" if schema is None else "error"),
    )


def _without_dates(kind: pa.DataType) -> pa.DataType:
    """Return a type in which text replaces Arrow's date types."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_dates(field.type)) for field in kind])
    return pa.string() if pa.types.is_temporal(kind) else kind


def _flatten(table: pa.Table, prefix: str) -> Iterator[tuple[str, pa.Array]]:
    """Yield each column with its name; objects are replaced by the columns of their members.

    Raises:
        Unusual: one contains lists, empty objects or floats that may have been integers.
    """
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if pa.types.is_struct(kind) and kind.num_fields:
            inner = pa.Table.from_arrays(column.combine_chunks().flatten(), [field.name for field in kind])
            yield from _flatten(inner, f"{prefix}{name}.")
        elif pa.types.is_nested(kind) or _may_be_rounded(column):
            raise Unusual
        else:
            yield prefix + name, column.combine_chunks()


def _may_be_rounded(column: pa.ChunkedArray) -> bool:
    """Return True if a float may be the rounded value of an integer."""
    return pa.types.is_floating(column.type) and bool(pc.any(pc.greater_equal(pc.abs(column), EXACT)).as_py())


LARGEST = float(2**63)  # orjson converts a much longer integer to a float
NAME_END = re.compile(r'"[ \t\r\n]*:')


def parse(text: str | bytes, uri: str) -> Any:
    """Return the JSON value in `text`.

    Raises:
        UserError: an object has a repeated name.
        ValueError: it is not JSON.
    """
    try:
        value = orjson.loads(text)
        if _has_names(text if isinstance(text, str) else text.decode(), _count_names(value)):
            return value
    except (ValueError, RecursionError):  # also what only `json` accepts: NaN, half a \\u pair
        pass
    return _parse_exactly(text, uri)


def parse_object(text: str | bytes, uri: str) -> dict[str, Any] | None:
    """Return the JSON object in `text`; None if it is something else.

    Raises:
        UserError: an object has a repeated name.
    """
    try:
        value = parse(text, uri)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def write(value: Any) -> bytes:
    """Write a JSON-able value as JSON, such that `parse` returns the same value."""
    try:
        text = orjson.dumps(value)
    except TypeError:  # what only `json` writes: integers beyond 64 bits, half a \\u pair
        return json.dumps(value).encode()
    return text if b"null" not in text or _is_finite(value) else json.dumps(value).encode()


def _has_names(text: str, count: int) -> bool:
    """Return True if the objects in `text` certainly have `count` names; if one is repeated, there are more.

    The characters that end a name may also be in a string, after an escaped quote: then the result is False.
    """
    if not any(blank in text for blank in (" :", "\t:", "\r:", "\n:")):
        return text.count('":') == count
    return len(NAME_END.findall(text)) == count


def _parse_exactly(text: str | bytes, uri: str) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            check_names([name for name, _ in pairs], uri)
        return made

    try:
        return json.loads(text, object_pairs_hook=build)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _count_names(value: Any) -> int:
    """Return how many names the objects in `value` have.

    Raises:
        ValueError: a number in it may have been an integer.
    """
    names, inside = 0, value
    if isinstance(value, dict):
        names, inside = len(value), value.values()
    elif not isinstance(value, list):
        inside = (value,)
    for one in inside:
        kind = type(one)
        if kind is dict or kind is list:
            names += _count_names(one)
        elif kind is float and not -LARGEST < one < LARGEST:
            raise ValueError("rounded")
    return names


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or isfinite(value)


LONGEST_LINE = 16 << 20  # characters


class JsonLinesSource(FileSource):
    """One file of JSON objects, one on each line or in one array; absent keys are missing values."""

    _unit = "Line"

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types, from all lines."""
        kinds = ValueKinds()
        for lines in self._parts():
            kinds.add(self._reader.columns(list(lines.values()), partial(self._flatten, lines)))
        if not kinds.names():
            raise NoRows(f'"{self.uri}" has no rows: it needs one JSON object on each line.')
        schema = kinds.schema(self.columns)
        check_names(schema.names, self.uri)
        self.vacant = kinds.vacant()
        self.renamed = frozenset(self._reader.renamed)
        return schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows; see `ondol.ingestion.sources.Source`."""
        schema = self.schema
        for lines in self._parts():
            yield self._reader.batch(list(lines.values()), schema, self.uri, partial(self._flatten, lines))

    @cached_property
    def _reader(self) -> JsonReader:
        return JsonReader()

    def _parts(self) -> Iterator[dict[int, str]]:
        """Yield parts of the lines, with the number of each line."""
        lines = self._lines()
        while part := dict(islice(lines, BATCH_ROWS)):
            yield part

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Yield each line that is not blank, or each element of the array, with its number."""
        one_array = is_array(self.file.read_head())
        with explain_read_errors(self.uri), self.file.open() as stream:
            lines = io.TextIOWrapper(stream, encoding="utf-8-sig")
            try:
                if one_array:
                    self._unit = "Element"
                    yield from enumerate(read_elements(lines, self.uri), start=1)
                    return
                for number, line in enumerate(iter(partial(lines.readline, LONGEST_LINE), ""), start=1):
                    if len(line) == LONGEST_LINE:
                        raise UserError(
                            f'Line {number} of "{self.uri}" is too long: write one JSON object on each line.'
                        )
                    if not line.isspace():
                        yield number, line
            except UnicodeDecodeError:
                raise explain_encoding(self.file) from None

    def _flatten(self, lines: Mapping[int, str]) -> list[Row]:
        return [self._parse(number, line) for number, line in lines.items()]

    def _parse(self, number: int, line: str) -> Row:
        record = parse_object(line, self.uri)
        if record is None:
            raise UserError(
                f'{self._unit} {number} of "{self.uri}" is not a JSON object: JSON Lines has one object, '
                'as in {"a": 1}, on each line.'
            )
        return flatten(record, self.uri, f"{self._unit} {number}")
