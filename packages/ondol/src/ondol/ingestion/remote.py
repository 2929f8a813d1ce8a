"""Remote files as sources: `s3://`, `gs://`, `az://` (a file, a folder, a pattern), `https://` and `http://` (a file).

They are copied to a temporary folder under `.ml/cache`, read there by the local readers, and then removed.
"""

import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urldefrag, urlsplit

import fsspec

from ondol.config import Dialect, Fetch
from ondol.errors import UserError
from ondol.ingestion.files import NoRows, RawFile, open_table, sign
from ondol.ingestion.many import open_parts
from ondol.ingestion.sources import Reading, Retyped, Source
from ondol.orchestration.reporting import Ticker
from ondol.redaction import leads_elsewhere, redact
from ondol.storage.files import scratch
from ondol.storage.remote_files import CHUNK, Bucket, Cut, Place, RemoteFile, require_library, resolve, with_retries

if TYPE_CHECKING:
    import pyarrow as pa

PLAIN = {"accept", "accept-language", "user-agent"}  # headers that hold no secret


class WebFile:
    """One file of a web server; request headers follow `#`, as in `#header=Authorization: Bearer ${TOKEN}`."""

    def __init__(self, uri: str, resolved: str, fetch: Fetch) -> None:
        """Store the address; no request is sent yet.

        Raises:
            UserError: what follows `#` is not a header.
        """
        require_library("aiohttp", "aiohttp", uri)
        self._uri = uri
        self._url, fragment = urldefrag(resolved)
        self._headers = parse_headers(uri, fragment)
        self._secret = bool({name.lower() for name in self._headers} - PLAIN) or "@" in urlsplit(self._url).netloc
        self._fetch = fetch

    def find(self) -> list[RemoteFile]:
        """Return the one file; see `Place`."""
        name = self._url.partition("?")[0].rpartition("/")[2]
        return [self.look(RemoteFile(name, self._url, None, None))]

    def look(self, file: RemoteFile) -> RemoteFile:
        """Request the file's metadata again; see `Place`."""
        with closing(self._open({})) as stream:
            headers = stream.r.headers
        tag = headers.get("ETag")
        size = int(headers["Content-Length"]) if headers.get("Content-Length", "").isdecimal() else None
        return RemoteFile(file.name, file.path, size, None if tag is None or tag.startswith("W/") else tag)

    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]:
        """Read the file, from `start` if the server supports it and the file is unchanged; see `Place`."""
        ranged = {"Range": f"bytes={start}-", "If-Range": file.tag} if start and file.tag else {}
        stream = self._open(ranged)
        return start if stream.r.status == 206 else 0, _drain(stream)

    def _open(self, more: dict[str, str]) -> Any:
        import aiohttp

        seconds = self._fetch.timeout_seconds
        limits = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
        client = {"trust_env": True, "auto_decompress": False, "timeout": limits, "middlewares": (self._send,)}
        web = fsspec.filesystem("https", skip_instance_cache=True, client_kwargs=client, encoded=True)
        return web.open(self._url, block_size=0, size=1, headers={"Accept-Encoding": "identity"} | more)

    async def _send(self, request: Any, handler: Any) -> Any:
        """Send one request, the first one or a redirected one.

        The headers of `#header=` are added here, so that only the named place gets them, and so that they override
        ~/.netrc.

        Raises:
            UserError: the redirect leads to another host, and there are headers, a password or another secret.
        """
        if leads_elsewhere(self._url, str(request.url)):
            if self._secret or redact(str(request.url)) != str(request.url):
                place = request.url.host_port_subcomponent
                raise UserError(
                    f'"{self._uri}" leads to another place ({place}), to which its secrets are not sent: write that '
                    "address, if it is to be trusted."
                )
            request.headers.popall("Authorization", None)  # ~/.netrc may have a login for every host
        request.headers.update(self._headers)
        return await handler(request)


def parse_headers(uri: str, fragment: str) -> dict[str, str]:
    """Parse the headers in the part of an address after `#`.

    Raises:
        UserError: it has another key.
    """
    headers = {}
    for key, text in parse_qsl(fragment, keep_blank_values=True):
        name, colon, value = text.partition(":")
        if key != "header" or not colon or not name.strip():
            raise UserError(f'"{uri}" has "{key}" after #: write headers as #header=Authorization: Bearer ${{TOKEN}}.')
        headers[name.strip()] = value.strip()
    return headers


def _drain(stream: Any) -> Iterator[bytes]:
    """Yield the bytes of a response, and close it."""
    expected = int(stream.r.headers.get("Content-Length", -1))
    with closing(stream):
        while chunk := stream.read(CHUNK):
            expected -= len(chunk) if expected >= 0 else 0
            yield chunk
    if expected > 0:
        raise Cut


T = TypeVar("T")


