"""What a leak is told as, and how columns and the target become numbers."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from ondol.config.base import Problem
from ondol.contract import Column

SAMPLE_ROWS = 20_000  # as many rows of each side are looked at; values are looked up among all rows to train on
FEWEST_ROWS = 50
SUSPICIOUS: dict[Problem, float] = {"binary": 0.99, "multiclass": 0.99, "regression": 0.995}
SUSPICIOUS_CODE = 0.97  # of a class and a column of few values: `ml init` doubts it, as a good test may come as near
MOST_CODES = 30
NUMBER = r"([-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)"
READABLE = 0.99

Kind = Literal["alone", "sum", "product", "threshold", "group", "duplicates", "later"]


@dataclass(frozen=True)
class Alarm:
    """Something that looks like a leak.

    Attributes:
        kind: What it is: one column that predicts the target alone, columns that add up to it or give it as a
            product or quotient, two columns of which it is a cut, a column whose values go with one target on both
            sides of the split, rows that are on both sides, or a date after the row's time.
        columns: Where it was found; to accept one of them is to accept it.
        figure: How strong it is: a score or a share, of 1.
        finding: What was found, as a clause.
        remedy: What to do about it, as a clause.
    """

    kind: Kind
    columns: tuple[str, ...]
    figure: float
    finding: str
    remedy: str


def as_numbers(values: "pd.Series[Any]", column: Column) -> np.ndarray:
    """Return a column as float64, NaN where missing: dates and durations as microseconds, texts as their ranks."""
    if column.kind == "text":
        codes = pd.factorize(values, sort=True)[0].astype(np.float64)
        return np.where(codes < 0, np.nan, codes)
    if values.dtype.kind in "mM":
        return values.astype(f"{values.dtype.kind}8[us]").astype("int64").where(values.notna()).to_numpy(np.float64)
    return values.to_numpy(np.float64, na_value=np.nan)


def read_numbers(values: "pd.Series[Any]") -> np.ndarray | None:
    """Return the numbers that stand in nearly all texts of a column, such as "12.50 EUR"; None where they do not."""
    texts = values.dropna().astype("str")
    parts = texts.str.replace(",", "").str.extract(NUMBER, expand=False)
    if texts.empty or parts.notna().mean() < READABLE:
        return None
    return pd.to_numeric(parts).reindex(values.index).to_numpy(np.float64, na_value=np.nan)


def label(target: "pd.Series[Any]", problem: Problem) -> np.ndarray:
    """Return the target as float64; classes as their ranks."""
    if problem == "regression":
        return target.to_numpy(np.float64, na_value=np.nan)
    return pd.factorize(target, sort=True)[0].astype(np.float64)
