"""The output of commands works in every encoding, and an unwritable output is one sentence."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from template_support import REPOSITORY, repository_environment

Show = Callable[..., "subprocess.CompletedProcess[bytes]"]
NARROW = {
    "cp949": {"PYTHONIOENCODING": "cp949"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
PRINT = """
import sys
from ondol.cli import app

@app.app.command()
def show() -> None:
    from ondol.cli.console import console, print_plain

    console.print("✓ passed, ✗ failed – see 값 and é")
    print_plain("✓ passed, ✗ failed – see 값 and é")

sys.argv = ["ml", "show"]
app.main()
"""


@pytest.fixture
def show(tmp_path: Path) -> Show:
    """Run a command that prints marks and letters, its streams redirected by a shell."""
    (tmp_path / "show.py").write_text(PRINT, encoding="utf-8")

    def run(redirected: str = "", **variables: str) -> "subprocess.CompletedProcess[bytes]":
        command = ["sh", "-c", f'exec "$0" show.py {redirected}', sys.executable]
        environment = repository_environment() | variables
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False)

    return run


@pytest.mark.parametrize("case", NARROW)
def test_a_character_that_the_encoding_lacks_is_replaced(show: Show, case: str) -> None:
    done = show(**NARROW[case])
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode("cp949").splitlines()
    assert lines[0] == lines[1]
    assert lines[0].startswith("v passed, x failed - see ") and lines[0].endswith(r"and \xe9")


def test_utf_8_is_written_unchanged(show: Show) -> None:
    done = show(PYTHONUTF8="1")
    assert done.stdout.decode().splitlines() == ["✓ passed, ✗ failed – see 값 and é"] * 2


@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_not_an_error(show: Show, redirected: str) -> None:
    done = show(redirected, PYTHONUTF8="1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().count("✓") == (0 if ">&- " in f"{redirected} ".replace("2>&-", "") else 2)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_named_as_such(show: Show, unbuffered: str) -> None:
    done = show("> /dev/full", PYTHONUTF8="1", PYTHONUNBUFFERED=unbuffered)
    text = " ".join(done.stderr.decode().split())
    assert done.returncode == 2
    assert text == "Error: The output could not be written (No space left on device): write it to another place."


@pytest.mark.parametrize("package", ["ondol", "ondol-serving"])
def test_the_version_is_that_of_the_packages_also_outside_of_a_project(tmp_path: Path, package: str) -> None:
    text = (REPOSITORY / "packages" / package / "pyproject.toml").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "ondol.cli", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=repository_environment(), capture_output=True, text=True)
    assert done.stdout == f"ondol {tomllib.loads(text)['project']['version']}\n"
