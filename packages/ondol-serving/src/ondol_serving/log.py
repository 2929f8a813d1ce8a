"""The prediction log: each answered request is one line of JSON in the store; each file has only one writer process.

A record is passed to the operating system before its answer is sent, so a killed process loses no answer that a client
has received. If the disk is full, records are counted and dropped: no answer waits for the log or fails because of it.
"""

import fcntl
import hmac
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic_core import from_json, to_json

from ondol_serving.contract import Contract
from ondol_serving.metrics import counters
from ondol_serving.request import count_bytes
from ondol_serving.settings import Rules

COMPLAINT_SECONDS = 60.0
MOST_REASON = 200  # characters of an error
SPACED_COLONS = (b" :", b"\t:", b"\n:", b"\r:")

T = TypeVar("T")

log = logging.getLogger("bentoml.service")


class Answered(NamedTuple):
    """A valid request and its answer."""

    request_id: str
    milliseconds: float  # from the request's arrival
    body: bytes  # of the request
    keys: int  # of the validated request, `rows` among them
    predictions: bytes  # of the answer, as JSON
    unread: bool = False  # whether a row holds a column that is neither read nor logged
    role: str = "champion"  # of the bundle


class Failed(NamedTuple):
    """A valid request on which a bundle of a rollout failed."""

    request_id: str
    milliseconds: float  # from the request's arrival
    role: str  # of the bundle
    error: Exception


class Shadowed(NamedTuple):
    """What a challenger predicts for a request that the champion has answered."""

    request_id: str
    predictions: bytes  # as JSON
    milliseconds: tuple[float, float] | None = None  # of the model of the challenger, and of the champion, if measured


class Recorder:
    """Writes the records of one bundle's answers.

    A validated body is already JSON, so its bytes are copied into the record unchanged. It is parsed and written again
    only if columns are left out, or if a strict reader of the log would fail on it.
    """

    def __init__(self, contract: Contract, version: str, folder: Path, rules: Rules) -> None:
        """Prepare for the bundle in `folder`."""
        self.rules = rules
        self.folder = str(Path(os.environ.get("ML_STORE") or ".ml/store") / "log")
        self._sensitive = frozenset(c.name for c in contract.columns if c.role == "sensitive")
        self._unread = frozenset(c.name for c in contract.unread)
        self._has_ids = bool(contract.ids)
        self._key = (os.environ.get("ML_LOG_KEY") or "").encode() if rules.sensitive == "hash" else b""
        if rules.enabled and self._sensitive and rules.sensitive == "hash" and not self._key:
            _warn_of_missing_key()
        names = {"version": version, "bundle": folder.resolve().name}
        self._about = json.dumps(names, ensure_ascii=False, separators=(",", ":"))[1:-1]

    def line(self, answered: Answered, at: str) -> bytes:
        """Return the record of an answer, given at the time `at`."""
        request_id, milliseconds, body, keys, predictions, unread, role = answered
        head = f'{{"id":"{request_id}","at":"{at}",{self._about},"role":"{role}","ms":{milliseconds:.3f},"request":'
        request = self._request(body, keys, unread)
        return b"".join((head.encode(), request, b',"predictions":', predictions, b"}\n"))

    def failure_line(self, failed: Failed, at: str) -> bytes:
        """Return the record of a failure at the time `at`; the text of an error may quote a sensitive value."""
        error = type(failed.error).__name__
        if not self._sensitive:
            error += f": {next(iter(str(failed.error).splitlines()), '')[:MOST_REASON]}"
        text = json.dumps(error, ensure_ascii=False)
        head = f'{{"id":"{failed.request_id}","at":"{at}",{self._about},"role":"{failed.role}"'
        return f'{head},"ms":{failed.milliseconds:.3f},"error":{text}}}\n'.encode(errors="replace")

    def shadow_line(self, shadowed: Shadowed, at: str) -> bytes:
        """Return the record of a prediction that no caller got, at the time `at`."""
        request_id, predictions, milliseconds = shadowed
        times = f',"ms":{milliseconds[0]:.3f},"champion_ms":{milliseconds[1]:.3f}' if milliseconds else ""
        head = f'{{"id":"{request_id}","at":"{at}",{self._about},"role":"shadow"{times},"predictions":'
        return b"".join((head.encode(), predictions, b"}\n"))

    def _request(self, body: bytes, keys: int, unread: bool) -> bytes:
        """Return the request in one line, each key once, without sensitive and unread columns."""
        if (
            not unread
            and not self._sensitive
            and _is_plain(body, keys)
            and not (self._has_ids and _has_constants(body))
        ):
            return body.replace(b"\n", b" ").replace(b"\r", b" ")  # in JSON, both occur only between tokens
        request = from_json(body)
        if unread:
            request["rows"] = [{n: v for n, v in row.items() if n not in self._unread} for row in request["rows"]]
        if self._sensitive:
            for row in request["rows"]:
                for name in self._sensitive & row.keys():
                    value = row.pop(name)
                    if self._key:
                        row[name] = _hash(self._key, value)
        return to_json(request, inf_nan_mode="null")


def _is_plain(body: bytes, keys: int) -> bool:
    """Return True if no key is repeated: JSON allows it, but strict readers of the log would fail on it."""
    if count_bytes(body, b":") == keys:
        return True
    # A colon inside a text looks like the colon of a key only after an escaped quote.
    return body.count(b'":') == keys and not any(colon in body for colon in SPACED_COLONS)


