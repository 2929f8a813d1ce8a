"""Many JSON objects as columns at once: Arrow reads what is regular, several times quicker than row by row."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json

from ondol.ingestion.fitting import EXACT
from ondol.ingestion.records import Lists, Row, Unusual, by_name, to_batch
from ondol_serving.grammar import normalize

LARGEST_PART = 1 << 30  # bytes: Arrow reads a part as one block, whose size it counts in 31 bits
LEARNED = 500  # lines, which mostly have all types that the others have
DEEPEST = 100  # objects in objects, at most: of a great many Arrow would burst its stack
Flatten = Callable[[], Sequence[Row]]


class JsonReader:
    """Reads parts of one source, and learns which types its columns have, so that Arrow need not guess each time.

    Each of its methods is given objects as text, one on a line, and a function that returns the same as flat rows or
    says what is wrong with them: it is called where Arrow cannot read them, or not certainly as they are written.
    """

    def __init__(self) -> None:
        """Begin without any type."""
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
        """Take in the types that Arrow found, beside those known where both can be."""
        found = pa.schema([field.with_type(_without_dates(field.type)) for field in found])
        try:
            self._schema = pa.unify_schemas([self._schema, found], promote_options="permissive")
        except pa.ArrowException:
            self._schema = found


def _parse(text: bytes, schema: pa.Schema | None) -> pa.Table:
    """Return objects in the types of `schema`, or in those that they seem to have.

    Raises:
        ArrowException: they are no objects, or a name, or a value's type, is not in `schema`.
    """
    return json.read_json(
        io.BytesIO(text),
        json.ReadOptions(use_threads=False, block_size=len(text) + 1),
        json.ParseOptions(schema, unexpected_field_behavior="infer" if schema is None else "error"),
    )


def _without_dates(kind: pa.DataType) -> pa.DataType:
    """Return a type with text in place of what Arrow takes for dates."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_dates(field.type)) for field in kind])
    return pa.string() if pa.types.is_temporal(kind) else kind


def _flatten(table: pa.Table, prefix: str) -> Iterator[tuple[str, pa.Array]]:
    """Yield each column with its name, in place of objects those of their members.

    Raises:
        Unusual: one holds lists, empty objects or floats that may have been integers.
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
    """Tell whether a float may have been written as an integer that it is not."""
    return pa.types.is_floating(column.type) and bool(pc.any(pc.greater_equal(pc.abs(column), EXACT)).as_py())
