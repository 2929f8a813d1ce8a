"""Reads a window of the prediction log: every record is counted, a seeded sample of rows is parsed."""

import http.client
import json
import math
import re
import urllib.error
import urllib.request
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from ondol.config import Settings
from ondol.orchestration.alerts import alert
from ondol.orchestration.processes import running
from ondol.orchestration.reporting import say
from ondol.project import Project
from ondol.redaction import add_authorization
from ondol.storage.files import read_note, write_json
from ondol.storage.store import SKEW_SECONDS

# A record as the service writes it; other records are parsed as JSON, which is slower.
HEAD = re.compile(
    rb'\{"id":"[^"\\]*","at":"([^"\\]*)","version":"[^"\\]*","bundle":"([^"\\]*)",(?:"role":"ch[a-z]+",)?'
    rb'"ms":([-+.eE0-9]+),"r'
)
PREDICTIONS = b'"predictions":'
_decode = json.JSONDecoder().raw_decode


class Head(NamedTuple):
    """The fields read from every record: time (seconds since 1970), bundle, latency (ms), number of rows."""

    at: float
    bundle: str
    ms: float
    rows: int


# In a rollout, what only `ondol.rollout` reads: a failure, or what a version computed and no caller got. Its time is in
# no window.
NO_ANSWER = Head(math.nan, "", math.nan, 0)
SHADOW = "shadow"  # the role of a version that computes what no caller gets


@dataclass
class Tally:
    """The requests of a window: position, number of rows and latency (ms) of each.

    Attributes:
        unreadable: Invalid lines in the files of the window.
        others: Requests of the window that other bundles answered.
    """

    files: list[Path] = field(default_factory=list)
    file: "array[int]" = field(default_factory=lambda: array("l"))
    offset: "array[int]" = field(default_factory=lambda: array("q"))
    count: "array[int]" = field(default_factory=lambda: array("l"))
    ms: "array[float]" = field(default_factory=lambda: array("d"))
    unreadable: int = 0
    others: int = 0

    @property
    def requests(self) -> int:
        """The number of answered requests."""
        return len(self.count)

    @property
    def rows(self) -> int:
        """The number of their rows."""
        return sum(self.count)


class Logged(NamedTuple):
    """One row of the log: request id, position in the request, features as sent, and answer."""

    request_id: str
    row: int
    features: dict[str, Any]
    prediction: dict[str, Any]


def tally_window(folder: Path, start: datetime, end: datetime, bundle: str) -> Tally:
    """Count the records that `bundle` answered in [start, end)."""
    found = Tally()
    low, high = start.timestamp(), end.timestamp()
    for path in files_between(folder, low, high):
        found.files.append(path)
        for offset, line in whole_lines(path):
            head = read_head(line)
            if head is None:
                found.unreadable += 1
            elif low <= head.at < high and head.bundle == bundle:
                found.file.append(len(found.files) - 1)
                found.offset.append(offset)
                found.count.append(head.rows)
                found.ms.append(head.ms)
            elif low <= head.at < high:
                found.others += 1
    return found


def sample_logged(tally: Tally, most: int, seed: int = 0) -> list[Logged]:
    """Return a uniform random sample of at most `most` rows, in the log's order.

    Files that rotation removed in the meantime are skipped.
    """
    counts = np.asarray(tally.count, dtype=np.int64)
    ends = counts.cumsum()
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.arange(total)
    if total > most:
        chosen = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
    records = np.searchsorted(ends, chosen, side="right")
    places = chosen - (ends - counts)[records]
    found: list[Logged] = []
    for file, group in groupby(zip(records.tolist(), places.tolist(), strict=True), lambda pair: tally.file[pair[0]]):
        found.extend(_read_rows(tally.files[file], tally, list(group)))
    return found


