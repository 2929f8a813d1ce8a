"""Searches for leakage; an alarm stops the training unless `config.toml` accepts it by name, with a reason."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ondol.contract import Column, Contract
from ondol.errors import UserError
from ondol.validation.leakage_checks import (
    SAMPLE_ROWS,
    Alarm,
    find_alone,
    find_codes,
    find_duplicates,
    find_groups,
    find_identities,
    find_later,
    find_thresholds,
    score_alone,
)


def find_alarms(
    contract: Contract, train: pd.DataFrame, held: pd.DataFrame, apart: Sequence[Column] = (), doubts: bool = False
) -> list[Alarm]:
    """Return what looks like a leak.

    Args:
        contract: What the columns are.
        train: The rows to train on; 20,000 of them are examined, and values are looked up among all.
        held: The rows held out, or a sample of them; 20,000 are examined.
        apart: Columns that are not features but may still be groups.
        doubts: Also report what is no alarm yet: codes that some rows contradict.
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


WHY = "why it is no leak"
log = logging.getLogger(__name__)


def accept_alarms(alarms: Sequence[Alarm], accept: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row for each alarm, with the reason given for one of its columns, or an empty one."""
    return [
        {
            "kind": alarm.kind,
            "columns": list(alarm.columns),
            "figure": round(alarm.figure, 4),
            "finding": alarm.finding,
            "accepted": next((accept[name] for name in alarm.columns if name in accept), ""),
        }
        for alarm in alarms
    ]


def require_accepted(alarms: Sequence[Alarm], accept: Mapping[str, str]) -> None:
    """Check that every alarm is accepted.

    Raises:
        UserError: one is not; names the columns, how strong each leak looks, and the line that accepts them.
    """
    open_ = [alarm for alarm in alarms if not set(alarm.columns) & set(accept)]
    if not open_:
        return
    found = "; ".join(alarm.finding for alarm in open_)
    remedies = ", ".join(dict.fromkeys(alarm.remedy for alarm in open_))
    line = ", ".join(
        f"{_key(name)} = {json.dumps(reason, ensure_ascii=False)}"
        for name, reason in {**accept, **{alarm.columns[0]: WHY for alarm in open_}}.items()
    )
    raise UserError(
        f"This looks like a leak: {found}; {remedies}, in model/schema.py, or say in config.toml why it is none: "
        f"[leakage] accept = {{ {line} }}."
    )


def warn_of_needless(alarms: Sequence[Alarm], accept: Mapping[str, str]) -> None:
    """Log a line for each accepted column that raises no alarm."""
    alarmed = {name for alarm in alarms for name in alarm.columns}
    for name in sorted(set(accept) - alarmed):
        log.warning('[leakage] accept in config.toml: "%s" raises no alarm: remove it', name)


def _key(name: str) -> str:
    """Return a name as a key of TOML."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
