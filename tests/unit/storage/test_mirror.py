"""A store at an address: every host finds what another published, despite kills, lost responses and races."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from growing_support import CONTRACT, Row, Table, grow, rows_of

from ondol.cli.deployment import previous_bundle
from ondol.config import Settings
from ondol.errors import UserError
from ondol.monitoring.retraining import pause, read_loop
from ondol.orchestration.alerts import alert, waiting
from ondol.registry.bundles import drop_bundle, find_bundle, open_bundle, write_bundle
from ondol.registry.champion import move_champion, read_champion, require_champion, restore_champion
from ondol.registry.rollout import running_rollout, start_rollout, take_step
from ondol.retention import find_garbage
from ondol.snapshots.snapshots import Snapshots
from ondol.storage import remote_files
from ondol.storage.files import read_json, write_json
from ondol.storage.log_upload import ONE_TRY, Shipper, keep_in_sync
from ondol.storage.remote_files import Objects
from ondol.storage.store import Mirror, Store, fetch_log, is_deciding, is_record, open_store
from ondol.validation.results import Latest, Validation, Validations

ADDRESS = "s3://lake/상점/churn"
ROWS: list[Row] = [("a", 0, 1.0), ("나", 1, 2.0), ("c", 2, 3.0)]


class Host:
    """A machine with a checkout of its own."""

    def __init__(self, root: Path, address: str = ADDRESS) -> None:
        self.settings = Settings(
            root=root, store=address, data={"watermark": "changed"}, fetch={"retries": 0, "timeout_seconds": 30}
        )  # type: ignore[arg-type]

    @property
    def stale(self) -> Store:
        """The store, its mirror as it is."""
        return open_store(self.settings)

    @property
    def store(self) -> Store:
        """The store as the next command has it."""
        self.stale.refresh()
        return self.stale

    @property
    def folder(self) -> Path:
        """The mirror."""
        return self.stale.folder

    def forget(self) -> None:
        shutil.rmtree(self.folder)

    def deploy(self, version: str, expected: Any = "any bundle") -> Any:
        bundle = write_bundle(self.store, version, files(version))
        move_champion(self.stale, bundle, "deploy", "a test", expected)
        return bundle


def files(version: str) -> dict[str, bytes]:
    meta = json.dumps({"name": "t", "run_id": f"run {version}"}).encode()
    return {"model.onnx": version.encode() * 1000, "contract.json": b"{}", "meta.json": meta}


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ondol.snapshots.snapshots.ROW_GROUP", 4)


@pytest.fixture(params=["s3", "file"])
def hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Host]:
    """Make hosts of one store: in S3, and in a store that has no conditions."""
    if request.param == "s3":
        request.getfixturevalue("bucket")
        return lambda name: Host(tmp_path / name)
    return lambda name: Host(tmp_path / name, f"file://{tmp_path}/elsewhere/상점")


@pytest.fixture
def two(bucket: Any, tmp_path: Path) -> tuple[Host, Host]:
    return Host(tmp_path / "a"), Host(tmp_path / "b")


# What one host publishes, another finds.


def test_a_snapshot_that_one_host_grew_is_grown_on_by_another(hosts):
    one, other = hosts("a"), hosts("b")
    one.stale.refresh()
    table = Table(ROWS)
    first = grow(one.settings, CONTRACT, table)
    table.rows = [*ROWS, ("d", 3, 4.0), ("a", 4, 9.0)]
    other.stale.refresh()
    second = grow(other.settings, CONTRACT, table)
    assert second.parent == first.digest
    one.stale.refresh()
    assert sorted(rows_of(one.settings, Snapshots(one.stale).get(second.digest))) == sorted(table.rows[1:])


def test_bundle_and_champion_reach_another_host_and_go_back_there(hosts):
    one, other = hosts("a"), hosts("b")
    for version in ("1", "2"):
        one.deploy(version)
    champion = read_champion(other.store)
    assert champion is not None and champion.version == "2"
    bundle = open_bundle(other.stale, previous_bundle(champion))
    assert (bundle.path / "model.onnx").read_bytes() == files("1")["model.onnx"]
    move_champion(other.stale, bundle, "rollback", "night")
    assert read_champion(one.store).version == "1"
    assert [change.action for change in read_champion(one.stale).history] == ["deploy", "deploy", "rollback"]


def test_a_rollout_reaches_another_host_after_the_bundle_that_it_names(hosts, monkeypatch):
    one, other = hosts("a"), hosts("b")
    one.deploy("1")
    other.stale.refresh()
    challenger = write_bundle(one.stale, "2", files("2"))
    start_rollout(one.stale, challenger, require_champion(one.stale), "canary", (0.5, 1.0), "a test")
    order, replace = [], Path.replace

    def note(path: Path, target: Path) -> Path:
        order.append(Path(target).name)
        return replace(path, target)

    monkeypatch.setattr("ondol.storage.store.Path.replace", note)
    other.stale.look(other.folder / "rollout.json")
    assert {"model.onnx", "meta.json"} < set(order) and order[-1] in (".tags.json", "rollout.json")
    assert order.index("rollout.json") > order.index("model.onnx")
    rollout = running_rollout(other.stale)
    assert rollout is not None and open_bundle(other.stale, rollout.bundle).digest == rollout.digest
    take_step(other.stale, rollout, "from another host")
    with pytest.raises(UserError, match="changed in the meantime"):
        take_step(one.stale, rollout, "too late")


def test_quarantined_rows_come_when_they_are_read(hosts):
    one, other = hosts("a"), hosts("b")
    with Validations(one.store).quarantine("v", pa.schema([("x", pa.int64())])) as quarantine:
        quarantine.add(pa.table({"x": [7]}), [3], pa.array([["bad"]]))
        quarantine.finish(Validation(id="v", snapshot="s", rows=9, bad=1, reasons={"x: bad": 1}))
    found = Validations(other.store)
    assert found.get("v").bad == 1
    assert not list(found.folder.glob("*.parquet"))
    assert found.bad_rows("v").tolist() == [3]


def test_what_is_removed_on_one_host_is_gone_on_the_other(hosts):
    one, other = hosts("a"), hosts("b")
    one.store.write_json(one.folder / "verdicts" / "1.json", {"x": 1})
    assert read_json(other.store.folder / "verdicts" / "1.json") == {"x": 1}
    one.stale.remove(one.folder / "verdicts" / "1.json")
    assert read_json(other.store.folder / "verdicts" / "1.json") is None
    bundle = write_bundle(one.stale, "1", files("1"))
    assert find_bundle(other.store, bundle.name)
    drop_bundle(one.stale, bundle)
    assert find_bundle(one.store, bundle.name) is None


def test_the_mirror_may_go_at_any_time(hosts):
    one = hosts("a")
    bundle = one.deploy("1")
    made = grow(one.settings, CONTRACT, Table(ROWS))
    Latest(one.stale).set("ingest", made.digest)
    one.forget()
    assert open_bundle(one.store, bundle.name).digest == bundle.digest
    assert read_champion(one.stale).bundle == bundle.name
    assert rows_of(one.settings, Snapshots(one.stale).get(Latest(one.stale).get("ingest"))) == ROWS
    assert grow(one.settings, CONTRACT, Table(ROWS)) == made


def test_only_what_changed_is_brought_again(hosts, monkeypatch):
    one, other = hosts("a"), hosts("b")
    for number in range(20):
        one.store.write_json(one.folder / "verdicts" / f"{number}.json", number)
    one.deploy("1")
    other.stale.refresh()
    got: list[str] = []
    get = Objects.get
    monkeypatch.setattr(Objects, "get", lambda self, name, path: got.append(name) or get(self, name, path))
    other.stale.refresh()
    one.stale.refresh()
    assert got == []
    one.stale.write_json(one.folder / "verdicts" / "7.json", "new")
    other.stale.refresh()
    assert got == ["verdicts/7.json"]


def test_a_part_that_another_host_collected_is_uploaded_again(two):
    one, other = two
    batches = pa.table({"x": [1, 2, 3]}).to_batches()
    made = Snapshots(one.store).write(batches, "s", "f")
    assert Snapshots(other.store).by_fingerprint("f") == made
    for path in (f"{made.digest}.json", "sources/f.json", f"{made.digest}.parquet"):
        other.stale.remove(other.folder / "snapshots" / path)
    snapshots = Snapshots(one.store)
    assert snapshots.parts.place(made.digest).exists() and snapshots.by_fingerprint("f") is None
    snapshots.write(batches, "s", "f")
    other.forget()
    assert len(list(Snapshots(other.store).batches(made.digest, ["x"]))) == 1


def test_garbage_of_the_last_day_stays_in_the_store(hosts):
    one, other = hosts("a"), hosts("b")
    part = Snapshots(one.store).parts.write(pa.table({"x": [1]}).to_batches())
    assert part is not None and find_garbage(other.store, set(), set()).files == ()


def test_garbage_goes_from_the_store_also_where_this_host_never_had_it(hosts, monkeypatch):
    monkeypatch.setattr("ondol.retention.YOUNG_SECONDS", 0)
    one, other = hosts("a"), hosts("b")
    old = Snapshots(one.store).write(pa.table({"x": [1]}).to_batches(), "s", "1")
    time.sleep(1.1)  # `created` is in seconds
    new = Snapshots(one.stale).write(pa.table({"x": [2]}).to_batches(), "s", "2")
    garbage = find_garbage(other.store, set(), set())
    assert [snapshot.digest for snapshot in garbage.snapshots] == [old.digest]
    assert garbage.size > 0
    garbage.remove()
    one.forget()
    folder = one.folder / "snapshots"
    assert list(one.store.sizes(folder, "*.parquet")) == [folder / f"{new.digest}.parquet"]
    assert Snapshots(one.stale).by_fingerprint("2") == new and Snapshots(one.stale).by_fingerprint("1") is None


# Of two hosts that change the same at once, one is refused.


def test_of_two_hosts_that_move_the_champion_one_is_refused(hosts):
    one, other = hosts("a"), hosts("b")
    one.deploy("1")
    theirs = write_bundle(other.store, "2", files("2"))
    ours = write_bundle(one.store, "3", files("3"))
    move_champion(one.stale, ours, "promote", "first")
    with pytest.raises(
        UserError, match=r"champion\.json was changed by another host in the meantime: run the command again"
    ):
        move_champion(other.stale, theirs, "promote", "second")
    assert read_champion(other.store).version == "3"
    move_champion(other.stale, theirs, "promote", "again")
    assert [change.why for change in read_champion(one.store).history] == ["a test", "first", "again"]


def test_of_many_that_make_the_first_champion_at_the_same_moment_one_does(bucket, tmp_path):
    hosts = [Host(tmp_path / str(i)) for i in range(6)]
    bundles = [write_bundle(host.store, str(i), files(str(i))) for i, host in enumerate(hosts)]
    begin, said = threading.Barrier(len(hosts)), []

    def move(place: int) -> None:
        begin.wait()
        try:
            move_champion(hosts[place].stale, bundles[place], "deploy", "race")
            said.append(bundles[place].name)
        except UserError as error:
            assert "another host" in str(error)

    threads = [threading.Thread(target=move, args=(i,)) for i in range(len(hosts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 1
    assert {read_champion(host.store).bundle for host in hosts} == set(said)


def test_of_two_ingests_at_once_one_is_refused_and_nothing_is_lost(hosts):
    one, other = hosts("a"), hosts("b")
    one.stale.refresh()
    other.stale.refresh()
    table = Table(ROWS)
    grow(one.settings, CONTRACT, table)
    with pytest.raises(UserError, match="changed by another host"):
        grow(other.settings, CONTRACT, Table([*ROWS, ("z", 9, 9.0)]))
    other.stale.refresh()
    made = grow(other.settings, CONTRACT, Table([*ROWS, ("z", 9, 9.0)]))
    assert sorted(rows_of(other.settings, made)) == sorted([*ROWS, ("z", 9, 9.0)])


def test_the_loop_is_not_paused_over_what_another_host_noted(hosts):
    one, other = hosts("a"), hosts("b")
    pause(one.store, "audit")
    with pytest.raises(UserError, match="another host"):
        pause(other.stale, "mine")
    assert read_loop(other.store).paused.why == "audit"


def test_a_champion_that_another_host_named_since_is_not_put_back(two):
    one, other = two
    before = one.deploy("1") and read_champion(one.stale)
    failed = one.deploy("2")
    other.deploy("3")
    restore_champion(one.stale, failed.name, before)
    assert read_champion(other.store).version == "3"
    last = other.deploy("4")
    restore_champion(other.stale, last.name, read_champion(one.store))
    assert read_champion(one.store).version == "4"  # what is put back is the champion as it is named


@pytest.mark.parametrize(
    ("name", "record", "deciding"),
    [
        ("champion.json", True, True),
        ("rollout.json", True, True),
        ("snapshots/lines/a.json", True, True),
        ("snapshots/mended/a.json", True, True),
        ("snapshots/mended/made/a.json", True, False),
        ("snapshots/a.json", True, False),
        ("bundles/1-a/champion.json", True, False),
        ("snapshots/a.parquet", False, False),
        ("log/a.json", False, False),
        (".tags.json", False, False),
        ("verdicts/.tmp-1/a.json", False, False),
    ],
)
def test_which_files_are_kept_up_to_date_and_which_decide(name, record, deciding):
    assert (is_record(name), is_deciding(name)) == (record, deciding)


# After a kill at any point, nothing is lost and every reference is valid.


class Killed(BaseException):
    """The process was killed."""


class Faults:
    """Lets one call of the store fail, before it is made or after, when its answer is lost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.at, self.late, self.error = 0, -1, False, Killed()
        ask = Objects._retry

        def faulty(this: Objects, *words: Any, **named: Any) -> Any:
            self.calls += 1
            fails = self.calls == self.at
            if fails and not self.late:
                raise self.error
            try:
                return ask(this, *words, **named)
            finally:
                if fails:
                    raise self.error

        monkeypatch.setattr(Objects, "_retry", faulty)

    def arm(self, at: int, late: bool, error: BaseException) -> None:
        self.calls, self.at, self.late, self.error = 0, at, late, error


