"""Converts a fitted pipeline to ONNX with the inputs and outputs that the bundle's format names."""

import warnings
from typing import TYPE_CHECKING, Any

from flows.compiling.prepare import BY_SKLEARN, prepare_copy
from flows.contract import Contract
from flows.errors import UserError

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = {"": 21, "ai.onnx.ml": 3}


def compile_model(pipeline: Any, contract: Contract) -> bytes:
    """Return a fitted pipeline as serialized ONNX, opened once to prove that it loads.

    Args:
        pipeline: Fitted on `encode(contract, frame)` and class indexes, or values.
        contract: With encodings; its features are the inputs `c0`, `c1`, … in order, each [N, 1]. The outputs are
            `label` (int64 [N]) and `probabilities` (float32 [N, K]), or `value` (float32 [N, 1]).

    Raises:
        UserError: a part has no converter, or would convert wrongly.
    """
    model = _convert(prepare_copy(pipeline), contract)
    names = ("value",) if contract.classes is None else ("label", "probabilities")
    if len(model.graph.output) != len(names):
        raise UserError(f"The compiled model has {len(model.graph.output)} outputs, not {len(names)}: {BY_SKLEARN}.")
    _rename_outputs(model, dict(zip([o.name for o in model.graph.output], names, strict=True)))
    content = bytes(model.SerializeToString(deterministic=True))
    _open(content)
    return content


def _convert(pipeline: Any, contract: Contract) -> "ModelProto":
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    types = {"float32": FloatTensorType, "string": StringTensorType}
    inputs = [(c.input, types[c.encoding.tensor]([None, 1])) for c in contract.features if c.encoding]
    options = {} if contract.classes is None else {id(pipeline): {"zipmap": False}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=DeprecationWarning)  # of the converter's own calls
            return to_onnx(pipeline, initial_types=inputs, options=options, target_opset=OPSET)
    except (MissingConverter, MissingShapeCalculator) as error:
        raise UserError(f"The model has a part that cannot be compiled ({_name(error)}): {BY_SKLEARN}.") from error
    except (RuntimeError, TypeError, ValueError, NotImplementedError, KeyError, AttributeError, IndexError) as error:
        said = (str(error).splitlines() or [""])[0][:300]
        raise UserError(f"The model cannot be compiled to ONNX ({type(error).__name__}: {said}): {BY_SKLEARN}.") from error


def _name(error: Exception) -> str:
    """Return the class that the converter's error is about."""
    words = [word.strip("'\".,") for word in str(error).split()]
    return next((word for word in words if "." in word or word.istitle()), words[0] if words else "unknown")


def _rename_outputs(model: "ModelProto", names: dict[str, str]) -> None:
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            node.output[i] = names.get(name, name)
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
    for output in model.graph.output:
        output.name = names[output.name]


def _open(content: bytes) -> None:
    import onnxruntime

    try:
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base
        said = (str(error).splitlines() or [""])[0][:300]
        raise UserError(f"The compiled model does not load in ONNX Runtime ({said}): {BY_SKLEARN}.") from error
