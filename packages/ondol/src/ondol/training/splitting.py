"""Sets the rule that holds rows out, as the settings say and the data allow."""

from datetime import datetime

import numpy as np
import pandas as pd

from ondol.config.settings import Settings
from ondol.contract import Contract
from ondol.errors import UserError
from ondol.storage.files import digest_json, read_json, write_json
from ondol.training.holdout import Holdout, choose_salts, find_strata, hash_keys, key_column, part_numbers
from ondol.training.rows import read_columns


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
    path = settings.store_path / "holdouts" / f"{_strata_key(settings, contract)}.json"
    fixed = read_json(path) or {"edges": part_numbers(target) if contract.problem == "regression" else None}
    edges = None if fixed["edges"] is None else tuple(fixed["edges"])
    strata, codes = find_strata(target, edges)
    _require_one_stratum(contract, hashes, codes)
    salts = choose_salts(hashes, strata, codes, settings.split, fixed.get("salts", {}))
    write_json(path, {"edges": edges, "salts": salts})
    return edges, salts


def _strata_key(settings: Settings, contract: Contract) -> str:
    """Name what the strata are fixed for."""
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
