"""Follows the tutorial of docs/: each command, file and edit in order, with a check of the output."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from conftest import Render
from docs_support import Block
from e2e.support import wait_for, wait_until_alone
from template_support import REPOSITORY, clean_environment, python_path

from ondol.orchestration.guard import free_port

TUTORIAL = REPOSITORY / "docs" / "tutorial"
PAGES = ("first-model.md", "retraining.md")
FENCE = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
STATUS = "\x1estatus "
PORTS = {"3000": "ML_SERVICE__PORT", "4200": "ML_PORTS__PREFECT", "5000": "ML_PORTS__MLFLOW"}
UV = """#!/bin/sh
[ "$1" = run ] || exit 2
shift
case "$1" in
ml) shift; exec "{python}" -m ondol.cli "$@" ;;
python) shift; exec "{python}" "$@" ;;
esac
exit 2
"""
UVX = """#!/bin/sh
[ "$1 $2 $3" = "copier copy --defaults" ] && exec cp -r "{rendered}" "$5"
exit 2
"""


@dataclass(frozen=True)
class Command:
    """A command of a console block, and the lines below it."""

    words: str
    output: tuple[str, ...]


def read_commands(text: str) -> list[Command]:
    """Return the commands of a console block; a command continues while its quotes are open."""
    found: list[Command] = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        length = next(n for n in range(1, len(lines) + 1) if "\n".join(lines[:n]).count("'") % 2 == 0)
        found.append(Command("\n".join(lines[:length]), tuple(lines[length:])))
    return found


def read_page(name: str) -> list[tuple[str, str]]:
    """Return the kinds and texts of a page's blocks."""
    return [(f["kind"], f["text"]) for f in FENCE.finditer((TUTORIAL / name).read_text(encoding="utf-8"))]


def pattern_of(line: str) -> re.Pattern[str]:
    """Return a pattern for a line of the page: other figures, other widths, and any text in place of `…`."""
    text = re.sub(r"[ ━]+", " ", line).strip()
    parts = [re.sub(r"(?:-?\d(?:\\?[\d,.])*)", r"-?[\\d,.]+", re.escape(part)) for part in text.split("…")]
    return re.compile(".*".join(parts))


def missing_line(expected: tuple[str, ...], printed: str) -> str | None:
    """Return the first expected line that is not printed behind the one before it."""
    lines = iter([re.sub(r"[ ━]+", " ", line).strip() for line in printed.splitlines()])
    for line in expected:
        pattern = pattern_of(line)
        if line.strip() not in ("", "…") and not any(pattern.fullmatch(found) for found in lines):
            return line
    return None


