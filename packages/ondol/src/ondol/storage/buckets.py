"""Buckets of object stores (s3, gs, az) through fsspec; each library finds its credentials as it always does."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import fsspec

from ondol.config.data import Fetch
from ondol.storage.addresses import require_library
from ondol.storage.places import CHUNK, WILD, RemoteFile, choose

LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
CHECKSUMS = ("ETag", "etag", "md5Hash", "content_md5")


class Bucket:
    """A file, all files below a prefix, or those that a pattern matches, in an object store."""

    def __init__(self, uri: str, resolved: str, fetch: Fetch) -> None:
        """Name the place; nothing is asked yet.

        Raises:
            UserError: the store's library is not installed.
        """
        scheme, _, path = resolved.partition("://")
        require_library(LIBRARIES[scheme], LIBRARIES[scheme], uri)
        self._uri = uri
        self._path = path.rstrip("/")
        self._scheme = scheme
        self._fetch = fetch

    def find(self) -> list[RemoteFile]:
        """Return the files, sorted; see `Place`."""
        store = self._store
        if WILD.search(self._path) and not store.exists(self._path):
            base = self._path[: WILD.search(self._path).start()].rpartition("/")[0]  # type: ignore[union-attr]
            found = store.glob(self._path, detail=True)
        else:
            about = store.info(self._path)
            if about["type"] == "file":
                return [_describe(self._path.rpartition("/")[2], about)]
            base, found = self._path, store.find(self._path, detail=True)
        below = {path.removeprefix(f"{base}/"): about for path, about in found.items() if about["type"] == "file"}
        return [_describe(name, below[name]) for name in choose(below)]

    def look(self, file: RemoteFile) -> RemoteFile:
        """Ask for a file again; see `Place`."""
        return _describe(file.name, self._store.info(file.path))

    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]:
        """Read a file, a range of it at a time; see `Place`."""
        return start, self._stream(file, start)

    def _stream(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        with self._store.open(file.path, "rb", cache_type="none", block_size=CHUNK) as stream:
            stream.seek(start)
            while chunk := stream.read(CHUNK):
                yield chunk

    @cached_property
    def _store(self) -> Any:
        return open_filesystem(self._uri, self._scheme, self._fetch)


def open_filesystem(uri: str, scheme: str, fetch: Fetch) -> Any:
    """Return a file system that keeps nothing in mind, and leaves trying again to its caller.

    Raises:
        UserError: its library is not installed.
    """
    require_library(LIBRARIES[scheme], LIBRARIES[scheme], uri)
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        seconds = fetch.timeout_seconds
        options["config_kwargs"] = {
            "connect_timeout": seconds,
            "read_timeout": seconds,
            "retries": {"total_max_attempts": 1},
        }
    store = fsspec.filesystem(scheme, **options)
    if scheme == "s3":
        store.retries = 1
    return store


def _describe(name: str, about: dict[str, Any]) -> RemoteFile:
    tag = next((str(about[key]) for key in CHECKSUMS if about.get(key)), None)
    return RemoteFile(name, about["name"], about["size"], tag)
