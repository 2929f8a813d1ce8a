"""Many corrections make one snapshot, the same as one after the other; equal files do not share replacements."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ondol.contract import Column
from ondol.retention import all_snapshots
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.storage.store import Store
from ondol.validation.corrections import (
    Correction,
    correct_snapshot,
    find_rows,
    find_selective_column,
    pair_keys,
    read_corrections,
    record_correction,
    replace_rows,
)

SOURCE = "data.csv"
Rows = list[tuple[Any, ...]]


@pytest.fixture
def snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshots:
    monkeypatch.setattr("ondol.snapshots.snapshots.ROW_GROUP", 3)
    return Snapshots(Store(tmp_path))


def table(rows: Rows, names: Sequence[str] = ("a", "b")) -> pa.Table:
    types = [pa.string() if name == "b" else pa.int64() for name in names]
    return pa.table([pa.array([row[i] for row in rows], kind) for i, kind in enumerate(types)], list(names))


def take(snapshots: Snapshots, rows: Rows, names: Sequence[str] = ("a", "b")) -> Snapshot:
    return snapshots.write(table(rows, names).to_batches(), SOURCE, None)


def correct(snapshots: Snapshots, raw: pa.Table, corrected: pa.Table) -> None:
    """Record that `corrected` replaces `raw` in all that the source gives next."""
    parts = [snapshots.parts.write(one.to_batches()) for one in (raw, corrected)]
    digests = [part.digest for part in parts if part]
    base = take(snapshots, [(99, "before")])
    record_correction(
        snapshots, base, base, Correction(raw=digests[0], corrected=digests[1], rows=len(raw), validation="v")
    )


def rows_of(snapshots: Snapshots, snapshot: Snapshot) -> Rows:
    columns = list(snapshots.schema(snapshot.digest).names)
    return [tuple(row.values()) for one in snapshots.batches(snapshot.digest, columns) for row in one.to_pylist()]


def one_after_the_other(rows: Rows, corrections: Sequence[tuple[Rows, Rows]]) -> Rows:
    """Return what the corrections make of `rows`, found the slow way."""
    for raw, corrected in corrections:
        gone: dict[int, int] = {}
        for wanted in set(raw):
            ours = [i for i, row in enumerate(raw) if row == wanted]
            theirs = [i for i, row in enumerate(rows) if row == wanted]
            gone |= dict(zip(theirs[-len(ours) :], ours, strict=False))
        rows = [row for i, row in enumerate(rows) if i not in gone] + [corrected[i] for i in sorted(gone.values())]
    return rows


def some_rows(draw: np.random.Generator, count: int) -> Rows:
    return [(int(draw.integers(3)), [None, "x", "y"][draw.integers(3)]) for _ in range(count)]


@pytest.mark.parametrize("seed", range(60))
def test_corrections_that_build_on_one_another_make_what_one_after_the_other_makes(snapshots, seed):
    draw = np.random.default_rng(seed)
    rows = some_rows(draw, 8)
    corrections = [(some_rows(draw, n), some_rows(draw, n)) for n in draw.integers(1, 5, size=4)]
    for raw, corrected in corrections:
        correct(snapshots, table(raw), table(corrected))
    made = correct_snapshot(snapshots, take(snapshots, rows), {})
    assert rows_of(snapshots, made) == one_after_the_other(rows, corrections)


def test_corrections_make_one_snapshot_and_none_in_between(snapshots):
    for number in range(5):
        correct(snapshots, table([(number, "bad")]), table([(number, "good")]))
    source = take(snapshots, [(number, "bad") for number in range(7)])
    before = len(all_snapshots(snapshots))
    made = correct_snapshot(snapshots, source, {})
    assert len(all_snapshots(snapshots)) == before + 1
    assert made.parent == source.digest and len(made.parts) == 2
    assert rows_of(snapshots, made) == [(5, "bad"), (6, "bad"), *((number, "good") for number in range(5))]
    assert correct_snapshot(snapshots, source, {}) == made


def test_corrections_of_a_table_that_has_other_columns_since_count_in_those_that_it_had(snapshots):
    correct(snapshots, table([(1, "bad")]), table([(1, "good")]))
    correct(snapshots, table([(2, "bad", 7)], "abc"), table([(2, "good", 7)], "abc"))
    correct(snapshots, table([(1, "good", None)], "abc"), table([(10, "good", 70)], "abc"))
    made = correct_snapshot(snapshots, take(snapshots, [(1, "bad", 5), (2, "bad", 6), (2, "bad", 7)], "abc"), {})
    assert rows_of(snapshots, made) == [(2, "bad", 6), (2, "good", 7), (10, "good", 70)]
    made = correct_snapshot(snapshots, take(snapshots, [(1,), (5,)], "c"), {})  # of which corrections know only `c`
    assert rows_of(snapshots, made) == [(1,), (5,)]
    other = pa.table({"d": [1, 2]})
    assert correct_snapshot(snapshots, snapshots.write(other.to_batches(), SOURCE, None), {}).columns == ("d",)


def test_corrected_rows_of_several_types_are_found_again(snapshots):
    correct(snapshots, table([(1, "bad")]), pa.table({"a": ["one"], "b": ["good"]}))
    correct(snapshots, pa.table({"a": ["one"], "b": ["good"]}), table([(1, "best")]))
    made = correct_snapshot(snapshots, take(snapshots, [(1, "bad"), (2, "bad")]), {})
    assert rows_of(snapshots, made) == [(2, "bad"), (1, "best")]


def test_of_two_equal_files_of_a_snapshot_one_row_gives_way_in_one(snapshots):
    part = take(snapshots, [(1, "x"), (2, "y")]).parts[0]
    twice = snapshots.record([part, part], SOURCE)
    wanted = table([(2, "y")])
    rows, places = find_rows(snapshots, twice, wanted, {})
    assert (rows.tolist(), places.position.tolist(), places.part.tolist()) == ([0], [3], [1])
    made = replace_rows(snapshots, twice, places, table([(3, "z")]).to_batches())
    assert made.rows == 4
    assert rows_of(snapshots, made) == [(1, "x"), (2, "y"), (1, "x"), (3, "z")]


def test_of_equal_rows_the_last_are_found_in_the_order_in_which_they_are_looked_for():
    rows, others = pair_keys(np.array([4, 2, 4, 9]), np.array([4, 4, 2, 4, 3]))
    assert dict(zip(rows.tolist(), others.tolist(), strict=True)) == {0: 1, 1: 2, 2: 3}
    assert [len(one) for one in pair_keys(np.array([1]), np.empty(0, np.int64))] == [0, 0]


def test_the_column_that_is_read_first_tells_most_rows_apart():
    names: Iterator[str] = iter(["b", "id", "text"])
    columns = ([True, False, True], [1, 2, 3], ["x", "y", "z"])
    assert find_selective_column(pa.table(dict(zip(names, columns, strict=True)))) == "id"


def test_a_corrected_snapshot_that_grew_is_corrected_from_what_the_source_gave(snapshots):
    source = take(snapshots, [(1, "bad"), (2, "bad")])
    latest = source
    for number in (1, 2):
        raw, corrected = table([(number, "bad")]), table([(number, "good")])
        made = replace_rows(snapshots, latest, find_rows(snapshots, latest, raw, {})[1], corrected.to_batches())
        digests = [part.digest for one in (raw, corrected) if (part := snapshots.parts.write(one.to_batches()))]
        record_correction(
            snapshots, latest, made, Correction(raw=digests[0], corrected=digests[1], rows=1, validation="v")
        )
        latest = made
    assert len(read_corrections(snapshots, SOURCE)) == 2
    assert correct_snapshot(snapshots, source, {}) == latest


def test_a_corrected_row_is_known_though_its_columns_are_read_as_other_types(snapshots):
    """A later file with an invalid date and an invalid number: the texts of the other cells are the same."""
    columns = {
        name: Column(name=name, kind=kind)
        for name, kind in {"id": "integer", "day": "date", "price": "number", "flag": "boolean"}.items()
    }
    raw = pa.table({"id": [1], "day": [datetime(2024, 1, 5)], "price": [3.0], "flag": [True]})
    correct(snapshots, raw, raw.set_column(2, "price", pa.array([4.0])))
    later = {"id": ["1", "2"], "day": ["2024-01-05", "unknown"], "price": ["3.0", "n.a."], "flag": ["true", "?"]}
    source = snapshots.write(pa.table(later).to_batches(), SOURCE, None)
    [second, first] = rows_of(snapshots, correct_snapshot(snapshots, source, columns))
    assert second == ("2", "unknown", "n.a.", "?") and first[2] == 4.0


def test_rows_are_corrected_though_the_source_gained_a_column(snapshots):
    correct(snapshots, table([(1, "bad")]), table([(1, "good")]))
    parts = [take(snapshots, [(1, "bad"), (2, "x")]).parts[0], take(snapshots, [(3, "y", 7)], "abc").parts[0]]
    made = correct_snapshot(snapshots, snapshots.record(parts, SOURCE), {})
    assert rows_of(snapshots, made) == [(2, "x", None), (3, "y", 7), (1, "good", None)]
