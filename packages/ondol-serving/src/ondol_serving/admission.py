"""Admission of requests: reading the body within its limits, and the load of an event loop."""

import asyncio
import math
from contextlib import nullcontext
from time import perf_counter

from starlette.types import Receive

from ondol_serving.errors import RequestRefused
from ondol_serving.protocol import is_received
from ondol_serving.settings import Limits

HEAVY_BYTES = 32_768  # larger bodies are read, predicted and answered in threads: the event loop stays free
HEAVY_AT_ONCE = 2  # of these large bodies; each may need ten times its size in memory
REQUEST_COST = 2_500  # the fixed cost of a request, in bytes of body
FIRST_GUESS = (1_000_000.0, 0.1)  # cost and seconds: assumed until some seconds of work have been measured
REMEMBERED_SECONDS = 2.0  # of work
# A request is refused if those in progress take longer than ANSWER_SECONDS by the recent speed, but never if they are
# fewer than the first number, and always if they are as many as the second one: larger batches hardly raise the
# throughput. With a slow model they do, and what arrives during a call waits for the next one.
ANSWER_SECONDS, SLOW_ANSWER_SECONDS = 0.01, 0.05
AT_ONCE = (32, 100)


class Busy(RequestRefused):
    """The service cannot answer the request within the configured time.

    Attributes:
        retry_after: Whole seconds after which the client may try again.
    """

    def __init__(self, retry_after: float) -> None:
        """Round up the seconds to wait."""
        self.retry_after = max(1, min(60, math.ceil(retry_after)))
        after = str(self.retry_after)
        super().__init__(503, "busy", f"The service is busy: try again in {after} s", {"Retry-After": after})


class Load:
    """The load of one event loop, and whether more requests can be admitted.

    The expected waiting time of a request is the load divided by the recent rate of work. Only time with work counts,
    so an idle service keeps its last measurement.
    """

    def __init__(self) -> None:
        """Start without load."""
        self.bytes = 0  # bytes of bodies that are not answered yet, except small ones that came in one piece
        self.small = 0  # requests in progress whose body is small
        self._arriving = 0  # requests whose head arrived in this turn of the event loop, and that begin in the next one
        self.turns = asyncio.Semaphore(HEAVY_AT_ONCE)
        self._cost = 0  # of all requests in progress
        self._done, self._seconds = FIRST_GUESS
        self._since = 0.0

    def wait_seconds(self) -> float:
        """Return the expected waiting time, in seconds, of a request that arrives now."""
        return self._cost * self._seconds / self._done

    def hold(self, size: int, limits: Limits) -> None:
        """Count bytes of a body in `bytes`; the caller must subtract them.

        Raises:
            Busy: too many are in flight.
        """
        if self.bytes + size > max(limits.max_bytes_in_flight, limits.max_body_bytes):
            raise Busy(1)
        self.bytes += size

    def has_room(self, limits: Limits, slow: bool = False) -> bool:
        """Return True if one more request may be in progress; `slow` is the model's, see `runtime.Runtime`."""
        fewest, most = AT_ONCE if limits.max_concurrency is None else (limits.max_concurrency,) * 2
        count = self.small + self._arriving
        if count < fewest:
            return True
        return count < most and self.wait_seconds() <= (SLOW_ANSWER_SECONDS if slow else ANSWER_SECONDS)

    def arrive(self) -> None:
        """Count a request whose head has arrived."""
        if not self._arriving:
            asyncio.get_running_loop().call_soon(self._forget_arriving)
        self._arriving += 1

    def _forget_arriving(self) -> None:
        self._arriving = 0

    def begin(self, size: int, limits: Limits, slow: bool = False) -> "Work":
        """Begin a request whose body of `size` bytes has been read; the caller must end it.

        Raises:
            Busy: there are too many, or it would wait longer than `max_wait_seconds`.
        """
        if not self.has_room(limits, slow):
            raise Busy(1)
        cost = size + REQUEST_COST
        if self._cost and (wait := self.wait_seconds()) > limits.max_wait_seconds:
            raise Busy(wait)
        self._pass()
        self._cost += cost
        if size > HEAVY_BYTES:
            return Work(self, cost, limits.max_wait_seconds)
        self.small += 1
        return Work(self, cost, None)

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
            if self._max_wait is None:
                self._load.small -= 1
            if self._turn:
                self._load.turns.release()
            self._load = None


class ClientDisconnected(Exception):
    """The client has left in the middle of its body."""


async def read_body(receive: Receive, limits: Limits, load: Load) -> tuple[bytes, int]:
    """Return the whole body, and how many of its bytes are counted in `load`; the caller must subtract them.

    Raises:
        RequestRefused: it is too large, or does not come in time.
        Busy: too many bytes are in flight.
        ClientDisconnected: the client left.
    """
    counted = 0
    # Most bodies have arrived with their head. A timer for each would cost some microseconds.
    timeout = nullcontext() if is_received(receive) else asyncio.timeout(limits.body_seconds)
    try:
        async with timeout:
            message = await receive()
            body: bytes = message.get("body", b"")
            small = len(body) <= min(HEAVY_BYTES, limits.max_body_bytes)
            if not message.get("more_body") and small and message["type"] == "http.request":
                return body, 0  # the server already has it in memory
            chunks, size = [body], len(body)
            while True:
                if message["type"] != "http.request":
                    raise ClientDisconnected
                if size > limits.max_body_bytes:
                    raise body_too_large(limits)
                load.hold(len(chunks[-1]), limits)
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


def body_too_large(limits: Limits) -> RequestRefused:
    """Return the refusal of a body that is larger than its limit."""
    message = f"The body is larger than the limit of {limits.max_body_bytes} bytes (max_body_bytes)"
    return RequestRefused(413, "body_too_large", message)
