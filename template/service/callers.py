"""Who may ask: requests for a name of the service, and of web pages those of its own alone.

A browser sends any page's requests to any address, the loopback included. Two headers, which no page can set, tell them
apart: `Origin` is the page's own address, and `Host` the name by which it asked. A foreign name that leads to this
machine (DNS rebinding) is seen by `Host`, since the browser takes such a page for one of ours.
"""

from functools import lru_cache

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PROBES = frozenset({"/livez", "/healthz", "/readyz", "/metrics"})  # asked under any name, and they tell no data

Server = tuple[str, int | None] | None


@lru_cache(maxsize=512)
def is_our_host(host: bytes, server: Server, hosts: tuple[str, ...]) -> bool:
    """Return True if `host`, a Host header, names this service.

    Args:
        host: The header.
        server: The address and port at which the request arrived.
        hosts: What the settings give: `name`, `name:port`, `*.name` or `*`.
    """
    name = split_host(host)
    if name is None:
        return False
    own = (*LOOPBACK, *([server[0]] if server else []))
    given = host.decode("latin-1").lower()
    return name in own or any(_matches(n, pattern.lower()) for pattern in hosts for n in (name, given))


@lru_cache(maxsize=512)
def is_our_origin(origin: bytes, host: bytes, hosts: tuple[str, ...]) -> bool:
    """Return True if `origin` is the service itself: its host and port are those asked for, or one of `hosts`.

    Behind a proxy that changes Host, `hosts` must name the address that browsers see, with its port unless that is the
    scheme's own.
    """
    _, found, place = origin.lower().partition(b"://")
    named = place.decode("latin-1")
    return bool(found) and (place == host.lower() or any(_matches(named, h.lower()) for h in hosts if h != "*"))


def split_host(host: bytes) -> str | None:
    """Return the name or address in a Host header, without port, brackets and final dot; None where there is none."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        name, closed, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if closed and rest[:1] in ("", ":") else "?"
    else:
        name, _, port = text.partition(":")
    return name.removesuffix(".") or None if port == "" or port.isdecimal() else None


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and name != pattern[1:]
    return pattern in ("*", name)
