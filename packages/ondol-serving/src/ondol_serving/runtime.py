"""Runs the compiled model in ONNX Runtime."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Tensors = dict[str, NDArray[Any]]


class Runtime(Protocol):
    """The interface that runs a model on tensors."""

    slow: bool  # whether one row takes milliseconds and must not block the event loop

    def run(self, tensors: Tensors) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return labels [N] (indexes of classes) and probabilities [N, K], or values [N] and None."""
        ...


class OnnxRuntime:
    """A session with one thread: the workers run in parallel, and several threads each would compete."""

    slow = False

    def __init__(self, model: Path, inputs: list[str], regression: bool) -> None:
        """Load `model` and check that its inputs are `inputs`.

        Raises:
            ValueError: the model's inputs or outputs differ from the contract.
            onnxruntime's errors: the file is not a model.
        """
        self._session = open_session(model)
        self._outputs = ["value"] if regression else ["label", "probabilities"]
        found = [i.name for i in self._session.get_inputs()]
        if set(found) - set(inputs):
            raise ValueError(f"the model expects the inputs {sorted(set(found) - set(inputs))}")
        if set(self._outputs) - {o.name for o in self._session.get_outputs()}:
            raise ValueError(f"the model does not return the outputs {self._outputs}")
        self._unused = sorted(set(inputs) - set(found))

    def run(self, tensors: Tensors) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return labels [N] and probabilities float32 [N, K], or values float32 [N] and None."""
        for name in self._unused:  # a converter drops inputs that the features do not use
            del tensors[name]
        results = self._session.run(self._outputs, tensors)
        if len(results) == 1:
            return np.asarray(results[0]).reshape(-1), None
        return results[0], results[1]


class OnnxEncoder:
    """The part of a model before its trees or coefficients: from the tensors to one matrix."""

    def __init__(self, model: Path) -> None:
        """Load `model`."""
        self._session = open_session(model)
        self._inputs = [value.name for value in self._session.get_inputs()]

    def __call__(self, tensors: Tensors) -> NDArray[Any]:
        """Return the matrix float32 [N, numbers]."""
        matrix: NDArray[Any] = self._session.run(None, {name: tensors[name] for name in self._inputs})[0]
        return matrix


def open_session(model: Path) -> "InferenceSession":
    """Open a model for one thread.

    Raises:
        onnxruntime's errors: the file is not a model.
    """
    # Otherwise it reports to Microsoft; the variable is read at import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
