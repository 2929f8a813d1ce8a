"""Converts a fitted scikit-learn pipeline to ONNX, refuses what cannot be converted exactly, and verifies the result.

skl2onnx 1.20 cannot convert TargetEncoder for more than two classes, and its converter looks up each value once for
every number of the encoding.

skl2onnx is silently wrong in some cases: it rewrites column names and rounds thresholds upwards to float32. Both are
corrected here on a copy that shares the fitted trees and arrays with the original. skl2onnx 1.20 converts
`missing_go_to_left` only for HistGradientBoosting: in other trees a missing value goes right, without an error, so this
module has converters for trees and forests.

The compiled model is verified on the holdout, on rows with missing and unknown values, and on rows with the most
extreme values that the contract allows, because the service answers them as well.
"""

import copy
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel

from ondol.contract import Column, Contract, encode
from ondol.deployment.converters import BY_SKLEARN, OPSET, floor_to_float32, register_converters
from ondol.errors import UserError
from ondol.evaluation.scoring import CHUNK, Scorer, open_session
from ondol.project import OWN_ERRORS, describe_error, import_extension, place_in_project
from ondol.training.pipeline import final_estimator, parts_of
from ondol_serving.decision import DecisionRule, decide, measure_margins, scale_costs

if TYPE_CHECKING:
    from onnx import ModelProto


def convert_targets(scope: Any, operator: Any, container: Any) -> None:
    """Convert TargetEncoder: look up each text's position once, and take that row of numbers, one per class."""
    from onnx import TensorProto
    from skl2onnx.common._registration import get_converter
    from skl2onnx.common.data_types import StringTensorType

    if not all(isinstance(given.type, StringTensorType) for given in operator.inputs):
        get_converter(operator.type)(scope, operator, container)
        return
    encoder, names = operator.raw_operator, []
    for place, column in enumerate(_columns(scope, operator, container)):
        codes, made = (scope.get_unique_variable_name(name) for name in ("codes", "encoded"))
        keys = [str(text).encode() for text in encoder.categories_[place]]
        values = list(range(len(keys)))
        look = {"keys_strings": keys, "values_int64s": values, "default_int64": len(keys), "op_domain": "ai.onnx.ml"}
        container.add_node("LabelEncoder", column, codes, op_version=2, name=_name(scope), **look)
        table = _table(encoder, place)
        numbers, shape = (scope.get_unique_variable_name(name) for name in ("numbers", "shape"))
        container.add_initializer(numbers, TensorProto.FLOAT, list(table.shape), table.ravel().tolist())
        container.add_initializer(shape, TensorProto.INT64, [2], [-1, table.shape[1]])
        container.add_node("Gather", [numbers, codes], f"{made}_rows", name=_name(scope), axis=0)
        container.add_node("Reshape", [f"{made}_rows", shape], made, name=_name(scope), op_version=14)
        names.append(made)
    container.add_node("Concat", names, operator.outputs[0].full_name, name=_name(scope), axis=1, op_version=13)


def shape_targets(operator: Any) -> None:
    """Declare the number of outputs for each row."""
    from skl2onnx.common.data_types import FloatTensorType

    encoder = operator.raw_operator
    width = len(encoder.categories_) * _table(encoder, 0).shape[1]
    operator.outputs[0].type = FloatTensorType([operator.inputs[0].get_first_dimension(), width])


def _columns(scope: Any, operator: Any, container: Any) -> list[str]:
    """Return the names of the single columns in the inputs."""
    from onnx import TensorProto

    columns = []
    for given in operator.inputs:
        if given.get_second_dimension() == 1:
            columns.append(given.full_name)
            continue
        for place in range(given.get_second_dimension()):
            index, name = (scope.get_unique_variable_name(name) for name in ("place", "column"))
            container.add_initializer(index, TensorProto.INT64, [1], [place])
            container.add_node("Gather", [given.full_name, index], name, name=_name(scope), axis=1)
            columns.append(name)
    return columns


def _table(encoder: Any, place: int) -> np.ndarray:
    """Return the encodings of one column's values, [values + 1, classes]; the last row is for unknown values."""
    kinds = len(encoder.classes_) if encoder.target_type_ == "multiclass" else 1
    known = np.stack(encoder.encodings_[place * kinds : (place + 1) * kinds], axis=1)
    return np.vstack([known, np.reshape(encoder.target_mean_, (1, kinds))]).astype(np.float32)


def _name(scope: Any) -> str:
    return scope.get_unique_operator_name("TargetEncoder")


