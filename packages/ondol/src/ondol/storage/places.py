"""Where remote files are: what buckets and web servers have in common."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

CHUNK = 8 << 20
WILD = re.compile(r"[*?[]")


@dataclass(frozen=True)
class RemoteFile:
    """A file as its place lists it.

    Attributes:
        name: Below the folder, or its whole name.
        path: What its place knows it by.
        size: In bytes, where it is told.
        tag: Changes whenever its bytes do; None where the place does not tell.
    """

    name: str
    path: str
    size: int | None
    tag: str | None


class Place(Protocol):
    """Where files are listed and read; the libraries' errors come through, see `faults`."""

    def find(self) -> list[RemoteFile]:
        """Return the files, sorted."""
        ...

    def look(self, file: RemoteFile) -> RemoteFile:
        """Return what the place says of `file` now."""
        ...

    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]:
        """Return from where on the bytes come, `start` or 0, and the bytes."""
        ...


def choose(names: Iterable[str]) -> list[str]:
    """Return those of some paths that hold data, without hidden ones and those such as _SUCCESS, sorted by bytes."""
    kept = {name for name in names if not any(part.startswith((".", "_")) for part in name.split("/"))}
    return sorted(kept, key=str.encode)
