"""Builds what the service explains predictions with: tables of exact Shapley values, or a background for sampling.

A compiled model of one tree ensemble or one linear model is split there: the part before it turns the columns into a
matrix. If each number of that matrix depends on one column, the values of the columns are exact. All other models get
an approximation, which says so. `ondol_serving.shapley` computes the values; here all of it is checked against the
compiled model.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ondol.contract import encode
from ondol.evaluation.scoring import Scorer, make_tensors, open_session
from ondol_serving.shapley import Linear, Tensors, Trees, find_unfulfilled, list_inputs, select_outputs

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Array = NDArray[Any]
Sources = frozenset[int]  # the contract's columns, by their numbers, that a value depends on

ARRAYS, ENCODER = "explanation.npz", "explanation.onnx"
MATRIX = "matrix"
BACKGROUND = 1_000  # rows that exact values are compared with
MOST_BYTES = 10_000_000  # of the tables
DEEPEST = 14  # columns on the path to a leaf: each doubles the leaf's table
MOST_RUNS, SAMPLED = 16_000, (10, 400)  # predictions for one approximation, and background rows for it
CHECKED = 100  # rows
SUM_TOLERANCE, TOLERANCE, VALUE_TOLERANCE = 1e-9, 1e-6, 1e-5
SEED = 0
HEADS = ("TreeEnsembleClassifier", "TreeEnsembleRegressor", "LinearClassifier", "LinearRegressor")
# Operators that compute each number of the result from the numbers at the same place of the inputs.
ELEMENTWISE = {
    *("Abs", "Add", "Cast", "Ceil", "Clip", "Cos", "Div", "Exp", "Floor", "Identity", "Log", "Max", "Min", "Mul"),
    *("Neg", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sqrt", "Sub", "Sum", "Tan", "Tanh"),
    *("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Where"),
    *("Binarizer", "Imputer", "LabelEncoder", "Scaler"),
}
MODES = (b"BRANCH_LEQ", b"BRANCH_LT", b"BRANCH_GTE", b"BRANCH_GT")
Box = dict[int, tuple[np.float32, np.float32, bool]]  # by feature: least and most value, and whether it may be missing


class Inexact(Exception):
    """Exact values are not possible. The message is a part of a sentence: why."""


@dataclass(frozen=True)
class Explanation:
    """What goes into the bundle: files, and the entry `explanation` of `meta.json`."""

    files: dict[str, bytes]
    about: dict[str, Any]


def build_explanation(model: bytes | None, scorer: Scorer, frame: pd.DataFrame) -> Explanation:
    """Build the explanation of a model.

    Args:
        model: The compiled model; None for a bundle without one.
        scorer: The same model, with its contract.
        frame: Training rows in the contract's dtypes, at most `BACKGROUND`.
    """
    reason = "the model is not compiled to ONNX"
    if model is not None:
        try:
            return _build_exact(model, scorer, frame)
        except Inexact as error:
            reason = str(error)
        except Exception as error:  # a converter of the project may make any graph, and the model is correct
            reason = f"its graph could not be examined ({type(error).__name__})"
    return _build_sampling(scorer, frame, reason)


@dataclass(frozen=True)
class Split:
    """A compiled model, split before its last part.

    Attributes:
        head: The tree ensemble or linear model.
        encoder: The part before it, as a model of its own.
        matrix: What the encoder makes of the background.
        columns: For each column of the matrix, the column of the contract that it depends on.
    """

    head: "NodeProto"
    encoder: bytes
    matrix: Array
    columns: Array


def _build_exact(model: bytes, scorer: Scorer, frame: pd.DataFrame) -> Explanation:
    """Raises Inexact: the model is of another kind, the tables would be too large, or a check failed."""
    encoded = encode(scorer.contract, frame)
    tensors = make_tensors(scorer.contract, encoded)
    split = split_model(model, tensors, list_inputs(scorer.contract.features))
    trees = split.head.op_type.startswith("Tree")
    outputs = select_outputs(scorer.contract.problem, scorer.run(encoded)[-1])
    build = build_tables if trees else build_linear
    arrays, link = build(split, outputs.shape[1])
    run = open_encoder(split.encoder)
    kind = Trees if trees else Linear
    explainer = kind(arrays, len(scorer.contract.features), run)
    margins = _check_sums(explainer, split, tensors)
    try:
        _check_link(link, margins, outputs[:CHECKED], scorer.contract.classes is None)
    except Inexact:
        arrays, link, margins = _follow_sigmoid(arrays, margins, outputs[:CHECKED], scorer.contract.problem)
        _check_link(link, margins, outputs[:CHECKED], values=False)
    content = _to_npz(arrays)
    if len(content) > MOST_BYTES:
        raise Inexact(f"its tables would be larger than {MOST_BYTES // 1_000_000} MB")
    _check_mixing(run, split.columns, tensors, list_inputs(scorer.contract.features))
    about = {"method": "exact" if trees else "linear", "scale": link.scale, "background": len(frame)}
    return Explanation({ARRAYS: content, ENCODER: split.encoder}, about)


# Splitting the graph


def split_model(model: bytes, tensors: Tensors, inputs: Sequence[tuple[str, int]]) -> Split:
    """Split a model before its tree ensemble or linear model.

    Raises:
        Inexact: it has none or several, or a number in front of it depends on several columns.
    """
    import onnx

    graph = onnx.load_from_string(model)
    heads = [node for node in graph.graph.node if node.op_type in HEADS]
    if len(heads) != 1:
        raise Inexact("it does not consist of one tree ensemble or one linear model")
    encoder = cut_model(graph, heads[0].input[0])
    sources, matrix = trace_columns(encoder, tensors, dict(inputs))
    if any(len(found) > 1 for found in sources):
        raise Inexact("its features combine several columns")
    columns = np.array([next(iter(found), 0) for found in sources], np.intp)  # a constant changes no sum
    return Split(heads[0], bytes(encoder.SerializeToString(deterministic=True)), matrix, columns)


def cut_model(model: "ModelProto", name: str) -> "ModelProto":
    """Return the part of a model that computes the value `name`, as `MATRIX`."""
    import onnx

    needed, nodes = {name}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input)
    graph = onnx.helper.make_graph(
        [*nodes[::-1], onnx.helper.make_node("Identity", [name], [MATRIX])],
        "encoder",
        [value for value in model.graph.input if value.name in needed],
        [onnx.ValueInfoProto(name=MATRIX)],
        [value for value in model.graph.initializer if value.name in needed],
    )
    made = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    made.ir_version = model.ir_version
    return made


def trace_columns(encoder: "ModelProto", tensors: Tensors, inputs: dict[str, int]) -> tuple[list[Sources], Array]:
    """Return for each column of the encoder's matrix the contract's columns that it depends on, and the matrix.

    The structure of the graph is followed. An operator that is not known to keep columns apart is taken to mix them.

    Raises:
        Inexact: the graph has branches or loops, or one value is not a matrix with a line for each row.
    """
    import onnx

    if any(attribute.HasField("g") for node in encoder.graph.node for attribute in node.attribute):
        raise Inexact("its features have branches or loops")
    whole = onnx.ModelProto()
    whole.CopyFrom(encoder)
    names = list(dict.fromkeys(made for node in encoder.graph.node for made in node.output if made))
    del whole.graph.output[:]
    whole.graph.output.extend(onnx.ValueInfoProto(name=made) for made in names)
    session = open_session(whole.SerializeToString())
    feeds = {value.name: tensors[value.name] for value in encoder.graph.input}
    values = feeds | dict(zip(names, map(np.asarray, session.run(names, feeds)), strict=True))
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in encoder.graph.initializer}
    found: dict[str, list[Sources]] = {key: [frozenset({inputs[key]})] for key in feeds}
    found |= {key: [frozenset()] for key in constants}
    for node in encoder.graph.node:
        for made in filter(None, node.output):
            width = values[made].shape[-1] if values[made].ndim > 1 else 1
            found[made] = _trace_node(node, found, {**values, **constants}, width)
    if values[MATRIX].ndim != 2 or len(found[MATRIX]) != values[MATRIX].shape[1]:
        raise Inexact("its features do not form a matrix")
    return found[MATRIX], values[MATRIX]


def _trace_node(
    node: "NodeProto", found: dict[str, list[Sources]], values: dict[str, Array], width: int
) -> list[Sources]:
    """Return the sources of each column of what a node makes."""
    given = [name for name in node.input if name]
    mixed: list[Sources] = [frozenset().union(*(one for name in given for one in found[name]))] * width
    if not given:
        return mixed
    first = found[given[0]]
    if node.op_type == "Concat":
        joined = [one for name in given for one in found[name]]
        axis = _attribute(node, "axis")
        return joined if axis in (-1, values[given[0]].ndim - 1) and len(joined) == width else mixed
    if node.op_type in ("ArrayFeatureExtractor", "Gather"):
        places = values[given[1]]
        last = node.op_type == "ArrayFeatureExtractor" or _attribute(node, "axis") in (-1, values[given[0]].ndim - 1)
        fixed = found[given[1]] == [frozenset()] and places.size == width
        return [first[place] for place in places.ravel()] if last and fixed and len(first) > 1 else mixed
    if node.op_type == "Reshape":
        same = values[given[0]].shape[:1] == values[node.output[0]].shape[:1] and len(first) == width
        return first if same and math.prod(values[given[0]].shape[1:]) == width else mixed
    if node.op_type in ELEMENTWISE and all(len(found[name]) in (1, width) for name in given):
        wide = [found[name] if len(found[name]) == width else found[name] * width for name in given]
        return [frozenset().union(*sources) for sources in zip(*wide, strict=True)]
    return mixed


def _attribute(node: "NodeProto", name: str, default: Any = 0) -> Any:
    from onnx import helper

    found = next((one for one in node.attribute if one.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def open_encoder(encoder: bytes) -> Callable[[Tensors], Array]:
    """Return a function from the model's inputs to the matrix."""
    session = open_session(encoder)
    inputs = [value.name for value in session.get_inputs()]
    return lambda tensors: np.asarray(session.run(None, {name: tensors[name] for name in inputs})[0])


