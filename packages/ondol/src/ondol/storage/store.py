"""The store of a project: a folder, or a folder that mirrors a remote store; and the project's lock.

Records (JSON) are small: they are read from the folder by their paths, after `refresh` or `look`. Large files are
opened through `fetch`. All files are written and removed through the `Store`, which keeps the remote copy in sync.

A store at an address such as `s3://bucket/prefix` is mirrored by a local folder. Records are brought up to date by
`refresh`; large files never change, and are downloaded when they are opened. `.tags.json` has the tag of the remote
object for each local record. A record that refers to others is replaced only if the object still has that tag: if two
hosts change it at the same time, one is refused.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import cache, wraps
from pathlib import Path, PurePosixPath
from typing import Any, ParamSpec, TypeVar

from ondol.config import Fetch, Settings, is_address, load_settings
from ondol.errors import UserError
from ondol.storage import files
from ondol.storage.files import CHAMPION_FILE, KEYS_FILE, ROLLOUT_FILE, Rename, locked, read_json, scratch
from ondol.storage.remote_files import ANY_TAG, Changed, Object, Objects

WAIT_SECONDS = 2 * 3600.0
POLL_SECONDS = 0.5
DECIDING = (
    CHAMPION_FILE,
    KEYS_FILE,
    ROLLOUT_FILE,
    "loop.json",
    "rollouts/*.json",
    "snapshots/lines/*.json",
    "snapshots/mended/*.json",
    "holdouts/*.json",
)
NAMING_BUNDLES = (CHAMPION_FILE, ROLLOUT_FILE)  # downloaded after the bundle that they name
LAST = "meta.json"  # uploaded last and removed first, so it marks a bundle as complete
LOG = "log"
SKEW_SECONDS = 300.0  # seconds by which the clock of another host or of a remote store may differ from ours
PASSES = 5
AT_ONCE = 8
P = ParamSpec("P")
R = TypeVar("R")
_held: ContextVar[bool] = ContextVar("project_lock_held", default=False)


@dataclass(frozen=True)
class Store:
    """A store in a folder, or at an address that the folder mirrors.

    All paths that the methods take are paths in `folder`.

    Attributes:
        folder: The folder from which its files are read.
        remote: The mirror that keeps the folder and the remote store in sync; None if the folder is the store.
    """

    folder: Path
    remote: "Mirror | None" = None

    def __post_init__(self) -> None:
        """Refuse a mirror's folder without its remote store: files written there would not reach other hosts."""
        if self.remote is None and files.is_mirrored(self.folder):
            raise RuntimeError(f"{self.folder} mirrors a remote store: open it by open_store.")

    def __str__(self) -> str:
        """Return its location for messages: the folder or the address."""
        return self.remote.objects.address if self.remote else str(self.folder)

    def refresh(self) -> None:
        """Bring all records up to date with the changes of other hosts.

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
        """Return `path`; download the file first if it is only in the remote store."""
        if self.remote:
            self.remote.fetch(path)
        return path

    def fetch_folder(self, path: Path) -> None:
        """Download all files of a folder again: the local copy is incomplete."""
        if self.remote:
            self.remote.fetch_folder(path)

    def has(self, path: Path) -> bool:
        """Return True if a file is in the store; a local copy without a remote file does not count."""
        return self.remote.has(path) if self.remote else path.exists()

    def sizes(self, folder: Path, pattern: str, until: float = math.inf) -> dict[Path, int]:
        """Return the sizes of a folder's matching files by path, in order, downloaded or not.

        Args:
            folder: The folder.
            pattern: The pattern of file names.
            until: Only files that did not change after this time, in seconds since 1970, as far as the store knows.
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

        If the store is remote, it is uploaded first: so a file with its final name here is in the remote store.

        Raises:
            UserError: the store cannot be written, or another host changed a record that refers to others.
        """
        files.publish(made, target, self._rename)

    def write_bytes(self, path: Path, content: bytes) -> None:
        """Replace the file at `path` by `content` in one step."""
        files.write_bytes(path, content, self._rename)

    def write_json(self, path: Path, value: Any) -> None:
        """Replace the file at `path` by `value` as JSON in one step."""
        self.write_bytes(path, files.encode_json(value))

    def remove(self, path: Path) -> None:
        """Remove a file or folder, from the remote store first: a remaining local copy does not count as published."""
        if self.remote:
            self.remote.remove(path)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def open_store(settings: Settings, place: str | None = None) -> Store:
    """Return a store of the project; nothing is read, created or connected until it is used.

    Args:
        settings: Those of the project.
        place: A store other than the project's own, as in `[environments]`.
    """
    place = place or settings.store
    folder = settings.folder_of(place)
    return Store(folder, _mirror(folder, place, settings.fetch) if is_address(place) else None)


class Mirror:
    """A folder whose files are copies of the objects in a remote store."""

    def __init__(self, folder: Path, objects: Objects) -> None:
        """Mirror `objects` in `folder`."""
        self.folder = folder
        self.objects = objects

    def refresh(self) -> None:
        """Download the changed records, and remove deleted ones."""
        with self._mirror_lock():
            # A record may be newer than the list of objects, and refer to objects that the list lacks.
            for _ in range(PASSES):
                if not self._bring_changed():
                    return

    def look(self, path: Path) -> None:
        """Download one record if it changed; remove it if it was deleted."""
        with self._mirror_lock():
            name, tags = self._name(path), self._tags()
            about = self.objects.look(name)
            if about is None:
                path.unlink(missing_ok=True)
            elif tags.get(name) != about.tag or not path.exists():
                self._bring({name: about})
                self._write_tags(tags | {name: about.tag})

    def fetch(self, path: Path) -> None:
        """Download a file, which never changes, unless it is here."""
        if not path.exists():
            self.bring(self._name(path))

    def fetch_folder(self, path: Path) -> None:
        """Download all files of a folder again: the local copy is incomplete."""
        found = self.objects.list(self._name(path))
        self._bring(found)
        if not found:
            shutil.rmtree(path, ignore_errors=True)

    def has(self, path: Path) -> bool:
        """Return True if a file is in the store."""
        return self.objects.look(self._name(path)) is not None

    def remove(self, path: Path) -> None:
        """Remove a file or a folder; for a bundle, first the file that marks it as complete."""
        name = self._name(path)
        names = list(self.objects.list(name)) if path.is_dir() else [name]
        for one in sorted(names, key=lambda n: not n.endswith(f"/{LAST}")):
            self.objects.delete(one)

    def sizes(self, folder: Path, pattern: str, until: float) -> dict[Path, int]:
        """Return the sizes of the matching files in a folder of the store that are not known to be newer."""
        found = self.objects.list(self._name(folder))
        old = {self.folder / n: about.size for n, about in found.items() if (about.modified or 0) <= until}
        return {path: size for path, size in old.items() if path.parent == folder and path.match(pattern)}

    def publish(self, made: Path, target: Path) -> None:
        """Upload the file or folder at `made`, then rename it to `target`.

        The local name comes last, so a file that is not in the store never counts as published.

        Raises:
            UserError: the store cannot be written, or another host changed a record that refers to others.
        """
        name = self._name(target)
        if is_record(name):
            with self._mirror_lock():
                tags = self._tags()
                tag = self._replace(name, made.read_bytes(), tags.get(name))
                made.replace(target)
                self._write_tags(tags | {name: tag})
            return
        if not made.is_dir():
            self.objects.put_file(name, made)
            made.replace(target)
            return
        for file in sorted(made.iterdir(), key=lambda p: (p.name == LAST, p.name)):
            self.objects.put_file(f"{name}/{file.name}", file)
        with self._mirror_lock():
            shutil.rmtree(target, ignore_errors=True)  # only its records, or it was no longer in the store
            made.replace(target)
            made_now = {n: about.tag for n, about in self.objects.list(name).items() if is_record(n)}
            self._write_tags(self._tags() | made_now)

    def _replace(self, name: str, content: bytes, tag: str | None) -> str:
        try:
            return self.objects.put(name, content, tag if is_deciding(name) else ANY_TAG)
        except Changed:
            place = f"{self.objects.address}/{name}"
            raise UserError(f"{place} was changed by another host in the meantime: run the command again.") from None

    def _bring_changed(self) -> bool:
        """Download changed records; return whether one that refers to others changed."""
        found = {name: about for name, about in self.objects.list().items() if is_record(name)}
        tags = self._tags()
        changed = {n: o for n, o in found.items() if tags.get(n) != o.tag or not (self.folder / n).exists()}
        self._bring({name: about for name, about in changed.items() if name not in NAMING_BUNDLES})
        self._bring({name: about for name, about in changed.items() if name in NAMING_BUNDLES})
        for name in self._records() - found.keys():
            (self.folder / name).unlink(missing_ok=True)
        if changed or tags.keys() != found.keys():
            self._write_tags({name: about.tag for name, about in found.items()})
        return any(map(is_deciding, changed))

    def _bring(self, objects: dict[str, Object]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self.bring, objects, objects.values()))

    def bring(self, name: str, about: Object | None = None) -> None:
        """Download an object, with the time of its last change; do nothing if there is none."""
        path = self.folder / name
        with scratch(path) as made:
            if not self.objects.get(name, made):
                return
            if about and about.modified:
                os.utime(made, (about.modified, about.modified))
            if name in NAMING_BUNDLES:
                self._bring_bundle(_bundle_in(made))
            made.replace(path)

    def _bring_bundle(self, bundle: str | None) -> None:
        """Download the rest of a bundle before the file that names it: a service may be waiting."""
        found = self.objects.list(f"bundles/{bundle}") if bundle else {}
        self._bring({name: about for name, about in found.items() if not (self.folder / name).exists()})

    def _records(self) -> set[str]:
        return {name for name in map(self._name, self.folder.rglob("*.json")) if is_record(name)}

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _tags(self) -> dict[str, str]:
        return read_json(self.folder / ".tags.json") or {}

    def _write_tags(self, tags: dict[str, str]) -> None:
        with scratch(self.folder / ".tags.json") as made:
            made.write_text(json.dumps(tags), encoding="utf-8")
            made.replace(self.folder / ".tags.json")

    @contextmanager
    def _mirror_lock(self) -> Iterator[None]:
        """Hold the lock of the folder's records: another process of this host may refresh or write them too."""
        with locked(self.folder / ".lock", wait=True):
            yield


