"""The split: which valid rows are held out, and how the rows of each side are read.

A row's key is its group, else its id, else its features. Except for a split by time, a hash of the key decides, so a
row's side stays the same as data grows. With strata, each stratum has a salt, that is, a hash of its own: the first of
a few under which just the share asked for is held out of the rows that exist when it is chosen. It is never changed,
and later rows are held out at the same share, as by any hash.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel

from ondol.config import Settings, Split
from ondol.contract import Column, Contract, clean, typed
from ondol.errors import UserError
from ondol.project import Project
from ondol.redaction import redact, show_uri
from ondol.snapshots.snapshots import Snapshots
from ondol.storage.files import SHORT, digest_json, read_json
from ondol.storage.store import open_store
from ondol.validation.results import Validations

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
        since: The first time that is used; None if all are.
        edges: By stratum of a number, the values that part the strata.
        salts: By stratum, the salt of each.
    """

    split: Split
    cutoff: datetime | None = None
    since: datetime | None = None
    edges: tuple[float, ...] | None = None
    salts: dict[str, int] | None = None


def in_holdout(frame: pd.DataFrame, contract: Contract, holdout: Holdout) -> np.ndarray:
    """Return for each row of `frame`, which has all rows of its groups, whether it is held out."""
    return find_sides(frame, contract, holdout)[1]


