"""Of a folder or bucket that grows the files are read from the first on that is new or changed, and nothing is lost."""

import gzip
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from growing_support import DAYS as CONTRACT
from growing_support import Row, grow

from ondol.config import Settings
from ondol.contract import Column, Contract
from ondol.errors import UserError
from ondol.ingestion.csv_files import DelimitedSource
from ondol.ingestion.sources import Reading, open_source
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.storage.store import open_store


class Lake:
    """Files in a folder or a bucket, and a project that grows from them; it knows which of them were read."""

    def __init__(self, root: Path, uri: str, put: Callable[[str, bytes | None], Any]) -> None:
        self.settings = Settings(root=root, data={"source": uri, "watermark": "day"})  # type: ignore[arg-type]
        self.uri = uri
        self._put = put
        self.read: list[str] = []

    def put(self, name: str, rows: list[Row], pack: Callable[[bytes], bytes] = bytes) -> None:
        """Write a file, with a header also where it has no rows."""
        self._put(name, pack("".join(f"{a},{b},{c}\n" for a, b, c in [("고객", "day", "y"), *rows]).encode()))

    def remove(self, name: str) -> None:
        self._put(name, None)

    def grow(self, contract: Contract = CONTRACT, full: bool = False) -> Snapshot:
        self.read.clear()
        needed = [column.name for column in contract.used]
        source = open_source(self.uri, Reading(contract.kinds, self.settings.root, required=needed))
        return grow(self.settings, contract, source, full)

    def rows(self, snapshot: Snapshot) -> list[Row]:
        """Return all rows, sorted."""
        found = Snapshots(open_store(self.settings)).batches(snapshot.digest, ["고객", "day", "y"])
        return sorted((tuple(row.values()) for batch in found for row in batch.to_pylist()), key=str)  # type: ignore[misc]


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
    assert (lake.read, made.watermark) == (["2.csv", "5.csv"], 5)


@pytest.mark.parametrize("lake", ["bucket"], indirect=True)
def test_a_late_row_is_kept_also_where_the_place_tells_no_state_of_its_files(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ondol.storage.remote_files.CHECKSUMS", ())
    lake.put("1.csv", [("a", 5, 1.0)])
    lake.grow()
    lake.put("1.csv", [("a", 5, 1.0), ("late", 2, 1.0)])
    assert [row[0] for row in lake.rows(lake.grow())] == ["a", "late"]
    assert lake.grow() and lake.read == ["s3://lake/in"]


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
        block.read_alike(["고객", "y", "extra"]) for block in Snapshots(open_store(lake.settings)).blocks(made.digest)
    ]
    assert pa.concat_tables(alike).to_pydict() == {"고객": ["a", "b"], "y": ["1.5", "oops"], "extra": [None, "7"]}
    lake._put("3.csv", "고객,day\nc,3\n".encode())
    with pytest.raises(UserError, match='"y"'):
        lake.grow()


def test_an_old_file_that_is_corrected_is_read_with_those_behind_it(lake: Lake) -> None:
    for day in (1, 2, 3):
        lake.put(f"{day}.csv", [("a", 3, float(day)), (f"c{day}", day, 1.0)])
    first = lake.grow()
    lake.put("2.csv", [("a", 3, 2.0), ("c2", 2, 5.0)])
    assert lake.rows(lake.grow())[0] == lake.rows(first)[0] == ("a", 3, 3.0)  # of rows equally new the last counts
    assert lake.read == ["2.csv", "3.csv"]
    lake._put("1.csv", gzip.compress("고객,day,y\na,3,1.0\nc1,1,1.0\n".encode()))
    made = lake.grow()
    assert lake.rows(made) == [("a", 3, 3.0), ("c1", 1, 1.0), ("c2", 2, 5.0), ("c3", 3, 1.0)]
    assert lake.rows(lake.grow(full=True)) == lake.rows(made)


