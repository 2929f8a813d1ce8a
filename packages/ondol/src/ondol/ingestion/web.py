"""Single files of web servers, through fsspec."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import parse_qsl, urldefrag, urlsplit

import fsspec

from ondol.config.data import Fetch
from ondol.errors import UserError
from ondol.orchestration.health import leads_elsewhere
from ondol.redaction import redact
from ondol.storage.addresses import require_library
from ondol.storage.faults import Cut
from ondol.storage.places import CHUNK, RemoteFile

PLAIN = {"accept", "accept-language", "user-agent"}  # headers that hold no secret


class WebFile:
    """One file of a web server; headers to send stand after `#`, as `#header=Authorization: Bearer ${TOKEN}`."""

    def __init__(self, uri: str, resolved: str, fetch: Fetch) -> None:
        """Name the file; nothing is asked yet.

        Raises:
            UserError: what stands after `#` is no header.
        """
        require_library("aiohttp", "aiohttp", uri)
        self._uri = uri
        self._url, fragment = urldefrag(resolved)
        self._headers = read_headers(uri, fragment)
        self._secret = bool({name.lower() for name in self._headers} - PLAIN) or "@" in urlsplit(self._url).netloc
        self._fetch = fetch

    def find(self) -> list[RemoteFile]:
        """Return the one file; see `Place`."""
        name = self._url.partition("?")[0].rpartition("/")[2]
        return [self.look(RemoteFile(name, self._url, None, None))]

    def look(self, file: RemoteFile) -> RemoteFile:
        """Ask for the file again, without reading it; see `Place`."""
        with closing(self._open({})) as stream:
            said = stream.r.headers
        tag = said.get("ETag")
        size = int(said["Content-Length"]) if said.get("Content-Length", "").isdecimal() else None
        return RemoteFile(file.name, file.path, size, None if tag is None or tag.startswith("W/") else tag)

    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]:
        """Read the file, from `start` on where the server can and the file is still the same; see `Place`."""
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
        """Send one request, the first or one that a redirect names.

        What `#header=` says is added here, so that it goes to the named place alone, and before what ~/.netrc says.

        Raises:
            UserError: the redirect leads to another place, and there are headers, a password or another secret.
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


def read_headers(uri: str, fragment: str) -> dict[str, str]:
    """Return the headers that the part of an address after `#` names.

    Raises:
        UserError: it names something else.
    """
    headers = {}
    for key, text in parse_qsl(fragment, keep_blank_values=True):
        name, colon, value = text.partition(":")
        if key != "header" or not colon or not name.strip():
            raise UserError(f'"{uri}" has "{key}" after #: write headers as #header=Authorization: Bearer ${{TOKEN}}.')
        headers[name.strip()] = value.strip()
    return headers


def _drain(stream: Any) -> Iterator[bytes]:
    """Yield the bytes of an answer, and close it."""
    expected = int(stream.r.headers.get("Content-Length", -1))
    with closing(stream):
        while chunk := stream.read(CHUNK):
            expected -= len(chunk) if expected >= 0 else 0
            yield chunk
    if expected > 0:
        raise Cut
