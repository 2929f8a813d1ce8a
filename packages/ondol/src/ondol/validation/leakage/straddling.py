"""What is on both sides of the split: rows that are equal, and the members of a group that nobody declared."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ondol.config.base import Problem
from ondol.contract import Column, Contract
from ondol.validation.leakage.alarms import SAMPLE_ROWS, SUSPICIOUS, Alarm, label

MANY = 0.05  # a column with so many different values among its rows names things, such as households
# Of the held-out rows, such a share and as many at least must have a value that training knows.
COVERED, FEWEST = 0.9, 500
COVERED_BY_NAMES, FEWEST_BY_NAMES = 0.1, 50
SURE = 0.95  # from where on a column that names things tells the target
SMOOTH = 0.1  # unless a tree on its values comes as near: then it measures something
OF_EACH = 10
QUICK = 4
BY_CHANCE = 1e-4
TWINS, FEWEST_TWINS = 0.01, 5


def find_groups(
    train: pd.DataFrame,
    held: pd.DataFrame,
    columns: Sequence[Column],
    target: str,
    problem: Problem,
    alone: dict[str, float],
) -> list[Alarm]:
    """Return an alarm for each column whose values are on both sides of the split and go with one target.

    Args:
        train: All rows to train on.
        held: A sample of the rows held out.
        columns: The features.
        target: The column to predict.
        problem: What kind of prediction it is.
        alone: How well a tree predicts the target from each.
    """
    alarms = []
    for column in columns:
        score, names = _score_values(train, held, column, target, problem)
        names = names and score - alone.get(column.name, 0.0) > SMOOTH
        if score > (SURE if names else SUSPICIOUS[problem]):
            finding = (
                f'rows of one "{column.name}" are on both sides of the split and share the target ({score:.3f} of 1)'
            )
            remedy = "give it the role group, or ignored where it is a code for the target"
            alarms.append(Alarm("group", (column.name,), score, finding, remedy))
    return alarms


def _score_values(
    train: pd.DataFrame, held: pd.DataFrame, column: Column, target: str, problem: Problem
) -> tuple[float, bool]:
    """Return how well training rows of the same value tell the held-out target, and whether the column names things."""
    part = train.iloc[:: max(1, len(train) // SAMPLE_ROWS)]
    if _names(column, part):
        part = train
    part = part[part[column.name].isin(held[column.name].dropna())]
    known = held[column.name].isin(part[column.name]).to_numpy()
    names = _names(column, part)
    share, fewest = (COVERED_BY_NAMES, FEWEST_BY_NAMES) if names else (COVERED, FEWEST)
    if known.sum() < max(fewest, share * len(held)):
        return 0.0, names
    return _agree(part, held[known], column.name, target, problem), names


def _names(column: Column, rows: pd.DataFrame) -> bool:
    """Tell whether a column names things: text or whole numbers, of which there are many among the rows."""
    return column.kind in ("text", "integer") and rows[column.name].nunique() >= MANY * len(rows)


def _agree(part: pd.DataFrame, held: pd.DataFrame, name: str, target: str, problem: Problem) -> float:
    """Score for the held-out rows what the rows of the same value say."""
    if problem == "regression":
        y = label(held[target], problem)
        said = held[name].map(part[target].astype("float64").groupby(part[name]).mean()).to_numpy(np.float64)
        spread = float(((y - y.mean()) ** 2).sum())
        return 1 - float(((y - said) ** 2).sum()) / spread if spread else 0.0
    counts = held[target].value_counts()
    classes = sorted(counts[counts >= OF_EACH].index)
    if len(classes) < 2:
        return 0.0
    shares = pd.crosstab(part[name], part[target], normalize="index").reindex(columns=classes, fill_value=0.0)
    shown = held[held[target].isin(classes)]
    said = shares.reindex(shown[name]).to_numpy()
    y = pd.Index(classes).get_indexer(pd.Index(shown[target]))
    return _auc(y, said[:, 1]) if problem == "binary" else _balanced_accuracy(y, said.argmax(axis=1))


def _auc(y: np.ndarray, said: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, said))


def _balanced_accuracy(y: np.ndarray, said: np.ndarray) -> float:
    from sklearn.metrics import balanced_accuracy_score

    return float(balanced_accuracy_score(y, said))


def find_duplicates(train: pd.DataFrame, held: pd.DataFrame, contract: Contract) -> list[Alarm]:
    """Return an alarm where rows held out equal rows to train on in all features and the target.

    A row counts where chance does not explain it: where fewer than 0.0001 rows like it would be expected if the columns
    were independent. From 1% of the held-out rows on (and five) it is an alarm. It names the column that the
    split goes by, under which equal rows can be on both sides at all.

    Args:
        train: All rows to train on.
        held: A sample of the rows held out.
        contract: What they are.
    """
    key = contract.role("group") or contract.role("id") or contract.role("time")
    names = [c.name for c in contract.features] + [contract.target]
    if key is None or held.empty:
        return []
    twins = _find_twins(train, held, names)
    rare = expect_by_chance(train, held[twins], names) < BY_CHANCE
    count, share = int(rare.sum()), float(rare.sum()) / len(held)
    if count < FEWEST_TWINS or share < TWINS:
        return []
    where = f'in all features and the target, under another "{key.name}"'
    finding = f"{share:.1%} of the rows held out equal rows to train on {where}"
    return [
        Alarm(
            "duplicates",
            (key.name,),
            share,
            finding,
            "remove the repeated rows, or give what they share the role group",
        )
    ]


def _find_twins(train: pd.DataFrame, held: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Tell which rows of `held` are in `train`; a few numbers rule most out before all columns are compared."""
    quick = [name for name in names if train[name].dtype.kind in "iufmM"][:QUICK]
    near = train[np.isin(_hash(train, quick), _hash(held, quick))] if quick else train
    return np.isin(_hash(held, names), _hash(near, names))


def _hash(frame: pd.DataFrame, names: list[str]) -> np.ndarray:
    return pd.util.hash_pandas_object(frame[names], index=False).to_numpy(dtype=np.uint64)


def expect_by_chance(train: pd.DataFrame, rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Return for each of `rows` how many like it are expected in `train` if the columns were independent."""
    part = train.iloc[:: max(1, len(train) // SAMPLE_ROWS)]
    logs = np.full(len(rows), np.log(len(train)))
    for name in names:
        shares: Any = part[name].value_counts(normalize=True, dropna=False)
        logs += np.log(rows[name].map(shares).astype("float64").fillna(1 / len(part)).to_numpy())
    return np.exp(logs)