class RemoteSource:
    """The files at a remote address; see the module."""

    def __init__(self, uri: str, place: Place, reading: Reading, some: Sequence[RemoteFile] | None = None) -> None:
        """List the files, or use `some` of them, which may have no rows.

        Raises:
            UserError: the server cannot be reached, or has no such file.
        """
        self.uri = uri
        self._place = place
        self._reading = reading
        self._partial = some is not None
        self._files = self._retry(place.find) if some is None else some
        if not self._files:
            raise UserError(f'"{uri}" names no file: check the address, or the pattern.')
        self._copies = ExitStack()
        self._table: Source | None = None
        weakref.finalize(self, self._copies.close)

    @property
    def typed(self) -> bool:
        """Whether the files' formats have types."""
        return bool(getattr(self._open(), "typed", True))

    @property
    def dialect(self) -> Dialect | None:
        """The dialect of delimited text; see `ondol.ingestion.many`."""
        return getattr(self._open(), "dialect", None)

    @property
    def schema(self) -> "pa.Schema":
        """Names and types; this copies the files here."""
        return self._open().schema

    def fingerprint(self) -> str | None:
        """Return the SHA-256 of the files' tags, or None if the server returns no tags."""
        if any(file.tag is None for file in self._files):
            return None
        reading = self._reading
        tags = [[file.name, file.size, file.tag] for file in self._files]
        return sign(tags, reading.columns, reading.dialect)

    def files(self) -> dict[str, str] | None:
        """Return a SHA-256 of the tag of each file; see `ondol.ingestion.sources.MultiFileSource`."""
        reading = self._reading
        tags = {
            file.name: file.tag and sign([file.size, file.tag], reading.columns, reading.dialect)
            for file in self._files
        }
        known = {name: tag for name, tag in tags.items() if tag is not None}
        return known if len(known) == len(tags) else None

    def without(self, names: Collection[str]) -> "RemoteSource":
        """Return the source of the other files."""
        rest = [file for file in self._files if file.name not in names]
        return RemoteSource(self.uri, self._place, self._reading, rest)

    def batches(self) -> "Iterator[pa.RecordBatch]":
        """Yield the rows; see `ondol.ingestion.sources.Source`."""
        keep = False
        try:
            yield from self._open().batches()
        except NoRows:
            if not self._partial:
                raise
        except Retyped:  # the inferred types are kept, and the copies too
            keep = True
            raise
        finally:
            if not keep:
                self._table = None
                self._copies.close()

    def _open(self) -> Source:
        """Return the local table; copy it here first if needed."""
        if self._table is None:
            try:
                self._table = self._bring()
            except BaseException:
                self._copies.close()
                raise
        return self._table

    def _bring(self) -> Source:
        folder = self._copies.enter_context(scratch(self._reading.root / ".ml/cache/sources/files"))
        folder.mkdir()
        raw = {}
        sizes = [file.size for file in self._files]
        ticker = Ticker("bytes fetched", None if None in sizes else sum(size or 0 for size in sizes))
        for number, file in enumerate(self._files):
            shown = self.uri if len(self._files) == 1 and not self._partial else f"{self.uri} ({file.name})"
            raw[file.name] = RawFile(shown, folder / str(number), self._reading.fetch.max_ratio)
            self._copy(file, raw[file.name].path, ticker)
        ticker.close()
        if len(raw) == 1:
            return open_table(next(iter(raw.values())), self._reading)
        return open_parts(self.uri, raw, self._reading)

    def _copy(self, file: RemoteFile, path: Path, ticker: Ticker) -> None:
        """Copy a file; after a lost connection, continue at the same position.

        Raises:
            UserError: it cannot be read, or changed in the meantime.
        """
        path.touch()
        self._retry(lambda: self._read_on(file, path, ticker))
        now = self._retry(lambda: self._place.look(file))
        if (now.size, now.tag) != (file.size, file.tag):
            raise UserError(f'"{self.uri}" changed while it was read ("{file.name}"): run the command again.')

    def _read_on(self, file: RemoteFile, path: Path, ticker: Ticker) -> None:
        start, chunks = self._place.read(file, path.stat().st_size)
        with path.open("r+b") as copy:
            copy.truncate(start)
            copy.seek(start)
            for chunk in chunks:
                copy.write(chunk)
                ticker.add(len(chunk))
        if file.size is not None and path.stat().st_size < file.size:
            raise Cut

    def _retry(self, call: Callable[[], T]) -> T:
        return with_retries(self.uri, call, self._reading.fetch.retries)


def open_remote(uri: str, reading: Reading) -> RemoteSource:
    """Open the files at `uri`; see the module.

    Raises:
        UserError: they cannot be reached, or there are none.
    """
    resolved = resolve(uri)
    kind = WebFile if resolved.startswith(("http://", "https://")) else Bucket
    return RemoteSource(uri, kind(uri, resolved, reading.fetch), reading)
