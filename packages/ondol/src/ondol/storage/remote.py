"""A store at an address such as `s3://bucket/prefix`, mirrored by a local folder.

Records (JSON) are brought up to date by `refresh`; large files never change, and are downloaded when they are opened.
`.tags.json` has the tag of the object of which each local record is a copy. A record that names others is replaced only
if the object still has that tag: of two hosts that change one at the same time, one is refused.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from ondol.config import Fetch
from ondol.errors import UserError
from ondol.storage.files import CHAMPION_FILE, digest_json, locked, read_json, scratch

T = TypeVar("T")
ANY: Final = "any tag"
CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409")
TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class Object:
    """An object as the store lists it: `tag` changes whenever its bytes do, `modified` is in seconds since 1970."""

    tag: str
    size: int
    modified: float | None


class Changed(UserError):
    """An object is no longer what this host last saw of it."""


class Objects:
    """What lies below `address`, by names relative to it."""

    def __init__(self, address: str, fetch: Fetch) -> None:
        """Name the place; nothing is asked yet."""
        self.address = address.rstrip("/")
        self._fetch = fetch

    def list(self, below: str = "") -> dict[str, Object]:
        """Return all objects whose names begin with the folder `below`, sorted by name."""
        found = self._ask(lambda store: store.find(self._path(below.rstrip("/")), detail=True))
        start = f"{self._base}/"
        files = {n: about for n, about in found.items() if about["type"] == "file" and n.startswith(start)}
        return {name.removeprefix(start): _describe(files[name]) for name in sorted(files)}

    def look(self, name: str) -> Object | None:
        """Return what the store says of an object now, None where there is none."""
        try:
            return self._ask(lambda store: _describe(store.info(self._path(name))), missing=True)
        except FileNotFoundError:
            return None

    def get(self, name: str, path: Path) -> bool:
        """Copy an object to the file at `path`; return whether there is one."""
        try:
            self._ask(lambda store: store.get_file(self._path(name), str(path)), missing=True)
        except FileNotFoundError:
            return False
        return True

    def put(self, name: str, content: bytes, expected: str | None = ANY) -> str:
        """Replace a small object in one step and return its new tag.

        Args:
            name: The object.
            content: Its bytes.
            expected: The tag that it must have now, None if there must be none; default: any.

        Raises:
            Changed: it has another one.
        """
        put = _put_s3 if self._scheme == "s3" else _put
        return self._ask(lambda store: put(store, self._place(store, name), content, expected), doing="written")

    def put_file(self, name: str, path: Path) -> None:
        """Replace an object by the file at `path`."""
        self._ask(lambda store: store.put_file(str(path), self._place(store, name)), doing="written")

    def delete(self, name: str) -> None:
        """Remove an object, unless it is gone."""
        try:
            self._ask(lambda store: store.rm_file(self._path(name)), doing="written", missing=True)
        except FileNotFoundError:
            return

    @cached_property
    def _store(self) -> Any:
        from ondol.storage.remote_files import LIBRARIES, open_filesystem

        known = self._scheme in LIBRARIES
        return open_filesystem(self.address, self._scheme, self._fetch) if known else _open_other(self)

    @cached_property
    def _resolved(self) -> str:
        from ondol.storage.remote_files import refuse_plain, resolve

        refuse_plain(self.address)
        return resolve(self.address)

    @cached_property
    def _base(self) -> str:
        return str(self._store._strip_protocol(self._resolved)).rstrip("/")

    @property
    def _scheme(self) -> str:
        return self.address.partition("://")[0]

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}" if name else self._base

    def _place(self, store: Any, name: str) -> str:
        """Return where an object is written; only what is no object store has folders to be made."""
        path = self._path(name)
        if self._scheme in ("file", "local", "sftp", "ssh", "smb", "hdfs"):
            store.makedirs(path.rpartition("/")[0], exist_ok=True)
        return path

    def _ask(self, ask: Callable[[Any], T], doing: str = "read", missing: bool = False) -> T:
        """Return what `ask` returns of the store, asked again where it fails for a passing reason.

        Raises:
            UserError: all tries failed; with `missing`, FileNotFoundError of an object comes through.
        """
        from ondol.storage.remote_files import with_retries

        store = self._store
        return with_retries(self.address, lambda: ask(store), self._fetch.retries, doing, missing)


def _open_other(objects: Objects) -> Any:
    """Return the file system of any other scheme that fsspec knows.

    Raises:
        UserError: it knows none, or its library is not installed.
    """
    import fsspec

    try:
        return fsspec.filesystem(objects._scheme)
    except (ImportError, ValueError) as error:
        message = f'"{objects.address}" cannot be a store ({error}): use a folder, s3://, gs:// or az://.'
        raise UserError(message) from None


def _describe(about: dict[str, Any]) -> Object:
    from ondol.storage.remote_files import CHECKSUMS

    tag = next((str(about[key]) for key in CHECKSUMS if about.get(key)), None)
    time = next((about[key] for key in TIMES if about.get(key)), None)
    modified = time.timestamp() if isinstance(time, datetime) else time if isinstance(time, int | float) else None
    return Object(tag or digest_json(about), about["size"], modified)


def _put_s3(store: Any, path: str, content: bytes, expected: str | None) -> str:
    """Put an object on the condition that S3 itself checks."""
    bucket, key, _ = store.split_path(path)
    condition = {} if expected == ANY else {"IfMatch": expected} if expected else {"IfNoneMatch": "*"}
    try:
        return str(store.call_s3("put_object", Bucket=bucket, Key=key, Body=content, **condition)["ETag"])
    except OSError as error:
        if not condition or not _is_conflict(error):
            raise
    about = _known(store, path)
    if about is None or store.cat_file(path) != content:  # the same: an earlier try arrived, and its answer was lost
        raise Changed(path)
    return about.tag


def _put(store: Any, path: str, content: bytes, expected: str | None) -> str:
    """Put an object of a store without conditions: it is looked at before, which leaves a moment."""
    about = None if expected == ANY else _known(store, path)
    if expected != ANY and (about.tag if about else None) != expected and store.cat_file(path) != content:
        raise Changed(path)
    store.pipe_file(path, content)
    return _describe(store.info(path)).tag


def _known(store: Any, path: str) -> Object | None:
    try:
        return _describe(store.info(path))
    except FileNotFoundError:
        return None


def _is_conflict(error: OSError) -> bool:
    code = getattr(error.__cause__ or error, "response", {}).get("Error", {}).get("Code")
    return code in CONFLICTS or isinstance(error, FileExistsError)


DECIDING = (CHAMPION_FILE, "loop.json", "snapshots/lines/*.json", "snapshots/mended/*.json", "holdouts/*.json")
LAST = "meta.json"  # uploaded last and removed first: it marks a bundle as complete
LOG = "log"
PASSES = 5
AT_ONCE = 8


class Mirror:
    """A folder, and the objects in a remote store of which its files are copies."""

    def __init__(self, folder: Path, objects: Objects) -> None:
        """Mirror `objects` in `folder`."""
        self.folder = folder
        self.objects = objects

    def refresh(self) -> None:
        """Download the records that changed, and remove those that are gone."""
        with self._alone():
            for _ in range(PASSES):  # a record may be newer than the list of objects, and name what the list lacks
                if not self._bring_changed():
                    return

    def look(self, path: Path) -> None:
        """Download one record if it changed; remove it if it is gone."""
        with self._alone():
            name, tags = self._name(path), self._tags()
            about = self.objects.look(name)
            if about is None:
                path.unlink(missing_ok=True)
            elif tags.get(name) != about.tag or not path.exists():
                self._bring({name: about})
                self._keep(tags | {name: about.tag})

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
        """Remove a file, or a folder; of a bundle the file that marks it as complete first."""
        name = self._name(path)
        names = list(self.objects.list(name)) if path.is_dir() else [name]
        for one in sorted(names, key=lambda n: not n.endswith(f"/{LAST}")):
            self.objects.delete(one)

    def sizes(self, folder: Path, pattern: str, until: float) -> dict[Path, int]:
        """Return the sizes of the files in a folder of the store that match and are not known to be newer."""
        found = self.objects.list(self._name(folder))
        old = {self.folder / n: about.size for n, about in found.items() if (about.modified or 0) <= until}
        return {path: size for path, size in old.items() if path.parent == folder and path.match(pattern)}

    def publish(self, made: Path, target: Path) -> None:
        """Upload the file or folder at `made`, then rename it to `target`.

        So nothing that is not in the store is ever taken for published: the local name comes last.

        Raises:
            UserError: the store cannot be written, or another host changed a record that names others.
        """
        name = self._name(target)
        if is_record(name):
            with self._alone():
                tags = self._tags()
                tag = self._replace(name, made.read_bytes(), tags.get(name))
                made.replace(target)
                self._keep(tags | {name: tag})
            return
        if not made.is_dir():
            self.objects.put_file(name, made)
            made.replace(target)
            return
        for file in sorted(made.iterdir(), key=lambda p: (p.name == LAST, p.name)):
            self.objects.put_file(f"{name}/{file.name}", file)
        with self._alone():
            shutil.rmtree(target, ignore_errors=True)  # its records alone, or it was no longer in the store
            made.replace(target)
            made_now = {n: about.tag for n, about in self.objects.list(name).items() if is_record(n)}
            self._keep(self._tags() | made_now)

    def _replace(self, name: str, content: bytes, tag: str | None) -> str:
        try:
            return self.objects.put(name, content, tag if is_deciding(name) else ANY)
        except Changed:
            place = f"{self.objects.address}/{name}"
            raise UserError(f"{place} was changed by another host in the meantime: run the command again.") from None

    def _bring_changed(self) -> bool:
        """Make the records those of the store; return whether one that names others changed."""
        found = {name: about for name, about in self.objects.list().items() if is_record(name)}
        tags = self._tags()
        changed = {n: o for n, o in found.items() if tags.get(n) != o.tag or not (self.folder / n).exists()}
        self._bring({name: about for name, about in changed.items() if name != CHAMPION_FILE})
        self._bring({name: about for name, about in changed.items() if name == CHAMPION_FILE})
        for name in self._records() - found.keys():
            (self.folder / name).unlink(missing_ok=True)
        if changed or tags.keys() != found.keys():
            self._keep({name: about.tag for name, about in found.items()})
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
            if name == CHAMPION_FILE:
                self._bring_bundle(_bundle_in(made))
            made.replace(path)

    def _bring_bundle(self, bundle: str | None) -> None:
        """Download the rest of the champion's bundle before the file that names it: a service may be waiting."""
        found = self.objects.list(f"bundles/{bundle}") if bundle else {}
        self._bring({name: about for name, about in found.items() if not (self.folder / name).exists()})

    def _records(self) -> set[str]:
        return {name for name in map(self._name, self.folder.rglob("*.json")) if is_record(name)}

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _tags(self) -> dict[str, str]:
        return read_json(self.folder / ".tags.json") or {}

    def _keep(self, tags: dict[str, str]) -> None:
        with scratch(self.folder / ".tags.json") as made:
            made.write_text(json.dumps(tags), encoding="utf-8")
            made.replace(self.folder / ".tags.json")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the folder's records: another process of this host may refresh or write them too."""
        with locked(self.folder / ".lock", wait=True):
            yield


def _bundle_in(champion: Path) -> str | None:
    """Return the bundle that a champion's file names; one that is damaged, which its readers refuse, names none."""
    try:
        return str(json.loads(champion.read_bytes())["bundle"] or "") or None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def is_record(name: str) -> bool:
    """Return True if an object is a small file that is kept up to date."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return name.endswith(".json") and not name.startswith(f"{LOG}/") and not hidden


def is_deciding(name: str) -> bool:
    """Return True if a record names others: it is replaced only if the object is the one that was read."""
    return any(PurePosixPath(name).match(pattern) and name.count("/") == pattern.count("/") for pattern in DECIDING)
