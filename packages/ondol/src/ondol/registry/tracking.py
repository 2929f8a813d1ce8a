"""MLflow: runs, registered versions, aliases."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from ondol.config.settings import Settings
from ondol.errors import UserError
from ondol.orchestration.progress import say
from ondol.redaction import show_uri
from ondol.registry.champion import Champion, read_champion
from ondol.registry.connection import VIEW, connect, embedded_ui, is_embedded, mlflow_artifacts
from ondol.registry.models import FILE, explain_untrusted, load_pipeline, trusted_types

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion

SHOWN = 20  # versions that a message lists, the newest
PAGE = 1000  # versions that MLflow is asked for at once
KEY_TAG = "train_key"
COLUMNS = 4  # metrics that MLflow's table of runs shows
DELETED = "deleted"
RECORD = ("contract.json", "baseline.json")  # of a run, without which its version cannot be judged
CHALLENGER, CHAMPION = "challenger", "champion"


class Gone(UserError):
    """What a version needs was deleted in MLflow for good."""


class Registry:
    """The experiment and the registered model of one project."""

    def __init__(self, settings: Settings) -> None:
        """Connect; on the embedded database this makes the tables the first time."""
        self.settings = settings
        self.name = settings.project.name
        self.trusted = trusted_types(settings)
        self.client = connect(settings)
        self.artifacts = mlflow_artifacts(settings).as_uri() if is_embedded(settings) else None

    def experiment_id(self) -> str:
        """Return the id of the project's experiment, made when it is missing and restored when it was deleted."""
        found = self.client.get_experiment_by_name(self.name)
        if found is None:
            return self.client.create_experiment(self.name, self.artifacts)
        if found.lifecycle_stage == DELETED:
            self.client.restore_experiment(found.experiment_id)
            say(f'The experiment "{self.name}" was deleted in MLflow: it is restored.', notice=True)
        return found.experiment_id

    def restore_run(self, run_id: str) -> None:
        """Restore a run, and its experiment, that somebody deleted in MLflow: only then can it be logged to.

        Raises:
            UserError: it is gone for good.
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

    def find(self, train_key: str) -> "ModelVersion | None":
        """Return the newest version that was trained from exactly `train_key` and is whole, or None."""
        found = self.client.search_model_versions(f"name = '{self.name}' and tag.{KEY_TAG} = '{train_key}'")
        for version in sorted(found, key=lambda v: int(v.version), reverse=True):
            lost = self.find_lost(str(version.version))
            if not lost:
                return version
            say(f"Version {version.version} is not whole in MLflow ({lost}): it is trained again.", notice=True)
        return None

    def find_lost(self, version: str) -> str:
        """Return in words what of a version's files and record is gone from MLflow; nothing where it is whole.

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
            return "its run or its model was deleted for good"
        lost = [name for name in RECORD if name not in there] + ([] if FILE in files else [FILE])
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
        """Tell whether the champion's version is of this registry."""
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
        """Return where the saved pipeline of a version is, brought into `folder` where one is given."""
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        self.get(version)
        target = str(folder) if folder else None
        try:
            path = Path(download_artifacts(f"models:/{self.name}/{version}", dst_path=target)) / FILE
        except (MlflowException, OSError) as error:
            if lost := self.find_lost(version):
                raise _incomplete(version, lost) from error
            raise
        if not path.exists():
            raise UserError(f"Version {version} was not saved by skops: no other format is loaded.")
        return path

    def read_record(self, version: str) -> dict[str, dict[str, Any]]:
        """Return by file name what a version's run recorded of its model: see `RECORD`.

        Raises:
            UserError: a file is gone, or damaged.
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
        """Return by file name the JSON documents of a run, without those that it does not have or that are damaged."""
        from mlflow.artifacts import load_dict
        from mlflow.exceptions import MlflowException

        there = {file.path for file in self.client.list_artifacts(run.info.run_id)}
        found = {}
        for name in there.intersection(names):
            try:
                found[name] = load_dict(f"{run.info.artifact_uri}/{name}")
            except MlflowException as error:
                if error.error_code != "BAD_REQUEST":  # the code of a file that is not JSON
                    raise
        return found

    def run_id(self, version: str) -> str:
        """Return the id of the run that made a version."""
        return str(self.get(version).run_id or "")

    def run_of(self, version: str) -> Any:
        """Return the MLflow run that made a version."""
        return self._get_run(self.get(version).run_id or "", version)

    def _get_run(self, run_id: str, version: str = "") -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if not _is_gone(error):
                raise
            of = f" that made version {version}" if version else ""
            raise Gone(
                f"The run {run_id}{of} is gone from MLflow: `ml train` makes the version again under a new number."
            ) from None

    @contextmanager
    def run(self, name: str, tags: dict[str, str]) -> Iterator[str]:
        """Open a run, yield its id, and end it as finished, or as failed where an exception passes."""
        import mlflow

        with mlflow.start_run(experiment_id=self.experiment_id(), run_name=name, tags=tags) as run:
            yield run.info.run_id

    def log_results(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        documents: Mapping[str, dict[str, Any]],
        plots: Mapping[str, bytes] = MappingProxyType({}),
        params: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Add results to a run, in the place of earlier ones.

        Args:
            run_id: The run.
            metrics: By name.
            documents: What is logged as JSON, by file name.
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
            self.log_files(run_id, {f"plots/{name}.png": png for name, png in plots.items()})

    def log_files(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Add files to a run, by their paths among its artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder) / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            self.client.log_artifacts(run_id, folder)

    def remove_files(self, run: Any) -> None:
        """Remove all artifacts of a run; its metrics, parameters and tags stay."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        artifacts = get_artifact_repository(run.info.artifact_uri)
        for file in artifacts.list_artifacts():
            artifacts.delete_artifacts(file.path)

    def log_input(self, run_id: str, context: str, dataset: Mapping[str, str]) -> None:
        """Add a dataset to a run's inputs, without reading it.

        Args:
            run_id: The run.
            context: What the run used it for.
            dataset: The fields of `mlflow.entities.Dataset`.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self.restore_run(run_id)
        tags = [InputTag("mlflow.data.context", context)]
        self.client.log_inputs(run_id, [DatasetInput(Dataset(**dataset), tags)])

    def show_metrics(self, run_id: str, names: Sequence[str]) -> None:
        """Let MLflow's table of runs show these metrics, as far as a window is wide.

        The table shows none of its own accord; a view that is kept under this tag, which the address of `runs_path`
        names, is how its "Share" button does it.
        """
        columns = ["attributes.`Dataset`", *(f"metrics.`{name}`" for name in names[:COLUMNS])]
        experiment = self._get_run(run_id).info.experiment_id
        self.client.set_experiment_tag(
            experiment, f"mlflow.sharedViewState.{VIEW}", json.dumps({"selectedColumns": columns})
        )

    def run_address(self, run_id: str) -> str:
        """Return where the MLflow UI shows a run; the embedded one is shown by `ml up`."""
        uri = os.environ["MLFLOW_TRACKING_URI"]
        own = show_uri(uri) if uri.startswith("http") else embedded_ui(self.settings)
        host = (self.settings.ports.mlflow_url or own).rstrip("/")
        return f"{host}/#/experiments/{self._get_run(run_id).info.experiment_id}/runs/{run_id}"

    def log_model(self, model: Any, example: "pd.DataFrame", requirements: list[str]) -> tuple[str, str | None]:
        """Log a fitted pipeline to the open run; return its URI and id.

        Raises:
            UserError: skops meets a type outside the trust list.
        """
        import mlflow.sklearn
        import mlflow.utils.environment
        from mlflow.exceptions import MlflowException
        from mlflow.models import infer_signature

        # The requirements are the versions that run here; MLflow would take a second to check that they do.
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
        f"Version {version} is not whole in MLflow any more ({lost}): bring its artifacts back from a "
        "backup, or run `ml train`, which makes it again under a new number."
    )


def _is_gone(error: Exception) -> bool:
    """Return True if MLflow says that something does not exist, rather than that it cannot be asked."""
    from mlflow.exceptions import MlflowException

    gone = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
    if isinstance(error, MlflowException):
        return error.error_code in gone
    return isinstance(error, Gone | FileNotFoundError)


def repair_alias(settings: Settings) -> None:
    """Make MLflow's alias agree with `champion.json`, which leads."""
    champion = read_champion(settings.store_path)
    if champion is None:
        return
    registry = Registry(settings)
    if registry.alias(CHAMPION) != champion.version and registry.made(champion):
        registry.set_alias(CHAMPION, champion.version)


def read_version_tags(settings: Settings) -> dict[str, dict[str, str]]:
    """Return by version the tags of everything that is registered, which say what data it was trained on.

    Raises:
        UserError: MLflow cannot be asked, or it is another than the one that the champion came from.
    """
    from mlflow.exceptions import MlflowException

    try:
        registry = Registry(settings)
        champion = read_champion(settings.store_path)
        if champion is not None and not registry.made(champion):
            raise UserError(
                f"MLflow does not know version {champion.version}, which serves: set MLFLOW_TRACKING_URI to the "
                "server that it was registered with, or deploy a version of this one."
            )
        return {str(version.version): _tags_of(registry, version) for version in _list_versions(registry)}
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow cannot be asked for its versions ({' '.join(str(error).split())[:200]}).") from None


def _list_versions(registry: Registry) -> "Iterator[ModelVersion]":
    token = None
    while True:
        page = registry.client.search_model_versions(f"name = '{registry.name}'", PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _tags_of(registry: Registry, version: "ModelVersion") -> dict[str, str]:
    """Return a version's tags, or its run's where it does not name its data."""
    if "data_digest" in version.tags or not version.run_id:
        return dict(version.tags)
    return dict(registry.client.get_run(version.run_id).data.tags)
