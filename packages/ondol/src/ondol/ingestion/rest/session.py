"""One page of an API: asked for patiently, over one connection, and never from another host."""

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError, ReadTimeoutError, SSLError
from urllib3.util import Retry

from ondol.config.data import Fetch
from ondol.errors import UserError
from ondol.ingestion.json_text import parse
from ondol.ingestion.rest.errors import Trouble, check_status, explain
from ondol.redaction import redact
from ondol.storage.addresses import resolve
from ondol.storage.waiting import tell_pause

PASSING = (429, 500, 502, 503, 504)
LONGEST_PAUSE = 600  # seconds
MOST_BYTES = 64 << 20  # of one page: it is parsed in memory
CHUNK_BYTES = 1 << 16
LOGGERS = ("urllib3.connectionpool", "urllib3.util.retry")  # they write addresses, whose query may hold a secret


class Answer(NamedTuple):
    """A page: its JSON value, and the address that its Link header calls the next."""

    body: Any
    link: str | None


class Patience(Retry):
    """Retries with growing pauses, none where waiting would not help."""

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        """Return the seconds that the server asks for.

        Raises:
            Trouble: they are too many.
        """
        try:
            seconds = super().get_retry_after(response)
        except InvalidHeader:
            return None
        if seconds is not None and seconds > LONGEST_PAUSE:
            raise Trouble(f"is held back for more than {LONGEST_PAUSE // 60} minutes (Retry-After): run this later.")
        return seconds

    def sleep(self, response: BaseHTTPResponse | None = None) -> None:
        """Pause before the next try, and say so."""
        asked = self.get_retry_after(response) if response is not None else None
        if seconds := asked or self.get_backoff_time():
            what = "does not answer" if response is None else f"answers with {response.status}"
            tell_pause(f"The API {what}", seconds)
        super().sleep(response)

    def increment(self, *args: Any, **named: Any) -> "Patience":
        """Count a failure; a certificate that does not verify will not at the next try."""
        error = named.get("error")
        if isinstance(error, SSLError):
            raise MaxRetryError(named["_pool"], "", error)
        return super().increment(*args, **named)


class Session(requests.Session):
    """A session that goes on at the same host only: headers may hold secrets."""

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Refuse a redirect elsewhere.

        Raises:
            Trouble: it leads there.
        """
        self.require_same_host(str(response.request.url), str(prepared_request.url))

    def require_same_host(self, before: str, after: str) -> None:
        """Check that the address `after` is where `before` is.

        Raises:
            Trouble: it is on another host, port or scheme.
        """
        if self.should_strip_auth(before, after):
            host = urlsplit(after).netloc.rpartition("@")[2]
            raise Trouble(f"leads to another place ({host}): write that address, if it is to be trusted.")


class Api:
    """What pages are asked of; as a context it closes its connections."""

    def __init__(self, uri: str, headers: Sequence[str], fetch: Fetch) -> None:
        """Fill in the secrets of `headers`; nothing is asked yet."""
        self._uri = uri
        self._fetch = fetch
        self._retry = Patience(
            fetch.retries,
            backoff_factor=0.5,
            status_forcelist=PASSING,
            allowed_methods=("GET",),
            raise_on_status=False,
        )
        self.session = Session()
        self.session.max_redirects = 5
        self.session.headers.update({"Accept": "application/json", "User-Agent": "ml-ingest"})
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=self._retry))
        for header in headers:
            name, _, value = header.partition(":")
            self.session.headers[name.strip()] = resolve(value.strip())
        if "Authorization" in self.session.headers:
            self.session.auth = _keep  # otherwise requests would put what ~/.netrc says in its place
        for name in LOGGERS:
            logging.getLogger(name).addFilter(_hide)

    def __enter__(self) -> "Api":
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the connections."""
        self.session.close()

    def get(self, address: str, place: str) -> Answer:
        """Return the page at `address`; `place` is what messages call it ("Page 3").

        Raises:
            UserError: it cannot be had, or is no JSON.
        """
        try:
            return self._get(address)
        except Trouble as error:
            reason = str(error)
        except (requests.RequestException, HTTPError, UnicodeError) as error:
            reason = explain(error, self._fetch)
        raise UserError(f'{place} of "{self._uri}" {reason}')

    def _get(self, address: str) -> Answer:
        retry = self._retry
        while True:
            with self.session.get(address, timeout=self._fetch.timeout_seconds, stream=True) as response:
                check_status(response, self._fetch.retries)
                try:
                    body = self._read(response)
                    return Answer(self._parse(body), response.links.get("next", {}).get("url"))
                except HTTPError as error:  # it broke off after its head, where the adapter looks no more
                    retry = retry.increment("GET", "", error=error)
            retry.sleep()

    def _read(self, response: requests.Response) -> bytes:
        """Return the body, bounded in size and time."""
        patience = self._fetch.timeout_seconds
        body, end = bytearray(), time.monotonic() + patience
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
            body += chunk
            if len(body) > MOST_BYTES:
                raise Trouble(f"is larger than {MOST_BYTES >> 20} MB: ask for smaller pages.")
            if time.monotonic() > end:
                raise ReadTimeoutError(response.raw._pool, "", "it drips")
        return bytes(body)

    def _parse(self, body: bytes) -> Any:
        try:
            return parse(body, self._uri)
        except ValueError:
            what = "a web page" if body.lstrip()[:1] == b"<" else "empty" if not body.strip() else "no JSON"
            raise Trouble(f"is {what}, where JSON is expected: check the address.") from None


def _keep(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _hide(record: logging.LogRecord) -> bool:
    record.msg, record.args = redact(record.getMessage()), ()
    return True