# Links: from margins to what the service answers


@dataclass(frozen=True)
class Link:
    """How the sum of contributions becomes the answer, and the name of its scale."""

    scale: str
    apply: Callable[[Array], Array]


def _softmax(margins: Array) -> Array:
    grown = np.exp(margins - margins.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))


def find_link(head: "NodeProto", outputs: int) -> Link:
    """Return the link of a tree ensemble or linear model with that many explained outputs.

    Raises:
        Inexact: it has another one.
    """
    transform = _attribute(head, "post_transform", b"NONE")
    if transform == b"NONE":
        return Link("probability" if head.op_type.endswith("Classifier") else "value", lambda margins: margins)
    if transform in (b"LOGISTIC", b"SOFTMAX") and outputs == 1:
        return Link("log-odds", lambda margins: 1 / (1 + np.exp(-margins)))
    if transform == b"SOFTMAX":
        return Link("score", _softmax)
    raise Inexact("its probabilities are computed in a way that is not known")


def _positive(weights: Array, head: "NodeProto", outputs: int) -> Array:
    """Return the weights [outputs, …] of the explained outputs; of two classes, only the second is explained."""
    if outputs == 1 and len(weights) == 2:
        difference = _attribute(head, "post_transform", b"NONE") == b"SOFTMAX"
        return weights[1:] - weights[:1] if difference else weights[1:]
    if len(weights) != outputs:
        raise Inexact("it has an unexpected number of outputs")
    return weights


