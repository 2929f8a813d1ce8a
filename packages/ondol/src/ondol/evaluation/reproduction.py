"""`ml reproduce`: checks out the recorded commit, installs its packages, trains again and compares.

Fields of `Order` and `Outcome` may be added, with defaults, but not renamed or removed, because the code of other
commits reads and writes them.
"""

import hashlib
import io
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from ondol.config import FILE_NAME, Settings
from ondol.errors import UserError
from ondol.orchestration.environment import clean_environment
from ondol.orchestration.guard import Child
from ondol.redaction import show_uri
from ondol.registry.registry import Registry
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.storage.files import digest_json, sole
from ondol.storage.store import open_store
from ondol.training.provenance import SHAPING, Provenance, project_files, tree_digest
from ondol.validation.results import Validations

# `python -m ENTRY ORDER OUTCOME` in the project's folder, and the file of the module; the second is for releases before
# 0.4.
ENTRIES = {
    "ondol.evaluation.reproduction_entry": "vendor/ondol/src/ondol/evaluation/reproduction_entry.py",
    "flows.reproducing.retrain": "flows/reproducing/retrain.py",
}


class Order(BaseModel):
    """What to train, as it was recorded; read by the code of the commit that recorded it.

    Attributes:
        settings: The settings, including those of the environment.
        store: A folder with the snapshot, in which the retraining may write.
        snapshot: The snapshot's digest.
        validation: The id of the validation of the training rows.
        holdout: The rule of the split.
        basis: The inputs of the version's evaluation; None if it was never evaluated.
        model: The recorded pipeline, whose predictions are compared.
    """

    settings: dict[str, Any]
    store: Path
    snapshot: str
    validation: str
    holdout: dict[str, Any]
    basis: dict[str, Any] | None = None
    model: Path


class Outcome(BaseModel):
    """The result of a reproduction.

    Attributes:
        error: The reason for a failure, in one sentence.
        train_rows: The number of training rows.
        verdict: Its figures, in the format of `verdict.json`.
        apart: The largest difference between its predictions and those of the recorded model on the held-out rows.
        packages: The versions of the packages.
        python: The version of Python.
        machine: System and processor.
    """

    error: str | None = None
    train_rows: int = 0
    verdict: dict[str, Any] | None = None
    apart: float | None = None
    packages: dict[str, str] = {}
    python: str | None = None
    machine: str | None = None


TOLERANCE = 1e-9  # relative for figures above 1
Figure = tuple[float | None, ...]  # a value, or a value and the ends of its interval
PREDICTIONS = "predictions"


@dataclass(frozen=True)
class FigureComparison:
    """One figure, as recorded and as reproduced; None if it is missing.

    Attributes:
        name: The name of the metric.
        recorded: The recorded figure.
        reproduced: The reproduced figure.
        deviation: The largest difference; infinite if one of them is missing.
    """

    name: str
    recorded: Figure | None
    reproduced: Figure | None
    deviation: float

    @property
    def equal(self) -> bool:
        """Whether they are equal within `TOLERANCE`."""
        return self.deviation <= TOLERANCE


def figures_of(train_rows: float, verdict: Mapping[str, Any] | None) -> dict[str, Figure]:
    """Return the figures of a version that depend on no other version, without durations.

    Args:
        train_rows: The number of training rows.
        verdict: The content of `verdict.json`; None if it was never evaluated.
    """
    made: dict[str, Figure] = {"train_rows": (float(train_rows),)}
    if verdict is None:
        return made
    made["holdout_rows"] = (float(verdict["rows"]),)
    made |= {name: _figure(found) for name, found in verdict["scores"]["candidate"].items()}
    made |= {f"dummy {name}": _figure(found) for name, found in verdict["scores"]["dummy"].items()}
    return made | {f"gain over {who}": _figure(found) for who, found in verdict["gains"].items() if who == "dummy"}


def compare_figures(recorded: Mapping[str, Figure], reproduced: Mapping[str, Figure]) -> list[FigureComparison]:
    """Return a comparison for each figure of both sides, in the order of the record."""
    names = dict.fromkeys([*recorded, *reproduced])
    pairs = [(name, recorded.get(name), reproduced.get(name)) for name in names]
    return [FigureComparison(name, old, new, distance(old, new)) for name, old, new in pairs]


def compare_all(
    recorded: Mapping[str, Figure], reproduced: Mapping[str, Figure], deviation: float | None
) -> list[FigureComparison]:
    """Return a comparison for each figure, and one for the prediction with the largest difference."""
    known = math.inf if deviation is None or math.isnan(deviation) else deviation
    return [*compare_figures(recorded, reproduced), FigureComparison(PREDICTIONS, None, None, known)]


