"""A command that its user interrupts ends with 130, however it was started."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from template_support import repository_environment


@pytest.mark.parametrize("trap", ["", "trap '' INT; "], ids=["as usual", "in the background of a script"])
def test_interrupted_command_ends_with_130(tmp_path: Path, trap: str) -> None:
    (tmp_path / "config.toml").touch()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        source = f"http://127.0.0.1:{silent.getsockname()[1]}/rows.csv"
        process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'{trap}exec "$@"',
                "bash",
                sys.executable,
                "-m",
                "ondol.cli",
                "init",
                source,
                "--target",
                "y",
            ],
            cwd=tmp_path,
            env=repository_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        connection, _ = silent.accept()  # it waits for an answer now
        with connection:
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=120)
    assert (process.returncode, b"Traceback" in said) == (130, False), said


HIDES_IT = """
import os, signal, sys
import ondol.cli.app as cli

def work(**_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise ValueError("Error calling a serializer: KeyboardInterrupt") from None

cli.app = work
cli.main()
"""


def test_interrupt_that_a_library_turns_into_another_error_ends_with_130(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HIDES_IT], cwd=tmp_path, env=repository_environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "")
