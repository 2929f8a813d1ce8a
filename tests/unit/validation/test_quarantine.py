"""Quarantined rows come back once they, or the contract, were corrected, and no later ingest loses them."""

import csv
import importlib
import json
import math
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ondol.cli import quarantine as command
from ondol.cli.app import quarantine_app
from ondol.config import Settings
from ondol.deployment.predict import open_output
from ondol.errors import UserError
from ondol.ingestion.ingest import read_source
from ondol.ingestion.sources import Reading, open_source, read_through
from ondol.project import Project as OpenProject
from ondol.retention import find_garbage
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.storage.store import open_store
from ondol.validation.corrections import GONE, accept_corrected_rows, correct_snapshot, read_corrections, revalidate
from ondol.validation.results import Latest, Validation, Validations
from ondol.validation.validate import find_or_validate, validate_snapshot, validation_id

HEADER = ["id", "when", "age", "income", "name", "y"]
START = datetime(2026, 1, 1)


class Schema(pa.DataFrameModel):
    """Customers of a test."""

    id: int = pa.Field(unique=True, metadata={"role": "id"})
    when: pd.Timestamp = pa.Field(metadata={"role": "time"})
    age: pd.Int64Dtype = pa.Field(nullable=True, le=120)
    income: float = pa.Field(ge=0, metadata={"role": "sensitive"})
    name: str = pa.Field(nullable=True)
    y: str = pa.Field(isin=["no", "yes"], metadata={"role": "target"})

    class Config:
        """As the template's."""

        coerce = True


def row(number: int, age: Any = 30, income: float = 10.5, name: str = "김", y: str = "yes") -> list[Any]:
    return [number, (START + timedelta(days=number)).isoformat(), age, income, name, y]


GOOD = [row(i) for i in range(5)]
BAD = [row(5, age=400), row(6, income=-7771.0), row(3, name="again"), row(8, y="maybe", age=500)]