def distance(old: Figure | None, new: Figure | None) -> float:
    """Return the difference of two figures, relative to the old one if that is above 1."""
    if old is None or new is None or len(old) != len(new):
        return math.inf
    return max((_deviation(a, b) for a, b in zip(old, new, strict=True)), default=0.0)


def other_packages(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return phrases on packages with other versions than recorded: those in both, and those that affect models."""
    names = [name for name in recorded if name in now or name in SHAPING]
    return [f"{name} {recorded[name]} → {now.get(name, 'none')}" for name in names if now.get(name) != recorded[name]]


def _deviation(a: float | None, b: float | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else math.inf
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    made = abs(a - b) / max(1.0, abs(a))
    return math.inf if math.isnan(made) else made


def _figure(found: Mapping[str, Any]) -> Figure:
    return (found["value"], found["low"], found["high"])


REQUIRED = ("provenance.json", "settings.json")


@dataclass(frozen=True)
class Recorded:
    """A version's record.

    Attributes:
        version: Its number.
        origin: Commit, packages and machine.
        settings: All settings, including those of the environment.
        tags: The tags of its run: data_digest, validation, holdout, …
        verdict: Its figures; None if it was never evaluated.
        basis: The inputs of its evaluation; None if it was never evaluated, or by an older version of Ondol.
        train_rows: The number of training rows.
    """

    version: str
    origin: Provenance
    settings: dict[str, Any]
    tags: dict[str, str]
    verdict: dict[str, Any] | None
    basis: dict[str, Any] | None
    train_rows: float

    @property
    def holdout(self) -> dict[str, Any]:
        """The rule of the split, as the code of that time wrote it."""
        found: dict[str, Any] = json.loads(self.tags["holdout"])
        return found

    @property
    def figures(self) -> dict[str, Figure]:
        """Every figure that can be reproduced."""
        return figures_of(self.train_rows, self.verdict if self.basis else None)


def read_recorded(registry: Registry, version: str) -> Recorded:
    """Return MLflow's record of a version.

    Raises:
        UserError: there is no such version, MLflow cannot be reached, or the record is incomplete.
    """
    with _reaching(version, os.environ.get("MLFLOW_TRACKING_URI", "")):
        run = registry.run_of(version)
    with _reaching(version, run.info.artifact_uri):
        found = registry.read_documents(run, (*REQUIRED, "verdict.json", "basis.json"))
    if lost := [name for name in REQUIRED if name not in found]:
        raise UserError(
            f"The record of version {version} is incomplete: its run {run.info.run_id} in MLflow has no "
            f"{' and no '.join(lost)}, needed to reproduce it."
        )
    return Recorded(
        version=version,
        origin=Provenance.model_validate(found["provenance.json"]),
        settings=found["settings.json"],
        tags=dict(run.data.tags),
        verdict=found.get("verdict.json"),
        basis=found.get("basis.json"),
        train_rows=run.data.metrics.get("train_rows", 0.0),
    )


def require_snapshot(settings: Settings, digest: str) -> Snapshot:
    """Return a snapshot after a check that all its files exist and match their digests.

    Raises:
        UserError: it is missing or was changed.
    """
    snapshots = Snapshots(open_store(settings))
    if not (snapshots.folder / f"{digest}.json").exists():
        raise UserError(
            f"The snapshot {digest} that it was trained on is not in {snapshots.folder}: restore it from a backup of "
            "the store (with its .json and .parquet files), or set ML_STORE to a store that has it."
        )
    snapshot = snapshots.get(digest)
    for part in snapshot.parts:
        snapshots.parts.verify(part)
    return snapshot


@contextmanager
def _reaching(version: str, uri: str) -> Iterator[None]:
    """Convert failures of MLflow to a UserError: its stores raise errors of many libraries."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"MLflow cannot be reached at {show_uri(uri)}, where the record of version {version} is "
            f"({type(error).__name__}): check that it answers, and run the command again."
        ) from None


SHORT = 10
LATER_COMMITS = 50  # commits after the base to search for the files that were not committed yet


@dataclass(frozen=True)
class Origin:
    """The place of the files that a version was trained with.

    Attributes:
        commit: The commit that has them; None if the project's folder still has them.
        note: What a reader should know; empty if the commit is the recorded one.
        exact: Whether they are exactly the files of the training.
    """

    commit: str | None
    note: str = ""
    exact: bool = True


