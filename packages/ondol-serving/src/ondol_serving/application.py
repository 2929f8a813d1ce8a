"""The outermost ASGI application of the service, in front of BentoML's own.

It checks, counts and admits each request. Most of the time of a prediction would be spent in BentoML's layers, so it
answers the routes in `direct` itself. It passes all others to BentoML, such as an endpoint of the project.
"""

import logging
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from http import HTTPStatus
from time import perf_counter

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ondol_serving.access import HEALTH, METRICS
from ondol_serving.admission import Busy, ClientDisconnected, Work, body_too_large, read_body
from ondol_serving.bundle import Bundle
from ondol_serving.callers import Headers, read_headers, refuse_caller
from ondol_serving.errors import FAILED, RequestRefused, refuse, refuse_method
from ondol_serving.inference_protocol import INFER
from ondol_serving.metrics import RequestMetrics, counters, prepare_files, request_metrics
from ondol_serving.protocol import refuse_early
from ondol_serving.serving import NO_MODEL, serving
from ondol_serving.settings import HOSTS, Limits, read_limits

LONGEST_TARGET = 8_192  # bytes of path and query
LONGEST_HEAD = 65_536  # bytes of all headers
MOST_HEADERS = 100
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")  # of a route for all methods
WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
JSON = "application/json"
PREDICTING = ("/predict", "/explain", *INFER)  # refused before the body is read if there is no model
LABEL = "service.route"  # scope key: the path, or the pattern of its route

log = logging.getLogger("bentoml.service")


