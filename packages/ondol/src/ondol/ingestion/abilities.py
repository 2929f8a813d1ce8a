"""What some sources can do beyond being read whole, so that an ingest reads what is new."""

from collections.abc import Collection
from typing import Any, Protocol, runtime_checkable

from ondol.ingestion.sources import Source


@runtime_checkable
class Narrowing(Protocol):
    """A source that can leave out old rows where they live, as a database can."""

    def since(self, column: str, value: Any) -> Source:
        """Return the source of the rows whose `column` is at or after `value` (a number, text or datetime), or more."""
        ...


@runtime_checkable
class Stream(Protocol):
    """A source that is read on from a position, and never from its start again.

    Attributes:
        position: A JSON-able value: where the rows that were yielded end. Whoever has kept them keeps it too.
        key: A JSON-able value: what a position holds in, however it is reached.
    """

    position: Any
    key: Any

    def resume(self, position: Any, full: bool = False) -> None:
        """Begin at `position`; without one where the group of readers stands, with `full` at the start."""
        ...

    def settle(self, position: Any) -> None:
        """Tell the source that all rows before `position` are safely kept."""
        ...


@runtime_checkable
class Divided(Protocol):
    """A source of files, of which those that are known can be left out."""

    def files(self) -> dict[str, str] | None:
        """Return by each file's name a SHA-256 that changes whenever its rows may; None where that cannot be told."""
        ...

    def without(self, names: Collection[str]) -> Source:
        """Return the source of the other files, which may be without rows."""
        ...
