"""The valid rows of a snapshot, and which of them are held out."""

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel

from flows.contract import Contract, clean, typed
from flows.errors import UserError
from flows.sections import Split
from flows.settings import Settings
from flows.store.snapshots import Snapshots
from flows.store.validations import Validations

Part = Literal["train", "holdout"]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Holdout(BaseModel):
    """Which rows are held out: the split as it was set, and by time the first time that is held out."""

    split: Split
    cutoff: datetime | None = None


def define_holdout(settings: Settings, contract: Contract, validation: str) -> Holdout:
    """Return the rule that holds rows out as the settings say.

    By time, the cutoff is set so that the share held out is `split.holdout` or a little more.

    Raises:
        UserError: by time, and the contract has no column with the role time.
    """
    if settings.split.by == "hash":
        return Holdout(split=settings.split)
    column = contract.role("time")
    if column is None:
        raise UserError('[split] by = "time" needs a column with metadata={"role": "time"} in model/schema.py.')
    narrow = contract.model_copy(update={"columns": (column,)})
    times = pd.concat(frame[column.name] for frame in _valid_frames(settings, narrow, validation))
    cutoff = times.quantile(1 - settings.split.holdout, interpolation="lower")
    return Holdout(split=settings.split, cutoff=cutoff.to_pydatetime())


def read_rows(settings: Settings, contract: Contract, validation: str, part: Part, holdout: Holdout) -> pd.DataFrame:
    """Return the valid rows of one side of the split, in the contract's dtypes, indexed by row number.

    Args:
        settings: Where the store is.
        contract: Which columns, and as what.
        validation: Names the snapshot and its quarantined rows.
        part: Which side.
        holdout: Which rows are held out.
    """
    parts = []
    for frame in _valid_frames(settings, contract, validation):
        held = in_holdout(frame, contract, holdout)
        parts.append(frame[held if part == "holdout" else ~held])
    return pd.concat(parts) if len(parts) > 1 else parts[0]


def in_holdout(frame: pd.DataFrame, contract: Contract, holdout: Holdout) -> np.ndarray:
    """Tell for each row whether it is held out.

    By hash, a row's side depends on its group, else its id, else its features alone, so it stays the same as data
    grows and equal rows never straddle. By time, the rows from the cutoff on are held out.
    """
    column = contract.role("time")
    if holdout.cutoff is not None and column is not None:
        return (frame[column.name] >= pd.Timestamp(holdout.cutoff)).to_numpy()
    key = contract.role("group") or contract.role("id")
    names = [key.name] if key else [c.name for c in contract.features]
    hashes = pd.util.hash_pandas_object(frame[names], index=False).to_numpy(dtype=np.uint64)
    return _mix(hashes, holdout.split.seed) < np.uint64(holdout.split.holdout * 2.0**64)


def _valid_frames(settings: Settings, contract: Contract, validation: str) -> Iterator[pd.DataFrame]:
    """Yield the valid rows, a row group at a time."""
    validations = Validations(settings.store_path)
    record = validations.get(validation)
    bad = validations.bad_rows(validation)
    names = [c.name for c in contract.used]
    start = 0
    for table in Snapshots(settings.store_path).batches(record.snapshot, names):
        frame, _ = clean(table, contract.used)
        frame.index = pd.RangeIndex(start, start + len(frame))
        drop = bad[(bad >= start) & (bad < start + len(frame))]
        yield typed(frame.drop(index=drop) if drop.size else frame, contract.used)
        start += len(frame)


def _mix(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Return well-mixed hashes that differ by seed (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        h = hashes + GOLDEN * np.uint64(seed % 2**64 + 1)
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return h ^ (h >> np.uint64(31))
