"""Checks in front of the endpoints: unknown paths, heads that are too long, foreign callers, bodies, and load.

`PathFilter` is the outermost application, `AdmissionControl` the middleware within BentoML's own.
"""

import asyncio
import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from time import perf_counter
from typing import Any

from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ondol_serving.bundle import Bundle
from ondol_serving.callers import PROBES, Headers, read_headers, refuse_caller
from ondol_serving.metrics import counters, reserve_space
from ondol_serving.serving import NO_MODEL, serving
from ondol_serving.settings import Limits, read_limits

LONGEST_TARGET = 8_192  # bytes of path and query
LONGEST_HEAD = 65_536  # bytes of all headers
MOST_HEADERS = 100
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")  # of a route for all methods
REAL_PATH = "service.path"  # scope key of the real path; `path` is then the route's pattern
HEAVY_BYTES = 32_768  # larger bodies are read, predicted and answered in threads: the event loop stays free
HEAVY_AT_ONCE = 2  # of these large bodies; each may need ten times its size in memory
REQUEST_COST = 2_500  # the fixed cost of a request, in bytes of body
FIRST_GUESS = (1_000_000.0, 0.1)  # cost and seconds: assumed until some seconds of work have been measured
REMEMBERED_SECONDS = 2.0  # of work
WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
JSON = "application/json"
HOSTS = "[service] hosts (ML_SERVICE__HOSTS)"


class PathFilter:
    """The outermost ASGI application: answers WebSockets, unknown paths and heads that are too long.

    BentoML counts requests by their raw path and keeps a histogram for each path until it stops: a client that requests
    many paths would fill memory, disk and `/metrics`. So unknown paths are answered here, with one counter. A path that
    belongs to a route with parameters or to a mounted application is counted under the route's pattern.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        """Wrap `app`, which has these routes."""
        self.app = app
        self._routes = list(routes)
        self._exact: dict[str, frozenset[str]] = {}  # methods by path
        for path, methods in find_exact(self._routes, ""):
            self._exact[path] = self._exact.get(path, frozenset()) | methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008})  # closing before it was accepted is a 403
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
    """Yield path and methods of routes without parameters, also those of mounted applications."""
    for route in routes:
        if isinstance(route, Route) and not route.param_convertors:
            yield prefix + route.path, frozenset(route.methods or METHODS)
        elif isinstance(route, Mount) and route.routes and not route.path.count("{"):
            yield from find_exact(route.routes, prefix + route.path)


def find_label(routes: Iterable[BaseRoute], scope: Scope) -> str | None:
    """Return the pattern of the first route that matches a path; None if there is none."""
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
    """Return the answer to a request whose path, query or headers are too long, None if they are not."""
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > LONGEST_TARGET:
        return refuse(414, "target_too_long", f"The path and query are longer than {LONGEST_TARGET} bytes")
    headers = scope["headers"]
    if len(headers) > MOST_HEADERS or sum([len(n) + len(v) for n, v in headers]) > LONGEST_HEAD:
        message = f"The request has more than {MOST_HEADERS} headers, or more than {LONGEST_HEAD} bytes of them"
        return refuse(431, "head_too_long", message)
    return None


def refuse(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an error response whose message is one sentence."""
    detail: list[dict[str, Any]] = [{"type": kind, "loc": [], "msg": message}]
    return JSONResponse({"error": message, "detail": detail}, status, headers)


def refuse_method(methods: Iterable[str]) -> JSONResponse:
    """Return the answer to a request with a method that the route does not have."""
    allowed = ", ".join(sorted(methods))
    return refuse(405, "method_not_allowed", f"This path only accepts {allowed}", {"Allow": allowed})


NOT_FOUND = refuse(404, "not_found", "There is no endpoint at this path: the page at / lists the endpoints")


class Busy(Exception):
    """The service cannot answer the request within the configured time.

    Attributes:
        retry_after: Whole seconds after which the client may try again.
    """

    def __init__(self, retry_after: float) -> None:
        """Round up the seconds to wait."""
        super().__init__(retry_after)
        self.retry_after = max(1, min(60, math.ceil(retry_after)))