# Linear models


def build_linear(split: Split, outputs: int) -> tuple[dict[str, Array], Link]:
    """Return the arrays of `ondol_serving.shapley.Linear`, and the link."""
    coefficients = np.array(_attribute(split.head, "coefficients"), np.float64).reshape(-1, split.matrix.shape[1])
    intercepts = np.zeros(len(coefficients)) + np.array(_attribute(split.head, "intercepts", [0.0]), np.float64)
    coefficients = _positive(coefficients, split.head, outputs)
    intercepts = _positive(intercepts[:, None], split.head, outputs)[:, 0]
    mean = split.matrix.mean(axis=0, dtype=np.float64)
    arrays = {
        "baseline": intercepts + coefficients @ mean,
        "coefficients": coefficients,
        "mean": mean,
        "column": split.columns,
    }
    return arrays, find_link(split.head, outputs)


# Tree ensembles


@dataclass(frozen=True)
class Leaf:
    """A leaf: its weights by output, and the conditions on its path."""

    weights: list[tuple[int, float]]
    box: Box
    depth: int  # the number of columns


def build_tables(split: Split, outputs: int) -> tuple[dict[str, Array], Link]:
    """Return the arrays of `ondol_serving.shapley.Trees`, and the link.

    Raises:
        Inexact: a path has too many columns, or the tables would be too large.
    """
    base, leaves = read_trees(split.head, split.columns, outputs)
    arrays = _list_conditions(sorted(leaves, key=lambda leaf: -leaf.depth), split.columns)
    arrays["baseline"] = base
    depths = np.bitwise_count(arrays["full"]).astype(np.intp)
    sizes = 1 << depths
    arrays["offset"] = (np.cumsum(sizes) - sizes).astype(np.int32)
    arrays |= {name: np.zeros(sizes.sum()) for name in ("inside", "outside")}
    arrays["always"] = np.zeros(len(sizes))
    if len(sizes):
        _fill_tables(arrays, depths, split)
        means = np.bincount(
            arrays["weight_output"], arrays["weight"] * arrays["always"][arrays["weight_leaf"]], minlength=len(base)
        )
        arrays["baseline"] = base + means
    return arrays, find_link(split.head, outputs)


