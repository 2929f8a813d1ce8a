"""Converters of scikit-learn's own trees and forests, which send missing values where training sent them.

skl2onnx 1.20 converts `missing_go_to_left` for HistGradientBoosting alone: in every other tree a missing value goes
right, without an error.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

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
    """Convert a tree or forest as skl2onnx does, then say which way missing values go."""
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
