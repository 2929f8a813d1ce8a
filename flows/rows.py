"""The valid rows of a snapshot, and which of them are held out."""

from typing import Any, Literal

import numpy as np
import pandas as pd

from flows.contract import Contract, clean, typed
from flows.errors import UserError
from flows.settings import Settings, Split
from flows.store.snapshots import Snapshots
from flows.store.validations import Validations

Part = Literal["train", "holdout", "all"]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def read_rows(settings: Settings, contract: Contract, validation: str, part: Part, split: Split | None = None) -> pd.DataFrame:
    """Return the valid rows of one side of the split, in the contract's dtypes, indexed by row number.

    Args:
        settings: Where the store is.
        contract: Which columns, and as what.
        validation: Names the snapshot and its quarantined rows.
        part: Which side; "all" for both.
        split: How rows are held out; default: as the settings say.
    """
    rule = split or settings.split
    cutoff = time_cutoff(settings, contract, validation, rule) if rule.by == "time" and part != "all" else None
    parts = []
    for frame in _valid_frames(settings, contract, validation):
        if part != "all":
            held = in_holdout(frame, contract, rule, cutoff)
            frame = frame[held if part == "holdout" else ~held]
        parts.append(frame)
    return pd.concat(parts) if len(parts) > 1 else parts[0]


def in_holdout(frame: pd.DataFrame, contract: Contract, split: Split, cutoff: pd.Timestamp | None = None) -> np.ndarray:
    """Tell for each row whether it is held out.

    By hash, a row's side depends on its group, else its id, else its features alone, so it stays the same as data
    grows and equal rows never straddle. By time, the rows from `cutoff` on are held out.
    """
    if cutoff is not None:
        column = contract.role("time")
        return (frame[column.name] >= cutoff).to_numpy() if column else np.zeros(len(frame), bool)
    key = contract.role("group") or contract.role("id")
    names = [key.name] if key else [c.name for c in contract.features]
    hashes = pd.util.hash_pandas_object(frame[names], index=False).to_numpy(dtype=np.uint64)
    return _mix(hashes, split.seed) < np.uint64(split.holdout * 2.0**64)


def time_cutoff(settings: Settings, contract: Contract, validation: str, split: Split) -> pd.Timestamp:
    """Return the time from which on rows are held out, so that their share is `split.holdout` or a little more.

    Raises:
        UserError: the contract has no column with the role time.
    """
    column = contract.role("time")
    if column is None:
        raise UserError('[split] by = "time" needs a column with metadata={"role": "time"} in model/schema.py.')
    narrow = contract.model_copy(update={"columns": (column,)})
    times = pd.concat(frame[column.name] for frame in _valid_frames(settings, narrow, validation))
    return times.quantile(1 - split.holdout, interpolation="lower")


def _valid_frames(settings: Settings, contract: Contract, validation: str) -> Any:
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
