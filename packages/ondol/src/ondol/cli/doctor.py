"""`ml doctor`: check the machine, the settings and the connections, and say how to fix what is wrong."""

import os
import shutil
import socket
import sqlite3
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import BaseModel
from rich.markup import escape

from ondol.cli.console import console, start_command
from ondol.cli.status import ANSWER_SECONDS
from ondol.cli.tidy import describe_leftovers
from ondol.config import Settings
from ondol.contract import load_contract
from ondol.deployment.smoke import import_service
from ondol.errors import UserError
from ondol.evaluation.gates import StoredVerdict
from ondol.evaluation.metrics import choose_metric, require_decision
from ondol.ingestion.ingest import Cursor
from ondol.monitoring.retraining import Loop
from ondol.monitoring.windows import Window
from ondol.orchestration.environment import prefect_database
from ondol.orchestration.processes import ProcessRecord as Process
from ondol.orchestration.processes import log_path, read_process_record, run_folder, running
from ondol.orchestration.server import PREFECT_REMEDY
from ondol.project import OWN_ERRORS, describe_error
from ondol.redaction import show_uri
from ondol.registry.bundles import open_bundle
from ondol.registry.champion import read_champion
from ondol.registry.keys import read_local_keys
from ondol.registry.registry import MLFLOW_REMEDY, MODEL_FILE, check_schema, is_embedded, local_path, mlflow_database
from ondol.registry.rollout import read_rollout
from ondol.rollout.evidence import Evidence
from ondol.services import is_ours, is_well, prefect_address
from ondol.setup.leftovers import find_leftovers
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.storage.files import (
    BACKUP,
    SQLITE_WAIT_SECONDS,
    check_database,
    explain_damage,
    explain_os_error,
    read_json,
    require_resolved,
)
from ondol.storage.files import read_record as read_json_record
from ondol.storage.store import open_store
from ondol.validation.results import Validation, Validations, read_latest

RECORDS: tuple[tuple[str, type[BaseModel] | None], ...] = (
    (BACKUP, None),
    ("loop.json", Loop),
    ("release.json", None),
    ("verdicts/*.json", StoredVerdict),
    ("quarantine/*.json", Validation),
    ("windows/*.json", Window),
    ("rollouts/*.json", Evidence),
    ("holdouts/*.json", None),
    ("snapshots/*.json", Snapshot),
    ("snapshots/sources/*.json", None),
    ("snapshots/lines/*.json", Cursor),
    ("snapshots/mended/*.json", None),
    ("snapshots/mended/made/*.json", None),
    ("alerts/*.json", None),
    ("alerts/outbox/*.json", None),
)
FOLDERS = ("bundles", "verdicts", "quarantine", "windows", "rollouts", "holdouts", "snapshots", "alerts", "log")
REGISTERED = """
    select v.version, r.run_uuid, r.lifecycle_stage, v.storage_location
    from registered_model_aliases a
    join model_versions v on v.name = a.name and v.version = a.version
    left join runs r on r.run_uuid = v.run_id
    where a.name = ? group by v.version
"""
NEEDED = ("prefect", "mlflow", "bentoml", "pandera", "scikit-learn", "skl2onnx", "onnxruntime", "pandas", "pyarrow")
FREE_BYTES = 1_000_000_000
READ_BY_TOOLS = ("pyproject.toml", "uv.lock", "prefect.yaml")


