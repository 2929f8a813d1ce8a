"""Runs flows from the command line: the server beside them, progress, and a closing summary."""

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ondol.cli.console import FlowProgress, absolute_source, console, start_command
from ondol.config import Settings
from ondol.errors import Refused, UserError
from ondol.evaluation.gates import StoredVerdict, show_figure, show_interval
from ondol.evaluation.metrics import Interval
from ondol.orchestration.recovery import end_lost, note_step, noting, register_command
from ondol.orchestration.server import prefect_server
from ondol.project import Project, describe_error, import_code, place_in_project
from ondol.registry.bundles import find_bundle
from ondol.registry.champion import Champion
from ondol.registry.registry import connect_mlflow
from ondol.registry.rollout import describe_rollout, running_rollout
from ondol.storage.remote_files import refuse_plain
from ondol.storage.store import only_one, open_store
from ondol.training.provenance import installed_packages
from ondol.validation.results import FILE as LATEST_FILE
from ondol.validation.results import Validation

WARM = {  # modules that a stage needs if something changed: imported while the server starts
    "train": ("sklearn.ensemble", "mlflow.sklearn", "skops.io"),
    "evaluate": ("sklearn.ensemble", "mlflow.sklearn", "skops.io", "matplotlib.figure"),
    "deploy": ("sklearn.ensemble", "mlflow.sklearn", "skops.io", "skl2onnx", "onnxruntime", "bentoml.models"),
}
WARM["monitor"] = ("evidently", "evidently.presets", "mlflow", "matplotlib.figure")
WARM["pipeline"] = tuple(dict.fromkeys(("pandera.pandas", *WARM["evaluate"], *WARM["deploy"])))
CURL_ROWS = 1


def run_stage(stage: str, **parameters: Any) -> Any:
    """Run one flow and print what it returned.

    Raises:
        UserError: the flow failed.
    """
    settings = start_command()
    result = _run(settings, stage, parameters)
    console.print(f"[green]✓[/] {stage}: {escape(str(result))}")
    return result


def run_pipeline(breaking: bool) -> None:
    """Run the five stages and print the closing summary, also where a gate refuses.

    Raises:
        UserError: a stage failed.
    """
    project = Project(start_command())
    before = project.champion
    try:
        _run(project.settings, "pipeline", {"breaking": breaking})
    except Refused:
        print_summary(project, before, refused=True)
        raise
    print_summary(project, before)


def run_predict(source: str, destination: Path, version: str | None, explain: bool = False) -> None:
    """Predict the rows of a source, with explanations if wanted, and print how many.

    Raises:
        UserError: the source holds a secret in plain text, which Prefect would store, or cannot be read; or no row
            could be predicted.
    """
    refuse_plain(source)
    settings = start_command()
    given = {"source": absolute_source(source), "destination": str(destination), "version": version}
    done = _run(settings, "predict", given | ({"explain": True} if explain else {}))
    rows, refused = done["rows"], done["refused"]
    count = f"{rows - refused:,} of {rows:,}" if refused else f"{rows:,}"
    said = f"[green]✓[/] {count} rows predicted by version {done['version']}: {escape(str(destination))}"
    console.print(said, soft_wrap=True)
    if refused:
        console.print(f"  {refused:,} rows break the contract: see their column `error`.")


def _run(settings: Settings, stage: str, parameters: dict[str, Any]) -> Any:
    # Batch prediction writes nothing that other runs read, and the monitor has its own lock.
    alone = nullcontext() if stage in ("predict", "monitor") else only_one(settings, wait=False)
    with (
        alone,
        register_command(settings, stage) as command,
        prefect_server(settings) as server,
        FlowProgress(console, partial(note_step, settings, command)) as progress,
    ):
        from ondol.orchestration.flow import run_watched

        flow = load_flow(stage)
        idle = stage == "pipeline" and not _may_train(settings)  # a stage that is run alone usually has work to do
        for module in () if idle else WARM.get(stage, ()):
            if not server.is_starting():  # the rest is imported where it is needed
                break
            importlib.import_module(module)
        if stage in WARM:
            # The first time it creates MLflow's tables, while Prefect's server creates its own.
            connect_mlflow(settings)
            installed_packages()
        server.wait()
        if server.ours:
            end_lost(settings, server.url, embedded=server.child is not None)
            flow.on_running(noting(command))
        progress.follow(flow)
        with ended_by_exit(stage):
            return run_watched(flow, parameters)


def _may_train(settings: Settings) -> bool:
    """Return False if no file that the model depends on is newer than the last run.

    It is only a guess: if a run still trains, it imports the modules then, a second later. Needless imports slow
    down the start of Prefect's server, and with it every run in which nothing changed.
    """
    root, last = settings.root, _changed_at(open_store(settings).folder / LATEST_FILE)
    decisive = [*root.glob("model/**/*.py"), root / "flows" / "train.py", root / "config.toml"]
    return not last or any(_changed_at(path) > last for path in (*decisive, root / settings.data.source))