def convert_formulas(scope: Any, operator: Any, container: Any) -> None:
    """Convert each formula to ONNX operators; results that are not finite become NaN."""
    from onnx import TensorProto

    from ondol.training.formulas import COMPARISONS, evaluate_formula

    formulas, columns = operator.raw_operator, _columns(scope, operator, container)

    def add(name: str, inputs: Sequence[str], **attributes: Any) -> str:
        made = str(scope.get_unique_variable_name("formula"))
        container.add_node(name, list(inputs), made, name=scope.get_unique_operator_name("Formula"), **attributes)
        return made

    def add_number(value: float, kind: int = TensorProto.DOUBLE) -> str:
        made = str(scope.get_unique_variable_name("number"))
        container.add_initializer(made, kind, [1], [value])
        return made

    def cast(value: str, kind: int = TensorProto.DOUBLE) -> str:
        return add("Cast", [value], to=kind)

    def compute(name: str, values: Sequence[Any]) -> str:
        if name == "Constant":
            return add_number(values[0])
        if name in COMPARISONS:
            return cast(add(name, [cast(value, TensorProto.FLOAT) for value in values]))
        return add(name, values)

    real = [
        add("Add", [add("Mul", [cast(column), add_number(scale)]), add_number(offset)])
        for column, (offset, scale) in zip(columns, formulas.encodings_, strict=True)
    ]
    made, missing = list(columns), add_number(math.nan, TensorProto.FLOAT)
    for tree in formulas.trees():
        value = cast(evaluate_formula(tree, formulas.columns_, real, compute), TensorProto.FLOAT)
        made.append(add("Where", [add("IsInf", [value]), missing, value]))
    container.add_node("Concat", made, operator.outputs[0].full_name, name=_name(scope), axis=1, op_version=13)


def shape_formulas(operator: Any) -> None:
    """Declare the number of columns."""
    from skl2onnx.common.data_types import FloatTensorType

    formulas = operator.raw_operator
    width = len(formulas.columns_) + len(formulas.formulas)
    operator.outputs[0].type = FloatTensorType([operator.inputs[0].get_first_dimension(), width])


GRID = 2.0**20  # smaller differences of probabilities count as ties: a forest's votes, summed as float32, are not exact


def name_values(graph: Any, outputs: tuple[str, ...]) -> None:
    """Rename every value: inputs stay, outputs become `outputs`, the rest `v0`, `v1`, … in order.

    The converter numbers values across all models of a process, so its names would differ from run to run.
    """
    names = {value.name: value.name for value in graph.input}
    names |= {value.name: new for value, new in zip(graph.output, outputs, strict=True)}
    names[""] = ""  # an optional input that is left out
    _rename(graph, names)


def break_ties(graph: Any) -> None:
    """Give `label` to the first of equally probable classes, as scikit-learn does."""
    from onnx.helper import make_node

    nodes = [
        make_node("Mul", ["probabilities", "grid"], ["scaled"]),
        make_node("Round", ["scaled"], ["rounded"]),
        make_node("ArgMax", ["rounded"], ["label"], axis=1, keepdims=0),
    ]
    _replace_label(graph, nodes, {"grid": np.array(GRID, np.float32)})


def apply_rule(graph: Any, rule: DecisionRule) -> None:
    """Decide `label` by the rule of the contract."""
    from onnx import TensorProto
    from onnx.helper import make_node

    if rule.threshold is None:
        nodes = [
            make_node("MatMul", ["probabilities", "costs"], ["expected"]),
            make_node("Round", ["expected"], ["rounded"]),
            make_node("ArgMin", ["rounded"], ["label"], axis=1, keepdims=0),
        ]
        _replace_label(graph, nodes, {"costs": scale_costs(rule).astype(np.float32)})
        return
    nodes = [
        make_node("Gather", ["probabilities", "second"], ["score"], axis=1),
        make_node("GreaterOrEqual", ["score", "threshold"], ["reached"]),
        make_node("Cast", ["reached"], ["label"], to=TensorProto.INT64),
    ]
    values: dict[str, Any] = {"second": np.array(1, np.int64), "threshold": np.array(rule.threshold, np.float32)}
    _replace_label(graph, nodes, values)


def _replace_label(graph: Any, nodes: Sequence[Any], values: Mapping[str, np.ndarray]) -> None:
    """Let `nodes`, with the constants `values`, compute the output `label`."""
    from onnx import TensorProto, helper, numpy_helper

    for node in graph.node:
        node.output[:] = ["unused_label" if name == "label" else name for name in node.output]
    graph.node.extend(nodes)
    graph.initializer.extend([numpy_helper.from_array(value, name) for name, value in values.items()])
    label = next(value for value in graph.output if value.name == "label")
    label.CopyFrom(helper.make_tensor_value_info("label", TensorProto.INT64, [None]))


def _rename(graph: Any, names: dict[str, str]) -> None:
    graph.name = "model"
    del graph.value_info[:]
    for value in (*graph.input, *graph.initializer, *graph.output):
        value.name = _new_name(value.name, names)
    for node in graph.node:
        node.name = ""
        node.input[:] = [_new_name(name, names) for name in node.input]
        node.output[:] = [_new_name(name, names) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)