def _fill_tables(arrays: dict[str, Array], depths: Array, split: Split) -> None:
    """Fill `inside`, `outside` and `always` for the background in `split.matrix`."""
    counts = np.zeros(len(arrays["inside"]))
    for start in range(0, len(split.matrix), 100):
        lacking = find_unfulfilled(arrays, split.matrix[start : start + 100])
        counts += np.bincount((arrays["offset"] + lacking).ravel(), minlength=len(counts))
    counts /= len(split.matrix)
    arrays["always"][:] = counts[arrays["offset"]]
    for depth in np.unique(depths):
        places = arrays["offset"][depths == depth][:, None] + np.arange(1 << depth)
        step = max(1, 4_000_000 // ((depth + 1) << depth))
        for start in range(0, len(places), step):
            some = places[start : start + step]
            arrays["inside"][some], arrays["outside"][some] = sum_sets(counts[some], int(depth))


def sum_sets(shares: Array, depth: int) -> tuple[Array, Array]:
    """Return the tables of leaves with `depth` columns, [leaves, 2^depth] each.

    Let x be the set of columns whose conditions a row fulfils, and u the set that a background row does not fulfil.
    Columns of the row make the leaf count if they are in x and contain u, so only background rows with u in x matter.
    With A = |u| and B = depth - |x|, the Shapley value of a column in u is (A-1)! B! / (A+B)!, that of a
    column outside x is -A! (B-1)! / (A+B)!. `inside` and `outside` are the sums over u of both, without the sign.

    Args:
        shares: For each leaf and each set u, as a number with the columns' bits, its share of the background rows.
        depth: The number of columns.
    """
    sets = np.arange(1 << depth)
    sizes = np.bitwise_count(sets).astype(np.intp)
    sums = np.zeros((len(shares), depth + 1, len(sets)))  # of all parts u of a set, by |u|
    sums[:, sizes, sets] = shares
    for bit in range(depth):
        halves = sums.reshape(len(shares), depth + 1, -1, 2, 1 << bit)
        halves[..., 1, :] += halves[..., 0, :]
    factorial = np.array([math.factorial(n) for n in range(depth + 1)], np.float64)
    lacking, left = np.arange(depth + 1)[:, None], (depth - sizes)[None, :]
    both = factorial[np.minimum(lacking + left, depth)]
    inside = np.where(lacking > 0, factorial[np.maximum(lacking - 1, 0)] * factorial[left] / both, 0.0)
    outside = np.where(left > 0, factorial[lacking] * factorial[np.maximum(left - 1, 0)] / both, 0.0)
    weigh = "las,as->ls"
    return np.einsum(weigh, sums, inside), np.einsum(weigh, sums, outside)


def _list_conditions(leaves: list[Leaf], columns: Array) -> dict[str, Array]:
    """Return the arrays of conditions, columns and weights of leaves that have at least one condition."""
    lists: dict[str, list[Any]] = {
        name: []
        for name in (
            *("feature", "least", "most", "missing", "bit", "first_condition", "full"),
            *("column", "column_bit", "column_leaf", "weight_leaf", "weight_output", "weight"),
        )
    }
    for number, leaf in enumerate(leaves):
        bits: dict[int, int] = {}
        lists["first_condition"].append(len(lists["feature"]))
        for feature, (least, most, missing) in leaf.box.items():
            bit = bits.setdefault(int(columns[feature]), 1 << len(bits))
            condition = {"feature": feature, "least": least, "most": most, "missing": missing, "bit": bit}
            for name, value in condition.items():
                lists[name].append(value)
        lists["full"].append((1 << len(bits)) - 1)
        lists["column"] += bits.keys()
        lists["column_bit"] += bits.values()
        lists["column_leaf"] += [number] * len(bits)
        for output, weight in leaf.weights:
            lists["weight_leaf"].append(number)
            lists["weight_output"].append(output)
            lists["weight"].append(weight)
    types = {"least": np.float32, "most": np.float32, "missing": np.bool_, "weight": np.float64}
    types |= dict.fromkeys(("bit", "full", "column_bit"), np.uint16)
    return {name: np.array(values, types.get(name, np.int32)) for name, values in lists.items()}


def read_trees(head: "NodeProto", columns: Array, outputs: int) -> tuple[Array, list[Leaf]]:
    """Return the sum of what all rows have in common, [outputs], and the leaves with conditions.

    Raises:
        Inexact: a path has too many columns, the tables would be too large, or a node is of an unknown kind.
    """
    from onnx import helper

    nodes = {one.name: helper.get_attribute_value(one) for one in head.attribute}
    kind = "class" if head.op_type.endswith("Classifier") else "target"
    if nodes.get("aggregate_function", b"SUM") not in (b"SUM", b"AVERAGE"):
        raise Inexact("its trees are not added up")
    trees = nodes["nodes_treeids"]
    share = 1 / len(set(trees)) if nodes.get("aggregate_function") == b"AVERAGE" else 1.0
    listed = sorted(set(nodes[f"{kind}_ids"]))
    weigh = _weigher(head, listed, outputs)
    place = {pair: number for number, pair in enumerate(zip(trees, nodes["nodes_nodeids"], strict=True))}
    weights: dict[int, dict[int, float]] = {}
    for tree, node, output, weight in zip(
        *(nodes[f"{kind}_{name}"] for name in ("treeids", "nodeids", "ids", "weights")), strict=True
    ):
        mine = weights.setdefault(place[tree, node], {})
        for one, sign in weigh(output):
            mine[one] = mine.get(one, 0.0) + sign * share * weight
    base, common = np.zeros(outputs), nodes.get("base_values", ())
    for output, value in zip(listed if len(common) == len(listed) else range(len(common)), common, strict=True):
        for one, sign in weigh(output):
            base[one] += sign * value
    roots = [number for number, tree in enumerate(trees) if number == 0 or trees[number - 1] != tree]
    leaves, size = [], 0
    for box, number in _walk(nodes, place, roots):
        found = [(output, weight) for output, weight in weights.get(number, {}).items() if weight]
        depth = len({int(columns[feature]) for feature in box})
        if depth > DEEPEST:
            raise Inexact(f"a path of its trees depends on more than {DEEPEST} columns")
        if not box:
            for output, weight in found:
                base[output] += weight
        elif found:
            leaves.append(Leaf(found, box, depth))
            size += 16 << depth
        if size > MOST_BYTES:
            raise Inexact(f"its tables would be larger than {MOST_BYTES // 1_000_000} MB")
    return base, leaves


def _weigher(head: "NodeProto", listed: list[int], outputs: int) -> Callable[[int], list[tuple[int, float]]]:
    """Return the explained outputs, with signs, that a weight of an ensemble's output adds to."""
    if outputs > 1 or not head.op_type.endswith("Classifier"):
        return lambda output: [(output, 1.0)]
    if len(listed) == 1:  # of two classes, one has weights: they are those of the second
        return lambda output: [(0, 1.0)]
    if _attribute(head, "post_transform", b"NONE") == b"SOFTMAX":
        return lambda output: [(0, 1.0 if output == 1 else -1.0)]
    return lambda output: [(0, 1.0)] if output == 1 else []


def _walk(nodes: dict[str, Any], place: dict[tuple[int, int], int], roots: list[int]) -> Iterator[tuple[Box, int]]:
    """Yield each leaf's conditions and its place among the nodes."""
    lowest, highest = np.float32(-np.inf), np.float32(np.inf)
    tracks = nodes.get("nodes_missing_value_tracks_true") or [0] * len(nodes["nodes_modes"])
    waiting: list[tuple[int, Box]] = [(root, {}) for root in reversed(roots)]
    while waiting:
        number, box = waiting.pop()
        mode = nodes["nodes_modes"][number]
        if mode == b"LEAF":
            yield box, number
            continue
        if mode not in MODES:
            raise Inexact("its trees have nodes of an unknown kind")
        limit = np.float32(nodes["nodes_values"][number])
        if mode in (b"BRANCH_LT", b"BRANCH_GTE"):
            limit = np.nextafter(limit, lowest)  # from here on, all kinds are "at most `limit`" and "above `limit`"
        tree, feature = nodes["nodes_treeids"][number], nodes["nodes_featureids"][number]
        children = [place[tree, nodes[name][number]] for name in ("nodes_truenodeids", "nodes_falsenodeids")]
        true_below = mode in (b"BRANCH_LEQ", b"BRANCH_LT")
        lower, upper = children if true_below else children[::-1]
        gap_below = bool(tracks[number]) == true_below
        least, most, missing = box.get(feature, (lowest, highest, True))
        over = max(least, np.nextafter(limit, highest))
        waiting.append((upper, box | {feature: (over, most, missing and not gap_below)}))
        waiting.append((lower, box | {feature: (least, min(most, limit), missing and gap_below)}))


# Checks


def _check_sums(explainer: Trees | Linear, split: Split, tensors: Tensors) -> Array:
    """Return the sums of baseline and contributions of some rows, after a comparison with the model's own margins."""
    some = {name: tensor[:CHECKED] for name, tensor in tensors.items()}
    found = explainer.baseline + explainer.explain(some).sum(axis=1)
    matrix = split.matrix[:CHECKED]
    expected = sum_margins(split, matrix, found.shape[1])
    if not np.allclose(found, expected, rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE):
        raise Inexact("its contributions do not add up")
    return found


def sum_margins(split: Split, matrix: Array, outputs: int) -> Array:
    """Return the margins [N, outputs] of rows, by the trees or coefficients themselves."""
    if split.head.op_type.startswith("Linear"):
        arrays, _ = build_linear(split, outputs)
        start = arrays["baseline"] - arrays["coefficients"] @ arrays["mean"]
        return np.asarray(start + matrix.astype(np.float64) @ arrays["coefficients"].T)
    base, leaves = read_trees(split.head, split.columns, outputs)
    made = np.tile(base, (len(matrix), 1))
    for leaf in leaves:
        reached = np.ones(len(matrix), bool)
        for feature, (least, most, missing) in leaf.box.items():
            values = matrix[:, feature]
            reached &= np.where(np.isnan(values), missing, (values >= least) & (values <= most))
        for output, weight in leaf.weights:
            made[reached, output] += weight
    return made


def _check_link(link: Link, margins: Array, outputs: Array, values: bool) -> None:
    """Check that the service's answer follows from the margins."""
    tolerance = VALUE_TOLERANCE * max(float(np.abs(outputs).max()), 1e-30) if values else TOLERANCE
    if not np.allclose(link.apply(margins), outputs, rtol=0, atol=tolerance):
        raise Inexact("its answers do not follow from its trees or coefficients alone")


def _follow_sigmoid(
    arrays: dict[str, Array], margins: Array, outputs: Array, problem: str
) -> tuple[dict[str, Array], Link, Array]:
    """Return the arrays for the log-odds of calibrated probabilities, the link, and the margins of the same rows.

    Of two classes, a sigmoid above a model (see `ondol.training.calibration`) makes the log-odds a multiple of its
    margin plus a constant. Both follow from the answers.

    Raises:
        Inexact: the answers are not probabilities of two classes, or all the same.
    """
    inside = (outputs[:, 0] > 1e-3) & (outputs[:, 0] < 1 - 1e-3)  # where rounding changes the log-odds little
    if problem != "binary" or not inside.any() or np.ptp(margins[inside, 0]) == 0:
        raise Inexact("its answers do not follow from its trees or coefficients alone")
    known = outputs[inside, 0].astype(np.float64)
    slope, shift = np.polyfit(margins[inside, 0], np.log(known / (1 - known)), 1)
    name = "weight" if "weight" in arrays else "coefficients"
    scaled = {name: arrays[name] * slope, "baseline": arrays["baseline"] * slope + shift}
    link = Link("log-odds", lambda margins: 1 / (1 + np.exp(-margins)))
    return arrays | scaled, link, margins * slope + shift


def _check_mixing(
    run: Callable[[Tensors], Array], columns: Array, tensors: Tensors, inputs: Sequence[tuple[str, int]]
) -> None:
    """Check that each column of the matrix follows its column of the contract, on rows mixed of two others."""
    rng = np.random.default_rng(SEED)
    rows = len(next(iter(tensors.values())))
    one, other = rng.integers(0, rows, (2, 2 * CHECKED))
    taken = rng.random((len(one), max(column for _, column in inputs) + 1)) < 0.5
    mixed = {
        name: np.where(taken[:, column, None], tensors[name][one], tensors[name][other]) for name, column in inputs
    }
    first, second = (run({name: tensors[name][rows] for name, _ in inputs}) for rows in (one, other))
    expected = np.where(taken[:, columns], first, second)
    if not np.array_equal(run(mixed), expected, equal_nan=True):
        raise Inexact("its features combine several columns")


# Approximations


def _build_sampling(scorer: Scorer, frame: pd.DataFrame, reason: str) -> Explanation:
    """Return a background for approximations.

    Values of sensitive columns are shuffled: the rows are stored, and must not tell what belongs to a person.
    """
    columns = len(scorer.contract.features)
    rows = int(np.clip(MOST_RUNS // (2 * max(columns - 1, 1)), *SAMPLED))
    frame = frame.head(rows).copy()
    rng = np.random.default_rng(SEED)
    for column in scorer.contract.features:
        if column.role == "sensitive":
            frame[column.name] = frame[column.name].to_numpy()[rng.permutation(len(frame))]
    tensors = make_tensors(scorer.contract, encode(scorer.contract, frame))
    arrays = {name: tensor.astype(str) if tensor.dtype == object else tensor for name, tensor in tensors.items()}
    scale = "value" if scorer.contract.classes is None else "probability"
    about = {"method": "approximate", "scale": scale, "background": len(frame), "reason": reason}
    return Explanation({ARRAYS: _to_npz(arrays)}, about)


def _to_npz(arrays: dict[str, Array]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()
