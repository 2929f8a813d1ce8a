"""REST APIs as sources: JSON in pages.

`rest+https://api.example.org/v1/customers?limit=500#records=data.items&next=meta.next_cursor&param=cursor`: the part
before `#` is the URL, the part after it configures paging (see `Plan`, docs/reference/sources.md).
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urljoin, urlsplit, urlunsplit

import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError, ReadTimeoutError, SSLError
from urllib3.util import Retry

from ondol.config import Fetch
from ondol.errors import UserError, nearest
from ondol.ingestion.columns import Row, flatten
from ondol.ingestion.json_files import parse
from ondol.ingestion.sources import Reading, Source
from ondol.ingestion.spool import Pages, RecordSource
from ondol.redaction import PLACEHOLDER, redact
from ondol.storage.remote_files import log_pause_of, resolve

REFUSED = (401, 403, 407)


class Trouble(Exception):
    """An error whose message continues a sentence such as `Page 3 of "…" `."""


def check_status(response: requests.Response, retries: int) -> None:
    """Refuse a response with an error status.

    Raises:
        Trouble: the status is an error.
    """
    status = response.status_code
    if 200 <= status < 300:
        return
    if status in REFUSED:
        raise Trouble(f"is refused ({status}): check its header=…, and that the secret in it is right and still valid.")
    if status in (404, 410):
        raise Trouble(f"is not there ({status}): check the address.")
    if status == 429:
        raise Trouble(f"is held back by a rate limit (429) after {retries} retries: run this again later.")
    if status >= 500:
        raise Trouble(f"is answered with an error of the server ({status}) after {retries} retries: try again later.")
    raise Trouble(f"is answered with {status} ({response.reason}): check the address and its parameters.")


def explain_connection_error(error: Exception, fetch: Fetch) -> str:
    """Return an error message on a failed connection."""
    cause = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    inner = getattr(cause, "reason", cause)
    reason = inner if isinstance(inner, Exception) else error
    if isinstance(error, requests.exceptions.SSLError) or isinstance(reason, urllib3.exceptions.SSLError):
        return (
            f"has a certificate that does not verify ({_name_certificate(reason)}): correct it, or name the "
            "file of its authority in REQUESTS_CA_BUNDLE."
        )
    if isinstance(error, requests.exceptions.ProxyError):
        return "cannot be reached through the proxy: check HTTPS_PROXY, HTTP_PROXY and NO_PROXY."
    if isinstance(reason, urllib3.exceptions.NameResolutionError):
        return "cannot be reached, no host has that name: check the address."
    if isinstance(reason, urllib3.exceptions.NewConnectionError):  # urllib3 treats it as a timeout
        return "cannot be reached, no server answers there: check the address, and that the server runs."
    if isinstance(error, requests.Timeout) or isinstance(reason, urllib3.exceptions.TimeoutError):
        return (
            f"did not come within {fetch.timeout_seconds:g} seconds after {fetch.retries} retries: try again later, "
            "ask for smaller pages, or raise `[fetch] timeout_seconds`."
        )
    if isinstance(error, requests.TooManyRedirects):
        return "is redirected in a circle: check the address."
    if isinstance(error, UnicodeError | requests.exceptions.InvalidHeader):
        return "cannot be requested, a header has an invalid character: check header=… and its secret."
    if isinstance(error, requests.exceptions.InvalidURL):
        return "cannot be requested, the address is invalid: check it."
    return f"breaks off ({type(reason).__name__}) after {fetch.retries} retries: try again later."


def _name_certificate(reason: object) -> str:
    found = str(reason).partition("certificate verify failed: ")[2]
    return found.partition(" (_ssl")[0] or "TLS failed"


REPEATED = ("header", "drop")
NUMBERS = ("first", "step")
NEEDS = {"param": "next", "first": "page", "step": "page"}


@dataclass(frozen=True)
class Plan:
    """The settings after `#`, as `key=value&key=value`; `&`, `=` and `%` in a value are percent-encoded.

    Attributes:
        records: The dotted path to the list of records; None if the body is that list, or contains only one list.
        next: The dotted path to the reference to the next page: the value of `param`, or without `param` an address.
        param: The query parameter that takes the value at `next`.
        page: The query parameter of the page's number, from `first` in steps of `step` until a page is empty.
        first: The first page's number.
        step: The increment for the next page; the page size if the API counts records.
        since: The query parameter of the watermark: only records at or after it are requested.
        header: Headers, as `Name: value` with `${NAME}` for secrets.
        drop: Members of the records that are left out, dotted where nested.
    """

    records: str | None = None
    next: str | None = None
    param: str | None = None
    page: str | None = None
    first: int = 1
    step: int = 1
    since: str | None = None
    header: tuple[str, ...] = field(default=(), repr=False)
    drop: tuple[str, ...] = ()


def parse_api_address(uri: str) -> tuple[str, Plan]:
    """Split an address into the URL, without the values of secrets, and the plan.

    Raises:
        UserError: the address is invalid, or a key is unknown, repeated or meaningless.
    """
    address, _, fragment = uri.partition("#")
    if not re.match(r"rest\+https?://[^/?]", address):
        raise UserError(f'"{uri}" is not an address of an API: write rest+https://host/path#records=….')
    if urlsplit(PLACEHOLDER.sub("x", address)).hostname is None:
        raise UserError(f'"{uri}" names no host: write rest+https://host/path#records=….')
    return address.removeprefix("rest+"), _read_plan(uri, fragment)


def _read_plan(uri: str, fragment: str) -> Plan:
    known = [f.name for f in fields(Plan)]
    values: dict[str, list[str]] = {}
    for part in filter(None, fragment.split("&")):
        name, _, value = part.partition("=")
        if name not in known:
            raise UserError(f'"{uri}" has the unknown key "{name}" after #.{nearest(name, known) or _list(known)}')
        if not value:
            raise UserError(f'"{uri}" has {name} without a value: write {name}=…, or leave it out.')
        if name in values and name not in REPEATED:
            raise UserError(f'"{uri}" gives {name} twice: keep one.')
        values.setdefault(name, []).append(unquote(value))
    _check(uri, values)
    return Plan(**{name: _convert(uri, name, given) for name, given in values.items()})


def _check(uri: str, values: dict[str, list[str]]) -> None:
    if "next" in values and "page" in values:
        raise UserError(f'"{uri}" has both next and page: keep the one that the API uses.')
    for name, needed in NEEDS.items():
        if name in values and needed not in values:
            raise UserError(f'"{uri}" gives {name} without {needed}: add {needed}=…, or leave {name} out.')
    for header in values.get("header", []):
        name, colon, _ = header.partition(":")
        if not colon or not name.strip():
            raise UserError(f'A header in the source\'s address has no name: write "header=Name: value" ({uri[:40]}…).')


def _convert(uri: str, name: str, given: list[str]) -> Any:
    if name in REPEATED:
        return tuple(given)
    if name not in NUMBERS:
        return given[0]
    if not re.fullmatch(r"[0-9]{1,9}", given[0]):
        raise UserError(f'"{uri}" gives {name} as "{given[0]}": give a whole number such as 1.')
    return int(given[0])


def _list(known: list[str]) -> str:
    return f" Known: {', '.join(known)}."


PASSING = (429, 500, 502, 503, 504)
LONGEST_PAUSE = 600  # seconds
MOST_BYTES = 64 << 20  # the largest size of a page, which is parsed in memory
CHUNK_BYTES = 1 << 16
# These loggers write addresses, whose query may contain a secret.
LOGGERS = ("urllib3.connectionpool", "urllib3.util.retry")


class ApiPage(NamedTuple):
    """A page: its JSON value, and the next address of its Link header."""

    body: Any
    link: str | None


class RetryPolicy(Retry):
    """Retries with growing pauses; none if waiting would not help."""

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        """Return the seconds in Retry-After.

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
        """Pause before the next attempt, and log it."""
        asked = self.get_retry_after(response) if response is not None else None
        if seconds := asked or self.get_backoff_time():
            what = "does not answer" if response is None else f"answers with {response.status}"
            log_pause_of(f"The API {what}", seconds)
        super().sleep(response)

    def increment(self, *args: Any, **named: Any) -> "RetryPolicy":
        """Count a failure; there is no retry if a certificate does not verify."""
        error = named.get("error")
        if isinstance(error, SSLError):
            raise MaxRetryError(named["_pool"], "", error)
        return super().increment(*args, **named)


