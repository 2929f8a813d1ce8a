"""What is recorded of a version, read back from MLflow."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ondol.config.settings import Settings
from ondol.errors import UserError
from ondol.evaluation.reproduction.compare import Figure, figures_of
from ondol.redaction import show_uri
from ondol.registry.tracking import Registry
from ondol.snapshots.parts import Parts
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.training.provenance import Provenance

REQUIRED = ("provenance.json", "settings.json")


@dataclass(frozen=True)
class Recorded:
    """A version's record.

    Attributes:
        version: Its number.
        origin: Commit, packages and machine.
        settings: All settings, those of the environment included.
        tags: Of its run: data_digest, validation, holdout, …
        verdict: Its figures; None where it was never judged.
        basis: What it was judged by; None likewise, and for a verdict that is older than this record.
        train_rows: On how many rows it was fitted.
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
        """Every figure that can be made again."""
        return figures_of(self.train_rows, self.verdict if self.basis else None)


def read_record(registry: Registry, version: str) -> Recorded:
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
            f"The record of version {version} is not whole: its run {run.info.run_id} in MLflow has no "
            f"{' and no '.join(lost)}, without which nobody knows how it was made."
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
    snapshots = Snapshots(settings.store_path)
    if not (snapshots.folder / f"{digest}.json").exists():
        raise UserError(
            f"The snapshot {digest} that it was trained on is not in {snapshots.folder}: bring it back from where the "
            "store is kept (with its .json and .parquet files), or set ML_STORE to a store that has it."
        )
    snapshot = snapshots.get(digest)
    for part in snapshot.parts:
        Parts(snapshots.folder).verify(part)
    return snapshot


@contextmanager
def _reaching(version: str, uri: str) -> Iterator[None]:
    """Say where MLflow cannot be asked: its stores fail by errors of many libraries."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"MLflow cannot be reached at {show_uri(uri)}, where the record of version {version} is "
            f"({type(error).__name__}): see that it answers, and run the command again."
        ) from None
