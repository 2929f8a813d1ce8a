"""The gate in front of the endpoints: who may ask, what may be sent, and how much at a time."""

import asyncio
from collections.abc import Mapping
from fnmatch import fnmatchcase

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ondol_serving.bundle import Bundle
from ondol_serving.callers import PROBES, Headers, read_headers, refuse_caller
from ondol_serving.front import REAL_PATH, refuse
from ondol_serving.limits import Limits, read_limits
from ondol_serving.load import HEAVY_BYTES, Busy, Load
from ondol_serving.metrics import reserve_space
from ondol_serving.serving import NO_MODEL, serving

WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
JSON = "application/json"
HOSTS = "[service] hosts (ML_SERVICE__HOSTS)"


class Gone(Exception):
    """The client has left in the middle of its body."""


class Refused(Exception):
    """A request that is answered without being read."""

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        """Hold the answer."""
        super().__init__(message)
        self.answer = refuse(status, kind, message, headers)


class Gate:
    """ASGI middleware. It counts the bytes that arrive: a chunked body has no Content-Length to trust."""

    def __init__(self, app: ASGIApp, types: Mapping[str, str] | None = None) -> None:
        """Stand in front of `app`. All middleware is made before any counts: the time to reserve space for it.

        Args:
            app: What is asked next.
            types: The media type of the body that each route declares.
        """
        reserve_space()
        self.app = app
        self._types = types or {"/predict": JSON}
        self._without_model = read_limits({})
        self._load: Load | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it with one sentence."""
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
                raise Refused(503, "no_model", NO_MODEL)
            if (wanted := self._types.get(scope["path"])) is not None:
                require_type(headers, wanted)
            declared = headers.get(b"content-length")
            if declared and declared.isdigit() and int(declared) > limits.max_body_bytes:
                raise _too_large(limits)
            await self._answer(scope, receive, send, bundle, limits)
        except Refused as refused:
            await refused.answer(scope, receive, send)
        except Gone:
            return

    async def _answer(self, scope: Scope, receive: Receive, send: Send, bundle: Bundle | None, limits: Limits) -> None:
        """Read the body and let the request through when its turn comes."""
        load = self._load = self._load or Load()
        body, held = b"", 0
        try:
            body, held = await read_body(receive, limits, load)
            work = load.begin(len(body), limits.max_wait_seconds)
            if work.waits:
                await work.wait()
        except Busy as busy:
            load.bytes -= held
            after = str(busy.retry_after)
            message = f"The service is busy: try again in {after} s"
            raise Refused(503, "busy", message, {"Retry-After": after}) from None
        except BaseException:
            load.bytes -= held
            raise
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await receive()

        async def send_and_end(message: Message) -> None:
            work.end()
            await send(message)

        scope["bundle"] = bundle  # for the endpoint: what is in production may be taken back meanwhile
        scope["body"] = body
        try:
            await self.app(scope, replay, send_and_end)
        finally:
            work.end()
            load.bytes -= held


def require_our_caller(scope: Scope, headers: Headers, hosts: tuple[str, ...]) -> None:
    """Refuse a request for another host or of another origin's page."""
    server = scope.get("server")
    if refusal := refuse_caller(scope["method"], headers, None if server is None else tuple(server), hosts, HOSTS):
        raise Refused(*refusal)


def require_type(headers: Headers, wanted: str) -> None:
    """Refuse a body of a media type or an encoding that the route does not declare; none is taken for the right one."""
    given = headers.get(b"content-type")
    if given is not None and given != wanted.encode():
        media_type = given.partition(b";")[0].strip().lower().decode("latin-1")
        if not fnmatchcase(media_type, wanted):
            raise Refused(415, "unsupported_media_type", f"Send the body as Content-Type: {wanted}", {"Accept": wanted})
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise Refused(415, "unsupported_encoding", "Send the body without a Content-Encoding")


async def read_body(receive: Receive, limits: Limits, load: Load) -> tuple[bytes, int]:
    """Return the whole body, and how many bytes of it are counted in `load`, which the caller gives back.

    Raises:
        Refused: it is too large, or does not come in time.
        Busy: too many bytes are in flight.
        Gone: the client left.
    """
    held = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            message = await receive()
            body: bytes = message.get("body", b"")
            if not message.get("more_body") and len(body) <= HEAVY_BYTES and message["type"] == "http.request":
                return body, 0  # the server has it in memory anyhow
            chunks, size = [body], len(body)
            while True:
                if message["type"] != "http.request":
                    raise Gone
                if size > limits.max_body_bytes:
                    raise _too_large(limits)
                if load.bytes + len(chunks[-1]) > max(limits.max_bytes_in_flight, limits.max_body_bytes):
                    raise Busy(1)
                load.bytes += len(chunks[-1])
                held += len(chunks[-1])
                if not message.get("more_body"):
                    return b"".join(chunks), held
                message = await receive()
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
    except TimeoutError:
        load.bytes -= held
        seconds = f"{limits.body_seconds:g} s"
        raise Refused(
            408, "body_too_slow", f"The body did not arrive within {seconds} (body_seconds)", {"Connection": "close"}
        ) from None
    except BaseException:
        load.bytes -= held
        raise


def _too_large(limits: Limits) -> Refused:
    message = f"The body is larger than the limit of {limits.max_body_bytes} bytes (max_body_bytes)"
    return Refused(413, "body_too_large", message)
