"""A made-up row for documentation and curl lines: no customer's own, but the middle of each column."""

from typing import Any

import pandas as pd

from ondol.contract import Column, Contract

COMMON = 5  # a text that fewer rows hold may name somebody


def typical_row(contract: Contract, frame: pd.DataFrame) -> pd.DataFrame:
    """Return one valid row of the features: each column's middle value, or its most common one."""
    return pd.DataFrame({c.name: [_middle(c, frame[c.name])] for c in contract.features}).astype(
        {c.name: frame[c.name].dtype for c in contract.features}
    )


def _middle(column: Column, values: "pd.Series[Any]") -> Any:
    present = values.dropna()
    if present.empty:
        return None
    if column.categories is None and column.kind in ("number", "integer", "date", "duration"):
        return present.quantile(0.5, interpolation="lower")
    counts = present.value_counts()
    if column.kind == "text" and column.categories is None and counts.iloc[0] < COMMON:
        return "text"
    return counts.index[0]