def find_damage(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each damaged file and each merge conflict, the most important first."""
    for subject in SUBJECTS:
        for check in subject(settings):
            try:
                check()
            except UserError as error:
                yield str(error)
            except OSError as error:
                yield str(explain_os_error(error) or error)


def _check_conflicts(settings: Settings) -> Iterator[Callable[[], object]]:
    """Check the files that uv and Prefect read for merge conflicts: with one, neither starts."""
    for name in READ_BY_TOOLS:
        yield partial(require_resolved, settings.root / name)


def _check_folders(settings: Settings) -> Iterator[Callable[[], object]]:
    store = open_store(settings).folder
    homes = [settings.home, *(settings.home / name for name in ("prefect", "mlflow", "logs", "run", "bentoml"))]
    for folder in (*homes, store, *(store / name for name in FOLDERS)):
        yield partial(_require_folder, folder)


def _require_folder(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        what = "a broken link" if folder.is_symlink() and not folder.exists() else "a file"
        raise UserError(f"{folder} is {what} where a folder belongs: move it away.")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written: make it and its file system writable for this user.")


def _check_databases(settings: Settings) -> Iterator[Callable[[], object]]:
    for path, remedy in ((mlflow_database(settings), MLFLOW_REMEDY), (prefect_database(), PREFECT_REMEDY)):
        yield partial(check_database, path, remedy, thorough=True)


def _check_champion(settings: Settings) -> Iterator[Callable[[], object]]:
    store = open_store(settings)

    def check() -> None:
        champion = read_champion(store)
        if champion is not None:
            open_bundle(store, champion.bundle)

    yield check
    yield partial(read_local_keys, store)
    yield partial(read_rollout, store)
    yield partial(read_latest, store)


def _check_registry(settings: Settings) -> Iterator[Callable[[], object]]:
    """Check the embedded MLflow: its schema version, and deleted experiments and versions with an alias."""
    database = mlflow_database(settings)
    if is_embedded(settings) and database.is_file():
        yield partial(check_schema, settings)
        yield partial(_require_registered, settings.project.name, database)


def _require_registered(name: str, database: Path) -> None:
    """Check that the project's experiment is active, and that versions with an alias have their run and their model.

    Raises:
        UserError: one of them was deleted.
    """
    try:
        with closing(sqlite3.connect(database, timeout=SQLITE_WAIT_SECONDS)) as connection:
            stages = connection.execute("select lifecycle_stage from experiments where name = ?", (name,)).fetchall()
            versions = connection.execute(REGISTERED, (name,)).fetchall()
    except sqlite3.Error:  # no table yet, or an error that the database check reports
        return
    if ("deleted",) in stages:
        raise UserError(f'The experiment "{name}" was deleted in MLflow: the next training restores it.')
    for number, run, stage, place in versions:
        if stage == "deleted":
            raise UserError(f"The run of version {number} was deleted in MLflow: the next evaluation restores it.")
        path = local_path(place) if place and place.startswith("file:") else None
        if run is None or (path and not (path / MODEL_FILE).is_file()):
            lost = "its run was deleted" if run is None else f"{path} has no {MODEL_FILE}"
            raise UserError(
                f"Version {number} is incomplete in MLflow ({lost}): restore it from a backup, or run `ml train`, "
                "which trains the version again."
            )


def _check_records(settings: Settings) -> Iterator[Callable[[], object]]:
    store = open_store(settings).folder
    found = [(path, kind) for pattern, kind in RECORDS for path in _matching(store, pattern)]
    found += [(path, Process) for path in sorted(run_folder(settings).glob("*.json"))]
    found += [(path, None) for path in sorted(run_folder(settings).glob("*.restarts"))]
    found += [(settings.home / "drops.json", None)]
    for path, kind in found:
        yield partial(read_json_record, path, kind) if kind else partial(read_json, path)


def _matching(store: Path, pattern: str) -> list[Path]:
    return sorted(store.glob(pattern)) if "*" in pattern else [store / pattern]  # `glob` passes over dangling links


def _check_rows(settings: Settings) -> Iterator[Callable[[], object]]:
    """Check the Parquet files: all must be complete, and every byte of the rows in use is verified.

    Files of a remote store that are not here are not downloaded for this check.
    """
    store = open_store(settings)
    snapshots, validations = Snapshots(store), Validations(store)
    for path in (*sorted(snapshots.folder.glob("*.parquet")), *sorted(validations.folder.glob("*.parquet"))):
        yield partial(_require_parquet, path)
    if store.remote:
        return

    def check() -> None:
        name = read_latest(store).get("validate")
        record = validations.find(name) if name else None
        if record is not None:
            validations.rows_path(record.id)
            for part in snapshots.get(record.snapshot).parts:
                snapshots.parts.verify(part)

    yield check


def _require_parquet(path: Path) -> None:
    try:
        pq.read_metadata(path)
    except FileNotFoundError:
        raise explain_damage(path, "it is a broken link") from None
    except (ValueError, RuntimeError):  # pyarrow.ArrowInvalid is a ValueError
        raise explain_damage(path, "it is not a complete Parquet file") from None


SUBJECTS = (
    _check_conflicts,
    _check_folders,
    _check_databases,
    _check_champion,
    _check_registry,
    _check_records,
    _check_rows,
)


class Advice(str):
    """The warning of a check: nothing fails, but the user should change something."""


def examine() -> None:
    """Print one line for each check.

    Raises:
        UserError: a check failed.
    """
    settings = start_command(stored=False, note=False)
    failed, printed = 0, set[str]()
    for name, check in _checks():
        try:
            result = check(settings)
            mark = "[yellow]![/]" if isinstance(result, Advice) else "[green]✓[/]"
            console.print(f"{mark} {name:<10} {escape(result)}", soft_wrap=True)
        except (UserError, OSError) as error:
            failed += 1
            reason = str((explain_os_error(error) if isinstance(error, OSError) else None) or error)
            printed.add(reason)
            console.print(f"[red]✗[/] {name:<10} {escape(reason)}", soft_wrap=True)
        except OWN_ERRORS as error:  # the other checks still run
            failed += 1
            console.print(f"[red]✗[/] {name:<10} {escape(describe_error(error))}", soft_wrap=True)
    damage = [sentence for sentence in find_damage(settings) if sentence not in printed]
    for sentence in damage:
        console.print(f"[red]✗[/] {'files':<10} {escape(sentence)}", soft_wrap=True)
    if not damage:
        console.print(f"[green]✓[/] {'files':<10} store, databases and records are intact")
    failed += len(damage)
    if failed:
        raise UserError(f"{failed} of the checks above failed: fix what they report.")


def _checks() -> Iterator[tuple[str, Callable[[Settings], str]]]:
    yield "python", _python
    yield "packages", _packages
    yield "settings", lambda s: f"config.toml of {s.project.name}: {s.data.problem} on {s.data.source}"
    yield "gates", _gates
    yield "contract", _contract
    yield "source", _source
    yield "disk", _disk
    yield "secrets", _secrets
    yield "git", _git
    yield "leftovers", _leftovers
    yield "prefect", lambda s: _server(s, "prefect", "PREFECT_API_URL")
    yield "mlflow", lambda s: _server(s, "mlflow", "MLFLOW_TRACKING_URI")
    yield "champion", _champion
    yield "endpoints", _endpoints
    yield "service", _port
    yield "worker", lambda s: _own(s, "worker", "none runs here; `ml up` starts one")


def _python(_: Settings) -> str:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise UserError(f"Python {sys.version.split()[0]} runs: use 3.11, 3.12 or 3.13.")
    return sys.version.split()[0]


def _packages(_: Settings) -> str:
    try:
        return ", ".join(f"{name} {version(name)}" for name in NEEDED)
    except PackageNotFoundError as error:
        raise UserError(f"{error.name} is not installed: run `uv sync`.") from None


def _gates(settings: Settings) -> str:
    problem, metric = settings.data.problem, settings.gates.metric
    require_decision(problem, metric, settings.decision if settings.decision.is_set else None)
    return f"the metric that decides is {choose_metric(problem, metric)}"


def _contract(settings: Settings) -> str:
    contract = load_contract(settings)
    return f"{len(contract.features)} features predict {contract.target}"


def _source(settings: Settings) -> str:
    from ondol.contract import require_columns
    from ondol.ingestion.ingest import open_project_source

    contract = load_contract(settings)
    source = open_project_source(settings, contract)
    require_columns(source.schema.names, contract.used)
    return f"{source.uri} has every column of the contract"


def _disk(settings: Settings) -> str:
    free = shutil.disk_usage(settings.root).free
    if free < FREE_BYTES:
        raise UserError(f"{free / 1e9:.1f} GB are free under {settings.root}: make room for snapshots and models.")
    return f"{free / 1e9:.0f} GB free"


def _secrets(settings: Settings) -> str:
    path = settings.root / ".env"
    if not path.is_file():
        return "there is no .env"
    if path.stat().st_uid != os.geteuid():
        return "another user owns .env, as where it is mounted into a container"
    if path.stat().st_mode & 0o077:
        return Advice(f"other users of this machine can read {path}: run `chmod 600 .env`")
    return "only you can read .env"


def _git(settings: Settings) -> str:
    from ondol.training.provenance import is_ignored, read_provenance

    if is_ignored(settings.root, "vendor/ondol/pyproject.toml"):
        raise UserError(
            "git ignores vendor/, the engine of this project: a clone would lack it, and `copier update` would delete "
            "it; remove the pattern from .gitignore (`git check-ignore -v vendor/ondol/pyproject.toml` shows it), and "
            "commit vendor/."
        )
    commit = read_provenance(settings.root, settings.data.source).commit
    if commit == "uncommitted":
        return Advice("there are uncommitted changes: commit before you train a model that others should reproduce")
    return commit[:12]


def _leftovers(settings: Settings) -> str:
    found = find_leftovers(settings.root)
    if found.released or found.edited or found.unknown:
        return Advice(describe_leftovers(found))
    return "no file of an earlier release"


def _server(settings: Settings, name: str, variable: str) -> str:
    url = os.environ.get(variable, "")
    if is_ours(name, settings):
        return _own(settings, name, f"{settings.show(settings.home / name)}; `ml up` starts a server with its pages")
    if not url.startswith("http") or "@" in url:
        return f"{show_uri(url)} (not checked)"
    try:
        with urllib.request.urlopen(url.rstrip("/") + "/health", timeout=5):
            return f"{url} answers"
    except urllib.error.HTTPError as error:
        return f"{url} answers ({error.code})"
    except OSError as error:
        raise UserError(f"{variable} = {url} does not answer ({error}): start it or unset the variable.") from None


def _own(settings: Settings, name: str, otherwise: str) -> str:
    """Return the state of a process of `ml up`, or `otherwise` if it was not started.

    Raises:
        UserError: it has stopped, or is not healthy.
    """
    record = read_process_record(settings, name)
    if record is None:
        return otherwise
    log = settings.show(log_path(settings, name))
    if running(settings, name) is None:
        raise UserError(f"The {name} of `ml up` has stopped: `ml up` starts it again; see {log}.")
    if not is_well(record, settings, prefect_address(settings) or "", ANSWER_SECONDS):
        raise UserError(
            f"The {name} of `ml up` does not answer{f' at {record.address}' if record.port else ''}: see {log}."
        )
    return f"{record.address or 'runs'}, started by `ml up`; its log is {log}"


def _champion(settings: Settings) -> str:
    store = open_store(settings)
    store.refresh()
    champion = read_champion(store)
    if champion is None:
        return "none yet: `ml run` deploys one"
    open_bundle(store, champion.bundle)
    return f"version {champion.version}, its bundle is intact"


def _endpoints(_: Settings) -> str:
    import_service()
    return "service/service.py can be served"


def _port(settings: Settings) -> str:
    host, port = settings.service.host, settings.service.port
    with socket.socket() as probe:
        taken = probe.connect_ex((host, port)) == 0
    state = "in use, by `ml serve` or another program" if taken else "free"
    return _own(settings, "service", f"port {port} of {host} is {state}")
