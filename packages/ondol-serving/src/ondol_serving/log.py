"""The prediction log's files: JSON Lines in the store, each file written by one process alone.

A record is given to the operating system before its answer is sent, so that killing the process loses none that
a client has seen. What the disk does not take is counted and left out: no answer waits for the log or fails by it.
"""

import fcntl
import logging
import os
import re
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ondol_serving.metrics import counters

if TYPE_CHECKING:
    from ondol_serving.record import Answered, Recorder

COMPLAINT_SECONDS = 60.0

log = logging.getLogger("bentoml.service")


class PredictionLog:
    """Appends records to a file of its own, and opens the next one when that is full."""

    def __init__(self) -> None:
        """Start without a file: the first record makes it."""
        self._lock = threading.Lock()  # large answers are logged in threads
        self._file: int | None = None
        self._folder = ""
        self._opened = 0  # files so far
        self._dropped = 0  # since the last record that was written
        self._complained = False  # about these
        self._spoke = -COMPLAINT_SECONDS

    def append(self, recorder: "Recorder", answered: "Answered") -> None:
        """Write the record of an answer."""
        try:
            line = recorder.line(answered)
            with self._lock:
                file, size = self._ready(recorder, len(line))
                self._write(file, line, size)
                self._recover()
        except Exception as error:  # the answer is sent in any case
            self._drop(error)

    def close(self) -> None:
        """Close the file, if one is open."""
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)

    def _ready(self, recorder: "Recorder", length: int) -> tuple[int, int]:
        """Return a file with room for a record, and its size."""
        if self._file is not None:
            status = os.fstat(self._file)
            full = status.st_size and status.st_size + length > recorder.rules.file_bytes
            if not full and status.st_nlink and self._folder == recorder.folder:
                return self._file, status.st_size
            self.close()
        self._opened += 1
        file = self._file = open_file(Path(recorder.folder), self._opened)
        self._folder = recorder.folder
        remove_oldest(Path(recorder.folder), recorder.rules.keep_bytes)
        return file, 0

    def _write(self, file: int, line: bytes, size: int) -> None:
        """Write a line whole, or leave the file as it was."""
        written = os.write(file, line)
        if written == len(line):
            return
        try:  # the disk took a part of it
            while written < len(line):
                written += os.write(file, line[written:])
        except OSError:
            try:
                os.ftruncate(file, size)
            except OSError:
                self.close()  # readers ignore a last line without an end
            raise

    def _drop(self, error: Exception) -> None:
        counters().dropped.inc()
        self._dropped += 1
        now = time.monotonic()
        if not self._complained and now - self._spoke >= COMPLAINT_SECONDS:  # a disk may be full by turns
            self._complained, self._spoke = True, now
            log.error("Answers go out unlogged, and ml_log_dropped_total counts them: %s", error)

    def _recover(self) -> None:
        if self._complained:
            log.warning("The prediction log goes on; %s answers are missing from it", self._dropped)
        self._complained, self._dropped = False, 0


def open_file(folder: Path, number: int) -> int:
    """Return a new file, locked for as long as its process lives.

    Raises:
        OSError: it cannot be made.
    """
    # Who may read the folder, or the one that it is made in, may read the log: below a private `.ml` no other user.
    above = next(path for path in (folder, *folder.parents) if path.exists())
    shared = above.stat().st_mode & 0o077
    folder.mkdir(0o700 | shared, parents=True, exist_ok=True)
    host = re.sub(r"[^A-Za-z0-9._]+", "_", socket.gethostname())
    while True:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{host}-{os.getpid()}-{number}.jsonl"
        try:
            file = os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600 | (shared & 0o066))
            break
        except FileExistsError:  # of a process that ended within this second and had our number
            number += 1
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def remove_oldest(folder: Path, keep_bytes: int) -> None:
    """Remove the oldest files while all together are over `keep_bytes`, but none that a process writes."""
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