def _changed_at(path: Path) -> float:
    """Return the time of a file's last change, in seconds since 1970; 0 if there is no file, as for an address."""
    try:
        return path.stat().st_mtime
    except (OSError, ValueError):
        return 0.0


@contextmanager
def ended_by_exit(stage: str) -> Iterator[None]:
    """Report `sys.exit` in the project's own code, which Prefect does not treat as an error.

    Raises:
        UserError: it was called.
    """
    try:
        yield
    except SystemExit as stop:
        raise UserError(f"The flow {stage} failed: {describe_error(stop)}{place_in_project(stop)}.") from stop


def load_flow(stage: str) -> Any:
    """Return the flow of `flows/<stage>.py`.

    Raises:
        UserError: the file cannot be imported, or has no flow of this name.
    """
    flow = getattr(import_code(f"flows.{stage}"), stage, None)
    if not hasattr(flow, "on_running"):
        raise UserError(f"flows/{stage}.py has no flow {stage}: a function of this name, decorated by @stage(…).")
    return flow


def print_summary(project: Project, before: Champion | None, refused: bool = False) -> None:
    """Print rows, metrics and gates and, unless the candidate was refused, an example prediction."""
    champion = project.champion
    validation = project.validations.find(project.latest.find("validate") or "")
    record = project.verdicts.find(project.latest.find("train") or "")
    if validation:
        _print_rows(project, validation)
    if record:
        _print_metrics(record)
        _print_gates(record)
    if champion is None or refused:
        return
    if rollout := running_rollout(project.store):
        console.print(f"\n[bold]{escape(describe_rollout(rollout))}[/] `ml rollout status` shows how they compare.")
    elif before is not None and before.bundle == champion.bundle and record and record.version == champion.version:
        console.print(
            f"\nNothing changed: version {champion.version} was trained from this data, code and settings, and is "
            "in production."
        )
    elif before is None or before.bundle != champion.bundle:
        console.print(
            f"\n[bold green]Version {champion.version} is in production[/]"
            + (f" in place of version {before.version}." if before else ".")
        )
    _print_prediction(project, champion)


def _print_rows(project: Project, validation: Validation) -> None:
    summary = validation.describe().replace(" rows kept", " kept", 1)
    console.print(f"\n[bold]Rows[/]  {summary}")
    for reason, count in list(validation.reasons.items())[:5]:
        console.print(f"      {count:>7,}  {escape(reason)}")
    if validation.bad:
        console.print(f"      {escape(project.settings.show(project.validations.find_rows(validation.id)))}")


def _print_metrics(record: StoredVerdict) -> None:
    scores = {
        who: record.verdict.scores[who] for who in ("candidate", "champion", "dummy") if who in record.verdict.scores
    }
    title = f"version {record.version} on {record.verdict.rows:,} held-out rows"
    table = Table("metric", *scores, title=title, title_justify="left")
    for name in scores["candidate"]:
        table.add_row(name, *(_interval(scores[who].get(name)) for who in scores))
    console.print(table)
    for note in record.notes:
        console.print(f"  {escape(note)}")


def _print_gates(record: StoredVerdict) -> None:
    table = Table("gate", "figure", "limit", "", "explanation", title="gates", title_justify="left")
    for gate in record.verdict.gates:
        mark = "[green]passed[/]" if gate.passed else "[bold red]refused[/]"
        table.add_row(gate.name, _figure(gate.figure), _figure(gate.limit), mark, escape(gate.sentence))
    console.print(table)


def _interval(figure: Interval | None) -> str:
    return "–" if figure is None else show_interval(figure.value, figure.low, figure.high)


def _print_prediction(project: Project, champion: Champion) -> None:
    settings, bundle = project.settings, find_bundle(project.store, champion.bundle)
    if bundle is None:
        return
    meta = bundle.meta
    body: dict[str, Any] = {"rows": meta["example"]["rows"][:CURL_ROWS]}
    text = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    answer = json.dumps(meta["expected"][:CURL_ROWS], ensure_ascii=False)
    address = f"http://{settings.service.host}:{settings.service.port}/predict"
    console.print("\n[bold]For a made-up row[/] the service answers:", escape(answer), soft_wrap=True)
    console.print("Ask it yourself: `uv run ml serve`, and in another terminal")
    console.print(f"curl -s {address} -H 'Content-Type: application/json' -d '{text}'", soft_wrap=True, markup=False)
    sampled = settings.data.source.startswith("sample:")
    other = ", or `uv run ml init YOUR.csv --target COLUMN` for your own data" if sampled else ""
    console.print(f"\nNext: `uv run ml status`{other}.")


def _figure(value: float | None) -> str:
    return "–" if value is None else show_figure(value)
