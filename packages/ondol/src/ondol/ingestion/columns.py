"""Columns of texts and of JSON objects: inference of their types, and batches of one schema."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ondol.errors import UserError
from ondol.ingestion.files import check_names
from ondol.ingestion.sources import Columns
from ondol_serving.grammar import normalize

TEXT = pa.string()
LADDERS: dict[str, tuple[pa.DataType, ...]] = {
    "number": (pa.float64(), TEXT),
    "integer": (pa.int64(), pa.float64(), TEXT),
    "boolean": (pa.bool_(), TEXT),
    "date": (pa.timestamp("us"), TEXT),
    "duration": (pa.float64(), TEXT),  # seconds
    "text": (TEXT,),
}
EXACT = 2**53  # float64 represents smaller integers exactly


def find_fitting(values: pa.Array, kind: str, current: pa.DataType) -> pa.DataType:
    """Return the first type, from `current` on, that can represent every value of a text column.

    Args:
        values: Text; null where missing.
        kind: The contract's kind of the column.
        current: The type to start from in the kind's list of types; stricter ones have already failed.
    """
    ladder = LADDERS[kind]
    for rung in ladder[ladder.index(current) : -1]:
        # An integer may become the float64 12.0, but 2^60 in a column with 0.5 would be rounded.
        if _fits(values, rung, exact=kind == "integer" and rung == pa.float64()):
            return rung
    return TEXT


def cast_texts(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Convert texts to `kind`, with the same results as the grammar.

    Raises:
        ArrowInvalid: a text is not of that kind, or Arrow may read it differently.
    """
    made = pc.cast(pc.utf8_trim_whitespace(values), kind)
    if not is_finite(made):
        raise pa.ArrowInvalid("not finite")
    if pa.types.is_integer(kind) and pc.any(pc.match_substring(values, "x", ignore_case=True)).as_py():
        raise pa.ArrowInvalid("hexadecimal")  # Arrow reads 0x10 as 16
    return made


def is_finite(values: pa.Array) -> bool:
    """Return True unless a float is infinite or NaN, which Arrow accepts in texts such as `1e400`, `inf` and `NAN`."""
    return not pa.types.is_floating(values.type) or pc.all(pc.is_finite(values)).as_py() is not False


def survives_float(values: pa.Array) -> bool:
    """Return True if integers in text are exact as float64."""
    return _is_exact(cast_texts(values, pa.int64()))


def _fits(values: pa.Array, kind: pa.DataType, exact: bool) -> bool:
    try:
        numbers = cast_texts(values, kind)
    except pa.ArrowInvalid:
        return False
    return not exact or _is_exact(numbers)


def _is_exact(numbers: pa.Array) -> bool:
    largest = pc.max(pc.abs(numbers)).as_py()
    return largest is None or largest < EXACT


BATCH_ROWS = 16_384
LONGEST = 2**63
NESTED = frozenset((dict, list))
OF_PYTHON = {bool: "boolean", int: "integer", float: "number", str: "text"}
OF_ARROW = {pa.bool_(): "boolean", pa.int64(): "integer", pa.float64(): "number", pa.string(): "text"}
Row = dict[str, Any]
Lists = Mapping[str, Sequence[Any] | pa.Array]  # the values of each column, None if missing


class Unusual(Exception):
    """Some values may differ from the text; the caller must parse them one by one."""


class ValueKinds:
    """Collects the kinds of values in each column of flat rows."""

    def __init__(self) -> None:
        """Start without columns."""
        self._seen: dict[str, set[str]] = {}

    def add(self, columns: Lists) -> None:
        """Update the types with every value of some rows."""
        for name, values in columns.items():
            self._seen.setdefault(name, set()).update(_kinds_of(values))

    def names(self) -> set[str]:
        """Return the columns so far."""
        return set(self._seen)

    def vacant(self) -> frozenset[str]:
        """Return the columns without any value so far."""
        return frozenset(name for name, seen in self._seen.items() if not seen)

    def schema(self, columns: Columns) -> pa.Schema:
        """Return the columns, each with the type that can represent all its values; text for mixed values.

        An object that is missing in some records is not a column of its own.
        """
        parents = {name[:at] for name in self._seen for at in range(len(name)) if name[at] == "."}
        names = [name for name, seen in self._seen.items() if seen or name not in parents]
        return pa.schema([(name, _choose((columns or {}).get(name), self._seen[name])) for name in names])


