"""The prediction log: what a record says, its files, and what happens when the disk takes nothing."""

import fcntl
import hashlib
import hmac
import json
import logging
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from service_server import mount_disk
from service_support import ROW, bundle_files, describe, write_bundle

from ondol_serving.bundle import BundleError, load_bundle
from ondol_serving.contract import read_contract
from ondol_serving.log import (
    Answered,
    Failed,
    PredictionLog,
    Recorder,
    _warn_of_missing_key,
    open_log_file,
    remove_oldest,
)
from ondol_serving.metrics import counters
from ondol_serving.request import compile_request
from ondol_serving.settings import Rules, read_rules

PREDICTIONS = '[{"label":"예","probabilities":{"예":0.75}}]'.encode()


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What the service logs; BentoML's logger does not propagate."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("bentoml.service").addHandler(handler)
    yield lines
    logging.getLogger("bentoml.service").removeHandler(handler)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KB, where this user may mount one."""
    with mount_disk(tmp_path / "disk", "256k") as folder:
        yield folder


AT = "2026-01-31T09:30:00.000000+00:00"


def contract_with(*roles: str, ids: bool = True) -> Any:
    """Return the contract of the tests; the columns named in `roles` are sensitive."""
    document = describe()
    for column in document["columns"]:
        if column["name"] in roles:
            column["role"] = "sensitive"
    if not ids:
        document["columns"] = [c for c in document["columns"] if c["role"] != "id"]
    return read_contract(document)


def answered(contract: Any, body: bytes) -> Answered:
    """Return what the service logs of a valid body."""
    request: Any = compile_request(contract, 100).model_validate_json(body)
    keys = 1 + sum(len(row.model_fields_set) for row in request.rows)
    return Answered("a1b2", 0.4123, body, keys, PREDICTIONS)


def line_of(contract: Any, body: bytes, **rules: Any) -> bytes:
    return Recorder(contract, "3", Path("/store/bundles/3-abcdef012345"), Rules(**rules)).line(
        answered(contract, body), AT
    )


def logged_request(contract: Any, body: bytes, **rules: Any) -> Any:
    line = line_of(contract, body, **rules)
    assert line.count(b"\n") == 1 and line.endswith(b"\n") and b"\r" not in line
    return json.loads(line, parse_constant=pytest.fail, object_pairs_hook=without_repetition)["request"]


def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names)), names
    return dict(pairs)


def to_body(*rows: dict[str, Any], **how: Any) -> bytes:
    return json.dumps({"rows": list(rows)}, **how).encode()


def test_record_says_what_was_asked_and_answered_by_which_bundle_when() -> None:
    assert json.loads(line_of(contract_with(), to_body(ROW))) == {
        "id": "a1b2",
        "at": AT,
        "version": "3",
        "bundle": "3-abcdef012345",
        "role": "champion",
        "ms": 0.412,
        "request": {"rows": [ROW]},
        "predictions": json.loads(PREDICTIONS),
    }


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"ensure_ascii": False},
        {"indent": 2},
        {"indent": "\t", "ensure_ascii": False, "separators": (" ,", " : ")},
        {"separators": (",", ":")},
    ],
)
def test_request_is_logged_as_it_came_however_it_was_written(how: dict[str, Any]) -> None:
    rows = [ROW | {"class": '줄\n바꿈\r\u2028 ": \\ 따옴표"', "고객 번호": {"any": [1, "ㄱ:"]}}, ROW]
    body = to_body(*rows, **how)
    assert logged_request(contract_with(), body) == {"rows": rows}
    assert logged_request(contract_with(), body.replace(b"\n", b"\r\n")) == {"rows": rows}


def test_bytes_of_a_plain_body_are_taken_over() -> None:
    body = to_body(ROW, ensure_ascii=False)
    for contract in (contract_with(), contract_with(ids=False)):
        assert body in line_of(contract, body)


@pytest.mark.parametrize("colon", [":", " :", "\n\t :", ": "])
def test_repeated_key_is_logged_once_with_the_value_that_was_used(colon: str) -> None:
    twice = to_body(ROW).decode().replace('"a.b/c?":', f'"a.b/c?"{colon} 7, "a.b/c?":').replace(":", colon, 1)
    for body in (twice, f'{{"rows": [], "rows"{colon} [{json.dumps(ROW)}]}}'):
        assert logged_request(contract_with(), body.encode()) == {"rows": [ROW]}


def test_absent_fields_do_not_hide_a_repeated_key() -> None:
    row = {k: v for k, v in ROW.items() if k not in ("class", "house age")}
    body = to_body(row).decode().replace('"a.b/c?":', '"a.b/c?": 7, "a.b/c?":').encode()
    assert logged_request(contract_with(), body) == {"rows": [row]}


def test_id_that_is_not_json_is_logged_as_missing() -> None:
    body = to_body(ROW | {"고객 번호": [float("nan"), float("-inf"), 1]})
    assert logged_request(contract_with(), body)["rows"][0]["고객 번호"] == [None, None, 1]


@pytest.mark.parametrize("sensitive", ["drop", "hash"])
def test_a_failure_quotes_no_value_where_columns_are_sensitive(monkeypatch: pytest.MonkeyPatch, sensitive: Any) -> None:
    monkeypatch.setenv("ML_LOG_KEY", "key")
    failed = Failed("a1b2", 0.4123, "challenger", ValueError("could not convert string to float: '홍길동'"))
    errors = []
    for roles in ((), ("class",)):
        recorder = Recorder(contract_with(*roles), "3", Path("/store/bundles/3"), Rules(sensitive=sensitive))
        errors.append(json.loads(recorder.failure_line(failed, AT))["error"])
    assert errors == ["ValueError: could not convert string to float: '홍길동'", "ValueError"]


@pytest.mark.parametrize("repeated", [False, True])
def test_sensitive_columns_are_left_out(repeated: bool) -> None:
    body = to_body(ROW | {"고객 번호": "c-1"}, ROW)
    if repeated:
        body = body.replace(b'"class":', b'"class": "seen", "cl\\u0061ss":')
    kept = {k: v for k, v in ROW.items() if k not in ("class", "house age")}
    line = line_of(contract_with("class", "house age"), body)
    assert json.loads(line)["request"] == {"rows": [kept | {"고객 번호": "c-1"}, kept]}
    assert b"seen" not in line and b"new" not in line


def test_sensitive_columns_are_hashed_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_LOG_KEY", "비밀")
    rows = [ROW | {"class": "서울시", "house age": 3}, ROW | {"class": " ", "house age": 3.0}, ROW | {"class": None}]
    logged = logged_request(contract_with("class", "house age", "model_config"), to_body(*rows), sensitive="hash")

    def digest(text: str) -> str:
        return hmac.new("비밀".encode(), text.encode(), hashlib.sha256).hexdigest()

    assert [r["class"] for r in logged["rows"]] == [digest("서울시"), None, None]
    assert [r["house age"] for r in logged["rows"]] == [digest("3.0"), digest("3.0"), digest("12.5")]
    assert logged["rows"][0]["model_config"] == digest("true")
    assert logged["rows"][0]["지역"] == ROW["지역"]


def test_without_a_key_hashed_columns_are_left_out_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    monkeypatch.delenv("ML_LOG_KEY", raising=False)
    _warn_of_missing_key.cache_clear()
    for _ in range(2):
        logged = logged_request(contract_with("class"), to_body(ROW), sensitive="hash")
        assert "class" not in logged["rows"][0]
    assert len(messages) == 1 and "ML_LOG_KEY" in messages[0]


def test_environment_overrides_the_bundle_and_the_bundle_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_LOG__ENABLED", "false")
    monkeypatch.setenv("ML_LOG__KEEP_BYTES", "")
    rules = read_rules({"enabled": True, "keep_bytes": 7, "of a later release": 1})
    assert rules == Rules(enabled=False, keep_bytes=7)
    monkeypatch.setenv("ML_LOG__SENSITIVE", "hsah")
    with pytest.raises(ValueError, match="ML_LOG__SENSITIVE is 'hsah'"):
        read_rules({})


def test_service_and_project_have_the_same_defaults() -> None:
    from ondol.config import Log

    assert Log().model_dump() == Rules().model_dump()


def test_bundle_with_a_wrong_log_setting_is_refused_in_one_sentence(tmp_path: Path) -> None:
    settings = {"log": {"file_bytes": 0}}
    name, digest = write_bundle(tmp_path, bundle_files("1", "binary", b"", settings=settings))
    with pytest.raises(BundleError, match="ML_LOG__FILE_BYTES is 0"):
        load_bundle(tmp_path / "bundles" / name, digest)


class Writer:
    """A log as one process has it, and a bundle whose answers it keeps."""

    def __init__(self, store: Path, monkeypatch: pytest.MonkeyPatch, **rules: Any) -> None:
        monkeypatch.setenv("ML_STORE", str(store))
        self.folder = store / "log"
        self.log = PredictionLog()
        self.contract = contract_with()
        self.recorder = Recorder(self.contract, "3", Path("3-abc"), Rules(**rules))

    def write(self, request_id: str, padding: int = 0) -> None:
        body = to_body(ROW | {"고객 번호": "x" * padding})
        self.log.append(self.recorder, [answered(self.contract, body)._replace(request_id=request_id)])

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"), key=lambda p: (p.stat().st_mtime_ns, p.name))

    def ids(self) -> list[str]:
        return [json.loads(line)["id"] for path in self.files() for line in path.read_bytes().splitlines()]


@pytest.fixture
def make_writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Writer]]:
    made: list[Writer] = []

    def make(store: Path, **rules: Any) -> Writer:
        made.append(Writer(store, monkeypatch, **rules))
        return made[-1]

    yield make
    for writer in made:
        writer.log.close()


def dropped() -> float:
    value: float = counters().dropped._value.get()
    return value


def test_record_is_in_the_file_when_it_was_appended(tmp_path: Path, make_writer: Callable[..., Writer]) -> None:
    writer = make_writer(tmp_path)
    writer.write("a")
    assert writer.ids() == ["a"]
    at = datetime.fromisoformat(json.loads(writer.files()[0].read_bytes())["at"])
    assert at.utcoffset() == timedelta(0) and abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    stamp, host, pid, number = writer.files()[0].stem.split("-", 1)[0], *writer.files()[0].stem.rsplit("-", 2)
    assert datetime.strptime(stamp, "%Y%m%dT%H%M%S") and host.startswith(stamp)
    assert (pid, number) == (str(os.getpid()), "1")


def test_full_file_is_followed_by_the_next(tmp_path: Path, make_writer: Callable[..., Writer]) -> None:
    writer = make_writer(tmp_path, file_bytes=3000)
    names = [str(number) for number in range(20)]
    for name in names:
        writer.write(name)
    writer.write("larger than a file", padding=5000)
    writer.write("last")
    sizes = [path.stat().st_size for path in writer.files()]
    assert sorted(writer.ids()) == sorted([*names, "larger than a file", "last"])
    assert len(sizes) > 4 and [s for s in sizes if s > 3000] == sizes[-2:-1]


def test_oldest_files_are_removed_above_what_is_kept_but_none_that_is_being_written(
    tmp_path: Path, make_writer: Callable[..., Writer]
) -> None:
    (tmp_path / "log").mkdir()
    oldest, live, closed = (tmp_path / "log" / f"2020010{n}T000000-h-1-1.jsonl" for n in (1, 2, 3))
    for path in (oldest, live, closed):
        path.write_bytes(b"x" * 4000)
    other = live.open("ab")
    fcntl.flock(other, fcntl.LOCK_EX)  # as the process that writes it does
    writer = make_writer(tmp_path, keep_bytes=9000)
    writer.write("a")
    assert (oldest.exists(), live.exists(), closed.exists()) == (False, True, True)
    remove_oldest(writer.folder, 0)
    assert (live.exists(), closed.exists()) == (True, False)
    other.close()
    remove_oldest(writer.folder, 0)
    writer.write("b")
    assert not live.exists() and writer.ids() == ["a", "b"]


def test_new_file_never_continues_one_that_is_there(tmp_path: Path) -> None:
    files = [open_log_file(tmp_path, 1) for _ in range(3)]
    for file in files:
        os.close(file)
    assert len(list(tmp_path.iterdir())) == 3


def test_log_continues_in_a_new_file_when_its_file_was_deleted(
    tmp_path: Path, make_writer: Callable[..., Writer]
) -> None:
    writer = make_writer(tmp_path)
    writer.write("a")
    writer.files()[0].unlink()
    writer.folder.rmdir()
    writer.write("b")
    assert writer.ids() == ["b"]


def test_unwritable_folder_drops_counts_and_reports_once_and_the_log_continues_later(
    tmp_path: Path, make_writer: Callable[..., Writer], messages: list[str]
) -> None:
    (tmp_path / "log").write_text("a file in the folder's place")
    writer, before = make_writer(tmp_path), dropped()
    for number in range(5):
        writer.write(str(number))
    assert dropped() == before + 5
    assert len(messages) == 1 and "ml_log_dropped_total" in messages[0]
    (tmp_path / "log").unlink()
    writer.write("a")
    assert writer.ids() == ["a"] and dropped() == before + 5
    assert "5 answers are missing" in messages[1]


def test_full_disk_leaves_only_complete_records_and_the_log_continues_when_there_is_space(
    small_disk: Path, make_writer: Callable[..., Writer], messages: list[str]
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 150_000)
    writer, before = make_writer(small_disk), dropped()
    for number in range(200):  # of 1 to 5 KB: some end in the middle
        writer.write(str(number), padding=1000 + number * 20)
    lost = int(dropped() - before)
    kept = writer.ids()
    assert 0 < lost < 200 and len(kept) == 200 - lost
    assert all(path.read_bytes().endswith(b"\n") for path in writer.files())
    assert len(messages) <= 3
    ballast.unlink()
    writer.write("after")
    assert writer.ids() == [*kept, "after"]


def test_record_that_cannot_be_built_is_dropped_and_counted_and_those_beside_it_are_written(
    tmp_path: Path, make_writer: Callable[..., Writer]
) -> None:
    writer, before = make_writer(tmp_path), dropped()
    good = answered(writer.contract, to_body(ROW))
    broken = good._replace(body=b"{", keys=1)
    writer.log.append(writer.recorder, [good._replace(request_id="a"), broken, good._replace(request_id="b")])
    assert dropped() == before + 1 and writer.ids() == ["a", "b"]


def test_records_that_cannot_be_built_do_not_let_the_log_say_that_it_continues(
    tmp_path: Path, make_writer: Callable[..., Writer], messages: list[str]
) -> None:
    writer, before = make_writer(tmp_path), dropped()
    broken = answered(writer.contract, to_body(ROW))._replace(body=b"{", keys=1)
    for _ in range(2):
        writer.log.append(writer.recorder, [broken])
    assert dropped() == before + 2 and writer.files() == []
    assert len(messages) == 1
    writer.write("a")
    assert "2 answers are missing" in messages[1]