def _new_name(name: str, names: dict[str, str]) -> str:
    return names.setdefault(name, f"v{len(names)}")


def prepare_copy(pipeline: Any) -> Any:
    """Return a copy of `pipeline` that skl2onnx converts correctly."""
    made = copy.deepcopy(pipeline, _shared(pipeline))
    for part in list(parts_of(made)):
        if hasattr(part, "transformers_") and hasattr(part, "_transformer_to_input_indices"):
            _number_columns(part)
        if hasattr(part, "_predictors"):
            _floor_thresholds(part)
        if isinstance(getattr(part, "steps", None), list):
            part.steps = [step for step in part.steps if step[1] is not None and step[1] != "passthrough"]
        if hasattr(part, "flatten_transform"):  # affects only VotingClassifier.transform
            part.flatten_transform = False
        if hasattr(part, "_weights_not_none") and part.weights is not None:  # a list, which the converter cannot add up
            part.weights = np.asarray(part.weights, np.float64)
        part.__dict__.pop("feature_names_in_", None)
    return made


def _shared(pipeline: Any) -> dict[int, Any]:
    """Return the memo with which a deep copy shares trees and arrays, which may take gigabytes."""
    from sklearn.tree._tree import Tree

    values = [value for part in parts_of(pipeline) for value in vars(part).values()]
    return {id(v): v for v in values if isinstance(v, Tree) or (isinstance(v, np.ndarray) and v.dtype != object)}


def _number_columns(transformer: Any) -> None:
    """Replace column names by positions: the converter mixes up names such as `a b` and `a_b`."""
    places = transformer._transformer_to_input_indices
    transformer.transformers_ = [(name, step, list(places[name])) for name, step, _ in transformer.transformers_]


def _floor_thresholds(boosting: Any) -> None:
    for stage in boosting._predictors:
        for predictor in stage:
            predictor.nodes = predictor.nodes.copy()
            thresholds = predictor.nodes["num_threshold"]
            finite = np.isfinite(thresholds)
            thresholds[finite] = floor_to_float32(thresholds[finite])


def refuse_unfaithful(pipeline: Any, contract: Contract) -> None:
    """Check a fitted pipeline for parts that convert wrongly.

    Raises:
        UserError: there is one; the message names a replacement.
    """
    if contract.classes is not None:
        _refuse_unsure(pipeline, contract)
    for part in parts_of(pipeline):
        for problem, remedy in _problems(part):
            raise UserError(
                f"{type(part).__name__} {problem} cannot be converted correctly: {remedy}, or {BY_SKLEARN}."
            )
    for column in _numbers_as_categories(pipeline, contract):
        raise UserError(
            f'OneHotEncoder on the column "{column.name}" cannot be converted correctly, because its numbers need not '
            f"be whole: declare it as int in model/schema.py or use KBinsDiscretizer, or {BY_SKLEARN}."
        )


def _refuse_unsure(pipeline: Any, contract: Contract) -> None:
    """Refuse a classifier without probabilities, or one that has not seen every class."""
    final = final_estimator(pipeline)
    if not hasattr(pipeline, "predict_proba"):
        raise UserError(
            f"{type(final).__name__} in model/estimator.py gives no probabilities, which the service answers with: "
            "wrap it in sklearn.calibration.CalibratedClassifierCV."
        )
    known = getattr(pipeline, "classes_", None)
    if known is not None and list(known) != list(range(len(contract.classes or ()))):
        raise UserError(
            f"{type(final).__name__} knows the classes {list(known)} of {contract.classes}: train it again."
        )


def _problems(part: Any) -> Iterator[tuple[str, str]]:
    """Yield the problems of one estimator, each with a remedy."""
    name = type(part).__name__
    native = getattr(part, "is_categorical_", None)
    if native is not None and np.any(native):
        yield (
            "with categorical_features",
            "leave that out and put an OrdinalEncoder in front of it in model/features.py",
        )
    if name == "HistGradientBoostingRegressor" and part.loss in ("poisson", "gamma"):
        yield f'with loss="{part.loss}"', 'use loss="squared_error"'
    if name == "SimpleImputer" and part.add_indicator:
        yield "with add_indicator=True", "leave that out (HistGradientBoosting takes missing values as they are)"
    if name == "OneHotEncoder" and getattr(part, "_infrequent_enabled", False):
        yield "with min_frequency or max_categories", "leave these out, or use OrdinalEncoder, which may have them"
    if name == "OrdinalEncoder" and _loses_missing(part):
        yield "over numbers with missing values", "set its encoded_missing_value=-2"
    if name in ("TunedThresholdClassifierCV", "FixedThresholdClassifier"):
        yield "with its threshold", "use the estimator in it, and [decision] in config.toml for the threshold"


