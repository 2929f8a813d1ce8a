"""Answers that the prediction log could not take: the service counts them, and people are told."""

import http.client
import urllib.request
from contextlib import suppress

from ondol.config.settings import Settings
from ondol.orchestration.alerting import alert
from ondol.orchestration.processes import running
from ondol.storage.files import read_note, write_json

COUNTER = "ml_log_dropped_total"
SECONDS = 5.0


def alert_drops(settings: Settings) -> int:
    """Alert if a service dropped records since this was last asked; return how many.

    Asked are the service of this machine and those of `[environments]`; one that does not answer says nothing.
    """
    path = settings.home / "drops.json"
    before = read_note(path) or {}
    counts = {place: count for place in services(settings) if (count := read_count(f"{place}/metrics")) is not None}
    new = {place: _added(before.get(place, 0), count) for place, count in counts.items()}
    for place, added in new.items():
        if added:
            what = f"The service at {place} could not log {added:,} answers (all were given): its disk is full."
            todo = "Make room where its store's `log` is; `[log] keep_bytes` bounds what is kept."
            alert(settings, "log-dropped", what, todo, key=f"log-dropped {place}")
    if any(before.get(place, 0) != count for place, count in counts.items()):
        with suppress(OSError):  # the disk is still full: they are told again
            write_json(path, before | counts)
    return sum(new.values())


def services(settings: Settings) -> list[str]:
    """Return the addresses of the services whose answers are logged."""
    record = running(settings, "service")
    here = record.address if record else f"http://{settings.service.host}:{settings.service.port}"
    return [str(here), *(one.url.rstrip("/") for one in settings.environments.values())]


def _added(before: int, count: int) -> int:
    """Return how far a counter rose; that of a service that was started again counts from 0."""
    return count - before if count >= before else count


def read_count(url: str) -> int | None:
    """Return the counter's value in a Prometheus text, summed over workers; None where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            lines = answer.read().decode("utf-8", errors="replace").splitlines()
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith((f"{COUNTER} ", f"{COUNTER}{{"))))
