"""The valid rows of a snapshot, one side of the split or both."""

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

import numpy as np
import pandas as pd

from ondol.config.settings import Settings
from ondol.contract import Column, Contract, clean, typed
from ondol.snapshots.snapshots import Snapshots
from ondol.training.holdout import Holdout, below, find_sides, hash_keys, in_holdout, key_column, mix
from ondol.validation.results import Validations

__all__ = ["Holdout", "Part", "in_holdout", "read_columns", "read_rows", "read_sides", "sample_share"]
Part = Literal["train", "holdout"]
SAMPLING = 1 << 32  # added to a seed, so that the sample is drawn apart from the split


def read_rows(settings: Settings, contract: Contract, validation: str, part: Part, holdout: Holdout) -> pd.DataFrame:
    """Return the valid rows of one side of the split, in the contract's dtypes, indexed by row number.

    Of the side to train on, about `train.sample_rows` are drawn where it has more.

    Args:
        settings: Where the store is.
        contract: Which columns, and as what.
        validation: Names the snapshot and its quarantined rows.
        part: Which side.
        holdout: Which rows are held out.
    """
    share = sample_share(settings, validation) if part == "train" else 1.0
    return _read_parts(settings, contract, validation, holdout, {part: share})[part]


def read_sides(
    settings: Settings, contract: Contract, validation: str, holdout: Holdout, most_held: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows to train on, as `read_rows` does, and about `most_held` of those held out, read in one go."""
    record = Validations(settings.store_path).get(validation)
    expected = record.kept * settings.split.holdout
    shares: dict[Part, float] = {"train": sample_share(settings, validation)}
    found = _read_parts(settings, contract, validation, holdout, shares | {"holdout": min(1.0, most_held / expected)})
    return found["train"], found["holdout"]


def _read_parts(
    settings: Settings, contract: Contract, validation: str, holdout: Holdout, shares: dict[Part, float]
) -> dict[Part, pd.DataFrame]:
    """Return a share of each side that is asked for, drawn by a hash of the row's key and the seed of training."""
    early = _early_keys(settings, contract, validation, holdout)
    parts: dict[Part, list[pd.DataFrame]] = {part: [] for part in shares}
    for frame in _valid_frames(settings, contract, validation, holdout.since):
        sides = dict(zip(("train", "holdout"), find_sides(frame, contract, holdout, early), strict=True))
        for part, share in shares.items():
            wanted = sides[part]
            if share < 1:
                wanted = wanted & below(mix(hash_keys(frame, contract), settings.train.seed + SAMPLING), share)
            parts[part].append(frame[wanted])
    return {part: pd.concat(frames) if len(frames) > 1 else frames[0] for part, frames in parts.items()}


def _early_keys(settings: Settings, contract: Contract, validation: str, holdout: Holdout) -> np.ndarray | None:
    """Return the hashes of the groups or ids with a row before the cutoff, in order; None where none are needed."""
    key, time = key_column(contract), contract.role("time")
    if holdout.cutoff is None or key is None or time is None:
        return None
    frames = read_columns(settings, contract, validation, {key, time.name})
    parts = [hash_keys(frame[frame[time.name] < pd.Timestamp(holdout.cutoff)], contract) for frame in frames]
    return np.unique(np.concatenate(parts))


def sample_share(settings: Settings, validation: str) -> float:
    """Return the share of the rows that are learned from: the most that `train.sample_rows` allows to be expected."""
    most = settings.train.sample_rows
    record = Validations(settings.store_path).get(validation)
    expected = record.kept * (1 - settings.split.holdout)
    return 1.0 if most is None or expected <= most else most / expected


def read_columns(
    settings: Settings, contract: Contract, validation: str, names: set[str], since: datetime | None = None
) -> Iterator[pd.DataFrame]:
    """Yield the valid rows with just some columns."""
    columns = tuple(column for column in contract.columns if column.name in names)
    return _valid_frames(settings, contract, validation, since, columns)


def _valid_frames(
    settings: Settings,
    contract: Contract,
    validation: str,
    since: datetime | None = None,
    columns: tuple[Column, ...] | None = None,
) -> Iterator[pd.DataFrame]:
    """Yield the valid rows that have a label, a row group at a time, with the columns of the contract, or some.

    Where `since` is given, those from then on, by the column with the role time, if it is one of the columns.
    """
    validations = Validations(settings.store_path)
    record = validations.get(validation)
    bad = validations.bad_rows(validation)
    columns = tuple(c for c in contract.used if columns is None or c in columns)
    target = contract.target_column
    read = columns if target in columns or not record.unlabelled else (*columns, target)
    time = next((c for c in columns if c.role == "time"), None) if since else None
    start = 0
    for table in Snapshots(settings.store_path).batches(record.snapshot, [c.name for c in read]):
        frame, _ = clean(table, read)
        frame.index = pd.RangeIndex(start, start + len(frame))
        drop = bad[(bad >= start) & (bad < start + len(frame))]
        start += len(frame)
        kept = frame.drop(index=drop) if drop.size else frame
        valid = typed(kept[kept[target.name].notna()] if record.unlabelled else kept, columns)
        yield valid[valid[time.name] >= pd.Timestamp(since)] if time and since else valid
