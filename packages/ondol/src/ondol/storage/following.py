"""Keeps a service's folder current where the store is elsewhere: what serves comes down, what was answered goes up."""

import threading
from collections.abc import Callable
from functools import partial

from ondol.config.data import Fetch
from ondol.errors import UserError
from ondol.storage.files import locked
from ondol.storage.mirror import CHAMPION, Mirror
from ondol.storage.shipping import Shipper

EACH_SECONDS = 1.0  # and half a second of the service: a promotion is in service within two
REQUEST_SECONDS = 10.0
PATIENCE = Fetch(timeout_seconds=REQUEST_SECONDS, retries=0)  # the next second is the next try


class Outage:
    """Says once that the store does not answer, whatever fails by that, and once that it does again."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Say it by `say`."""
        self._say = say
        self._failing: set[str] = set()
        self._lock = threading.Lock()

    def failed(self, what: str, error: Exception) -> None:
        """Note that `what` failed."""
        with self._lock:
            if not self._failing:
                said = str(error) if isinstance(error, UserError) else f"{type(error).__name__} was raised."
                self._say(f"{said} The service goes on with what it has.")
            self._failing.add(what)

    def passed(self, what: str) -> None:
        """Note that `what` did not fail."""
        with self._lock:
            if what in self._failing:
                self._failing.remove(what)
                if not self._failing:
                    self._say("The store answers again.")


def follow(mirror: Mirror, keep_bytes: int, stop: threading.Event, say: Callable[[str], None]) -> None:
    """Follow the store until `stop` is set; then copy what was logged last.

    Args:
        mirror: The service's folder and its store.
        keep_bytes: How much of the log the store keeps.
        stop: Ends it.
        say: Gets a sentence when the store stops answering, and when it answers again.
    """
    outage, shipper = Outage(say), Shipper(mirror, keep_bytes)
    with locked(mirror.folder / ".follow.lock", wait=True):  # a second one takes over when the first ends
        steps = {"champion": partial(mirror.look, mirror.folder / CHAMPION), "log": shipper.step}
        threads = [threading.Thread(target=_repeat, args=(*one, stop, outage)) for one in steps.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _try("log", partial(shipper.step, all_of_it=True), outage)


def _repeat(what: str, step: Callable[[], None], stop: threading.Event, outage: Outage) -> None:
    while not stop.is_set():
        _try(what, step, outage)
        stop.wait(EACH_SECONDS)


def _try(what: str, step: Callable[[], None], outage: Outage) -> None:
    try:
        step()
    except Exception as error:  # whatever it is, the next try comes
        outage.failed(what, error)
    else:
        outage.passed(what)
