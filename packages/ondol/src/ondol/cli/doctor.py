"""`ml doctor`: what is wrong with the machine, the settings or the connections, and how to correct it."""

import os
import shutil
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

from rich.markup import escape

from ondol.cli.checkup import find_damage
from ondol.cli.console import console, open_project
from ondol.cli.running import PATIENCE_SECONDS
from ondol.cli.tidy import describe_leftovers
from ondol.config import Settings
from ondol.contract import load_contract
from ondol.errors import UserError
from ondol.evaluation.metrics import choose_metric
from ondol.orchestration.processes import log_path, read_record, running
from ondol.redaction import show_uri
from ondol.registry.bundles import open_bundle
from ondol.registry.champion import read_champion
from ondol.services import is_ours, is_well, prefect_address
from ondol.setup.leftovers import find_leftovers
from ondol.storage.files import explain_os_error
from ondol.storage.reach import refresh

NEEDED = ("prefect", "mlflow", "bentoml", "pandera", "scikit-learn", "skl2onnx", "onnxruntime", "pandas", "pyarrow")
FREE_BYTES = 1_000_000_000


class Advice(str):
    """What a check found that stops nothing and should be changed."""


def examine() -> None:
    """Print one line for each check.

    Raises:
        UserError: a check failed.
    """
    settings = open_project(stored=False, note=False)
    failed, printed = 0, set[str]()
    for name, check in _checks():
        try:
            said = check(settings)
            mark = "[yellow]![/]" if isinstance(said, Advice) else "[green]✓[/]"
            console.print(f"{mark} {name:<10} {escape(said)}", soft_wrap=True)
        except (UserError, OSError) as error:
            failed += 1
            reason = str((explain_os_error(error) if isinstance(error, OSError) else None) or error)
            printed.add(reason)
            console.print(f"[red]✗[/] {name:<10} {escape(reason)}", soft_wrap=True)
    damage = [sentence for sentence in find_damage(settings) if sentence not in printed]
    for sentence in damage:
        console.print(f"[red]✗[/] {'files':<10} {escape(sentence)}", soft_wrap=True)
    if not damage:
        console.print(f"[green]✓[/] {'files':<10} store, databases and records are whole")
    failed += len(damage)
    if failed:
        raise UserError(f"{failed} of the checks above failed: mend what they say.")


def _checks() -> Iterator[tuple[str, Callable[[Settings], str]]]:
    yield "python", _python
    yield "packages", _packages
    yield "settings", lambda s: f"config.toml of {s.project.name}: {s.data.problem} on {s.data.source}"
    yield "gates", lambda s: f"the metric that decides is {choose_metric(s.data.problem, s.gates.metric)}"
    yield "contract", _contract
    yield "source", _source
    yield "disk", _disk
    yield "secrets", _secrets
    yield "git", _git
    yield "leftovers", _leftovers
    yield "prefect", lambda s: _server(s, "prefect", "PREFECT_API_URL")
    yield "mlflow", lambda s: _server(s, "mlflow", "MLFLOW_TRACKING_URI")
    yield "champion", _champion
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
    if path.stat().st_mode & 0o077:
        return Advice(f"others on this machine may read {path}: `chmod 600 .env` keeps its secrets to you")
    return ".env is yours alone"


def _git(settings: Settings) -> str:
    from ondol.training.provenance import read_provenance

    commit = read_provenance(settings.root, settings.data.source).commit
    return (
        "no clean commit: a model trained now cannot be reproduced exactly" if commit == "uncommitted" else commit[:12]
    )


def _leftovers(settings: Settings) -> str:
    found = find_leftovers(settings.root)
    if found.released or found.edited:
        return Advice(describe_leftovers(found))
    return "no file of an earlier release"


def _server(settings: Settings, name: str, variable: str) -> str:
    url = os.environ.get(variable, "")
    if is_ours(name, settings):
        return _own(
            settings, name, f"{settings.show(settings.home / name)}; `ml up` starts a server with pages to look at"
        )
    if not url.startswith("http") or "@" in url:
        return f"{show_uri(url)} (not tried)"
    try:
        with urllib.request.urlopen(url.rstrip("/") + "/health", timeout=5):
            return f"{url} answers"
    except urllib.error.HTTPError as error:
        return f"{url} answers ({error.code})"
    except OSError as error:
        raise UserError(f"{variable} = {url} does not answer ({error}): start it or unset the variable.") from None


def _own(settings: Settings, name: str, otherwise: str) -> str:
    """Return how a process of `ml up` is, or `otherwise` where it was not started.

    Raises:
        UserError: it has ended, or does not do what it is there for.
    """
    record = read_record(settings, name)
    if record is None:
        return otherwise
    log = settings.show(log_path(settings, name))
    if running(settings, name) is None:
        raise UserError(f"The {name} of `ml up` has ended: `ml up` starts it again; {log} may say why.")
    if not is_well(record, settings, prefect_address(settings) or "", PATIENCE_SECONDS):
        raise UserError(
            f"The {name} of `ml up` does not answer{f' at {record.address}' if record.port else ''}: see {log}."
        )
    return f"{record.address or 'runs'}, started by `ml up`; its log is {log}"


def _champion(settings: Settings) -> str:
    refresh(settings.store_path)
    champion = read_champion(settings.store_path)
    if champion is None:
        return "none yet: `ml run` deploys one"
    open_bundle(settings.store_path, champion.bundle)
    return f"version {champion.version}, its bundle is whole"


def _port(settings: Settings) -> str:
    host, port = settings.service.host, settings.service.port
    with socket.socket() as probe:
        taken = probe.connect_ex((host, port)) == 0
    return _own(settings, "service", f"port {port} of {host} is {'in use by something else' if taken else 'free'}")
