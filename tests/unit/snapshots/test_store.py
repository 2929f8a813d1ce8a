"""The store: everything in it is whole or absent, named by its content, and never rewritten."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ondol.cli.deployment import previous_bundle
from ondol.errors import UserError
from ondol.registry.bundles import open_bundle, served_bundle, write_bundle
from ondol.registry.champion import Champion, move_champion, read_champion, require_champion, write_champion
from ondol.snapshots.snapshots import Snapshots
from ondol.storage.files import digest_file, digest_json, locked, read_json, scratch, write_bytes, write_json
from ondol.storage.store import Store
from ondol.validation.results import Latest, Validation, Validations
from ondol_serving.names import digest_folder

FILES = {"model.onnx": b"\x00\x01", "contract.json": b"{}", "meta.json": b'{"name": "t"}'}


def table(rows: int = 1000, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    texts = rng.choice(["가", "나", "b c"], rows)
    return pa.table(
        {"id": np.arange(rows), "지역": texts, "x": pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.1)}
    )


def cut(whole: pa.Table, sizes: list[int]) -> Iterator[pa.RecordBatch]:
    start = 0
    while start < len(whole):
        for size in sizes:
            yield from whole.slice(start, size).combine_chunks().to_batches()
            start += size


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, p.stat().st_ino)
        for p in folder.rglob("*")
        if p.is_file()
    }


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ondol.snapshots.snapshots.ROW_GROUP", 256)


# Snapshots.


@pytest.mark.parametrize("sizes", [[1], [7, 300], [256], [255, 257], [10_000]])
def test_a_snapshots_digest_is_the_same_however_the_source_is_cut(sizes, tmp_path):
    digests = [
        Snapshots(Store(tmp_path / str(i))).write(cut(table(), pieces), "s", "f").digest
        for i, pieces in enumerate([[1000], sizes])
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("rows", [1, 255, 256, 257, 512])
def test_a_snapshot_holds_every_row_once_and_in_order(rows, tmp_path):
    snapshots = Snapshots(Store(tmp_path))
    made = snapshots.write(cut(table(rows), [100]), "s", "f")
    assert made.rows == rows and made.columns == ("id", "지역", "x")
    groups = list(snapshots.batches(made.digest, ["x", "id"]))
    assert [len(group) for group in groups[:-1]] == [256] * (len(groups) - 1)
    assert pa.concat_tables(groups).column("id").to_pylist() == list(range(rows))
    assert digest_file(snapshots.parts.path(made.digest)) == made.digest


def test_the_same_content_is_written_once_from_any_source(tmp_path):
    snapshots = Snapshots(Store(tmp_path))
    first = snapshots.write(cut(table(), [100]), "a.csv", "f1")
    before = files_of(tmp_path)
    second = snapshots.write(cut(table(), [33]), "b.parquet", "f2")
    assert second.digest == first.digest
    after = files_of(tmp_path)
    assert set(after) - set(before) == {"snapshots/sources/f2.json"}
    assert {name: after[name][1] for name in before} == {name: file for name, (_, file) in before.items()}
    assert snapshots.get(first.digest).source == "a.csv"


def test_other_content_has_another_digest(tmp_path):
    snapshots = Snapshots(Store(tmp_path))
    made = {snapshots.write(cut(table(seed=seed), [100]), "s", str(seed)).digest for seed in range(3)}
    made.add(snapshots.write(cut(table().rename_columns(["id", "region", "x"]), [100]), "s", "names").digest)
    assert len(made) == 4


def test_a_known_fingerprint_gives_its_snapshot_unless_that_is_gone(tmp_path):
    snapshots = Snapshots(Store(tmp_path))
    made = snapshots.write(cut(table(), [100]), "s", "f")
    assert snapshots.by_fingerprint("f") == snapshots.get(made.digest)
    assert snapshots.by_fingerprint("g") is None
    snapshots.parts.path(made.digest).unlink()
    assert snapshots.by_fingerprint("f") is None


def test_a_snapshot_is_found_by_its_first_characters(tmp_path):
    snapshots = Snapshots(Store(tmp_path))
    made = [snapshots.write(cut(table(seed=seed), [100]), "s", str(seed)).digest for seed in range(2)]
    assert snapshots.get(made[0][:12]).digest == made[0]
    with pytest.raises(UserError, match=r"No such snapshot.*run `ml ingest`"):
        snapshots.get("0" * 64)
    (tmp_path / "snapshots" / f"{made[0][:12]}.json").write_bytes(b"")
    with pytest.raises(UserError, match=r"More than one such snapshot.*give more characters"):
        snapshots.get(made[0][:12])


def test_a_source_without_rows_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"data\.csv has no rows"):
        Snapshots(Store(tmp_path)).write(iter(()), "data.csv", "f")
    assert files_of(tmp_path) == {}


def test_a_source_that_fails_midway_leaves_nothing(tmp_path):
    def broken() -> Iterator[pa.RecordBatch]:
        yield from cut(table(), [100])
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        Snapshots(Store(tmp_path)).write(broken(), "s", "f")
    assert files_of(tmp_path) == {}


# Killed processes.

KILLED = """
import os, signal, sys
from pathlib import Path
from ondol.storage.files import scratch
with scratch(Path({target!r})) as made:
    made.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_while_writing(target: Path) -> None:
    code = KILLED.format(target=str(target))
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9