def find_origin(root: Path, recorded: Provenance, anyway: bool) -> Origin:
    """Find the files that a version was trained with.

    Args:
        root: The project.
        recorded: The version's record.
        anyway: Use the commit that it was based on if they cannot be found.

    Raises:
        UserError: they cannot be found, and `anyway` is False or there is no such commit.
    """
    if recorded.commit != "uncommitted":
        return Origin(recorded.commit)
    digest = recorded.patch_digest or ""
    if found := _find_commit(root, digest, recorded.base):
        return Origin(found, f"It was trained before its files were committed: commit {found[:SHORT]} has just these.")
    if tree_digest(root) == digest:
        return Origin(None, "It was trained from files that are not committed; they are still as they were.")
    base = recorded.base[:SHORT] if recorded.base else ""
    what = f"changes to commit {base}" if base else "files"
    message = f"It cannot be reproduced exactly: it was trained from {what} that were never committed"
    if anyway and recorded.base:
        return Origin(recorded.base, f"{message} (digest {digest[:SHORT]}); this is commit {base} without them.", False)
    hint = f"; `--anyway` trains from commit {base} without them" if base else ""
    raise UserError(f"{message} and are no longer here (digest {digest[:SHORT]}){hint}.")


@contextmanager
def checked_out(root: Path, origin: Origin, folder: Path) -> Iterator[Path]:
    """Yield the project with the files of `origin`, in a worktree or a copy at `folder`; remove it at the end.

    Raises:
        UserError: the commit is not in this repository, or does not contain the project.
    """
    try:
        yield _add_worktree(root, origin.commit, folder) if origin.commit else _copy(root, folder)
    finally:
        remove_tree(root, folder)


def remove_tree(root: Path, folder: Path) -> None:
    """Remove `folder`, and prune git's record of a worktree there."""
    if (folder / ".git").exists():
        _git(root, "worktree", "remove", "--force", "--force", str(folder))
    shutil.rmtree(folder, ignore_errors=True)


def _add_worktree(root: Path, commit: str, folder: Path) -> Path:
    inside = _git(root, "rev-parse", "--show-prefix")
    if inside.returncode:
        raise UserError(
            f"{root} is in no git repository ({_last(inside.stderr)}): clone the one that has commit "
            f"{commit[:SHORT]}, and run there."
        )
    if _git(root, "cat-file", "-e", f"{commit}^{{commit}}").returncode:
        raise UserError(
            f"Commit {commit} is not in this repository: `git fetch origin {commit}` brings it, or "
            "`git fetch --unshallow` where the clone is shallow."
        )
    # Hooks are only for checkouts of users.
    made = _git(root, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", "--force", str(folder), commit)
    if made.returncode:
        raise UserError(f"git could not check out {commit[:SHORT]}: {_last(made.stderr)}.")
    project = folder / inside.stdout.decode().rstrip("\n")
    if not (project / FILE_NAME).is_file():
        place = project.relative_to(folder)
        raise UserError(f"Commit {commit[:SHORT]} has no {FILE_NAME} in {place}/: the project lay elsewhere then.")
    return project


def _copy(root: Path, folder: Path) -> Path:
    for source in project_files(root):
        target = folder / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    return folder


def _find_commit(root: Path, digest: str, base: str | None) -> str | None:
    """Return the first commit after `base` with exactly the files of a digest, or None."""
    listed = _git(root, "rev-list", "--reverse", "--all", *([f"^{base}"] if base else []), "--", ".")
    commits = listed.stdout.decode().split() if listed.returncode == 0 else []
    return next((commit for commit in commits[:LATER_COMMITS] if _commit_digest(root, commit) == digest), None)


def _commit_digest(root: Path, commit: str) -> str:
    """Return the digest of the project's files in a commit, like `tree_digest` of a folder."""
    packed = _git(root, "archive", "--format=tar", commit, "--", ".").stdout
    digests = {}
    with tarfile.open(fileobj=io.BytesIO(packed or bytes(tarfile.RECORDSIZE))) as archive:
        for member in archive:
            if member.isfile() and (file := archive.extractfile(member)):
                digests[member.name] = hashlib.sha256(file.read()).hexdigest()
    return digest_json(digests)


def _git(root: Path, *words: str) -> "subprocess.CompletedProcess[bytes]":
    """Run git in the project; without git, return a failure."""
    try:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, check=False)
    except OSError:
        return subprocess.CompletedProcess(words, 127, b"", b"git is not installed")


def _last(output: bytes) -> str:
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