class Application:
    """Checks the path, the caller, the media type and the size of each request, limits the load, and passes it on.

    Unknown paths are answered here, with one counter: a metric for each path would fill memory, disk and `/metrics`. A
    path that belongs to a route with parameters or to a mounted application is counted under the route's pattern.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute], types: Mapping[str, tuple[str, ...]]) -> None:
        """Wrap `app`.

        Args:
            app: What answers the requests that are admitted.
            routes: The routes of `app`.
            types: The media types of the body that each path declares.
        """
        self.app = app
        self.routes = list(routes)
        self._types = types
        self._exact: dict[str, frozenset[str]] = {}  # methods by path
        for path, methods in find_exact(self.routes, ""):
            self._exact[path] = self._exact.get(path, frozenset()) | methods
        self._without_model = read_limits({})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008})  # closing before it was accepted is a 403
        if scope["type"] != "http":  # the start of the server
            prepare_files()
            request_metrics().start({*self._exact, *INFER})
            refuse_early(self._refuse_early)
            return await self.app(scope, receive, send)
        if refusal := refuse_head(scope):
            return await refusal(scope, receive, send)
        label, methods = scope["path"], self._exact.get(scope["path"])
        if methods is None:
            if (found := find_route(self.routes, scope)) is None:
                counters().unknown_paths.inc()
                return await NOT_FOUND(scope, receive, send)
            label, methods = found
        if scope["method"] not in methods:
            return await refuse_method(methods)(scope, receive, send)
        scope[LABEL] = label
        metrics = request_metrics()
        if label == METRICS:
            metrics.write()
        exchange = Exchange(metrics, label, receive, send)
        metrics.begin(label)
        try:
            await self._admit(scope, receive, exchange)
        except RequestRefused as refused:
            await refused.answer(scope, receive, exchange.send)
        except ClientDisconnected:
            return
        except Exception:
            if exchange.started:
                raise
            log.exception("Exception on %s [%s]", scope["path"], scope["method"])
            await JSONResponse({"error": FAILED}, 500)(scope, receive, exchange.send)
        finally:
            metrics.end(label)

    def _refuse_early(self, method: bytes, target: bytes) -> bytes | None:
        """Return the answer to a request whose head has arrived if too many are in progress, else None."""
        if (bundle := serving.bundle) is None or method.decode() in WITHOUT_BODY:
            return None
        if serving.load.has_room(bundle.limits, bundle.runtime.slow):
            serving.load.arrive()
            return None
        label = self._find_label(method.decode(), target.partition(b"?")[0].decode("latin-1"))
        if label is None:
            counters().unknown_paths.inc()
        else:
            request_metrics().count_refused(label)
        return BUSY

    def _find_label(self, method: str, path: str) -> str | None:
        """Return the name of a path in the metrics; None if there is no such path."""
        if path in self._exact:
            return path
        found = find_route(self.routes, {"type": "http", "method": method, "path": path})
        return None if found is None else found[0]

    async def _admit(self, scope: Scope, receive: Receive, exchange: "Exchange") -> None:
        """Check a request, read its body and pass it on when its turn comes.

        Raises:
            RequestRefused: a check failed, or the service is busy.
            ClientDisconnected: the client left before its body was complete.
        """
        path = scope[LABEL]
        if path in HEALTH:
            return await self.app(scope, exchange.receive, exchange.send)
        bundle = serving.bundle
        limits = self._without_model if bundle is None else bundle.limits
        headers = read_headers(scope["headers"])
        if path != METRICS:
            require_our_caller(scope, headers, limits.hosts)
        if serving.access.active:
            await serving.access.admit(path, headers, scope["client"][0] if scope.get("client") else "")
        if scope["method"] in WITHOUT_BODY:
            return await self.app(scope, exchange.receive, exchange.send)
        if bundle is None and path in PREDICTING:
            raise RequestRefused(503, "no_model", NO_MODEL)
        if (wanted := self._types.get(path)) is not None:
            require_type(headers, wanted)
        declared = headers.get(b"content-length")
        if declared and declared.isdigit() and int(declared) > limits.max_body_bytes:
            raise body_too_large(limits)
        await self._read(scope, receive, exchange, bundle, limits)

    async def _read(
        self, scope: Scope, receive: Receive, exchange: "Exchange", bundle: Bundle | None, limits: Limits
    ) -> None:
        load = serving.load
        body, counted = b"", 0
        try:
            body, counted = await read_body(receive, limits, load)
            work = load.begin(len(body), limits, bundle is not None and bundle.runtime.slow)
            if work.waits:
                await work.wait()
            exchange.body, exchange.work = body, work
            scope["bundle"] = bundle  # for the endpoint, since the bundle may be rolled back in the meantime
            scope["body"] = body
            try:
                await self.app(scope, exchange.receive, exchange.send)
            finally:
                work.end()
        finally:
            load.bytes -= counted


class Exchange:
    """What the application behind this one receives and sends for one request."""

    __slots__ = ("_label", "_metrics", "_receive", "_send", "_started", "_status", "body", "work")

    def __init__(self, metrics: RequestMetrics, label: str, receive: Receive, send: Send) -> None:
        """Start the clock of the request's duration."""
        self._metrics, self._label, self._receive, self._send = metrics, label, receive, send
        self._started = perf_counter()
        self._status = 0
        self.body: bytes | None = None  # the whole body, once it has been read
        self.work: Work | None = None

    @property
    def started(self) -> bool:
        """Whether the answer has begun."""
        return self._status != 0

    async def receive(self) -> Message:
        """Return the body, which has been read already, or the server's next message."""
        if self.body is None:
            return await self._receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Pass a message on. The work ends when the answer begins, and its end is counted."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if self.work is not None:
                self.work.end()
        elif not message.get("more_body"):
            self._metrics.count(self._label, self._status, perf_counter() - self._started)
        await self._send(message)


