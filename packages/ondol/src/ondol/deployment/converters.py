"""Converters to ONNX of LightGBM, XGBoost and CatBoost, and of estimators that bring a graph of their own.

The trees are read from the form in which each library stores them. The converters of onnxmltools are not used: they
would be a dependency of every project, and they round thresholds to the nearest float32, which is not always the same
comparison. None of the libraries is imported here.

An estimator brings its own graph by a method `to_onnx()`; see `embed_graph`.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ondol.errors import UserError
from ondol.training.pipeline import parts_of

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = {"": 21, "ai.onnx.ml": 3}
BY_SKLEARN = (
    'set runtime = "sklearn" under [deploy] in config.toml to serve it by scikit-learn itself, by an image that is '
    "built with GROUP=service-sklearn"
)
AT_MOST, BELOW, ABOVE, LEAF = "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT", "LEAF"


class Unsupported(Exception):
    """A model has a part that has no equal in ONNX; the message says which."""


@dataclass
class Ensemble:
    """Trees whose leaves add up to margins.

    Attributes:
        base: What is added to the margin of each output, [K]; one output for two classes, the second.
        transform: How margins become the answer: "NONE" or "EXP" for values, "LOGISTIC" or "SOFTMAX" for classes.
        nodes: For each node: tree, node, feature, mode, threshold, node if true, node if false, missing goes to true.
        leaves: For each leaf: tree, node, output, weight.
    """

    base: list[float]
    transform: str
    nodes: list[tuple[int, int, int, str, float, int, int, int]] = field(default_factory=list)
    leaves: list[tuple[int, int, int, float]] = field(default_factory=list)

    def add_leaf(self, tree: int, node: int, weights: Sequence[tuple[int, float]]) -> None:
        """Add a leaf with the weight of each output that it adds to."""
        self.nodes.append((tree, node, 0, LEAF, 0.0, 0, 0, 0))
        self.leaves += [(tree, node, output, weight) for output, weight in weights]


def register_converters(pipeline: Any) -> None:
    """Register a converter with skl2onnx for each part of `pipeline` that this module converts.

    A converter that the project registered in `model/converters.py` is kept.
    """
    from skl2onnx import update_registered_converter
    from skl2onnx._supported_operators import sklearn_operator_name_map

    for part in parts_of(pipeline):
        kind, read = type(part), READERS.get(type(part).__module__.partition(".")[0])
        if kind in sklearn_operator_name_map or not (read or hasattr(part, "to_onnx")):
            continue
        classes = hasattr(part, "predict_proba")
        update_registered_converter(
            kind,
            f"Ondol{kind.__name__}",
            shape_classes if classes else shape_values,
            convert_trees if read else embed_graph,
            parser=parse_classes if classes else None,
            options=_options(kind) if classes else None,
        )


def _options(kind: type) -> dict[str, list[bool]]:
    """Return the options of a classifier's converter; a calibration asks for margins if the class has them."""
    return {"zipmap": [False]} | ({"raw_scores": [True, False]} if hasattr(kind, "decision_function") else {})


def parse_classes(scope: Any, model: Any, inputs: list[Any], custom_parsers: Any = None) -> list[Any]:
    """Declare the outputs of a classifier; skl2onnx knows only those that inherit `ClassifierMixin`."""
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType

    operator = scope.declare_local_operator(sklearn_operator_name_map[type(model)], model)
    operator.inputs = inputs
    operator.outputs.append(scope.declare_local_variable("label", Int64TensorType()))
    operator.outputs.append(scope.declare_local_variable("probabilities", FloatTensorType()))
    return list(operator.outputs)


def shape_classes(operator: Any) -> None:
    """Declare a label and a probability for each class."""
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType

    operator.outputs[0].type = Int64TensorType([None])
    operator.outputs[1].type = FloatTensorType([None, len(operator.raw_operator.classes_)])


def shape_values(operator: Any) -> None:
    """Declare one value."""
    from skl2onnx.common.data_types import FloatTensorType

    operator.outputs[0].type = FloatTensorType([None, 1])


