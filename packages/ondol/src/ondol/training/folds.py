"""The folds of the training rows, and predictions of rows that a model was not fitted on.

The folds respect the split: by time, each fold is later than the rows it is predicted from; the rows of a group or an
id are in one fold.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ondol.config import Settings
from ondol.contract import Contract, encode, encode_target
from ondol.training.calibration import calibrate_folds, read_scores
from ondol.training.candidates import Params
from ondol.training.dataset import hash_keys, key_column
from ondol.training.pipeline import build_pipeline, fitting

FOLDS = 5
MOST_ROWS = 50_000  # that are predicted: more would change a threshold or a sigmoid little
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of training rows by models that were not fitted on them.

    Attributes:
        target: The encoded target of the rows, [N].
        predictions: The probabilities of the classes, [N, K], or the values, [N].
        folds: The number of each row's fold, [N].
        scores: For classes, what sigmoids take, see `ondol.training.calibration`; for values, the predictions, [N, 1].
    """

    target: NDArray[Any]
    predictions: NDArray[np.float64]
    folds: NDArray[np.intp]
    scores: NDArray[np.float64]

    def calibrated(self) -> "OutOfFold":
        """Return the rows with calibrated probabilities, each by sigmoids fitted on the other folds."""
        return replace(self, predictions=calibrate_folds(self.scores, self.target, self.folds))


def predict_out_of_fold(settings: Settings, contract: Contract, frame: pd.DataFrame, params: Params) -> OutOfFold:
    """Fit the model on folds of the rows, and predict the others; nothing is predicted where no fold can be made.

    Args:
        settings: The settings.
        contract: The contract with its encodings.
        frame: The rows, in the contract's dtypes; of more than `MOST_ROWS`, a sample is used.
        params: The parameters of `build_estimator`.

    Raises:
        UserError: the model cannot be built or fitted.
    """
    sample = frame.sample(min(len(frame), MOST_ROWS), random_state=settings.train.seed)
    features, target = encode(contract, sample), encode_target(contract, sample[contract.target])
    rows: list[NDArray[np.intp]] = []
    made: list[NDArray[np.float64]] = []
    scores: list[NDArray[np.float64]] = []
    for fit, predict in make_folds(settings, contract, sample, target):
        pipeline = build_pipeline(settings, params)
        with fitting():
            pipeline.fit(features.iloc[fit], target[fit])
            of = pipeline.predict if contract.classes is None else pipeline.predict_proba
            made.append(np.asarray(of(features.iloc[predict]), np.float64))
            scores.append(
                made[-1].reshape(len(predict), -1)
                if contract.classes is None
                else read_scores(pipeline, features.iloc[predict])
            )
        rows.append(predict)
    places = np.concatenate([*rows, np.empty(0, np.intp)])
    empty = np.empty((0,) if contract.classes is None else (0, len(contract.classes)))
    folds = np.repeat(np.arange(len(rows)), [len(one) for one in rows])
    predictions = np.concatenate([*made, empty])
    return OutOfFold(target[places], predictions, folds, np.concatenate(scores) if scores else empty)


def make_folds(settings: Settings, contract: Contract, frame: pd.DataFrame, target: NDArray[Any]) -> list[Fold]:
    """Return the folds of the rows: row numbers to fit on, and row numbers to predict."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold, TimeSeriesSplit

    classes = contract.problem != "regression"
    count = min(FOLDS, len(frame) // 10)
    if count < 2:
        return []
    keys, time_column = hash_keys(frame, contract), contract.role("time")
    if settings.split.by == "time" and time_column is not None:
        times = frame[time_column.name].to_numpy()
        order = np.argsort(times, kind="stable")
        pairs = [(order[fit], order[predict]) for fit, predict in TimeSeriesSplit(count).split(order)]
        pairs = [(fit[times[fit] < times[predict].min()], predict) for fit, predict in pairs]  # as in the holdout
        if key_column(contract) is not None:  # as in the holdout, no key is on both sides
            pairs = [(fit, predict[~np.isin(keys[predict], keys[fit])]) for fit, predict in pairs]
        # The latest first: they are the most like the future, and have the most rows to fit on.
        return [pair for pair in pairs[::-1] if _is_usable(target, *pair, classes)]
    seed = settings.train.seed
    grouped = len(np.unique(keys)) < len(keys)
    kinds = (StratifiedGroupKFold, GroupKFold) if grouped else (StratifiedKFold, KFold)
    splitter = kinds[0 if classes else 1](count, shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a class may have fewer rows than folds
        try:
            found = list(splitter.split(frame, target, keys if grouped else None))
        except ValueError:  # too few groups, or no class has enough rows
            return []
    return [(fit, predict) for fit, predict in found if _is_usable(target, fit, predict, classes)]


def _is_usable(target: NDArray[Any], fit: NDArray[np.intp], predict: NDArray[np.intp], classes: bool) -> bool:
    """Return True if a fold has rows on both sides, and every class among those to fit on."""
    if not len(predict) or len(fit) < 2:
        return False
    return len(np.unique(target[fit])) == len(np.unique(target)) > 1 if classes else True
