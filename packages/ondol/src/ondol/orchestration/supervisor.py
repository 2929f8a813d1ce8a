"""Keeps one background process running: restarts it when it dies and bounds its log.

Run as `python -m ondol.orchestration.supervisor LOG RESTARTS COMMAND …` by `ml up`, in a session of its own.
"""

import codecs
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from ondol.orchestration.guard import adopt_orphans, end_group, end_orphans
from ondol.storage.files import utc_now, write_json
from ondol_serving.names import printable

LOG_BYTES = 5_000_000  # of the current file and of the one before: ten million in total
FIRST_SECONDS = 20.0  # a process that ends by itself this early at the first start would fail again
STEADY_SECONDS = 60.0
MOST_SECONDS = 30.0


class RotatingLog:
    """A log file that is renamed to `NAME.1` when it is full."""

    def __init__(self, path: Path, most: int = LOG_BYTES) -> None:
        """Append to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.most = path, most
        self.file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Add to the file; a full disk loses the line, not the process."""
        with suppress(OSError, ValueError):  # a file that could not be renamed is closed
            if self.file.tell() + len(data) > self.most:
                self.file.close()
                self.path.replace(self.path.with_name(self.path.name + ".1"))
                self.file = self.path.open("ab", buffering=0)
            self.file.write(data)

    def say(self, text: str) -> None:
        """Write a line of the supervisor."""
        self.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} supervisor: {text}\n".encode())


class Supervisor:
    """Runs one command and restarts it."""

    def __init__(self, log: RotatingLog, restarts: Path, command: Sequence[str]) -> None:
        """Prepare to run `command`; the file `restarts` records the number and the time of restarts."""
        self.log, self.restarts, self.command = log, restarts, command
        self.child: subprocess.Popen[bytes] | None = None
        self.stopping = threading.Event()

    def run(self) -> int:
        """Run and restart the command until stopped, or until the first start fails; return the exit status."""
        first, pause, count = True, 1.0, 0
        while not self.stopping.is_set():
            started = time.monotonic()
            status = self._once()
            lasted = time.monotonic() - started
            if self.stopping.is_set():
                return 0
            self.log.say(f"ended with status {status} after {lasted:.0f} s")
            if first and lasted < FIRST_SECONDS and status >= 0:  # below zero: it was killed
                return status or 1
            first, pause = False, 1.0 if lasted > STEADY_SECONDS else min(2 * pause, MOST_SECONDS)
            if not self.stopping.wait(pause):
                count += 1
                self._count(count)
        return 0

    def stop(self, *_: object) -> None:
        """End the command and the loop; a thread waits for it, since the main thread holds the lock of `Popen.wait`."""
        self.stopping.set()
        if self.child is not None and self.child.poll() is None:  # its id may be in use by another process now
            threading.Thread(target=end_group, args=(self.child,)).start()

    def _count(self, restarts: int) -> None:
        with suppress(OSError):  # a full disk
            write_json(self.restarts, {"count": restarts, "last": utc_now()})

    def _once(self) -> int:
        self.log.say(f"starts {' '.join(self.command)}")
        self.child = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self.child.stdout is not None
        pump = threading.Thread(target=self._pump, args=(self.child.stdout,), daemon=True)
        pump.start()
        if self.stopping.is_set():  # stopped between the loop's check and the start
            end_group(self.child)
        status = self.child.wait()
        end_orphans()
        pump.join(timeout=5)
        return status

    def _pump(self, output: IO[bytes]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        with output:
            while data := output.read1(65_536):  # type: ignore[attr-defined]
                self.log.write(printable(decoder.decode(data)).encode())


def main(log: str, restarts: str, *command: str) -> int:
    """Keep `command` running until SIGTERM or SIGINT."""
    adopt_orphans()
    supervisor = Supervisor(RotatingLog(Path(log)), Path(restarts), command)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, supervisor.stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal may close
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
