"""Other programs at work for `ml reproduce`: uv installs, another Python retrains. None outlives this process."""

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ondol.errors import UserError
from ondol.evaluation.reproduction.order import ENTRIES, Order, Outcome
from ondol.orchestration.environment import clean_environment
from ondol.orchestration.guard import Child
from ondol.training.provenance import Provenance

POLL_SECONDS = 0.1
STRIPPED = ("VIRTUAL_ENV", "CONDA_PREFIX", "UV_PROJECT", "UV_PYTHON", "PYTHONHOME", "PYTHONSAFEPATH")
THREADS = {"openmp": ("OMP_NUM_THREADS",), "blas": ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Worker:
    """Runs commands in the project that was checked out.

    Attributes:
        project: That project.
        log: Where what they print is kept.
        say: Told the last line of it.
    """

    project: Path
    log: Path
    say: Callable[[str], None]

    def run(self, command: Sequence[str], env: Mapping[str, str]) -> bool:
        """Run a command until it ends, and end it if we are interrupted; return whether it succeeded."""
        child = Child(command, env, self.project, self.log)
        try:
            while child.alive():
                self.say(child.tail())
                time.sleep(POLL_SECONDS)
        finally:
            child.stop()
        return child.process.returncode == 0

    def last(self) -> str:
        """Return the last line that was printed, and where the others are."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it said nothing'} (all of it: {self.log})"


def install(worker: Worker, recorded: Provenance) -> Path:
    """Install the commit's locked packages, or those that are recorded, into its own `.venv`; return its Python.

    Raises:
        UserError: there is no uv, or it fails.
    """
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise UserError("uv, which installs the packages, is not on PATH: add it, or use those here by `--no-install`.")
    env, folder = _environment(worker.project), worker.project / ".venv"
    wanted = _find_python(recorded.python)
    if not any(worker.run([uv, "venv", "--clear", "--python", name, str(folder)], env) for name in wanted):
        raise UserError(f"uv has no Python {recorded.python}: {worker.last()}")
    python = folder / "bin" / "python"
    if not worker.run([uv, *_what(worker.project, python, recorded)], env):
        raise UserError(f"The packages that it was trained with cannot be installed: {worker.last()}")
    return python


def retrain(worker: Worker, python: Path, recorded: Provenance, order: Order, folder: Path) -> Outcome:
    """Let the commit's own code train again.

    Raises:
        UserError: it is older than this command, or fails.
    """
    entry = next((name for name, file in ENTRIES.items() if (worker.project / file).exists()), None)
    if entry is None:
        raise UserError(
            "It was trained by code that is older than `ml reproduce` (none of its files can train from a record): "
            "check that commit out and run `ml train` there."
        )
    asked, answer = folder / "order.json", folder / "outcome.json"
    asked.write_text(order.model_dump_json(), encoding="utf-8")
    threads = {name: str(count) for pool, count in recorded.threads.items() for name in THREADS.get(pool, ())}
    env = _environment(worker.project) | threads
    if not worker.run([str(python), "-m", entry, str(asked), str(answer)], env) or not answer.exists():
        raise UserError(f"The code of that time failed: {worker.last()}")
    outcome = Outcome.model_validate_json(answer.read_bytes())
    if outcome.error:
        raise UserError(f"It cannot be trained again: {outcome.error}")
    return outcome


def _find_python(version: str | None) -> list[str]:
    """Return what uv is asked for, the best first: this one, where it is of that version; the version; its minor."""
    here = platform.python_version()
    if version in (None, here):
        return [str(getattr(sys, "_base_executable", sys.executable)), here]
    return [str(version), str(version).rpartition(".")[0]]


def _what(project: Path, python: Path, recorded: Provenance) -> list[str]:
    """Return uv's command for the lock file, or without one for the recorded versions of what the project asks for."""
    if (project / "uv.lock").exists():
        return ["sync", "--locked", "--no-dev", "--no-install-project", "--python", str(python)]
    versions = project / ".venv" / "recorded.txt"
    lines = [f"{name}=={version}\n" for name, version in recorded.packages.items()]
    versions.write_text("".join(lines), encoding="utf-8")
    asked = ["--requirements", "pyproject.toml", "--constraints", str(versions)]
    return ["pip", "install", "--python", str(python), *asked]


def _environment(project: Path) -> dict[str, str]:
    kept = {name: value for name, value in clean_environment(project).items() if not name.startswith(STRIPPED)}
    return kept | {"UV_NO_PROGRESS": "1", "PYTHONUNBUFFERED": "1"}
