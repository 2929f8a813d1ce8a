"""The project's pipeline of features and estimator: building it, fitting it, and walking through its parts."""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import numpy as np

from ondol.config import Settings
from ondol.errors import UserError
from ondol.project import OWN_ERRORS, describe_error, import_owned
from ondol.training.candidates import Params, read_candidates


def build_pipeline(settings: Settings, params: Params | None = None) -> Any:
    """Return the project's unfitted pipeline: features, then estimator.

    Args:
        settings: The settings, which have the problem and the seed.
        params: The parameters of `build_estimator`; None for those of the first candidate. `build_features` gets those
            that it has as arguments; of these, `build_estimator` only gets what it has as arguments, too.

    Raises:
        UserError: `model/features.py` or `model/estimator.py` cannot be imported or called.
    """
    from sklearn.pipeline import Pipeline

    features, estimator = import_owned("features"), import_owned("estimator")
    params = read_candidates(settings)[0] if params is None else params
    problem = {"problem": settings.data.problem} if asks_for("problem") else {}
    shaping = features_params(params)
    try:
        own = shaping.keys() - signature(estimator.build_estimator).parameters
        rest = {name: value for name, value in params.items() if name not in own}
        made = estimator.build_estimator(settings.data.problem, settings.train.seed, **rest)
        built = features.build_features(**problem, **shaping)
        pipeline = Pipeline([("features", built), ("estimator", made)])
    except OWN_ERRORS as error:
        raise UserError(
            f"The model of model/estimator.py and model/features.py cannot be built: {describe_error(error)}."
        ) from error
    if not hasattr(made, "get_params"):
        raise UserError(
            f"build_estimator in model/estimator.py returned {type(made).__name__}: return an estimator that inherits "
            "sklearn.base.BaseEstimator."
        )
    if settings.data.problem != "regression" and not hasattr(pipeline, "predict_proba"):
        raise UserError(
            f"{type(made).__name__} in model/estimator.py gives no probabilities, which metrics and service need: "
            "wrap it in sklearn.calibration.CalibratedClassifierCV."
        )
    return pipeline


def asks_for(argument: str) -> bool:
    """Return True if `build_features` has an argument.

    The one of 0.1.0 has none, and may select the last columns; the one of 0.5.0 has the problem alone.
    """
    build = getattr(import_owned("features"), "build_features", None)
    return callable(build) and argument in signature(build).parameters


def features_params(params: Params) -> dict[str, Any]:
    """Return the parameters that `build_features` has as arguments."""
    return {name: value for name, value in params.items() if name != "problem" and asks_for(name)}


@contextmanager
def fitting() -> Iterator[None]:
    """Turn an error of the project's code while it is fitted into a sentence.

    Raises:
        UserError: the project's code fails.
    """
    try:
        yield
    except OWN_ERRORS as error:
        reason = str(error) if isinstance(error, ValueError | TypeError) else f"{describe_error(error)}."
        raise UserError(f"model/estimator.py or model/features.py failed to fit: {reason}") from error


def parts_of(value: Any) -> Iterator[Any]:
    """Yield every estimator in `value`, at any depth, each once."""
    yield from _walk(value, set())


def final_estimator(pipeline: Any) -> Any:
    """Return the estimator that predicts: the last step, or the best one of a search."""
    while True:
        if isinstance(getattr(pipeline, "steps", None), list):
            pipeline = pipeline.steps[-1][1]
        elif hasattr(pipeline, "best_estimator_"):
            pipeline = pipeline.best_estimator_
        else:
            return pipeline


def round_targets(pipeline: Any) -> None:
    """Round the encodings of a fitted pipeline's target encoders to float32, in which a compiled model computes."""
    for part in parts_of(pipeline):
        if type(part).__name__ == "TargetEncoder" and hasattr(part, "encodings_"):
            part.encodings_ = [_round(values) for values in part.encodings_]
            part.target_mean_ = _round(part.target_mean_)


def _walk(value: Any, seen: set[int]) -> Iterator[Any]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if _is_estimator(value):
        yield value
    for child in _children(value):
        yield from _walk(child, seen)


def _is_estimator(value: Any) -> bool:
    # Not by the class: CatBoost's estimators do not inherit scikit-learn's.
    return hasattr(value, "get_params") and not isinstance(value, type)


def _children(value: Any) -> list[Any]:
    if _is_estimator(value) or type(value).__name__ == "_CalibratedClassifier":
        return list(vars(value).values())
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    return value.ravel().tolist() if isinstance(value, np.ndarray) and value.dtype == object else []


def _round(values: Any) -> Any:
    return np.asarray(values).astype(np.float32).astype(np.float64)[()]  # a scalar remains a scalar
