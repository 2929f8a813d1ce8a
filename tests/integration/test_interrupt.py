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
