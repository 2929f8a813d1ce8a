"""MLflow: connection, runs, registered versions and aliases.

MLflow stores artifact locations as absolute URIs, which become wrong when the project is moved or copied. A copied
project also has a copy of the database: unless its URIs are rewritten, its runs write into the original.
"""

import json
import logging
import os
import re
import shlex
import shutil
import sqlite3
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from urllib.parse import urlsplit

from ondol.config import FILE_NAME, HOSTS_SETTING, Settings
from ondol.errors import UserError
from ondol.orchestration.reporting import say
from ondol.project import Project
from ondol.redaction import leads_elsewhere, show_uri
from ondol.registry.champion import Champion
from ondol.storage.files import check_database, locked, publish, scratch, sqlite_url
from ondol_serving.callers import NOT_ANSWERED

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

# Folders of artifacts in a project: that of `connection`, and MLflow's default.
PLACES = ("/.ml/mlflow/artifacts", "/mlruns")
LOCAL = re.compile(
    rf"(?P<root>(?:file:|/).*)(?P<place>{'|'.join(map(re.escape, PLACES))})(?P<rest>(?:/.*)?)", re.DOTALL
)
PATH_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
WAIT_SECONDS = 30.0


def relocate_artifacts(database: Path, artifacts: Path) -> int:
    """Rewrite the artifact URIs of `database` that name another project's folder, in one transaction.

    Artifacts that an earlier version of this template left in that folder are copied to `artifacts`. URIs of other
    places, such as a bucket, are kept.

    Args:
        database: MLflow's SQLite database; nothing is done if it does not exist.
        artifacts: The project's folder of artifacts.

    Returns:
        The number of rewritten URIs.

    Raises:
        sqlite3.Error: the database cannot be read or written.
    """
    if not database.is_file():
        return 0
    here = artifacts.as_uri()
    with closing(sqlite3.connect(database, timeout=WAIT_SECONDS, isolation_level=None)) as connection:
        if not _foreign(connection, here):  # without changes, no lock is needed
            return 0
        connection.execute("begin immediate")
        found = _foreign(connection, here)
        for table, column, row, old in found:
            _, rest = _split(old)
            connection.execute(f'update "{table}" set "{column}" = ? where rowid = ?', (here + rest, row))
        for table, _, _, old in found:
            if table in ("runs", "logged_models"):
                _bring(old, artifacts)
        connection.execute("commit")
    return len(found)


def _split(uri: str) -> tuple[str, str]:
    """Split a URI into the project, as written there, and the part after its folder of artifacts."""
    found = LOCAL.fullmatch(uri)
    assert found is not None
    return found["root"], found["rest"]


def _foreign(connection: sqlite3.Connection, here: str) -> list[tuple[str, str, int, str]]:
    """Return table, column, row id and value of each URI below the artifacts of another folder.

    Any folder may be named `mlruns`: it counts only in a project whose artifact folder the database also names.
    """
    columns = {
        (table, name)
        for table in {table for table, _ in PATH_COLUMNS}
        for (name,) in connection.execute("select name from pragma_table_info(?)", (table,))
    }
    found = []
    for table, column in PATH_COLUMNS:
        if (table, column) in columns:
            query = (
                f'select rowid, "{column}" from "{table}" where (instr("{column}", ?) or instr("{column}", ?)) '
                f'and "{column}" <> ? and substr("{column}", 1, ?) <> ?'
            )
            values = (*PLACES, here, len(here) + 1, f"{here}/")
            rows = connection.execute(query, values)
            found += [(table, column, row, value, at) for row, value in rows if (at := LOCAL.fullmatch(value))]
    projects = {local_path(at["root"]) for *_, at in found if at["place"] == PLACES[0]}
    projects.add(local_path(here.removesuffix(PLACES[0])))
    return [
        (table, column, row, value)
        for table, column, row, value, at in found
        if at["place"] == PLACES[0] or local_path(at["root"]) in projects
    ]


def _bring(old: str, artifacts: Path) -> None:
    """Copy the files at the URI `old` that are missing here; the source is unchanged.

    If the other folder is still a project, it may have changed its artifacts since: then only completely missing ones
    are copied. If it is no longer a project, its files were written there after this project was moved away.
    """
    root, rest = _split(old)
    source, project = local_path(old), local_path(root)
    target = artifacts / rest.lstrip("/")
    if not source.is_dir() or (target.is_dir() and (project / FILE_NAME).is_file()):
        return
    for file in [path for path in sorted(source.rglob("*")) if path.is_file()]:
        place = target / file.relative_to(source)
        if not place.exists():
            with scratch(place) as made, suppress(FileNotFoundError):
                shutil.copy2(file, made)
                made.replace(place)


