"""The search for leaks in a table, for its tests."""

from typing import Any

import numpy as np
import pandas as pd

from ondol.contract import Column, Contract
from ondol.contract.schema import Kind, Role
from ondol.validation.leakage import Alarm, find_alarms

KINDS: dict[str, Kind] = {"i": "integer", "u": "integer", "f": "number", "b": "boolean", "M": "date"}


def describe(frame: pd.DataFrame, target: str, problem: Any, **roles: Role) -> Contract:
    def column(name: str) -> Column:
        role: Role = "target" if name == target else roles.get(name, "feature")
        return Column(name=name, kind=KINDS.get(frame[name].dtype.kind, "text"), role=role)

    return Contract(problem=problem, target=target, columns=tuple(column(str(name)) for name in frame))


def search(frame: pd.DataFrame, target: str, problem: Any, seed: int = 0, **roles: Role) -> list[Alarm]:
    order = np.random.default_rng(seed).permutation(len(frame))
    held = len(frame) // 5
    contract = describe(frame, target, problem, **roles)
    return find_alarms(contract, frame.iloc[order[held:]], frame.iloc[order[:held]])