def work(host: Host, table: Table) -> None:
    """What a run does to the store."""
    store = host.store
    snapshot = grow(host.settings, CONTRACT, table)
    Latest(store).set("ingest", snapshot.digest)
    with Validations(store).quarantine("v", pa.schema([("x", pa.int64())])) as quarantine:
        quarantine.add(pa.table({"x": [7]}), [3], pa.array([["bad"]]))
        quarantine.finish(Validation(id="v", snapshot=snapshot.digest, rows=9, bad=1, reasons={}))
    bundle = write_bundle(store, "2", files("2"))
    champion = read_champion(store)
    if champion is None or champion.bundle != bundle.name:
        move_champion(store, bundle, "deploy", "work")
    old = write_bundle(store, "0", files("0"))
    drop_bundle(store, old)


def require_whole(host: Host) -> None:
    """Check on a machine that has nothing that all that is named is there."""
    store = host.store
    snapshots = Snapshots(store)
    for path in (store.folder / "snapshots").glob("*.json"):
        assert snapshots.is_whole(snapshots.get(path.stem))
    for path in (store.folder / "snapshots" / "lines").glob("*.json"):
        rows = rows_of(host.settings, snapshots.get(read_json(path)["snapshot"]))
        assert len({row[0] for row in rows}) == len(rows)
    for path in (store.folder / "quarantine").glob("*.json"):
        assert Validations(store).bad_rows(path.stem).tolist() == [3]
    champion = read_champion(store)
    assert champion is not None and open_bundle(store, champion.bundle).digest == champion.digest
    if ingested := (read_json(store.folder / "latest.json") or {}).get("ingest"):
        snapshots.get(ingested)