class Project:
    """A project whose source is a file that the test writes."""

    def __init__(self, root: Path, **data: Any) -> None:
        self.root = root
        (root / "model").mkdir()
        (root / "model" / "schema.py").write_text("one", encoding="utf-8")
        self.settings = Settings(root=root, data={"source": "data.csv", "target": "y", **data})  # type: ignore[arg-type]
        self.snapshots = Snapshots(open_store(self.settings))

    @property
    def project(self) -> OpenProject:
        """With `model/schema.py` as it is now."""
        return OpenProject(self.settings)

    def ingest(self, rows: list[list[Any]] | None = None, full: bool = False) -> Snapshot:
        if rows is not None:
            write_csv(self.root / "data.csv", HEADER, rows)
        project = self.project
        made = correct_snapshot(self.snapshots, read_source(project, full), project.contract.by_name)
        project.latest.set("ingest", made.digest)
        return made

    def validate(self, snapshot: Snapshot) -> Validation:
        name = validation_id(self.settings, snapshot.digest)
        store = Validations(open_store(self.settings))
        return store.find(name) or validate_snapshot(self.project, snapshot.digest, name)

    def rows(self, snapshot: Snapshot) -> list[list[Any]]:
        tables = list(self.snapshots.batches(snapshot.digest, HEADER))
        return [list(one.values()) for one in pyarrow.concat_tables(tables).to_pylist()]

    def correct(self, validation: Validation, changes: dict[int, dict[str, Any]], suffix: str = "csv") -> str:
        """Write the quarantine to a file, change rows by `_row`, and leave the others out."""
        path = self.root / f"bad.{suffix}"
        command.write_quarantine(self.project, validation, path)
        reader = {"csv": pd.read_csv, "parquet": pd.read_parquet, "jsonl": lambda p: pd.read_json(p, lines=True)}
        frame = reader[suffix](path).astype(object)
        frame = frame[frame["_row"].isin(changes)]
        for place in frame.index:
            for name, value in changes[frame.loc[place, "_row"]].items():
                frame.loc[place, name] = value
        frame = frame.infer_objects()
        frame.to_parquet(path) if suffix == "parquet" else (
            frame.to_csv(path, index=False) if suffix == "csv" else frame.to_json(path, orient="records", lines=True)
        )
        return str(path)


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def contract(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(sys.modules.get("model.schema") or importlib.import_module("model.schema"), "Schema", Schema)
    monkeypatch.setattr("ondol.snapshots.snapshots.ROW_GROUP", 4)
    return monkeypatch


@pytest.fixture
def made(tmp_path: Path, contract: pytest.MonkeyPatch) -> Project:
    return Project(tmp_path)


def ids(project: Project, snapshot: Snapshot) -> list[int]:
    return [int(one[0]) for one in project.rows(snapshot)]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_corrected_rows_take_the_place_of_the_raw_ones_in_a_child_of_the_snapshot(made, suffix):
    first = made.ingest([*GOOD, *BAD])
    bad = made.validate(first)
    assert bad.bad == 4
    taken = accept_corrected_rows(made.project, bad, made.correct(bad, {5: {"age": 40}, 7: {"id": 7}}, suffix))
    assert (taken.rows, taken.refused) == (2, {})
    child = taken.snapshot
    assert child.parent == first.digest and child.rows == first.rows == 9
    assert ids(made, child) == [0, 1, 2, 3, 4, 6, 8, 5, 7]
    assert made.rows(child)[7][2:] == [40, 10.5, "김", "yes"]
    assert Latest(open_store(made.settings)).get("ingest") == child.digest
    again = made.validate(child)
    assert (again.bad, again.rows) == (2, 9)


def test_the_next_ingest_of_a_file_that_is_read_whole_keeps_the_corrected_rows(made):
    bad = made.validate(made.ingest([*GOOD, *BAD]))
    child = accept_corrected_rows(made.project, bad, made.correct(bad, {5: {"age": 40}})).snapshot
    assert made.ingest().digest == made.ingest(full=True).digest == child.digest
    more = made.ingest([row(20), *GOOD, *BAD, row(21)])
    assert ids(made, more) == [20, 0, 1, 2, 3, 4, 6, 3, 8, 21, 5]
    assert made.rows(more)[-1][2] == 40


def test_collecting_garbage_keeps_what_the_next_ingest_corrects(made, monkeypatch):
    monkeypatch.setattr("ondol.retention.YOUNG_SECONDS", 0)
    bad = made.validate(made.ingest([*GOOD, *BAD]))
    accept_corrected_rows(made.project, bad, made.correct(bad, {5: {"age": 40}}))
    for path in made.snapshots.folder.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(record | {"created": "2020-01-01T00:00:00+00:00"}), encoding="utf-8")
    latest = made.ingest([*GOOD, *BAD, row(20)])
    garbage = find_garbage(open_store(made.settings), {latest.digest}, set())
    old = {one.digest for one in garbage.snapshots if one.created.startswith("2020")}
    assert len(old) == 2 and latest.digest not in {one.digest for one in garbage.snapshots}
    garbage.remove()
    more = made.ingest([*GOOD, *BAD])
    assert ids(made, more) == [0, 1, 2, 3, 4, 6, 3, 8, 5] and made.rows(more)[-1][2] == 40


def test_a_row_that_the_source_has_corrected_itself_is_the_source_s(made):
    bad = made.validate(made.ingest([*GOOD, *BAD]))
    accept_corrected_rows(made.project, bad, made.correct(bad, {5: {"age": 40}, 6: {"income": 1.0}}))
    later = made.ingest([*GOOD, row(5, age=41), *BAD[1:]])
    assert sorted(ids(made, later)) == [0, 1, 2, 3, 3, 4, 5, 6, 8]
    assert {one[0]: one[2] for one in made.rows(later)}[5] == 41
    assert {one[0]: one[3] for one in made.rows(later)}[6] == 1.0


