"""A registered version with everything that was recorded of it, read back from MLflow."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from ondol.config.settings import Settings
from ondol.contract import Contract, encode
from ondol.registry.tracking import Registry
from ondol.training.rows import Holdout, read_rows

CHUNK = 100_000  # rows that scikit-learn predicts at once, to bound memory


@dataclass(frozen=True)
class Candidate:
    """A version: its pipeline as skops gives it back, its contract with encodings, and the run's record.

    Attributes:
        tags: The run's tags: validation, data_digest, git_commit, …
        baseline: What a dummy model predicts: class probabilities, or a mean.
        trusted: The types that skops was told to trust.
    """

    settings: Settings
    version: str
    run_id: str
    pipeline: Any
    contract: Contract
    tags: dict[str, str]
    baseline: list[float]
    trusted: tuple[str, ...]

    @property
    def validation(self) -> str:
        """The validation whose rows it was trained on."""
        return self.tags["validation"]

    @property
    def holdout(self) -> Holdout:
        """How rows were held out from it."""
        return Holdout.model_validate_json(self.tags["holdout"])

    @cached_property
    def held_out(self) -> pd.DataFrame:
        """The valid rows that it was not trained on, in the contract's dtypes; read once."""
        return read_rows(self.settings, self.contract, self.validation, "holdout", self.holdout)

    @cached_property
    def predictions(self) -> np.ndarray:
        """Class probabilities [N, K] or values [N] of the held-out rows by scikit-learn; predicted once."""
        frame, predict = self.held_out, self.pipeline.predict
        if self.contract.classes is not None:
            predict = self.pipeline.predict_proba
        parts = [predict(encode(self.contract, frame.iloc[i : i + CHUNK])) for i in range(0, len(frame), CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0)

    def skops_bytes(self) -> bytes:
        """Return the pipeline as a skops file."""
        import skops.io

        return bytes(skops.io.dumps(self.pipeline))


def load_candidate(settings: Settings, version: str) -> Candidate:
    """Return a registered version; the same object for the same version within one process."""
    return _load(settings.model_dump_json(), version)


@lru_cache(maxsize=1)
def _load(settings_json: str, version: str) -> Candidate:
    settings = Settings.model_validate_json(settings_json)
    registry = Registry(settings)
    run, record = registry.run_of(version), registry.read_record(version)
    return Candidate(
        settings=settings,
        version=version,
        run_id=run.info.run_id,
        pipeline=registry.load(version),
        contract=Contract.model_validate(record["contract.json"]),
        tags=dict(run.data.tags),
        baseline=record["baseline.json"]["prediction"],
        trusted=registry.trusted,
    )