@pytest.mark.parametrize(
    ("late", "error"),
    [
        pytest.param(False, UserError("The store is away."), id="failed before"),
        pytest.param(True, Killed(), id="killed after"),
        pytest.param(True, UserError("The store is away."), id="failed after", marks=pytest.mark.slow),
        pytest.param(False, Killed(), id="killed before", marks=pytest.mark.slow),
    ],
)
def test_whichever_call_of_the_store_fails_nothing_is_lost(hosts, tmp_path, monkeypatch, late, error):
    faults = Faults(monkeypatch)
    at, step = 0, 1 if "file://" in hosts("x").settings.store else 6  # over HTTP each takes a second or more
    while True:
        at += step
        address = f"{hosts('x').settings.store}/{at}"
        host = Host(tmp_path / str(at), address)
        host.deploy("1")
        grow(host.settings, CONTRACT, Table(ROWS))
        table = Table([*ROWS, ("a", 5, 7.0), ("e", 6, 8.0)])
        faults.arm(at, late, error)
        try:
            work(host, table)
            break  # fewer calls than `at`: all were tried
        except (Killed, UserError):
            faults.arm(-1, False, error)
        require_whole(Host(tmp_path / f"{at} other", address))
        work(host, table)
        other = Host(tmp_path / f"{at} third", address)
        require_whole(other)
        assert read_champion(other.stale).version == "2"
        assert find_bundle(other.stale, host_bundle(host, "0")) is None
        latest = Snapshots(other.stale).get(Latest(other.stale).get("ingest"))
        assert sorted(rows_of(other.settings, latest)) == sorted(table.rows[1:])
    assert at > 20


