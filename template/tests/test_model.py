"""How this project's model behaves. Yours to edit: this holds for any data, add what holds for yours.

`rows` are some rows of the source, `features` the same as the model gets them, `target` what to predict.
`fitted.pipeline` is the scikit-learn pipeline of model/features.py and model/estimator.py, fitted on them.
"""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone

from ondol.config import Settings
from ondol.training.pipeline import build_pipeline
from ondol.training.train import Fitted


def predict(pipeline: Any, features: pd.DataFrame) -> Any:
    """Return what counts: probabilities, [N, K], or values, [N]."""
    return pipeline.predict_proba(features) if hasattr(pipeline, "predict_proba") else pipeline.predict(features)


def test_model_is_cloned_with_its_parameters(settings: Settings) -> None:
    pipeline = build_pipeline(settings)
    assert set(clone(pipeline).get_params()) == set(pipeline.get_params())


def test_there_is_one_finite_prediction_for_each_row(fitted: Fitted, features: pd.DataFrame) -> None:
    predicted = predict(fitted.pipeline, features)
    assert len(predicted) == len(features)
    assert np.isfinite(predicted).all()


def test_probabilities_sum_to_one(fitted: Fitted, features: pd.DataFrame) -> None:
    classes = fitted.contract.classes
    if classes is not None:
        probabilities = predict(fitted.pipeline, features)
        assert probabilities.shape == (len(features), len(classes))
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_order_of_rows_does_not_matter(fitted: Fitted, features: pd.DataFrame) -> None:
    forwards, backwards = predict(fitted.pipeline, features), predict(fitted.pipeline, features[::-1])
    np.testing.assert_allclose(backwards[::-1], forwards, rtol=1e-6, atol=1e-9)


def test_same_seed_gives_the_same_model(
    settings: Settings, fitted: Fitted, features: pd.DataFrame, target: "np.ndarray[Any, Any]"
) -> None:
    again = build_pipeline(settings).fit(features, target)
    np.testing.assert_allclose(predict(again, features), predict(fitted.pipeline, features), rtol=1e-6, atol=1e-9)