def _loses_missing(encoder: Any) -> bool:
    gaps = any(c.dtype.kind == "f" and len(c) and np.isnan(c[-1]) for c in getattr(encoder, "categories_", ()))
    return gaps and np.isnan(encoder.encoded_missing_value)


def _numbers_as_categories(pipeline: Any, contract: Contract) -> Iterator[Column]:
    """Yield number columns that go directly to a OneHotEncoder: the converter truncates their fractions."""
    features = contract.features  # the parts of dates, behind the columns, are whole numbers
    for part in parts_of(pipeline):
        places = getattr(part, "_transformer_to_input_indices", None)
        if places is None or getattr(part, "n_features_in_", None) != len(contract.inputs):
            continue
        for name, step, _ in part.transformers_:
            if type(_first_step(step)).__name__ == "OneHotEncoder":
                chosen = [features[i] for i in places[name] if i < len(features)]
                yield from (column for column in chosen if not _whole(column))


def _first_step(step: Any) -> Any:
    while isinstance(getattr(step, "steps", None), list):
        step = step.steps[0][1]
    return step


def _whole(column: Column) -> bool:
    rule = column.encoding
    return rule is None or rule.tensor == "string" or column.kind in ("boolean", "integer", "text")


Converter = Callable[[Any, Any, Any], None]
ATTRIBUTE = "nodes_missing_value_tracks_true"


def tree_converters() -> dict[type, Converter]:
    """Return converters by estimator type, for `custom_conversion_functions`."""
    from sklearn import ensemble, tree

    kinds = [
        *(ensemble.RandomForestClassifier, ensemble.RandomForestRegressor),
        *(ensemble.ExtraTreesClassifier, ensemble.ExtraTreesRegressor),
        *(tree.DecisionTreeClassifier, tree.DecisionTreeRegressor, tree.ExtraTreeClassifier, tree.ExtraTreeRegressor),
    ]
    return dict.fromkeys(kinds, convert_tree)


def convert_tree(scope: Any, operator: Any, container: Any) -> None:
    """Convert a tree or forest with skl2onnx, then set the direction of missing values."""
    from skl2onnx.common._registration import get_converter

    before = len(container.nodes)
    get_converter(operator.type)(scope, operator, container)
    model = operator.raw_operator
    trees = [made.tree_ for made in getattr(model, "estimators_", [model])]
    flags = np.concatenate([_left(tree) for tree in trees])
    for node in container.nodes[before:]:
        if node.op_type.startswith("TreeEnsemble"):
            _set_flags(node, flags)


def _left(tree: Any) -> np.ndarray:
    return np.where(tree.children_left >= 0, tree.missing_go_to_left, 0).astype(np.int64)


def _set_flags(node: Any, flags: np.ndarray) -> None:
    attribute = next(a for a in node.attribute if a.name == ATTRIBUTE)
    if len(attribute.ints) != len(flags):
        raise RuntimeError(f"{node.op_type} has {len(attribute.ints)} nodes and the trees have {len(flags)}")
    del attribute.ints[:]
    attribute.ints.extend(flags.tolist())


FORESTS = ("RandomForestClassifier", "ExtraTreesClassifier", "BaggingClassifier", "DecisionTreeClassifier")


def compile_model(pipeline: Any, contract: Contract) -> bytes:
    """Return a fitted pipeline as serialized ONNX, opened once to check that it loads.

    The same pipeline gives the same bytes. A custom estimator needs a converter, registered with
    `skl2onnx.update_registered_converter` in `model/converters.py`, which is imported first if it exists.

    Args:
        pipeline: Fitted on `encode(contract, frame)` and class indexes, or values.
        contract: With encodings; its inputs are `c0`, `c1`, …, `c1_month`, … in order, each [N, 1]. The outputs are
            `label` (int64 [N]) and `probabilities` (float32 [N, K]), or `value` (float32 [N, 1]).

    Raises:
        UserError: a part has no converter or would be converted wrongly, or a converter of the project fails.
    """
    refuse_unfaithful(pipeline, contract)
    import_extension("converters")
    register_converters(pipeline)
    model = _convert(_merge_inputs(prepare_copy(pipeline), contract), contract)
    names = ("value",) if contract.classes is None else ("label", "probabilities")
    if len(model.graph.output) != len(names):
        raise UserError(f"The compiled model has {len(model.graph.output)} outputs, not {len(names)}: {BY_SKLEARN}.")
    name_values(model.graph, names)
    if contract.decision is not None:
        apply_rule(model.graph, contract.decision)
    elif contract.classes is not None and type(final_estimator(pipeline)).__name__ in FORESTS:
        break_ties(model.graph)
    content = bytes(model.SerializeToString(deterministic=True))
    _open(content)
    return content


