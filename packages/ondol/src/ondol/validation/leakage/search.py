"""Looks for leaks of every kind."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ondol.contract import Column, Contract
from ondol.validation.leakage.alarms import SAMPLE_ROWS, Alarm
from ondol.validation.leakage.alone import find_alone, find_codes, score_alone
from ondol.validation.leakage.identities import find_identities
from ondol.validation.leakage.later import find_later
from ondol.validation.leakage.straddling import find_duplicates, find_groups
from ondol.validation.leakage.thresholds import find_thresholds


def find_alarms(
    contract: Contract, train: pd.DataFrame, held: pd.DataFrame, apart: Sequence[Column] = (), doubts: bool = False
) -> list[Alarm]:
    """Return what looks like a leak.

    Args:
        contract: What the columns are.
        train: The rows to train on; 20,000 of them are looked at, and values are looked up among all.
        held: The rows held out, or a sample of them; 20,000 are looked at.
        apart: Columns that are no features, and may be groups all the same.
        doubts: Also tell what is no alarm yet: of codes, those that some rows contradict.
    """
    target, problem = contract.target, contract.problem
    train, held = train[train[target].notna()], _draw(held[held[target].notna()])
    sample = _draw(train)
    scores = score_alone(sample, contract.features, target, problem)
    alone = find_alone(scores, find_codes(sample, contract.features) if doubts else set(), problem)
    named = {name for alarm in alone for name in alarm.columns}
    others = [column for column in contract.features if column.name not in named]
    return [
        *alone,
        *(sums := find_identities(sample, others, target, problem)),
        *([] if sums else find_thresholds(sample, others, target, problem)),
        *find_groups(train, held, [*others, *apart], target, problem, scores),
        *find_duplicates(train, held, contract),
        *find_later(sample, contract),
    ]


def _draw(frame: pd.DataFrame) -> pd.DataFrame:
    """Return up to `SAMPLE_ROWS` rows in a random order, always the same."""
    return frame.iloc[np.random.default_rng(0).permutation(len(frame))[:SAMPLE_ROWS]]
