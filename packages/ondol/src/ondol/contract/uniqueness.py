"""Finds rows that repeat the unique values of an earlier row, in bounded memory.

Kept are two 64-bit hashes of each row's values (16 bytes a row): equal ones are taken for equal values, which among
10,000,000 rows goes wrong with a probability below 1e-24.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ondol.contract.cleaning import clean_column, normalize_texts
from ondol.contract.schema import Column
from ondol_serving.grammar import normalize

if TYPE_CHECKING:
    from pandera.pandas import DataFrameSchema

KEYS = ("0123456789abcdef", "fedcba9876543210")
MISSING = np.uint64(0x9E3779B97F4A7C15)
EXACT = 2.0**53
ALONE, TOGETHER = "field_uniqueness", "multiple_fields_uniqueness"  # as Pandera calls these checks


def unique_sets(schema: "DataFrameSchema", names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the sets of columns whose values `schema` wants to be unique, those that have one of `names`."""
    alone = {normalize(str(name)) for name, column in schema.columns.items() if column.unique}
    listed: Any = schema.unique or []
    together = [tuple(map(normalize, one)) for one in ([listed] if listed and isinstance(listed[0], str) else listed)]
    return [(name,) for name in names if name in alone] + [one for one in together if set(one) & set(names)]


def find_repeats(hashes: Iterable[np.ndarray]) -> np.ndarray:
    """Return the numbers of the rows, in order, whose hashes an earlier row has.

    Args:
        hashes: Of a table's rows in order, arrays of shape [rows, 2] from `hash_rows`.
    """
    parts = list(hashes)
    whole = np.concatenate(parts) if parts else np.empty((0, len(KEYS)), np.uint64)
    parts.clear()
    ordered = np.sort(whole[:, 0])  # many times as fast as argsort
    shared = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(shared):
        return np.empty(0, np.int64)
    places = np.searchsorted(shared, whole[:, 0]).clip(max=len(shared) - 1)
    near = np.flatnonzero(shared[places] == whole[:, 0])
    near = near[np.lexsort((near, whole[near, 1], whole[near, 0]))]
    return np.sort(near[1:][(whole[near[1:]] == whole[near[:-1]]).all(axis=1)])


def hash_rows(frame: pd.DataFrame) -> np.ndarray:
    """Return two hashes for each row of cleaned columns, [rows, 2], equal for equal values of any type."""
    columns = [_hash(frame[name]) for name in frame]
    return np.stack([_combine(hashes) for hashes in zip(*columns, strict=True)], axis=1)


def hash_content(table: pa.Table, names: Sequence[str], columns: Mapping[str, Column]) -> np.ndarray:
    """Return two hashes for each raw row, [rows, 2], equal for equal rows of any types.

    Args:
        table: Rows as a source gave them.
        names: The columns that count; one that the table lacks is missing in each row.
        columns: Those of the contract, by name: what it reads in a value counts, of one that it cannot read the text.
    """
    absent = pa.chunked_array([pa.nulls(len(table))])
    present = set(table.schema.names)
    hashes = [_hash_raw(table.column(name) if name in present else absent, columns.get(name)) for name in names]
    return np.stack([_combine(one) for one in zip(*hashes, strict=True)], axis=1)


def _hash_raw(values: pa.ChunkedArray, column: Column | None) -> list[np.ndarray]:
    if column is None:
        return _hash(_as_text(values).to_pandas())
    read, unreadable = clean_column(values, column)
    hashes = _hash(read)
    if unreadable.any():
        texts = _hash(values.filter(pa.array(unreadable)).cast(pa.string()).to_pandas())
        for known, raw in zip(hashes, texts, strict=True):
            known[unreadable] = raw
    return hashes


def _as_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values as text; numbers without a fraction like integers, as which another part may hold them."""
    if pa.types.is_string(values.type):
        return normalize_texts(values)
    if not pa.types.is_floating(values.type):
        return values.cast(pa.string())
    whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), EXACT))
    integers = pc.if_else(whole, values, None).cast(pa.int64()).cast(pa.string())
    return pc.coalesce(integers, values.cast(pa.string()))


def _hash(values: "pd.Series[Any]") -> list[np.ndarray]:
    """Return a hash of each value for each of `KEYS`."""
    missing = values.isna().to_numpy()
    if values.dtype.kind in "biufmM" or isinstance(values.dtype, pd.BooleanDtype | pd.Int64Dtype):
        moments = values.dtype.kind in "mM"
        hashed = pd.util.hash_array(values.to_numpy().view(np.int64)) if moments else _hash_numbers(values, missing)
        hashes = [hashed ^ np.uint64(int(key, 16)) for key in KEYS]
    else:
        texts = values.astype(object).to_numpy()
        hashes = [pd.util.hash_array(texts, hash_key=key, categorize=False) for key in KEYS]
    return [np.where(missing, MISSING, one) for one in hashes]


def _hash_numbers(values: "pd.Series[Any]", missing: np.ndarray) -> np.ndarray:
    """Hash numbers so that 1, 1.0 and true are equal, and integers beyond 2^53 are not rounded."""
    if values.dtype.kind == "f":
        numbers = values.to_numpy(np.float64) + 0.0  # makes -0.0 equal to 0.0
        whole = (np.abs(numbers) < 2.0**63) & (np.trunc(numbers) == numbers)
        bits = np.where(whole, np.where(whole, numbers, 0).astype(np.int64), numbers.view(np.int64) ^ np.int64(1) << 62)
    else:
        bits = values.to_numpy(np.int64, na_value=0) if missing.any() else values.to_numpy(np.int64)
    return pd.util.hash_array(bits)


def _combine(hashes: Sequence[np.ndarray]) -> np.ndarray:
    made = hashes[0]
    with np.errstate(over="ignore"):
        for other in hashes[1:]:
            made = (made * np.uint64(0x100000001B3)) ^ (
                other + MISSING + (made << np.uint64(6)) + (made >> np.uint64(2))
            )
    return made