def _merge_inputs(pipeline: Any, contract: Contract) -> Any:
    """Insert a step that joins the columns before a pipeline that takes one matrix."""
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

    from ondol.training.formulas import Formulas

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
                custom_conversion_functions=tree_converters()
                | {TargetEncoder: convert_targets, Formulas: convert_formulas},
                custom_shape_calculators={TargetEncoder: shape_targets, Formulas: shape_formulas},
            )
    except (MissingConverter, MissingShapeCalculator) as error:
        raise UserError(_explain_missing(error)) from error
    except OWN_ERRORS as error:  # a converter may raise any error
        if place := place_in_project(error):
            raise UserError(f"A converter of the project failed: {describe_error(error)}{place}.") from error
        message = (str(error).splitlines() or [""])[0][:300].rstrip(".")
        raise UserError(
            f"The model cannot be compiled to ONNX ({type(error).__name__}: {message}): {BY_SKLEARN}."
        ) from error


def _options(pipeline: Any, contract: Contract) -> dict[Any, dict[str, Any]]:
    """Return the options of conversion: matrices of probabilities, and scaling by division as in training."""
    from sklearn.preprocessing import RobustScaler, StandardScaler

    options: dict[Any, dict[str, Any]] = {StandardScaler: {"div": "div"}, RobustScaler: {"div": "div"}}
    return options if contract.classes is None else options | {id(pipeline): {"zipmap": False}}


def _explain_missing(error: Exception) -> str:
    """Return a sentence on the class that has no converter; the service has no code of classes outside scikit-learn."""
    found = re.search(r"<class '([\w.]+)'>", str(error))
    name = found[1] if found else "A part of the model"
    register = "give it a method to_onnx, register one in model/converters.py (skl2onnx.update_registered_converter)"
    otherwise = f", use another class, or {BY_SKLEARN}" if name.startswith("sklearn.") else " or use another class"
    return f"{name.rpartition('.')[2]} has no converter to ONNX: {register}{otherwise}."


def _open(content: bytes) -> None:
    try:
        open_session(content)
    except Exception as error:  # onnxruntime's exceptions have no common base class
        message = (str(error).splitlines() or [""])[0][:300]
        raise UserError(f"The compiled model does not load in ONNX Runtime ({message}): {BY_SKLEARN}.") from error


FLOAT32 = float(np.finfo(np.float32).max)
REACH = 3.4028234e38  # the largest number that the service accepts, before scaling
BEYOND = 1e30  # sums of products may overflow float32 from here on
FAR = (10.0, 1e3, 1e6)  # times the span of the column's own values
LARGE = (1e6, 1e12, 1e20, 1e30)
DATES = ("0001-01-01", "1900-01-01", "1970-01-01", "2100-01-01", "9999-12-31T23:59:59")
LONGEST_SECONDS = 1e11
TEXTS = ("never seen ☃", "x" * 1000, "0", "nan")
MOST_CATEGORIES, MOST_ALONE, TOGETHER = 5, 3000, 100


class Extremes(NamedTuple):
    """Rows with extreme values.

    Attributes:
        rows: The features; numbers as float64.
        together: Whether several values of the row are extreme.
        columns: The column with the extreme value; empty if there are several.
    """

    rows: pd.DataFrame
    together: np.ndarray
    columns: list[str]


def make_extremes(contract: Contract, frame: pd.DataFrame) -> Extremes:
    """Return rows of `frame` with extreme values: up to 3,000 rows with one each, then a hundred with several each.

    Args:
        contract: With encodings.
        frame: Rows in the contract's dtypes.
    """
    names = [column.name for column in contract.features]
    values = {column.name: list(_extremes_of(column, frame[column.name])) for column in contract.features}
    changes = [(name, value) for name in names for value in values[name]]
    if not changes or frame.empty:
        return Extremes(frame.iloc[:0], np.zeros(0, bool), [])
    if len(changes) > MOST_ALONE:
        changes = [changes[place] for place in np.linspace(0, len(changes) - 1, MOST_ALONE).astype(int)]
    rng = np.random.default_rng(0)
    sets = [{name: value} for name, value in changes]
    sets += [{name: picked[0] for name, picked in values.items() if picked}]
    sets += [{name: picked[-1] for name, picked in values.items() if picked}]
    sets += [
        {name: picked[rng.integers(len(picked))] for name, picked in values.items() if picked} for _ in range(TOGETHER)
    ]
    base = frame[names].iloc[np.linspace(0, len(frame) - 1, len(sets)).astype(int)].reset_index(drop=True)
    columns = {column.name: _put(column, base[column.name], sets) for column in contract.features}
    together = np.arange(len(sets)) >= len(changes)
    return Extremes(pd.DataFrame(columns), together, [name for name, _ in changes] + [""] * (len(sets) - len(changes)))