class Reader:
    """A user who follows the pages in a terminal; `uv` and `uvx` use the packages installed here."""

    def __init__(self, folder: Path, rendered: Path) -> None:
        self.folder = folder
        self.project = folder / "churn"
        tools = folder / "bin"
        tools.mkdir()
        for name, text in (("uv", UV), ("uvx", UVX)):
            (tools / name).write_text(text.format(python=sys.executable, rendered=rendered), encoding="utf-8")
            (tools / name).chmod(0o755)
        self.ports = {port: str(free_port()) for port in PORTS}
        self.environment = clean_environment() | {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": python_path(engine=self.project / "vendor"),
            "PYTHONUTF8": "1",
            "COLUMNS": "100",
            **{f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            **{PORTS[port]: free for port, free in self.ports.items()},
        }

    def follow(self, name: str) -> None:
        """Follow a page, block by block."""
        self.serving: subprocess.Popen[bytes] | None = None
        try:
            for kind, text in read_page(name):
                if kind == "console":
                    self.type(read_commands(text))
                elif kind in ("diff", "python"):
                    path, _, rest = text.partition("\n")
                    Block(kind, path.removeprefix("# "), self.with_ports(rest)).apply(self.project)
        finally:
            if self.serving is not None:
                self.serving.send_signal(signal.SIGINT)
                assert self.serving.wait(60) in (0, 130)

    def type(self, commands: list[Command]) -> None:
        """Run the commands of a block in one shell, and compare the output of each."""
        if commands[0].words == "uv run ml serve":
            self.serve()
            return
        deadline = time.monotonic() + 300
        while True:
            done = self.run(commands)
            wrong = [
                f"{command.words}\n{missing!r} is missing in\n{printed}"
                for command, (printed, _) in zip(commands, done, strict=True)
                if (missing := missing_line(command.output, self.without_ports(printed))) is not None
            ]
            # The status is requested until the run in progress has ended.
            if not wrong or commands[-1].words != "uv run ml status" or time.monotonic() > deadline:
                break
            time.sleep(2)
        assert not wrong, wrong[0]
        for number, (command, (printed, status)) in enumerate(zip(commands, done, strict=True)):
            asked = number + 1 < len(commands) and commands[number + 1].words == "echo $?"
            assert status == 0 or asked, f"{command.words}\n{printed}"

    def run(self, commands: list[Command]) -> list[tuple[str, int]]:
        """Run commands in one shell; return the output and the exit status of each."""
        end = f'code=$?; printf "{STATUS}%s\\n" $code; (exit $code)\n'
        script = "".join(f"{self.with_ports(command.words)}\n{end}" for command in commands)
        folder = self.project if self.project.exists() else self.folder
        done = subprocess.run(
            ["bash", "-c", f"exec 2>&1\n{script}"],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        found = re.split(rf"{STATUS}(\d+)\n", done.stdout)
        assert len(found) == 2 * len(commands) + 1, done.stdout + done.stderr
        return [(found[i], int(found[i + 1])) for i in range(0, len(found) - 1, 2)]

    def serve(self) -> None:
        """Start the service as another terminal would, and wait until it answers."""
        with (self.folder / "serve.log").open("wb") as log:
            self.serving = subprocess.Popen(
                ["uv", "run", "ml", "serve"],
                cwd=self.project,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                executable=self.folder / "bin" / "uv",
            )
        with httpx.Client(base_url=f"http://127.0.0.1:{self.ports['3000']}", trust_env=False) as client:
            wait_for(client, "/readyz", 200, 120)

    def with_ports(self, text: str) -> str:
        for port, free in self.ports.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
        return text

    def without_ports(self, text: str) -> str:
        for port, free in self.ports.items():
            text = text.replace(f"127.0.0.1:{free}", f"127.0.0.1:{port}")
        return text


@contextmanager
def reader_of(folder: Path, rendered: Path) -> Iterator[Reader]:
    """Follow pages in a folder; nothing may keep running there."""
    reader = Reader(folder, rendered)
    try:
        yield reader
    finally:
        if reader.project.exists():
            reader.run([Command("uv run ml down", ())])
        assert not wait_until_alone(folder)


@pytest.mark.parametrize("name", PAGES)
def test_every_block_of_the_tutorial_can_be_followed(name):
    first = {"console": "$ ", "diff": "# ", "python": "# ", "bash": "uv", "text": ""}  # `ml simulate` has its own tests
    for kind, text in read_page(name):
        assert text.startswith(first[kind]), text


def test_lines_of_the_tutorial_are_compared_but_for_figures():
    printed = "✓ train    fitting     12.5 s\nroc_auc 0.85 is 0.05 worse\nend"
    assert missing_line(("✓ train fitting 9.1 s", "…", "roc_auc 0.8 is …", "end"), printed) is None
    assert missing_line(("end", "✓ train fitting 9.1 s"), printed) == "✓ train fitting 9.1 s"
    assert missing_line(("✓ train  waiting 9.1 s",), printed) == "✓ train  waiting 9.1 s"
    typed = read_commands("$ a '{\n  b}' c\nd\n$ e\n")
    assert typed == [Command("a '{\n  b}' c", ("d",)), Command("e", ())]


@pytest.mark.slow
def test_tutorial(render: Render, tmp_path: Path) -> None:
    with reader_of(tmp_path, render(project_name="Churn")) as reader:
        for name in PAGES:
            reader.follow(name)
