"""MLflow: runs, registered versions, aliases."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from flows.connection import connect, embedded_ui, is_embedded, mlflow_artifacts, show_uri
from flows.errors import UserError
from flows.saved import FILE, explain_untrusted, load_pipeline, trusted_types
from flows.settings import Settings
from flows.store.champion import Champion, read_champion

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion

    from flows.basis import Basis
    from flows.gates import Verdict

SHOWN = 20  # versions that a message lists, the newest
KEY_TAG = "train_key"
CHALLENGER, CHAMPION = "challenger", "champion"


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
        """Return the id of the project's experiment, made when it is missing."""
        found = self.client.get_experiment_by_name(self.name)
        return found.experiment_id if found else self.client.create_experiment(self.name, self.artifacts)

    def find(self, train_key: str) -> "ModelVersion | None":
        """Return the newest version that was trained from exactly `train_key`, or None."""
        found = self.client.search_model_versions(f"name = '{self.name}' and tag.{KEY_TAG} = '{train_key}'")
        return max(found, key=lambda v: int(v.version), default=None)

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
            raise UserError(f'MLflow has no version {version} of "{self.name}": there is {there}.') from None

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

        self.get(version)
        target = str(folder) if folder else None
        path = Path(download_artifacts(f"models:/{self.name}/{version}", dst_path=target)) / FILE
        if not path.exists():
            raise UserError(f"Version {version} was not saved by skops: no other format is loaded.")
        return path

    def run_id(self, version: str) -> str:
        """Return the id of the run that made a version."""
        return str(self.get(version).run_id or "")

    def run_of(self, version: str) -> Any:
        """Return the MLflow run that made a version."""
        return self.client.get_run(self.get(version).run_id or "")

    @contextmanager
    def run(self, name: str, tags: dict[str, str]) -> Iterator[str]:
        """Open a run, yield its id, and end it as finished, or as failed where an exception passes."""
        import mlflow

        with mlflow.start_run(experiment_id=self.experiment_id(), run_name=name, tags=tags) as run:
            yield run.info.run_id

    def log_verdict(self, run_id: str, verdict: "Verdict", basis: "Basis", plots: dict[str, bytes]) -> None:
        """Add a candidate's figures, what they rest on, its gates and the plots to its run."""
        import mlflow

        metrics: dict[str, float] = {}
        for name, figure in verdict.scores["candidate"].items():
            said = {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
            metrics |= {key: value for key, value in said.items() if value is not None}
        mlflow.log_metrics(metrics, run_id=run_id)
        mlflow.log_dict(basis.model_dump(mode="json"), "basis.json", run_id=run_id)
        mlflow.log_dict(verdict.model_dump(mode="json"), "verdict.json", run_id=run_id)
        with tempfile.TemporaryDirectory() as folder:
            for name, png in plots.items():
                (Path(folder) / f"{name}.png").write_bytes(png)
            self.client.log_artifacts(run_id, folder, "plots")

    def run_address(self, run_id: str) -> str:
        """Return where the MLflow UI shows a run; the embedded one is shown by `ml up`."""
        uri = os.environ["MLFLOW_TRACKING_URI"]
        own = show_uri(uri) if uri.startswith("http") else embedded_ui(self.settings)
        host = (self.settings.ports.mlflow_url or own).rstrip("/")
        return f"{host}/#/experiments/{self.experiment_id()}/runs/{run_id}"

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


def repair_alias(settings: Settings) -> None:
    """Make MLflow's alias agree with `champion.json`, which leads."""
    champion = read_champion(settings.store_path)
    if champion is None:
        return
    registry = Registry(settings)
    if registry.alias(CHAMPION) != champion.version and registry.made(champion):
        registry.set_alias(CHAMPION, champion.version)