POLL_SECONDS = 0.1
STRIPPED = ("VIRTUAL_ENV", "CONDA_PREFIX", "UV_PROJECT", "UV_PYTHON", "PYTHONHOME", "PYTHONSAFEPATH")
THREADS = {"openmp": ("OMP_NUM_THREADS",), "blas": ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Worker:
    """Runs commands in the project that was checked out.

    Attributes:
        project: That project.
        log: The file of their output.
        say: Called with the last line of the output.
    """

    project: Path
    log: Path
    say: Callable[[str], None]

    def run(self, command: Sequence[str], env: Mapping[str, str]) -> bool:
        """Run a command and return whether it succeeded; end it if this process is interrupted."""
        child = Child(command, env, self.project, self.log)
        try:
            while child.alive():
                self.say(child.tail())
                time.sleep(POLL_SECONDS)
        finally:
            child.stop()
        return child.process.returncode == 0

    def last(self) -> str:
        """Return the last printed line, and the location of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it printed nothing'} (all of it: {self.log})"


def install(worker: Worker, recorded: Provenance) -> Path:
    """Install the commit's locked packages, or the recorded ones, into its own `.venv`; return its Python.

    Raises:
        UserError: uv is missing or fails.
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


def retrain_at_commit(worker: Worker, python: Path, recorded: Provenance, order: Order, folder: Path) -> Outcome:
    """Train again with the commit's own code.

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
    """Return the Pythons to request from uv, best first: this one if the version is equal, the version, its minor."""
    here = platform.python_version()
    if version in (None, here):
        return [str(getattr(sys, "_base_executable", sys.executable)), here]
    return [str(version), str(version).rpartition(".")[0]]


def _what(project: Path, python: Path, recorded: Provenance) -> list[str]:
    """Return uv's command for the lock file, or without one for the recorded versions of the project's dependencies."""
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


class Progress(Protocol):
    """Reports the progress of a reproduction."""

    def begin(self, name: str, what: str) -> None:
        """Report that a step begins and the previous one has completed."""

    def say(self, words: str) -> None:
        """Report the progress of the step."""


@dataclass(frozen=True)
class Reproduction:
    """A version's record, where its files were found, and the result of training it again."""

    recorded: Recorded
    snapshot: Snapshot
    origin: Origin
    outcome: Outcome


def retrain_version(settings: Settings, version: str, anyway: bool, fresh: bool, progress: Progress) -> Reproduction:
    """Train a version again.

    Args:
        settings: The current settings of the project, for the locations of store and MLflow.
        version: A registered version.
        anyway: Use the commit that it was based on if its files were never committed.
        fresh: Install its packages; otherwise use the installed ones.
        progress: The receiver of progress reports.

    Raises:
        UserError: its data, code or packages are missing, or it cannot be trained.
    """
    with _workplace(settings) as folder:
        progress.begin("record", "reading its record and its data")
        registry = Registry(settings)
        recorded = read_recorded(registry, version)
        snapshot = require_snapshot(settings, recorded.tags["data_digest"])
        order = _write_order(settings, registry, recorded, snapshot, folder)
        origin = find_origin(settings.root, recorded.origin, anyway)
        progress.begin("files", f"commit {origin.commit[:SHORT]}" if origin.commit else "a copy of the current files")
        with checked_out(settings.root, origin, folder / "tree") as project:
            worker = Worker(project, settings.home / "logs" / "reproduce.log", progress.say)
            progress.begin("packages", "installing them" if fresh else "the installed ones")
            python = install(worker, recorded.origin) if fresh else Path(sys.executable)
            progress.begin("train", "with its own code, settings and seed")
            outcome = retrain_at_commit(worker, python, recorded.origin, order, folder)
    return Reproduction(recorded, snapshot, origin, outcome)


@contextmanager
def _workplace(settings: Settings) -> Iterator[Path]:
    """Yield an empty folder and remove it at the end; remove files of a killed process first."""
    folder = settings.home / "reproduce"
    with sole(settings.home / "reproduce.lock", "Another `ml reproduce` is running here: wait until it ends."):
        try:
            _clear(settings, folder)
            folder.mkdir(parents=True)
            yield folder
        finally:
            _clear(settings, folder)


def _clear(settings: Settings, folder: Path) -> None:
    remove_tree(settings.root, folder / "tree")
    shutil.rmtree(folder, ignore_errors=True)


def _write_order(settings: Settings, registry: Registry, recorded: Recorded, snapshot: Snapshot, folder: Path) -> Order:
    """Write the inputs of the retraining: links to the data, and the recorded model."""
    here, store = open_store(settings), folder / "store"
    files = [name for part in snapshot.parts for name in (part.digest, part.dropped) if name]
    data = [here.folder / "snapshots" / name for name in (f"{snapshot.digest}.json", *(f"{f}.parquet" for f in files))]
    validation = recorded.tags["validation"]
    validations = Validations(here)
    rows = [validations.find_rows(validation), validations.folder / f"{validation}.json"]
    for path in [*data, *(path for path in rows if path.exists())]:
        link = store / path.relative_to(here.folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    return Order(
        settings=recorded.settings,
        store=store,
        snapshot=snapshot.digest,
        validation=validation,
        holdout=recorded.holdout,
        basis=recorded.basis,
        model=registry.download(recorded.version, folder / "model"),
    )