def local_path(uri: str) -> Path:
    """Return the path of a `file:` URI, or the path itself."""
    return Path(urllib.request.url2pathname(urllib.parse.urlparse(uri).path) if uri.startswith("file:") else uri)


REMOTE_SECONDS = 10.0
# The client's store also uses it as its root; else the experiment "Default" gets `./mlruns`, unquoted in SQL.
ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"
MLFLOW_REMEDY = (
    "after `ml down`, restore it from a backup, or move it away and run `ml run`, which registers a version in a "
    "new database; the model in production is not affected"
)


def mlflow_folder(settings: Settings) -> Path:
    """Return the folder of the embedded MLflow's database and artifacts."""
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
    """Create the embedded MLflow's database if it is missing, and make its artifact URIs point to this folder.

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
            f"{database} cannot be written ({error}): check which process uses it, and run the command again."
        ) from None


def _make_database(database: Path, artifacts: str) -> None:
    """Create MLflow's tables, in one step, because MLflow refuses an incomplete database."""
    if _has_content(database):
        return
    with locked(database.with_name("making.lock"), wait=True), scratch(database) as made:
        if _has_content(database):  # created by another process in the meantime
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


def is_embedded(settings: Settings) -> bool:
    """Return True if the project's own database is used rather than a server."""
    return (os.environ.get("MLFLOW_TRACKING_URI") or embedded_uri(settings)) == embedded_uri(settings)


def models_path(settings: Settings) -> str:
    """Return the page of MLflow's UI with the project's versions."""
    return f"/#/models/{settings.project.name}"


def runs_path(experiment: str) -> str:
    """Return the page of MLflow's UI with an experiment's runs and their metrics."""
    return f"/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def find_experiment(settings: Settings) -> str | None:
    """Return the id of the project's experiment in the embedded database; None if there is none yet."""
    database = mlflow_database(settings)
    if not database.is_file():
        return None
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, timeout=1)) as connection:
        query = "select experiment_id from experiments where name = ? and lifecycle_stage = 'active'"
        row = connection.execute(query, (settings.project.name,)).fetchone()
        return str(row[0]) if row else None
    return None


def connect_mlflow(settings: Settings) -> "MlflowClient":
    """Connect MLflow to the server in the environment, or to the project's own database.

    Raises:
        UserError: the server does not answer or refuses the credentials, or the database is of another MLflow version.
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

    _quieten()  # the import resets the level
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    try:
        client = mlflow.MlflowClient()
    except mlflow.MlflowException as error:
        if message := explain_schema(str(error), os.environ["MLFLOW_TRACKING_URI"], "MLFLOW_TRACKING_URI"):
            raise UserError(message) from None
        raise
    if not embedded:
        _require_entry(client)
    return client


def check_schema(settings: Settings) -> None:
    """Check that the embedded MLflow's database is of the installed version of MLflow.

    Raises:
        UserError: it is of another version.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.utils import _all_tables_exist, _verify_schema
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DatabaseError

    engine = create_engine(embedded_uri(settings))
    try:
        if _all_tables_exist(engine):  # otherwise MLflow upgrades it itself
            _verify_schema(engine)
    except MlflowException as error:
        if message := explain_schema(str(error), embedded_uri(settings), "MLFLOW_TRACKING_URI"):
            raise UserError(message) from None
    except DatabaseError:
        return  # the check of the file has already reported it
    finally:
        engine.dispose()