def _has_constants(body: bytes) -> bool:
    """Return True if NaN or Infinity may be in an id, which is not validated."""
    return b"NaN" in body or b"Infinity" in body


def _hash(key: bytes, value: Any) -> str | None:
    """Return the keyed hash of a value, None if it is missing; 3 and 3.0 have the same hash."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = value if isinstance(value, str) else json.dumps(float(value) if number else value)
    return hmac.digest(key, text.encode(), "sha256").hex()


@cache  # once for the process
def _warn_of_missing_key() -> None:
    log.warning('[log] sensitive = "hash" needs a key in ML_LOG_KEY: sensitive columns are left out of the log')


class PredictionLog:
    """Appends records to a file of this process, and opens the next file when it is full."""

    def __init__(self) -> None:
        """Start without a file: the first record creates it."""
        self._lock = threading.Lock()  # large answers are logged in threads
        self._file: int | None = None
        self._folder = ""
        self._opened = 0  # files so far
        self._dropped = 0  # since the last record that was written
        self._complained = False  # about these
        self._spoke = -COMPLAINT_SECONDS

    def append(self, recorder: Recorder, answers: list[Answered]) -> None:
        """Write the records of answers in one piece: a system call for each takes longer than the rest of its work."""
        self._append(recorder, recorder.line, answers)

    def append_failure(self, recorder: Recorder, failed: Failed) -> None:
        """Write the record of a failure."""
        self._append(recorder, recorder.failure_line, [failed])

    def append_shadows(self, recorder: Recorder, shadowed: list[Shadowed]) -> None:
        """Write the records of predictions that no caller got, in one piece."""
        self._append(recorder, recorder.shadow_line, shadowed)

    def _append(self, recorder: Recorder, write: Callable[[T, str], bytes], records: list[T]) -> None:
        lines = []
        at = datetime.now(UTC).isoformat("T", "microseconds")
        for record in records:
            try:
                lines.append(write(record, at))
            except Exception as error:  # the answers are sent in any case
                self._drop(error, 1)
        if not lines:
            return
        written = b"".join(lines)
        try:
            with self._lock:
                file, size = self._ready(recorder, len(written))
                self._write(file, written, size)
                self._recover()
        except Exception as error:
            self._drop(error, len(lines))

    def close(self) -> None:
        """Close the file, if one is open."""
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

    def _ready(self, recorder: Recorder, length: int) -> tuple[int, int]:
        """Return a file with room for a record, and its size."""
        if self._file is not None:
            status = os.fstat(self._file)
            full = status.st_size and status.st_size + length > recorder.rules.file_bytes
            if not full and status.st_nlink and self._folder == recorder.folder:
                return self._file, status.st_size
            self.close()
        self._opened += 1
        file = self._file = open_log_file(Path(recorder.folder), self._opened)
        self._folder = recorder.folder
        remove_oldest(Path(recorder.folder), recorder.rules.keep_bytes)
        return file, 0

    def _write(self, file: int, lines: bytes, size: int) -> None:
        """Write whole lines, or leave the file as it was."""
        written = os.write(file, lines)
        if written == len(lines):
            return
        try:  # only a part was written
            while written < len(lines):
                written += os.write(file, lines[written:])
        except OSError:
            try:
                os.ftruncate(file, size)
            except OSError:
                self.close()  # readers ignore an incomplete last line
            raise

    def _drop(self, error: Exception, records: int) -> None:
        counters().dropped.inc(records)
        self._dropped += records
        now = time.monotonic()
        if not self._complained and now - self._spoke >= COMPLAINT_SECONDS:  # a disk may be full from time to time
            self._complained, self._spoke = True, now
            log.error("Answers go out unlogged, and ml_log_dropped_total counts them: %s", error)

    def _recover(self) -> None:
        if self._complained:
            log.warning("The prediction log continues; %s answers are missing in it", self._dropped)
        self._complained, self._dropped = False, 0


def open_log_file(folder: Path, number: int) -> int:
    """Return a new file, locked for as long as its process lives.

    Raises:
        OSError: it cannot be created.
    """
    # The log has the permissions of its folder or its parent: below a private `.ml`, no other user can read it.
    above = next(path for path in (folder, *folder.parents) if path.exists())
    shared = above.stat().st_mode & 0o077
    folder.mkdir(0o700 | shared, parents=True, exist_ok=True)
    host = re.sub(r"[^A-Za-z0-9._]+", "_", socket.gethostname())
    while True:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{host}-{os.getpid()}-{number}.jsonl"
        try:
            file = os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600 | (shared & 0o066))
            break
        except FileExistsError:  # of a process with our id that ended within this second
            number += 1
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def remove_oldest(folder: Path, keep_bytes: int) -> None:
    """Remove the oldest files while the total size exceeds `keep_bytes`, except files that a process is writing."""
    with suppress(OSError):
        files = [(path, path.stat().st_size) for path in sorted(folder.glob("*.jsonl"))]
        total = sum(size for _, size in files)
        for path, size in files:
            if total <= keep_bytes:
                return
            if _remove_closed(path):
                total -= size


def _remove_closed(path: Path) -> bool:
    """Remove a file that is not locked; return True if it was removed."""
    file = os.open(path, os.O_WRONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(file)


prediction_log = PredictionLog()  # one for the process
