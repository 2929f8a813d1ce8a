"""Checks which callers are allowed: the request must name this server and must not come from another site's page.

A browser sends the requests of any page to any address, the loopback included. Two headers, which a page cannot set,
identify them: `Origin` is the address of the page, and `Host` is the name in the request's URL. If a foreign name
resolves to this machine (DNS rebinding), the browser treats the page as one of ours, and only `Host` shows the foreign
name.

The service, Prefect and MLflow use the same checks.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, NamedTuple

ONCE = (b"host", b"origin", b"content-type", b"content-encoding", b"content-length", b"authorization", b"x-api-key")
LONGEST_HOST = 300  # bytes of Host and Origin; a name has at most 253
OTHER_SITES = frozenset({b"cross-site", b"same-site"})
NOT_ANSWERED = "This server does not answer for the host"
FOREIGN_PAGE = "This server does not answer the pages of another origin"

HeaderPair = tuple[bytes, bytes]
Headers = Mapping[bytes, bytes]
ServerAddress = tuple[str, int | None] | None


class Refusal(NamedTuple):
    """The reason why a request is refused: HTTP status, kind and message."""

    status: int
    kind: str
    message: str


def refuse_caller(
    method: str,
    headers: Headers,
    server: ServerAddress,
    hosts: tuple[str, ...],
    setting: str,
    *,
    any_host: bool = False,
) -> Refusal | None:
    """Return the refusal of a request for another host or from another origin's page; None if it is allowed.

    Args:
        method: The HTTP method; GET for a WebSocket.
        headers: The headers by lower-case name; see `read_headers`.
        server: The address and port at which the request arrived.
        hosts: The hosts in the settings: `name`, `name:port`, `*.name` or `*`.
        setting: The setting in which hosts are listed, for the message.
        any_host: Whether any Host is allowed, as for a health check.
    """
    host = headers.get(b"host", b"")
    if not any_host and (len(host) > LONGEST_HOST or not is_our_host(host, server, hosts)):
        if split_host(host) is None:  # absent, repeated, or not a name
            return Refusal(421, "foreign_host", "This server only answers requests with exactly one Host header")
        named = host.decode("latin-1")[:100]
        return Refusal(421, "foreign_host", f'{NOT_ANSWERED} "{named}": add it to {setting}')
    origin = headers.get(b"origin")
    if origin is not None:
        foreign = len(origin) > LONGEST_HOST or not is_our_origin(origin, host, hosts)
    else:  # a request without Origin, as for an image; links to our own page are allowed
        foreign = headers.get(b"sec-fetch-site") in OTHER_SITES and not _is_followed_link(method, headers)
    return Refusal(403, "foreign_origin", FOREIGN_PAGE) if foreign else None


def read_headers(pairs: Iterable[HeaderPair]) -> dict[bytes, bytes]:
    """Return the ASGI headers by name; a header that must be unique is empty if it is repeated."""
    pairs = list(pairs)
    headers = dict(pairs)
    if len(headers) < len(pairs):
        names = [name for name, _ in pairs]
        headers |= {name: b"" for name in ONCE if names.count(name) > 1}
    return headers


def is_loopback(host: str) -> bool:
    """Return True if `host` is a name or an address that no other machine can reach."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=512)
def is_our_host(host: bytes, server: ServerAddress, hosts: tuple[str, ...]) -> bool:
    """Return True if `host`, a Host header, is a loopback name, the address of the connection, or one of `hosts`."""
    name = split_host(host)
    if name is None:
        return False
    own = is_loopback(name) or (server is not None and name == server[0])
    given = host.decode("latin-1").lower()
    return own or any(_matches(n, pattern.lower()) for pattern in hosts for n in (name, given))


@lru_cache(maxsize=512)
def is_our_origin(origin: bytes, host: bytes, hosts: tuple[str, ...]) -> bool:
    """Return True if `origin` is the server itself: host and port are those of the request, or one of `hosts`.

    Behind a proxy that changes Host, `hosts` must name the address that browsers use, with the port unless it is the
    default of the scheme.
    """
    scheme, _, place = origin.lower().partition(b"://")
    named = place.decode("latin-1")
    own = place == host.lower() or any(_matches(named, h.lower()) for h in hosts if h != "*")
    return own and scheme in (b"http", b"https")


def split_host(host: bytes) -> str | None:
    """Return the name or address in a Host header, without port, brackets and final dot; None if there is none."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        name, closed, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if closed and rest[:1] in ("", ":") else "?"
    else:
        name, _, port = text.partition(":")
    return name.removesuffix(".") or None if port == "" or port.isdecimal() else None


def require_redis(address: Any) -> Any:
    """Return the address of a Redis server unchanged.

    Raises:
        ValueError: it is another address, or has a password, which processes and logs would show.
    """
    if not re.fullmatch(r"rediss?://([^\s:@/]*@)?[^\s:@/?#]+(:\d+)?(/\d+)?", str(address)):
        raise ValueError('it is written as "redis://HOST:PORT/NUMBER", and a password is set by ML_REDIS_PASSWORD')
    return address


def show_value(value: Any) -> str:
    """Return a wrong value for a message, without the password of an address."""
    return re.sub(r"://[^/]*@", "://***@", repr(value))


def split_hosts(value: Any) -> Any:
    """Parse a variable that holds a list, in JSON or as NAME,NAME; return any other value unchanged."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [name for part in value.split(",") if (name := part.strip())]


def require_host(name: str) -> str:
    """Return `host` if it is a valid entry of `hosts`.

    Raises:
        ValueError: it is not valid.
    """
    if not re.fullmatch(r"\*|(\*\.)?[^*/\s@]+", name):
        raise ValueError("a host is written as NAME, NAME:PORT, *.NAME or *, without https:// and without a path")
    return name


def _is_followed_link(method: str, headers: Headers) -> bool:
    shown = headers.get(b"sec-fetch-dest", b"document") == b"document"  # not in a frame either
    return method == "GET" and headers.get(b"sec-fetch-mode") == b"navigate" and shown


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and name != pattern[1:]
    return pattern in ("*", name)
