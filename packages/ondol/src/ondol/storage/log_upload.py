"""Uploads the prediction log to a remote store, and updates the service's folder from it.

A log file only grows, so the longer of two copies is the newer one, and a part of a file is a valid copy.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ondol.config import Fetch
from ondol.errors import UserError
from ondol.storage.files import CHAMPION_FILE, KEYS_FILE, ROLLOUT_FILE, locked
from ondol.storage.store import LOG, Mirror

FIRST_SECONDS, MORE_SECONDS = 10.0, 50.0  # seconds between two copies of a growing file; larger files wait longer
LARGE_BYTES = 64_000_000  # size of a file from which it waits for the longest time
LAG_SECONDS = 120.0  # after this time an answer is in the store, if the store can be reached


class Shipper:
    """Uploads the log's files of one folder while they grow."""

    def __init__(self, mirror: Mirror, keep_bytes: int) -> None:
        """Upload to the store of `mirror`, which keeps the newest `keep_bytes` of the log."""
        self._mirror = mirror
        self._keep_bytes = keep_bytes
        self._sent: dict[str, int] | None = None
        self._due: dict[str, float] = {}

    def step(self, all_of_it: bool = False) -> None:
        """Upload each file that has grown and is due or, at the end, each that has grown.

        Raises:
            UserError: the store cannot be reached.
        """
        if self._sent is None:
            self._sent = {name: about.size for name, about in self._mirror.objects.list(LOG).items()}
        for path in sorted((self._mirror.folder / LOG).glob("*.jsonl")):
            if all_of_it or time.monotonic() >= self._due.get(path.name, 0.0):
                self._ship(path, self._sent)

    def _ship(self, path: Path, sent: dict[str, int]) -> None:
        name = f"{LOG}/{path.name}"
        try:
            size = path.stat().st_size
            if size <= sent.get(name, 0):
                return
            content = path.read_bytes()
        except FileNotFoundError:  # rotation removed it
            return
        whole = content[: content.rfind(b"\n") + 1]  # on a full disk, the service removes an incomplete line
        if len(whole) > sent.get(name, 0):
            self._mirror.objects.put(name, whole)
            if name not in sent:
                self._remove_oldest()
            sent[name] = len(whole)
        self._due[path.name] = time.monotonic() + FIRST_SECONDS + MORE_SECONDS * min(size / LARGE_BYTES, 1.0)

    def _remove_oldest(self) -> None:
        """Keep the size limit, as the service does for its folder."""
        found = self._mirror.objects.list(LOG)
        total = sum(about.size for about in found.values())
        for name, about in found.items():
            if total <= self._keep_bytes:
                return
            if not (self._mirror.folder / name).exists():
                self._mirror.objects.delete(name)
                total -= about.size


EACH_SECONDS = 1.0  # with half a second of the service, a promotion is in production within two seconds
REQUEST_SECONDS = 10.0
ONE_TRY = Fetch(timeout_seconds=REQUEST_SECONDS, retries=0)  # it tries again in the next second


class Outage:
    """Reports a store that does not answer once for any number of failures, and once when it answers again."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Report through `say`."""
        self._say = say
        self._failing: set[str] = set()
        self._lock = threading.Lock()

    def failed(self, what: str, error: Exception) -> None:
        """Record a failure of `what`."""
        with self._lock:
            if not self._failing:
                reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__} was raised."
                self._say(f"{reason} The service continues with what it has.")
            self._failing.add(what)

    def passed(self, what: str) -> None:
        """Record a success of `what`."""
        with self._lock:
            if what in self._failing:
                self._failing.remove(what)
                if not self._failing:
                    self._say("The store answers again.")


def keep_in_sync(mirror: Mirror, keep_bytes: int, stop: threading.Event, say: Callable[[str], None]) -> None:
    """Keep the mirror in sync with the store until `stop` is set; then upload the rest of the log.

    Args:
        mirror: The service's folder and its store.
        keep_bytes: How much of the log the store keeps.
        stop: The event that ends it.
        say: Called with a sentence when the store stops answering, and when it answers again.
    """
    outage, shipper = Outage(say), Shipper(mirror, keep_bytes)
    with locked(mirror.folder / ".follow.lock", wait=True):  # a second one takes over when the first ends
        steps = {
            "champion": partial(mirror.look, mirror.folder / CHAMPION_FILE),
            "rollout": partial(mirror.look, mirror.folder / ROLLOUT_FILE),
            "keys": partial(mirror.look, mirror.folder / KEYS_FILE),
            "log": shipper.step,
        }
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
    except Exception as error:  # any error: it tries again
        outage.failed(what, error)
    else:
        outage.passed(what)
