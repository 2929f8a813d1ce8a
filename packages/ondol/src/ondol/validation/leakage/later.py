"""Dates that are after the row's own time: what they stand for was not known yet."""

import pandas as pd

from ondol.contract import Contract
from ondol.validation.leakage.alarms import Alarm

NOTABLE, FEWEST = 0.01, 10


def find_later(frame: pd.DataFrame, contract: Contract) -> list[Alarm]:
    """Return an alarm for each date that is later than the row's time in 1% of the rows that have both, and ten.

    Where the rows' times are days, without an hour, only later days count.

    Args:
        frame: A sample of the rows to train on.
        contract: What they are; without a column with the role time nothing is known of before and after.
    """
    time = contract.role("time")
    if time is None:
        return []
    moments = frame[time.name]
    by_day = bool((moments.dropna() == moments.dropna().dt.normalize()).all())
    alarms = []
    for column in contract.features:
        if column.kind != "date":
            continue
        dates = frame[column.name].dt.normalize() if by_day else frame[column.name]
        both = dates.notna() & moments.notna()
        later = int((dates[both] > moments[both]).sum())
        if later >= max(FEWEST, NOTABLE * int(both.sum())):
            share = later / int(both.sum())
            finding = f'"{column.name}" is later than the row\'s time, "{time.name}", in {share:.1%} of the rows'
            remedy = "if it is known only afterwards, give it the role ignored"
            alarms.append(Alarm("later", (column.name,), share, finding, remedy))
    return alarms