@pytest.mark.parametrize("full", [False, True])
def test_a_growing_source_continues_with_the_corrected_rows(tmp_path, contract, full):
    made = Project(tmp_path, watermark="when")
    rows = [*GOOD, row(5, age=400)]  # the bad row is the newest, which the next ingest reads again
    bad = made.validate(made.ingest(rows))
    assert bad.bad == 1
    accept_corrected_rows(made.project, bad, made.correct(bad, {5: {"age": 40}}))
    later = made.ingest([*rows, row(6), row(7)], full)
    assert sorted(ids(made, later)) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert {one[0]: one[2] for one in made.rows(later)}[5] == 40
    assert made.validate(later).bad == 0
    newest = made.ingest([*rows, row(6), row(7), row(9)])
    assert sorted(ids(made, newest)) == [0, 1, 2, 3, 4, 5, 6, 7, 9]


def test_rows_corrected_one_after_the_other_add_up(made):
    bad = made.validate(made.ingest([*GOOD, *BAD]))
    first = accept_corrected_rows(made.project, bad, made.correct(bad, {5: {"age": 40}})).snapshot
    second = accept_corrected_rows(made.project, bad, made.correct(bad, {6: {"income": 1.0}})).snapshot
    assert second.parent == first.digest
    assert ids(made, second) == [0, 1, 2, 3, 4, 3, 8, 5, 6]
    assert made.ingest().digest == second.digest
    assert len(read_corrections(made.snapshots, second.source)) == 2
    now = made.validate(second)  # and the quarantine of the child is corrected just as well
    third = accept_corrected_rows(made.project, now, made.correct(now, {5: {"id": 30}, 6: {"age": 50, "y": "no"}}))
    assert (third.rows, made.validate(third.snapshot).bad) == (2, 0)
    assert made.ingest().digest == third.snapshot.digest


def test_of_equal_rows_only_as_many_are_replaced_as_were_corrected(made):
    bad = made.validate(made.ingest([*GOOD, row(3), row(3)]))
    assert bad.bad == 2
    child = accept_corrected_rows(made.project, bad, made.correct(bad, {6: {"id": 33}})).snapshot
    assert ids(made, child) == [0, 1, 2, 3, 4, 3, 33]


def test_a_corrected_row_that_is_still_bad_or_repeats_another_is_refused_with_the_reason(made):
    first = made.ingest([*GOOD, *BAD])
    bad = made.validate(first)
    changes = {5: {"age": 401}, 6: {"id": 2, "income": 1.0}, 7: {"id": 70}, 8: {"id": 70, "y": "no", "age": 1}}
    taken = accept_corrected_rows(made.project, bad, made.correct(bad, changes))
    assert taken.rows == 1
    assert taken.refused == {
        5: ["age: less_than_or_equal_to(120)"],
        6: ["id: another row has it already"],
        8: ["id: another row has it already"],
    }
    assert ids(made, taken.snapshot) == [0, 1, 2, 3, 4, 5, 6, 8, 70]


def test_the_id_of_a_row_that_is_refused_is_not_free(made):
    bad = made.validate(made.ingest([*GOOD, *BAD]))
    taken = accept_corrected_rows(
        made.project, bad, made.correct(bad, {5: {"id": 55, "age": 401}, 6: {"id": 5, "income": 1.0}})
    )
    assert taken.snapshot is None and set(taken.refused) == {5, 6}
    assert made.ingest().digest == bad.snapshot


def test_the_same_file_twice_adds_nothing(made):
    bad = made.validate(made.ingest([*GOOD, *BAD]))
    corrected = made.correct(bad, {5: {"age": 40}})
    child = accept_corrected_rows(made.project, bad, corrected).snapshot
    again = accept_corrected_rows(made.project, bad, corrected)
    assert again.snapshot is None and GONE in again.refused[5]
    assert made.ingest().digest == child.digest


