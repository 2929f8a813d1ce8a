"""Gives an ONNX graph the bundle's outputs, and the same names however often it is compiled."""

from typing import Any

GRID = 2.0**20  # probabilities closer than this apart are equal: a forest's votes, summed as float32, are not exact


def name_values(graph: Any, outputs: tuple[str, ...]) -> None:
    """Rename every value: inputs stay, outputs become `outputs`, the rest `v0`, `v1`, … in order.

    The converter counts through all models of a process, so that its own names differ from run to run.
    """
    names = {value.name: value.name for value in graph.input}
    names |= {value.name: new for value, new in zip(graph.output, outputs, strict=True)}
    names[""] = ""  # an optional input that is left out
    _rename(graph, names)


def break_ties(graph: Any) -> None:
    """Give `label` to the first of equally probable classes, as scikit-learn does."""
    from onnx import TensorProto, helper, numpy_helper

    for node in graph.node:
        node.output[:] = ["unused_label" if name == "label" else name for name in node.output]
    made = [
        helper.make_node("Mul", ["probabilities", "grid"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("ArgMax", ["rounded"], ["label"], axis=1, keepdims=0),
    ]
    graph.node.extend(made)
    graph.initializer.append(numpy_helper.from_array(_scalar(GRID), "grid"))
    label = next(value for value in graph.output if value.name == "label")
    label.CopyFrom(helper.make_tensor_value_info("label", TensorProto.INT64, [None]))


def _scalar(value: float) -> Any:
    import numpy as np

    return np.array(value, dtype=np.float32)


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