def host_bundle(host: Host, version: str) -> str:
    """Name the bundle of a version that is not there any more."""
    bundle = write_bundle(Store(host.settings.root / "aside"), version, files(version))
    return bundle.name


def test_a_killed_process_between_upload_and_rename_leaves_what_the_next_takes_up(two, monkeypatch):
    one, other = two
    one.deploy("1")
    bundle = write_bundle(one.stale, "2", files("2"))
    rename = Path.replace

    def die_at_the_champion(path: Path, target: Path) -> Path:
        if Path(target).name == "champion.json":
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as context:
        context.setattr("ondol.storage.files.Path.replace", die_at_the_champion)
        with pytest.raises(Killed):
            move_champion(one.stale, bundle, "promote", "killed")
    assert read_champion(one.stale).version == "1"
    assert read_champion(one.store).version == "2" == read_champion(other.store).version


def test_an_answer_that_was_lost_is_not_a_conflict(two, monkeypatch):
    one, _ = two
    one.deploy("1")
    put, tries = remote_files._put_s3, []

    def lost(*words: Any) -> str:
        tag = put(*words)
        tries.append(tag)
        if len(tries) == 1:
            raise ConnectionError("cut")
        return tag

    monkeypatch.setattr(remote_files, "_put_s3", lost)
    monkeypatch.setattr("ondol.storage.remote_files.PAUSE_SECONDS", 0.01)
    host = Host(one.settings.root)
    mirror = Mirror(one.folder, Objects(ADDRESS, host.settings.fetch.model_copy(update={"retries": 2})))
    made = write_file(one.folder.parent / "made", b'{"bundle": null}')
    mirror.publish(made, one.folder / "champion.json")
    assert len(tries) == 2 and read_champion(one.store) is None


