"""A snapshot checked a row group at a time: the verdict is the one of the whole table in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_but

from ondol.config import Settings
from ondol.contract import Column, check_rows, clean, load_schema
from ondol.contract.checking import find_repeats, hash_rows, unique_sets
from ondol.errors import UserError
from ondol.ingestion.sources import open_source
from ondol.project import Project
from ondol.snapshots.snapshots import Snapshots
from ondol.storage.store import Store, open_store
from ondol.validation.results import Validation, Validations
from ondol.validation.validate import check_bad_share, validate_snapshot

SAMPLE = pyarrow.Table.from_batches(open_source("sample://?rows=1000").batches())


def spoil(table: pyarrow.Table, column: str, changes: dict[int, Any]) -> pyarrow.Table:
    values = table.column(column).to_pylist()
    for row, value in changes.items():
        values[row] = value
    place = table.schema.names.index(column)
    return table.set_column(place, column, pyarrow.array(values, table.schema.field(column).type))


def validate_table(
    root: Path, table: pyarrow.Table, group: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Validation, Any]:
    monkeypatch.setattr("ondol.snapshots.snapshots.ROW_GROUP", group)
    chosen = Settings(root=root, data={"target": "churned"})  # type: ignore[arg-type]
    made = Snapshots(open_store(chosen)).write(table.to_batches(), "s", None)
    validation = validate_snapshot(Project(chosen), made.digest, "v")
    return validation, pq.read_table(Validations(open_store(chosen)).rows_path("v"))


@pytest.mark.parametrize("size", slow_but([7, 100, 130, 131], [1, 7, 100, 130, 131]))
def test_row_groups_change_nothing_of_the_verdict(tmp_path, monkeypatch, size):
    ids = SAMPLE.column("customer_id").to_pylist()
    table = spoil(SAMPLE, "customer_id", {130: ids[5], 640: ids[639], 990: ids[5]})
    table = spoil(table, "age", {0: 400, 99: -1, 100: 300, 130: 500, 999: 121})
    table = spoil(table, "plan", dict.fromkeys((1, 7, 500), "unheard of"))
    whole, rows = validate_table(tmp_path / "whole", table, 100_000, monkeypatch)
    part, cut = validate_table(tmp_path / "parts", table, size, monkeypatch)
    assert cut.equals(rows)
    others = {"snapshot", "digest"}  # the bytes of files have groups
    assert part.model_dump(exclude=others) == whole.model_dump(exclude=others)
    assert rows.column("_row").to_pylist() == [0, 1, 7, 99, 100, 130, 500, 640, 990, 999]
    assert whole.reasons["customer_id: field_uniqueness"] == 3
    assert f"customer_id = {ids[5]}: field_uniqueness" in rows.column("_reasons").to_pylist()[5]


class Together(pa.DataFrameModel):
    """Unique in two columns together."""

    a: pd.Int64Dtype = pa.Field(nullable=True)
    b: str = pa.Field(nullable=True)

    class Config:
        """As the template's."""

        unique = ["a", "b"]  # noqa: RUF012
        metadata = None


def test_the_sets_that_must_be_unique_are_read_from_the_schema():
    assert unique_sets(Together.to_schema(), ["a", "b"]) == [("a", "b")]
    assert unique_sets(load_schema().to_schema(), ["customer_id", "age"]) == [("customer_id",)]


class Compared(pa.DataFrameModel):
    """Two columns that are compared."""

    a: int
    b: pd.Int64Dtype = pa.Field(nullable=True)

    @pa.dataframe_check
    def ordered(cls, frame: pd.DataFrame) -> pd.Series:
        return (frame["a"] <= frame["b"]) | frame["b"].isna()


@pytest.mark.parametrize("a", [[1, 5, 3, None], ["1", "5", "3", "oops"]])
def test_a_check_of_several_columns_counts_a_gap_as_no_number(a):
    columns = [Column(name="a", kind="integer"), Column(name="b", kind="integer", nullable=True)]
    checked = check_rows(pyarrow.table({"a": a, "b": [2, 4, None, 9]}), columns, Compared.to_schema())
    assert checked.bad.tolist() == [1, 3]
    assert checked.valid()["b"].isna().tolist() == [False, True]


class Partly(pa.DataFrameModel):
    """Unique in two columns together, one of them ignored."""

    a: int
    b: str = pa.Field(metadata={"role": "ignored"})
    y: float = pa.Field(metadata={"role": "target"})

    class Config:
        """As the template's."""

        unique = ["a", "b"]  # noqa: RUF012
        metadata = None


def test_a_set_that_must_be_unique_counts_whole_though_a_column_of_it_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setattr("ondol.contract.schema.load_schema", lambda: Partly)
    chosen = Settings(root=tmp_path, data={"target": "y", "problem": "regression"})  # type: ignore[arg-type]
    table = pyarrow.table({"a": [1, 1, 1], "b": ["x", "y", "x"], "y": [0.0, 1.0, 2.0]})
    snapshots = Snapshots(open_store(chosen))
    validation = validate_snapshot(Project(chosen), snapshots.write(table.to_batches(), "s", None).digest, "v")
    assert validation.reasons == {"a: multiple_fields_uniqueness": 1}
    assert Validations(open_store(chosen)).bad_rows("v").tolist() == [2]
    less = snapshots.write(table.drop_columns("b").to_batches(), "s", None).digest
    with pytest.raises(UserError, match='no column "b"'):
        validate_snapshot(Project(chosen), less, "w")


