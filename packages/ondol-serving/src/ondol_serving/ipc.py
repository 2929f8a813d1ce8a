"""Reads the messages of a stream of Arrow's IPC format: their headers, and the buffers of their columns.

nanoarrow reads such streams, too, but damaged ones end its process. Here every place is checked against the body, and
nothing is allocated for what the body does not hold. Headers are FlatBuffers, described by `Message.fbs` and
`Schema.fbs`: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CONTINUES = 0xFFFFFFFF
SCHEMA, DICTIONARY, BATCH = 1, 2, 3  # kinds of a message
NULL, INT, FLOAT, UTF8, BOOL, DATE, TIMESTAMP, DURATION, LARGE_UTF8 = 1, 2, 3, 5, 6, 8, 10, 18, 20  # types of a field
BUFFERS = {1: 0, 4: 3, 5: 3, 19: 3, 20: 3} | dict.fromkeys(
    (2, 3, 6, 7, 8, 9, 10, 11, 15, 18), 2
)  # of each type with a fixed layout
UNITS = (1, 1_000, 1_000_000, 1_000_000_000)  # in a second


class InvalidStream(Exception):
    """The stream cannot be read. The message is a sentence without a full stop."""


def unpack(form: str, body: bytes, place: int) -> tuple[int, ...]:
    """Return the numbers at a place.

    Raises:
        InvalidStream: it is outside of the body.
    """
    if not 0 <= place <= len(body) - struct.calcsize(form):
        raise InvalidStream("a message is incomplete")
    return struct.unpack_from(form, body, place)


class Table:
    """A table of a FlatBuffer, whose fields are found by their numbers."""

    def __init__(self, body: bytes, place: int) -> None:
        """Open the table at `place`."""
        self._body, self._place = body, place
        self._fields = place - self._unpack("<i", place)
        self._size = self._unpack("<H", self._fields)

    def _unpack(self, form: str, place: int) -> int:
        return unpack(form, self._body, place)[0]

    def _find(self, field: int) -> int | None:
        """Return the place of a field's value, None if the table does not have it."""
        entry = 4 + 2 * field
        offset = self._unpack("<H", self._fields + entry) if entry < self._size else 0
        return self._place + offset if offset else None

    def number(self, field: int, form: str, *, default: int = 0) -> int:
        """Return a number."""
        place = self._find(field)
        return default if place is None else self._unpack(form, place)

    def table(self, field: int) -> "Table | None":
        """Return an inner table, None if it is not there."""
        place = self._find(field)
        return None if place is None else Table(self._body, place + self._unpack("<I", place))

    def vector(self, field: int) -> tuple[int, int]:
        """Return the place of the first element of a vector, and their number."""
        place = self._find(field)
        if place is None:
            return 0, 0
        start = place + self._unpack("<I", place)
        return start + 4, self._unpack("<I", start)

    def text(self, field: int) -> str:
        """Return a text, empty if it is not there."""
        start, size = self.vector(field)
        return self._body[start : start + size].decode()

    def tables(self, field: int, most: int) -> "Iterator[Table]":
        """Yield the tables of a vector, of which there may be at most `most`."""
        start, size = self.vector(field)
        if size > most:
            raise InvalidStream(f"it has {size} columns, and at most {most} are read")
        for place in range(start, start + 4 * size, 4):
            yield Table(self._body, place + self._unpack("<I", place))

    def pair(self, field: int, number: int) -> tuple[int, int]:
        """Return an element of a vector of pairs of 64-bit numbers."""
        start, size = self.vector(field)
        if number >= size:
            raise InvalidStream("a batch has too few columns")
        first, second = unpack("<qq", self._body, start + 16 * number)
        return first, second


@dataclass(frozen=True)
class Type:
    """The type of a column.

    Attributes:
        kind: Its number in `Schema.fbs`.
        numbers: The dtype of its numbers or offsets; None if this service does not read it.
        per_second: The resolution of a timestamp or a duration; 0 for a date in days.
    """

    kind: int
    numbers: Any = None
    per_second: int = 0


class Field(NamedTuple):
    """A column of a schema; with a dictionary, its `type` is that of the dictionary's values."""

    name: str
    type: Type
    dictionary: int | None = None
    indexes: Type | None = None