def read_head(line: bytes) -> Head | None:
    """Parse a record without its request; None if the line is not a record."""
    match = HEAD.match(line)
    if match is not None:
        at, bundle, ms = match.groups()
        try:
            rows = _count_rows(line[line.rindex(PREDICTIONS) + len(PREDICTIONS) :])
            return Head(_seconds(at.decode()), bundle.decode(), float(ms), rows)
        except (ValueError, TypeError):  # such as a class named "predictions"
            pass
    try:
        return _read_slowly(line)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _count_rows(tail: bytes) -> int:
    """Count the predictions at the end of a record, by the separators of objects."""
    if tail.lstrip().startswith(b"[{") and b"},{" not in tail and b"}, {" not in tail:
        return 1
    return len(_decode(tail.decode().lstrip())[0])


def _read_slowly(line: bytes) -> Head:
    record = json.loads(line)
    if "error" in record or record.get("role") == SHADOW:
        return NO_ANSWER
    return Head(_seconds(record["at"]), str(record["bundle"]), float(record["ms"]), len(record["predictions"]))


def _seconds(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def parse_line(line: bytes) -> dict[str, Any]:
    """Parse a whole record.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return dict(orjson.loads(line))
    except orjson.JSONDecodeError:  # a number in an id, which is not validated, may be larger than float64 can hold
        return dict(json.loads(line))


def files_between(folder: Path, low: float, high: float) -> list[Path]:
    """Return the files that may have records of [low, high), by the time in the name and the last change."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            began = datetime.strptime(path.name.partition("-")[0], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
        except ValueError:
            began = 0.0
        try:
            if began - SKEW_SECONDS < high and path.stat().st_mtime + SKEW_SECONDS >= low:
                found.append(path)
        except FileNotFoundError:  # rotation removed it
            continue
    return found


def whole_lines(path: Path, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield offset and line of each record from `offset` on; an incomplete last line is skipped."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if line.endswith(b"\n"):
                    yield offset, line
                offset += len(line)
    except FileNotFoundError:  # rotation removed it
        return


def _read_rows(path: Path, tally: Tally, wanted: list[tuple[int, int]]) -> Iterator[Logged]:
    """Yield the selected rows of one file, given as (record, position) pairs."""
    try:
        with path.open("rb") as file:
            for record, group in groupby(wanted, lambda pair: pair[0]):
                file.seek(tally.offset[record])
                parsed = json.loads(file.readline())
                for _, place in group:
                    yield Logged(
                        str(parsed["id"]), place, parsed["request"]["rows"][place], parsed["predictions"][place]
                    )
    except FileNotFoundError:  # rotation removed it
        return


COUNTER = "ml_log_dropped_total"
SECONDS = 5.0


def alert_dropped_records(project: Project) -> int:
    """Send an alert if a service dropped records since the last call; return how many.

    It reads the metrics of the service on this machine and of those in `[environments]`; a service that does not answer
    is skipped.
    """
    settings = project.settings
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
        with suppress(OSError):  # the disk is still full: the alert is sent again later
            write_json(path, before | counts)
    return sum(new.values())


def services(settings: Settings) -> list[str]:
    """Return the addresses of the services whose answers are logged."""
    record = running(settings, "service")
    here = record.address if record else f"http://{settings.service.host}:{settings.service.port}"
    return [str(here), *(one.url.rstrip("/") for one in settings.environments.values())]


def _added(before: int, count: int) -> int:
    """Return the increase of a counter, which starts at 0 when the service restarts."""
    return count - before if count >= before else count


def read_count(url: str) -> int | None:
    """Return the counter's value in a Prometheus text, summed over workers; None if there is no answer."""
    try:
        with urllib.request.urlopen(add_authorization(urllib.request.Request(url)), timeout=SECONDS) as answer:
            lines = answer.read().decode("utf-8", errors="replace").splitlines()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            say(f'{url} needs a key with the scope "metrics" in ML_API_KEY: answers that were not logged go unnoticed.')
        return None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith((f"{COUNTER} ", f"{COUNTER}{{"))))
