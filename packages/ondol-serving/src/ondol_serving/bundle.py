"""Bundles: the folders that deploy writes and the service loads."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ondol_serving.contract import Contract, Encoder, Rows, read_contract
from ondol_serving.log import Recorder
from ondol_serving.names import digest_folder, label_key
from ondol_serving.request import Read, Reader, compile_request
from ondol_serving.runtime import OnnxEncoder, OnnxRuntime, Runtime, Tensors
from ondol_serving.settings import Limits, read_limits, read_rules
from ondol_serving.shapley import Explainer, make_explainer, select_outputs


class BundleError(Exception):
    """A bundle cannot be served. The message is one sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A loaded model with its contract, settings and metadata. It is replaced as one object and never modified."""

    folder: Path
    version: str
    meta: dict[str, Any]
    document: dict[str, Any]
    contract: Contract
    request_type: type[BaseModel]
    encoder: Encoder
    runtime: Runtime
    class_names: tuple[str, ...] | None
    known: tuple[tuple[int, str, frozenset[Any]], ...]  # of each text column: place, name, values seen in training
    recorder: Recorder
    reader: Reader
    limits: Limits
    explainer: Explainer | None  # None: deployed before there were explanations

    def read(self, body: bytes) -> Read:
        """Return what a request's body holds.

        Raises:
            pydantic.ValidationError: the body does not match the contract.
        """
        return self.reader.read(body)

    def parse(self, body: bytes) -> list[tuple[Any, ...]]:
        """Return the rows of a request's body: the values of each row's features, in the contract's order.

        Raises:
            pydantic.ValidationError: the body does not match the contract.
        """
        return self.read(body).rows

    def count_unknown(self, rows: Rows) -> dict[str, int]:
        """Return the number of values never seen in training, by text column; columns without any are omitted."""
        columns = list(zip(*rows, strict=True))
        return {
            name: sum(value not in known for value in columns[i])
            for i, name, known in self.known
            if not known.issuperset(columns[i])
        }

    def predict(self, rows: Rows) -> list[dict[str, Any]]:
        """Return a prediction for each row; label or value is None if a number overflowed."""
        return self.describe(*self.runtime.run(self.encoder.encode(rows)))

    def describe(self, labels: NDArray[Any], probabilities: NDArray[Any] | None) -> list[dict[str, Any]]:
        """Return the predictions of the runtime's outputs."""
        if probabilities is None:
            return [{"value": value} for value in _listed(labels)]
        classes, names = self.contract.classes or (), self.class_names or ()
        return [
            {"label": None if None in row else classes[label], "probabilities": dict(zip(names, row, strict=True))}
            for label, row in zip(labels.tolist(), _listed(probabilities), strict=True)
        ]

    @property
    def explains_quickly(self) -> bool:
        """Whether an explanation takes about as long as a prediction."""
        return bool(self.meta["explanation"]["method"] != "approximate")

    def explain(self, rows: Rows) -> dict[str, Any]:
        """Return what each column contributed to the predictions; the bundle must have an explainer.

        Returns:
            `method`, `scale`, `baseline`, and for each row in `contributions` a number by column. Of two classes, they
            are about the second, which is `class`; of several, each number is an object of one number by class.
        """
        assert self.explainer is not None
        contributions = self.explainer.explain(self.encoder.encode(rows))
        names = [column.name for column in self.contract.features]
        show: Callable[[list[Any]], Any] = _first
        if self.contract.problem == "multiclass":
            show = self._by_class
        about = {"method": self.meta["explanation"]["method"], "scale": self.meta["explanation"]["scale"]}
        if self.contract.problem == "binary":
            about["class"] = (self.contract.classes or ())[1]
        return about | {
            "baseline": show(_listed(self.explainer.baseline)),
            "contributions": [dict(zip(names, map(show, row), strict=True)) for row in _listed(contributions)],
        }

    def _by_class(self, numbers: list[Any]) -> dict[str, Any]:
        return dict(zip(self.class_names or (), numbers, strict=True))


