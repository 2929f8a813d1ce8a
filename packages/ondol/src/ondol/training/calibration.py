"""Calibration of a classifier's probabilities by sigmoids, fitted on rows that the classifier was not fitted on.

Each class has a sigmoid of the classifier's score for it (Platt, 1999); of more than two classes, the results are
divided by their sum. The score is the value of `decision_function` (log-odds, for boosting and linear models), else the
probability. The parts are those of scikit-learn's `CalibratedClassifierCV(ensemble=False)`, which cannot take folds by
time. It compiles exactly.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LOWEST = 1e-6  # probabilities nearer to 0 or 1 count as this near


def log_odds(probabilities: Floats) -> Floats:
    """Return the logarithm of p / (1 - p), of the same shape."""
    clipped = np.clip(probabilities, LOWEST, 1 - LOWEST)
    return np.asarray(np.log(clipped / (1 - clipped)))


def read_scores(classifier: Any, rows: Any) -> Floats:
    """Return the scores that the sigmoids take, [N, K]; of two classes, only those of the second, [N, 1]."""
    if hasattr(classifier, "decision_function"):
        scores = np.asarray(classifier.decision_function(rows), np.float64)
        return scores.reshape(len(scores), -1)
    scores = np.asarray(classifier.predict_proba(rows), np.float64)
    return scores[:, 1:] if scores.shape[1] == 2 else scores


def fit_sigmoids(scores: Floats, target: NDArray[Any]) -> list[Any]:
    """Return the fitted sigmoid of each column of scores.

    Args:
        scores: As from `read_scores`.
        target: The index of each row's class, [N].
    """
    from sklearn.calibration import _SigmoidCalibration

    first = 1 if scores.shape[1] == 1 else 0
    return [_SigmoidCalibration().fit(column, target == first + place) for place, column in enumerate(scores.T)]


def apply_sigmoids(sigmoids: Sequence[Any], scores: Floats) -> Floats:
    """Return the probabilities of the classes, [N, K]."""
    made = np.column_stack([one.predict(column) for one, column in zip(sigmoids, scores.T, strict=True)])
    if made.shape[1] == 1:
        return np.hstack([1 - made, made])
    return np.asarray(made / made.sum(axis=1, keepdims=True))


def calibrate_folds(scores: Floats, target: NDArray[Any], folds: NDArray[Any]) -> Floats:
    """Return the calibrated probabilities of each row, [N, K], by sigmoids fitted on the rows of the other folds.

    Args:
        scores: As from `read_scores`.
        target: The index of each row's class, [N].
        folds: The number of each row's fold, [N].
    """
    made = np.empty((len(scores), max(scores.shape[1], 2)))
    for fold in np.unique(folds):
        here = folds == fold
        made[here] = apply_sigmoids(fit_sigmoids(scores[~here], target[~here]), scores[here])
    return made


def with_sigmoids(classifier: Any, sigmoids: Sequence[Any]) -> Any:
    """Return a fitted classifier with sigmoids above it, as one estimator of scikit-learn."""
    from sklearn.calibration import CalibratedClassifierCV, _CalibratedClassifier

    made = CalibratedClassifierCV(classifier, method="sigmoid", ensemble=False)
    made.classes_ = classifier.classes_
    if hasattr(classifier, "n_features_in_"):
        made.n_features_in_ = classifier.n_features_in_
    made.calibrated_classifiers_ = [
        _CalibratedClassifier(classifier, list(sigmoids), classes=classifier.classes_, method="sigmoid")
    ]
    return made
