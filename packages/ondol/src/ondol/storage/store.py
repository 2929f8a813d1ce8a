"""The store of a project: a folder, or a folder that mirrors a remote store; and the lock of who changes it.

Records (JSON) are small: they are read from the folder by their paths, after `refresh` or `look`. Large files are
opened through `fetch`. Whatever is written or removed goes through the `Store`, which keeps the remote copy the same.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ondol.config import Fetch, Settings, is_address, load_settings
from ondol.errors import UserError
from ondol.storage import files
from ondol.storage.files import Rename

if TYPE_CHECKING:
    from ondol.storage.remote import Mirror

WAIT_SECONDS = 2 * 3600.0
POLL_SECONDS = 0.5
P = ParamSpec("P")
R = TypeVar("R")
_held: ContextVar[bool] = ContextVar("project_lock_held", default=False)


@dataclass(frozen=True)
class Store:
    """A store in a folder, or at an address that the folder mirrors.

    All paths that the methods take are paths in `folder`.

    Attributes:
        folder: Where its files are read.
        remote: What keeps the folder and the remote store alike; None where the folder itself is the store.
    """

    folder: Path
    remote: "Mirror | None" = None

    def __post_init__(self) -> None:
        """Refuse a mirror's folder without its remote store: what is written there would reach no other host."""
        if self.remote is None and files.is_mirrored(self.folder):
            raise RuntimeError(f"{self.folder} mirrors a remote store: open it by open_store.")

    def __str__(self) -> str:
        """Return where it is, for messages: the folder or the address."""
        return self.remote.objects.address if self.remote else str(self.folder)

    def refresh(self) -> None:
        """Bring all records up to date: what other hosts wrote, and what they removed.

        Raises:
            UserError: the store cannot be reached.
        """
        if self.remote:
            self.remote.refresh()

    def look(self, path: Path) -> None:
        """Bring one record up to date."""
        if self.remote:
            self.remote.look(path)

    def fetch(self, path: Path) -> Path:
        """Return `path`, its file downloaded first where it is only in the remote store."""
        if self.remote:
            self.remote.fetch(path)
        return path

    def fetch_folder(self, path: Path) -> None:
        """Download all files of a folder again: the local copy is incomplete."""
        if self.remote:
            self.remote.fetch_folder(path)

    def has(self, path: Path) -> bool:
        """Return True if a file is in the store: a local copy of a file that the remote store lacks does not count."""
        return self.remote.has(path) if self.remote else path.exists()

    def sizes(self, folder: Path, pattern: str, until: float = math.inf) -> dict[Path, int]:
        """Return by path, in order, the sizes of a folder's files that match, downloaded or not.

        Args:
            folder: The folder.
            pattern: What the files' names match.
            until: Only files that did not change after it, in seconds since 1970, as far as the store knows.
        """
        if self.remote:
            return self.remote.sizes(folder, pattern, until)
        states = {path: path.stat() for path in sorted(folder.glob(pattern))}
        return {path: state.st_size for path, state in states.items() if state.st_mtime <= until}

    @property
    def _rename(self) -> Rename | None:
        return self.remote.publish if self.remote else None

    def publish(self, made: Path, target: Path) -> None:
        """Move the file or folder at `made` to `target` in one step; see `ondol.storage.files.publish`.

        If the store is remote, it is uploaded first: a file that has its name here is in the remote store.

        Raises:
            UserError: the store cannot be written, or another host changed a record that names others.
        """
        files.publish(made, target, self._rename)

    def write_bytes(self, path: Path, content: bytes) -> None:
        """Replace the file at `path` by `content` in one step."""
        files.write_bytes(path, content, self._rename)

    def write_json(self, path: Path, value: Any) -> None:
        """Replace the file at `path` by `value` as JSON in one step."""
        self.write_bytes(path, files.encode_json(value))

    def remove(self, path: Path) -> None:
        """Remove a file or folder, from the remote store first: what is left here then does not count as published."""
        if self.remote:
            self.remote.remove(path)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def open_store(settings: Settings, place: str | None = None) -> Store:
    """Return a store of the project; nothing is read, made or connected to until it is used.

    Args:
        settings: Those of the project.
        place: Another store than the project's own, as in `[environments]`.
    """
    place = place or settings.store
    folder = settings.folder_of(place)
    return Store(folder, _mirror(folder, place, settings.fetch) if is_address(place) else None)


@cache
def _mirror(folder: Path, address: str, fetch: Fetch) -> "Mirror":
    """Return the mirror of a store, one in a process: connecting its client takes time."""
    from ondol.storage.remote import Mirror, Objects

    return Mirror(folder, Objects(address, fetch))


def exclusive(function: Callable[P, R]) -> Callable[P, R]:
    """Let `function`, the body of a flow, hold the project's lock and begin with the store's current records.

    A run of a worker waits for its turn. A command holds the lock before its flow begins, and does not wait.
    """

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        settings = load_settings()
        with only_one(settings, wait=True):
            open_store(settings).refresh()
            return function(*args, **kwargs)

    return alone


@contextmanager
def only_one(settings: Settings, *, wait: bool) -> Iterator[None]:
    """Hold the project's lock, which the system frees at the end of this process, even if it is killed.

    Raises:
        UserError: another process holds it; with `wait`, for more than two hours.
    """
    if _held.get():
        yield
        return
    path = settings.home / "lock"
    end = time.monotonic() + (WAIT_SECONDS if wait else 0)
    while True:
        with files.locked(path, wait=False) as mine:
            if mine:
                files.sweep(open_store(settings).folder, everywhere=True)
                token = _held.set(True)
                try:
                    yield
                finally:
                    _held.reset(token)
                return
        if time.monotonic() >= end:
            raise UserError(_occupied(path))
        time.sleep(POLL_SECONDS)


def _occupied(path: Path) -> str:
    number = path.read_text(encoding="utf-8")
    return f"Another run of this project is going on (process {number}): wait until it ends."