def flatten(record: Row, uri: str, place: str, dropped: Sequence[str] = ()) -> Row:
    """Return `record` with the members of nested objects as columns named `object.member`, in normal form C.

    Args:
        record: A JSON object.
        uri: The source as the user wrote it, and
        place: where in it the record is ("Line 3"), for messages.
        dropped: Names, dotted for nested ones, that are left out with their members.

    Raises:
        UserError: it contains a list, or two values with the same name.
    """
    if not dropped and NESTED.isdisjoint(map(type, record.values())) and all(map(str.isascii, record)):
        return record
    names: list[str] = []
    values: list[Any] = []
    try:
        _unfold(record, "", dropped, names, values)
    except RecursionError:
        raise UserError(f'{place} of "{uri}" has too deeply nested objects: leave them out.') from None
    row = dict(zip(map(normalize, names), values, strict=True))
    if len(row) < len(names):
        check_names(names, uri)
    if list in map(type, values):
        name = next(name for name, value in row.items() if isinstance(value, list))
        raise UserError(f'{place} of "{uri}" has a list in "{name}": write it as plain values, or leave it out.')
    return row


def by_name(rows: Sequence[Row]) -> Lists:
    """Return flat rows as columns, in the order of first appearance."""
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(chain.from_iterable(rows))}


def to_batch(columns: Lists, rows: int, schema: pa.Schema, uri: str) -> pa.RecordBatch:
    """Return the columns of `rows` rows in the types of `schema`; a column that they lack has only missing values."""
    arrays = []
    for field in schema:
        try:
            arrays.append(_to_array(columns.get(field.name, [None] * rows), field.type))
        except UnicodeEncodeError:
            raise UserError(
                f'A text in "{field.name}" of "{uri}" is not Unicode (half a \\u pair): correct it.'
            ) from None
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _unfold(record: Row, prefix: str, dropped: Sequence[str], names: list[str], values: list[Any]) -> None:
    for key, value in record.items():
        name = prefix + key
        if name in dropped:
            continue
        if type(value) is dict:
            _unfold(value, f"{name}.", dropped, names, values)
        else:
            names.append(name)
            values.append(value)


def _kinds_of(values: Sequence[Any] | pa.Array) -> set[str]:
    """Return the kinds of some values; for integers, the kind of the largest."""
    if isinstance(values, pa.Array):
        kinds = {OF_ARROW[values.type]} if values.null_count < len(values) else set()
        bounds = pc.min_max(values).as_py() if "integer" in kinds else {}
    else:
        kinds = {OF_PYTHON[kind] for kind in set(map(type, values)) - {type(None)}}
        whole = [value for value in values if type(value) is int] if "integer" in kinds else [0]
        bounds = {"min": min(whole), "max": max(whole)}
    if "integer" in kinds:
        largest = max(bounds["max"], -bounds["min"])
        kinds.add("integer" if largest <= EXACT else "large" if largest < LONGEST else "huge")
    return kinds


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


def _to_array(values: Sequence[Any] | pa.Array, kind: pa.DataType) -> pa.Array:
    """Convert values to their column's type; `""` and NaN become missing, as in validation.

    Raises:
        Unusual: numbers in an Arrow array must become text, for which their original spelling is needed.
    """
    if isinstance(values, pa.Array):
        if pa.types.is_string(kind) and pa.types.is_floating(values.type) and values.null_count < len(values):
            raise Unusual
        return values.cast(kind)
    if pa.types.is_string(kind) and not set(map(type, values)) <= {str, type(None)}:
        values = [v if v is None or isinstance(v, str) else None if v != v else json.dumps(v) for v in values]
    return pa.array(values, kind)
