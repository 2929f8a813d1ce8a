"""Brings a copy of a fitted pipeline into a form that the converter gets right.

The converter is silently wrong in places: it rewrites column names and rounds thresholds to float32 upwards. Each
is mended here on a copy that shares the fitted trees and arrays with the original.
"""

import copy
from typing import Any

import numpy as np

from ondol.training.pipelines import parts_of


def prepare_copy(pipeline: Any) -> Any:
    """Return a copy of `pipeline` that converts to the same function."""
    made = copy.deepcopy(pipeline, _shared(pipeline))
    for part in list(parts_of(made)):
        if hasattr(part, "transformers_") and hasattr(part, "_transformer_to_input_indices"):
            _number_columns(part)
        if hasattr(part, "_predictors"):
            _floor_thresholds(part)
        if isinstance(getattr(part, "steps", None), list):
            part.steps = [step for step in part.steps if step[1] is not None and step[1] != "passthrough"]
        if hasattr(part, "flatten_transform"):  # shapes only what VotingClassifier.transform gives
            part.flatten_transform = False
        if hasattr(part, "_weights_not_none") and part.weights is not None:  # a list, which the converter cannot sum
            part.weights = np.asarray(part.weights, np.float64)
        part.__dict__.pop("feature_names_in_", None)
    return made


def floor_to_float32(values: np.ndarray) -> np.ndarray:
    """Return the largest float32 at or below each value: `x <= t` then says the same for every float32 `x`."""
    rounded = values.astype(np.float32)
    above = rounded.astype(np.float64) > values
    rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
    return rounded


def _shared(pipeline: Any) -> dict[int, Any]:
    """Return the memo under which a deep copy shares trees and arrays, which may take gigabytes."""
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