def name_extreme(extremes: Extremes, place: int) -> str:
    """Return the extreme value of a row as text, such as `"age" = 1e+30`."""
    name = extremes.columns[place]
    if not name:
        return "several at once"
    value = extremes.rows[name].iloc[place]
    shown = f"{value:g}" if isinstance(value, float) else f"{value}"[:40]
    return f'"{name}" = {shown}'


def _put(column: Column, base: "pd.Series[Any]", sets: list[dict[str, Any]]) -> "pd.Series[Any]":
    """Return a column with the given values inserted."""
    if column.kind in ("number", "integer"):
        made = base.to_numpy(np.float64, na_value=np.nan).copy()
    elif column.kind in ("date", "duration"):
        made = base.to_numpy(f"{base.dtype.kind}8[us]").copy()
    else:
        made = base.to_numpy(object).copy()
    for place, values in enumerate(sets):
        if column.name in values:
            made[place] = values[column.name]
    return pd.Series(made, dtype=base.dtype if made.dtype == object else made.dtype)


def _extremes_of(column: Column, values: "pd.Series[Any]") -> Iterator[Any]:
    """Yield the allowed extreme values of a column, in order."""
    if column.nullable:
        yield (
            np.datetime64("NaT", "us")
            if column.kind == "date"
            else (np.timedelta64("NaT", "us") if column.kind == "duration" else np.nan if _is_number(column) else None)
        )
    if column.categories is not None:
        yield from column.categories[:MOST_CATEGORIES]
    elif column.kind == "boolean":
        yield from (False, True)
    elif column.kind == "text":
        yield from TEXTS
    elif column.kind == "date":
        for moment in (np.datetime64(text, "us") for text in DATES):
            if _is_allowed(column, float(moment.astype(np.int64)) / 1e6):
                yield moment
        yield from (np.datetime64(round(bound * 1e6), "us") for bound in _bounds(column, 1e-6))
    elif column.kind == "duration":
        for seconds in sorted({-LONGEST_SECONDS, -86400.0, 0.0, 86400.0, LONGEST_SECONDS, *_bounds(column, 1e-6)}):
            if _is_allowed(column, seconds):
                yield np.timedelta64(round(seconds * 1e6), "us")
    else:
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        yield from (number for number in sorted(_numbers(column, numbers)) if _is_allowed(column, number))


def _numbers(column: Column, known: np.ndarray) -> set[float]:
    """Return extreme numbers, allowed or not: bounds, zero, numbers far from known ones, the service's limits."""
    rule, step = column.encoding, 1.0 if column.kind == "integer" else 0.0
    offset, reach = (rule.offset, REACH * rule.scale) if rule else (0.0, REACH)
    made = {0.0, 1.0, -1.0, offset - reach, offset + reach, *_bounds(column, step), *LARGE, *(-n for n in LARGE)}
    known = known[np.isfinite(known)]
    if len(known):
        low, high = float(known.min()), float(known.max())
        with np.errstate(over="ignore"):
            far = {end + sign * times * (high - low) for times in FAR for end, sign in ((low, -1), (high, 1))}
        made |= {low, high} | far
    inside = {number for number in made if np.isfinite(number) and offset - reach <= number <= offset + reach}
    return {float(np.floor(number)) for number in inside} if step else inside


def _is_number(column: Column) -> bool:
    return column.kind in ("number", "integer")


def _bounds(column: Column, step: float) -> list[float]:
    """Return the smallest and the largest allowed number, if there are bounds."""
    low, high = column.exclusive_minimum, column.exclusive_maximum
    made = [bound for bound in (column.minimum, column.maximum) if bound is not None]
    made += [low + step if step else float(np.nextafter(low, np.inf))] if low is not None else []
    made += [high - step if step else float(np.nextafter(high, -np.inf))] if high is not None else []
    return [float(bound) for bound in made]


def _is_allowed(column: Column, number: float) -> bool:
    low, high = column.exclusive_minimum, column.exclusive_maximum
    return (
        (column.minimum is None or number >= column.minimum)
        and (column.maximum is None or number <= column.maximum)
        and (low is None or number > low)
        and (high is None or number < high)
    )


PROBES = 1000  # rows that are compared again with missing and unknown values
UNKNOWN = "never seen ☃"
LIKELIEST = (
    *("HistGradientBoostingClassifier", "GradientBoostingClassifier", "LogisticRegression", "RandomForestClassifier"),
    *("ExtraTreesClassifier", "LGBMClassifier", "XGBClassifier", "CatBoostClassifier"),
)