def convert_trees(scope: Any, operator: Any, container: Any) -> None:
    """Convert a fitted model of one of the libraries.

    Raises:
        UserError: it has a part that has no equal in ONNX.
    """
    model = operator.raw_operator
    library = type(model).__module__.partition(".")[0]
    try:
        ensemble = READERS[library](model)
    except Unsupported as error:
        raise UserError(
            f"{type(model).__name__} {error} cannot be converted to ONNX: leave that out in model/estimator.py, or "
            f"{BY_SKLEARN} and {library} (uv add --group service-sklearn {library})."
        ) from None
    add = _Adder(scope, container)
    matrix = add.matrix(operator)
    attributes = _describe_nodes(ensemble)
    if ensemble.transform in ("NONE", "EXP"):
        attributes |= _describe_leaves(ensemble, "target", ensemble.leaves)
        made = add.node(
            "TreeEnsembleRegressor",
            [matrix],
            op_domain="ai.onnx.ml",
            n_targets=1,
            base_values=ensemble.base,
            **attributes,
        )
        add.result("Exp" if ensemble.transform == "EXP" else "Identity", [made], operator.outputs[0])
        return
    leaves, shared = ensemble.leaves, {"base_values": ensemble.base}
    if ensemble.transform == "LOGISTIC":
        # As softmax over (0, margin), without `base_values`: ONNX Runtime has rules of its own for two classes. By
        # these, margins are probabilities if no leaf is negative, and the second of two base values replaces both.
        first, base = leaves[0], ensemble.base[0]
        leaves = [(tree, node, 1, weight + base * (tree == first[0])) for tree, node, _, weight in leaves]
        leaves, shared = [(first[0], first[1], 0, 0.0), *leaves], {}
    raw = (
        container.has_options(model, "raw_scores") and container.get_options(model, {"raw_scores": False})["raw_scores"]
    )
    _, probabilities = add.node(
        "TreeEnsembleClassifier",
        [matrix],
        outputs=2,
        op_domain="ai.onnx.ml",
        classlabels_int64s=list(range(len(operator.raw_operator.classes_))),
        post_transform="NONE" if raw else "SOFTMAX",
        **attributes,
        **shared,
        **_describe_leaves(ensemble, "class", leaves),
    )
    # The first of equally probable classes, as in the libraries.
    add.result("ArgMax", [probabilities], operator.outputs[0], axis=1, keepdims=0)
    add.result("Identity", [probabilities], operator.outputs[1])


def _describe_nodes(ensemble: Ensemble) -> dict[str, Any]:
    names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
    columns = zip(*ensemble.nodes, strict=True)
    return dict(
        zip([*(f"nodes_{name}" for name in names), "nodes_missing_value_tracks_true"], map(list, columns), strict=True)
    )


def _describe_leaves(ensemble: Ensemble, kind: str, leaves: list[tuple[int, int, int, float]]) -> dict[str, Any]:
    names = (f"{kind}_treeids", f"{kind}_nodeids", f"{kind}_ids", f"{kind}_weights")
    return dict(zip(names, map(list, zip(*leaves, strict=True)), strict=True))