@dataclass
class Batch:
    """The columns of a batch or the values of a dictionary, which are read in their order."""

    body: bytes
    header: Table
    start: int
    size: int
    _node: int = 0
    _buffer: int = 0

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return self.header.number(0, "<q")

    def read_node(self, rows: int) -> int:
        """Return the number of missing values of the next column.

        Raises:
            InvalidStream: it does not have `rows` rows.
        """
        length, missing = self.header.pair(1, self._node)
        self._node += 1
        if length != rows:
            raise InvalidStream("a column has another length than its table")
        return missing

    def read_buffer(self) -> NDArray[np.uint8]:
        """Return the next buffer."""
        offset, length = self.header.pair(2, self._buffer)
        self._buffer += 1
        if offset < 0 or length < 0 or offset + length > self.size:
            raise InvalidStream("a buffer is outside of its message")
        return np.frombuffer(self.body, np.uint8, length, self.start + offset)

    def skip(self, field: Field) -> None:
        """Skip the next column."""
        self._node += 1
        self._buffer += 2 if field.dictionary is not None else BUFFERS[field.type.kind]


def read_messages(body: bytes, most: int) -> Iterator[list[Field] | tuple[int, bool, Batch] | Batch]:
    """Yield the schema, then dictionaries (their number, whether they continue an earlier one, values) and batches.

    Args:
        body: A stream.
        most: The largest number of columns.

    Raises:
        InvalidStream: it is not one, or is compressed, or has nested columns.
    """
    place = 0
    while place < len(body):
        marker, size = unpack("<Ii", body, place)
        if marker != CONTINUES or size < 0:
            raise InvalidStream("a message does not begin with its mark and length")
        if size == 0:  # the end of the stream
            return
        message = Table(body, place + 8 + unpack("<I", body, place + 8)[0])
        kind, content, length = message.number(1, "<B"), message.table(2), message.number(3, "<q")
        start = place + 8 + size
        if content is None or length < 0 or start + length > len(body):
            raise InvalidStream("a message is incomplete")
        if kind == SCHEMA:
            if content.number(0, "<h"):
                raise InvalidStream("its numbers are big-endian")
            yield [_read_field(field) for field in content.tables(1, most)]
        elif kind == DICTIONARY:
            values = content.table(1)
            if values is None:
                raise InvalidStream("a dictionary is empty")
            yield content.number(0, "<q"), bool(content.number(2, "<B")), _open(body, values, start, length)
        elif kind == BATCH:
            yield _open(body, content, start, length)
        place = start + length


def _open(body: bytes, header: Table, start: int, size: int) -> Batch:
    if header.table(3) is not None:
        raise InvalidStream("it is compressed, and only streams without compression are read")
    if header.number(0, "<q") < 0:
        raise InvalidStream("a batch has a negative length")
    return Batch(body, header, start, size)


def _read_field(field: Table) -> Field:
    name, made = field.text(0), _read_type(field.number(2, "<B"), field.table(3))
    if made.kind not in BUFFERS:
        raise InvalidStream(f"the column {name[:200]!r} is nested or has a type without a fixed layout: leave it out")
    dictionary = field.table(4)
    if dictionary is None:
        return Field(name, made)
    indexes = dictionary.table(1)
    places = Type(INT, np.dtype("<i4")) if indexes is None else _read_type(INT, indexes)
    if places.numbers is None:
        raise InvalidStream(f"the dictionary of {name[:200]!r} has indexes that are not of 8 to 64 bits")
    return Field(name, made, dictionary.number(0, "<q"), places)


def _read_type(kind: int, about: Table | None) -> Type:
    if about is None:
        raise InvalidStream("a column has no type")
    if kind == INT:
        bits, sign = about.number(0, "<i"), "i" if about.number(1, "<B") else "u"
        return Type(kind, np.dtype(f"<{sign}{bits // 8}") if bits in (8, 16, 32, 64) else None)
    if kind == FLOAT:
        return Type(kind, np.dtype(f"<f{2 << min(max(about.number(0, '<h'), 0), 2)}"))
    if kind in (UTF8, LARGE_UTF8):
        return Type(kind, np.dtype("<i4" if kind == UTF8 else "<i8"))
    if kind == DATE:
        in_days = about.number(0, "<h", default=1) == 0
        return Type(kind, np.dtype("<i4")) if in_days else Type(kind, np.dtype("<i8"), UNITS[1])
    if kind in (TIMESTAMP, DURATION):
        unit = about.number(0, "<h", default=1 if kind == DURATION else 0)
        return Type(kind, np.dtype("<i8"), UNITS[unit]) if 0 <= unit < len(UNITS) else Type(kind)
    return Type(kind, np.dtype("?") if kind in (BOOL, NULL) else None)