def test_what_a_killed_process_left_is_never_used_and_swept_by_the_next(tmp_path):
    target = tmp_path / "champion.json"
    write_json(target, {"old": True})
    kill_while_writing(target)
    assert read_json(target) == {"old": True}
    assert len(list(tmp_path.glob(".tmp-*"))) == 1
    write_json(target, {"new": True})
    assert [p.name for p in tmp_path.iterdir()] == ["champion.json"]


def test_a_killed_bundle_is_not_a_bundle(tmp_path):
    kill_while_writing(tmp_path / "bundles" / "1")
    assert [p.name[:5] for p in (tmp_path / "bundles").iterdir()] == [".tmp-"]
    made = write_bundle(Store(tmp_path), "1", FILES)
    assert [p.name for p in (tmp_path / "bundles").iterdir()] == [made.name]


def test_what_a_living_process_is_writing_is_left_alone(tmp_path):
    with scratch(tmp_path / "a") as made:
        made.write_bytes(b"half")
        write_bytes(tmp_path / "b", b"whole")
        assert made.read_bytes() == b"half"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_files_of_others_that_are_named_alike_are_left_alone(tmp_path):
    (tmp_path / ".tmp-mine").write_text("mine", encoding="utf-8")
    write_bytes(tmp_path / "b", b"whole")
    assert (tmp_path / ".tmp-mine").exists()