def find_sides(
    frame: pd.DataFrame, contract: Contract, holdout: Holdout, early: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row whether it is trained on, and whether it is held out.

    By time, the rows before the cutoff are trained on. Of those from it on, the ones are held out whose group or id has
    no row before it; the others are on neither side.

    Args:
        frame: Rows with the columns that decide.
        contract: What they are.
        holdout: The rule.
        early: The hashes of the keys with a row before the cutoff, in order; None if `frame` has all their rows.
    """
    time = contract.role("time")
    if holdout.cutoff is not None and time is not None:
        before = (frame[time.name] < pd.Timestamp(holdout.cutoff)).to_numpy()
        if key_column(contract) is None:
            return before, ~before
        keys = hash_keys(frame, contract)
        return before, ~before & ~_are_among(keys, np.unique(keys[before]) if early is None else early)
    held_out = below(mix(hash_keys(frame, contract), _seeds(frame, contract, holdout)), holdout.split.holdout)
    return ~held_out, held_out


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
    """Return the column whose values are never in both training and holdout: the group, else the id."""
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
        held_out = int(below(mix(hashes, _salted(split.seed, np.uint64(salt))), split.holdout).sum())
        misses.append(abs(held_out - wanted))
        if misses[-1] <= NEAR * wanted:
            break
    return int(np.argmin(misses))


def _salted(seed: int, salts: Any) -> Any:
    with np.errstate(over="ignore"):
        return np.uint64(seed % 2**64) + salts * np.uint64(SALTING)


def below(hashes: np.ndarray, share: float) -> np.ndarray:
    """Return which hashes are among the lowest `share` of all possible ones."""
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


Side = Literal["train", "holdout"]
SAMPLING = 1 << 32  # added to a seed, so that the sample is drawn apart from the split


def read_rows(settings: Settings, contract: Contract, validation: str, side: Side, holdout: Holdout) -> pd.DataFrame:
    """Return the valid rows of one side of the split, in the contract's dtypes, indexed by row number.

    Of the side to train on, about `train.sample_rows` are drawn where it has more.

    Args:
        settings: Where the store is.
        contract: Which columns, and as what.
        validation: Names the snapshot and its quarantined rows.
        side: Which side.
        holdout: Which rows are held out.
    """
    share = sample_share(settings, validation) if side == "train" else 1.0
    return _read_sides(settings, contract, validation, holdout, {side: share})[side]


def read_sides(
    settings: Settings, contract: Contract, validation: str, holdout: Holdout, most_held: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows to train on, as `read_rows` does, and about `most_held` of those held out, read in one go."""
    record = Validations(open_store(settings)).get(validation)
    expected = record.kept * settings.split.holdout
    shares: dict[Side, float] = {"train": sample_share(settings, validation)}
    found = _read_sides(settings, contract, validation, holdout, shares | {"holdout": min(1.0, most_held / expected)})
    return found["train"], found["holdout"]


def _read_sides(
    settings: Settings, contract: Contract, validation: str, holdout: Holdout, shares: dict[Side, float]
) -> dict[Side, pd.DataFrame]:
    """Return a share of each side that is asked for, drawn by a hash of the row's key and the seed of training."""
    early = _early_keys(settings, contract, validation, holdout)
    drawn: dict[Side, list[pd.DataFrame]] = {side: [] for side in shares}
    for frame in _valid_frames(settings, contract, validation, holdout.since):
        masks = dict(zip(("train", "holdout"), find_sides(frame, contract, holdout, early), strict=True))
        for side, share in shares.items():
            wanted = masks[side]
            if share < 1:
                wanted = wanted & below(mix(hash_keys(frame, contract), settings.train.seed + SAMPLING), share)
            drawn[side].append(frame[wanted])
    return {side: pd.concat(frames) if len(frames) > 1 else frames[0] for side, frames in drawn.items()}


def _early_keys(settings: Settings, contract: Contract, validation: str, holdout: Holdout) -> np.ndarray | None:
    """Return the hashes of the groups or ids with a row before the cutoff, in order; None if none are needed."""
    key, time = key_column(contract), contract.role("time")
    if holdout.cutoff is None or key is None or time is None:
        return None
    frames = read_columns(settings, contract, validation, {key, time.name})
    parts = [hash_keys(frame[frame[time.name] < pd.Timestamp(holdout.cutoff)], contract) for frame in frames]
    return np.unique(np.concatenate(parts))


def sample_share(settings: Settings, validation: str) -> float:
    """Return the share of the rows that are learned from: the most that `train.sample_rows` allows to be expected."""
    most = settings.train.sample_rows
    record = Validations(open_store(settings)).get(validation)
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
    validations = Validations(open_store(settings))
    record = validations.get(validation)
    bad = validations.bad_rows(validation)
    columns = tuple(c for c in contract.used if columns is None or c in columns)
    target = contract.target_column
    read = columns if target in columns or not record.unlabelled else (*columns, target)
    time = next((c for c in columns if c.role == "time"), None) if since else None
    start = 0
    for table in Snapshots(validations.store).batches(record.snapshot, [c.name for c in read]):
        frame, _ = clean(table, read)
        frame.index = pd.RangeIndex(start, start + len(frame))
        drop = bad[(bad >= start) & (bad < start + len(frame))]
        start += len(frame)
        kept = frame.drop(index=drop) if drop.size else frame
        valid = typed(kept[kept[target.name].notna()] if record.unlabelled else kept, columns)
        yield valid[valid[time.name] >= pd.Timestamp(since)] if time and since else valid


def define_holdout(settings: Settings, contract: Contract, validation: str) -> Holdout:
    """Return the rule that holds rows out as the settings say.

    By time, the cutoff is set so that the share held out is `split.holdout` or a little more. By stratum, what was
    fixed when the store first saw these settings stays.

    Raises:
        UserError: time or group is asked for, and the contract has no column with that role; or a group or an id
            cannot be kept on one side.
    """
    by = settings.split.by
    if by == "group" and contract.role("group") is None:
        raise UserError(_asks_for('[split] by = "group"', "group"))
    times = _read_times(settings, contract, validation) if by == "time" or settings.data.window_days else None
    since = _window_start(settings, times)
    if by == "stratified":
        edges, salts = _fix_strata(settings, contract, validation, since)
        return Holdout(split=settings.split, since=since, edges=edges, salts=salts)
    if by != "time" or times is None:
        return Holdout(split=settings.split, since=since)
    return Holdout(split=settings.split, cutoff=_find_cutoff(settings, contract, times, since), since=since)


def _asks_for(setting: str, role: str) -> str:
    return f'{setting} needs a column with metadata={{"role": "{role}"}} in model/schema.py.'


def _read_times(settings: Settings, contract: Contract, validation: str) -> pd.DataFrame:
    """Return the rows' times, with the hashes of their keys where a split by time has to keep these together."""
    column = contract.role("time")
    if column is None:
        asked = '[split] by = "time"' if settings.split.by == "time" else "[data] window_days"
        raise UserError(_asks_for(asked, "time"))
    key = key_column(contract) if settings.split.by == "time" else None
    frames = read_columns(settings, contract, validation, {column.name, key or column.name})
    made = [{"time": f[column.name], **({"key": hash_keys(f, contract)} if key else {})} for f in frames]
    return pd.concat([pd.DataFrame(part) for part in made])


def _window_start(settings: Settings, times: pd.DataFrame | None) -> datetime | None:
    """Return the first time within the last `window_days` of the data."""
    if settings.data.window_days is None or times is None:
        return None
    start: pd.Timestamp = times["time"].max() - pd.Timedelta(days=settings.data.window_days)
    return start.to_pydatetime()


def _find_cutoff(settings: Settings, contract: Contract, times: pd.DataFrame, since: datetime | None) -> datetime:
    """Return the first time that is held out; the rows of one key count as if all had the time of its first.

    Raises:
        UserError: then no rows are left on one side.
    """
    used = (times["time"] >= pd.Timestamp(since)).to_numpy() if since else np.ones(len(times), bool)
    first = times.groupby("key")["time"].transform("min") if "key" in times else times["time"]
    cutoff = first[used].quantile(1 - settings.split.holdout, interpolation="lower")
    if not (times["time"][used] < cutoff).any():
        kept = f' without a "{key_column(contract)}" on both sides' if "key" in times else ""
        raise UserError(
            f"The rows cannot be split by time{kept}: too many begin at the same time, {cutoff}; "
            'use [split] by = "random".'
        )
    made: datetime = cutoff.to_pydatetime()
    return made


def _fix_strata(
    settings: Settings, contract: Contract, validation: str, since: datetime | None
) -> tuple[tuple[float, ...] | None, dict[str, int]]:
    """Return the edges and the salts of the strata: those in the store, with salts for the strata that are new.

    Raises:
        UserError: there is a group, or an id with rows of several strata, which could be on both sides.
    """
    if group := contract.role("group"):
        raise UserError(
            f'[split] by = "stratified" would put a "{group.name}" on both sides: use by = "group", or take the role '
            "group from it in model/schema.py."
        )
    names = {c.name for c in contract.features} if key_column(contract) is None else {str(key_column(contract))}
    time = contract.role("time")
    frames = read_columns(
        settings, contract, validation, names | {contract.target} | ({time.name} if time and since else set()), since
    )
    read = [(hash_keys(frame, contract), frame[contract.target]) for frame in frames]
    hashes, target = np.concatenate([keys for keys, _ in read]), pd.concat([values for _, values in read])
    store = open_store(settings)
    path = store.folder / "holdouts" / f"{_strata_key(settings, contract)}.json"
    fixed = read_json(path) or {"edges": part_numbers(target) if contract.problem == "regression" else None}
    edges = None if fixed["edges"] is None else tuple(fixed["edges"])
    strata, codes = find_strata(target, edges)
    _require_one_stratum(contract, hashes, codes)
    salts = choose_salts(hashes, strata, codes, settings.split, fixed.get("salts", {}))
    store.write_json(path, {"edges": edges, "salts": salts})
    return edges, salts


def _strata_key(settings: Settings, contract: Contract) -> str:
    """Return the key of what the strata are fixed for."""
    return digest_json([settings.split.model_dump(), contract.problem, contract.target, key_column(contract)])[:12]


def _require_one_stratum(contract: Contract, hashes: np.ndarray, codes: np.ndarray) -> None:
    key = key_column(contract)
    order = np.argsort(hashes, kind="stable")
    same = hashes[order][1:] == hashes[order][:-1]
    if key is not None and (same & (codes[order][1:] != codes[order][:-1])).any():
        raise UserError(
            f'[split] by = "stratified" would put a "{key}" on both sides, for some have rows with different '
            f'"{contract.target}": use by = "random".'
        )


TYPES = {  # of MLflow, by the kinds of the contract
    "number": "double",
    "integer": "long",
    "boolean": "boolean",
    "text": "string",
    "date": "datetime",
    "duration": "string",
}


def log_dataset(
    project: Project,
    validation: str,
    run_id: str,
    contract: Contract,
    holdout: Holdout,
    context: Literal["training", "evaluation"],
    rows: int,
) -> None:
    """Record as a run's dataset which rows it used, without reading them.

    Its digest begins with the snapshot's, and differs by the rows that were used of it.
    """
    record = project.validations.get(validation)
    uri = redact(show_uri(project.snapshots.get(record.snapshot).source))
    part = digest_json([validation, holdout.model_dump(mode="json"), context, rows])
    columns = [{"name": c.name, "type": TYPES[c.kind], "required": not c.nullable} for c in contract.used]
    web = uri.startswith(("http://", "https://"))
    dataset = {
        "name": f"{project.settings.project.name} {'training rows' if context == 'training' else 'held-out rows'}",
        "digest": f"{record.snapshot[:SHORT]}-{part[:8]}",
        "source_type": "http" if web else uri.partition("://")[0] if "://" in uri else "local",
        "source": json.dumps({"url" if web else "uri": uri, "snapshot": record.snapshot, "validation": validation}),
        "schema": json.dumps({"mlflow_colspec": columns}, ensure_ascii=False),
        "profile": json.dumps({"num_rows": rows, "num_elements": rows * len(columns)}),
    }
    project.registry.log_input(run_id, context, dataset)
