"""Addresses of pages in MLflow's UI: the project's versions, its runs, one run."""

import os
import sqlite3
from contextlib import closing, suppress

from ondol.config import Settings
from ondol.orchestration.processes import running
from ondol.redaction import show_uri
from ondol.registry.registry import VIEW, Registry, mlflow_database


def embedded_ui(settings: Settings) -> str:
    """Return where `ml up` shows the project's own MLflow, or would."""
    record = running(settings, "mlflow")
    return str(record.address) if record else f"http://127.0.0.1:{settings.ports.mlflow}"


def models_path(settings: Settings) -> str:
    """Return the page of MLflow's UI with the project's versions."""
    return f"/#/models/{settings.project.name}"


def runs_path(experiment: str) -> str:
    """Return the page of MLflow's UI with an experiment's runs and their metrics."""
    return f"/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def run_address(registry: Registry, run_id: str) -> str:
    """Return where the MLflow UI shows a run; the embedded one is shown by `ml up`."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    own = show_uri(uri) if uri.startswith("http") else embedded_ui(registry.settings)
    host = (registry.settings.ports.mlflow_url or own).rstrip("/")
    return f"{host}/#/experiments/{registry.experiment_of(run_id)}/runs/{run_id}"


def find_experiment(settings: Settings) -> str | None:
    """Return the id of the project's experiment in the embedded database, None where there is none yet."""
    database = mlflow_database(settings)
    if not database.is_file():
        return None
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, timeout=1)) as connection:
        query = "select experiment_id from experiments where name = ? and lifecycle_stage = 'active'"
        row = connection.execute(query, (settings.project.name,)).fetchone()
        return str(row[0]) if row else None
    return None