def test_a_lock_is_held_by_one_at_a_time_and_freed_at_the_end(tmp_path):
    with locked(tmp_path / "lock", wait=False) as first, locked(tmp_path / "lock", wait=False) as second:
        assert (first, second) == (True, False)
        assert (tmp_path / "lock").read_text(encoding="utf-8") == str(os.getpid())
    with locked(tmp_path / "lock", wait=False) as third:
        assert third


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", 1)
    monkeypatch.setattr("ondol.storage.files.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_json(tmp_path / "a.json", 2)
    monkeypatch.undo()
    assert read_json(tmp_path / "a.json") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_digests_do_not_depend_on_the_order_of_keys_or_files(tmp_path):
    assert digest_json({"a": 1, "b": [2]}) == digest_json({"b": [2], "a": 1})
    for name, order in (("one", "ab"), ("two", "ba")):
        (tmp_path / name).mkdir()
        for letter in order:
            (tmp_path / name / letter).write_text(letter, encoding="utf-8")
    assert digest_folder(tmp_path / "one") == digest_folder(tmp_path / "two")


def test_a_folders_digest_is_what_sha256sum_prints(tmp_path):
    made = write_bundle(Store(tmp_path), "1", FILES)
    said = subprocess.check_output(
        "sha256sum * | sha256sum", shell=True, cwd=made.path, env=os.environ | {"LC_ALL": "C"}, text=True
    )
    assert said.split()[0] == made.digest


# Bundles.


def test_a_bundle_is_named_by_version_and_content_and_written_once(tmp_path):
    made = write_bundle(Store(tmp_path), "3", FILES)
    assert made.name == f"3-{made.digest[:12]}"
    before = files_of(tmp_path)
    assert write_bundle(Store(tmp_path), "3", FILES) == made
    assert files_of(tmp_path) == before
    assert write_bundle(Store(tmp_path), "3", FILES | {"model.onnx": b"2"}).name != made.name
    assert open_bundle(Store(tmp_path), made.name) == made and made.meta == {"name": "t"}


@pytest.mark.parametrize("change", ["content", "added", "removed", "renamed"])
def test_a_changed_bundle_is_refused(change, tmp_path):
    made = write_bundle(Store(tmp_path), "3", FILES)
    model = made.path / "model.onnx"
    {
        "content": lambda: model.write_bytes(b"\x00\x02"),
        "added": lambda: (made.path / "more").touch(),
        "removed": model.unlink,
        "renamed": lambda: model.rename(made.path / "model.bin"),
    }[change]()
    with pytest.raises(UserError, match="was changed after it was written"):
        open_bundle(Store(tmp_path), made.name)


def test_a_missing_bundle_is_reported(tmp_path):
    with pytest.raises(UserError, match="is missing: `ml run` deploys again"):
        open_bundle(Store(tmp_path), "1-000000000000")


# The champion.


def history(store: Store, *moves: tuple[str, str]) -> Champion:
    """Move the champion to versions: ("deploy", "1"), …, ("rollback", "")."""
    for action, version in moves:
        champion = read_champion(store)
        if action == "rollback":
            assert champion is not None
            bundle = open_bundle(store, previous_bundle(champion))
        else:
            bundle = write_bundle(store, version, FILES | {"version": version.encode()})
        move_champion(store, bundle, action, f"because {version}")  # type: ignore[arg-type]
    return require_champion(store)


def test_no_champion_is_none_and_if_one_is_needed_an_error(tmp_path):
    assert read_champion(Store(tmp_path)) is None
    with pytest.raises(UserError, match="No model is in production yet"):
        require_champion(Store(tmp_path))


def test_every_move_of_the_champion_is_in_its_history(tmp_path):
    champion = history(Store(tmp_path), ("deploy", "1"), ("deploy", "2"))
    assert champion.version == "2" and champion.bundle.startswith("2-")
    assert [(c.action, c.before and c.before[0], c.to[0], c.why) for c in champion.history] == [
        ("deploy", None, "1", "because 1"),
        ("deploy", "1", "2", "because 2"),
    ]
    said = json.loads((tmp_path / "champion.json").read_text(encoding="utf-8"))
    assert set(said) == {"version", "run_id", "bundle", "digest", "since", "history"}
    assert set(said["history"][0]) == {"at", "who", "from", "to", "why", "action"}
    assert open_bundle(Store(tmp_path), said["bundle"]).digest == said["digest"]


def test_the_champion_is_replaced_in_one_step(tmp_path):
    history(Store(tmp_path), ("deploy", "1"))
    with (tmp_path / "champion.json").open(encoding="utf-8") as reader:
        history(Store(tmp_path), ("deploy", "2"))
        assert json.load(reader)["version"] == "1"
    assert require_champion(Store(tmp_path)).version == "2"
    assert not list(tmp_path.glob(".tmp-*"))


def test_the_champion_can_be_put_back_to_what_it_was(tmp_path):
    before = history(Store(tmp_path), ("deploy", "1"))
    content = (tmp_path / "champion.json").read_bytes()
    history(Store(tmp_path), ("deploy", "2"))
    write_champion(Store(tmp_path), before)
    assert (tmp_path / "champion.json").read_bytes() == content
    write_champion(Store(tmp_path), None)
    assert read_champion(Store(tmp_path)) is None


def test_a_rollback_goes_back_one_and_the_next_one_more(tmp_path):
    moves = [("deploy", "1"), ("deploy", "2"), ("deploy", "3")]
    assert history(Store(tmp_path), *moves, ("rollback", "")).version == "2"
    assert history(Store(tmp_path), ("rollback", "")).version == "1"
    with pytest.raises(UserError, match="Version 1 is the first in production"):
        previous_bundle(require_champion(Store(tmp_path)))


def test_a_rollback_after_a_new_deployment_returns_to_what_served_before_it(tmp_path):
    champion = history(Store(tmp_path), ("deploy", "1"), ("deploy", "2"), ("rollback", ""), ("deploy", "3"))
    assert previous_bundle(champion).startswith("1-")
    assert history(Store(tmp_path), ("rollback", "")).version == "1"


def test_a_promotion_can_be_rolled_back(tmp_path):
    champion = history(Store(tmp_path), ("deploy", "1"), ("deploy", "2"), ("promote", "1"))
    assert champion.version == "1"
    assert history(Store(tmp_path), ("rollback", "")).version == "2"


def test_only_a_bundle_that_served_is_a_versions_bundle(tmp_path):
    """One that was written but failed its smoke test is not."""
    champion = history(Store(tmp_path), ("deploy", "1"), ("deploy", "11"))
    write_bundle(Store(tmp_path), "1", FILES)
    write_bundle(Store(tmp_path), "2", FILES)
    assert served_bundle(Store(tmp_path), "1").name == champion.history[0].to
    for version in ("2", "*", ""):
        with pytest.raises(UserError, match="never was in production"):
            served_bundle(Store(tmp_path), version)


def test_the_first_version_has_none_before_it(tmp_path):
    with pytest.raises(UserError, match="there is no earlier one to roll back to"):
        previous_bundle(history(Store(tmp_path), ("deploy", "1")))


# Validations.


def test_quarantined_rows_are_kept_raw_with_their_numbers_and_reasons(tmp_path):
    validations = Validations(Store(tmp_path))
    record = Validation(id="v", snapshot="s", rows=10, bad=2, reasons={"x: isin": 2})
    rows = table(10).take([3, 7])
    with validations.quarantine("v", rows.schema) as quarantine:
        quarantine.add(rows, np.array([3, 7]), pa.array([["x = 1: isin"], ["a", "b"]]))
        quarantine.finish(record)
    assert validations.get("v") == record and record.bad_share == 0.2
    assert validations.bad_rows("v").tolist() == [3, 7]
    kept = pq.read_table(validations.rows_path("v"))
    assert kept.select(["id", "지역", "x"]).equals(rows.select(["id", "지역", "x"]))
    assert kept.column("_reasons").to_pylist() == [["x = 1: isin"], ["a", "b"]]


def test_quarantined_rows_are_held_against_what_was_recorded_of_them(tmp_path, monkeypatch):
    validations = Validations(Store(tmp_path))
    rows = table(10).take([3])

    def write(name: str) -> None:
        with validations.quarantine(name, rows.schema) as quarantine:
            quarantine.add(rows, np.array([3]), pa.array([["bad"]]))
            quarantine.finish(Validation(id=name, snapshot="s", rows=10, bad=1, reasons={}))

    write("v")
    write("other")
    assert validations.get("v").digest == digest_file(validations.find_rows("v"))
    path = tmp_path / "quarantine" / "v.parquet"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(UserError, match=r"v.parquet was changed or damaged.* remove it and run `ml validate` again"):
        validations.bad_rows("v")
    path.unlink()
    with pytest.raises(UserError, match=r"v.parquet is missing.* run `ml validate` again"):
        validations.bad_rows("v")
    path.write_bytes(good)
    looked: list[Path] = []
    monkeypatch.setattr("ondol.snapshots.snapshots.digest_file", lambda path: looked.append(path) or digest_file(path))
    assert [validations.bad_rows("v").tolist() for _ in range(2)] == [[3], [3]]
    assert looked == [path]
    record = tmp_path / "quarantine" / "other.json"
    write_json(record, {k: v for k, v in read_json(record).items() if k != "digest"})  # as older versions wrote it
    assert validations.get("other").digest is None and validations.bad_rows("other").tolist() == [3]


def test_an_unknown_validation_and_a_stage_that_has_not_run_are_reported(tmp_path):
    assert Validations(Store(tmp_path)).find("v") is None
    with pytest.raises(UserError, match="`ml validate` makes one"):
        Validations(Store(tmp_path)).get("v")
    with pytest.raises(UserError, match="run `ml train` first"):
        Latest(Store(tmp_path)).get("train")
    Latest(Store(tmp_path)).set("ingest", "a")
    Latest(Store(tmp_path)).set("train", "1")
    assert (Latest(Store(tmp_path)).get("ingest"), Latest(Store(tmp_path)).get("train")) == ("a", "1")
