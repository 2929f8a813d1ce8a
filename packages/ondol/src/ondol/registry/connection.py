"""Where MLflow is: the server that `MLFLOW_TRACKING_URI` names, or SQLite under `.ml/mlflow`."""

import logging
import os
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ondol.config.settings import Settings
from ondol.errors import UserError
from ondol.orchestration.asgi import SETTING
from ondol.orchestration.health import leads_elsewhere
from ondol.orchestration.processes import running
from ondol.redaction import show_uri
from ondol.registry.relocation import relocate_artifacts
from ondol.storage.files import locked, publish, scratch
from ondol.storage.sqlite import check_database, explain_schema, sqlite_url
from ondol_serving.callers import NOT_ANSWERED

if TYPE_CHECKING:
    from mlflow import MlflowClient

REMOTE_SECONDS = 10.0
VIEW = "metrics"  # names the view of the runs in which their metrics are columns
# What a client's store takes for its root too; else the experiment "Default" gets `./mlruns`, unquoted in an SQL text.
ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"
MLFLOW_REMEDY = (
    "after `ml down`, bring it back from a backup, or move it away and run `ml run`, which registers a version in a "
    "new database; the model in service goes on"
)


def mlflow_folder(settings: Settings) -> Path:
    """Return where the embedded MLflow keeps its database and artifacts."""
    return settings.home / "mlflow"


def mlflow_database(settings: Settings) -> Path:
    """Return the embedded MLflow's database file."""
    return mlflow_folder(settings) / "mlflow.db"


def mlflow_artifacts(settings: Settings) -> Path:
    """Return the embedded MLflow's folder of artifacts."""
    return mlflow_folder(settings) / "artifacts"


def embedded_uri(settings: Settings) -> str:
    """Return the address of the project's own database."""
    return sqlite_url(mlflow_database(settings))


def prepare_embedded(settings: Settings) -> None:
    """Make the embedded MLflow's database where it is missing, and let it name the artifacts of this folder alone.

    Raises:
        UserError: the database is damaged, or cannot be written.
    """
    database = mlflow_database(settings)
    database.parent.mkdir(parents=True, exist_ok=True)
    check_database(database, MLFLOW_REMEDY)
    _make_database(database, mlflow_artifacts(settings).as_uri())
    try:
        relocate_artifacts(database, mlflow_artifacts(settings))
    except sqlite3.Error as error:
        check_database(database, MLFLOW_REMEDY, thorough=True)
        raise UserError(
            f"{database} cannot be written ({error}): see who uses it, and run the command again."
        ) from None


def _make_database(database: Path, artifacts: str) -> None:
    """Make MLflow's tables, so that a database is there whole or not at all: MLflow refuses one that was begun."""
    if _has_content(database):
        return
    with locked(database.with_name("making.lock"), wait=True), scratch(database) as made:
        if _has_content(database):  # by another process meanwhile
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        _quieten()
        SqlAlchemyStore(sqlite_url(made), artifacts).engine.dispose()
        publish(made, database)


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _quieten() -> None:
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def embedded_ui(settings: Settings) -> str:
    """Return where `ml up` shows the project's own MLflow, or would."""
    record = running(settings, "mlflow")
    return str(record.address) if record else f"http://127.0.0.1:{settings.ports.mlflow}"


def runs_path(experiment: str) -> str:
    """Return the page of MLflow's UI with an experiment's runs and their metrics."""
    return f"/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def models_path(settings: Settings) -> str:
    """Return the page of MLflow's UI with the project's versions."""
    return f"/#/models/{settings.project.name}"


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


def is_embedded(settings: Settings) -> bool:
    """Tell whether the project's own database is used rather than a server."""
    return (os.environ.get("MLFLOW_TRACKING_URI") or embedded_uri(settings)) == embedded_uri(settings)


def connect(settings: Settings) -> "MlflowClient":
    """Point MLflow at the server that the environment names, or at the project's own database.

    Raises:
        UserError: the server does not answer, or wants other credentials, or the database is of another MLflow version.
    """
    embedded = is_embedded(settings)
    if embedded:
        prepare_embedded(settings)
        os.environ["MLFLOW_TRACKING_URI"] = embedded_uri(settings)
        os.environ[ARTIFACT_ROOT] = mlflow_artifacts(settings).as_uri()
    else:
        _require_answer(os.environ["MLFLOW_TRACKING_URI"])
    _quieten()
    import mlflow

    _quieten()  # its import sets the level again
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    try:
        client = mlflow.MlflowClient()
    except mlflow.MlflowException as error:
        if said := explain_schema(str(error), os.environ["MLFLOW_TRACKING_URI"], "MLFLOW_TRACKING_URI"):
            raise UserError(said) from None
        raise
    if not embedded:
        _require_entry(client)
    return client


def check_schema(settings: Settings) -> None:
    """Check that the embedded MLflow's database is of the installed version of MLflow.

    Raises:
        UserError: it is of another one.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.utils import _all_tables_exist, _verify_schema
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DatabaseError

    engine = create_engine(embedded_uri(settings))
    try:
        if _all_tables_exist(engine):  # else MLflow upgrades it by itself
            _verify_schema(engine)
    except MlflowException as error:
        if said := explain_schema(str(error), embedded_uri(settings), "MLFLOW_TRACKING_URI"):
            raise UserError(said) from None
    except DatabaseError:
        return  # what the check of the file has said
    finally:
        engine.dispose()


def _require_answer(uri: str) -> None:
    """Check that a tracking server answers, before MLflow tries for minutes, and that no other one answers for it.

    Raises:
        UserError: one of these does not hold.
    """
    if not uri.startswith("http") or "@" in uri:  # urllib takes no name and password in an address
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=REMOTE_SECONDS) as answer:
            place = str(answer.url)
    except urllib.error.HTTPError:
        return  # an answer, whatever it says
    except OSError as error:
        raise UserError(
            f"No MLflow server answers at MLFLOW_TRACKING_URI = {show_uri(uri)} ({error}): start it or unset it."
        ) from None
    if leads_elsewhere(uri, place):
        raise UserError(
            f"The MLflow server at {show_uri(uri)} redirects to another place ({urlsplit(place).netloc}): set "
            "MLFLOW_TRACKING_URI to that address, if it is to be trusted."
        )


def _require_entry(client: "MlflowClient") -> None:
    """Check that the tracking server takes our credentials, which MLflow itself reads, and the name we ask it by.

    Raises:
        UserError: it does not.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.search_experiments(max_results=1)
    except MlflowException as error:
        if NOT_ANSWERED in str(error):
            name = show_uri(os.environ["MLFLOW_TRACKING_URI"])
            raise UserError(
                f"The MLflow server at {name} does not answer under this name: where it runs, add it to {SETTING}."
            ) from None
        if (status := error.get_http_status_code()) in (401, 403):
            raise UserError(
                f"The MLflow server at {show_uri(os.environ['MLFLOW_TRACKING_URI'])} refuses us ({status}): set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to what it takes."
            ) from None
        raise