def fetch_log(store: Store, since: datetime) -> None:
    """Download new log data of services on other hosts, if the store is remote.

    Raises:
        UserError: it cannot be reached.
    """
    mirror = store.remote
    if mirror is None:
        return
    found = mirror.objects.list(LOG)
    start = since.timestamp() - SKEW_SECONDS
    for name, about in found.items():
        here = mirror.folder / name
        if (about.modified or start) >= start and (not here.exists() or here.stat().st_size < about.size):
            mirror.bring(name, about)
    for path in sorted((mirror.folder / LOG).glob("*.jsonl")):
        if found and f"{LOG}/{path.name}" < min(found):  # the oldest are removed first: it was removed there
            path.unlink(missing_ok=True)


def _bundle_in(record: Path) -> str | None:
    """Return the bundle in the file of a champion or a rollout; None if it is damaged: its readers report that."""
    try:
        return str(json.loads(record.read_bytes())["bundle"] or "") or None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def is_record(name: str) -> bool:
    """Return True if an object is a record: a small file that is kept up to date."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return name.endswith(".json") and not name.startswith(f"{LOG}/") and not hidden


def is_deciding(name: str) -> bool:
    """Return True if a record refers to others: it is replaced only if the object is unchanged since it was read."""
    return any(PurePosixPath(name).match(pattern) and name.count("/") == pattern.count("/") for pattern in DECIDING)


@cache
def _mirror(folder: Path, address: str, fetch: Fetch) -> Mirror:
    """Return the mirror of a store, cached in the process, because connecting takes time."""
    return Mirror(folder, Objects(address, fetch))


def exclusive(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap `function`, the body of a flow, so that it holds the project's lock and starts with current records.

    A run of a worker waits for the lock. A command acquires it before its flow begins, and does not wait.
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
    """Hold the project's lock, which the system releases when this process ends, even if it is killed.

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
    return f"Another run of this project is in progress (process {number}): wait until it ends."
