"""The split into training rows and holdout, and reading the rows of each side.

The key of a row is its group, else its id, else its features. Except for a split by time, a hash of the key decides, so
a row's side stays the same as data grows. With strata, each stratum has its own salt for the hash: the first of a few
for which exactly the requested share of the existing rows is held out. The salt is never changed; of later rows about
the same share is held out.
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
SALTING = 1 << 33  # so that the seeds of salts and of samples (1 << 32) never overlap
SALTS = 64
NEAR = 0.005  # allowed deviation, as a share of the rows to hold out
QUANTILES = 10


class Holdout(BaseModel):
    """The rule that decides which rows are held out, and which are used.

    Attributes:
        split: The settings.
        cutoff: The first held-out time, for a split by time.
        since: The first used time; None if all rows are used.
        edges: The values that separate the strata of a number.
        salts: The salt of each stratum.
    """

    split: Split
    cutoff: datetime | None = None
    since: datetime | None = None
    edges: tuple[float, ...] | None = None
    salts: dict[str, int] | None = None


def in_holdout(frame: pd.DataFrame, contract: Contract, holdout: Holdout) -> np.ndarray:
    """Return whether each row of `frame` is held out; `frame` must have all rows of its groups."""
    return find_sides(frame, contract, holdout)[1]


def find_sides(
    frame: pd.DataFrame, contract: Contract, holdout: Holdout, early: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return masks of the training rows and of the held-out rows.

    By time, rows before the cutoff are training rows. Later rows are held out if their group or id has no row before
    the cutoff; the others are on neither side.

    Args:
        frame: Rows with the columns that decide the split.
        contract: The contract.
        holdout: The rule.
        early: The sorted hashes of keys with a row before the cutoff; None if `frame` has all rows of each key.
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
    """Return the seed, or with strata a seed for each row."""
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
    """Return the column whose values are only on one side of the split: the group, else the id."""
    key = contract.role("group") or contract.role("id")
    return key.name if key else None


def hash_keys(frame: pd.DataFrame, contract: Contract) -> np.ndarray:
    """Return a hash of each row's key: its group, else its id, else its features."""
    key = key_column(contract)
    names = [key] if key else [c.name for c in contract.timeless_features or contract.features]
    return pd.util.hash_pandas_object(frame[names], index=False).to_numpy(dtype=np.uint64)


def part_numbers(target: "pd.Series[Any]") -> tuple[float, ...]:
    """Return the values that split numbers into strata of about equal size."""
    shares = np.arange(1, QUANTILES) / QUANTILES
    return tuple(float(edge) for edge in np.unique(target.dropna().quantile(shares)))


def find_strata(target: "pd.Series[Any]", edges: tuple[float, ...] | None) -> tuple[list[str], np.ndarray]:
    """Return the names of the strata of `target`, and the index of each row's stratum."""
    if edges is not None:
        codes = np.searchsorted(np.array(edges), target.to_numpy(np.float64, na_value=np.nan), side="right")
        return [str(place) for place in range(len(edges) + 1)], codes
    codes, values = pd.factorize(target, use_na_sentinel=False)
    return [str(value) for value in values], codes


def choose_salts(
    hashes: np.ndarray, names: list[str], codes: np.ndarray, split: Split, known: dict[str, int]
) -> dict[str, int]:
    """Return the known salts, and a salt for each new stratum.

    Args:
        hashes: The hash of each row's key.
        names: The names of the strata.
        codes: The index of each row's stratum.
        split: The share and the seed.
        known: The salts that were chosen before.
    """
    return {
        name: known[name] if name in known else _choose_salt(hashes[codes == place], split)
        for place, name in enumerate(names)
    } | known


def _choose_salt(hashes: np.ndarray, split: Split) -> int:
    """Return the salt with the most exact share; of two or more rows, at least one and not all are held out."""
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
    """Return a mask of the hashes among the lowest `share` of all possible hashes."""
    return hashes < np.uint64(share * 2.0**64)


def mix(hashes: np.ndarray, seed: Any) -> np.ndarray:
    """Mix hashes with a seed (the finaliser of SplitMix64).

    Args:
        hashes: Unsigned 64-bit integers.
        seed: One integer, or an unsigned integer for each hash.
    """
    seeds = np.uint64(seed % 2**64) if isinstance(seed, int) else seed
    with np.errstate(over="ignore"):
        h = hashes + GOLDEN * (seeds + np.uint64(1))
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return h ^ (h >> np.uint64(31))


Side = Literal["train", "holdout"]
SAMPLING = 1 << 32  # added to a seed, so that the sample does not depend on the split


