"""Single columns that give the target away: a copy, a code for it, or whatever else predicts it alone."""

from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import pandas as pd

from ondol.config.base import Problem
from ondol.contract import Column
from ondol.validation.leakage.alarms import (
    FEWEST_ROWS,
    MOST_CODES,
    SUSPICIOUS,
    SUSPICIOUS_CODE,
    Alarm,
    as_numbers,
    label,
    read_numbers,
)

FOLDS = 3
LEAVES = 256


def score_alone(frame: pd.DataFrame, columns: Sequence[Column], target: str, problem: Problem) -> dict[str, float]:
    """Return how well each column alone predicts the target, of 1.

    A small tree is cross-validated on each: ROC AUC for a binary target, balanced accuracy for a multiclass one, R² (or
    the agreement of ranks) for regression.

    Args:
        frame: A sample of the rows to train on, none without a target.
        columns: What to score.
        target: The column to predict.
        problem: What kind of prediction it is.
    """
    if problem != "regression":
        counts = frame[target].map(frame[target].value_counts())
        frame = frame[(counts >= FOLDS).to_numpy(bool)]
    y = label(frame[target], problem)
    if len(y) < FEWEST_ROWS or len(np.unique(y)) < 2:
        return {}
    return {column.name: max(_score(x, y, problem) for x in _views(frame[column.name], column)) for column in columns}


def find_codes(frame: pd.DataFrame, columns: Sequence[Column]) -> set[str]:
    """Return the columns that may be codes for something: flags, and texts or whole numbers of few values."""
    kinds = ("text", "boolean", "integer")
    return {c.name for c in columns if c.kind in kinds and frame[c.name].nunique() <= MOST_CODES}


def find_alone(scores: dict[str, float], codes: Set[str], problem: Problem) -> list[Alarm]:
    """Return an alarm for each column whose score is suspicious; of `codes` a lower one is, where it is a class's."""
    coded = SUSPICIOUS[problem] if problem == "regression" else SUSPICIOUS_CODE
    return [
        Alarm(
            "alone",
            (name,),
            score,
            f'"{name}" alone predicts the target almost perfectly ({score:.3f} of 1)',
            "if it is known only afterwards, give it the role ignored",
        )
        for name, score in scores.items()
        if score > (coded if name in codes else SUSPICIOUS[problem])
    ]


def _views(values: "pd.Series[Any]", column: Column) -> list[np.ndarray]:
    views = [as_numbers(values, column)]
    written = read_numbers(values) if column.kind == "text" else None
    return views if written is None else [*views, written]


def _score(x: np.ndarray, y: np.ndarray, problem: Problem) -> float:
    score = _cross_validate(x, y, problem)
    return max(score, _rank_agreement(x, y)) if problem == "regression" else score


def _cross_validate(x: np.ndarray, y: np.ndarray, problem: Problem) -> float:
    """Return a small tree's score on rows that it was not fitted on; `cross_val_score` takes ten times as long."""
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    tree = DecisionTreeRegressor if problem == "regression" else DecisionTreeClassifier
    values, folds = np.clip(x, -1e30, 1e30).reshape(-1, 1), _folds(y)
    scores = []
    for fold in range(FOLDS):
        made = tree(max_leaf_nodes=LEAVES, min_samples_leaf=3, random_state=0).fit(
            values[folds != fold], y[folds != fold]
        )
        held = values[folds == fold]
        predicted = made.predict_proba(held)[:, 1] if problem == "binary" else made.predict(held)
        scores.append(_judge(predicted, y[folds == fold], problem))
    return float(np.mean(scores))


def _folds(y: np.ndarray) -> np.ndarray:
    """Return each row's fold: rows of near or equal `y` are dealt out in turn, so that each fold has its share."""
    order = np.lexsort((np.random.default_rng(0).permutation(len(y)), y))
    folds = np.empty(len(y), np.int64)
    folds[order] = np.arange(len(y)) % FOLDS
    return folds


def _judge(predicted: np.ndarray, y: np.ndarray, problem: Problem) -> float:
    from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

    judge = {"binary": roc_auc_score, "multiclass": balanced_accuracy_score, "regression": r2_score}[problem]
    return float(judge(y, predicted))


def _rank_agreement(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's rho squared: 1 for any monotone function of the target, however long its tail."""
    if np.isnan(x).mean() > 1 - SUSPICIOUS["regression"] or np.nanmin(x) == np.nanmax(x):
        return 0.0
    return float(pd.Series(x).rank().corr(pd.Series(y).rank()) ** 2)
