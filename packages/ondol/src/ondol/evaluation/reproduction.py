"""`ml reproduce`: checks out the recorded commit, installs its packages, trains again and compares.

Fields of `Order` and `Outcome` may be added, with defaults; none may be renamed or removed: another commit's code reads
and writes them.
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

# `python -m ENTRY ORDER OUTCOME` in the project's folder, and its file; the second is that of releases before 0.4.
ENTRIES = {
    "ondol.evaluation.reproduction_entry": "vendor/ondol/src/ondol/evaluation/reproduction_entry.py",
    "flows.reproducing.retrain": "flows/reproducing/retrain.py",
}


class Order(BaseModel):
    """What to train, as it was recorded; the commit that recorded it knows how to read it.

    Attributes:
        settings: The settings, those of the environment included.
        store: A folder with the snapshot, in which the retraining may write.
        snapshot: The snapshot's digest.
        validation: The id of the validation whose rows were trained on.
        holdout: Which rows were held out.
        basis: What the version was evaluated by; None if it never was.
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
        error: Why it failed, in one sentence.
        train_rows: On how many rows the model was fitted.
        verdict: Its figures, as `verdict.json` has them.
        apart: How far the farthest of its predictions for the held-out rows is from that of the recorded model.
        packages: The versions by which it was made.
        python: Likewise.
        machine: Likewise.
    """

    error: str | None = None
    train_rows: int = 0
    verdict: dict[str, Any] | None = None
    apart: float | None = None
    packages: dict[str, str] = {}
    python: str | None = None
    machine: str | None = None


TOLERANCE = 1e-9  # of figures above 1, relative to them
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
        """Whether they are the same to `TOLERANCE`."""
        return self.deviation <= TOLERANCE


def figures_of(train_rows: float, verdict: Mapping[str, Any] | None) -> dict[str, Figure]:
    """Return every figure of a version that does not depend on another: not the champion's, not the seconds.

    Args:
        train_rows: The number of rows that it was fitted on.
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
    """Return a comparison for each figure of either side, in the order of the record."""
    names = dict.fromkeys([*recorded, *reproduced])
    pairs = [(name, recorded.get(name), reproduced.get(name)) for name in names]
    return [FigureComparison(name, old, new, distance(old, new)) for name, old, new in pairs]


def compare_all(
    recorded: Mapping[str, Figure], reproduced: Mapping[str, Figure], deviation: float | None
) -> list[FigureComparison]:
    """Return a comparison for each figure, and one for the prediction farthest from the recorded model's."""
    known = math.inf if deviation is None or math.isnan(deviation) else deviation
    return [*compare_figures(recorded, reproduced), FigureComparison(PREDICTIONS, None, None, known)]


def distance(old: Figure | None, new: Figure | None) -> float:
    """Return by how much two figures differ, relative to the old one where that is above 1."""
    if old is None or new is None or len(old) != len(new):
        return math.inf
    return max((_deviation(a, b) for a, b in zip(old, new, strict=True)), default=0.0)


def other_packages(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return in words which packages are not of the recorded version: of those in both, and those that shape models."""
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
        settings: All settings, those of the environment included.
        tags: Of its run: data_digest, validation, holdout, …
        verdict: Its figures; None if it was never evaluated.
        basis: What it was evaluated by; None if it never was, or by an older version of Ondol.
        train_rows: The number of rows that it was fitted on.
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
        """Which rows were held out, as the code of that time wrote it."""
        found: dict[str, Any] = json.loads(self.tags["holdout"])
        return found

    @property
    def figures(self) -> dict[str, Figure]:
        """Every figure that can be reproduced."""
        return figures_of(self.train_rows, self.verdict if self.basis else None)


def read_recorded(registry: Registry, version: str) -> Recorded:
    """Return what MLflow has of a version.

    Raises:
        UserError: there is no such version, MLflow cannot be reached, or the record is not whole.
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
    """Return a snapshot whose files are all there, each with the bytes that its name says.

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
    """Turn failures of MLflow into a UserError: its stores raise errors of many libraries."""
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
LATER_COMMITS = 50  # of those after the base, the first that may hold what was not committed yet


@dataclass(frozen=True)
class Origin:
    """Where the files are found.

    Attributes:
        commit: The commit that has them; None if the project's folder itself still does.
        note: What a reader should know; empty if the commit is the recorded one.
        exact: Whether they are those that were trained with.
    """

    commit: str | None
    note: str = ""
    exact: bool = True


def find_origin(root: Path, recorded: Provenance, anyway: bool) -> Origin:
    """Return where the files are that a version was trained with.

    Args:
        root: The project.
        recorded: What is known of the version.
        anyway: Take the commit that it was based on where they are nowhere.

    Raises:
        UserError: they are nowhere, and `anyway` was not given or there is no such commit.
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
    """Yield the project with the files of `origin`, in a worktree or a copy at `folder`, which is removed at the end.

    Raises:
        UserError: the commit is not here, or the project is not in it.
    """
    try:
        yield _add_worktree(root, origin.commit, folder) if origin.commit else _copy(root, folder)
    finally:
        remove_tree(root, folder)


def remove_tree(root: Path, folder: Path) -> None:
    """Remove what lies at `folder`, and let git forget a worktree there."""
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
    # Hooks are for people's checkouts.
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
    """Return the first commit after `base` that holds exactly the files of a digest, or None."""
    listed = _git(root, "rev-list", "--reverse", "--all", *([f"^{base}"] if base else []), "--", ".")
    commits = listed.stdout.decode().split() if listed.returncode == 0 else []
    return next((commit for commit in commits[:LATER_COMMITS] if _commit_digest(root, commit) == digest), None)


def _commit_digest(root: Path, commit: str) -> str:
    """Return the digest of the project's files in a commit, as `tree_digest` gives it of a folder."""
    packed = _git(root, "archive", "--format=tar", commit, "--", ".").stdout
    digests = {}
    with tarfile.open(fileobj=io.BytesIO(packed or bytes(tarfile.RECORDSIZE))) as archive:
        for member in archive:
            if member.isfile() and (file := archive.extractfile(member)):
                digests[member.name] = hashlib.sha256(file.read()).hexdigest()
    return digest_json(digests)


def _git(root: Path, *words: str) -> "subprocess.CompletedProcess[bytes]":
    """Run git in the project; where there is none, it fails."""
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
        return f"{lines[-1] if lines else 'it printed nothing'} (all of it: {self.log})"


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


class Progress(Protocol):
    """Reports the progress of a reproduction."""

    def begin(self, name: str, what: str) -> None:
        """Report that a step begins and the one before is done."""

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
        settings: Of the project as it is; of these only says where store and MLflow are.
        version: A registered version.
        anyway: Take the commit that it was based on where its files were never committed.
        fresh: Install its packages; else the installed ones are used.
        progress: Where the progress is reported.

    Raises:
        UserError: something that it was made from is missing, or it cannot be trained.
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
    """Yield an empty folder, removed at the end; what a killed process left there is removed first."""
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
    """Lay out what the retraining reads: links to the data, and the recorded model."""
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