def _require_answer(uri: str) -> None:
    """Check that a tracking server answers, before MLflow retries for minutes, and that it does not redirect.

    Raises:
        UserError: one of the checks failed.
    """
    if not uri.startswith("http") or "@" in uri:  # urllib does not accept credentials in an address
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=REMOTE_SECONDS) as answer:
            place = str(answer.url)
    except urllib.error.HTTPError:
        return  # any response is enough
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
    """Check that the tracking server accepts the credentials, which MLflow reads itself, and the host name.

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
                f"The MLflow server at {name} does not answer under this name: where it runs, add it to "
                f"{HOSTS_SETTING}."
            ) from None
        if (status := error.get_http_status_code()) in (401, 403):
            raise UserError(
                f"The MLflow server at {show_uri(os.environ['MLFLOW_TRACKING_URI'])} refuses the credentials "
                f"({status}): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
            ) from None
        raise


MODEL_FILE = "model.skops"
TRUSTED = (  # classes that skops does not list, of scikit-learn, numpy, the engine and libraries of boosting
    "catboost.core.CatBoostClassifier",
    "catboost.core.CatBoostRegressor",
    "collections.OrderedDict",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRegressor",
    "numpy.dtype",
    "ondol.training.formulas.Formulas",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.compose._column_transformer.make_column_selector",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.model_selection._split.KFold",
    "sklearn.tree._tree.Tree",
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRegressor",
)


def trusted_types(settings: Settings) -> tuple[str, ...]:
    """Return the types that skops may load: those of the engine, and those that the owner trusts."""
    return (*TRUSTED, *settings.train.trusted_types)


def load_pipeline(path: Path, trusted: tuple[str, ...]) -> Any:
    """Return the scikit-learn pipeline in a file.

    Raises:
        UserError: it contains a type outside the trust list.
    """
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    # Not MLflow's own loader, which takes the format and the trust list from the model's files.
    try:
        return skops.io.load(path, trusted=list(trusted))
    except (TypeError, UntrustedTypesFoundException) as error:
        raise UserError(explain_untrusted(error)) from error


def explain_untrusted(error: Exception) -> str:
    """Return an error on a type that skops refuses, with the remedy."""
    text = " ".join(str(error).split())
    return (
        "The model contains a type that skops does not trust, so it was not registered: add its full name to [train] "
        f"trusted_types in config.toml if it is your own or well known. skops says: {text[:400]}"
    )


SHOWN = 20  # newest versions that a message lists
PAGE = 1000  # versions requested from MLflow at once, and metrics sent at once
KEY_TAG = "train_key"  # recorded with every version in existing registries
CHOICE_TAG = "choice"  # of a run: why its candidate was chosen
DECISION_TAG = "decision"  # of a run: how labels are decided, and what that reaches out of fold
VIEW = "metrics"  # names the view of runs with their metrics as columns
SHOWN_METRICS = 4  # metrics shown in MLflow's table of runs
DELETED = "deleted"
# MLflow's message, also for a database of a later version.
OTHER_SCHEMA = re.compile(r"out-of-date database schema \(found version (?!None)(\w+)")
PLOTS = "plots"  # the folder of a run's pictures
RECORD = ("contract.json", "baseline.json")  # files of a run that are needed to evaluate its version
CHALLENGER, CHAMPION = "challenger", "champion"


class Deleted(UserError):
    """A needed part of a version was permanently deleted in MLflow."""


class Registry:
    """The experiment and the registered model of one project."""

    def __init__(self, settings: Settings) -> None:
        """Connect; the first time, this creates the tables of the embedded database."""
        self.settings = settings
        self.name = settings.project.name
        self.trusted = trusted_types(settings)
        self.client = connect_mlflow(settings)
        self.artifacts = mlflow_artifacts(settings).as_uri() if is_embedded(settings) else None

    def experiment_id(self) -> str:
        """Return the id of the project's experiment; create it if it is missing, and restore it if it was deleted."""
        found = self.client.get_experiment_by_name(self.name)
        if found is None:
            return self.client.create_experiment(self.name, self.artifacts)
        if found.lifecycle_stage == DELETED:
            self.client.restore_experiment(found.experiment_id)
            say(f'The experiment "{self.name}" was deleted in MLflow: it is restored.', notice=True)
        return found.experiment_id

    def experiment_of(self, run_id: str) -> str:
        """Return the id of a run's experiment."""
        return str(self._get_run(run_id).info.experiment_id)

    def run_path(self, run_id: str) -> str:
        """Return the page of MLflow's UI with a run."""
        return f"/#/experiments/{self.experiment_of(run_id)}/runs/{run_id}"

    def restore_run(self, run_id: str) -> None:
        """Restore a run and its experiment if they were deleted in MLflow: a deleted run accepts no logging.

        Raises:
            UserError: it was permanently deleted.
        """
        run = self._get_run(run_id)
        experiment = self.client.get_experiment(run.info.experiment_id)
        if experiment.lifecycle_stage == DELETED:
            self.client.restore_experiment(experiment.experiment_id)
            say(f'The experiment "{experiment.name}" was deleted in MLflow: it is restored.', notice=True)
            run = self._get_run(run_id)
        if run.info.lifecycle_stage == DELETED:
            self.client.restore_run(run_id)
            say(f'The run "{run.info.run_name}" was deleted in MLflow: it is restored.', notice=True)

    def find_all(self, cache_key: str) -> "list[ModelVersion]":
        """Return the versions with exactly this `cache_key`, the newest first; some may be incomplete."""
        found = self.client.search_model_versions(f"name = '{self.name}' and tag.{KEY_TAG} = '{cache_key}'")
        return sorted(found, key=lambda version: int(version.version), reverse=True)

    def find(self, cache_key: str) -> "ModelVersion | None":
        """Return the newest complete version with exactly this `cache_key`, or None."""
        for version in self.find_all(cache_key):
            lost = self.find_lost(str(version.version))
            if not lost:
                return version
            say(f"Version {version.version} is incomplete in MLflow ({lost}): it is trained again.", notice=True)
        return None

    def find_lost(self, version: str) -> str:
        """Return in words which files and records of a version are missing in MLflow; empty if it is complete.

        Raises:
            UserError: there is no such version.
        """
        from mlflow.artifacts import list_artifacts
        from mlflow.exceptions import MlflowException

        try:
            run = self.run_of(version)
            there = {file.path for file in self.client.list_artifacts(run.info.run_id)}
            files = {Path(file.path).name for file in list_artifacts(artifact_uri=f"models:/{self.name}/{version}")}
        except (MlflowException, UserError, OSError) as error:
            if not _is_gone(error):
                raise
            return "its run or its model was permanently deleted"
        lost = [name for name in RECORD if name not in there] + ([] if MODEL_FILE in files else [MODEL_FILE])
        return f"no {', no '.join(lost)}" if lost else ""

    def get(self, version: str) -> "ModelVersion":
        """Return a registered version.

        Raises:
            UserError: there is none.
        """
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version(self.name, version)
        except MlflowException:
            found = self.client.search_model_versions(f"name = '{self.name}'")
            there = ", ".join(sorted((str(v.version) for v in found), key=int)[-SHOWN:]) or "none yet"
            raise UserError(
                f'MLflow has no version {version} of "{self.name}": there is {there}; `ml train` makes one.'
            ) from None

    def register(self, model_uri: str, model_id: str | None, run_id: str, tags: dict[str, str]) -> str:
        """Register a logged model as a new version and return its number."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException:  # it exists
            self.client.get_registered_model(self.name)
        made = self.client.create_model_version(self.name, model_uri, run_id, tags=tags, model_id=model_id)
        return str(made.version)

    def alias(self, name: str) -> str | None:
        """Return the version that carries the alias `name`, or None."""
        from mlflow.exceptions import MlflowException

        try:
            aliases = self.client.get_registered_model(self.name).aliases
        except MlflowException:  # nothing was registered yet
            return None
        return str(aliases[name]) if name in aliases else None

    def made(self, champion: Champion) -> bool:
        """Return True if the champion's version is from this registry."""
        try:
            return self.run_id(champion.version) == champion.run_id
        except UserError:
            return False

    def set_alias(self, name: str, version: str) -> None:
        """Move the alias `name` to `version`."""
        self.client.set_registered_model_alias(self.name, name, version)

    def load(self, version: str) -> Any:
        """Return the scikit-learn pipeline of a version, read by skops with the explicit trust list."""
        return load_pipeline(self.download(version), self.trusted)

    def download(self, version: str, folder: Path | None = None) -> Path:
        """Return the path of a version's saved pipeline; download it into `folder`, if given."""
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        self.get(version)
        target = str(folder) if folder else None
        try:
            path = Path(download_artifacts(f"models:/{self.name}/{version}", dst_path=target)) / MODEL_FILE
        except (MlflowException, OSError) as error:
            if lost := self.find_lost(version):
                raise _incomplete(version, lost) from error
            raise
        if not path.exists():
            raise UserError(f"Version {version} was not saved by skops: other formats are not loaded.")
        return path

    def read_record(self, version: str) -> dict[str, dict[str, Any]]:
        """Return the files that a version's run recorded, by name; see `RECORD`.

        Raises:
            UserError: a file is missing or damaged.
        """
        from mlflow.exceptions import MlflowException

        run = self.run_of(version)
        try:
            found = self.read_documents(run, RECORD)
        except (MlflowException, OSError) as error:
            if lost := self.find_lost(version):
                raise _incomplete(version, lost) from error
            raise
        if missing := [name for name in RECORD if name not in found]:
            damaged = f"{run.info.artifact_uri}/{missing[0]} is damaged"
            raise _incomplete(version, self.find_lost(version) or damaged)
        return found

    def read_documents(self, run: Any, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the JSON documents of a run by file name, without missing and damaged ones."""
        from mlflow.artifacts import load_dict
        from mlflow.exceptions import MlflowException

        there = {file.path for file in self.client.list_artifacts(run.info.run_id)}
        found = {}
        for name in there.intersection(names):
            try:
                found[name] = load_dict(f"{run.info.artifact_uri}/{name}")
            except MlflowException as error:
                if error.error_code != "BAD_REQUEST":  # error code of a file that is not JSON
                    raise
        return found

    def read_plots(self, run: Any) -> dict[str, bytes]:
        """Return the plots of a run, PNG images by name without the suffix; see `log_results`."""
        from mlflow.artifacts import download_artifacts

        files = [file.path for file in self.client.list_artifacts(run.info.run_id, PLOTS)]
        with tempfile.TemporaryDirectory() as folder:
            return {
                Path(file).stem: Path(
                    download_artifacts(f"{run.info.artifact_uri}/{file}", dst_path=folder)
                ).read_bytes()
                for file in files
            }

    def run_id(self, version: str) -> str:
        """Return the id of a version's run."""
        return str(self.get(version).run_id or "")

    def run_of(self, version: str) -> Any:
        """Return the MLflow run of a version."""
        return self._get_run(self.get(version).run_id or "", version)

    def _get_run(self, run_id: str, version: str = "") -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if not _is_gone(error):
                raise
            of = f" that made version {version}" if version else ""
            raise Deleted(
                f"The run {run_id}{of} was deleted in MLflow: `ml train` trains the version again, with a new number."
            ) from None

    @contextmanager
    def run(self, name: str, tags: dict[str, str], nested: bool = False) -> Iterator[str]:
        """Start a run and yield its id; end it as finished, or as failed on an exception.

        Args:
            name: Its name.
            tags: Its tags.
            nested: Whether it is shown below the run that is active.
        """
        import mlflow

        experiment = self.experiment_id()
        with mlflow.start_run(experiment_id=experiment, run_name=name, tags=tags, nested=nested) as run:
            yield run.info.run_id

    def log_results(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        documents: Mapping[str, dict[str, Any]],
        plots: Mapping[str, bytes] = MappingProxyType({}),
        params: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Add results to a run in place of earlier ones.

        Args:
            run_id: The run.
            metrics: Metrics, by name.
            documents: JSON documents, by file name.
            plots: PNG images, by name without the suffix.
            params: Parameters, by name.
        """
        import mlflow

        self.restore_run(run_id)
        if params:
            mlflow.log_params(dict(params), run_id=run_id)
        mlflow.log_metrics(dict(metrics), run_id=run_id)
        for name, document in documents.items():
            mlflow.log_dict(document, name, run_id=run_id)
        if plots:
            self.log_files(run_id, {f"{PLOTS}/{name}.png": png for name, png in plots.items()})

    def log_history(self, run_id: str, name: str, values: Sequence[float]) -> None:
        """Add the values of a metric over steps to a run, which MLflow shows as a curve."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for step, value in enumerate(values)]
        for place in range(0, len(metrics), PAGE):
            self.client.log_batch(run_id, metrics[place : place + PAGE])

    def log_files(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Add files to a run, by their paths among its artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self.client.log_artifacts(run_id, folder)

    def remove_files(self, run: Any) -> None:
        """Remove all artifacts of a run; its metrics, parameters and tags are kept."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        artifacts = get_artifact_repository(run.info.artifact_uri)
        for file in artifacts.list_artifacts():
            artifacts.delete_artifacts(file.path)

    def log_input(self, run_id: str, context: str, dataset: Mapping[str, str]) -> None:
        """Add a dataset to a run's inputs, without reading it.

        Args:
            run_id: The run.
            context: The use of the dataset in the run.
            dataset: The fields of `mlflow.entities.Dataset`.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self.restore_run(run_id)
        tags = [InputTag("mlflow.data.context", context)]
        self.client.log_inputs(run_id, [DatasetInput(Dataset(**dataset), tags)])

    def show_metrics(self, run_id: str, names: Sequence[str]) -> None:
        """Show these metrics as columns in MLflow's table of runs, as far as the window is wide enough.

        By default the table shows no metrics. This writes a view in the same way as the "Share" button: a tag, to which
        the address of `runs_path` refers.
        """
        columns = ["attributes.`Dataset`", *(f"metrics.`{name}`" for name in names[:SHOWN_METRICS])]
        self.client.set_experiment_tag(
            self.experiment_of(run_id), f"mlflow.sharedViewState.{VIEW}", json.dumps({"selectedColumns": columns})
        )

    def log_model(self, model: Any, example: "pd.DataFrame", requirements: list[str]) -> tuple[str, str | None]:
        """Log a fitted pipeline to the open run; return its URI and id.

        Raises:
            UserError: skops meets a type outside the trust list.
        """
        import mlflow.sklearn
        import mlflow.utils.environment
        from mlflow.exceptions import MlflowException
        from mlflow.models import infer_signature

        # The requirements are the installed versions; MLflow would need a second to check them.
        unchecked = patch.object(mlflow.utils.environment, "warn_dependency_requirement_mismatches", create=True)
        try:
            with unchecked:
                info = mlflow.sklearn.log_model(
                    model,
                    name="model",
                    signature=infer_signature(example, model.predict(example)),
                    input_example=example,
                    serialization_format="skops",
                    skops_trusted_types=list(self.trusted),
                    pip_requirements=requirements,
                )
        except MlflowException as error:
            raise UserError(explain_untrusted(error)) from error
        return info.model_uri, info.model_id


def _incomplete(version: str, lost: str) -> UserError:
    return UserError(
        f"Version {version} is no longer complete in MLflow ({lost}): restore its artifacts from a "
        "backup, or run `ml train`, which makes it again under a new number."
    )


def _is_gone(error: Exception) -> bool:
    """Return True if MLflow reports that something does not exist, not that the server failed."""
    from mlflow.exceptions import MlflowException

    gone = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
    if isinstance(error, MlflowException):
        return error.error_code in gone
    return isinstance(error, Deleted | FileNotFoundError)


def explain_schema(message: str, uri: str, variable: str) -> str:
    """Return a sentence on a database of another MLflow version and its remedy; empty for other errors.

    Args:
        message: MLflow's error message.
        uri: The database.
        variable: The environment variable of an address that may contain a password.
    """
    found = OTHER_SCHEMA.search(message)
    if found is None:
        return ""
    local = uri.startswith("sqlite")
    place = shlex.quote(uri) if local else f"at {variable}"
    spec, installed = find_spec("mlflow"), metadata.version("mlflow")
    folders = (spec.submodule_search_locations if spec else None) or ()
    if not any(list(Path(folder).glob(f"store/db_migrations/versions/{found[1]}_*.py")) for folder in folders):
        return (
            f"The MLflow database {place} was made by a later version than MLflow {installed}: install "
            "that version again, or restore the database from a backup."
        )
    command = f"mlflow db upgrade {shlex.quote(uri)}" if local else f'mlflow db upgrade "${variable}"'
    return (
        f"The MLflow database {place} was made by an earlier version than MLflow {installed}: stop what "
        f"uses it{' (`ml down`)' if local else ''}, make a backup, and run `uv run {command}`."
    )


def repair_mlflow_alias(project: Project) -> None:
    """Set MLflow's alias according to `champion.json`."""
    champion, registry = project.champion, project.registry
    if champion is not None and registry.alias(CHAMPION) != champion.version and registry.made(champion):
        registry.set_alias(CHAMPION, champion.version)


def read_version_tags(project: Project) -> dict[str, dict[str, str]]:
    """Return the tags of all registered versions, which name their training data.

    Raises:
        UserError: MLflow does not answer, or the champion is not from this registry.
    """
    from mlflow.exceptions import MlflowException

    try:
        registry, champion = project.registry, project.champion
        if champion is not None and not registry.made(champion):
            raise UserError(
                f"MLflow does not know version {champion.version}, which is in production: set "
                "MLFLOW_TRACKING_URI to the server that it was registered with, or deploy a version of this one."
            )
        return {str(version.version): _tags_of(registry, version) for version in _list_versions(registry)}
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow could not list its versions ({' '.join(str(error).split())[:200]}).") from None


def _list_versions(registry: Registry) -> "Iterator[ModelVersion]":
    token = None
    while True:
        page = registry.client.search_model_versions(f"name = '{registry.name}'", PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _tags_of(registry: Registry, version: "ModelVersion") -> dict[str, str]:
    """Return a version's tags, or those of its run if the version does not name its data."""
    if "data_digest" in version.tags or not version.run_id:
        return dict(version.tags)
    return dict(registry.client.get_run(version.run_id).data.tags)
