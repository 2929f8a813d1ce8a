"""Candidates: registered versions with their records, and the rows for their evaluation and for later comparisons.

The reference for drift is such rows with the model's predictions, stored in the bundle.
"""

import io
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from ondol.config import Gates, Settings
from ondol.contract import Column, Contract, encode, encode_target
from ondol.contract.schema import free_names
from ondol.errors import UserError
from ondol.evaluation.metrics import Decided
from ondol.registry.bundles import Bundle
from ondol.registry.registry import Registry
from ondol.training.dataset import Holdout, in_holdout, read_rows
from ondol_serving.decision import decide
from ondol_serving.names import label_key

CHUNK = 100_000  # rows that scikit-learn predicts at once, to bound memory
REFERENCE = "reference.parquet"
MOST_ROWS = 10_000  # of the reference
SEED = 0


@dataclass(frozen=True)
class Candidate:
    """A version: its pipeline loaded by skops, its contract with encodings, and the run's record.

    Attributes:
        tags: The run's tags: validation, data_digest, git_commit, …
        baseline: The prediction of a dummy model: class probabilities, or a mean.
        trusted: The types that skops may load.
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
        """The rule by which rows were held out."""
        return Holdout.model_validate_json(self.tags["holdout"])

    @cached_property
    def held_out(self) -> pd.DataFrame:
        """The valid rows that it was not trained on, in the contract's dtypes; read once."""
        return read_rows(self.settings, self.contract, self.validation, "holdout", self.holdout)

    @cached_property
    def predictions(self) -> np.ndarray:
        """Class probabilities [N, K] or values [N] of the held-out rows by scikit-learn; predicted once."""
        return self.predict(self.held_out)

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        """Return class probabilities [N, K] or values [N] by scikit-learn, for rows in the contract's dtypes."""
        predict = self.pipeline.predict if self.contract.classes is None else self.pipeline.predict_proba
        parts = [predict(encode(self.contract, frame.iloc[i : i + CHUNK])) for i in range(0, len(frame), CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0)

    def skops_bytes(self) -> bytes:
        """Return the pipeline as a skops file."""
        import skops.io

        return bytes(skops.io.dumps(self.pipeline))


def load_candidate(settings: Settings, version: str) -> Candidate:
    """Load a registered version (cached within one process)."""
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


def align_predictions(predictions: np.ndarray, theirs: Contract, ours: Contract) -> Decided | np.ndarray:
    """Return predictions [N, K] with the classes in the order of another contract; values [N] unchanged.

    Their labels are decided by the model's own rule, and have the costs of the other contract.
    """
    if ours.classes is None or theirs.classes is None:
        return predictions
    aligned = np.zeros((len(predictions), len(ours.classes)))
    for place, label in enumerate(ours.classes):
        if label in theirs.classes:
            aligned[:, place] = predictions[:, theirs.classes.index(label)]
    if ours.decision is None and theirs.decision is None:
        return aligned
    places = np.array([ours.classes.index(label) if label in ours.classes else -1 for label in theirs.classes])
    labels = places[decide(theirs.decision, predictions)]
    costs = ours.decision.costs if ours.decision else None
    return Decided(aligned, np.where(labels < 0, decide(None, aligned), labels), costs)


class Basis(BaseModel):
    """The inputs of a candidate's metrics besides its own predictions.

    Attributes:
        metric: The deciding metric; None for the default of the problem.
        confidence: The coverage of the intervals.
        resamples: The number of bootstrap resamples.
        contract: The contract of the champion that it was compared with; None if there was none.
        holdout: The rule for the rows that the champion was not trained on; only these are used.
    """

    metric: str | None
    confidence: float
    resamples: int
    contract: Contract | None = None
    holdout: Holdout | None = None


@dataclass(frozen=True)
class EvaluationRows:
    """The rows that a candidate is evaluated on, its predictions for them, and the true targets."""

    frame: pd.DataFrame
    predictions: np.ndarray
    y: np.ndarray
    unknown: int  # rows left out because their class was never seen in training


def find_basis(gates: Gates, bundle: Bundle | None) -> Basis:
    """Return the basis of a candidate's evaluation, with the champion of `bundle` if there is one."""
    made = Basis(metric=gates.metric, confidence=gates.confidence, resamples=gates.resamples)
    if bundle is None:
        return made
    holdout = Holdout.model_validate(bundle.meta["holdout"])
    return made.model_copy(update={"contract": bundle.contract, "holdout": holdout})


def choose_rows(candidate: Candidate, basis: Basis) -> EvaluationRows:
    """Return the rows that neither the candidate nor the champion was trained on.

    Raises:
        UserError: no such rows are left.
    """
    frame, predictions = candidate.held_out, candidate.predictions
    if basis.contract and basis.holdout:
        in_both = in_holdout(frame, basis.contract, basis.holdout)
        frame, predictions = frame[in_both], predictions[in_both]
    y = encode_target(candidate.contract, frame[candidate.contract.target])
    known = (y >= 0) if candidate.contract.classes else np.ones(len(y), bool)
    if not known.any():
        raise UserError("No held-out rows are left for the evaluation: add more rows, or raise [split] holdout.")
    return EvaluationRows(frame[known], predictions[known], y[known], int((~known).sum()))


@dataclass(frozen=True)
class Reference:
    """The rows that a window is compared with.

    Attributes:
        frame: Features by their real names (sensitive ones left out), the target, and the predictions.
        contract: The contract of the model in production.
        prediction: The column that holds the label or value.
        probability: The column with the probability of the positive class; None but in binary problems.
        by_class: The columns with the probabilities of more than two classes; empty in older bundles.
    """

    frame: pd.DataFrame
    contract: Contract
    prediction: str
    probability: str | None
    by_class: tuple[str, ...] = ()

    @property
    def probabilities(self) -> np.ndarray | None:
        """The probabilities of the classes, [N, K]; None if they are not known."""
        if self.probability is not None:
            positive = self.frame[self.probability].to_numpy(np.float64)
            return np.column_stack([1 - positive, positive])
        return self.frame[list(self.by_class)].to_numpy(np.float64) if self.by_class else None

    @property
    def features(self) -> tuple[Column, ...]:
        """The features that are compared."""
        return compared_features(self.contract)

    @property
    def output(self) -> str:
        """The column for the drift of the prediction: the probability if there is one."""
        return self.probability or self.prediction


def compared_features(contract: Contract) -> tuple[Column, ...]:
    """Return the features without the row's time, which always moves, and without the sensitive ones.

    Sensitive ones are in neither the reference nor the log.
    """
    return tuple(c for c in contract.timeless_features if c.role != "sensitive")


def make_reference(candidate: Candidate) -> tuple[bytes, dict[str, Any]]:
    """Return a seeded sample of the held-out rows as Parquet, and its entry in `meta.json`."""
    contract, held_out = candidate.contract, candidate.held_out
    chosen = np.arange(len(held_out))
    if len(chosen) > MOST_ROWS:
        chosen = np.sort(np.random.default_rng(SEED).choice(len(chosen), MOST_ROWS, replace=False))
    names = [c.name for c in compared_features(contract)]
    frame = held_out[[*names, contract.target]].iloc[chosen].reset_index(drop=True)
    prediction, probability = free_names(("prediction", "probability"), frame.columns)
    predicted = candidate.predictions[chosen]
    outputs = output_columns(contract, predicted, prediction, probability)
    by_class: list[str] = []
    if contract.problem == "multiclass":
        wanted = [f"probability {label_key(label)}" for label in contract.classes or ()]
        by_class = free_names(wanted, [*frame.columns, prediction])
        outputs |= dict(zip(by_class, predicted.T, strict=True))
    stream = io.BytesIO()
    pd.concat([frame, pd.DataFrame(outputs)], axis=1).to_parquet(stream, index=False, compression="zstd")
    about: dict[str, Any] = {"rows": len(chosen), "of": len(held_out), "seed": SEED, "prediction": prediction}
    about |= {"by_class": by_class} if by_class else {}
    return stream.getvalue(), about | {"probability": probability if probability in outputs else None}


def output_columns(contract: Contract, predicted: np.ndarray, prediction: str, probability: str) -> dict[str, Any]:
    """Return the prediction and, in binary problems, the positive class's probability, as named columns."""
    if contract.classes is None:
        return {prediction: predicted.astype(np.float64)}
    labels = pd.Series(list(contract.classes)).take(decide(contract.decision, predicted)).to_numpy()
    made: dict[str, Any] = {prediction: labels}
    return made | ({probability: predicted[:, 1]} if contract.problem == "binary" else {})


def read_reference(bundle: Bundle) -> Reference:
    """Return the reference of a bundle.

    Raises:
        UserError: the bundle is from a version without references.
    """
    path, about = bundle.path / REFERENCE, bundle.meta.get("reference")
    if about is None or not path.exists():
        raise UserError(
            f"Version {bundle.version} was deployed before bundles had a reference to compare the log with: "
            "it stays in production, and the next version that `ml run` deploys can be monitored."
        )
    names = about["prediction"], about["probability"], tuple(about.get("by_class", ()))
    return Reference(pd.read_parquet(path), bundle.contract, *names)