class Parity(BaseModel):
    """The differences between a compiled model and scikit-learn.

    Attributes:
        rows: Rows compared.
        probes: Rows among them with missing and unknown values inserted.
        extremes: Rows that were compared with the most extreme values that the contract allows.
        largest: The largest difference of a probability, or relative difference of a value.
        row: The index of the row with the largest difference.
        labels_differ: Rows with a different label, except ties within the tolerance.
        tolerance: The allowed difference.
    """

    rows: int = 0
    probes: int = 0
    extremes: int = 0
    largest: float = 0.0
    row: str | None = None
    labels_differ: int = 0
    tolerance: float

    @property
    def verified(self) -> bool:
        """Whether both agree."""
        return self.labels_differ == 0 and self.largest <= self.tolerance


def check_parity(
    model: bytes,
    pipeline: Any,
    contract: Contract,
    frame: pd.DataFrame,
    tolerance: float,
    predicted: np.ndarray | None = None,
) -> Parity:
    """Compare a compiled model with the pipeline on all rows of `frame`, in the contract's dtypes.

    Args:
        model: Serialized ONNX.
        pipeline: The pipeline that it was compiled from.
        contract: With encodings.
        frame: The rows.
        tolerance: The largest allowed difference.
        predicted: The pipeline's probabilities or values for `frame`, if they are already known.

    Raises:
        UserError: they differ by more than `tolerance`, or scikit-learn fails on values that the contract allows.
    """
    scorer = Scorer.from_onnx(model, contract)
    parity = Parity(tolerance=tolerance)
    probes = make_probes(contract, frame)
    unit = 0.0
    try:
        for start in range(0, len(frame), CHUNK):
            rows = slice(start, start + CHUNK)
            known = None if predicted is None else predicted[rows]
            parity, mean = _add(parity, scorer, pipeline, frame.iloc[rows], known)
            unit = max(unit, mean)
        _require(parity, "the held-out rows")
        parity, _ = _add(parity, scorer, pipeline, probes)
    except ValueError as error:
        raise UserError(_refusing(error)) from error
    _require(parity, f"held-out rows with missing values and texts that training never saw, such as {UNKNOWN!r}")
    extremes = _check_extremes(scorer, pipeline, frame, tolerance, unit)
    return parity.model_copy(update={"rows": len(frame), "probes": len(probes), "extremes": extremes})


def _check_extremes(scorer: Scorer, pipeline: Any, frame: pd.DataFrame, tolerance: float, unit: float) -> int:
    """Compare rows with one or several extreme values; return the number of rows.

    If scikit-learn itself fails on a row, for example if a scaled number is infinite, there is nothing to compare.
    For numbers near the limits of float32 the compiled model may give no answer, which the service reports, but it may
    not give a different one. Several extremes may cancel each other out, with a larger rounding error in float32: so
    they may differ a hundred times as much.

    Raises:
        UserError: they differ by more than that.
    """
    contract = scorer.contract
    extremes = make_extremes(contract, frame)
    if extremes.rows.empty:
        return 0
    encoded = encode(contract, extremes.rows)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        expected = _expect_each(pipeline, contract, encoded)
        outputs = _run(scorer, encoded)
    largest = encoded.select_dtypes("number").abs().max(axis=1).fillna(0.0).to_numpy(np.float64)
    gaps, differ = _compare_each(expected, outputs, tolerance, unit, contract.decision)
    compared = np.isfinite(expected[-1].reshape(len(encoded), -1)).all(axis=1)
    answered = np.isfinite(outputs[-1].reshape(len(encoded), -1)).all(axis=1)
    beyond = np.abs(expected[-1].reshape(len(encoded), -1)).max(axis=1) > FLOAT32
    silent = ~answered & ((largest >= BEYOND) | beyond)
    allowed = np.where(extremes.together, 100 * tolerance, tolerance)
    wrong = compared & ~silent & (differ | ~(gaps <= allowed))
    if wrong.any():
        shown = wrong & ~extremes.together if (wrong & ~extremes.together).any() else wrong
        worst = int(np.argmax(np.where(shown, np.where(np.isnan(gaps), np.inf, gaps), -1.0)))
        raise UserError(
            f"The compiled model differs from scikit-learn on {int(wrong.sum()):,} of {int(compared.sum()):,} rows "
            f"with extreme values that model/schema.py allows, such as {name_extreme(extremes, worst)}, by up to "
            f"{gaps[worst]:.2g} ({tolerance:.2g} is allowed). Nothing was deployed: give the columns of numbers "
            f"and dates their bounds (ge=…, le=…) in model/schema.py, or {BY_SKLEARN}."
        )
    return int(compared.sum())


def _expect_each(pipeline: Any, contract: Contract, encoded: pd.DataFrame) -> list[np.ndarray]:
    """Return scikit-learn's predictions of rows; NaN (and label -1) for rows on which it fails."""
    try:
        return _expected(pipeline, contract, encoded, None)
    except ValueError:
        if len(encoded) == 1:
            if contract.classes is None:
                return [np.full(1, np.nan)]
            return [np.full(1, -1), np.full((1, len(contract.classes)), np.nan)]
    half = len(encoded) // 2
    parts = [_expect_each(pipeline, contract, part) for part in (encoded.iloc[:half], encoded.iloc[half:])]
    return [np.concatenate(pair) for pair in zip(*parts, strict=True)]


