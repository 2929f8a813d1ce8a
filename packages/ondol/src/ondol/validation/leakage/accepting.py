"""Alarms block, unless `config.toml` accepts them by the name of a column, with a reason."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ondol.config.settings import Settings
from ondol.contract import Contract, require_known
from ondol.errors import UserError
from ondol.orchestration.artifacts import publish_table
from ondol.validation.leakage.alarms import Alarm
from ondol.validation.leakage.search import find_alarms

WHY = "why it is no leak"
log = logging.getLogger(__name__)


def check_leaks(settings: Settings, contract: Contract, frame: pd.DataFrame, held: pd.DataFrame) -> tuple[Alarm, ...]:
    """Return the alarms of leaks, all of which are accepted, and show them in the run.

    Raises:
        UserError: one is not accepted.
    """
    accept = settings.leakage.accept
    require_known("[leakage] accept", accept, contract.by_name)
    alarms = find_alarms(contract, frame, held)
    if alarms:
        publish_table("leakage", [line | {"columns": ", ".join(line["columns"])} for line in settle(alarms, accept)])
    warn_of_needless(alarms, accept)
    require_accepted(alarms, accept)
    return tuple(alarms)


def settle(alarms: Sequence[Alarm], accept: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a line for each alarm, with the reason for which it is accepted: of one of its columns, or empty."""
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
        log.warning('[leakage] accept in config.toml: "%s" raises no alarm: take it out', name)


def _key(name: str) -> str:
    """Return a name as a key of TOML."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