class Labelled(pa.DataFrameModel):
    """A target of numbers, an id that is unique, and a bound."""

    id: str = pa.Field(unique=True, metadata={"role": "id"})
    x: float = pa.Field(ge=0)
    y: float = pa.Field(ge=0, metadata={"role": "target"})

    class Config:
        """As the template's."""

        metadata = None


def validate_labels(root: Path, monkeypatch: pytest.MonkeyPatch, group: int = 100, **columns: list[Any]) -> Validation:
    monkeypatch.setattr("ondol.snapshots.snapshots.ROW_GROUP", group)
    monkeypatch.setattr("ondol.contract.schema.load_schema", lambda: Labelled)
    chosen = Settings(root=root, data={"target": "y", "problem": "regression"})  # type: ignore[arg-type]
    made = Snapshots(open_store(chosen)).write(pyarrow.table(columns).to_batches(), "s", None)
    validation = validate_snapshot(Project(chosen), made.digest, "v")
    check_bad_share(Project(chosen), validation)
    return validation


@pytest.mark.parametrize("group", [1, 3, 100])
def test_a_row_without_a_label_is_left_out_and_is_neither_bad_nor_a_repeat(tmp_path, monkeypatch, group):
    labels = ["", None, " ", "1", "2", "oops", "3", "4", *map(str, range(20))]
    ids = ["a", "b", "c", "a", "a", "d", "e", "f", *(f"i{i}" for i in range(20))]
    x = ["-1", "x", "0", "1", "1", "1", "1", "1", *["1"] * 20]
    validation = validate_labels(tmp_path, monkeypatch, group, id=ids, x=x, y=labels)
    assert (validation.rows, validation.bad, validation.unlabelled, validation.kept) == (28, 2, 3, 23)
    assert validation.reasons == {"id: field_uniqueness": 1, "y: not a finite number": 1}
    assert validation.bad_share == 2 / 25
    rows = pq.read_table(Validations(Store(tmp_path / ".ml" / "store")).rows_path("v"))
    assert rows.column("_row").to_pylist() == [4, 5]


def test_no_share_of_missing_labels_fails_a_run_but_all(tmp_path, monkeypatch):
    n = 100
    labels: list[Any] = [None] * (n - 1) + [1.0]
    validation = validate_labels(tmp_path, monkeypatch, id=[str(i) for i in range(n)], x=[1.0] * n, y=labels)
    assert validation.describe() == "1 rows kept, 0 quarantined (0.00%), 99 without a label left out"
    with pytest.raises(UserError, match='None of the 100 rows has a value of the target "y"'):
        validate_labels(tmp_path, monkeypatch, id=[str(i) for i in range(n)], x=[1.0] * n, y=pyarrow.nulls(n, "double"))


def test_column_of_the_wrong_type_is_named_with_its_rows(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"x: not a finite number \(3 rows\)"):
        validate_labels(tmp_path, monkeypatch, id=["a", "b", "c"], x=["많이"] * 3, y=[1.0] * 3)


@pytest.mark.parametrize(("share", "kept"), [(0.01, False), (0.02, True)])
def test_the_share_of_bad_rows_that_fails_a_run_is_the_owner_s_choice(tmp_path, monkeypatch, share, kept):
    monkeypatch.setenv("ML_DATA__MAX_BAD_SHARE", str(share))
    columns = {"id": [str(i) for i in range(100)], "x": ["much", "-1", *["1"] * 98], "y": [1.0] * 100}
    if kept:
        assert validate_labels(tmp_path, monkeypatch, **columns).bad == 2
        return
    with pytest.raises(UserError, match=r"2 of 100 rows \(2.0%\) break the contract.*max_bad_share = 1%.*quarantine/"):
        validate_labels(tmp_path, monkeypatch, **columns)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_large_ids_beside_gaps_repeat_or_not_with_any_block_borders(size):
    ids = pyarrow.table({"a": [2**60, 2**60 + 1, None, 2**60 + 2, 2**60 + 1]})
    columns = [Column(name="a", kind="integer")]
    hashes = [hash_rows(clean(ids.slice(start, size), columns)[0]) for start in range(0, len(ids), size)]
    assert find_repeats(hashes).tolist() == [4]


NUMBERS = st.one_of(st.none(), st.integers(-3, 3), st.integers(2**60, 2**60 + 3))
TEXTS = st.one_of(st.none(), st.sampled_from(["", "가", "a", "A"]))


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, TEXTS), max_size=60), st.integers(1, 20))
def test_repeats_are_what_pandas_finds_in_the_whole_table(rows, size):
    frame = pd.DataFrame(rows, columns=["a", "b"]).astype({"a": "Int64", "b": "str"})
    for names in (["a"], ["b"], ["a", "b"]):
        parts = [frame[names].iloc[start : start + size] for start in range(0, len(frame), size)]
        expected = np.flatnonzero(frame.duplicated(names))
        assert find_repeats(hash_rows(part) for part in parts).tolist() == expected.tolist()


@settings(deadline=None)
@given(st.lists(st.one_of(st.floats(allow_nan=True, allow_infinity=False), st.integers(-5, 5)), max_size=60))
def test_numbers_are_equal_in_any_type_of_a_part(values):
    numbers = pd.Series(values, dtype="float64")
    half = len(numbers) // 2
    parts = [numbers[:half], numbers[half:]]
    if parts[1].notna().all() and (parts[1] % 1 == 0).all() and (parts[1].abs() < 2**53).all():
        parts[1] = parts[1].astype("int64")
    found = find_repeats(hash_rows(part.to_frame("a")) for part in parts)
    assert found.tolist() == np.flatnonzero(numbers.duplicated()).tolist()
