"""Child processes that never outlive the process that started them, even when that one is killed.

Run as `python -m flows.guard COMMAND …`: starts the command and ends it when standard input closes, which the
system does whatever happens to the parent.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

GRACE_SECONDS = 5.0
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Child:
    """A guarded process; its output goes to a file."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> None:
        """Start `command` in `cwd`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("wb") as output:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, str(Path(__file__)), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )

    def alive(self) -> bool:
        """Tell whether it still runs."""
        return self.process.poll() is None

    def tail(self) -> str:
        """Return the last line of its output."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"

    def dismiss(self) -> None:
        """Let it end by itself."""
        stdin: IO[bytes] | None = self.process.stdin
        if stdin is not None:
            stdin.close()

    def stop(self) -> None:
        """End it and wait until it is gone."""
        self.dismiss()
        try:
            self.process.wait(timeout=4 * GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def main(command: Sequence[str]) -> int:
    """Run `command` until it ends or standard input closes, and leave nothing behind that it started."""
    adopt_orphans()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end_group(child))
    threading.Thread(target=_end_with_input, args=(child,), daemon=True).start()
    status = child.wait()
    end_orphans()
    return status


def adopt_orphans() -> None:
    """Become the parent of what loses its own: BentoML starts its workers in sessions of their own (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans() -> None:
    """Kill every process below this one."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _end_with_input(child: "subprocess.Popen[bytes]") -> None:
    sys.stdin.buffer.read()
    end_group(child)


def end_group(child: "subprocess.Popen[bytes]") -> None:
    """Ask the whole group to end, and kill what has not ended in time."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(timeout=GRACE_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