def test_whole_numbers_are_exact_though_files_are_read_twice(lake: Lake) -> None:
    big = 2**53
    columns = tuple(c.model_copy(update={"kind": "integer"}) if c.name == "고객" else c for c in CONTRACT.columns)
    contract = CONTRACT.model_copy(update={"columns": columns})
    lake.put("1.csv", [(str(big + 1), 5, 1.0), (str(big + 3), 5, 1.0)])
    lake.put("2.csv", [("1", 1, 1.0), ("2", 1, 1.0)])
    lake.grow(contract)
    lake.put("2.csv", [("1", 1, 1.0), ("2", 1, 1.0), ("4.0", 2, 1.0)])
    made = lake.grow(contract)
    assert lake.read[0] == "2.csv" and lake.read[-2:] == ["1.csv", "2.csv"]  # it does not reach as far as before
    found = [str(key).removesuffix(".0") for key, _, _ in lake.rows(made)]
    assert sorted(found) == ["1", "2", "4", str(big + 1), str(big + 3)]


def test_rows_that_are_distinguished_otherwise_are_refused_and_read_again_in_full(lake: Lake) -> None:
    lake.put("1.csv", [("007", 1, 1.0), ("008", 2, 1.0)])
    lake.grow()
    columns = tuple(c.model_copy(update={"kind": "integer"}) if c.name == "고객" else c for c in CONTRACT.columns)
    contract = CONTRACT.model_copy(update={"columns": columns})
    with pytest.raises(UserError, match=r'identified by "고객" \(text\), .* "고객" \(integer\): .*--full'):
        lake.grow(contract)
    assert [row[0] for row in lake.rows(lake.grow(contract, full=True))] == [7, 8]
    assert lake.grow(contract) and lake.read == []


def test_a_column_that_is_ignored_may_be_missing_in_a_file_however_it_is_read(lake: Lake) -> None:
    note = Column(name="note", kind="text", role="ignored")
    contract = CONTRACT.model_copy(update={"columns": (*CONTRACT.columns, note)})
    lake._put("1.csv", "고객,day,y,note\na,1,1.0,x\n".encode())
    lake.grow(contract)
    lake.put("2.csv", [("b", 2, 1.0)])
    grown = lake.grow(contract)
    assert lake.read == ["2.csv"] and lake.rows(grown) == lake.rows(lake.grow(contract, full=True))


def test_a_row_without_an_id_is_there_once_whichever_files_are_read_with_its_own(lake: Lake) -> None:
    lake._put("1.jsonl", '{"고객": null, "day": 1, "y": 1.0, "ms": 1700000000123}\n'.encode())
    lake._put("2.jsonl", '{"고객": "b", "day": 2, "y": 1.0, "ms": 1.5}\n'.encode())
    lake.grow()
    lake._put("2.jsonl", '{"고객": "c", "day": 2, "y": 1.0, "ms": 7}\n'.encode())
    lake._put("0.jsonl", '{"고객": "d", "day": 2, "y": 1.0, "ms": 8}\n'.encode())
    found = Snapshots(open_store(lake.settings)).batches(lake.grow().digest, ["고객"])
    assert sorted(str(key) for batch in found for key in batch["고객"].to_pylist()) == ["None", "b", "c", "d"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("lake", ["folder"], indirect=True)
def test_incremental_reads_equal_a_full_read_of_all(lake: Lake, seed: int, tmp_path: Path) -> None:
    """Files come, grow and are packed in any order, with rows that are late or equally new."""
    chance = random.Random(seed)
    held: dict[str, list[Row]] = {}
    for number in range(8):
        name = f"{chance.randrange(6)}.csv"
        held.setdefault(name, []).extend(
            (f"c{chance.randrange(8)}", max(0, number - chance.randrange(3)), float(number)) for _ in range(4)
        )
        lake.put(name, held[name])
        if chance.random() < 0.3:
            packed = chance.choice(list(held))
            lake.put(packed, held[packed], pack=gzip.compress)
        whole = Lake(tmp_path / f"whole-{number}", str(lake.settings.root / "in"), lake._put)
        assert lake.rows(lake.grow()) == whole.rows(whole.grow())