class Session(requests.Session):
    """A session that follows redirects only on the same host, because headers may contain secrets."""

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Refuse a redirect to another host.

        Raises:
            Trouble: it leads to another host.
        """
        self.require_same_host(str(response.request.url), str(prepared_request.url))

    def require_same_host(self, before: str, after: str) -> None:
        """Check that the addresses `after` and `before` have the same host.

        Raises:
            Trouble: it is on another host, port or scheme.
        """
        if self.should_strip_auth(before, after):
            host = urlsplit(after).netloc.rpartition("@")[2]
            raise Trouble(f"leads to another place ({host}): write that address, if it is to be trusted.")


class Api:
    """The API from which pages are read; as a context manager it closes its connections."""

    def __init__(self, uri: str, headers: Sequence[str], fetch: Fetch) -> None:
        """Fill in the secrets of `headers`; no request is sent yet."""
        self._uri = uri
        self._fetch = fetch
        self._retry = RetryPolicy(
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
            self.session.auth = _leave_unchanged  # otherwise requests would replace it by ~/.netrc
        for name in LOGGERS:
            logging.getLogger(name).addFilter(_hide)

    def __enter__(self) -> "Api":
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the connections."""
        self.session.close()

    def get(self, address: str, place: str) -> ApiPage:
        """Return the page at `address`; `place` is its name in messages ("Page 3").

        Raises:
            UserError: the request failed, or the answer is not JSON.
        """
        try:
            return self._get(address)
        except Trouble as error:
            reason = str(error)
        except (requests.RequestException, HTTPError, UnicodeError) as error:
            reason = explain_connection_error(error, self._fetch)
        raise UserError(f'{place} of "{self._uri}" {reason}')

    def _get(self, address: str) -> ApiPage:
        retry = self._retry
        while True:
            with self.session.get(address, timeout=self._fetch.timeout_seconds, stream=True) as response:
                check_status(response, self._fetch.retries)
                try:
                    body = self._read(response)
                    return ApiPage(self._parse(body), response.links.get("next", {}).get("url"))
                except HTTPError as error:  # the connection broke after the headers, where the adapter does not retry
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
            what = "a web page" if body.lstrip()[:1] == b"<" else "empty" if not body.strip() else "not JSON"
            raise Trouble(f"is {what}, but JSON is expected: check the address.") from None


