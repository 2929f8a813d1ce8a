"""Runs flows from the command line: the server beside them, progress, and a closing summary."""

import importlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.markup import escape

from ondol.cli.console import console, open_project
from ondol.cli.progress import Progress
from ondol.config import Settings
from ondol.errors import Refused
from ondol.orchestration.recovery import end_lost, noting, registered
from ondol.orchestration.server import prefect_server
from ondol.registry.champion import read_champion
from ondol.registry.registry import connect
from ondol.storage.locks import only_one
from ondol.storage.remote_files import refuse_plain
from ondol.training.provenance import installed_packages

WARM = {  # what a stage will import anyway, imported while the server starts
    "train": ("sklearn.ensemble", "mlflow.sklearn", "skops.io"),
    "evaluate": ("sklearn.ensemble", "mlflow.sklearn", "skops.io", "matplotlib.figure"),
    "deploy": ("sklearn.ensemble", "mlflow.sklearn", "skops.io", "skl2onnx", "onnxruntime", "bentoml.models"),
}
WARM["monitor"] = ("evidently", "evidently.presets", "mlflow", "matplotlib.figure")
WARM["pipeline"] = (*WARM["evaluate"], *WARM["deploy"], "pandera.pandas")


def run_stage(stage: str, **parameters: Any) -> Any:
    """Run one flow and print what it returned.

    Raises:
        UserError: whatever the flow says went wrong.
    """
    settings = open_project()
    result = _run(settings, stage, parameters)
    console.print(f"[green]✓[/] {stage}: {escape(str(result))}")
    return result


def run_pipeline(breaking: bool) -> None:
    """Run the five stages and print the closing summary, also where a gate refuses.

    Raises:
        UserError: a stage failed.
    """
    from ondol.cli.summary import print_summary

    settings = open_project()
    before = read_champion(settings.store_path)
    try:
        _run(settings, "pipeline", {"breaking": breaking})
    except Refused:
        print_summary(settings, before, refused=True)
        raise
    print_summary(settings, before)


def run_predict(source: str, destination: Path, version: str | None) -> None:
    """Predict the rows of a source and print how many.

    Raises:
        UserError: the source holds a secret in plain text, which Prefect would keep, or cannot be read.
    """
    refuse_plain(source)
    settings = open_project()
    done = _run(settings, "predict", {"source": source, "destination": str(destination), "version": version})
    console.print(
        f"[green]✓[/] {done['rows']:,} rows predicted by version {done['version']}: {escape(str(destination))}"
    )
    if done["refused"]:
        console.print(f"  {done['refused']:,} rows break the contract: see their column `error`.")


def _run(settings: Settings, stage: str, parameters: dict[str, Any]) -> Any:
    # Scoring changes nothing that others read, and the monitor has a lock of its own.
    alone = nullcontext() if stage in ("predict", "monitor") else only_one(settings, wait=False)
    with alone, registered(settings) as command, prefect_server(settings) as server, Progress(console) as progress:
        from ondol.orchestration.stage import run_watched

        flow = getattr(importlib.import_module(f"flows.{stage}"), stage)
        for module in WARM.get(stage, ()):
            importlib.import_module(module)
        if stage in WARM:
            connect(settings)  # makes MLflow's tables the first time, while Prefect's server makes its own
            installed_packages()
        server.wait()
        if server.ours:
            end_lost(settings, server.url, embedded=server.child is not None)
            flow.on_running(noting(command))
        progress.follow(flow)
        return run_watched(flow, parameters)
