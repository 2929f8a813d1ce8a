"""Brings a copy of a fitted pipeline into a form that the converter gets right, or refuses it.

The converter is silently wrong in places: it rewrites column names, rounds thresholds to float32 upwards, and
mistakes native categories. Each is mended here on a copy, or said.
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from flows.errors import UserError

BY_SKLEARN = 'set runtime = "sklearn" under [deploy] in config.toml to serve it by scikit-learn itself'


def prepare_copy(pipeline: Any) -> Any:
    """Return a copy of `pipeline` that converts to the same function.

    Raises:
        UserError: it holds something that would convert wrongly.
    """
    made = copy.deepcopy(pipeline)
    for part in _parts(made, set()):
        if getattr(part, "transformers_", None) is not None:
            _number_columns(part)
        if hasattr(part, "_predictors"):
            _refuse_native_categories(part)
            _floor_thresholds(part)
    for part in _parts(made, set()):
        part.__dict__.pop("feature_names_in_", None)
    return made


def floor_to_float32(values: np.ndarray) -> np.ndarray:
    """Return the largest float32 at or below each value: `x <= t` then says the same for every float32 `x`."""
    rounded = values.astype(np.float32)
    above = rounded.astype(np.float64) > values
    rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
    return rounded


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield every estimator in `value`, however deep."""
    from sklearn.base import BaseEstimator

    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, BaseEstimator):
        yield value
        children: Any = list(vars(value).values())
    elif isinstance(value, dict):
        children = list(value.values())
    elif isinstance(value, list | tuple):
        children = value
    elif isinstance(value, np.ndarray) and value.dtype == object:
        children = value.ravel().tolist()
    else:
        children = list(vars(value).values()) if type(value).__name__ == "_CalibratedClassifier" else []
    for child in children:
        yield from _parts(child, seen)


def _number_columns(transformer: Any) -> None:
    """Replace column names by positions: the converter mixes up names such as `a b` and `a_b`."""
    names = list(getattr(transformer, "feature_names_in_", []))
    width = transformer.n_features_in_
    transformer.transformers_ = [
        (name, step, _positions(columns, names, width)) for name, step, columns in transformer.transformers_
    ]


def _positions(columns: Any, names: list[str], width: int) -> list[int]:
    if isinstance(columns, slice):
        bounds = [names.index(b) if isinstance(b, str) else b for b in (columns.start, columns.stop)]
        inclusive = int(isinstance(columns.stop, str))
        return list(range(width))[slice(bounds[0], None if bounds[1] is None else bounds[1] + inclusive, columns.step)]
    chosen = [columns] if isinstance(columns, str | int) else list(columns)
    if chosen and all(isinstance(c, bool | np.bool_) for c in chosen):
        return [int(i) for i in np.flatnonzero(chosen)]
    return [names.index(c) if isinstance(c, str) else int(c) for c in chosen]


def _refuse_native_categories(estimator: Any) -> None:
    mask = getattr(estimator, "is_categorical_", None)
    if mask is not None and np.any(mask):
        raise UserError(
            f"{type(estimator).__name__} with categorical_features cannot be compiled rightly: leave that out and put an "
            f"OrdinalEncoder in front of it in model/features.py, or {BY_SKLEARN}."
        )


def _floor_thresholds(estimator: Any) -> None:
    for stage in estimator._predictors:
        for predictor in stage:
            thresholds = predictor.nodes["num_threshold"]
            finite = np.isfinite(thresholds)
            thresholds[finite] = floor_to_float32(thresholds[finite])
