"""How much is being read and answered by this process, and whether more can be taken."""

import asyncio
import math
from time import perf_counter

HEAVY_BYTES = 32_768  # larger bodies are read, predicted and answered in threads: the event loop stays free
HEAVY_AT_ONCE = 2  # of these; each may need ten times its body's memory
REQUEST_COST = 2_500  # what a request costs beside its body, in bytes of body
FIRST_GUESS = (1_000_000.0, 0.1)  # cost and seconds: what is assumed until some seconds of work have been measured
REMEMBERED_SECONDS = 2.0  # of work


class Busy(Exception):
    """More than can be served in the time that is set.

    Attributes:
        retry_after: Whole seconds after which it may be tried again.
    """

    def __init__(self, retry_after: float) -> None:
        """Round up what is to be waited."""
        super().__init__(retry_after)
        self.retry_after = max(1, min(60, math.ceil(retry_after)))


class Load:
    """What is at work in one event loop.

    The time that a request will wait is what is at work divided by how fast work was done lately. Only time in which
    there was work counts, so a quiet service keeps what it has measured.
    """

    def __init__(self) -> None:
        """Start with nothing at work."""
        self.bytes = 0  # of bodies that are not answered yet, but for small ones that came in one piece
        self.turns = asyncio.Semaphore(HEAVY_AT_ONCE)
        self._cost = 0  # of all that is at work
        self._done, self._seconds = FIRST_GUESS
        self._since = 0.0

    def wait_seconds(self) -> float:
        """Return for how long a request that comes now will wait, as far as can be foreseen."""
        return self._cost * self._seconds / self._done

    def begin(self, size: int, max_wait: float) -> "Work":
        """Begin a request whose body of `size` bytes has been read; it is to be ended.

        Raises:
            Busy: its turn would not come within `max_wait` seconds.
        """
        cost = size + REQUEST_COST
        if self._cost and (wait := self.wait_seconds()) > max_wait:
            raise Busy(wait)
        self._pass()
        self._cost += cost
        return Work(self, cost, max_wait if size > HEAVY_BYTES else None)

    def end(self, cost: int) -> None:
        """Count work that was done."""
        self.drop(cost)
        self._done += cost
        if self._seconds > REMEMBERED_SECONDS:
            self._done, self._seconds = self._done / 2, self._seconds / 2

    def drop(self, cost: int) -> None:
        """Forget work that was not done."""
        self._pass()
        self._cost -= cost

    def _pass(self) -> None:
        """Count the time since the last change, if there was work."""
        now = perf_counter()
        if self._cost:
            self._seconds += now - self._since
        self._since = now


class Work:
    """A request at work."""

    __slots__ = ("_cost", "_load", "_max_wait", "_turn")

    def __init__(self, load: Load, cost: int, max_wait: float | None) -> None:
        """Hold what `end` gives back; a request with `max_wait` has a turn to wait for."""
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
        """End it, once: when its answer begins, since how fast a client reads is the client's affair."""
        if self._load is not None:
            self._load.end(self._cost)
            if self._turn:
                self._load.turns.release()
            self._load = None