def _leave_unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _hide(record: logging.LogRecord) -> bool:
    record.msg, record.args = redact(record.getMessage()), ()
    return True


MOST_EMPTY = 1_000  # consecutive pages without records
MORE_FIELD = re.compile(r"(?i)(has_?more|next(_?(page|cursor|token|link|url|offset|page_?token))?)")
MISSING = object()


class Pager:
    """Iterates over the pages."""

    def __init__(self, plan: Plan, api: Api, address: str, uri: str) -> None:
        """Start before the first page."""
        self._plan, self._api, self._uri = plan, api, uri
        self._start = address
        self._records = plan.records
        self._number = 0
        self._asked: set[bytes] = set()
        self._seen: dict[bytes, int] = {}
        self._empty = 0

    @property
    def place(self) -> str:
        """The name in messages of the last requested page."""
        return f"Page {self._number}"

    def pages(self) -> Iterator[list[Any]]:
        """Yield the records of each page.

        Raises:
            UserError: a page cannot be read, does not match the plan, or is repeated.
        """
        plan = self._plan
        address: str | None = set_parameter(self._start, plan.page, plan.first) if plan.page else self._start
        while address is not None:
            self._number += 1
            answer = self._api.get(address, self.place)
            try:
                records = self._find_records(answer.body)
                self._refuse_repeated(address, records)
                following = self._follow(address, answer, records)
            except Trouble as error:
                raise UserError(f'{self.place} of "{self._uri}" {error}') from None
            yield records
            address = following

    def _find_records(self, body: Any) -> list[Any]:
        if self._records is None and isinstance(body, dict):
            lists = [name for name, value in body.items() if isinstance(value, list)]
            if len(lists) != 1:
                found = f"has {len(lists)} lists ({', '.join(lists)})" if lists else f"has no list ({_keys(body)})"
                raise Trouble(f"{found}: set #records=… to the path of its records.")
            self._records = lists[0]
        found = walk(body, self._records or "")
        if found is MISSING:
            hint = nearest(str(self._records).rpartition(".")[2], body) if isinstance(body, dict) else ""
            raise Trouble(f"has nothing at records={self._records} ({_keys(body)}): check that path.{hint}")
        if found is not None and not isinstance(found, list):
            where = f"has {_name(found)} at records={self._records}" if self._records else f"is {_name(found)}"
            raise Trouble(f"{where}, but a list is expected: set #records=… to the path of the records.")
        return found or []

    def _refuse_repeated(self, address: str, records: list[Any]) -> None:
        """Refuse a repeated page: otherwise the API would be read forever."""
        asked = _digest(address)
        if asked in self._asked:
            raise Trouble("is named as the next page again: the API repeats itself; ask its operator.")
        self._asked.add(asked)
        self._empty = 0 if records else self._empty + 1
        if self._empty > MOST_EMPTY:
            raise Trouble(f"is the last of {MOST_EMPTY:,} pages without a record, and names a next: check the address.")
        before = self._seen.setdefault(_digest(json.dumps(records)), self._number) if records else self._number
        if before != self._number:
            name = self._plan.param or self._plan.page or "the next address"
            raise Trouble(f"has the records of page {before} again: check that the API follows {name}.")

    def _follow(self, address: str, answer: ApiPage, records: list[Any]) -> str | None:
        """Return the next page's address, None after the last."""
        plan = self._plan
        if plan.page:
            number = plan.first + self._number * plan.step
            return set_parameter(self._start, plan.page, number) if records else None
        value = self._find_next(answer.body) if plan.next else answer.link
        if value in (None, "", False):
            if not plan.next and not answer.link:
                self._refuse_more(answer.body)
            return None
        if plan.param:
            return set_parameter(self._start, plan.param, value)
        if not isinstance(value, str):
            raise Trouble(f"has {value} at next={plan.next}, not an address: name its query parameter with param=….")
        following = urljoin(address, value)
        self._api.session.require_same_host(address, following)
        return following

    def _find_next(self, body: Any) -> Any:
        """Return the value at `next`; it may be absent on the last page, so only a probable typing error is refused."""
        if not isinstance(body, dict):
            raise Trouble(f"is {_name(body)}, which has no next={self._plan.next}: leave that out.")
        inside = body
        for key in str(self._plan.next).split("."):
            if not isinstance(inside, dict):
                return None
            if key not in inside:
                near = get_close_matches(key, inside, n=1, cutoff=0.8)
                if near and self._number == 1:
                    raise Trouble(f'has nothing at next={self._plan.next}: did you mean "{near[0]}"?')
                return None
            inside = inside[key]
        return inside

    def _refuse_more(self, body: Any) -> None:
        """Refuse a page that has a field for a next page if no setting names it."""
        envelope = body if isinstance(body, dict) else {}
        for name, value in envelope.items():
            inner = value if isinstance(value, dict) else {}
            paths = {name: value} | {f"{name}.{key}": inside for key, inside in inner.items()}
            for path, value in paths.items():
                last = path.rpartition(".")[2]
                if MORE_FIELD.fullmatch(last) and value and not isinstance(value, list | dict):
                    raise Trouble(f'is not the last by its "{path}": name the next page with #next=… or #page=….')


