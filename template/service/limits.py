"""The gate in front of the endpoints: no model yet, and bodies that are too large."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.bundle import MAX_BODY_BYTES
from service.metrics import reserve_space
from service.serving import NO_MODEL, serving


class Gate:
    """ASGI middleware. It counts the bytes that arrive: a chunked body has no Content-Length to trust."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand in front of `app`. All middleware is made before any counts: the time to reserve space for it."""
        reserve_space()
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer 503 or 413 with one sentence."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        bundle = serving.bundle
        if bundle is None and scope["path"] == "/predict":
            return await JSONResponse({"error": NO_MODEL}, 503)(scope, receive, send)
        limit = MAX_BODY_BYTES if bundle is None else bundle.max_body_bytes
        body = await _read_body(receive, limit)
        if body is None:
            return await _refuse(limit)(scope, receive, send)
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await receive()

        scope["bundle"] = bundle  # for the endpoint: what serves may be taken back meanwhile
        await self.app(scope, replay, send)


async def _read_body(receive: Receive, limit: int) -> bytes | None:
    """Return the whole body, or None as soon as it is over `limit` bytes."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        chunks, size = [body], len(body)
        while message.get("more_body") and size <= limit:
            message = await receive()
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
        body = b"".join(chunks)
    return body if len(body) <= limit else None


def _refuse(limit: int) -> JSONResponse:
    message = f"The body is larger than the limit of {limit} bytes (max_body_bytes)"
    detail = [{"type": "body_too_large", "loc": [], "msg": message}]
    return JSONResponse({"error": message, "detail": detail}, 413, {"Connection": "close"})
