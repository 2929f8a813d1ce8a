"""Blocks of the docs: files of a project, edits of them, and commands; and a user who follows them."""

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from e2e.support import wait_until_alone
from template_support import clean_environment

from ondol.orchestration.guard import free_port

FENCE = re.compile(r"^ *```(?P<kind>\w*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
STATUS = "\x1estatus "
PORT = r"(127\.0\.0\.1:|--port )(3000|4200|5000)\b"
PORTS = {"3000": "ML_SERVICE__PORT", "4200": "ML_PORTS__PREFECT", "5000": "ML_PORTS__MLFLOW"}
# Commands that run until they are interrupted: the address that answers, or the text that is printed, once they work.
ENDLESS = {
    "uv run ml serve": "http://127.0.0.1:3000/readyz",
    "uv run ml worker": "started!",
    "uv run ml follow": "in sync with",
    "prefect server start": "http://127.0.0.1:4200/api/health",
    "ondol.orchestration.asgi:prefect": "http://127.0.0.1:4200/api/health",
    "mlflow server": "http://127.0.0.1:5000/health",
    "ondol.registry.mlflow_server:mlflow": "http://127.0.0.1:5000/health",
}
# Exit statuses other than 0.
STATUSES = {"uv run ml contract diff": 1}
# The packages are installed already: `uv add` only checks that the engine has the extra.
UV = """#!/bin/sh
export PYTHONPATH="$PWD/vendor/ondol/src:$PWD/vendor/ondol-serving/src"
case "$1 $2" in
"run ml") shift 2; exec python -m ondol.cli "$@" ;;
"run "*) shift; exec "$@" ;;
"add ondol-serving["*"]") extra=${2#*\\[}; exec grep -q "^${extra%]} = " vendor/ondol-serving/pyproject.toml ;;
"add --group") extra=${4#*\\[}; exec grep -q "^${extra%]} = " vendor/ondol-serving/pyproject.toml ;;
"add ondol["*"]") extra=${2#*\\[}; exec grep -q "^${extra%]} = " vendor/ondol/pyproject.toml ;;
esac
exit 2
"""
UVX = """#!/bin/sh
for folder; do :; done
[ "$1 $2" = "copier copy" ] && exec cp -r "$RENDERED" "$folder"
exit 2
"""


@dataclass(frozen=True)
class Block:
    """A block of a page: a whole file, or hunks of lines to add, remove and leave."""

    kind: str
    path: str
    text: str

    def added(self) -> list[str]:
        lines = self.text.splitlines()
        if self.kind == "diff":
            lines = [line[1:] for line in lines if line.startswith("+")]
        return [line for line in lines if line.strip()]

    def apply(self, project: Path) -> None:
        path = project / self.path
        path.parent.mkdir(exist_ok=True)
        if self.kind == "python":
            path.write_text(self.text, encoding="utf-8")
            return
        content = path.read_text(encoding="utf-8")
        for hunk in re.split(r"^@@\n", self.text, flags=re.MULTILINE):
            lines = hunk.splitlines(keepends=True)
            assert all(line[0] in " +-\n" for line in lines), hunk
            old = "".join(line[1:] or "\n" for line in lines if line[0] != "+")
            new = "".join(line[1:] or "\n" for line in lines if line[0] != "-")
            if old:
                assert content.count(old) == 1, f"{self.path} has {content.count(old)} times:\n{old}"
            content = content.replace(old, new) if old else f"{content}\n{new}"
        path.write_text(content, encoding="utf-8")


@dataclass
class Command:
    """A command of a block, and the lines that the page shows below it."""

    words: str
    output: list[str] = field(default_factory=list)


def read_blocks(page: Path) -> list[tuple[str, str]]:
    """Return the kinds and texts of a page's blocks; a `text` right below commands is their `output`."""
    content, blocks, end = page.read_text(encoding="utf-8"), [("", "")], 0
    for found in FENCE.finditer(content):
        below = blocks[-1][0] in ("bash", "console") and not content[end : found.start()].strip()
        kind = "output" if found["kind"] == "text" and below else found["kind"]
        blocks.append((kind, textwrap.dedent(found["text"])))
        end = found.end()
    return blocks[1:]


def read_commands(kind: str, text: str) -> list[Command]:
    """Return the commands of a block; one continues while its quotes are open, and behind a backslash.

    In a `console` block they begin with `$`, and what they print is below them. In a `bash` block each line is one.
    """
    found: list[Command] = []
    continues = False
    for line in text.splitlines() if kind in ("bash", "console") else ():
        words = re.sub(r"(^|\s+)#\s.*", "", line.removeprefix("$ "))
        if continues:
            found[-1].words += f"\n{words}"
        elif kind == "bash" or line.startswith("$ "):
            found += [Command(words)] if words else []
        elif found:
            found[-1].output.append(line)
        continues = bool(found) and (found[-1].words.count("'") % 2 == 1 or found[-1].words.endswith("\\"))
    return found


def pattern_of(line: str) -> re.Pattern[str]:
    """Return a pattern for a line of a page: other figures, times, digests and widths, and any text in place of `…`."""
    text = re.sub(r"\b[0-9a-f]{8,}\b", "\0", re.sub(r"[ ━]+", " ", line).strip())
    text = re.sub(r"\bin \d+ (?:s|min|h|d)\b", "\1", text)  # until the next run: at another time, in another unit
    parts = [re.sub(r"(?:-?\d(?:\\?[\d,.])*)", r"-?[\\d,.]+", re.escape(part)) for part in text.split("…")]
    return re.compile(".*".join(parts).replace("\0", "[0-9a-f]+").replace("\1", r"in \d+ (?:s|min|h|d)"))


def missing_line(expected: Iterable[str], printed: str) -> str | None:
    """Return the first expected line that is not printed behind the one before it."""
    lines = iter([re.sub(r"[ ━]+", " ", line).strip() for line in printed.splitlines()])
    for line in expected:
        pattern = pattern_of(line)
        if line.strip() not in ("", "…") and not any(pattern.fullmatch(found) for found in lines):
            return line
    return None


class Reader:
    """A user who follows pages in a terminal; `uv` and `uvx` use the packages installed here.

    Attributes:
        folder: Where the terminal is opened.
        project: The project whose files the pages write and edit.
        environment: The variables of the terminal.
    """

    def __init__(self, folder: Path, project: Path, rendered: Path, scratch: Path) -> None:
        """Open a terminal.

        Args:
            folder: Where.
            project: The project of the pages, which may be made by them.
            rendered: What `uvx copier copy` copies.
            scratch: A folder for this terminal's own files, outside of `project`.
        """
        self.folder, self.project, self.scratch = folder, project, scratch
        self.printed: str | None = None  # by the commands of the last block; None if some were left out
        tools = scratch / "bin"
        tools.mkdir()
        for name, text in (("uv", UV), ("uvx", UVX)):
            (tools / name).write_text(text, encoding="utf-8")
            (tools / name).chmod(0o755)
        self.ports = {port: str(free_port()) for port in PORTS}
        self.environment = clean_environment() | {
            "PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": "",
            "PYTHONUTF8": "1",
            "RENDERED": str(rendered),
            "COLUMNS": "100",
            **{f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            **{PORTS[port]: free for port, free in self.ports.items()},
        }
        self._state = scratch / "state"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.open_terminal()

    def open_terminal(self) -> None:
        """Go back to the first folder, without the variables that commands have exported."""
        self._state.write_text(f"cd {shlex.quote(str(self.folder))}\n", encoding="utf-8")

    def follow(self, page: Path, change: Callable[[str], str | None] = str) -> None:
        """Follow a page, block by block.

        Args:
            page: The page.
            change: Returns the command to run in place of one of the page; None to leave it out.
        """
        for kind, text in read_blocks(page):
            if kind in ("diff", "python"):
                path, _, rest = text.partition("\n")
                Block(kind, path.removeprefix("# "), self.with_ports(rest)).apply(self.project)
            elif kind == "output" and self.printed is not None:
                missing = missing_line(text.splitlines(), self.printed)
                assert missing is None, f"{missing!r} is missing in\n{self.printed}"
            elif commands := read_commands(kind, text):
                typed = [(change(command.words), command.output) for command in commands]
                kept = [Command(words, output) for words, output in typed if words is not None]
                self.type(kept)
                self.printed = self.printed if len(kept) == len(commands) else None
        for sign in list(self._running):
            self.stop(sign)

    def type(self, commands: list[Command]) -> None:
        """Run the commands of a block, and compare the output of each."""
        self.printed = ""
        waiting: list[Command] = []
        for command in commands:
            if command.words.startswith("uvx "):
                self.open_terminal()
            if sign := next((sign for words, sign in ENDLESS.items() if words in command.words), None):
                self.compare(waiting)
                waiting = []
                self.start(command, sign)
            else:
                waiting.append(command)
        self.compare(waiting)

    def compare(self, commands: list[Command]) -> None:
        """Run commands, compare the output of each, and add it to the output of the block."""
        deadline = time.monotonic() + 300
        while True:
            done = self.run(commands) if commands else []
            wrong = [
                f"{command.words}\n{missing!r} is missing in\n{printed}"
                for command, (printed, _) in zip(commands, done, strict=True)
                if (missing := missing_line(command.output, printed)) is not None
            ]
            # The status is requested until the run in progress has ended.
            if not wrong or commands[-1].words != "uv run ml status" or time.monotonic() > deadline:
                break
            time.sleep(2)
        assert not wrong, wrong[0]
        for number, (command, (printed, status)) in enumerate(zip(commands, done, strict=True)):
            asked = number + 1 < len(commands) and commands[number + 1].words == "echo $?"
            assert asked or status == STATUSES.get(command.words, 0), f"{command.words}\n{status}\n{printed}"
            self.printed = f"{self.printed or ''}{printed}"

    def run(self, commands: list[Command]) -> list[tuple[str, int]]:
        """Run commands in one shell; return the output and the exit status of each."""
        end = f'code=$?; printf "{STATUS}%s\\n" $code; (exit $code)\n'
        script = "".join(f"{self.with_ports(command.words)}\n{end}" for command in commands)
        keep = f'{{ export -p; printf "cd %q\\n" "$PWD"; }} > {shlex.quote(str(self._state))}'
        done = subprocess.run(
            ["bash", "-c", f"exec 2>&1\n. {shlex.quote(str(self._state))}\n{script}{keep}"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        found = re.split(rf"{STATUS}(\d+)\n", done.stdout)
        assert len(found) == 2 * len(commands) + 1, done.stdout + done.stderr
        return [(self.without_ports(found[i]), int(found[i + 1])) for i in range(0, len(found) - 1, 2)]

    def start(self, command: Command, sign: str) -> None:
        """Start a command that runs until it is interrupted, and wait until it works."""
        self.stop(sign)
        log = self.scratch / f"{len(list(self.scratch.glob('*.log')))}.log"
        words = self.with_ports(command.words.removesuffix(" &"))
        with log.open("wb") as output:
            self._running[sign] = process = subprocess.Popen(
                ["bash", "-c", f". {shlex.quote(str(self._state))}\n{words}"],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + 240
        while not self._works(sign, log, command.output):
            said = log.read_text(encoding="utf-8")
            assert process.poll() is None and time.monotonic() < end, f"{command.words}\n{said}"
            time.sleep(0.2)

    def _works(self, sign: str, log: Path, output: list[str]) -> bool:
        printed = self.without_ports(log.read_text(encoding="utf-8"))
        if not sign.startswith("http"):
            return sign in printed and missing_line(output, printed) is None
        try:
            answered = httpx.get(self.with_ports(sign), trust_env=False).status_code == 200
        except httpx.TransportError:
            return False
        return answered and missing_line(output, printed) is None

    def stop(self, sign: str) -> None:
        """Interrupt the command that was started last with this sign."""
        if process := self._running.pop(sign, None):
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(60) in (0, 130, -signal.SIGINT), sign

    def close(self) -> None:
        """Stop every command; no process may keep running in the folder."""
        for sign in list(self._running):
            self.stop(sign)
        if any((self.project / ".ml" / "run").glob("*.json")):
            self.run([Command("uv run ml down")])
        assert not wait_until_alone(self.folder)

    def with_ports(self, text: str) -> str:
        return re.sub(PORT, lambda found: f"{found[1]}{self.ports[found[2]]}", text)

    def without_ports(self, text: str) -> str:
        for port, free in self.ports.items():
            text = text.replace(f"127.0.0.1:{free}", f"127.0.0.1:{port}")
        return text
