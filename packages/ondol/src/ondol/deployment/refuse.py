"""Refuses what the converter would turn, without a word, into another function."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ondol.contract import Column, Contract
from ondol.errors import UserError
from ondol.training.pipelines import final_estimator, parts_of

BY_SKLEARN = (
    'set runtime = "sklearn" under [deploy] in config.toml to serve it by scikit-learn itself, by an image that is '
    "built with GROUP=service-sklearn"
)


def refuse_unfaithful(pipeline: Any, contract: Contract) -> None:
    """Check a fitted pipeline for parts that convert wrongly.

    Raises:
        UserError: there is one; says what to put in its place.
    """
    if contract.classes is not None:
        _refuse_unsure(pipeline, contract)
    for part in parts_of(pipeline):
        for problem, mend in _problems(part):
            raise UserError(f"{type(part).__name__} {problem} cannot be compiled rightly: {mend}, or {BY_SKLEARN}.")
    for column in _numbers_as_categories(pipeline, contract):
        raise UserError(
            f'OneHotEncoder on the column "{column.name}" cannot be compiled rightly, because its numbers need not be '
            f"whole: declare it as int in model/schema.py or use KBinsDiscretizer, or {BY_SKLEARN}."
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
    """Yield what is wrong with one estimator, and what to do."""
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
        yield "with its threshold", "use the estimator in it, and choose the threshold where the probability is used"


def _loses_missing(encoder: Any) -> bool:
    gaps = any(c.dtype.kind == "f" and len(c) and np.isnan(c[-1]) for c in getattr(encoder, "categories_", ()))
    return gaps and np.isnan(encoder.encoded_missing_value)


def _numbers_as_categories(pipeline: Any, contract: Contract) -> Iterator[Column]:
    """Yield number columns that go straight to a OneHotEncoder: the converter cuts off their fractions."""
    features = contract.features  # whose parts, behind them, are whole numbers
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
