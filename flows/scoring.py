"""Scores rows by a bundle, whatever its runtime: the same numbers as the service, many rows at a time."""

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from flows.contract import Contract, encode

CHUNK = 50_000  # rows that are encoded and scored at once, to bound memory
PREDICTION = "prediction"


class Runtime(Protocol):
    """Runs a model on encoded rows: [labels, probabilities], or [values]."""

    def __call__(self, encoded: pd.DataFrame) -> list[np.ndarray]:
        """Return the model's outputs for `encoded`."""
        ...


class Scorer:
    """A model and the contract that its inputs are encoded by."""

    def __init__(self, contract: Contract, run: Runtime) -> None:
        """Score by `run`."""
        self.contract = contract
        self.run = run

    @classmethod
    def open(cls, bundle: Path) -> "Scorer":
        """Open a bundle's model."""
        contract = Contract.model_validate_json((bundle / "contract.json").read_bytes())
        if (bundle / "model.onnx").exists():
            return cls.from_onnx((bundle / "model.onnx").read_bytes(), contract)
        meta = json.loads((bundle / "meta.json").read_text(encoding="utf-8"))
        return cls(contract, _skops_runtime(bundle / "model.skops", meta["trusted"], contract))

    @classmethod
    def from_onnx(cls, model: bytes, contract: Contract) -> "Scorer":
        """Score by a serialized ONNX model, on all cores."""
        return cls(contract, _onnx_runtime(model, contract))

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        """Return class probabilities [N, K] or values [N] for rows in the contract's dtypes."""
        outputs = [self.run(encode(self.contract, frame.iloc[i : i + CHUNK])) for i in range(0, len(frame), CHUNK)]
        if self.contract.classes is None:
            return np.concatenate([np.asarray(o[0], np.float64).ravel() for o in outputs])
        return np.concatenate([np.asarray(o[1], np.float64) for o in outputs])

    def score(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return `prediction` and, for classes, `probability <class>` for each row, under the frame's index."""
        encoded = encode(self.contract, frame)
        if self.contract.classes is None:
            values = np.asarray(self.run(encoded)[0], np.float64).ravel()
            return pd.DataFrame({PREDICTION: values}, index=frame.index)
        labels, probabilities = self.run(encoded)
        classes = pd.Series(list(self.contract.classes))
        columns: dict[str, Any] = {PREDICTION: classes.take(labels.ravel()).to_numpy()}
        for k, label in enumerate(self.contract.classes):
            columns[f"probability {label}"] = np.asarray(probabilities[:, k], np.float64)
        return pd.DataFrame(columns, index=frame.index)


def _onnx_runtime(model: bytes, contract: Contract) -> Runtime:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    inputs = {c.name: c.input for c in contract.features}
    outputs = ["value"] if contract.classes is None else ["label", "probabilities"]

    def run(encoded: pd.DataFrame) -> list[np.ndarray]:
        feeds = {inputs[name]: _tensor(encoded[name]) for name in encoded.columns}
        return [np.asarray(output) for output in session.run(outputs, feeds)]

    return run


def _skops_runtime(path: Path, trusted: list[str], contract: Contract) -> Runtime:
    import skops.io

    model = skops.io.load(path, trusted=trusted)

    def run(encoded: pd.DataFrame) -> list[np.ndarray]:
        predicted = np.asarray(model.predict(encoded))
        return [predicted] if contract.classes is None else [predicted, model.predict_proba(encoded)]

    return run


def _tensor(values: "pd.Series[Any]") -> np.ndarray:
    """Return an encoded column as a tensor [N, 1]."""
    array = values.to_numpy() if values.dtype == np.float32 else values.to_numpy(dtype=object)
    return array.reshape(-1, 1)