def test_who_is_killed_before_the_latest_snapshot_is_named_loses_nothing(made, monkeypatch):
    bad = made.validate(made.ingest([*GOOD, *BAD]))
    corrected = made.correct(bad, {5: {"age": 40}})
    with monkeypatch.context() as patch:
        patch.setattr(Latest, "set", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            accept_corrected_rows(made.project, bad, corrected)
    child = accept_corrected_rows(made.project, bad, corrected).snapshot
    assert ids(made, made.ingest()) == ids(made, child) == [0, 1, 2, 3, 4, 6, 3, 8, 5]


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        (HEADER, [row(5)], 'no column "_row"'),
        ([*HEADER, "_row"], [[*row(5), 5], [*row(6), 5]], "different whole number"),
        ([*HEADER, "_row"], [[*row(5), "x"]], "different whole number"),
        ([*HEADER, "_row"], [[*row(5), ""], [*row(6), 5]], "different whole number"),
        ([*HEADER, "_row"], [[*row(5), 0]], "not in the quarantine"),
    ],
)
def test_a_file_that_does_not_say_which_rows_it_corrects_is_refused(made, header, rows, said):
    bad = made.validate(made.ingest([*GOOD, *BAD]))
    write_csv(made.root / "corrected.csv", header, rows)
    with pytest.raises(UserError, match=said):
        accept_corrected_rows(made.project, bad, str(made.root / "corrected.csv"))


@pytest.mark.parametrize("value", [1704067200000, 1704067200000.5, True])
def test_a_number_in_the_place_of_a_date_is_not_a_date(made, value):
    bad = made.validate(made.ingest([*GOOD, *BAD]))
    taken = accept_corrected_rows(made.project, bad, made.correct(bad, {5: {"age": 40, "when": value}}, "jsonl"))
    assert (taken.snapshot, taken.refused) == (None, {5: ["when: not a date"]})


LARGE = 9007199254740993  # 2^53 + 1, which no float64 is


def test_another_spelling_of_a_cell_leaves_the_columns_types(made):
    first = made.ingest([*GOOD, [LARGE, *row(9, age=400)[1:]], *BAD])
    bad = made.validate(first)
    changes = {
        5: {"age": " 40"},
        6: {"id": f" {LARGE + 2} ", "age": "41.0", "when": "2024/01/05 10:00"},
        7: {"income": " 1e3", "when": "2024-01-05T10:00:00+09:00"},
        8: {"id": "+12", "age": ""},
    }
    taken = accept_corrected_rows(made.project, bad, made.correct(bad, changes))
    assert taken.refused == {}
    assert made.snapshots.schema(taken.snapshot.digest) == made.snapshots.schema(first.digest)
    rows = made.rows(taken.snapshot)
    assert [one[0] for one in rows] == [0, 1, 2, 3, 4, 8, LARGE, LARGE + 2, 6, 12]
    assert [one[2] for one in rows[-4:]] == [40, 41, 30, None]
    assert [str(one[1]) for one in rows[-3:-1]] == ["2024-01-05 10:00:00", "2024-01-05 01:00:00"]
    assert rows[-2][3] == 1000


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_what_is_text_in_the_snapshot_stays_as_it_is_written(made, suffix):
    first = made.ingest([*GOOD, row(5, age="not known"), row(6, age="007", income=-1), row(7, age=" 12", income=-1)])
    assert made.snapshots.schema(first.digest).field("age").type == pyarrow.string()
    bad = made.validate(first)
    path = made.root / f"bad.{suffix}"
    command.write_quarantine(made.project, bad, path)
    table = read_through(open_source(str(path), Reading({"age": "text"})), pyarrow.Table.from_batches)
    corrected = table.set_column(3, "income", pyarrow.array([1.0, 2.0, 3.0])).set_column(
        2, "age", pyarrow.array(["05", *table.column("age").to_pylist()[1:]])
    )
    output = open_output(path, corrected.schema)
    output.write_table(corrected)
    output.close()
    taken = accept_corrected_rows(made.project, bad, str(path))
    assert [one[2] for one in made.rows(taken.snapshot)[-3:]] == ["05", "007", " 12"]


def test_a_value_that_does_not_have_the_type_of_its_column_is_refused_where_no_contract_checks_it(made):
    kinds = {"id": [1, 2], "when": [START, START], "age": [400, 1], "income": [1.0, 1.0], "name": ["a", "b"]}
    table = pyarrow.table({**kinds, "y": ["no", "no"], "seen": [START, START]})
    base = made.snapshots.write(table.to_batches(), "data.csv", None)
    Latest(open_store(made.settings)).set("ingest", base.digest)
    bad = made.validate(base)
    with pytest.raises(UserError, match=r'"seen" of the corrected rows is not all timestamp'):
        accept_corrected_rows(made.project, bad, made.correct(bad, {0: {"age": 40, "seen": "yesterday"}}))
    child = accept_corrected_rows(
        made.project, bad, made.correct(bad, {0: {"age": 40, "seen": " 2024-01-05"}})
    ).snapshot
    assert made.snapshots.schema(child.digest).types == made.snapshots.schema(base.digest).types


