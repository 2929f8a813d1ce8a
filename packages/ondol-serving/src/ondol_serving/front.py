"""What is answered before BentoML sees a request: WebSockets, unknown paths, and heads that are too long.

BentoML counts requests by their path as it came, and keeps a time for each of them for as long as it runs: whoever asks
for many paths would fill its memory, its disk and `/metrics`. So unknown paths are answered here, under one count, and
a path that a route with parameters or a mounted application answers is counted as the route is written.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ondol_serving.metrics import counters

LONGEST_TARGET = 8_192  # bytes of path and query
LONGEST_HEAD = 65_536  # bytes of all headers
MOST_HEADERS = 100
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")  # of a route that is for any
REAL_PATH = "service.path"  # in a scope whose path is the route's


class Front:
    """The outermost ASGI application of the service."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        """Stand in front of `app`, which has these routes."""
        self.app = app
        self._routes = list(routes)
        self._exact: dict[str, frozenset[str]] = {}  # methods by path
        for path, methods in find_exact(self._routes, ""):
            self._exact[path] = self._exact.get(path, frozenset()) | methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008})  # before it was accepted: a 403
        if scope["type"] == "http":
            if refusal := refuse_head(scope):
                return await refusal(scope, receive, send)
            path = scope["path"]
            if path in self._exact:
                methods = self._exact[path]
                if scope["method"] not in methods:
                    return await refuse_method(methods)(scope, receive, send)
            else:
                if (label := find_label(self._routes, scope)) is None:
                    counters().unknown_paths.inc()
                    return await NOT_FOUND(scope, receive, send)
                scope = {**scope, "path": label, REAL_PATH: path}
        await self.app(scope, receive, send)


def find_exact(routes: Iterable[BaseRoute], prefix: str) -> Iterable[tuple[str, frozenset[str]]]:
    """Yield path and methods of routes without parameters, those of mounted applications too."""
    for route in routes:
        if isinstance(route, Route) and not route.param_convertors:
            yield prefix + route.path, frozenset(route.methods or METHODS)
        elif isinstance(route, Mount) and route.routes and not route.path.count("{"):
            yield from find_exact(route.routes, prefix + route.path)


def find_label(routes: Iterable[BaseRoute], scope: Scope) -> str | None:
    """Return how the first route that takes a path is written, None where there is none."""
    for route in routes:
        match, inner = route.matches(scope)
        if match is Match.NONE:
            continue
        if isinstance(route, Mount):
            below = find_label(route.routes, {**scope, **inner}) if route.routes else None
            return route.path + (below or "/{path}")
        return str(getattr(route, "path", "/{path}"))
    return None


def refuse_head(scope: Scope) -> JSONResponse | None:
    """Return the answer to a request whose path, query or headers are too long, None where they are not."""
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > LONGEST_TARGET:
        return refuse(414, "target_too_long", f"The path and query are longer than {LONGEST_TARGET} bytes")
    headers = scope["headers"]
    if len(headers) > MOST_HEADERS or sum([len(n) + len(v) for n, v in headers]) > LONGEST_HEAD:
        message = f"The request has more than {MOST_HEADERS} headers, or more than {LONGEST_HEAD} bytes of them"
        return refuse(431, "head_too_long", message)
    return None


def refuse(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an answer that says in one sentence why there is no other."""
    detail: list[dict[str, Any]] = [{"type": kind, "loc": [], "msg": message}]
    return JSONResponse({"error": message, "detail": detail}, status, headers)


def refuse_method(methods: Iterable[str]) -> JSONResponse:
    """Return the answer to a request by another method than the route has."""
    allowed = ", ".join(sorted(methods))
    return refuse(405, "method_not_allowed", f"This path is asked by {allowed} alone", {"Allow": allowed})


NOT_FOUND = refuse(404, "not_found", "There is nothing at this path: the page at / shows what there is")
