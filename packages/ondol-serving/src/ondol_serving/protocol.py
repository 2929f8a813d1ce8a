"""uvicorn's HTTP/1.1 protocol with timeouts, with early refusals, and with one system call for each answer.

uvicorn has no timeout for the rest of a head, for the rest of a body that was already answered, or for a client that
does not read, and no limit for the size of a head. An ASGI application sees none of these.

When the service is busy, most of its time would go into refusals: one by an ASGI application takes nearly the time of
an answer. Here it takes a third.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0  # for a whole head, and for the rest of a body that was answered
HEAD_BYTES = 65_536  # besides the data that came in the same piece as its beginning
READ_SECONDS = 60.0  # for a client to continue reading
REFUSAL_SECONDS = 0.03  # that an early refusal waits: some clients ask again as soon as they are refused
ANSWER = b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
FindRefusal = Callable[[bytes, bytes], bytes | None]

_find_refusal: FindRefusal | None = None


class JoiningTransport:
    """A transport that sends the head of an answer together with what follows in the same turn of the event loop.

    uvicorn writes them one after the other, and each is a system call that wakes the client up.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Wrap a transport."""
        self._transport, self._loop = transport, loop
        self._waiting: bytes | None = None
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        """Return what is not defined here."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send data, at the latest at the end of this turn."""
        if self._waiting is None:
            self._waiting = data
            self._loop.call_soon(self._send)
        else:
            waiting, self._waiting = self._waiting, None
            self._transport.write(waiting + data)

    def close(self) -> None:
        """Send what waits, and close the connection."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._transport.write(waiting)


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    _timer: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _message = False  # whether one has begun and not ended
    _head_bytes = 0
    _refused = False  # whether the current message, or the last one, is refused
    _refusal: bytes | None = None  # the answer to it, until it is sent
    _keep_alive = True  # after that answer

    def connection_made(self, transport: Any) -> None:
        """Wait for a first request."""
        super().connection_made(JoiningTransport(transport, self.loop))  # type: ignore[arg-type]
        # Otherwise uvicorn builds each line before the logger discards it.
        self.access_log = self.access_log and self.access_logger.isEnabledFor(logging.INFO)
        self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        super().connection_lost(exc)
        for timer in (self._timer, self._reading):
            if timer is not None:
                timer.cancel()
        self._timer = self._reading = None

    def data_received(self, data: bytes) -> None:
        """Process the data, unless the head becomes too long; a timer runs while something is unfinished."""
        if self._in_head():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                return self._close_with(b"431 Request Header Fields Too Large")
        super().data_received(data)
        if self._is_unfinished():
            if self._timer is None:
                self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._send_refusal()  # of the message before, without which the client has sent this one
        super().on_message_begin()
        self._message, self._refused = True, False
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Pass the request to the application, unless it is refused."""
        if _find_refusal is not None and (self.cycle is None or self.cycle.response_complete):
            self._refusal = _find_refusal(self.parser.get_method(), self.url)
        if self._refusal is None:
            return super().on_headers_complete()
        self._refused = True
        self._keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        self.loop.call_later(REFUSAL_SECONDS, self._send_refusal)

    def on_body(self, body: bytes) -> None:
        """Take a part of a body; that of a refused request is not kept."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a body."""
        self._message = False
        if not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start a timer for the rest of the body, or of the next head, if one is incomplete."""
        super().on_response_complete()
        if self._is_unfinished() and self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def pause_writing(self) -> None:
        """Start a timer for the client to read."""
        super().pause_writing()
        self._reading = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Continue writing."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def shutdown(self) -> None:
        """Send a refusal that waits before the server closes the connection."""
        self._send_refusal()
        super().shutdown()

    def _is_unfinished(self) -> bool:
        """Return True while a head, or a body that was already answered, is incomplete."""
        return self._message and (self._in_head() or self._refused or self.cycle.response_complete)

    def _in_head(self) -> bool:
        """Return True while a head is incomplete: uvicorn creates a cycle when it is complete."""
        begun = self.cycle is not None and self.cycle.scope is self.scope
        return self._message and not begun and not self._refused

    def _send_refusal(self) -> None:
        answer, self._refusal = self._refusal, None
        if answer is None or self.transport.is_closing():
            return
        self.transport.write(answer)
        if not self._keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _give_up(self) -> None:
        self._timer = None
        if self._in_head():
            self._close_with(b"408 Request Timeout")
        else:
            self.transport.close()

    def _close_with(self, status: bytes) -> None:
        """Answer and end the connection."""
        if not self.transport.is_closing():
            self.transport.write(ANSWER % status)
            self.transport.close()


def is_received(receive: Any) -> bool:
    """Return True if uvicorn has received the whole body of a request, so that `receive` does not wait for it."""
    return not getattr(getattr(receive, "__self__", None), "more_body", True)


def refuse_early(find: FindRefusal) -> None:
    """Ask `find`, with the method and the target of each request, for the answer to those that are refused."""
    global _find_refusal
    _find_refusal = find


def use_protocol() -> None:
    """Let the servers of this process use this protocol."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{HttpProtocol.__name__}"
