"""A growing snapshot has every row once, in its newest state, also after late or repeated rows and killed runs."""

import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from growing_support import CONTRACT, START, Row, Table, grow, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ondol.config import Settings
from ondol.contract import Column
from ondol.errors import UserError
from ondol.snapshots.snapshots import Snapshots, unify
from ondol.storage.files import digest_json
from ondol.storage.store import open_store


class Database(Table):
    """Leaves old rows out by itself."""

    def since(self, column: str, value: Any) -> "Database":
        assert column == "changed"
        made = Database([row for row in self.rows if START + timedelta(days=row[1]) >= value], self.size)
        self.narrowed = made
        return made


class Topic(Table):
    """A stream whose position is a number of messages."""

    def __init__(self, rows: list[Row]) -> None:
        super().__init__(rows)
        self.key = ["topic", "group"]
        self.messages = rows
        self.position: Any = None
        self.committed: list[int] = []

    def resume(self, position: Any, full: bool = False) -> None:
        self.rows = self.messages[position or (0 if full else self.committed[-1] if self.committed else 0) :]

    def batches(self) -> Iterator[pa.RecordBatch]:
        end = len(self.messages)
        yield from super().batches()
        self.position = end

    def commit(self, position: Any) -> None:
        self.committed.append(position)


def make_settings(root: Path, **data: Any) -> Settings:
    return Settings(root=root, data=data)  # type: ignore[arg-type]


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("ondol.snapshots.snapshots.ROW_GROUP", 4)
    return make_settings(tmp_path, watermark="changed")


def test_what_is_new_is_appended_and_names_its_parent(chosen):
    table = Table([("a", 0, 1.0), ("b", 1, 2.0)])
    first = grow(chosen, CONTRACT, table)
    table.rows = [*table.rows, ("c", 2, 3.0), ("다", 3, 4.0)]
    second = grow(chosen, CONTRACT, table)
    assert rows_of(chosen, second) == table.rows
    assert (first.parent, second.parent) == (None, first.digest)
    assert second.watermark == "2026-01-04T00:00:00"
    assert second.parts[0] == first.parts[0] and second.parts[1].rows == 2
    assert rows_of(chosen, Snapshots(open_store(chosen)).get(first.digest)) == table.rows[:2]


def test_earlier_rows_stay_if_newer_ones_replace_them_in_the_source(chosen):
    table = Table([("a", 0, 1.0), ("b", 1, 2.0)])
    grow(chosen, CONTRACT, table)
    table.rows = [("c", 2, 3.0)]
    assert [row[0] for row in rows_of(chosen, grow(chosen, CONTRACT, table))] == ["a", "b", "c"]


def test_the_id_may_be_the_watermark(tmp_path):
    named = CONTRACT.columns[0].model_copy(update={"role": "feature"})
    when = CONTRACT.columns[1].model_copy(update={"role": "id"})
    contract = CONTRACT.model_copy(update={"columns": (named, when, CONTRACT.columns[2])})
    chosen = make_settings(tmp_path, watermark="changed")
    table = Table([("a", 0, 1.0), ("b", 1, 2.0)])
    grow(chosen, contract, table)
    table.rows = [("a", 0, 1.0), ("b", 1, 2.0), ("c", 2, 3.0)]
    assert rows_of(chosen, grow(chosen, contract, table)) == table.rows


def test_a_database_is_asked_only_for_what_is_new(chosen):
    table = Database([(f"r{i}", i, 0.0) for i in range(100)])
    grow(chosen, CONTRACT, table)
    table.rows = [*table.rows, ("new", 100, 1.0)]
    grow(chosen, CONTRACT, table)
    assert table.narrowed.given == 2  # the newest of before, and the new one


def test_nothing_new_is_the_same_snapshot(chosen):
    table = Table([("a", 0, 1.0), ("b", 1, 2.0)])
    assert grow(chosen, CONTRACT, table) == grow(chosen, CONTRACT, table)
    assert len(list((chosen.folder_of(chosen.store) / "snapshots").glob("*.parquet"))) == 1


def test_a_changed_row_replaces_its_old_state(chosen):
    table = Table([(f"r{i}", i, 0.0) for i in range(9)])
    grow(chosen, CONTRACT, table)
    table.rows = [*table.rows, ("r2", 10, 7.0), ("r5", 11, 8.0)]
    grown = grow(chosen, CONTRACT, table)
    expected = [row for row in table.rows if row not in (("r2", 2, 0.0), ("r5", 5, 0.0))]
    assert rows_of(chosen, grown) == expected
    table.rows = [*table.rows, ("r5", 12, 9.0)]
    again = grow(chosen, CONTRACT, table)
    assert {row[0]: row for row in rows_of(chosen, again)} == {row[0]: row for row in table.rows}
    assert again.rows == 9