def test_of_a_snapshot_s_two_equal_files_one_row_is_corrected(made):
    part = made.ingest([row(0), row(5, age=400)]).parts[0]
    twice = made.snapshots.record([part, part], "data.csv")
    Latest(open_store(made.settings)).set("ingest", twice.digest)
    bad = made.validate(twice)
    child = accept_corrected_rows(made.project, bad, made.correct(bad, {3: {"id": 55, "age": 40}})).snapshot
    assert ids(made, child) == [0, 5, 0, 55]


TEXTS = ("NA", "null", "nan", "#N/A", "", " ", "  x ", 'q"x', "a,b", "one\ntwo", "\r", "김", "007", "true", None)
NASTY = {
    "name": TEXTS,
    "note": TEXTS[::-1],
    "count": (LARGE, -(2**63), 2**63 - 1, None, *range(11)),
    "share": (math.inf, -math.inf, math.nan, None, 5e-324, -0.0, 0.1, 1e300, 12.0, *(i / 7 for i in range(6))),
    "seen": (datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999), None, *[START] * 12),
    "kept": (True, False, None, *[True] * 12),
    "_row": range(15),
}


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_rows_that_are_written_and_replayed_unchanged_are_the_raw_rows(made, suffix):
    rows = [row(i) for i in range(15)]
    known = {name: [one[place] for one in rows] for place, name in enumerate(HEADER)}
    known["when"] = [datetime.fromisoformat(value) for value in known["when"]]
    raw = pyarrow.table(known | {name: list(values) for name, values in NASTY.items()})
    base = made.snapshots.write(raw.to_batches(), "data.csv", None)
    Latest(open_store(made.settings)).set("ingest", base.digest)
    with Validations(open_store(made.settings)).quarantine("all", raw.schema) as held:
        reasons = pyarrow.array([["because"]] * 15)
        held.add(raw, np.arange(15), reasons)
        bad = held.finish(Validation(id="all", snapshot=base.digest, rows=15, bad=15, reasons={}))
    path = made.root / f"all.{suffix}"
    command.write_quarantine(made.project, bad, path)
    taken = accept_corrected_rows(made.project, bad, str(path))
    assert (taken.rows, taken.refused) == (15, {})
    assert made.snapshots.schema(taken.snapshot.digest) == raw.schema
    again = pyarrow.concat_tables(made.snapshots.batches(taken.snapshot.digest, raw.schema.names))
    for name in raw.schema.names:
        before, after = (["nan" if v != v else v for v in t.column(name).to_pylist()] for t in (raw, again))
        missing = {None, "nan"} if name == "share" else {None}
        assert [v for v in before if v not in missing] == [v for v in after if v not in missing], name
        assert [v in missing for v in before] == [v in missing for v in after], name


def test_only_the_row_groups_of_corrected_rows_are_read(made):
    rows = [row(i, age=400 + i) for i in range(12)]
    bad = made.validate(made.ingest(rows))
    store = Validations(open_store(made.settings))
    path = store.rows_path(bad.id)
    footer = pq.read_metadata(path)
    assert footer.num_row_groups == 3
    column = footer.row_group(1).column(HEADER.index("income"))
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    assert store.read_rows(bad.id, np.array([10, 1, 11])).column("age").to_pylist() == [410, 401, 411]
    with pytest.raises(OSError, match=r"[Tt]hrift"):
        store.read_rows(bad.id, np.array([5]))


