"""The reference for drift: held-out rows with the model's predictions, stored in the bundle."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ondol.contract import Column, Contract
from ondol.contract.schema import free_names
from ondol.errors import UserError
from ondol.evaluation.targets import Candidate
from ondol.registry.bundles import Bundle

FILE = "reference.parquet"
MOST_ROWS = 10_000
SEED = 0


@dataclass(frozen=True)
class Reference:
    """The rows that a window is compared with.

    Attributes:
        frame: Features by their real names (sensitive ones left out), the target, and the predictions.
        contract: The contract of the model in production.
        prediction: The column that holds the label or value.
        probability: The column with the probability of the positive class; None but in binary problems.
    """

    frame: pd.DataFrame
    contract: Contract
    prediction: str
    probability: str | None

    @property
    def features(self) -> tuple[Column, ...]:
        """The features that are compared."""
        return compared_features(self.contract)

    @property
    def output(self) -> str:
        """The column for the drift of the prediction: the probability if there is one."""
        return self.probability or self.prediction


def compared_features(contract: Contract) -> tuple[Column, ...]:
    """Return the features without the sensitive ones, which are in neither the reference nor the log."""
    return tuple(c for c in contract.features if c.role != "sensitive")


def make_reference(candidate: Candidate) -> tuple[bytes, dict[str, Any]]:
    """Return a seeded sample of the held-out rows as Parquet, and its entry in `meta.json`."""
    contract, held_out = candidate.contract, candidate.held_out
    chosen = np.arange(len(held_out))
    if len(chosen) > MOST_ROWS:
        chosen = np.sort(np.random.default_rng(SEED).choice(len(chosen), MOST_ROWS, replace=False))
    names = [c.name for c in compared_features(contract)]
    frame = held_out[[*names, contract.target]].iloc[chosen].reset_index(drop=True)
    prediction, probability = free_names(("prediction", "probability"), frame.columns)
    outputs = output_columns(contract, candidate.predictions[chosen], prediction, probability)
    stream = io.BytesIO()
    pd.concat([frame, pd.DataFrame(outputs)], axis=1).to_parquet(stream, index=False, compression="zstd")
    about = {"rows": len(chosen), "of": len(held_out), "seed": SEED, "prediction": prediction}
    return stream.getvalue(), about | {"probability": probability if probability in outputs else None}


def output_columns(contract: Contract, predicted: np.ndarray, prediction: str, probability: str) -> dict[str, Any]:
    """Return the prediction and, in binary problems, the positive class's probability, as named columns."""
    if contract.classes is None:
        return {prediction: predicted.astype(np.float64)}
    labels = pd.Series(list(contract.classes)).take(predicted.argmax(axis=1)).to_numpy()
    made: dict[str, Any] = {prediction: labels}
    return made | ({probability: predicted[:, 1]} if contract.problem == "binary" else {})


def read_reference(bundle: Bundle) -> Reference:
    """Return the reference of a bundle.

    Raises:
        UserError: the bundle is from a version without references.
    """
    path, about = bundle.path / FILE, bundle.meta.get("reference")
    if about is None or not path.exists():
        raise UserError(
            f"Version {bundle.version} was deployed before bundles had a reference to compare the log with: "
            "it stays in production, and the next version that `ml run` deploys can be monitored."
        )
    return Reference(pd.read_parquet(path), bundle.contract, about["prediction"], about["probability"])