def load_bundle(folder: Path, digest: str | None = None) -> Bundle:
    """Load a bundle and test it with its own example.

    Args:
        folder: The bundle.
        digest: The expected SHA-256 of its content, or the first characters of it; None to skip the check.

    Raises:
        BundleError: the bundle is incomplete, was changed, has an unknown format, or fails on its example.
    """
    try:
        if digest is not None and not digest_folder(folder).startswith(digest):
            raise BundleError(f"the content of {folder} is not what was deployed (its digest differs)")
        bundle = _load(folder)
        example = (bundle.meta.get("example") or {}).get("rows")
        if example:
            rows = bundle.parse(json.dumps({"rows": example[: bundle.limits.max_rows]}).encode())
            bundle.predict(rows)
            if bundle.explainer is not None:
                bundle.explain(rows)
    except BundleError:
        raise
    except Exception as error:  # a library may raise anything on a broken file, and the old bundle must stay
        reason = str(error).splitlines()[0] if str(error) else ""
        raise BundleError(f"{folder} cannot be loaded: {type(error).__name__}: {reason}") from error
    return bundle


def _load(folder: Path) -> Bundle:
    meta = _read_json(folder / "meta.json")
    document = _read_json(folder / "contract.json")
    if meta.get("format") != 1 or document.get("format") != 1:
        raise BundleError(f"{folder} has a format that this service does not know: update the project")
    contract = read_contract(document)
    settings = meta.get("settings") or {}
    limits = read_limits(settings)
    request_type = compile_request(contract, limits.max_rows)
    version = str(meta["version"])
    recorder = Recorder(contract, version, folder, read_rules(settings.get("log") or {}))
    runtime = _open_runtime(folder, meta, contract)
    return Bundle(
        folder=folder,
        version=version,
        meta=meta,
        document=document,
        contract=contract,
        request_type=request_type,
        encoder=Encoder(contract.features),
        runtime=runtime,
        class_names=None if contract.classes is None else tuple(label_key(c) for c in contract.classes),
        known=tuple(
            (i, c.name, frozenset((*c.encoding["known"], None, "")))
            for i, c in enumerate(contract.features)
            if c.encoding.get("known") is not None
        ),
        recorder=recorder,
        reader=Reader(contract, request_type, limits.max_rows),
        limits=limits,
        explainer=_open_explainer(folder, meta, contract, runtime),
    )


def _open_explainer(folder: Path, meta: dict[str, Any], contract: Contract, runtime: Runtime) -> Explainer | None:
    if not (about := meta.get("explanation")):
        return None

    def run(tensors: Tensors) -> NDArray[Any]:
        values, probabilities = runtime.run(tensors)
        return select_outputs(contract.problem, values if probabilities is None else probabilities)

    encode = None if about["method"] == "approximate" else OnnxEncoder(folder / "explanation.onnx")
    with np.load(folder / "explanation.npz", allow_pickle=False) as arrays:
        return make_explainer(about["method"], arrays, contract.features, encode, run)


def _open_runtime(folder: Path, meta: dict[str, Any], contract: Contract) -> Runtime:
    if meta.get("runtime", "onnx") == "onnx":
        inputs = [key for _, key, _ in contract.inputs]
        return OnnxRuntime(folder / "model.onnx", inputs, contract.problem == "regression")
    # Before OpenMP is loaded: its threads fight each other under concurrent requests.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from ondol_serving.sklearn_runtime import SklearnRuntime

    return SklearnRuntime(folder / "model.skops", contract, list(meta.get("trusted", [])))


def _read_json(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise BundleError(f"{path} is not a JSON object")
    return document


def _listed(numbers: NDArray[Any]) -> list[Any]:
    """Return the array as lists; JSON has no NaN, so a number that is not finite becomes None."""
    if np.isfinite(numbers).all():
        return list(numbers.tolist())
    hidden = numbers.astype(object)
    hidden[~np.isfinite(numbers)] = None
    return list(hidden.tolist())


def _first(numbers: list[Any]) -> Any:
    return numbers[0]
