"""Child processes that end with their parent, even if it is killed.

`python -m ondol.orchestration.guard COMMAND …` starts the command and ends it when standard input closes. The system
closes it even if the parent is killed.
"""

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

GRACE_SECONDS = 5.0
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
# Below the default port range for outgoing connections of Linux, macOS and Windows.
SERVER_PORTS = range(20_000, 30_000)


class Child:
    """A guarded process; its output goes to a file."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path, kept_open: Sequence[int] = ()
    ) -> None:
        """Start `command` in `cwd`; the files `kept_open` stay open, with their locks, until it has ended."""
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
                pass_fds=kept_open,
            )

    def alive(self) -> bool:
        """Return True if it is still running."""
        return self.process.poll() is None

    def tail(self) -> str:
        """Return the last line of its output."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"

    def dismiss(self) -> None:
        """Ask it to end, without waiting."""
        stdin: IO[bytes] | None = self.process.stdin
        if stdin is not None:
            stdin.close()

    def stop(self) -> None:
        """End it and wait until it has ended."""
        self.dismiss()
        try:
            self.process.wait(timeout=4 * GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a random free TCP port from `SERVER_PORTS`.

    A server binds the port some seconds later. A port chosen by the system (port 0) is from the range for outgoing
    connections, one of which could take it in the meantime.
    """
    for port in random.SystemRandom().sample(SERVER_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((host, port))
            return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def main(command: Sequence[str]) -> int:
    """Run `command` until it ends or standard input closes, and end all processes that it started."""
    adopt_orphans()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end_group(child))
    threading.Thread(target=_end_with_input, args=(child,), daemon=True).start()
    status = child.wait()
    end_orphans()
    return status


def adopt_orphans() -> None:
    """Become the parent of orphaned processes (Linux only): BentoML starts its workers in separate sessions."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans() -> None:
    """Kill every descendant of this process, and reap adopted ones so that none stays a zombie."""
    import psutil

    kill_all(lambda: _living(psutil.Process().children(recursive=True)), GRACE_SECONDS)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def kill_all(find: "Callable[[], list[psutil.Process]]", seconds: float) -> "list[psutil.Process]":
    """Kill the processes of `find` until there are none, since new children may start. Return those still running."""
    import psutil

    end = time.monotonic() + seconds
    while (left := find()) and time.monotonic() < end:
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1)
    return left


def wait_for_end(process: "psutil.Process", seconds: float) -> None:
    """Wait until a process has ended, or is a zombie that its parent (a test) has not reaped."""
    import psutil

    end = time.monotonic() + seconds
    while time.monotonic() < end and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)


def _living(processes: "list[psutil.Process]") -> "list[psutil.Process]":
    """Return the processes that are not zombies."""
    import psutil

    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _end_with_input(child: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 1024):  # not `sys.stdin`, whose lock would be held when this process ends by itself
        pass
    end_group(child)


def end_group(child: "subprocess.Popen[bytes]") -> None:
    """Terminate the process group, and kill processes that do not end in time."""
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
