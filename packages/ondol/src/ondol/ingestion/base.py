"""Optional abilities of a source, and the types that values of text are read as."""

from collections.abc import Collection
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc

from ondol.ingestion.sources import Source


@runtime_checkable
class SupportsSince(Protocol):
    """A source that can leave out old rows where they live, as a database can."""

    def since(self, column: str, value: Any) -> Source:
        """Return the source of the rows whose `column` is at or after `value` (a number, text or datetime), or more."""
        ...


@runtime_checkable
class StreamingSource(Protocol):
    """A source that is read on from a position, and never from its start again.

    Attributes:
        position: A JSON-able value: where the rows that were yielded end. It is stored together with the rows.
        key: A JSON-able value: what a position holds in, however it is reached.
    """

    position: Any
    key: Any

    def resume(self, position: Any, full: bool = False) -> None:
        """Begin at `position`; without one at the consumer group's offset, with `full` at the start."""
        ...

    def commit(self, position: Any) -> None:
        """Commit `position` to the source: all rows before it are stored."""
        ...


@runtime_checkable
class MultiFileSource(Protocol):
    """A source of files, of which those that are known can be left out."""

    def files(self) -> dict[str, str] | None:
        """Return by each file's name a SHA-256 that changes whenever its rows may; None if that is unknown."""
        ...

    def without(self, names: Collection[str]) -> Source:
        """Return the source of the other files, which may be without rows."""
        ...


TEXT = pa.string()
LADDERS: dict[str, tuple[pa.DataType, ...]] = {
    "number": (pa.float64(), TEXT),
    "integer": (pa.int64(), pa.float64(), TEXT),
    "boolean": (pa.bool_(), TEXT),
    "date": (pa.timestamp("us"), TEXT),
    "duration": (pa.float64(), TEXT),  # seconds
    "text": (TEXT,),
}
EXACT = 2**53  # integers below survive as float64


def find_fitting(values: pa.Array, kind: str, current: pa.DataType) -> pa.DataType:
    """Return the first type, from `current` on, that holds every value of a text column.

    Args:
        values: Text; null where missing.
        kind: The contract's kind of the column.
        current: A rung of that kind's ladder: stricter ones have failed before.
    """
    ladder = LADDERS[kind]
    for rung in ladder[ladder.index(current) : -1]:
        # In an integer's place, a float64 of 12.0 is fine; 2^60 beside 0.5 would be rounded.
        if _fits(values, rung, exact=kind == "integer" and rung == pa.float64()):
            return rung
    return TEXT


def cast_texts(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return texts as `kind`, as the grammar reads them.

    Raises:
        ArrowInvalid: one is not of that kind, or Arrow may read it in another way.
    """
    made = pc.cast(pc.utf8_trim_whitespace(values), kind)
    if not is_finite(made):
        raise pa.ArrowInvalid("not finite")
    if pa.types.is_integer(kind) and pc.any(pc.match_substring(values, "x", ignore_case=True)).as_py():
        raise pa.ArrowInvalid("hexadecimal")  # Arrow reads 0x10 as 16
    return made


def is_finite(values: pa.Array) -> bool:
    """Return True unless a float is infinite or NaN, which Arrow reads in texts such as `1e400`, `inf` and `NAN`."""
    return not pa.types.is_floating(values.type) or pc.all(pc.is_finite(values)).as_py() is not False


def survives_float(values: pa.Array) -> bool:
    """Return True if integers in text are the same as float64."""
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
