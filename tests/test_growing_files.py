"""Of a folder or a bucket that grows only the files that are new or changed are read, and nothing is lost by it."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flows.contract import Column, Contract
from flows.errors import UserError
from flows.growing import grow
from flows.settings import Settings
from flows.sources import Reading, open_source
from flows.sources.delimited import DelimitedSource
from flows.store.snapshots import Snapshot, Snapshots

CONTRACT = Contract(
    problem="regression",
    target="y",
    columns=(
        Column(name="고객", kind="text", role="id"),
        Column(name="day", kind="integer"),
        Column(name="y", kind="number", role="target"),
    ),
)
Row = tuple[str, int, float]


class Lake:
    """Files in a folder or a bucket, and a project that grows from them; it knows which of them were read."""

    def __init__(self, root: Path, uri: str, put: Callable[[str, bytes | None], Any]) -> None:
        self.settings = Settings(root=root, data={"source": uri, "watermark": "day"})  # type: ignore[arg-type]
        self.uri = uri
        self._put = put
        self.read: list[str] = []

    def put(self, name: str, rows: list[Row]) -> None:
        """Write a file, with a header also where it has no rows."""
        self._put(name, "".join(f"{a},{b},{c}\n" for a, b, c in [("고객", "day", "y"), *rows]).encode())

    def remove(self, name: str) -> None:
        self._put(name, None)

    def grow(self, contract: Contract = CONTRACT, full: bool = False) -> Snapshot:
        self.read.clear()
        source = open_source(self.uri, Reading(contract.kinds, self.settings.root))
        return grow(self.settings, contract, source, full)

    def rows(self, snapshot: Snapshot) -> list[Row]:
        """Return all rows, sorted."""
        found = Snapshots(self.settings.store_path).batches(snapshot.digest, ["고객", "day", "y"])
        table = pa.concat_tables(list(found))
        return sorted(tuple(row.values()) for row in table.to_pylist())  # type: ignore[misc]


@pytest.fixture(params=["folder", "bucket"])
def lake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    if request.param == "bucket":
        put = request.getfixturevalue("bucket")
        delete = put.func.__self__.delete_object

        def change(name: str, content: bytes | None) -> Any:
            return delete(Bucket="lake", Key=f"in/{name}") if content is None else put(Key=f"in/{name}", Body=content)

        made = Lake(tmp_path, "s3://lake/in", change)
    else:
        folder = tmp_path / "in"
        folder.mkdir()

        def write(name: str, content: bytes | None) -> Any:
            return (folder / name).unlink() if content is None else (folder / name).write_bytes(content)

        made = Lake(tmp_path, "in", write)
    read = DelimitedSource.read

    def count(self: DelimitedSource, types: Mapping[str, pa.DataType], **more: Any) -> Any:
        made.read.append(self.uri.rstrip(")").rpartition("/" if self.uri.startswith("in/") else "(")[2])
        return read(self, dict(types), **more)

    monkeypatch.setattr(DelimitedSource, "read", count)
    return made


def test_only_files_that_are_new_or_changed_are_read(lake: Lake) -> None:
    lake.put("1.csv", [("a", 1, 1.0), ("b", 2, 1.0)])
    lake.put("2.csv", [("c", 3, 1.0)])
    first = lake.grow()
    assert lake.read == ["1.csv", "2.csv"]
    assert lake.grow() == first and lake.read == []
    lake.put("3.csv", [("a", 4, 2.0)])
    second = lake.grow()
    assert (lake.read, second.parent) == (["3.csv"], first.digest)
    lake.put("3.csv", [("a", 4, 2.0), ("d", 5, 1.0)])
    assert lake.rows(lake.grow()) == [("a", 4, 2.0), ("b", 2, 1.0), ("c", 3, 1.0), ("d", 5, 1.0)]
    assert lake.read == ["3.csv"]


def test_a_file_that_comes_late_is_read_whole(lake: Lake) -> None:
    lake.put("5.csv", [("a", 5, 1.0), ("b", 5, 1.0)])
    lake.grow()
    lake.put("2.csv", [("a", 2, 9.0), ("c", 2, 1.0)])
    made = lake.grow()
    assert lake.rows(made) == [("a", 5, 1.0), ("b", 5, 1.0), ("c", 2, 1.0)]
    assert (lake.read, made.watermark) == (["2.csv"], 5)


def test_a_file_without_rows_adds_none_and_is_not_read_again(lake: Lake) -> None:
    lake.put("1.csv", [("a", 1, 1.0)])
    first = lake.grow()
    lake.put("2.csv", [])
    assert lake.grow() == first and "1.csv" not in lake.read
    lake.put("3.csv", [("b", 3, 1.0)])
    assert lake.rows(lake.grow()) == [("a", 1, 1.0), ("b", 3, 1.0)] and lake.read == ["3.csv"]


def test_a_folder_that_keeps_its_newest_files_is_read_on(lake: Lake) -> None:
    for day in (1, 2, 3):
        lake.put(f"{day}.csv", [(f"c{day}", day, 1.0)])
    lake.grow()
    lake.remove("1.csv")
    lake.put("4.csv", [("c4", 4, 1.0)])
    assert [day for _, day, _ in lake.rows(lake.grow())] == [1, 2, 3, 4] and lake.read == ["4.csv"]


def test_a_newest_row_that_is_gone_is_refused_and_nothing_changes(lake: Lake) -> None:
    for day in (1, 2, 3):
        lake.put(f"{day}.csv", [(f"c{day}", day, 1.0)])
    first = lake.grow()
    lake.remove("3.csv")
    for late in (False, True):
        if late:
            lake.put("0.csv", [("c0", 0, 1.0)])
        with pytest.raises(UserError, match=r'"day" was 3 and is 2 now.*--full'):
            lake.grow()
    assert lake.rows(lake.grow(full=True)) == [("c0", 0, 1.0), ("c1", 1, 1.0), ("c2", 2, 1.0)]
    lake.remove("0.csv")
    lake.put("3.csv", [("c3", 3, 1.0)])
    assert lake.rows(lake.grow())[-1] == ("c3", 3, 1.0) and lake.rows(first)[-1] == ("c3", 3, 1.0)


def test_all_is_read_where_the_contract_reads_it_otherwise(lake: Lake) -> None:
    lake.put("1.csv", [("a", 1, 1.0)])
    lake.put("2.csv", [("b", 2, 1.0)])
    lake.grow()
    columns = tuple(c.model_copy(update={"kind": "integer"}) if c.name == "y" else c for c in CONTRACT.columns)
    lake.grow(CONTRACT.model_copy(update={"columns": columns}))
    assert set(lake.read) == {"1.csv", "2.csv"}


def test_a_file_of_other_columns_and_types_changes_none_that_was_read(lake: Lake) -> None:
    lake.put("1.csv", [("a", 1, 1.5)])
    lake.grow()
    lake._put("2.csv", "extra,y,고객,day\n7,oops,b,2\n".encode())
    made = lake.grow()
    alike = [
        block.read_alike(["고객", "y", "extra"]) for block in Snapshots(lake.settings.store_path).blocks(made.digest)
    ]
    assert pa.concat_tables(alike).to_pydict() == {"고객": ["a", "b"], "y": ["1.5", "oops"], "extra": [None, "7"]}
    lake._put("3.csv", "고객,day\nc,3\n".encode())
    with pytest.raises(UserError, match='"y"'):
        lake.grow()


@pytest.mark.parametrize("lake", ["folder"], indirect=True)
def test_whatever_comes_and_goes_the_newest_state_of_each_id_is_there_once(lake: Lake) -> None:
    chance = random.Random(3)
    held: dict[str, list[Row]] = {}
    newest: dict[str, Row] = {}
    for number in range(25):
        name = f"{chance.randrange(10)}.csv"
        day = number + 1
        rows = [
            (f"c{chance.randrange(20)}", max(1, day - chance.choice([0, 0, 3, 9])), float(number)) for _ in range(4)
        ]
        rows.append(("mark", day, float(number)))
        held[name] = [*held.get(name, []), *rows] if chance.random() < 0.7 else rows
        lake.put(name, held[name])
        if number % 4 == 3 and len(held) > 3:
            gone = next(other for other in held if other != name)
            lake.remove(gone)
            held.pop(gone)
        made = lake.grow()
        for row in rows:
            if row[0] not in newest or row[1] > newest[row[0]][1]:
                newest[row[0]] = row
        found = lake.rows(made)
        assert [(row[0], row[1]) for row in found] == sorted((row[0], row[1]) for row in newest.values())
