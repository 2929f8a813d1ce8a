"""Checks rows with the contract, and reports every reason of every invalid row.

Rows that repeat unique values of an earlier row are found with two 64-bit hashes of each row's values (16 bytes a row).
Equal hashes count as equal values; for 10,000,000 rows, the probability of an error is below 1e-24.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ondol.contract.cleaning import UNREADABLE, clean, clean_column, join_reasons, normalize_texts, reasons_of, typed
from ondol.contract.schema import Column
from ondol.errors import UserError
from ondol_serving.grammar import normalize

if TYPE_CHECKING:
    from pandera.pandas import DataFrameSchema

AS_VALUE = {"date": partial(pd.Timestamp, unit="s"), "duration": partial(pd.Timedelta, unit="s")}
KEYS = ("0123456789abcdef", "fedcba9876543210")
MISSING = np.uint64(0x9E3779B97F4A7C15)
EXACT = 2.0**53
ALONE, TOGETHER = "field_uniqueness", "multiple_fields_uniqueness"  # Pandera's names of these checks


@dataclass(frozen=True)
class Checked:
    """Cleaned rows and the errors in them.

    Attributes:
        frame: All rows, numbered from 0; unreadable cells are missing.
        reasons: One row for each reason, grouped by row: row, column, check, value (as text).
        columns: The columns that were checked.
    """

    frame: pd.DataFrame
    reasons: pd.DataFrame
    columns: tuple[Column, ...]

    @property
    def bad(self) -> np.ndarray:
        """The numbers of the invalid rows, in order."""
        return np.unique(self.reasons["row"].to_numpy(dtype=np.int64))

    def sentences(self) -> pa.ListArray:
        """Return the reasons of each row in `bad` as sentences."""
        reasons = self.reasons
        texts = reasons["column"] + " = " + reasons["value"].fillna("missing") + ": " + reasons["check"]
        _, starts = np.unique(reasons["row"].to_numpy(dtype=np.int64), return_index=True)
        ends = np.append(starts, len(texts)).astype(np.int32)
        return pa.ListArray.from_arrays(ends, pa.array(texts.to_numpy(object), pa.string()))

    def valid(self) -> pd.DataFrame:
        """Return the valid rows with their numbers, in the contract's dtypes."""
        good = self.frame.drop(index=self.bad) if len(self.reasons) else self.frame
        return typed(good, self.columns)

    def without_unlabelled(self, target: str) -> tuple["Checked", np.ndarray]:
        """Return a copy without the reasons of unlabelled rows, and the numbers of these rows, in order.

        An unlabelled row is not invalid, but cannot be used for training. A label that cannot be read is an error.
        """
        reasons = self.reasons
        unread = reasons["row"][(reasons["column"] == target) & reasons["check"].isin(UNREADABLE.values())]
        bare = np.setdiff1d(np.flatnonzero(self.frame[target].isna()), unread)
        return replace(self, reasons=reasons[~reasons["row"].isin(bare)].reset_index(drop=True)), bare

    def with_repeats(self, names: Sequence[str], rows: np.ndarray) -> "Checked":
        """Return a copy with a further reason: `rows` repeat earlier rows in the unique columns `names`."""
        if not len(rows):
            return self
        check, shown = ALONE if len(names) == 1 else TOGETHER, [name for name in names if name in self.frame]
        made = join_reasons(
            [reasons_of(rows, name, check, self.frame[name].loc[rows].to_numpy(object)) for name in shown]
        )
        found = _show_whole(_unless_known(made, self.reasons), self.columns)
        return replace(self, reasons=join_reasons([self.reasons, found]))


def check_rows(table: pa.Table, columns: Sequence[Column], schema: "DataFrameSchema | None" = None) -> Checked:
    """Clean the rows of `table` and validate them with the checks of `schema`, except uniqueness.

    Args:
        table: Raw rows, of a whole table or of a part.
        columns: The columns to check; others are ignored.
        schema: The Pandera schema, such as `load_schema().to_schema()`; default: one built from `columns`.

    Raises:
        UserError: a column is missing.
    """
    frame, unreadable = clean(table, columns)
    found = _failures(frame, _untyped(columns, schema))
    found = _show_whole(_unless_known(found, unreadable), columns)
    reasons = join_reasons([part for part in (unreadable, found) if len(part)])
    return Checked(frame, reasons, tuple(columns))


