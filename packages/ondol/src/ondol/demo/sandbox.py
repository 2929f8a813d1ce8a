"""The copy of the project that a simulation runs in."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tomlkit

from ondol.config import FILE_NAME, FileSettings, Settings, load_settings
from ondol.errors import UserError
from ondol.orchestration.environment import clean_environment
from ondol.services import only_up, stop_processes
from ondol.setup.schema_file import reads_sample

DATA = "data.parquet"
COPIED = ("flows", "model", "service", "prefect.yaml", FILE_NAME)
COMMAND_SECONDS = 900


@dataclass(frozen=True)
class Sandbox:
    """The folder of a simulation."""

    root: Path

    @cached_property
    def settings(self) -> Settings:
        """The settings of the copied project, without this process's environment, as for its commands."""
        return load_settings(self.root, FileSettings)

    @property
    def data(self) -> Path:
        """The table that its pipeline reads."""
        return self.root / DATA

    @property
    def answers(self) -> Path:
        """The file of all answers that the client received, one line of JSON each."""
        return self.root / "answers.jsonl"

    def ml(self, *words: str, check: bool = True) -> str:
        """Run an `ml` command in it and return what it printed.

        Raises:
            UserError: it failed and `check` is True.
        """
        done = subprocess.run(
            [sys.executable, "-m", "ondol.cli", *words],
            cwd=self.root,
            env=clean_environment(self.root),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        output = (done.stdout + done.stderr).decode(errors="replace")
        if check and done.returncode:
            raise UserError(f"`ml {' '.join(words)}` failed in the simulation's project {self.root}: {_last(output)}")
        return output


def make_sandbox(settings: Settings) -> Sandbox:
    """Copy the project into `.ml/simulation`; stop and remove an earlier simulation there.

    Raises:
        UserError: the project reads its own data, for which there is no generator, or the earlier simulation does not
            stop.
    """
    if not reads_sample(settings.root, settings.data.source):
        raise UserError(
            f"`ml simulate` plays the sample, and this project reads {settings.data.source}: "
            "simulate in a project fresh from `copier copy`."
        )
    sandbox = Sandbox(settings.home / "simulation")
    clear(sandbox, settings)
    sandbox.root.mkdir(parents=True)
    for name in COPIED:
        _copy(settings.root / name, sandbox.root / name)
    _rewrite_config(sandbox.root / FILE_NAME)
    _still_schedules(sandbox.root / "prefect.yaml")
    return sandbox


def clear(sandbox: Sandbox, settings: Settings) -> None:
    """Stop the processes of a sandbox and remove it, with our code and settings: its own may be incomplete.

    Raises:
        UserError: a process still runs there; nothing was removed.
    """
    if not sandbox.root.exists():
        return
    inside = settings.model_copy(update={"root": sandbox.root})
    with only_up(inside):
        stop_processes(inside)
        if left := commands_in(sandbox.root):
            raise UserError(
                f"An earlier simulation is still running in {settings.show(sandbox.root)} (process {left[0]}): "
                f"wait until it ends, or `kill {left[0]}`."
            )
    try:
        shutil.rmtree(sandbox.root)
    except OSError as error:
        raise UserError(f"The earlier simulation cannot be removed: {error}.") from None


def commands_in(root: Path) -> list[int]:
    """Return the processes that a simulation in `root` started: their modules are loaded from there."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if str(root) in process.environ().get("PYTHONPATH", "").split(os.pathsep):
                found.append(process.pid)
    return found


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _rewrite_config(path: Path) -> None:
    """Configure the copy: the simulated table, its labels, and no cooldown between two trainings."""
    config = tomlkit.parse(path.read_text(encoding="utf-8"))
    changes = {
        "data": {"source": DATA},
        "monitor": {"labels": DATA},
        "retrain": {"cooldown_hours": 0},  # a simulated week takes seconds
    }
    for section, values in changes.items():
        config.setdefault(section, tomlkit.table()).update(values)
    config.pop("store", None)  # the copy uses the default
    config.pop("alerts", None)  # a simulation sends no alerts
    path.write_text(tomlkit.dumps(config), encoding="utf-8")


def _still_schedules(path: Path) -> None:
    """Disable schedules: the simulation itself runs the flows."""
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"(?m)^(\s*active:) true", r"\1 false", text), encoding="utf-8")


def _last(output: str) -> str:
    lines = [line for line in output.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