def test_what_changed_at_the_same_moment_is_distinguished_from_what_did_not_across_row_groups(chosen):
    rows = [(f"고객 {number}", number % 2, float(number)) for number in range(30)]
    first = grow(chosen, CONTRACT, Table(rows))
    again = [(name, day, y + (y % 7 == 0)) for name, day, y in rows if day == 1]
    random.Random(3).shuffle(again)
    made = grow(chosen, CONTRACT, Table(again, size=5))
    assert made.parent == first.digest
    kept = {name: row for name, *row in [*rows, *again]}
    assert sorted(rows_of(chosen, made)) == sorted((name, *row) for name, row in kept.items())
    assert [part.rows for part in made.parts] == [30, 2] and made.parts[0].drops == 2  # 7 and 21 alone


def test_an_older_state_that_comes_late_changes_nothing(tmp_path):
    late = make_settings(tmp_path, watermark="changed", lateness=5)
    table = Table([("a", 8, 1.0), ("b", 10, 2.0)])
    first = grow(late, CONTRACT, table)
    table.rows = [*table.rows, ("a", 6, 0.0)]
    assert grow(late, CONTRACT, table) == first
    table.rows = [*table.rows, ("late", 6, 3.0)]
    assert rows_of(late, grow(late, CONTRACT, table)) == [("a", 8, 1.0), ("b", 10, 2.0), ("late", 6, 3.0)]


def test_a_watermark_that_goes_back_is_refused_and_changes_nothing(chosen):
    table = Table([("a", 0, 1.0), ("b", 5, 2.0)])
    first = grow(chosen, CONTRACT, table)
    for rows, now in (([("c", 3, 1.0)], "in no row"), ([], "in no row")):
        with pytest.raises(UserError, match=f"went back.*2026-01-06.*{now} now.*--full"):
            grow(chosen, CONTRACT, Table(rows))
    late = chosen.model_copy(update={"data": chosen.data.model_copy(update={"lateness": 3})})
    with pytest.raises(UserError, match="was 2026-01-06T00:00:00 and is 2026-01-04T00:00:00 now"):
        grow(late, CONTRACT, Table([("c", 3, 1.0)]))
    assert grow(chosen, CONTRACT, table) == first


def test_full_begins_again(chosen):
    grow(chosen, CONTRACT, Table([("a", 0, 1.0), ("b", 5, 2.0)]))
    made = grow(chosen, CONTRACT, Table([("c", 3, 1.0)]), full=True)
    assert (rows_of(chosen, made), made.parent) == ([("c", 3, 1.0)], None)
    more = grow(chosen, CONTRACT, Table([("c", 3, 1.0), ("d", 4, 1.0)]))
    assert more.parent == made.digest


def test_a_table_without_an_id_or_with_a_watermark_of_text_is_refused(tmp_path):
    nameless = CONTRACT.model_copy(update={"columns": CONTRACT.columns[1:]})
    with pytest.raises(UserError, match="needs a column with metadata"):
        grow(make_settings(tmp_path, watermark="changed"), nameless, Table([("a", 0, 1.0)]))
    with pytest.raises(UserError, match='watermark "고객" is a text'):
        grow(make_settings(tmp_path, watermark="고객"), CONTRACT, Table([("a", 0, 1.0)]))
    with pytest.raises(UserError, match=r'watermark.* names "chnged", which is not in.*"changed"'):
        grow(make_settings(tmp_path, watermark="chnged"), CONTRACT, Table([("a", 0, 1.0)]))


STATES = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(STATES, min_size=1, max_size=5))
def test_the_newest_state_of_each_id_is_there_once(tmp_path_factory, loads):
    """For any load, the result equals a table that keeps the newest state of each id."""
    chosen = make_settings(tmp_path_factory.mktemp("grown"), watermark="changed")
    table, kept = Table([]), dict[str, Row]()
    for number, load in enumerate(loads):
        batch = [(name, 4 * number + day, float(y)) for name, day, y in load]
        batch.append(("mark", 4 * number + 4, 0.0))
        table.rows = [*table.rows, *batch]
        for row in batch:
            if row[0] not in kept or row[1] >= kept[row[0]][1]:
                kept[row[0]] = row
        made = grow(chosen, CONTRACT, table)
        assert sorted(rows_of(chosen, made)) == sorted(kept.values())


def test_a_stream_is_read_further_and_committed_only_after_all_is_written(tmp_path):
    chosen, topic = make_settings(tmp_path), Topic([("a", 0, 1.0), ("b", 0, 2.0)])
    grow(chosen, CONTRACT, topic)
    topic.messages = [*topic.messages, ("a", 0, 5.0), ("c", 0, 3.0), ("b", 0, 2.0)]
    made = grow(chosen, CONTRACT, topic)
    assert sorted(rows_of(chosen, made)) == [("a", 0, 5.0), ("b", 0, 2.0), ("c", 0, 3.0)]
    assert topic.committed == [2, 5]
    assert grow(chosen, CONTRACT, topic) == made  # nothing new


