"""Who may ask: requests for a name of the server, and of web pages those of its own alone.

A browser sends any page's requests to any address, the loopback included. Two headers, which no page can set, identify
them: `Origin` is the page's own address, and `Host` the name by which it asked. A foreign name that leads to this
machine (DNS rebinding) is seen by `Host`, since the browser takes such a page for one of ours.

The service, Prefect and MLflow decide here alike.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, NamedTuple

PROBES = frozenset({"/livez", "/healthz", "/readyz", "/metrics"})  # asked under any name, and they reveal no data
ONCE = (b"host", b"origin", b"content-type", b"content-encoding", b"content-length")
LONGEST_HOST = 300  # bytes of Host and Origin; a name has at most 253
OTHER_SITES = frozenset({b"cross-site", b"same-site"})
NOT_ANSWERED = "This server does not answer for the host"
FOREIGN_PAGE = "This server does not answer the pages of another origin"

Headers = Mapping[bytes, bytes]
ServerAddress = tuple[str, int | None] | None


class Refusal(NamedTuple):
    """Why a request is refused: the HTTP status, its kind in a word, and a sentence."""

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
    """Return why a request for another host or of another origin's page is refused; None where it is not.

    Args:
        method: Of the request; GET for a WebSocket.
        headers: By their names in lower case, see `read_headers`.
        server: The address and port at which the request arrived.
        hosts: What the settings give: `name`, `name:port`, `*.name` or `*`.
        setting: Where a host is added, for the sentence.
        any_host: Whether any Host is answered, as for a health check.
    """
    host = headers.get(b"host", b"")
    if not any_host and (len(host) > LONGEST_HOST or not is_our_host(host, server, hosts)):
        if split_host(host) is None:  # none, two, or one that is no name
            return Refusal(421, "foreign_host", "This server answers requests with one Host header alone")
        named = host.decode("latin-1")[:100]
        return Refusal(421, "foreign_host", f'{NOT_ANSWERED} "{named}": add it to {setting}')
    origin = headers.get(b"origin")
    if origin is not None:
        foreign = len(origin) > LONGEST_HOST or not is_our_origin(origin, host, hosts)
    else:  # a page's request without Origin, as for an image; a link to our own page may be followed
        foreign = headers.get(b"sec-fetch-site") in OTHER_SITES and not _is_followed_link(method, headers)
    return Refusal(403, "foreign_origin", FOREIGN_PAGE) if foreign else None


def read_headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return ASGI's headers by name; those that must be there once are empty where they are there twice."""
    pairs = list(pairs)
    headers = dict(pairs)
    if len(headers) < len(pairs):
        names = [name for name, _ in pairs]
        headers |= {name: b"" for name in ONCE if names.count(name) > 1}
    return headers


@lru_cache(maxsize=512)
def is_our_host(host: bytes, server: ServerAddress, hosts: tuple[str, ...]) -> bool:
    """Return True if `host`, a Host header, is a name of the loopback, the address asked, or one of `hosts`."""
    name = split_host(host)
    if name is None:
        return False
    own = name == "localhost" or _is_loopback(name) or (server is not None and name == server[0])
    given = host.decode("latin-1").lower()
    return own or any(_matches(n, pattern.lower()) for pattern in hosts for n in (name, given))


@lru_cache(maxsize=512)
def is_our_origin(origin: bytes, host: bytes, hosts: tuple[str, ...]) -> bool:
    """Return True if `origin` is the server itself: its host and port are those asked for, or one of `hosts`.

    Behind a proxy that changes Host, `hosts` must name the address that browsers see, with its port unless that is the
    scheme's own.
    """
    scheme, _, place = origin.lower().partition(b"://")
    named = place.decode("latin-1")
    own = place == host.lower() or any(_matches(named, h.lower()) for h in hosts if h != "*")
    return own and scheme in (b"http", b"https")


def split_host(host: bytes) -> str | None:
    """Return the name or address in a Host header, without port, brackets and final dot; None where there is none."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        name, closed, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if closed and rest[:1] in ("", ":") else "?"
    else:
        name, _, port = text.partition(":")
    return name.removesuffix(".") or None if port == "" or port.isdecimal() else None


def split_hosts(value: Any) -> Any:
    """Return the list that a variable gives in JSON, or as NAME,NAME; any other value unchanged."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [name for part in value.split(",") if (name := part.strip())]


def require_host(name: str) -> str:
    """Return an entry of `hosts`.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"\*|(\*\.)?[^*/\s@]+", name):
        raise ValueError("a host is written as NAME, NAME:PORT, *.NAME or *, without https:// and without a path")
    return name


def _is_followed_link(method: str, headers: Headers) -> bool:
    shown = headers.get(b"sec-fetch-dest", b"document") == b"document"  # and not in a frame
    return method == "GET" and headers.get(b"sec-fetch-mode") == b"navigate" and shown


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and name != pattern[1:]
    return pattern in ("*", name)