def test_rows_of_another_source_are_refused(made):
    bad = made.validate(made.ingest([*GOOD, *BAD]))
    corrected = made.correct(bad, {5: {"age": 40}})
    other = made.snapshots.write(pyarrow.table({"id": [1]}).to_batches(), "elsewhere.csv", None)
    Latest(open_store(made.settings)).set("ingest", other.digest)
    with pytest.raises(UserError, match=r"data\.csv.*elsewhere\.csv"):
        accept_corrected_rows(made.project, bad, corrected)


def test_a_corrected_contract_takes_the_rows_in(made, contract):
    bad = made.validate(made.ingest([*GOOD, *BAD]))
    with pytest.raises(UserError, match="correct it"):
        revalidate(made.project, bad)

    class Wider(Schema):
        """Older customers, but none called 김."""

        age: pd.Int64Dtype = pa.Field(nullable=True, le=450)
        name: str = pa.Field(nullable=True, isin=["김", "again"])
        income: float = pa.Field(ge=0, le=10, metadata={"role": "sensitive"})

    contract.setattr(sys.modules["model.schema"], "Schema", Wider)
    (made.root / "model" / "schema.py").write_text("two", encoding="utf-8")
    again = revalidate(made.project, bad)
    assert (again.good, again.still, again.new) == (0, 4, 5)

    class Old(Schema):
        """Older customers."""

        age: pd.Int64Dtype = pa.Field(nullable=True, le=450)

    contract.setattr(sys.modules["model.schema"], "Schema", Old)
    (made.root / "model" / "schema.py").write_text("three", encoding="utf-8")
    again = revalidate(made.project, bad)
    assert (again.good, again.still, again.new) == (1, 3, 0)
    assert made.validate(made.ingest()) == again.validation  # what the next run finds


