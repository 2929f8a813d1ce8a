"""uvicorn's HTTP/1.1 protocols with timeouts for unfinished requests and slow clients.

uvicorn has no timeout for the rest of a head, for the rest of a body that was already answered, or for a client that
does not read. With httptools it also accepts a head of any size. An ASGI application sees none of these.
"""

import asyncio
import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import h11
import uvicorn.config
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING or find_spec("httptools"):
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
else:
    HttpToolsProtocol = None

HEAD_SECONDS = 10.0  # for a whole head, and for the rest of a body that was answered
HEAD_BYTES = 65_536  # besides the data that came in the same piece as its beginning
READ_SECONDS = 60.0  # for a client to continue reading
ANSWER = b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class ConnectionTimeouts:
    """Adds timeouts to one of uvicorn's protocols; one object per connection."""

    _timer: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self: Any, transport: Any) -> None:
        """Wait for a first request."""
        super().connection_made(transport)  # type: ignore[misc]
        # Otherwise uvicorn builds each line before the logger discards it.
        self.access_log = self.access_log and self.access_logger.isEnabledFor(logging.INFO)
        self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self: Any, exc: Exception | None) -> None:
        """Cancel the timers."""
        super().connection_lost(exc)  # type: ignore[misc]
        for timer in (self._timer, self._reading):
            if timer is not None:
                timer.cancel()
        self._timer = self._reading = None

    def data_received(self: Any, data: bytes) -> None:
        """Process the data; a timer runs while a head, or an answered body, is incomplete."""
        super().data_received(data)  # type: ignore[misc]
        if self.is_unfinished():
            if self._timer is None:
                self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_response_complete(self: Any) -> None:
        """Start a timer for the rest of the body, or of the next head, if one is incomplete."""
        super().on_response_complete()  # type: ignore[misc]
        if self.is_unfinished() and self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def pause_writing(self: Any) -> None:
        """Start a timer for the client to read."""
        super().pause_writing()  # type: ignore[misc]
        self._reading = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self: Any) -> None:
        """Continue writing."""
        super().resume_writing()  # type: ignore[misc]
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _give_up(self: Any) -> None:
        self._timer = None
        if self.in_head():
            self.close_with(b"408 Request Timeout")
        else:
            self.transport.close()

    def close_with(self: Any, status: bytes) -> None:
        """Answer and end the connection."""
        if not self.transport.is_closing():
            self.transport.write(ANSWER % status)
            self.transport.close()


class TimedH11(ConnectionTimeouts, H11Protocol):
    """With h11, which limits the size of a head itself."""

    def in_head(self) -> bool:
        """Return True while a head is incomplete."""
        return self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])

    def is_unfinished(self) -> bool:
        """Return True while a head, or a body that was already answered, is incomplete."""
        in_body = self.conn.their_state is h11.SEND_BODY
        return self.in_head() or (in_body and self.cycle is not None and self.cycle.response_complete)


if HttpToolsProtocol is not None:

    class TimedHttpTools(ConnectionTimeouts, HttpToolsProtocol):
        """With httptools."""

        _message = False  # whether one has begun and not ended
        _head_bytes = 0

        def is_unfinished(self) -> bool:
            """Return True while a head, or a body that was already answered, is incomplete."""
            return self._message and (self.in_head() or self.cycle.response_complete)

        def in_head(self) -> bool:
            """Return True while a head is incomplete: uvicorn creates a cycle when it is complete."""
            return self._message and (self.cycle is None or self.cycle.scope is not self.scope)

        def data_received(self, data: bytes) -> None:
            """Process the data, unless the head becomes too long."""
            if self._message and self.in_head():
                self._head_bytes += len(data)
                if self._head_bytes > HEAD_BYTES:
                    return self.close_with(b"431 Request Header Fields Too Large")
            super().data_received(data)

        def on_message_begin(self) -> None:
            """Begin a head."""
            super().on_message_begin()
            self._message = True
            self._head_bytes = 0

        def on_message_complete(self) -> None:
            """End a body."""
            self._message = False
            super().on_message_complete()


def is_received(receive: Any) -> bool:
    """Return True if uvicorn has received the whole body of a request, so that `receive` does not wait for it."""
    return not getattr(getattr(receive, "__self__", None), "more_body", True)


def use_protocol() -> None:
    """Let the servers of this process use these protocols."""
    name = "TimedH11" if HttpToolsProtocol is None else "TimedHttpTools"
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{name}"
