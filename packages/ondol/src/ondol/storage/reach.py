"""Which folders mirror a remote store: what is written there is uploaded too.

What reads or writes a project's store calls `open_store` first: a command in `open_project`, a flow as it begins.
"""

import math
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from ondol.config import HOME, MIRRORS, Settings, is_address


class Elsewhere(Protocol):
    """The other side of a folder; see `ondol.storage.remote.Mirror`."""

    def uploading(self, made: Path, target: Path) -> AbstractContextManager[None]:
        """Upload what is to be at `target`; the block puts it there."""
        ...

    def refresh(self) -> None:
        """Bring all small files."""
        ...

    def look(self, path: Path) -> None:
        """Bring one small file, where it changed."""
        ...

    def fetch(self, path: Path) -> None:
        """Bring one file, where it is not here."""
        ...

    def fetch_folder(self, path: Path) -> None:
        """Download all files of a folder again."""
        ...

    def has(self, path: Path) -> bool:
        """Return True if a file is there."""
        ...

    def drop(self, path: Path) -> None:
        """Remove a file, or a folder with its files."""
        ...

    def sizes(self, folder: Path, pattern: str, until: float) -> dict[Path, int]:
        """Return the sizes of a folder's files that match and did not change after `until`."""
        ...


_attached: dict[Path, Elsewhere] = {}


def open_store(settings: Settings, store: str | None = None) -> Path:
    """Open a store for this process; nothing is asked or made yet.

    Args:
        settings: Those of the project.
        store: Another store than the project's own, as in `[environments]`.

    Returns:
        The store's folder, or the one that mirrors it.
    """
    place = store or settings.store
    folder = settings.folder_of(place)
    if is_address(place) and folder not in _attached:
        from ondol.storage.objects import Objects
        from ondol.storage.remote import Mirror

        _attached[folder] = Mirror(folder, Objects(place, settings.fetch))
    return folder


def elsewhere_of(path: Path) -> Elsewhere | None:
    """Return what the folder `path`, or one above it, mirrors, or None.

    Raises:
        RuntimeError: it mirrors a store that was not opened: what is written there would reach no other host.
    """
    for folder in (path, *path.parents):
        if folder in _attached:
            return _attached[folder]
        if folder.parts[-3:-1] == (HOME, MIRRORS):
            raise RuntimeError(f"{folder} mirrors a store that was not opened: call open_store first.")
    return None


@contextmanager
def uploading(made: Path, target: Path) -> Iterator[None]:
    """Upload what is at `made`, where `target` is mirrored; the block then renames it.

    So nothing that is not there is ever taken for published: the local name comes last.
    """
    found = elsewhere_of(target)
    if found is None:
        yield
        return
    with found.uploading(made, target):
        yield


def refresh(store: Path) -> None:
    """Bring the records of a mirrored store up to date: what other hosts wrote, and what they removed.

    Raises:
        UserError: the store cannot be reached.
    """
    if found := elsewhere_of(store):
        found.refresh()


def look_again(path: Path) -> None:
    """Bring one record of a mirrored store up to date."""
    if found := elsewhere_of(path):
        found.look(path)


def fetch(path: Path) -> Path:
    """Return `path`, its file brought here first where it is elsewhere only."""
    if found := elsewhere_of(path):
        found.fetch(path)
    return path


def fetch_folder(path: Path) -> None:
    """Download all files of a folder again, where it is mirrored."""
    if found := elsewhere_of(path):
        found.fetch_folder(path)


def is_published(path: Path) -> bool:
    """Return True if a file is in the store: where that is elsewhere, what is here only does not count."""
    found = elsewhere_of(path)
    return found.has(path) if found else path.exists()


def remove(path: Path) -> None:
    """Remove a file or folder of a store, elsewhere first: what is left here then is never taken for published."""
    if found := elsewhere_of(path):
        found.drop(path)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sizes(folder: Path, pattern: str, until: float = math.inf) -> dict[Path, int]:
    """Return by path, in order, the sizes of a folder's files that match, those that are elsewhere only too.

    Args:
        folder: The folder.
        pattern: What the files' names match.
        until: Only files that did not change after it, in seconds since 1970, as far as the store tells.
    """
    if found := elsewhere_of(folder):
        return found.sizes(folder, pattern, until)
    states = {path: path.stat() for path in sorted(folder.glob(pattern))}
    return {path: state.st_size for path, state in states.items() if state.st_mtime <= until}