def walk(body: Any, path: str) -> Any:
    """Return the value at a dotted path; `MISSING` if there is none."""
    for key in filter(None, path.split(".")):
        if not isinstance(body, dict) or key not in body:
            return MISSING
        body = body[key]
    return body


def set_parameter(address: str, name: str, value: object) -> str:
    """Return `address` with `name` in its query set to `value`."""
    parts = urlsplit(address)
    query = [(key, old) for key, old in parse_qsl(parts.query, keep_blank_values=True) if key != name]
    return urlunsplit(parts._replace(query=urlencode([*query, (name, str(value))])))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _keys(body: Any) -> str:
    return (
        f"it has {', '.join(map(str, list(body)[:10]))}" if isinstance(body, dict) and body else f"it is {_name(body)}"
    )


def _name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


class RestSource(RecordSource):
    """The records of an API, in pages."""

    def __init__(self, uri: str, reading: Reading, plan: Plan, address: str, after: str | None = None) -> None:
        """Store the address, without the values of secrets, and the watermark to start at."""
        super().__init__(uri, reading)
        self._plan, self._address, self._after = plan, address, after

    def since(self, column: str, value: Any) -> Source:
        """Return the source of records at or after `value`, if the API has a parameter for it; otherwise of all."""
        return RestSource(self.uri, self.reading, self._plan, self._address, say_moment(value))

    def _pages(self) -> Pages:
        plan, address = self._plan, resolve(self._address)
        if plan.since and self._after is not None:
            address = set_parameter(address, plan.since, self._after)
        with Api(self.uri, plan.header, self.reading.fetch) as api:
            pager = Pager(plan, api, address, self.uri)
            for records in pager.pages():
                rows = [self._flatten(record, pager.place) for record in records]
                self._refuse_strangers(rows, pager.place)
                yield rows

    def _flatten(self, record: Any, place: str) -> Row:
        if not isinstance(record, dict):
            raise UserError(f'{place} of "{self.uri}" has a record that is not an object: check records=….')
        return flatten(record, self.uri, place, self._plan.drop)

    def _refuse_strangers(self, rows: list[Row], place: str) -> None:
        """Refuse a page if no record has any of the contract's columns."""
        columns = self.reading.columns or {}
        if rows and columns and not any(columns.keys() & row.keys() for row in rows):
            raise UserError(
                f'{place} of "{self.uri}" has none of the contract\'s columns, but {", ".join(list(rows[0])[:10])}: '
                "check records=…, or update the contract."
            )


def open_rest(uri: str, reading: Reading) -> RestSource:
    """Return the source at `uri`; no request is sent yet.

    Raises:
        UserError: the address is invalid.
    """
    address, plan = parse_api_address(uri)
    return RestSource(uri, reading, plan, address)


def say_moment(value: Any) -> str:
    """Format a watermark for an API: timestamps in UTC, as 2024-01-31T09:00:00Z."""
    if not isinstance(value, datetime):
        return str(value)
    moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return moment.isoformat().replace("+00:00", "Z")