@pytest.fixture
def typed(made: Project, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Type `ml quarantine …`; the answer has the exit status and what was printed."""
    monkeypatch.setattr(command, "start_command", lambda: made.settings)

    def run(*arguments: str) -> tuple[int, str]:
        with command.console.capture() as said:
            result = CliRunner().invoke(quarantine_app, list(arguments))
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, said.get()

    monkeypatch.setattr(command.console, "width", 200)
    return run


def test_the_list_counts_reasons_over_time(made, typed):
    assert "Nothing was validated yet" in typed("list")[1]
    first = made.validate(made.ingest(GOOD))
    second = made.validate(made.ingest([*GOOD, *BAD]))
    said = typed("list")[1]
    assert said.index(second.id) < said.index(first.id)
    assert "44.44%" in said and "0.00%" in said
    [line] = [line for line in said.splitlines() if line.startswith("│ age: less_than_or_equal_to(120)")]
    assert [cell.strip() for cell in line.split("│")[2:4]] == ["0", "2"]


def test_the_validation_that_was_looked_at_last_is_shown_though_another_was_made_later(made, typed):
    snapshot = made.ingest([*GOOD, *BAD])
    schema = made.root / "model" / "schema.py"
    first = find_or_validate(made.project, snapshot.digest)
    schema.write_text("two", encoding="utf-8")
    second = find_or_validate(made.project, snapshot.digest)
    assert second.id in typed("show")[1]
    schema.write_text("one", encoding="utf-8")
    assert find_or_validate(made.project, snapshot.digest) == first
    assert first.id in typed("show")[1]
    (Validations(open_store(made.settings)).folder / f"{first.id}.json").unlink()  # as `ml data gc` may
    assert second.id in typed("show")[1]


def test_show_tells_reasons_and_rows_but_no_sensitive_value(made, typed):
    made.validate(made.ingest([*GOOD, *BAD]))
    said = typed("show")[1]
    assert "row 5: age = 400: less_than_or_equal_to(120)" in said
    assert "row 6: income: greater_than_or_equal_to(0)" in said
    assert "7771" not in said
    assert [c.strip() for c in next(x for x in said.splitlines() if "│ age" in x).split("│")[1:4]] == [
        "age",
        "less_than_or_equal_to(120)",
        "2",
    ]


def test_rows_are_written_corrected_and_replayed_by_the_commands(made, typed):
    made.validate(made.ingest([*GOOD, *BAD]))
    path = made.root / "bad.jsonl"
    assert typed("show", "--out", str(path))[0] == 0
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [one["_row"] for one in rows] == [5, 6, 7, 8]
    rows[0]["age"] = 40
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    status, said = typed("replay", "--from", str(path))
    assert status == 0 and "1 rows joined snapshot" in said and "3 rows were refused" in said
    status, said = typed("replay", "--from", str(path))
    assert status == 1 and "joined" not in said
    with pytest.raises(UserError, match="correct it"):
        typed("replay")
    with pytest.raises(UserError, match="no validation nope"):
        typed("show", "nope")


def test_rows_in_the_owner_s_notation_are_written_corrected_and_replayed_in_it(tmp_path, contract):
    project = Project(tmp_path, delimiter=";", decimal=",", thousands=".", encoding="cp949")
    lines = [";".join(HEADER), *(";".join(str(v).replace(".", ",") for v in row(i, income=1234.5)) for i in range(8))]
    lines[4] = lines[4].replace("1234,5", "12.5")  # a point where thousands would be
    lines[5] = lines[5].replace(";30;", ";400;")
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n", encoding="cp949")
    snapshot = project.ingest()
    bad = project.validate(snapshot)
    assert (bad.bad, bad.rows) == (2, 8)
    path = tmp_path / "bad.csv"
    command.write_quarantine(project.project, bad, path)
    text = path.read_text(encoding="utf-8-sig")
    assert '"12.5"' in text and '"1234,5"' in text and "김" in text and ";" in text
    corrected = text.replace('"12.5"', '"1.312,25"').replace(";400;", ";40;").replace('"400"', '"40"')
    path.write_text(corrected, encoding="cp949")  # as a spreadsheet saves it
    taken = accept_corrected_rows(project.project, bad, str(path))
    assert (taken.rows, taken.refused) == (2, {})
    assert project.validate(taken.snapshot).bad == 0
    incomes = [float(one[HEADER.index("income")]) for one in project.rows(taken.snapshot)]
    assert sorted(incomes) == [1234.5] * 7 + [1312.25]


def test_seconds_of_a_duration_are_written_and_replayed_with_a_point_in_any_notation(tmp_path, contract):
    class Timed(Schema):
        wait: pd.Timedelta = pa.Field()

    contract.setattr("model.schema.Schema", Timed)
    project = Project(tmp_path, decimal=",", delimiter=";")
    lines = [";".join([*HEADER, "wait"]), *(";".join(map(str, [*row(i, income=1), 12.5 + i])) for i in range(4))]
    lines[2] = lines[2].replace(";30;", ";400;")
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    bad = project.validate(project.ingest())
    path = tmp_path / "bad.csv"
    command.write_quarantine(project.project, bad, path)
    path.write_text(path.read_text(encoding="utf-8").replace(";400;", ";40;"), encoding="utf-8")
    taken = accept_corrected_rows(project.project, bad, str(path))
    assert (bad.bad, taken.rows, taken.refused) == (1, 1, {})
    table = pyarrow.concat_tables(list(project.snapshots.batches(taken.snapshot.digest, ["wait"])))
    assert sorted(table.column("wait").to_pylist()) == [12.5, 13.5, 14.5, 15.5]


def test_a_row_that_gets_its_label_later_joins_the_rows_of_a_growing_source(tmp_path, contract):
    project = Project(
        tmp_path, watermark="when", delimiter=";", decimal=",", thousands=".", missing=["?"], date_formats=["%d/%m/%Y"]
    )
    lines = [";".join(HEADER), "1;31/01/2026;30;1.234,5;김;no", "2;01/02/2026;?;7;김;"]
    counts = []
    for more in ([], ["3;02/03/2026;31;?;김;yes"], ["2;05/03/2026;32;8,5;김;yes", "4;06/03/2026;33;12.5;김;no"]):
        lines += more
        (tmp_path / "data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        made = project.validate(project.ingest())
        counts.append((made.rows, made.kept, made.bad, made.unlabelled, [*made.reasons]))
    wrong = "income: not a finite number"
    missing = "income: not_nullable"
    assert counts == [(2, 1, 0, 1, []), (3, 1, 1, 1, [missing]), (4, 2, 2, 0, [missing, wrong])]
