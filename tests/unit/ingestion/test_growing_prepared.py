"""With `prepare` and a watermark a snapshot has each row once, with the values that `prepare` gives it now."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from growing_support import DAYS as CONTRACT
from growing_support import Row, project_of

from ondol.config import Settings
from ondol.ingestion.ingest import read_source
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.storage.store import open_store

Prepare = Callable[[pd.DataFrame], pd.DataFrame]


def double(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(made=frame["y"] * 2)


def triple(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(made=frame["y"] * 3)


class Shop:
    """A project with a table that grows by `day`."""

    def __init__(self, root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        source = {"file": "t.csv", "folder": "in", "database": f"sqlite:///{root / 'shop.db'}#t"}[kind]
        self.settings = Settings(root=root, data={"source": source, "watermark": "day"})  # type: ignore[arg-type]
        self.root, self.kind = root, kind
        self._monkeypatch = monkeypatch

    def write(self, *files: list[Row]) -> None:
        """Write the rows; for a folder, as its files."""
        rows = [row for file in files for row in file]
        if self.kind == "database":
            with closing(sqlite3.connect(self.root / "shop.db")) as database, database:
                database.execute("drop table if exists t")
                database.execute("create table t (고객 text, day integer, y real)")
                database.executemany("insert into t values (?, ?, ?)", rows)
            return
        (self.root / "in").mkdir(exist_ok=True)
        for number, part in enumerate(files if self.kind == "folder" else [rows]):
            path = self.root / ("t.csv" if self.kind == "file" else f"in/{number}.csv")
            text = "".join(f"{a},{b},{c}\n" for a, b, c in [("고객", "day", "y"), *part])
            path.write_text(text, encoding="utf-8")

    def ingest(self, prepare: Prepare | None = double, full: bool = False) -> Snapshot:
        self._monkeypatch.setattr("ondol.ingestion.ingest.read_extension", lambda *_: prepare)
        return read_source(project_of(self.settings, CONTRACT), full)

    def made(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return the results of `prepare` by id; each id occurs once."""
        tables = Snapshots(open_store(self.settings)).batches(snapshot.digest, ["고객", "made"])
        rows = [row for table in tables for row in table.to_pylist()]
        found = {row["고객"]: row["made"] for row in rows}
        assert len(found) == len(rows)
        return found


@pytest.fixture(params=["file", "folder", "database"])
def shop(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    made = Shop(tmp_path, request.param, monkeypatch)
    made.write([("a", 1, 1.0), ("b", 2, 2.0)])
    return made


def test_new_and_changed_rows_are_prepared(shop):
    first = shop.ingest()
    assert shop.ingest() == first
    shop.write([("b", 2, 2.0)], [("c", 3, 3.0), ("a", 4, 4.0)])
    second = shop.ingest()
    assert (second.parent, second.watermark) == (first.digest, 4)
    assert shop.made(second) == {"a": 8.0, "b": 4.0, "c": 6.0}
    assert shop.made(first) == {"a": 2.0, "b": 4.0}


def test_a_row_that_comes_late_is_kept(shop):
    shop.ingest()
    shop.write([("a", 1, 1.0), ("b", 2, 2.0)], [("late", 0, 5.0)])
    assert shop.made(shop.ingest()) == {"a": 2.0, "b": 4.0, "late": 10.0}


def test_an_older_state_changes_nothing(shop):
    first = shop.ingest()
    shop.write([("a", 1, 1.0), ("b", 2, 2.0)], [("a", 0, 5.0)])
    assert shop.ingest() == first


@pytest.mark.parametrize("lateness", [0, 1])
def test_rows_of_before_have_the_values_of_now_where_prepare_is_edited(shop, lateness):
    data = shop.settings.data.model_copy(update={"lateness": float(lateness)})
    shop.settings = shop.settings.model_copy(update={"data": data})
    shop.ingest()
    shop.write([("a", 1, 1.0), ("b", 2, 2.0)], [("c", 3, 3.0)])
    assert shop.made(shop.ingest(triple)) == {"a": 3.0, "b": 6.0, "c": 9.0}


@pytest.mark.parametrize(("first", "then"), [(None, double), (double, None)], ids=["added", "removed"])
def test_rows_of_before_have_the_values_of_now_where_prepare_comes_or_goes(shop, first, then):
    shop.ingest(first)
    shop.write([("a", 1, 1.0), ("b", 2, 2.0)], [("c", 3, 3.0)])
    expected = {"a": 2.0, "b": 4.0, "c": 6.0} if then else {"a": None, "b": None, "c": None}
    assert shop.made(shop.ingest(then)) == expected


def test_rows_that_are_no_longer_given_stay_until_all_is_read_again(shop):
    def drop(frame: pd.DataFrame) -> pd.DataFrame:
        return double(frame)[frame["고객"] != "a"]

    shop.ingest()
    assert shop.made(shop.ingest(drop)) == {"a": 2.0, "b": 4.0}
    assert shop.made(shop.ingest(drop, full=True)) == {"b": 4.0}
