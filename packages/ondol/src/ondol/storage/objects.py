"""The objects below an address of an object store, through fsspec."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

from ondol.config import Fetch
from ondol.errors import UserError
from ondol.storage.files import digest_json

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
