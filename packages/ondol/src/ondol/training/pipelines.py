"""The estimators inside a scikit-learn pipeline."""

from collections.abc import Iterator
from typing import Any

import numpy as np


def parts_of(value: Any) -> Iterator[Any]:
    """Yield every estimator in `value`, however deep, each once."""
    yield from _walk(value, set())


def final_estimator(pipeline: Any) -> Any:
    """Return what makes the prediction: the last step, or the best that a search found."""
    while True:
        if isinstance(getattr(pipeline, "steps", None), list):
            pipeline = pipeline.steps[-1][1]
        elif hasattr(pipeline, "best_estimator_"):
            pipeline = pipeline.best_estimator_
        else:
            return pipeline


def round_targets(pipeline: Any) -> None:
    """Round what a fitted pipeline's target encoders give to float32, which is what a compiled model computes in."""
    for part in parts_of(pipeline):
        if type(part).__name__ == "TargetEncoder" and hasattr(part, "encodings_"):
            part.encodings_ = [_round(values) for values in part.encodings_]
            part.target_mean_ = _round(part.target_mean_)


def _walk(value: Any, seen: set[int]) -> Iterator[Any]:
    from sklearn.base import BaseEstimator

    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, BaseEstimator):
        yield value
    for child in _children(value):
        yield from _walk(child, seen)


def _children(value: Any) -> list[Any]:
    from sklearn.base import BaseEstimator

    if isinstance(value, BaseEstimator) or type(value).__name__ == "_CalibratedClassifier":
        return list(vars(value).values())
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    return value.ravel().tolist() if isinstance(value, np.ndarray) and value.dtype == object else []


def _round(values: Any) -> Any:
    return np.asarray(values).astype(np.float32).astype(np.float64)[()]  # a scalar stays one