def write_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# What cannot be reached is one sentence.


def sentence(host: Host, act: Callable[[Store], Any] = Store.refresh) -> str:
    with pytest.raises(UserError) as caught:
        act(host.stale)
    said = str(caught.value)
    assert "\n" not in said and said.endswith(".") and "planted" not in said
    return said


def test_missing_bucket_credentials_and_network_are_reported(bucket, tmp_path, monkeypatch):
    assert "bucket does not exist" in sentence(Host(tmp_path, "s3://no-such-lake/x"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert f'"{ADDRESS}" cannot be read: the host cannot be reached' in sentence(Host(tmp_path / "b"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert "no credentials" in sentence(Host(tmp_path / "c"))


def test_a_failed_write_is_reported_and_leaves_no_local_file(two, monkeypatch):
    one, _ = two
    one.deploy("1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    cut = Host(one.settings.root / "again")
    said = sentence(cut, lambda store: store.write_json(store.folder / "latest.json", {}))
    assert "cannot be written" in said
    assert not (cut.folder / "latest.json").exists()


def test_a_bundle_that_cannot_be_reached_is_not_taken_for_missing(two, monkeypatch):
    """Else the gates would decide without the champion."""
    one, other = two
    bundle = one.deploy("1")
    other.stale.refresh()
    shutil.rmtree(other.folder / "bundles")
    monkeypatch.setattr(Objects, "_retry", lambda *_, **__: (_ for _ in ()).throw(UserError("The store is away.")))
    assert sentence(other, lambda store: find_bundle(store, bundle.name)) == "The store is away."


@pytest.mark.parametrize(
    ("address", "package", "extra"), [("gs://lake/x", "gcsfs", "gcs"), ("az://lake/x", "adlfs", "azure")]
)
def test_missing_library_is_named(tmp_path, monkeypatch, address, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    assert f'by {package}, which is not installed: run `uv add "ondol[{extra}]"`' in sentence(Host(tmp_path, address))


def test_an_address_keeps_its_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED", "planted-password")
    assert "nosuch" in sentence(Host(tmp_path, "nosuch://${PLANTED}/x"))
    said = sentence(Host(tmp_path, "s3://me:planted-secret@lake/x"))
    assert "plain text" in said


def test_a_web_server_is_not_a_store(tmp_path):
    with pytest.raises(ValueError, match="a web server cannot be a store"):
        Settings(root=tmp_path, store="https://example.org/x")


def test_a_store_in_a_folder_imports_nothing_of_it(tmp_path):
    code = (
        "import sys; from pathlib import Path; from ondol.config import Settings;"
        "from ondol.storage.store import open_store;"
        f"store = open_store(Settings(root=Path({str(tmp_path)!r}))); store.write_json(store.folder / 'x.json', 1);"
        "store.refresh();"
        "assert not {'fsspec', 's3fs', 'tenacity'} & set(sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ML_STORE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_opening_a_store_connects_to_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from ondol.config import Settings;"
        "from ondol.storage.store import open_store;"
        f"settings = Settings(root=Path({str(tmp_path)!r}), store={ADDRESS!r});"
        "assert open_store(settings).remote is open_store(settings).remote;"
        "assert not {'fsspec', 's3fs'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_is_written_into_a_mirror_past_its_store(tmp_path):
    settings = Settings(root=tmp_path, store=ADDRESS)
    folder = open_store(settings).folder
    with pytest.raises(RuntimeError, match="write it through its Store"):
        write_json(folder / "x.json", 1)
    with pytest.raises(RuntimeError, match="mirrors a remote store"):
        Store(folder)
    assert not list(folder.glob("*.json"))


def test_alerts_wait_on_the_host_that_raised_them(two):
    one, other = two
    alert(one.settings, "run-failed", "It failed.", "Look.")
    assert len(waiting(one.settings)) == 1 and not waiting(other.settings)
    other.stale.refresh()
    assert not waiting(other.settings)


# A service's folder follows the store.


@pytest.fixture
def followed(two: tuple[Host, Host], tmp_path: Path) -> Iterator[tuple[Host, Path, list[str]]]:
    """A host that deploys, and the folder of a service elsewhere that follows; with what the follower says."""
    stop, said = threading.Event(), []
    folder = tmp_path / "service"
    mirror = Mirror(folder, Objects(ADDRESS, ONE_TRY))
    thread = threading.Thread(target=keep_in_sync, args=(mirror, 10**9, stop, said.append))
    thread.start()
    yield two[0], folder, said
    stop.set()
    thread.join()


def wait_until(check: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_followers_folder_gets_the_champion_after_its_bundle(followed):
    host, folder, said = followed
    for version in ("1", "2"):
        bundle = host.deploy(version)
        wait_until(lambda name=bundle.name: (read_json(folder / "champion.json") or {}).get("bundle") == name)
        assert open_bundle(Store(folder), bundle.name).digest == bundle.digest
    assert said == []


def test_an_outage_is_reported_once_and_survived(two, tmp_path, monkeypatch):
    host, _ = two
    bundle = host.deploy("1")
    away, ask = threading.Event(), Objects._retry

    def maybe(this: Objects, *words: Any, **named: Any) -> Any:
        if away.is_set():
            raise UserError("The store is away.")
        return ask(this, *words, **named)

    monkeypatch.setattr(Objects, "_retry", maybe)
    monkeypatch.setattr("ondol.storage.log_upload.EACH_SECONDS", 0.01)
    away.set()
    stop, said = threading.Event(), []
    mirror = Mirror(tmp_path / "service", Objects(ADDRESS, ONE_TRY))
    thread = threading.Thread(target=keep_in_sync, args=(mirror, 10**9, stop, said.append))
    thread.start()
    wait_until(lambda: said)
    time.sleep(0.2)
    away.clear()
    wait_until(lambda: len(said) == 2)
    wait_until((mirror.folder / "champion.json").exists)
    stop.set()
    thread.join()
    assert said == ["The store is away. The service continues with what it has.", "The store answers again."]
    assert open_bundle(Store(mirror.folder), bundle.name)


def log_file(folder: Path, name: str, *lines: str) -> Path:
    path = folder / "log" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(f"{line}\n".encode() for line in lines))
    return path


def test_log_files_go_up_and_come_down_where_they_are_needed(two):
    service, monitor = two
    shipper = Shipper(service.stale.remote, 10**9)
    began = datetime.now(UTC)
    path = log_file(service.folder, "20260101T000000-h-1-1", "one")
    shipper.step()
    fetch_log(monitor.stale, began)
    copy = monitor.folder / "log" / path.name
    assert copy.read_bytes() == b"one\n"
    with path.open("ab") as file:
        file.write("둘\nhalf".encode())
    shipper.step()  # not due yet
    assert monitor.stale.has(copy)
    fetch_log(monitor.stale, began)
    assert copy.read_bytes() == b"one\n"
    shipper.step(all_of_it=True)
    fetch_log(monitor.stale, began)
    assert copy.read_bytes() == "one\n둘\n".encode()
    log_file(service.folder, "20260102T000000-h-1-2", "old")
    shipper.step()
    fetch_log(monitor.stale, began + timedelta(hours=1))
    assert not (monitor.folder / "log" / "20260102T000000-h-1-2.jsonl").exists()


def test_a_followers_end_ships_what_was_logged_last(two, tmp_path):
    _, monitor = two
    stop = threading.Event()
    mirror = Mirror(tmp_path / "service", Objects(ADDRESS, ONE_TRY))
    thread = threading.Thread(target=keep_in_sync, args=(mirror, 10**9, stop, print))
    thread.start()
    path = log_file(mirror.folder, "20260101T000000-h-1-1", "one")
    wait_until(lambda: mirror.objects.list("log"))
    log_file(mirror.folder, "20260101T000000-h-1-1", "one", "two")
    stop.set()
    thread.join()
    fetch_log(monitor.stale, datetime.now(UTC))
    assert (monitor.folder / "log" / path.name).read_bytes() == b"one\ntwo\n"


def test_the_stores_log_is_bounded_and_what_it_let_go_goes_elsewhere(two):
    service, monitor = two
    shipper = Shipper(service.stale.remote, 10)
    now = datetime.now(UTC)
    first = log_file(service.folder, "20260101T000000-h-1-1", "12345678")
    shipper.step()
    fetch_log(monitor.stale, now)
    assert (monitor.folder / "log" / first.name).exists()
    first.unlink()  # the service rotated
    log_file(service.folder, "20260102T000000-h-1-2", "12345678")
    shipper.step()
    fetch_log(monitor.stale, now)
    names = [path.name for path in (monitor.folder / "log").iterdir()]
    assert names == ["20260102T000000-h-1-2.jsonl"]
