"""Looks for single columns that give the target away."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from flows.init.profiles import Profile
from flows.sections import Problem

SUSPICIOUS = 0.99
SAMPLE_ROWS = 20_000
FEWEST_ROWS = 50
FOLDS = 3
LEAVES = 256


def find_leaks(features: Sequence[Profile], target: Profile, problem: Problem) -> dict[str, float]:
    """Return the columns that alone predict the target almost perfectly, with their scores.

    A small tree is cross-validated on each column over at most 20,000 rows: ROC AUC for a binary target,
    balanced accuracy for a multiclass one, R² (or the agreement of ranks) for regression; 0.99 is suspicious.
    """
    known = target.values.notna().to_numpy()
    y = target.values[known].reset_index(drop=True)
    chosen = np.sort(np.random.default_rng(0).permutation(len(y))[:SAMPLE_ROWS])
    y = y.iloc[chosen]
    if problem != "regression":
        y = pd.Series(pd.factorize(y, sort=True)[0], index=y.index)
        frequent = y.isin(y.value_counts()[lambda counts: counts >= FOLDS].index).to_numpy()
        chosen, y = chosen[frequent], y[frequent]
    if len(y) < FEWEST_ROWS or y.nunique() < 2:
        return {}
    labels = y.to_numpy(dtype=float)
    scores = {p.name: _score(_as_numbers(p)[known][chosen], labels, problem) for p in features}
    return {name: score for name, score in scores.items() if score > SUSPICIOUS}


def _as_numbers(profile: Profile) -> np.ndarray:
    """Return a column as float64 for a tree: dates as microseconds, texts as ranks, NaN where missing."""
    values: pd.Series[Any] = profile.values
    if profile.kind == "text":
        codes = pd.factorize(values, sort=True)[0].astype(float)
        return np.where(codes < 0, np.nan, codes)
    if profile.kind == "date":
        return values.astype("datetime64[us]").astype("int64").where(values.notna()).to_numpy(dtype=float)
    return values.astype("float64").to_numpy(dtype=float)


def _score(x: np.ndarray, y: np.ndarray, problem: Problem) -> float:
    from sklearn.model_selection import cross_val_score
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    made = DecisionTreeRegressor if problem == "regression" else DecisionTreeClassifier
    tree = made(max_leaf_nodes=LEAVES, min_samples_leaf=3, random_state=0)
    folds: Any = FOLDS
    if problem == "regression":
        from sklearn.model_selection import KFold

        folds = KFold(FOLDS, shuffle=True, random_state=0)
    rule = {"binary": "roc_auc", "multiclass": "balanced_accuracy", "regression": "r2"}[problem]
    clipped = np.clip(x, -1e30, 1e30).reshape(-1, 1)
    score = float(np.mean(cross_val_score(tree, clipped, y, cv=folds, scoring=rule)))
    return max(score, _rank_agreement(x, y)) if problem == "regression" else score


def _rank_agreement(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's rho squared: 1 for any monotone function of the target, however long its tail."""
    if np.isnan(x).mean() > 1 - SUSPICIOUS or np.nanmin(x) == np.nanmax(x):
        return 0.0
    return float(pd.Series(x).rank().corr(pd.Series(y).rank()) ** 2)