class Load:
    """The load of one event loop, and whether more requests can be admitted.

    The expected waiting time of a request is the load divided by the recent rate of work. Only time with work counts,
    so an idle service keeps its last measurement.
    """

    def __init__(self) -> None:
        """Start without load."""
        self.bytes = 0  # bytes of bodies that are not answered yet, except small ones that came in one piece
        self.turns = asyncio.Semaphore(HEAVY_AT_ONCE)
        self._cost = 0  # of all requests in progress
        self._done, self._seconds = FIRST_GUESS
        self._since = 0.0

    def wait_seconds(self) -> float:
        """Return the expected waiting time, in seconds, of a request that arrives now."""
        return self._cost * self._seconds / self._done

    def begin(self, size: int, max_wait: float) -> "Work":
        """Begin a request whose body of `size` bytes has been read; the caller must end it.

        Raises:
            Busy: it would wait longer than `max_wait` seconds.
        """
        cost = size + REQUEST_COST
        if self._cost and (wait := self.wait_seconds()) > max_wait:
            raise Busy(wait)
        self._pass()
        self._cost += cost
        return Work(self, cost, max_wait if size > HEAVY_BYTES else None)

    def end(self, cost: int) -> None:
        """Count finished work."""
        self.drop(cost)
        self._done += cost
        if self._seconds > REMEMBERED_SECONDS:
            self._done, self._seconds = self._done / 2, self._seconds / 2

    def drop(self, cost: int) -> None:
        """Remove work that was not done."""
        self._pass()
        self._cost -= cost

    def _pass(self) -> None:
        """Add the time since the last change, if there was work."""
        now = perf_counter()
        if self._cost:
            self._seconds += now - self._since
        self._since = now


class Work:
    """A request in progress."""

    __slots__ = ("_cost", "_load", "_max_wait", "_turn")

    def __init__(self, load: Load, cost: int, max_wait: float | None) -> None:
        """Store what `end` subtracts from the load; a request with `max_wait` waits for its turn."""
        self._load: Load | None = load
        self._cost, self._max_wait, self._turn = cost, max_wait, False

    @property
    def waits(self) -> bool:
        """Whether it has to wait for its turn."""
        return self._max_wait is not None and not self._turn

    async def wait(self) -> None:
        """Wait for its turn.

        Raises:
            Busy: it did not come in time; the request is ended.
        """
        assert self._load is not None and self._max_wait is not None
        try:
            async with asyncio.timeout(self._max_wait):
                await self._load.turns.acquire()
        except BaseException as error:
            self._load.drop(self._cost)
            self._load = None
            if isinstance(error, TimeoutError):
                raise Busy(self._max_wait) from None
            raise
        self._turn = True

    def end(self) -> None:
        """End it, once: when its answer begins, since the reading speed of the client does not count."""
        if self._load is not None:
            self._load.end(self._cost)
            if self._turn:
                self._load.turns.release()
            self._load = None


class ClientDisconnected(Exception):
    """The client has left in the middle of its body."""


class RequestRefused(Exception):
    """The request is answered without reading it."""

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        """Store the answer."""
        super().__init__(message)
        self.answer = refuse(status, kind, message, headers)