def _unless_known(found: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Return `found` without the reasons of cells that cannot be read, since these already have one."""
    unread = known[known["check"].isin(UNREADABLE.values())]
    if not len(unread) or not len(found):
        return found
    seen = pd.MultiIndex.from_frame(unread[["row", "column"]])
    return found[~pd.MultiIndex.from_frame(found[["row", "column"]]).isin(seen)]


def _show_whole(reasons: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """Return the reasons with whole numbers shown without a fraction, also if missing values made the column float."""
    whole = reasons["column"].isin([c.name for c in columns if c.kind in ("integer", "boolean")])
    return reasons.assign(value=reasons["value"].mask(whole, reasons["value"].str.removesuffix(".0")))


def _failures(frame: pd.DataFrame, schema: "DataFrameSchema") -> pd.DataFrame:
    from pandera.errors import SchemaErrors

    # A check of several columns uses the names in the schema.
    written = {normalize(str(name)): name for name in schema.columns}
    frame = frame.rename(columns=written)
    # The owner's checks compare missing values as NaN, not as NA, which is neither true nor false.
    gapped = [name for name in frame if isinstance(frame[name].dtype, pd.Int64Dtype)]
    try:
        schema.validate(frame.astype(dict.fromkeys(gapped, "float64")), lazy=True, inplace=True)
    except SchemaErrors as error:
        cases = error.failure_cases
        rowless = cases["index"].isna()
        if rowless.any():
            case = cases[rowless].iloc[0]
            whose = f' of "{case["column"]}"' if isinstance(case["column"], str) else ""
            raise UserError(
                f"The check {case['check']}{whose} in model/schema.py failed as a whole: {case['failure_case']}."
            ) from None
        rows = cases["index"].to_numpy(dtype=np.int64)
        named = cases["column"].astype("str").map(normalize).to_numpy()
        return reasons_of(rows, named, cases["check"].astype("str").to_numpy(), cases["failure_case"].astype("str"))
    return join_reasons([])


def _untyped(columns: Sequence[Column], schema: "DataFrameSchema | None") -> "DataFrameSchema":
    """Return Pandera's checks of `columns` without types, which `clean` has converted already.

    Uniqueness is not checked either, because it concerns the whole table; see `find_repeats`.
    """
    import pandera.pandas as pa_

    if schema is None:
        return pa_.DataFrameSchema({c.name: pa_.Column(None, _checks(c), nullable=c.nullable) for c in columns})
    known = {column.name: column for column in columns}
    kept = {
        name: pa_.Column(None, checks=_normal_checks(field.checks), nullable=field.nullable)
        for name, field in schema.columns.items()
        if normalize(str(name)) in known
    }
    return pa_.DataFrameSchema(kept, checks=schema.checks)


def _normal_checks(checks: list[Any]) -> list[Any]:
    """Return the checks with their closed sets in normal form C, like the values."""
    import pandera.pandas as pa_

    made = []
    for check in checks:
        allowed = list(check.statistics["allowed_values"]) if check.name == "isin" else []
        normal = [normalize(value) if isinstance(value, str) else value for value in allowed]
        made.append(check if normal == allowed else pa_.Check.isin(normal))
    return made


def _checks(column: Column) -> list[Any]:
    import pandera.pandas as pa_

    as_value: Callable[[float], Any] = AS_VALUE.get(column.kind, lambda bound: bound)
    made: list[tuple[float | None, Callable[[Any], Any]]] = [
        (column.minimum, pa_.Check.ge),
        (column.maximum, pa_.Check.le),
        (column.exclusive_minimum, pa_.Check.gt),
        (column.exclusive_maximum, pa_.Check.lt),
    ]
    checks = [check(as_value(bound)) for bound, check in made if bound is not None]
    return checks + ([pa_.Check.isin(list(column.categories))] if column.categories else [])


def unique_sets(schema: "DataFrameSchema", names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the sets of columns that must be unique in `schema`, limited to sets with one of `names`."""
    alone = {normalize(str(name)) for name, column in schema.columns.items() if column.unique}
    listed: Any = schema.unique or []
    together = [tuple(map(normalize, one)) for one in ([listed] if listed and isinstance(listed[0], str) else listed)]
    return [(name,) for name in names if name in alone] + [one for one in together if set(one) & set(names)]


def find_repeats(hashes: Iterable[np.ndarray]) -> np.ndarray:
    """Return the numbers of the rows, in order, with the same hashes as an earlier row.

    Args:
        hashes: The hashes of a table's rows in order: arrays of shape [rows, 2] from `hash_rows`.
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
        names: The columns to hash; a column that the table lacks counts as missing values.
        columns: The contract's columns, by name: values are hashed as the contract reads them, unreadable ones as text.
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
    """Return values as text; whole numbers like integers, because another part may store them as integers."""
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
        numbers = values.to_numpy(np.float64) + 0.0  # -0.0 equals 0.0
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