class Dispatcher:
    """The ASGI application behind `Application`: the routes in `direct`, and BentoML's application for all others."""

    def __init__(self, direct: Mapping[str, ASGIApp], app: ASGIApp) -> None:
        """Store the application of each route in `direct`, and the one of all other routes."""
        self._direct = direct
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. An error that the route did not expect is logged and answered with 500."""
        if scope["type"] != "http" or (direct := self._direct.get(scope[LABEL])) is None:
            return await self._app(scope, receive, send)
        try:
            await direct(scope, receive, send)
        except RequestRefused as refused:
            await refused.answer(scope, receive, send)
        except Exception:
            log.exception("Exception on %s [%s]", scope["path"], scope["method"])
            await JSONResponse({"error": FAILED}, 500)(scope, receive, send)


def find_exact(routes: Iterable[BaseRoute], prefix: str) -> Iterable[tuple[str, frozenset[str]]]:
    """Yield path and methods of routes without parameters, also those of mounted applications."""
    for route in routes:
        if isinstance(route, Route) and not route.param_convertors:
            yield prefix + route.path, frozenset(route.methods or METHODS)
        elif isinstance(route, Mount) and route.routes and not route.path.count("{"):
            yield from find_exact(route.routes, prefix + route.path)


def find_route(routes: Iterable[BaseRoute], scope: Scope) -> tuple[str, frozenset[str]] | None:
    """Return pattern and methods of the first route that matches a path and, if there is one, the method."""
    other: tuple[str, frozenset[str]] | None = None
    for route in routes:
        match, inner = route.matches(scope)
        if match is Match.NONE:
            continue
        pattern, methods = str(getattr(route, "path", "/{path}")), frozenset(getattr(route, "methods", None) or METHODS)
        if isinstance(route, Mount):
            below = find_route(route.routes, {**scope, **inner}) if route.routes else None
            pattern, methods = (pattern + below[0], below[1]) if below else (f"{pattern}/{{path}}", methods)
        if match is Match.FULL:
            return pattern, methods
        other = other or (pattern, methods)
    return other


def refuse_head(scope: Scope) -> JSONResponse | None:
    """Return the answer to a request whose path, query or headers are too long, None if they are not."""
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > LONGEST_TARGET:
        return refuse(414, "target_too_long", f"The path and query are longer than {LONGEST_TARGET} bytes")
    headers = scope["headers"]
    if len(headers) > MOST_HEADERS or sum([len(n) + len(v) for n, v in headers]) > LONGEST_HEAD:
        message = f"The request has more than {MOST_HEADERS} headers, or more than {LONGEST_HEAD} bytes of them"
        return refuse(431, "head_too_long", message)
    return None


def write_answer(answer: Response) -> bytes:
    """Return an answer as it is sent."""
    lines = [f"HTTP/1.1 {answer.status_code} {HTTPStatus(answer.status_code).phrase}".encode()]
    lines += [name + b": " + value for name, value in answer.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(answer.body)])


BUSY = write_answer(Busy(1).answer)
NOT_FOUND = refuse(404, "not_found", "There is no endpoint at this path: the page at / lists the endpoints")


def require_our_caller(scope: Scope, headers: Headers, hosts: tuple[str, ...]) -> None:
    """Check that a request is for one of our hosts, and not from another origin's page.

    Raises:
        RequestRefused: the check failed.
    """
    server = scope.get("server")
    if refusal := refuse_caller(scope["method"], headers, None if server is None else tuple(server), hosts, HOSTS):
        raise RequestRefused(*refusal)


def require_type(headers: Headers, wanted: tuple[str, ...]) -> None:
    """Check that a body has a declared media type and no encoding; a missing Content-Type is accepted.

    Raises:
        RequestRefused: it has another one.
    """
    given = headers.get(b"content-type")
    if given is not None and given != wanted[0].encode():
        media_type = given.partition(b";")[0].strip().lower().decode("latin-1")
        if not any(fnmatchcase(media_type, one) for one in wanted):
            message = f"Send the body as Content-Type: {' or '.join(wanted)}"
            raise RequestRefused(415, "unsupported_media_type", message, {"Accept": ", ".join(wanted)})
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise RequestRefused(415, "unsupported_encoding", "Send the body without a Content-Encoding")
