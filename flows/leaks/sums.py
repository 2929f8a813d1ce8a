"""Columns that add up to the target: `total` = `fare` + `tip`, whichever of the three is to be predicted."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from flows.contract import Column
from flows.leaks.alarms import FEWEST_ROWS, Alarm, as_numbers, label
from flows.sections import Problem

HOLDS = 0.999  # an identity holds in as many of the rows
EXACT = 1e-6  # up to as much of its terms
MOST_COLUMNS = 200
ROWS_PER_COLUMN = 10
COMPLETE = 0.5
MOST_FOUND = 5
TRIMMED = 0.9
ROUNDS = 4


def find_sums(frame: pd.DataFrame, columns: Sequence[Column], target: str, problem: Problem) -> list[Alarm]:
    """Return an alarm for each set of columns of which the target is a linear combination, exactly.

    Least squares over all numbers at once, repeated without the rows that fit worst, finds whether there is one; those
    columns without which it still holds are then left out, one by one. Of several that hold, up to five are named.

    Args:
        frame: A sample of the rows to train on, none without a target.
        columns: The features; those that alone predict the target should not be among them.
        target: The column to predict; classes count by their ranks.
        problem: What kind of prediction it is.
    """
    numeric = [c for c in columns if c.kind in ("number", "integer", "boolean", "duration")]
    y = pd.Series(label(frame[target], problem))
    table = pd.DataFrame({c.name: as_numbers(frame[c.name], c) for c in numeric}, index=y.index)
    alarms: list[Alarm] = []
    while len(alarms) < MOST_FOUND and (found := _find_sum(table, y)):
        weights, share = found
        alarms.append(_tell(weights, share, target))
        heaviest = max(weights, key=lambda name: abs(weights[name]) * float(table[name].std()))
        table = table.drop(columns=heaviest)
    return alarms


def _tell(weights: dict[str, float], share: float, target: str) -> Alarm:
    weights = dict(sorted(weights.items(), key=lambda item: item[1] < 0))  # "tip" = "total" - "fare" reads best
    terms = " ".join(f'{"-" if weight < 0 else "+"} {_times(weight)}"{name}"' for name, weight in weights.items())
    names = " and ".join(f'"{name}"' for name in weights)
    return Alarm(
        "sum",
        tuple(weights),
        share,
        f'{names} add up to the target in {share:.1%} of the rows, "{target}" = {terms.removeprefix("+ ")}',
        "give those that are known only afterwards the role ignored",
    )


def _times(weight: float) -> str:
    return "" if abs(abs(weight) - 1) < EXACT else f"{abs(weight):.6g} × "


def _find_sum(table: pd.DataFrame, y: "pd.Series[float]") -> tuple[dict[str, float], float] | None:
    """Return the weights of the columns that add up to `y`, and in which share of the rows; None where none do."""
    table, y = _complete(table, y)
    if len(table) < FEWEST_ROWS or y.nunique() < 2 or table.shape[1] < 1:
        return None
    matrix = np.column_stack([table.to_numpy(), np.ones(len(table))])
    scale = np.append(table.std(ddof=0).to_numpy(), 1.0)
    values = y.to_numpy()
    rows = np.ones(len(values), bool)
    for _ in range(ROUNDS):
        weights = _fit(matrix[rows] / scale, values[rows]) / scale
        misses = np.abs(values - matrix @ weights)
        rows = misses <= np.quantile(misses, TRIMMED)
    if _share(matrix, weights, values) < HOLDS:
        return None
    kept = _leave_out(matrix[rows], values[rows], weights, scale)
    weights = np.zeros(len(scale))
    weights[kept] = _fit(matrix[rows][:, kept] / scale[kept], values[rows]) / scale[kept]
    share = _share(matrix, weights, values)
    named = {name: float(weights[place]) for place, name in enumerate(table.columns) if place in kept}
    return (named, share) if share >= HOLDS and named else None


def _complete(table: pd.DataFrame, y: "pd.Series[float]") -> tuple[pd.DataFrame, "pd.Series[float]"]:
    """Return the rows without a gap, less the columns that vary too little or have too many gaps, and few enough."""
    table = table.loc[:, table.nunique() > 1]
    while table.shape[1] and table.notna().all(axis=1).mean() < COMPLETE:
        table = table.drop(columns=table.isna().mean().idxmax())
    whole = table.notna().all(axis=1)
    table, y = table[whole], y[whole]
    table = table.loc[:, table.nunique() > 1]
    most = min(MOST_COLUMNS, len(table) // ROWS_PER_COLUMN)
    if table.shape[1] > most:
        table = table[table.corrwith(y).abs().nlargest(most).index]
    return table, y


def _fit(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the weights of least squares, by way of a triangular matrix: few rows are left to work on."""
    small = np.asarray(np.linalg.qr(np.column_stack([matrix, values]), mode="r"))
    return np.asarray(np.linalg.lstsq(small[:, :-1], small[:, -1], rcond=1e-12)[0])


def _share(matrix: np.ndarray, weights: np.ndarray, values: np.ndarray) -> float:
    """Return the share of rows in which the weights give the value, also of those without the commonest one."""
    terms = np.abs(matrix) @ np.abs(weights) + np.abs(values)
    exact = np.abs(values - matrix @ weights) <= EXACT * terms
    common = values == pd.Series(values).mode().iloc[0]
    return float(min(exact.mean(), exact[~common].mean()))


def _leave_out(matrix: np.ndarray, values: np.ndarray, weights: np.ndarray, scale: np.ndarray) -> list[int]:
    """Return the places of the columns that are needed for the values to add up, the constant always among them."""
    terms = (np.abs(matrix) @ np.abs(weights) + np.abs(values) + np.finfo(float).tiny)[:, None]  # each row counts alike
    small = np.asarray(np.linalg.qr(np.column_stack([matrix / scale / terms, values / terms[:, 0]]), mode="r"))
    kept = list(range(matrix.shape[1]))
    for place in np.argsort(np.abs(weights * scale)[:-1]):
        others = [other for other in kept if other != place]
        made = np.linalg.lstsq(small[:, others], small[:, -1], rcond=1e-12)[0]
        rest = np.linalg.norm(small[:, others] @ made - small[:, -1])
        if rest <= EXACT / 10 * np.sqrt(len(values)):
            kept = others
    return kept
