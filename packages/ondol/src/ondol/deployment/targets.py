"""The converter of scikit-learn's TargetEncoder.

skl2onnx 1.20 has none for more than two classes, and its own looks up each value once for every number it stands for.
"""

from typing import Any

import numpy as np


def convert_targets(scope: Any, operator: Any, container: Any) -> None:
    """Look up each text's place once, and take the row of that place: the numbers it stands for, one for each class."""
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
    """Say how many numbers each row becomes."""
    from skl2onnx.common.data_types import FloatTensorType

    encoder = operator.raw_operator
    width = len(encoder.categories_) * _table(encoder, 0).shape[1]
    operator.outputs[0].type = FloatTensorType([operator.inputs[0].get_first_dimension(), width])


def _columns(scope: Any, operator: Any, container: Any) -> list[str]:
    """Return the names of the single columns that the inputs hold."""
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
    """Return the numbers of one column's values, [values + 1, classes], an unknown one's last."""
    kinds = len(encoder.classes_) if encoder.target_type_ == "multiclass" else 1
    known = np.stack(encoder.encodings_[place * kinds : (place + 1) * kinds], axis=1)
    return np.vstack([known, np.reshape(encoder.target_mean_, (1, kinds))]).astype(np.float32)


def _name(scope: Any) -> str:
    return scope.get_unique_operator_name("TargetEncoder")