class AdmissionControl:
    """ASGI middleware: checks the caller, the media type and the size of requests, and limits the load.

    It counts the bytes that arrive, because a chunked body has no Content-Length.
    """

    def __init__(self, app: ASGIApp, types: Mapping[str, str] | None = None) -> None:
        """Wrap `app`, and reserve space for the metrics before any request is counted.

        Args:
            app: The next application.
            types: The media type of the body that each route declares.
        """
        reserve_space()
        self.app = app
        self._types = types or {"/predict": JSON}
        self._without_model = read_limits({})
        self._load: Load | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with one sentence."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if REAL_PATH in scope:
            scope = {**scope, "path": scope[REAL_PATH]}
        if scope["path"] in PROBES:
            return await self.app(scope, receive, send)
        bundle = serving.bundle
        limits = self._without_model if bundle is None else bundle.limits
        try:
            headers = read_headers(scope["headers"])
            require_our_caller(scope, headers, limits.hosts)
            if scope["method"] in WITHOUT_BODY:
                return await self.app(scope, receive, send)
            if bundle is None and scope["path"] == "/predict":
                raise RequestRefused(503, "no_model", NO_MODEL)
            if (wanted := self._types.get(scope["path"])) is not None:
                require_type(headers, wanted)
            declared = headers.get(b"content-length")
            if declared and declared.isdigit() and int(declared) > limits.max_body_bytes:
                raise _too_large(limits)
            await self._answer(scope, receive, send, bundle, limits)
        except RequestRefused as refused:
            await refused.answer(scope, receive, send)
        except ClientDisconnected:
            return

    async def _answer(self, scope: Scope, receive: Receive, send: Send, bundle: Bundle | None, limits: Limits) -> None:
        """Read the body and pass the request on when its turn comes."""
        load = self._load = self._load or Load()
        body, counted = b"", 0
        try:
            body, counted = await read_body(receive, limits, load)
            work = load.begin(len(body), limits.max_wait_seconds)
            if work.waits:
                await work.wait()
        except Busy as busy:
            load.bytes -= counted
            after = str(busy.retry_after)
            message = f"The service is busy: try again in {after} s"
            raise RequestRefused(503, "busy", message, {"Retry-After": after}) from None
        except BaseException:
            load.bytes -= counted
            raise
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await receive()

        async def send_and_end(message: Message) -> None:
            work.end()
            await send(message)

        scope["bundle"] = bundle  # for the endpoint, since the bundle may be rolled back in the meantime
        scope["body"] = body
        try:
            await self.app(scope, replay, send_and_end)
        finally:
            work.end()
            load.bytes -= counted


def require_our_caller(scope: Scope, headers: Headers, hosts: tuple[str, ...]) -> None:
    """Check that a request is for one of our hosts, and not from another origin's page.

    Raises:
        RequestRefused: the check failed.
    """
    server = scope.get("server")
    if refusal := refuse_caller(scope["method"], headers, None if server is None else tuple(server), hosts, HOSTS):
        raise RequestRefused(*refusal)


def require_type(headers: Headers, wanted: str) -> None:
    """Check that a body has the declared media type and no encoding; a missing Content-Type is accepted.

    Raises:
        RequestRefused: it has another one.
    """
    given = headers.get(b"content-type")
    if given is not None and given != wanted.encode():
        media_type = given.partition(b";")[0].strip().lower().decode("latin-1")
        if not fnmatchcase(media_type, wanted):
            raise RequestRefused(
                415, "unsupported_media_type", f"Send the body as Content-Type: {wanted}", {"Accept": wanted}
            )
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise RequestRefused(415, "unsupported_encoding", "Send the body without a Content-Encoding")


async def read_body(receive: Receive, limits: Limits, load: Load) -> tuple[bytes, int]:
    """Return the whole body, and how many of its bytes are counted in `load`; the caller must subtract them.

    Raises:
        RequestRefused: it is too large, or does not come in time.
        Busy: too many bytes are in flight.
        ClientDisconnected: the client left.
    """
    counted = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            message = await receive()
            body: bytes = message.get("body", b"")
            if not message.get("more_body") and len(body) <= HEAVY_BYTES and message["type"] == "http.request":
                return body, 0  # the server already has it in memory
            chunks, size = [body], len(body)
            while True:
                if message["type"] != "http.request":
                    raise ClientDisconnected
                if size > limits.max_body_bytes:
                    raise _too_large(limits)
                if load.bytes + len(chunks[-1]) > max(limits.max_bytes_in_flight, limits.max_body_bytes):
                    raise Busy(1)
                load.bytes += len(chunks[-1])
                counted += len(chunks[-1])
                if not message.get("more_body"):
                    return b"".join(chunks), counted
                message = await receive()
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
    except TimeoutError:
        load.bytes -= counted
        seconds = f"{limits.body_seconds:g} s"
        raise RequestRefused(
            408, "body_too_slow", f"The body did not arrive within {seconds} (body_seconds)", {"Connection": "close"}
        ) from None
    except BaseException:
        load.bytes -= counted
        raise


def _too_large(limits: Limits) -> RequestRefused:
    message = f"The body is larger than the limit of {limits.max_body_bytes} bytes (max_body_bytes)"
    return RequestRefused(413, "body_too_large", message)
