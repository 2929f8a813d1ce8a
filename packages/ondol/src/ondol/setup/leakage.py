"""Looks for leaks before there is a contract: what `ondol.validation.leakage` finds in a drafted one."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ondol.config.base import Problem
from ondol.contract import Column, Contract
from ondol.setup.profiles import Profile
from ondol.setup.writing import Field
from ondol.validation.leakage.alarms import Alarm
from ondol.validation.leakage.search import find_alarms

MOST_ROWS = 100_000
HELD = 0.2


def find_leaks(profiles: Sequence[Profile], fields: Sequence[Field], target: str, problem: Problem) -> list[Alarm]:
    """Return what looks like a leak, in up to 100,000 rows of which a fifth stands for those that will be held out.

    Args:
        profiles: The columns as they were read.
        fields: What the contract will say of each, in the same order.
        target: The column to predict.
        problem: What kind of prediction it is.
    """
    columns = tuple(Column(name=field.name, kind=field.kind, role=field.role) for field in fields)
    contract = Contract(problem=problem, target=target, columns=columns)
    ignored = [c for c, profile in zip(columns, profiles, strict=True) if c.role == "ignored" and _names(profile)]
    used = {column.name for column in (*contract.used, *ignored)}
    frame = pd.DataFrame({profile.name: profile.values for profile in profiles if profile.name in used})
    frame = frame[frame[target].notna()]
    chosen = np.random.default_rng(0).permutation(len(frame))[:MOST_ROWS]
    held = round(len(chosen) * HELD)
    return find_alarms(contract, frame.iloc[chosen[held:]], frame.iloc[chosen[:held]], ignored, doubts=True)


def _names(profile: Profile) -> bool:
    """Tell whether a column may name what several rows share, such as households: a group, though no feature."""
    return profile.kind in ("text", "integer") and 1 < profile.distinct < profile.present