def test_a_stream_that_is_read_whole_begins_at_its_start(tmp_path):
    chosen, topic = make_settings(tmp_path), Topic([("a", 0, 1.0), ("b", 0, 2.0)])
    first = grow(chosen, CONTRACT, topic)
    topic.messages = [*topic.messages, ("c", 0, 3.0)]
    made = grow(chosen, CONTRACT, topic, full=True)
    assert made.parent is None and made.digest != first.digest and made.rows == 3


def test_a_stream_is_read_on_under_another_address_and_watermark(tmp_path):
    topic = Topic([("a", 0, 1.0), ("b", 0, 2.0)])
    first = grow(make_settings(tmp_path), CONTRACT, topic)
    for number, watermark in enumerate((None, "changed", "y"), start=1):
        topic.uri = f"test://more-brokers-{number}"
        topic.messages = [*topic.messages, (f"new{number}", number, float(number))]
        made = grow(make_settings(tmp_path, watermark=watermark), CONTRACT, topic)
        assert made.rows == 2 + number and made.parent == first.digest
        first = made


def test_a_stream_is_read_on_from_the_line_of_an_earlier_version(tmp_path):
    chosen, topic = make_settings(tmp_path), Topic([("a", 0, 1.0), ("b", 0, 2.0)])
    first = grow(chosen, CONTRACT, topic)
    [line] = (chosen.folder_of(chosen.store) / "snapshots" / "lines").iterdir()
    line.rename(line.with_name(f"{digest_json([topic.uri, None])}.json"))
    topic.messages = [*topic.messages, ("c", 0, 3.0)]
    made = grow(chosen, CONTRACT, topic)
    assert (made.rows, made.parent) == (3, first.digest)
    topic.uri = "test://elsewhere"
    assert grow(chosen, CONTRACT, topic) == made
    assert grow(chosen, CONTRACT, topic, full=True).parent is None


class Killed(BaseException):
    """Simulates kill -9: after it, only code that Python runs in any case."""