def read_rows(settings: Settings, contract: Contract, validation: str, side: Side, holdout: Holdout) -> pd.DataFrame:
    """Return the valid rows of one side of the split, in the contract's dtypes, indexed by row number.

    If the training side has more rows than `train.sample_rows`, about that many are drawn.

    Args:
        settings: The settings, which name the store.
        contract: The columns and their types.
        validation: The validation, which names the snapshot and its quarantined rows.
        side: The side of the split.
        holdout: The rule of the split.
    """
    share = sample_share(settings, validation) if side == "train" else 1.0
    return _read_sides(settings, contract, validation, holdout, {side: share})[side]


def read_sides(
    settings: Settings, contract: Contract, validation: str, holdout: Holdout, most_held: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the training rows, like `read_rows`, and about `most_held` of the held-out rows, in one pass."""
    record = Validations(open_store(settings)).get(validation)
    expected = record.kept * settings.split.holdout
    shares: dict[Side, float] = {"train": sample_share(settings, validation)}
    found = _read_sides(settings, contract, validation, holdout, shares | {"holdout": min(1.0, most_held / expected)})
    return found["train"], found["holdout"]


def sample_training_rows(
    settings: Settings, contract: Contract, validation: str, holdout: Holdout, most: int
) -> pd.DataFrame:
    """Return at most `most` of the rows of training, in random order; always the same."""
    expected = Validations(open_store(settings)).get(validation).kept * (1 - settings.split.holdout)
    share = min(sample_share(settings, validation), 1.5 * most / expected)  # more than enough, then exactly `most`
    rows = _read_sides(settings, contract, validation, holdout, {"train": share})["train"]
    return rows.sample(min(most, len(rows)), random_state=0)


def _read_sides(
    settings: Settings, contract: Contract, validation: str, holdout: Holdout, shares: dict[Side, float]
) -> dict[Side, pd.DataFrame]:
    """Return a share of each requested side, drawn by a hash of the row's key and the training seed."""
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
    """Return the sorted hashes of groups or ids with a row before the cutoff; None if they are not needed."""
    key, time = key_column(contract), contract.role("time")
    if holdout.cutoff is None or key is None or time is None:
        return None
    frames = read_columns(settings, contract, validation, {key, time.name})
    parts = [hash_keys(frame[frame[time.name] < pd.Timestamp(holdout.cutoff)], contract) for frame in frames]
    return np.unique(np.concatenate(parts))


def sample_share(settings: Settings, validation: str) -> float:
    """Return the share of the rows for training: the largest with an expected count within `train.sample_rows`."""
    most = settings.train.sample_rows
    record = Validations(open_store(settings)).get(validation)
    expected = record.kept * (1 - settings.split.holdout)
    return 1.0 if most is None or expected <= most else most / expected


def read_columns(
    settings: Settings, contract: Contract, validation: str, names: set[str], since: datetime | None = None
) -> Iterator[pd.DataFrame]:
    """Yield the valid rows with the given columns."""
    columns = tuple(column for column in contract.columns if column.name in names)
    return _valid_frames(settings, contract, validation, since, columns)


def _valid_frames(
    settings: Settings,
    contract: Contract,
    validation: str,
    since: datetime | None = None,
    columns: tuple[Column, ...] | None = None,
) -> Iterator[pd.DataFrame]:
    """Yield the valid, labelled rows, a row group at a time, with all or some columns of the contract.

    With `since`, only rows from that time on, by the column with the role time, if it is one of the columns.
    """
    validations = Validations(open_store(settings))
    record = validations.get(validation)
    bad = validations.bad_rows(validation)
    columns = tuple(c for c in contract.used if columns is None or c in columns)
    target = contract.target_column
    read = columns if target in columns or not record.unlabelled else (*columns, target)
    time = next((c for c in columns if c.is_time), None) if since else None
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
    """Return the rule of the split, from the settings.

    By time, the cutoff is chosen so that the held-out share is `split.holdout` or slightly more. With strata, edges and
    salts are fixed when the store first sees these settings.

    Raises:
        UserError: the split is by time or group, and the contract has no column with that role; or a group or an id
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
    """Return the times of the rows, and the hashes of their keys if a split by time must keep these together."""
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
    """Return the first held-out time; all rows of a key count with the time of its first row.

    Raises:
        UserError: no rows would be left on one side.
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
    """Return the edges and the salts of the strata from the store, with salts for new strata.

    Raises:
        UserError: there is a group, or an id with rows in several strata, which could be on both sides.
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
    """Return the key of the settings for which the strata are fixed."""
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


TYPES = {  # MLflow's types by the contract's kinds
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
    """Record the used rows as a dataset of the run, without reading them.

    Its digest begins with the snapshot's digest, and depends on the used rows.
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
