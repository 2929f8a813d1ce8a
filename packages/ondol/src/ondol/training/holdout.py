"""The rule that holds rows out: a hash, and what was fixed when it was first set.

A row's key is its group, else its id, else its features. But for a split by time the hash of the key decides, so a
row's side stays the same as data grows. By stratum each stratum has a salt, that is, a hash of its own: the first of a
few under which just the share asked for is held out of the rows that there are when it is chosen. It is never changed,
and rows that come later are held out at the same share, as by any hash.
"""

from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from ondol.config.data import Split
from ondol.contract import Contract

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
SALTING = 1 << 33  # salts and the drawing of samples (1 << 32) stay apart from each other's seeds
SALTS = 64
NEAR = 0.005  # of the rows to hold out, so many more or less will do
QUANTILES = 10


class Holdout(BaseModel):
    """Which rows are held out, and which are used at all.

    Attributes:
        split: As it was set.
        cutoff: By time, the first time that is held out.
        since: The first time that is used; None where all are.
        edges: By stratum of a number, the values that part the strata.
        salts: By stratum, the salt of each.
    """

    split: Split
    cutoff: datetime | None = None
    since: datetime | None = None
    edges: tuple[float, ...] | None = None
    salts: dict[str, int] | None = None


def in_holdout(frame: pd.DataFrame, contract: Contract, holdout: Holdout) -> np.ndarray:
    """Tell for each row of `frame`, which has all rows of its groups, whether it is held out."""
    return find_sides(frame, contract, holdout)[1]


def find_sides(
    frame: pd.DataFrame, contract: Contract, holdout: Holdout, early: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tell for each row whether it is trained on, and whether it is held out.

    By time, the rows before the cutoff are trained on. Of those from it on, the ones are held out whose group or id has
    no row before it; the others are on neither side.

    Args:
        frame: Rows with the columns that decide.
        contract: What they are.
        holdout: The rule.
        early: The hashes of the keys with a row before the cutoff, in order; None where `frame` has all their rows.
    """
    time = contract.role("time")
    if holdout.cutoff is not None and time is not None:
        before = (frame[time.name] < pd.Timestamp(holdout.cutoff)).to_numpy()
        if key_column(contract) is None:
            return before, ~before
        keys = hash_keys(frame, contract)
        return before, ~before & ~_are_among(keys, np.unique(keys[before]) if early is None else early)
    held = below(mix(hash_keys(frame, contract), _seeds(frame, contract, holdout)), holdout.split.holdout)
    return ~held, held


def _seeds(frame: pd.DataFrame, contract: Contract, holdout: Holdout) -> Any:
    """Return the seed, or by stratum one for each row."""
    if holdout.salts is None:
        return holdout.split.seed
    names, codes = find_strata(frame[contract.target], holdout.edges)
    salts = np.array([holdout.salts.get(name, 0) for name in names], np.uint64)
    return _salted(holdout.split.seed, salts[codes])


def _are_among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    if not len(ordered):
        return np.zeros(len(values), bool)
    return ordered[np.searchsorted(ordered, values).clip(max=len(ordered) - 1)] == values


def key_column(contract: Contract) -> str | None:
    """Return the column whose values never straddle: the group, else the id."""
    key = contract.role("group") or contract.role("id")
    return key.name if key else None


def hash_keys(frame: pd.DataFrame, contract: Contract) -> np.ndarray:
    """Return a hash of what keeps a row on its side: its group, else its id, else its features."""
    key = key_column(contract)
    names = [key] if key else [c.name for c in contract.features]
    return pd.util.hash_pandas_object(frame[names], index=False).to_numpy(dtype=np.uint64)


def part_numbers(target: "pd.Series[Any]") -> tuple[float, ...]:
    """Return the values that part numbers into strata of about as many rows each."""
    shares = np.arange(1, QUANTILES) / QUANTILES
    return tuple(float(edge) for edge in np.unique(target.dropna().quantile(shares)))


def find_strata(target: "pd.Series[Any]", edges: tuple[float, ...] | None) -> tuple[list[str], np.ndarray]:
    """Return the names of the strata of `target`, and for each row the place of its own among them."""
    if edges is not None:
        codes = np.searchsorted(np.array(edges), target.to_numpy(np.float64, na_value=np.nan), side="right")
        return [str(place) for place in range(len(edges) + 1)], codes
    codes, values = pd.factorize(target, use_na_sentinel=False)
    return [str(value) for value in values], codes


def choose_salts(
    hashes: np.ndarray, names: list[str], codes: np.ndarray, split: Split, known: dict[str, int]
) -> dict[str, int]:
    """Return the salts that are known, and one for each stratum that is new.

    Args:
        hashes: Of each row's key.
        names: Of the strata.
        codes: For each row the place of its stratum.
        split: Share and seed.
        known: The salts that were chosen before.
    """
    return {
        name: known[name] if name in known else _choose_salt(hashes[codes == place], split)
        for place, name in enumerate(names)
    } | known


def _choose_salt(hashes: np.ndarray, split: Split) -> int:
    """Return the salt that holds out the share most nearly, and of two rows or more at least one and not all."""
    rows = len(hashes)
    wanted = min(max(round(rows * split.holdout), min(1, rows - 1)), max(rows - 1, 0))
    misses = []
    for salt in range(SALTS):
        held = int(below(mix(hashes, _salted(split.seed, np.uint64(salt))), split.holdout).sum())
        misses.append(abs(held - wanted))
        if misses[-1] <= NEAR * wanted:
            break
    return int(np.argmin(misses))


def _salted(seed: int, salts: Any) -> Any:
    with np.errstate(over="ignore"):
        return np.uint64(seed % 2**64) + salts * np.uint64(SALTING)


def below(hashes: np.ndarray, share: float) -> np.ndarray:
    """Tell which hashes are among the lowest `share` of all there can be."""
    return hashes < np.uint64(share * 2.0**64)


def mix(hashes: np.ndarray, seed: Any) -> np.ndarray:
    """Return well-mixed hashes that differ by seed (the finaliser of SplitMix64).

    Args:
        hashes: Unsigned, of 64 bits.
        seed: One integer, or one for each hash as unsigned ones.
    """
    seeds = np.uint64(seed % 2**64) if isinstance(seed, int) else seed
    with np.errstate(over="ignore"):
        h = hashes + GOLDEN * (seeds + np.uint64(1))
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return h ^ (h >> np.uint64(31))