@pytest.mark.parametrize("kind", [Table, Topic])
def test_killed_at_any_write_nothing_is_lost_or_doubled(kind, tmp_path, monkeypatch):
    """Before and after each file that is published; a real kill -9 is tested end to end."""
    history = [[("a", 0, 1.0), ("b", 1, 2.0)], [("b", 2, 5.0), ("c", 2, 3.0)], [("d", 3, 4.0), ("a", 3, 9.0)]]
    expected = [("a", 3, 9.0), ("b", 2, 5.0), ("c", 2, 3.0), ("d", 3, 4.0)]
    writes = count_writes(kind, history, make_settings(tmp_path / "whole", watermark="changed"), monkeypatch)
    assert writes >= 9
    for fatal in range(2 * writes):
        chosen = make_settings(tmp_path / f"{kind.__name__}-{fatal}", watermark="changed")
        source = kind([])
        killed = False
        for load in history:
            extend(source, load)
            with monkeypatch.context() as patch:
                if not killed:
                    kill_at(patch, fatal // 2, after=fatal % 2 == 1)
                try:
                    made = grow(chosen, CONTRACT, source)
                except Killed:
                    killed = True
                    made = None
            if made is None:
                made = grow(chosen, CONTRACT, source)
        assert sorted(rows_of(chosen, made)) == expected, fatal


def extend(source: Table, load: list[Row]) -> None:
    if isinstance(source, Topic):
        source.messages = [*source.messages, *load]
    else:
        source.rows = [*source.rows, *load]


def patch_publish(patch: pytest.MonkeyPatch, publish: Any) -> None:
    from ondol.storage import files

    patch.setattr(files, "publish", publish)


def kill_at(patch: pytest.MonkeyPatch, place: int, after: bool) -> None:
    from ondol.storage.files import publish

    seen = iter(range(10**6))

    def fatal(made: Path, target: Path, *how: Any) -> None:
        here = next(seen) == place
        if here and not after:
            raise Killed
        publish(made, target, *how)
        if here:
            raise Killed

    patch_publish(patch, fatal)


def count_writes(kind: type[Table], history: list[list[Row]], chosen: Settings, patch: pytest.MonkeyPatch) -> int:
    from ondol.storage.files import publish

    counted = []

    def count(made: Path, target: Path, *how: Any) -> None:
        counted.append(target)
        publish(made, target, *how)

    source = kind([])
    with patch.context() as inner:
        patch_publish(inner, count)
        for load in history:
            extend(source, load)
            grow(chosen, CONTRACT, source)
    return len(counted)


def test_parts_of_other_columns_and_types_are_one_table(chosen):
    table = Table([("a", 0, 1.0)])
    grow(chosen, CONTRACT, table)

    class Wider(Table):
        schema = pa.schema([("y", pa.string()), ("extra", pa.int64()), ("고객", pa.string()), ("changed", pa.string())])

        def batches(self) -> Iterator[pa.RecordBatch]:
            columns = [["x"], [7], ["b"], ["2026-01-05"]]
            arrays = [pa.array(c, f.type) for c, f in zip(columns, self.schema, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    made = grow(make_settings(chosen.root, watermark="changed"), CONTRACT, Wider([]), full=False)
    found = Snapshots(open_store(chosen)).batches(made.digest, ["y", "extra", "고객"])
    assert [block.to_pydict() for block in found] == [
        {"y": [1.0], "extra": [None], "고객": ["a"]},
        {"y": ["x"], "extra": [7], "고객": ["b"]},
    ]
    alike = [block.read_alike(["y", "extra", "고객"]) for block in Snapshots(open_store(chosen)).blocks(made.digest)]
    assert pa.concat_tables(alike).to_pydict() == {"y": ["1", "x"], "extra": [None, 7], "고객": ["a", "b"]}


ORDERS = CONTRACT.model_copy(
    update={
        "columns": (Column(name="order", kind="integer", role="id"), Column(name="y", kind="number", role="target"))
    }
)
LARGE = 2**60


class Orders:
    """A stream of orders, with the given types in each read."""

    uri = "test://orders"

    def __init__(self) -> None:
        self.position: Any = None
        self.table = pa.table({})

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema

    def fingerprint(self) -> str | None:
        return None

    def resume(self, position: Any, full: bool = False) -> None:
        pass

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield from self.table.to_batches()

    def commit(self, position: Any) -> None:
        pass


def read_orders(root: Path, *loads: dict[str, list[Any]]) -> list[tuple[Any, Any]]:
    chosen, source = make_settings(root), Orders()
    for load in loads:
        source.table = pa.table(load)
        made = grow(chosen, ORDERS, source)
    blocks = Snapshots(open_store(chosen)).batches(made.digest, ["order", "y"])
    return [(row["order"], row["y"]) for block in blocks for row in block.to_pylist()]


def test_rows_without_an_id_are_all_kept_and_never_twice(tmp_path):
    load = {"order": ["1", None, "", "oops", "oops", None], "y": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    rows = list(zip(*load.values(), strict=True))
    assert read_orders(tmp_path / "once", load) == rows
    assert read_orders(tmp_path / "again", load, load, {"order": [None], "y": [6.0]}) == rows
    later = read_orders(tmp_path / "later", load, {"order": [None, "1"], "y": [7.0, 8.0]})
    assert later == [*rows[1:], (None, 7.0), ("1", 8.0)]


@pytest.mark.parametrize("beside", [None, "oops"])
def test_ids_that_a_float_would_round_are_distinguished_beside_any_values(beside, tmp_path):
    ids: list[Any] = [LARGE, LARGE + 1, LARGE + 2, beside]
    if beside:
        ids = [str(value) for value in ids]
    assert [order for order, _ in read_orders(tmp_path, {"order": ids, "y": [0.0, 1.0, 2.0, 3.0]})] == ids


@pytest.mark.parametrize("odd", [5.0, "oops", None])
def test_an_odd_record_changes_no_row_that_is_there(odd, tmp_path):
    """A later read with another type leaves the older ids exactly unchanged."""
    first = {"order": [LARGE, LARGE + 1, LARGE + 2], "y": [0.0, 1.0, 2.0]}
    found = read_orders(tmp_path, first, {"order": [odd], "y": [3.0]}, {"order": [LARGE + 1], "y": [4.0]})
    assert found == [(LARGE, 0.0), (LARGE + 2, 2.0), (odd, 3.0), (LARGE + 1, 4.0)]
    snapshots = Snapshots(open_store(make_settings(tmp_path)))
    alike = unify(snapshots.schema(path.stem) for path in snapshots.folder.glob("*.json"))
    assert alike.field("order").type == (pa.int64() if odd is None else pa.string())  # a float64 would round


def test_a_part_that_was_changed_is_refused(chosen, monkeypatch):
    made = grow(chosen, CONTRACT, Table([(f"r{i}", i, 0.0) for i in range(9)]))
    path = Snapshots(open_store(chosen)).parts.path(made.parts[0].digest)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr("ondol.snapshots.snapshots._whole", set())
    with pytest.raises(UserError, match="was changed or damaged"):
        rows_of(chosen, made)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        rows_of(chosen, made)