def make_probes(contract: Contract, frame: pd.DataFrame) -> pd.DataFrame:
    """Return some rows of `frame`, each with a missing or unknown value where the contract allows it."""
    changes = [change for column in contract.features for change in _changes(column)]
    if not changes or frame.empty:
        return frame.iloc[:0]
    count = max(min(PROBES, len(frame)), len(changes))
    rows = frame.iloc[np.linspace(0, len(frame) - 1, count).astype(int)].reset_index(drop=True)
    turn = np.arange(count) % len(changes)
    for i, (name, value) in enumerate(changes):
        rows[name] = rows[name].mask(turn == i, value)
    return rows


def _changes(column: Column) -> Iterator[tuple[str, Any]]:
    if column.nullable:
        yield column.name, None
    if column.kind == "text" and column.categories is None:
        yield column.name, UNKNOWN


def _add(
    parity: Parity, scorer: Scorer, pipeline: Any, frame: pd.DataFrame, predicted: np.ndarray | None = None
) -> tuple[Parity, float]:
    """Compare the rows of `frame` too; return the updated `parity` and the mean size of their values."""
    if frame.empty:
        return parity, 0.0
    encoded = encode(scorer.contract, frame)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found unknown categories", UserWarning)  # expected for open sets
        expected = _expected(pipeline, scorer.contract, encoded, predicted)
    unit = float(np.abs(expected[0]).mean())
    outputs, rule = _run(scorer, encoded), scorer.contract.decision
    gaps, differ = _compare_each(expected, outputs, parity.tolerance, unit, rule)
    worst = int(np.argmax(np.where(np.isnan(gaps), np.inf, gaps)))
    largest = float(gaps[worst]) if np.isfinite(gaps[worst]) else float("inf")
    found = {"labels_differ": parity.labels_differ + int(differ.sum())}
    further = {"largest": largest, "row": str(frame.index[worst])} if largest >= parity.largest else {}
    return parity.model_copy(update=found | further), unit


def _run(scorer: Scorer, encoded: pd.DataFrame) -> list[np.ndarray]:
    try:
        return scorer.run(encoded)
    except Exception as error:  # onnxruntime's exceptions have no common base class
        message = str(error).splitlines()[0][:300]
        raise UserError(f"The compiled model fails where scikit-learn does not ({message}): {BY_SKLEARN}.") from error


def _expected(
    pipeline: Any, contract: Contract, encoded: pd.DataFrame, predicted: np.ndarray | None
) -> list[np.ndarray]:
    """Return scikit-learn's [labels, probabilities] or [values], without predicting twice if not needed."""
    if contract.classes is None:
        return [np.asarray(pipeline.predict(encoded) if predicted is None else predicted, np.float64).ravel()]
    probabilities = pipeline.predict_proba(encoded) if predicted is None else predicted
    decided = contract.decision is not None or type(final_estimator(pipeline)).__name__ in LIKELIEST
    return [decide(contract.decision, probabilities) if decided else pipeline.predict(encoded), probabilities]


def _compare_each(
    expected: list[np.ndarray],
    given: list[np.ndarray],
    tolerance: float,
    unit: float,
    rule: DecisionRule | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's difference [N] (of values: relative to the value or to `unit`), and whether its label differs.

    Labels that a difference within the tolerance may change are not compared.
    """
    if len(expected) == 1:
        values = expected[0]
        share = np.maximum(np.abs(values), max(unit, np.finfo(float).tiny))
        return np.abs(given[0].ravel() - values) / share, np.zeros(len(values), bool)
    clear = measure_margins(rule, expected[1]) > tolerance
    return np.abs(given[1] - expected[1]).max(axis=1), (given[0].ravel() != expected[0]) & clear


def _require(parity: Parity, where: str) -> None:
    if parity.verified:
        return
    raise UserError(
        f"The compiled model differs from scikit-learn on {where}: by up to {parity.largest:.2g} (row {parity.row}; "
        f"{parity.tolerance:.2g} is allowed), with another label for {parity.labels_differ:,}. Nothing was "
        f"deployed: simplify model/features.py, or {BY_SKLEARN}."
    )


def _refusing(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0][:300].rstrip(".")
    return (
        "The model fails on a missing value or on a text that training never saw, which model/schema.py allows "
        f'({text}): give its encoder handle_unknown="use_encoded_value" (OrdinalEncoder) or "ignore" (OneHotEncoder), '
        "or close the set by isin=[…] in model/schema.py."
    )
