"""Converts a fitted pipeline to ONNX with the inputs and outputs that the bundle's format names."""

import importlib
import importlib.util
import re
import warnings
from typing import TYPE_CHECKING, Any

from ondol.contract import Contract
from ondol.deployment.graph import break_ties, name_values
from ondol.deployment.prepare import prepare_copy
from ondol.deployment.refuse import BY_SKLEARN, refuse_unfaithful
from ondol.deployment.targets import convert_targets, shape_targets
from ondol.deployment.trees import tree_converters
from ondol.errors import UserError
from ondol.evaluation.scoring import open_session
from ondol.training.pipelines import final_estimator

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = {"": 21, "ai.onnx.ml": 3}
OWN_CONVERTERS = "model.converters"
FORESTS = ("RandomForestClassifier", "ExtraTreesClassifier", "BaggingClassifier", "DecisionTreeClassifier")


def compile_model(pipeline: Any, contract: Contract) -> bytes:
    """Return a fitted pipeline as serialized ONNX, opened once to prove that it loads.

    The same pipeline gives the same bytes. An estimator of your own needs a converter, registered by
    `skl2onnx.update_registered_converter` in `model/converters.py`, which is imported first where it exists.

    Args:
        pipeline: Fitted on `encode(contract, frame)` and class indexes, or values.
        contract: With encodings; its inputs are `c0`, `c1`, …, `c1_month`, … in order, each [N, 1]. The outputs are
            `label` (int64 [N]) and `probabilities` (float32 [N, K]), or `value` (float32 [N, 1]).

    Raises:
        UserError: a part has no converter, or would convert wrongly.
    """
    refuse_unfaithful(pipeline, contract)
    _import_own_converters()
    model = _convert(_merge_inputs(prepare_copy(pipeline), contract), contract)
    names = ("value",) if contract.classes is None else ("label", "probabilities")
    if len(model.graph.output) != len(names):
        raise UserError(f"The compiled model has {len(model.graph.output)} outputs, not {len(names)}: {BY_SKLEARN}.")
    name_values(model.graph, names)
    if contract.classes is not None and type(final_estimator(pipeline)).__name__ in FORESTS:
        break_ties(model.graph)
    content = bytes(model.SerializeToString(deterministic=True))
    _open(content)
    return content


def _import_own_converters() -> None:
    if importlib.util.find_spec("model") is not None and importlib.util.find_spec(OWN_CONVERTERS) is not None:
        importlib.import_module(OWN_CONVERTERS)


def _merge_inputs(pipeline: Any, contract: Contract) -> Any:
    """Put a step that joins the columns in front of a pipeline that takes them as one matrix."""
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer

    first = pipeline
    while isinstance(getattr(first, "steps", None), list):
        first = first.steps[0][1]
    tensors = {made.tensor for made in contract.inputs}
    if hasattr(first, "transformers_") or hasattr(first, "transformer_list") or tensors != {"float32"}:
        return pipeline
    return Pipeline([("columns", FunctionTransformer()), ("model", pipeline)])


def _convert(pipeline: Any, contract: Contract) -> "ModelProto":
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator
    from sklearn.preprocessing import TargetEncoder

    types = {"float32": FloatTensorType, "string": StringTensorType}
    inputs = [(made.key, types[made.tensor]([None, 1])) for made in contract.inputs]
    try:
        with warnings.catch_warnings():
            for old in (DeprecationWarning, FutureWarning):  # of the converter's own calls
                warnings.filterwarnings("ignore", category=old, module=r"(skl2onnx|sklearn|onnx|numpy)\b")
            return convert_sklearn(
                pipeline,
                name="model",
                initial_types=inputs,
                options=_options(pipeline, contract),
                target_opset=OPSET,
                custom_conversion_functions=tree_converters() | {TargetEncoder: convert_targets},
                custom_shape_calculators={TargetEncoder: shape_targets},
            )
    except (MissingConverter, MissingShapeCalculator) as error:
        raise UserError(
            f"{_class_named(error)} has no converter to ONNX: register one in model/converters.py "
            f"(skl2onnx.update_registered_converter), take another class, or {BY_SKLEARN}."
        ) from error
    except Exception as error:  # the converter raises whatever a part makes it stumble over
        said = (str(error).splitlines() or [""])[0][:300].rstrip(".")
        raise UserError(
            f"The model cannot be compiled to ONNX ({type(error).__name__}: {said}): {BY_SKLEARN}."
        ) from error


def _options(pipeline: Any, contract: Contract) -> dict[Any, dict[str, Any]]:
    """Return how to convert: matrices of probabilities, and scaling by the very division that training used."""
    from sklearn.preprocessing import RobustScaler, StandardScaler

    options: dict[Any, dict[str, Any]] = {StandardScaler: {"div": "div"}, RobustScaler: {"div": "div"}}
    return options if contract.classes is None else options | {id(pipeline): {"zipmap": False}}


def _class_named(error: Exception) -> str:
    """Return the class that the converter's error is about."""
    found = re.search(r"<class '(?:[\w.]*\.)?(\w+)'>", str(error))
    return found[1] if found else "A part of the model"


def _open(content: bytes) -> None:
    try:
        open_session(content)
    except Exception as error:  # onnxruntime's own exceptions share no base
        said = (str(error).splitlines() or [""])[0][:300]
        raise UserError(f"The compiled model does not load in ONNX Runtime ({said}): {BY_SKLEARN}.") from error
