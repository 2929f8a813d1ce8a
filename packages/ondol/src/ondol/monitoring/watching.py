"""One look at the log: which window is due, what was answered in it, and how it compares."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from ondol.config.base import is_address
from ondol.config.settings import Settings
from ondol.deployment.reference import Reference, read_reference
from ondol.monitoring.drift import Comparison, compare
from ondol.monitoring.frames import Sides, pair, plain_text, window_frame
from ondol.monitoring.judging import judged
from ondol.monitoring.log import Logged, Tally, sample_logged, tally_window
from ondol.monitoring.windows import Window, Windows, window_id
from ondol.registry.bundles import Bundle, open_bundle
from ondol.registry.champion import Champion, require_champion
from ondol.storage.files import sole
from ondol.storage.shipping import LAG_SECONDS, fetch_log

SETTLE_SECONDS = 1.0  # between an answer's time and its record in the file
SEED = 0


@dataclass(frozen=True)
class Watch:
    """What is watched: the champion, its bundle and the reference in that."""

    champion: Champion
    bundle: Bundle
    reference: Reference


@dataclass(frozen=True)
class Look:
    """A window and, where it had rows enough, what was compared."""

    window: Window
    sides: Sides | None = None
    comparison: Comparison | None = None


def open_watch(settings: Settings) -> Watch:
    """Return what is watched.

    Raises:
        UserError: nothing serves, or its bundle has no reference.
    """
    champion = require_champion(settings.store_path)
    bundle = open_bundle(settings.store_path, champion.bundle)
    return Watch(champion, bundle, read_reference(bundle))


@contextmanager
def only_monitor(settings: Settings) -> Iterator[None]:
    """Hold the monitor's lock: two at once would judge the same rows.

    Raises:
        UserError: another monitor holds it.
    """
    complaint = "Another `ml monitor` is at work on this store: wait until it ends."
    with sole(settings.store_path / "monitor.lock", complaint):
        yield


def window_end(settings: Settings) -> datetime:
    """Return up to when the log is complete: now, or when what was answered then is in an object store."""
    lag = LAG_SECONDS if is_address(settings.store) else 0.0
    return datetime.now(UTC) - timedelta(seconds=lag)


def look(settings: Settings, watch: Watch, end: datetime) -> Look:
    """Compare the log from where the last window ended up to `end`; report and sample are kept beside the record.

    The record itself is not written yet: until it is, the rows belong to no window and the next run takes them up.
    """
    store, rules = settings.store_path, settings.monitor
    windows = Windows(store)
    start = windows.next_start(watch.champion)
    wait_until(end)
    fetch_log(store, start)
    tally = tally_window(store / "log", start, end, watch.bundle.name)
    window = describe(watch, start, end, tally)
    if tally.rows < rules.min_rows:
        return Look(too_small(window, rules.min_rows))
    logged = sample_logged(tally, rules.sample_rows, SEED)
    sides = pair(watch.reference, window_frame(watch.reference, logged))
    comparison = compare(sides, watch.reference.output, rules)
    _keep(windows, watch, window, logged, comparison)
    window = window.model_copy(update={"sampled": len(logged)})
    return Look(judged(window, comparison, rules.drift_share), sides, comparison)


def wait_until(end: datetime) -> None:
    """Wait until what was answered before `end` stands in the log."""
    time.sleep(max(0.0, end.timestamp() + SETTLE_SECONDS - datetime.now(UTC).timestamp()))


def describe(watch: Watch, start: datetime, end: datetime, tally: Tally) -> Window:
    """Return the window with its volume and latency."""
    hours = max((end - start).total_seconds(), 1.0) / 3600
    latency = dict(zip(("p50", "p99"), np.quantile(tally.ms, (0.5, 0.99)).tolist(), strict=True)) if tally.ms else {}
    return Window(
        id=window_id(start, watch.champion.version),
        start=start,
        end=end,
        version=watch.champion.version,
        bundle=watch.bundle.name,
        verdict="ok",
        requests=tally.requests,
        rows=tally.rows,
        others=tally.others,
        unreadable=tally.unreadable,
        rows_per_hour=tally.rows / hours,
        latency=latency,
    )


def too_small(window: Window, least: int) -> Window:
    """Return the window as one that says nothing; its rows join the next."""
    reason = f"{window.rows:,} rows since {window.start:%Y-%m-%d %H:%M} UTC are too few to judge: {least:,} are needed"
    return window.model_copy(update={"verdict": "too small", "reasons": (reason,)})


def _keep(windows: Windows, watch: Watch, window: Window, logged: list[Logged], comparison: Comparison) -> None:
    identity = watch.reference.contract.role("id")
    windows.write_sample(window.id, logged, identity.name if identity else None, plain_text)
    if comparison.report is not None:
        windows.write_report(window.id, comparison.html)