class _Adder:
    """Adds nodes to a graph that skl2onnx builds."""

    def __init__(self, scope: Any, container: Any) -> None:
        self._scope, self._container = scope, container

    def matrix(self, operator: Any) -> str:
        """Return the name of the matrix [N, F] of the operator's inputs, as float32."""
        from onnx import TensorProto

        given = [one.full_name for one in operator.inputs]
        joined = given[0] if len(given) == 1 else self.node("Concat", given, axis=1)
        return str(self.node("Cast", [joined], to=TensorProto.FLOAT))

    def node(self, kind: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; return the name of its output, or the names if there are several."""
        made = [self._scope.get_unique_variable_name("made") for _ in range(outputs)]
        self._container.add_node(kind, inputs, made, name=self._scope.get_unique_operator_name(kind), **attributes)
        return made[0] if outputs == 1 else made

    def result(self, kind: str, inputs: list[str], output: Any, **attributes: Any) -> None:
        """Add the node that makes an output of the operator."""
        name = self._scope.get_unique_operator_name(kind)
        self._container.add_node(kind, inputs, output.full_name, name=name, **attributes)


# LightGBM


def read_lightgbm(model: Any) -> Ensemble:
    """Return the trees of a fitted `LGBMClassifier` or `LGBMRegressor`.

    Its text form has for each tree the arrays of its inner nodes; a child below 0 is the leaf `~child`.

    Raises:
        Unsupported: an objective, categories, linear leaves, or zeros as missing values.
    """
    header, *blocks = model.booster_.model_to_string().split("\nTree=")
    about = dict(line.partition("=")[::2] for line in header.splitlines())
    objective, *options = about.get("objective", "custom").split()
    transform = {
        **dict.fromkeys(("regression", "regression_l1", "huber", "fair", "quantile", "mape"), "NONE"),
        **dict.fromkeys(("poisson", "gamma", "tweedie"), "EXP"),
        **{"binary": "LOGISTIC", "multiclass": "SOFTMAX"},
    }.get(objective)
    scale = next((float(one.partition(":")[2]) for one in options if one.startswith("sigmoid:")), 1.0)
    if transform is None or "sqrt" in options:
        raise Unsupported(f'with objective="{" ".join([objective, *options])}"')
    outputs = int(about["num_tree_per_iteration"])
    share = outputs / len(blocks) if "average_output" in about else 1.0
    ensemble = Ensemble([0.0] * outputs, transform)
    for tree, block in enumerate(blocks):
        entries = dict(line.partition("=")[::2] for line in block.split("\n\n")[0].splitlines())
        if entries.get("num_cat", "0") != "0":
            raise Unsupported("with categorical features")
        if entries.get("is_linear", "0") != "0":
            raise Unsupported("with linear_tree=True")
        weights = np.array(entries["leaf_value"].split(), np.float64) * share * scale
        inner = int(entries["num_leaves"]) - 1
        features, left, right, kinds = (
            [int(one) for one in entries.get(name, "").split()]
            for name in ("split_feature", "left_child", "right_child", "decision_type")
        )
        thresholds = floor_to_float32(np.array(entries.get("threshold", "").split(), np.float64))
        for node in range(inner):
            missing = kinds[node] >> 2 & 3
            if missing == 1:
                raise Unsupported("with zero_as_missing=True")
            # Without missing values in training, one counts as 0.
            to_left = bool(kinds[node] & 2) if missing == 2 else bool(thresholds[node] >= 0)
            where = (tree, node, features[node], AT_MOST, float(thresholds[node]))
            children = [child if child >= 0 else inner + ~child for child in (left[node], right[node])]
            ensemble.nodes.append((*where, children[0], children[1], int(to_left)))
        for leaf, weight in enumerate(weights):
            ensemble.add_leaf(tree, inner + leaf, [(tree % outputs, float(weight))])
    return ensemble


# XGBoost


def read_xgboost(model: Any) -> Ensemble:
    """Return the trees of a fitted `XGBClassifier` or `XGBRegressor`, up to its best iteration.

    Raises:
        Unsupported: an objective, a booster, or categories.
    """
    booster = model.get_booster()
    if model.early_stopping_rounds is not None:
        booster = booster[: model.best_iteration + 1]
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    objective, kind = learner["objective"]["name"], learner["gradient_booster"]["name"]
    links: dict[str, tuple[str, Callable[[float], float]]] = {
        **dict.fromkeys(
            ("reg:squarederror", "reg:absoluteerror", "reg:pseudohubererror", "reg:quantileerror"), ("NONE", float)
        ),
        **dict.fromkeys(("count:poisson", "reg:gamma", "reg:tweedie"), ("EXP", lambda base: float(np.log(base)))),
        "binary:logistic": ("LOGISTIC", lambda base: float(np.log(base / (1 - base)))),
        **dict.fromkeys(("multi:softprob", "multi:softmax"), ("SOFTMAX", float)),
    }
    if kind != "gbtree":
        raise Unsupported(f'with booster="{kind}"')
    if objective not in links:
        raise Unsupported(f'with objective="{objective}"')
    transform, link = links[objective]
    outputs = len(model.classes_) if transform == "SOFTMAX" else 1
    base = np.atleast_1d(json.loads(learner["learner_model_param"]["base_score"])).astype(np.float64)
    made = learner["gradient_booster"]["model"]
    ensemble = Ensemble([link(value) for value in np.broadcast_to(base, outputs)], transform)
    for tree, (entries, output) in enumerate(zip(made["trees"], made["tree_info"], strict=True)):
        if entries["categories"]:
            raise Unsupported("with enable_categorical=True")
        columns = ("split_indices", "split_conditions", "left_children", "right_children", "default_left")
        rows = zip(*(entries[name] for name in columns), strict=True)
        for node, (feature, value, left, right, to_left) in enumerate(rows):
            if left < 0:
                ensemble.add_leaf(tree, node, [(output, value)])
            else:
                ensemble.nodes.append((tree, node, feature, BELOW, value, left, right, int(to_left)))
    return ensemble


# CatBoost


def read_catboost(model: Any) -> Ensemble:
    """Return the trees of a fitted `CatBoostClassifier` or `CatBoostRegressor`.

    In its JSON, each tree has one split for each level; the number of a leaf has a bit for each level.

    Raises:
        Unsupported: a loss, a kind of tree, or categories.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        model.save_model(str(path), format="json")
        document = json.loads(path.read_text(encoding="utf-8"))
    loss = str(model.get_all_params().get("loss_function", "custom"))
    transform = {
        **dict.fromkeys(("RMSE", "MAE", "Quantile", "Huber", "MAPE", "LogCosh", "Expectile"), "NONE"),
        **dict.fromkeys(("Poisson", "Tweedie"), "EXP"),
        **{"Logloss": "LOGISTIC", "CrossEntropy": "LOGISTIC", "MultiClass": "SOFTMAX"},
    }.get(loss.partition(":")[0])
    if transform is None:
        raise Unsupported(f'with loss_function="{loss}"')
    if "oblivious_trees" not in document:
        raise Unsupported("with another grow_policy than SymmetricTree")
    features = document["features_info"].get("float_features", [])
    scale, base = document["scale_and_bias"]
    ensemble = Ensemble([float(value) for value in base], transform)
    outputs = len(base)
    for tree, entries in enumerate(document["oblivious_trees"]):
        splits = entries.get("splits") or []
        if any(split["split_type"] != "FloatFeature" for split in splits):
            raise Unsupported("with categorical, text or embedding features")
        depth = len(splits)
        weights = np.reshape(entries["leaf_values"], (1 << depth, outputs)) * scale
        for node in range((1 << depth) - 1):  # as in a heap: the children of node n are 2n + 1 and 2n + 2
            split = splits[depth - (node + 1).bit_length()]  # the last split decides the highest bit
            about = features[split["float_feature_index"]]
            above = int(about.get("nan_value_treatment", "AsIs") == "AsTrue")
            where = (tree, node, about["flat_feature_index"], ABOVE, split["border"])
            ensemble.nodes.append((*where, 2 * node + 2, 2 * node + 1, above))
        for leaf in range(1 << depth):
            ensemble.add_leaf(tree, (1 << depth) - 1 + leaf, list(enumerate(weights[leaf].tolist())))
    return ensemble


READERS: dict[str, Callable[[Any], Ensemble]] = {
    "lightgbm": read_lightgbm,
    "xgboost": read_xgboost,
    "catboost": read_catboost,
}


def floor_to_float32(values: np.ndarray) -> np.ndarray:
    """Return the largest float32 at or below each value: then `x <= t` has the same result for every float32 `x`."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    above = rounded.astype(np.float64) > values
    rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
    return rounded


# Graphs of estimators themselves


def embed_graph(scope: Any, operator: Any, container: Any) -> None:
    """Insert the graph that a fitted estimator's `to_onnx()` returns.

    The graph has one input, the matrix of the features, float32 [N, F]; its first output has the probabilities
    [N, K], or the values [N] or [N, 1].

    Raises:
        UserError: `to_onnx` returns something else.
    """
    from onnx import TensorProto, helper

    model = operator.raw_operator
    name = type(model).__name__
    graph = _load_graph(model, name).graph
    given = {one.name for one in graph.initializer}
    inputs = [one.name for one in graph.input if one.name not in given]
    if len(inputs) != 1 or not graph.output:
        raise UserError(
            f"{name}.to_onnx() returned a graph with {len(inputs)} inputs and {len(graph.output)} outputs: one input "
            "with the matrix of the features is needed, and one output with the probabilities or the values."
        )
    add = _Adder(scope, container)
    names = {inputs[0]: add.matrix(operator), "": ""}
    renamed = lambda old: names.setdefault(old, scope.get_unique_variable_name(f"own_{len(names)}"))  # noqa: E731
    for constant in graph.initializer:
        container.initializers.append(type(constant).FromString(constant.SerializeToString()))
        container.initializers[-1].name = renamed(constant.name)
    for node in graph.node:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if any(one.HasField("g") for one in node.attribute):
            raise UserError(
                f"{name}.to_onnx() returned a graph with {node.op_type}, which is not supported: export it without."
            )
        container.add_node(
            node.op_type,
            [renamed(one) for one in node.input],
            [renamed(one) for one in node.output],
            op_domain=node.domain,
            op_version=OPSET.get(node.domain, 1),
            name=scope.get_unique_operator_name(node.op_type),
            **attributes,
        )
    made = renamed(graph.output[0].name)
    if hasattr(model, "predict_proba"):
        add.result("ArgMax", [made], operator.outputs[0], axis=1, keepdims=0)
        add.result("Identity", [made], operator.outputs[1])
        return
    shape = scope.get_unique_variable_name("shape")
    container.add_initializer(shape, TensorProto.INT64, [2], [-1, 1])
    add.result("Reshape", [made, shape], operator.outputs[0])


def _load_graph(model: Any, name: str) -> "ModelProto":
    """Return the graph of an estimator in the operators of this module's version."""
    import onnx
    from onnx import version_converter

    found = model.to_onnx()
    found = onnx.load_from_string(found) if isinstance(found, bytes) else found
    if not isinstance(found, onnx.ModelProto):
        raise UserError(f"{name}.to_onnx() returned {type(found).__name__}: return an onnx.ModelProto, or its bytes.")
    version = next((one.version for one in found.opset_import if not one.domain), OPSET[""])
    if version == OPSET[""]:
        return found
    try:
        return version_converter.convert_version(found, OPSET[""])
    except Exception as error:  # of the C++ code, with no common base class
        raise UserError(
            f"{name}.to_onnx() returned a graph of opset {version}, which cannot be converted to {OPSET['']}: "
            f"export it with opset {OPSET['']}."
        ) from error
