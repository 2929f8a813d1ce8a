"""Commands of a project, run by forks of a process that has imported the libraries of the stack."""

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from template_support import clean_environment

from e2e.preloaded import READY
from ondol.orchestration.environment import QUIET

INTERPRETER = {"PYTHONUTF8": "1"}
SERVER = Path(__file__).with_name("preloaded.py")
# What is read when a process starts, or when a library is imported.
EARLY = ("HOME", "XDG_", "MPL", "PYTHON", "OMP_", "OPENBLAS_", "LANG", "LC_", "TZ")


def run_command(
    words: tuple[str, ...], folder: Path, environment: Mapping[str, str], timeout: float
) -> "subprocess.CompletedProcess[str]":
    """Run `ml WORDS` in a folder, as `subprocess.run` would run `python -m ondol.cli WORDS`.

    It is a process of its own, with an environment, a folder and files of its own. With another home it is started
    in a new interpreter, as it is on systems where a fork is not safe.
    """
    if not sys.platform.startswith("linux") or early(environment) != early(clean_environment() | INTERPRETER):
        command = [sys.executable, "-m", "ondol.cli", *words]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    request = {"words": words, "folder": str(folder), "environment": dict(environment)}
    with socket.socket(socket.AF_UNIX) as connection, open(os.devnull) as nothing:  # noqa: PTH123
        server = start()
        connection.connect(str(server / "socket"))
        out, err = Reader(), Reader()
        socket.send_fds(connection, [json.dumps(request).encode()], [nothing.fileno(), out.given, err.given])
        connection.sendall(b"\n")
        out.hand_over()
        err.hand_over()
        answers = connection.makefile()
        process = int(answers.readline())
        connection.settimeout(timeout)
        try:
            status = int(answers.readline())
        except TimeoutError:
            os.kill(process, signal.SIGKILL)
            raise subprocess.TimeoutExpired(["ml", *words], timeout) from None
        said = (server / "log").read_text()
        assert not said, said  # what an import says would be missed in the command's own output
        return subprocess.CompletedProcess(["ml", *words], status, out.text(20), err.text(20))


def early(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an environment that must be the same in the process that forks."""
    return {k: v for k, v in environment.items() if k.startswith(EARLY) and k != "PYTHONPATH"}


class Reader:
    """The reading end of a pipe, read in a thread until all who write have closed it."""

    def __init__(self) -> None:
        self._end, self.given = os.pipe()
        self._read = b""
        self._thread = threading.Thread(target=self._work, daemon=True)

    def hand_over(self) -> None:
        os.close(self.given)
        self._thread.start()

    def _work(self) -> None:
        with open(self._end, "rb") as file:  # noqa: PTH123
            self._read = file.read()

    def text(self, seconds: float) -> str:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the command has ended, and something that it started holds its output"
        return self._read.decode().replace("\r\n", "\n")


@functools.cache
def start() -> Path:
    """Start the process that forks, once; return the folder of its socket and its log."""
    folder = Path(tempfile.mkdtemp(prefix="ml-"))
    environment = {k: v for k, v in clean_environment().items() if k != "PYTHONPATH"} | QUIET | INTERPRETER
    with (folder / "log").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, str(SERVER), str(folder / "socket")],
            cwd="/",
            env=environment | {"MPLCONFIGDIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
        )
    assert process.stdin and process.stdout
    atexit.register(process.wait)
    atexit.register(process.stdin.close)
    assert process.stdout.read(len(READY)) == READY, (folder / "log").read_text()
    return folder
