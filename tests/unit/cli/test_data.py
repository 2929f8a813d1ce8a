"""`ml data`: snapshots are listed, compared, and removed only where nothing needs them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from ondol import retention as garbage
from ondol.cli import data as ml_data
from ondol.config import Settings
from ondol.errors import UserError
from ondol.project import Project
from ondol.retention import Use, bundled_uses, find_garbage, needed, registered_uses, versions_of
from ondol.snapshots import diff as comparing
from ondol.snapshots.diff import ColumnDiff, compare_columns, compare_schemas, read_both
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.storage.files import read_json, write_json
from ondol.storage.store import Store, open_store
from ondol.validation.results import Latest, Validation, Validations


@pytest.fixture(autouse=True)
def nothing_is_young(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "YOUNG_SECONDS", 0)


def rows(**columns: list[object] | np.ndarray) -> Iterator[pa.RecordBatch]:
    yield pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in columns.items()})


def take(store: Store, source: str, fingerprint: str | None = None, **columns: list[object] | np.ndarray) -> Snapshot:
    return Snapshots(store).write(rows(**columns), source, fingerprint)


def read(store: Store, digest: str) -> list[dict[str, object]]:
    snapshots = Snapshots(store)
    names = snapshots.schema(digest).names
    return [row for table in snapshots.batches(digest, names) for row in table.to_pylist()]


def grow_by(store: Store, head: Snapshot | None, value: int, replaced: int | None) -> Snapshot:
    """Append a row, and leave out one of the first part."""
    snapshots = Snapshots(store)
    part = snapshots.parts.write(rows(a=[value, value + 1]))
    assert part is not None
    older = list(head.parts) if head else []
    if older and replaced is not None:
        older[0] = snapshots.parts.drop(older[0], np.array([replaced]))
    return snapshots.record([*older, part], "db", head)


def validate(store: Store, snapshot: Snapshot, name: str) -> str:
    made = f"{snapshot.digest[:12]}-{name}"
    schema = Snapshots(store).schema(snapshot.digest)
    with Validations(store).quarantine(made, schema) as quarantine:
        quarantine.finish(Validation(id=made, snapshot=snapshot.digest, rows=snapshot.rows, bad=0, reasons={}))
    return made


def age(store: Store, snapshot: Snapshot, days: int) -> None:
    """Date a snapshot, since those of one test are all taken within a second."""
    path = store.folder / "snapshots" / f"{snapshot.digest}.json"
    when = (datetime(2026, 1, 1) + timedelta(days=days)).isoformat()
    path.write_text(snapshot.model_copy(update={"created": when}).model_dump_json(), encoding="utf-8")


def files_of(store: Path) -> set[str]:
    return {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}


Step = tuple[str, int, bool]
STEPS = st.lists(
    st.tuples(st.sampled_from(["whole a", "whole b", "grow", "start again"]), st.integers(0, 5), st.booleans()),
    min_size=1,
    max_size=8,
)


def play(store: Store, steps: list[Step]) -> list[tuple[Snapshot, str]]:
    """Make a history: snapshots read whole of two sources, and some that grow; each is validated."""
    made, head = [], None
    for day, (kind, value, other) in enumerate(steps):
        if kind.startswith("whole"):
            one = take(store, kind, f"{kind[-1]}{value}", a=[value, value * 2])
        else:
            one = head = grow_by(store, head if kind == "grow" else None, value, int(other))
            store.write_json(store.folder / "snapshots" / "lines" / "key.json", {"snapshot": one.digest})
        if not any(old.digest == one.digest for old, _ in made):
            age(store, one, day)
        made.append((one, validate(store, one, "contract")))
    return made


@examples(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, picks=st.sets(st.integers(0, 7)), stop=st.integers(0, 40))
def test_after_any_history_and_any_interruption_nothing_needed_is_removed(tmp_path_factory, steps, picks, stop):
    store = Store(tmp_path_factory.mktemp("store"))
    made = play(store, steps)
    used = {made[i][0].digest for i in picks if i < len(made)}
    line = read_json(store.folder / "snapshots" / "lines" / "key.json")
    kept = used | {line["snapshot"]} if line else used
    before = {digest: read(store, digest) for digest in kept}
    found = find_garbage(store, used, set())
    for path in found.files[:stop]:  # a crash midway
        path.unlink()
    assert_nothing_dangles(store)
    find_garbage(store, used, set()).remove()
    assert_nothing_dangles(store)
    assert {digest: read(store, digest) for digest in kept} == before
    for snapshot, validation in made:
        if snapshot.digest in kept:
            assert Validations(store).bad_rows(Validations(store).get(validation).id).size == 0
    assert find_garbage(store, used, set()).files == ()
    assert not any(one.digest in kept for one in found.snapshots)


def assert_nothing_dangles(store: Store) -> None:
    """Every recorded snapshot can be read completely, and every reference to a snapshot is valid."""
    snapshots = Snapshots(store)
    for path in snapshots.folder.glob("*.json"):
        assert len(read(store, path.stem)) == snapshots.get(path.stem).rows
    for path in snapshots.folder.glob("sources/*.json"):
        assert snapshots.by_fingerprint(path.stem) is not None
    for path in Validations(store).folder.glob("*.json"):
        record = Validations(store).get(path.stem)
        assert snapshots.get(record.snapshot) and Validations(store).bad_rows(record.id).size == record.bad


def test_of_a_source_the_newest_snapshot_stays_and_the_others_go(tmp_path):
    old, new = (take(Store(tmp_path), "data.csv", f"f{i}", a=[i, i]) for i in (1, 2))
    other = take(Store(tmp_path), "other.csv", "f3", a=[3])
    names = [validate(Store(tmp_path), one, "c") for one in (old, new)]
    for day, one in enumerate((old, new, other)):
        age(Store(tmp_path), one, day)
    found = find_garbage(Store(tmp_path), set(), set())
    assert [one.digest for one in found.snapshots] == [old.digest]
    assert found.size > 0
    found.remove()
    assert files_of(tmp_path) == {
        *(f"snapshots/{one.digest}.{end}" for one in (new, other) for end in ("json", "parquet")),
        "snapshots/sources/f2.json",
        "snapshots/sources/f3.json",
        *(f"quarantine/{names[1]}.{end}" for end in ("json", "parquet")),
    }
    assert Snapshots(Store(tmp_path)).by_fingerprint("f1") is None
    assert take(Store(tmp_path), "data.csv", "f1", a=[1, 1]).digest == old.digest


def test_parts_that_a_kept_snapshot_shares_stay_though_their_first_owner_goes(tmp_path):
    first = grow_by(Store(tmp_path), None, 1, None)
    second = grow_by(Store(tmp_path), first, 10, 0)
    third = grow_by(Store(tmp_path), second, 20, 1)
    for day, one in enumerate((first, second, third)):
        age(Store(tmp_path), one, day)
    found = find_garbage(Store(tmp_path), set(), set())
    found.remove()
    assert [one.digest for one in found.snapshots] == [second.digest, first.digest]
    assert [row["a"] for row in read(Store(tmp_path), third.digest)] == [10, 11, 20, 21]
    assert not (tmp_path / "snapshots" / f"{second.parts[0].dropped}.parquet").exists()


def test_what_another_host_has_written_and_not_yet_named_stays_for_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(garbage, "YOUNG_SECONDS", 3600)
    old, new = (take(Store(tmp_path), "data.csv", f"f{i}", a=[i, i]) for i in (1, 2))
    for day, one in enumerate((old, new)):
        age(Store(tmp_path), one, day)
    name = validate(Store(tmp_path), new, "c")
    (tmp_path / "quarantine" / f"{name}.json").unlink()  # as if it were about to be written
    part = Snapshots(Store(tmp_path)).parts.write(rows(a=[3]))
    assert part is not None
    before = files_of(tmp_path)
    find_garbage(Store(tmp_path), set(), set()).remove()
    assert files_of(tmp_path) == before | {f"snapshots/{part.digest}.parquet"}
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        os.utime(path, (time.time() - 4000,) * 2)
    assert Snapshots(Store(tmp_path)).parts.write(rows(a=[3])) == part  # written again, it is young again
    find_garbage(Store(tmp_path), set(), set()).remove()
    kept = {f"snapshots/{one}.parquet" for one in (new.digest, part.digest)}
    assert files_of(tmp_path) == kept | {f"snapshots/{new.digest}.json", "snapshots/sources/f2.json"}


def test_a_part_that_is_gone_is_reported_and_never_recorded(tmp_path):
    snapshots = Snapshots(Store(tmp_path))
    first = grow_by(Store(tmp_path), None, 1, None)
    second = grow_by(Store(tmp_path), first, 10, 0)
    part = snapshots.parts.write(rows(a=[20]))
    assert part is not None and second.parts[0].dropped
    for gone, kept in ((part.digest, second.parts), (second.parts[0].dropped, (*second.parts, part))):
        path = snapshots.parts.place(gone)
        content = path.read_bytes()
        path.unlink()
        before = files_of(tmp_path)
        with pytest.raises(UserError, match=rf"file .*{gone}.parquet is missing: restore it, or run `ml ingest"):
            snapshots.record([*kept, part], "db", second)
        assert files_of(tmp_path) == before
        path.write_bytes(content)
    snapshots.parts.place(second.parts[1].digest).unlink()
    for use in (snapshots.schema, lambda digest: list(snapshots.blocks(digest))):
        with pytest.raises(UserError, match="is missing"):
            use(second.digest)


@pytest.mark.parametrize("digest", ["*", "", "../x", "[a-f]", "zz", "ABC"])
def test_what_is_not_a_digest_is_refused(project, digest):
    take(open_store(project), "data.csv", a=[1])
    with pytest.raises(UserError, match=r"is not a snapshot digest: use the first characters"):
        ml_data.print_difference(digest, digest)


def test_a_damaged_record_stops_the_removal(tmp_path):
    one = take(Store(tmp_path), "data.csv", a=[1])
    (tmp_path / "snapshots" / f"{one.digest}.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="changed or damaged"):
        find_garbage(Store(tmp_path), set(), set())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A project with an embedded MLflow database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = Settings(root=tmp_path)
    monkeypatch.setattr(ml_data, "start_command", lambda: made)
    monkeypatch.setattr(ml_data.console, "width", 160)
    return made


def two_snapshots(project: Settings) -> tuple[Snapshot, Snapshot]:
    old, new = (take(open_store(project), "data.csv", a=[i]) for i in (1, 2))
    age(open_store(project), old, 0)
    age(open_store(project), new, 1)
    Latest(open_store(project)).set("ingest", new.digest)
    return old, new


def test_a_version_in_mlflow_keeps_its_snapshot(project, capsys):
    from ondol.registry.registry import Registry

    old, _ = two_snapshots(project)
    registry = Registry(project)
    registry.client.create_registered_model(registry.name)
    made = registry.client.create_model_version(registry.name, "file:///none", tags={"data_digest": old.digest})
    ml_data.collect(dry_run=False)
    assert "Nothing to delete" in capsys.readouterr().out
    assert versions_of(registered_uses(Project(project))) == {old.digest: ["1"]}
    registry.client.delete_model_version(registry.name, made.version)
    ml_data.collect(dry_run=True)
    assert old.digest[:12] in capsys.readouterr().out
    assert read(open_store(project), old.digest)
    ml_data.collect(dry_run=False)
    with pytest.raises(UserError, match="No such snapshot"):
        Snapshots(open_store(project)).get(old.digest)


def test_all_pages_of_mlflow_are_read(monkeypatch, project):
    pages = {None: ("x", ["1", "2"]), "x": (None, ["3"])}

    class Page(list):  # type: ignore[type-arg]
        token: str | None = None

    def search(query: str, most: int, page_token: str | None) -> Page:
        token, versions = pages[page_token]
        page = Page(SimpleNamespace(version=v, tags={"data_digest": f"d{v}"}, run_id="") for v in versions)
        page.token = token
        return page

    registry = SimpleNamespace(name="n", client=SimpleNamespace(search_model_versions=search))
    monkeypatch.setattr("ondol.registry.registry.Registry", lambda settings: registry)
    assert [use.snapshot for use in registered_uses(Project(project))] == ["d1", "d2", "d3"]


def test_a_bundle_keeps_its_snapshot_and_a_validation_the_one_that_it_names(project):
    old, _ = two_snapshots(project)
    write_json(project.folder_of(project.store) / "bundles" / "7-abc" / "meta.json", {"data_digest": old.digest})
    assert needed(Project(project), bundled_uses(Project(project))) == ({old.digest}, set())
    assert versions_of(bundled_uses(Project(project))) == {old.digest: ["7"]}
    name = validate(open_store(project), old, "c")
    assert needed(Project(project), [Use(None, None, name)]) == ({old.digest}, {name})


@pytest.mark.parametrize("wrong", ["server", "registry", "bundle"])
def test_nothing_is_removed_where_it_is_not_known_what_is_needed(project, monkeypatch, wrong):
    two_snapshots(project)
    if wrong == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    elif wrong == "registry":
        champion = {"version": "3", "run_id": "r", "bundle": "3-a", "digest": "a", "since": "now"}
        write_json(project.folder_of(project.store) / "champion.json", champion)
    else:
        (project.folder_of(project.store) / "bundles" / "7-abc").mkdir(parents=True)
        (project.folder_of(project.store) / "bundles" / "7-abc" / "meta.json").write_text("{", encoding="utf-8")
    before = files_of(project.folder_of(project.store))
    with pytest.raises(UserError, match="Nothing was deleted"):
        ml_data.collect(dry_run=False)
    assert files_of(project.folder_of(project.store)) == before


def test_nothing_is_removed_during_another_run(project):
    two_snapshots(project)
    code = (
        "import sys; from pathlib import Path; from ondol.storage.files import locked\n"
        "with locked(Path(sys.argv[1]), wait=False) as mine:\n    print(mine, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(project.home / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "True\n"
        before = files_of(project.folder_of(project.store))
        with pytest.raises(UserError, match="Another run"):
            ml_data.collect(dry_run=False)
        assert files_of(project.folder_of(project.store)) == before
        holder.communicate()


def test_the_log_names_versions_and_hides_secrets_even_without_mlflow(project, capsys, monkeypatch):
    take(open_store(project), "postgresql://me:geheim@db/shop?table=고객", a=[9])
    old, new = two_snapshots(project)
    write_json(project.folder_of(project.store) / "bundles" / "7-abc" / "meta.json", {"data_digest": old.digest})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    ml_data.print_log()
    said = capsys.readouterr()
    assert "No MLflow server answers" in " ".join(said.err.split())
    assert "postgresql://db/shop?table=고객" in said.out and "geheim" not in said.out
    lines = [line for line in said.out.splitlines() if "data.csv" in line]
    assert [line.split()[1] for line in lines] == [new.digest[:12], old.digest[:12]]
    assert " 7 " in lines[1] and " 7 " not in lines[0]


def compared(store: Store, one: dict[str, object], other: dict[str, object]) -> dict[str, ColumnDiff]:
    before, after = (take(store, "x", **columns) for columns in (one, other))  # type: ignore[arg-type]
    snapshots = Snapshots(store)
    found = compare_columns(snapshots, compare_schemas(snapshots, before.digest[:12], after.digest[:12]))
    return {column.name: column for column in found}


def test_the_schemas_of_two_snapshots_are_compared(tmp_path):
    one = take(Store(tmp_path), "x", gone=[1], kind=[1], same=["a"])
    other = take(Store(tmp_path), "x", same=["b"], kind=["1"], new=[True])
    found = compare_schemas(Snapshots(Store(tmp_path)), one.digest[:8], other.digest[:8])
    assert (found.added, found.removed) == ({"new": "bool"}, {"gone": "int64"})
    assert (found.retyped, found.shared) == ({"kind": ("int64", "string")}, ("same",))


def test_the_values_of_two_snapshots_are_compared(tmp_path):
    start = datetime(2026, 1, 1)
    dates = [[start + timedelta(days=i + shift) for i in range(400)] for shift in (0, 0, 300)]
    ones = {"n": [1.0, None, 3.0, float("nan")] * 100, "도시": ["서울", "부산"] * 200, "when": dates[0]}
    others = {"n": [1.0, 2.0, 3.0, 9.0] * 100, "도시": ["서울", "제주"] * 200, "when": dates[2]}
    found = compared(Store(tmp_path), ones, others)  # type: ignore[arg-type]
    number, city, when = found["n"], found["도시"], found["when"]
    assert (number.before.missing_share, number.after.missing_share) == (0.5, 0.0)
    assert (number.before.least, number.before.most, number.after.most) == (1.0, 3.0, 9.0)
    assert number.after.median == 3.0
    assert (city.came, city.went) == (("제주",), ("부산",))
    assert (when.before.median, when.after.least) == (dates[0][200], dates[2][0])
    assert all(column.distance is not None and column.distance > 0.2 for column in found.values())


@pytest.mark.parametrize("kind", ["float", "flag", "text"])
def test_the_distance_is_small_between_alike_and_large_between_others(tmp_path, kind):
    draw = np.random.default_rng(1)

    def values(shift: float) -> list[object]:
        if kind == "float":
            return list(draw.normal(shift, 1, 5000))
        flags = (draw.random(5000) < 0.05 + shift / 2).astype(int)
        return list(flags if kind == "flag" else np.array(["a", "b"])[flags])

    alike, moved = (compared(Store(tmp_path), {"x": values(0)}, {"x": values(shift)})["x"].distance for shift in (0, 1))
    assert alike is not None and alike < 0.05
    assert moved is not None and moved > 0.5


def test_names_of_rows_have_no_distance(tmp_path):
    ids = [[f"id{i}" for i in range(start, start + 500)] for start in (0, 500)]
    column = compared(Store(tmp_path), {"id": ids[0]}, {"id": ids[1]})["id"]
    assert (column.distance, column.came) == (None, ())


def test_a_large_snapshot_is_sampled_evenly_over_all_its_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("ondol.snapshots.snapshots.ROW_GROUP", 16)
    monkeypatch.setattr(comparing, "MOST_ROWS", 30)
    one = take(Store(tmp_path), "x", a=list(range(100)))
    side = read_both(Snapshots(Store(tmp_path)), one, ["a"])["a"]
    assert list(side.values) == list(range(0, 100, 4))
    assert (side.rows, side.least, side.most) == (100, 0, 99)


def test_differences_are_printed_with_korean_names_and_markup_in_them(project, capsys):
    one = take(open_store(project), "x", **{"도시 [b]": ["서울", "부산"] * 50, "n": [1, 2] * 50})
    other = take(open_store(project), "x", **{"도시 [b]": ["서울", "[red]"] * 60, "n": [5, 6] * 60, "새": [1] * 120})
    ml_data.print_difference(one.digest[:10], other.digest[:10])
    said = capsys.readouterr().out
    for part in ("100 → 120 (+20)", "+ 새 int64", "도시 [b]", "+ [red]; − 부산", "1 → 5"):
        assert part in said
