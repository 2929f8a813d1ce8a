"""Answers that the prediction log could not take: the service counts them, and people are told."""

import http.client
import urllib.request
from contextlib import suppress

from flows.alerting import alert
from flows.processes import running
from flows.settings import Settings
from flows.store.files import read_json, write_json

COUNTER = "ml_log_dropped_total"
SECONDS = 5.0


def tell_of_drops(settings: Settings) -> int:
    """Alert if the service dropped records since this was last asked; return how many.

    A service that does not answer on this machine says nothing: Prometheus watches those elsewhere
    (`ops/alerts.yaml`).
    """
    record = running(settings, "service")
    address = record.address if record else f"http://{settings.service.host}:{settings.service.port}"
    count = read_count(f"{address}/metrics")
    if count is None:
        return 0
    path = settings.home / "drops.json"
    before = int((read_json(path) or {}).get("count", 0))
    new = count - before if count >= before else count  # a service that was started again counts from 0
    if new:
        what = f"The service could not log {new:,} answers (all were given): its disk is full or not writable."
        todo = f"Make room for {settings.show(settings.store_path / 'log')}; `[log] keep_bytes` bounds what is kept."
        alert(settings, "log-dropped", what, todo, key="log-dropped")
    if count != before:
        with suppress(OSError):  # the disk is still full: they are told again
            write_json(path, {"count": count})
    return new


def read_count(url: str) -> int | None:
    """Return the counter's value in a Prometheus text, summed over workers; None where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            lines = answer.read().decode("utf-8", errors="replace").splitlines()
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith((f"{COUNTER} ", f"{COUNTER}{{"))))
