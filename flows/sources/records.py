"""Records: JSON objects, flattened, that become Arrow batches of one schema."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from flows.errors import UserError
from flows.sources import Columns
from flows.sources.files import check_names
from flows.sources.fitting import EXACT, LADDERS

BATCH_ROWS = 16_384
LONGEST = 2**63
Row = dict[str, Any]


class Kinds:
    """Which kinds of values each column of flat rows has held."""

    def __init__(self) -> None:
        """Begin with no columns."""
        self._seen: dict[str, set[str]] = {}

    def add(self, row: Row) -> None:
        """Look at every value of a row."""
        for name, value in row.items():
            seen = self._seen.setdefault(name, set())
            if value is not None:
                seen.add(_kind_of(value))

    def names(self) -> set[str]:
        """Return the columns so far."""
        return set(self._seen)

    def vacant(self) -> frozenset[str]:
        """Return the columns that have held no value so far."""
        return frozenset(name for name, seen in self._seen.items() if not seen)

    def schema(self, columns: Columns) -> pa.Schema:
        """Return the columns, each of the one type that holds all its values: text where they are mixed.

        An object that is missing in some records is no column of its own.
        """
        parents = {name[:at] for name in self._seen for at in range(len(name)) if name[at] == "."}
        names = [name for name, seen in self._seen.items() if seen or name not in parents]
        return pa.schema([(name, _choose((columns or {}).get(name), self._seen[name])) for name in names])


def flatten(record: Row, uri: str, place: str, dropped: Sequence[str] = ()) -> Row:
    """Return `record` with the members of nested objects as columns named `object.member`.

    Args:
        record: A JSON object.
        uri: The source as the user wrote it, and
        place: where in it the record is ("Line 3"), for messages.
        dropped: Names, dotted for nested ones, that are left out with all that is in them.

    Raises:
        UserError: it holds a list, or two values of one name.
    """
    row: Row = {}
    for name, value in _members(record, "", dropped):
        if isinstance(value, list):
            raise UserError(f'{place} of "{uri}" has a list in "{name}": write it as plain values, or leave it out.')
        if name in row:
            check_names([*row, name], uri)
        row[name] = value
    return row


def parse(text: str | bytes, uri: str) -> Any:
    """Return the JSON value in `text`.

    Raises:
        UserError: an object has one name twice.
        ValueError: it is no JSON.
    """

    def build(pairs: list[tuple[str, Any]]) -> Row:
        made = dict(pairs)
        if len(made) != len(pairs):
            check_names([name for name, _ in pairs], uri)
        return made

    try:
        return json.loads(text, object_pairs_hook=build)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def to_batch(rows: Sequence[Row], schema: pa.Schema, uri: str) -> pa.RecordBatch:
    """Return flat rows in the types of `schema`; a name that a row lacks is missing there."""
    arrays = []
    for field in schema:
        try:
            arrays.append(pa.array([_convert(row.get(field.name), field.type) for row in rows], field.type))
        except UnicodeEncodeError:
            raise UserError(f'A text in "{field.name}" of "{uri}" is no Unicode (half a \\u pair): mend it.') from None
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _members(record: Row, prefix: str, dropped: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        name = prefix + key
        if name in dropped:
            continue
        if isinstance(value, dict):
            yield from _members(value, f"{name}.", dropped)
        else:
            yield name, value


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer" if abs(value) <= EXACT else "large" if abs(value) < LONGEST else "huge"
    return "number" if isinstance(value, float) else "text"


def _choose(kind: str | None, seen: set[str]) -> pa.DataType:
    if kind == "text":
        return pa.string()
    if not seen:  # dates and durations are text in JSON
        return pa.string() if kind in (None, "date", "duration") else LADDERS[kind][0]
    if seen == {"boolean"}:
        return pa.bool_()
    if seen <= {"integer", "large"}:
        return pa.int64()
    return pa.float64() if seen <= {"integer", "number"} else pa.string()


def _convert(value: Any, kind: pa.DataType) -> Any:
    """Return a value as its column's type takes it; `""` and NaN stay what validation makes of them."""
    if value is None or not pa.types.is_string(kind):
        return value
    return value if isinstance(value, str) else json.dumps(value)
