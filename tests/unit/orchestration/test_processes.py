"""Background processes: what a record may stop, and what it must not."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from template_support import python_path

from ondol.cli.status import print_processes
from ondol.config import Settings, load_settings
from ondol.errors import UserError
from ondol.orchestration.guard import kill_all
from ondol.orchestration.processes import (
    TOKEN,
    ProcessRecord,
    choose_port,
    family,
    is_taken,
    listens,
    log_path,
    read_process_record,
    restarts_path,
    run_folder,
    running,
    start,
    stop,
    supervisor_of,
)
from ondol.orchestration.supervisor import RotatingLog
from ondol.services import stop_processes
from ondol.storage.files import read_json, write_json

ENV = {"PYTHONPATH": python_path()}
SLEEP = [sys.executable, "-u", "-c", "import time; print('here'); time.sleep(600)"]
# A child in a session of its own, as BentoML's workers are, and a grandchild that outlives its parent.
BROOD = [
    sys.executable,
    "-c",
    "import subprocess, sys, time\n"
    "subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
    "subprocess.run(['bash', '-c', 'setsid sleep 600 & disown'])\n"
    "time.sleep(600)",
]


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    (tmp_path / "config.toml").write_text('[project]\nname = "kept"\n', encoding="utf-8")
    made = load_settings(tmp_path)
    yield made
    for path in run_folder(made).glob("*.json"):
        record = read_process_record(made, path.stem)
        assert record
        stop(made, record)


@pytest.fixture
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def until(true: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def record_of(pid: int, token: str = "unknown") -> ProcessRecord:
    return ProcessRecord(name="service", pid=pid, token=token, port=1, command=("x",), since="2026")


def test_process_runs_in_a_session_of_its_own_and_is_recorded(settings: Settings) -> None:
    made = start(settings, "service", SLEEP, ENV, 3999)
    assert read_process_record(settings, "service") == made == running(settings, "service")
    assert made.address == "http://127.0.0.1:3999"
    assert os.getsid(made.pid) == made.pid != os.getsid(0)
    log = log_path(settings, "service")
    until(lambda: log.exists() and "here" in log.read_text(encoding="utf-8"))


def test_stop_takes_along_all_that_was_started(settings: Settings) -> None:
    made = start(settings, "service", BROOD, ENV)
    until(lambda: len(family(made)) == 4)  # supervisor, command, child, grandchild
    assert stop(settings, made)
    assert not family(made)
    assert read_process_record(settings, "service") is None


def test_what_a_killed_supervisor_leaves_behind_is_stopped(settings: Settings) -> None:
    made = start(settings, "service", BROOD, ENV)
    until(lambda: len(family(made)) == 4)
    psutil.Process(made.pid).kill()
    until(lambda: supervisor_of(made) is None)
    assert len(family(made)) == 3
    assert running(settings, "service") == made  # it keeps running without a supervisor
    assert stop(settings, made)
    assert not family(made)
    assert running(settings, "service") is None


def test_process_whose_starter_was_killed_before_it_could_record_it_is_stopped(settings: Settings) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import ondol.orchestration.processes as p\n"
        "from ondol.config import load_settings\n"
        "write = p._write\n"
        "def killed(settings, record):\n"
        "    if record.pid is not None:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(settings, record)\n"
        "p._write = killed\n"
        f"p.start(load_settings(Path(sys.argv[1])), 'service', {SLEEP!r}, {{}})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(settings.root)], env=os.environ | ENV, check=False)
    assert done.returncode == -9
    record = read_process_record(settings, "service")
    assert record and record.pid is None
    until(lambda: len(family(record)) == 2)  # supervisor and command
    assert running(settings, "service") == record
    assert stop(settings, record)
    assert not family(record)
    assert read_process_record(settings, "service") is None


def test_child_that_is_born_while_its_family_is_killed_dies_too(settings: Settings) -> None:
    made = start(settings, "service", SLEEP, ENV)
    born: list[subprocess.Popen[bytes]] = []

    def listed_before_a_birth() -> list[psutil.Process]:
        found = family(made)
        if len(born) < 2:
            child = subprocess.Popen(["sleep", "600"], env=os.environ | {TOKEN: made.token}, start_new_session=True)
            born.append(child)
        return found

    assert kill_all(listed_before_a_birth, 30) == []
    assert len(born) == 2
    assert not family(made)
    for child in born:
        child.wait()


def test_process_that_does_not_end_is_named_and_its_record_stays(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(settings, "service", SLEEP, ENV)
    with monkeypatch.context() as patch:
        patch.setattr("ondol.orchestration.processes.kill_all", lambda find, seconds: [psutil.Process()])
        with pytest.raises(
            UserError, match=rf"service is still running although it was killed \(process {os.getpid()}\)"
        ):
            stop_processes(settings)
    assert read_process_record(settings, "service") == made
    assert stop_processes(settings) is False  # it had ended after all


def test_killed_process_is_started_again_and_counted(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    made = start(settings, "service", SLEEP, ENV)
    supervisor = psutil.Process(made.pid)
    until(lambda: supervisor.children())
    [first] = supervisor.children()
    first.kill()
    until(lambda: [child for child in supervisor.children() if child.pid != first.pid])
    assert running(settings, "service") == made
    assert "ended with status -9" in log_path(settings, "service").read_text(encoding="utf-8")
    until(lambda: restarts_path(settings, "service").exists())
    assert read_json(restarts_path(settings, "service"))["count"] == 1
    print_processes(settings)
    assert "restarted once" in " ".join(capsys.readouterr().out.split())
    stop(settings, made)
    assert not restarts_path(settings, "service").exists()


def test_killed_brood_leaves_no_zombie_with_its_supervisor(settings: Settings) -> None:
    made = start(settings, "service", BROOD, ENV)
    until(lambda: len(family(made)) == 4)
    brood = [process for process in family(made) if process.pid != made.pid]
    for process in brood:
        process.kill()
    assert psutil.wait_procs(brood, timeout=30)[1] == []


def test_process_that_cannot_start_is_given_up(settings: Settings) -> None:
    start(settings, "service", [sys.executable, "-c", "raise SystemExit('no such thing')"], ENV)
    until(lambda: running(settings, "service") is None)
    assert "no such thing" in log_path(settings, "service").read_text(encoding="utf-8")


def test_stale_record_stops_no_stranger(settings: Settings, stranger: "subprocess.Popen[bytes]") -> None:
    """The number was given to somebody else since."""
    stale = record_of(stranger.pid)
    write_json(run_folder(settings) / "service.json", stale.model_dump())
    assert running(settings, "service") is None
    assert not stop(settings, stale)
    assert stranger.poll() is None
    assert read_process_record(settings, "service") is None


def test_process_of_another_user_is_known_by_its_command_after_any_clock_change(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, stranger: "subprocess.Popen[bytes]"
) -> None:
    """Its environment cannot be read, and its start time moves when the clock is set."""

    def refuse(self: psutil.Process) -> dict[str, str]:
        raise psutil.AccessDenied(self.pid)

    made = start(settings, "service", SLEEP, ENV, 3999)
    monkeypatch.setattr(psutil.Process, "environ", refuse)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 1.0)
    assert supervisor_of(made) is not None
    assert supervisor_of(made.model_copy(update={"pid": stranger.pid})) is None


def test_another_projects_process_is_a_stranger(settings: Settings) -> None:
    other = subprocess.Popen(["sleep", "600"], env=os.environ | {TOKEN: "of another project"})
    try:
        assert not stop(settings, record_of(other.pid))
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_record_without_a_process_is_harmless(settings: Settings) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert supervisor_of(record_of(ended.pid)) is None
    assert not stop(settings, record_of(ended.pid))


def test_port_in_use_gives_another_that_is_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = choose_port(port)
        assert other != port
    assert choose_port(port) == port


def test_port_is_held_by_the_record_or_taken_by_a_stranger(settings: Settings) -> None:
    """A server that answers there may be another project's, which took the port a moment earlier."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        lost = start(settings, "mlflow", SLEEP, ENV, port)
        assert (listens(lost), is_taken(lost)) == (False, True)
        stop(settings, lost)
    serve = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    ours = start(settings, "mlflow", serve, ENV, port)
    until(lambda: listens(ours))
    assert not is_taken(ours)


def test_log_never_exceeds_twice_its_limit(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "x.log", most=1_000)
    for number in range(500):
        log.write(f"line {number:04}\n".encode())
    log.file.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["x.log", "x.log.1"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2_000
    assert (tmp_path / "x.log").read_text(encoding="utf-8").endswith("line 0499\n")


def move_to(settings: Settings, folder: Path, *, copied: bool) -> Settings:
    (shutil.copytree if copied else shutil.move)(settings.root, folder)
    return load_settings(folder)


@pytest.fixture
def nested(settings: Settings) -> Settings:
    """A project in a folder that can be copied and moved; what still runs is ended by the fixture that it asks for."""
    root = settings.root / "project"
    root.mkdir()
    shutil.copy2(settings.root / "config.toml", root)
    return load_settings(root)


@pytest.mark.parametrize("older", [False, True], ids=["record of now", "record of 0.3.0"])
def test_copy_neither_uses_nor_stops_what_the_original_runs(
    nested: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], older: bool
) -> None:
    record = start(nested, "service", SLEEP, ENV)
    try:
        if older:
            path = run_folder(nested) / "service.json"
            write_json(path, {k: v for k, v in read_json(path).items() if k != "root"})
        copy = move_to(nested, tmp_path / "사본 with space", copied=True)
        assert running(copy, "service") is None
        print_processes(copy)
        assert "service" not in capsys.readouterr().out.replace("the service and", "")
        assert not stop_processes(copy)
        assert read_process_record(copy, "service") is None
        assert running(nested, "service") is not None
    finally:
        assert stop(nested, record)


def test_moved_project_stops_what_was_started_before(
    nested: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = start(nested, "service", SLEEP, ENV)
    moved = move_to(nested, tmp_path / "moved", copied=False)
    assert running(moved, "service") is None  # it uses files of the former folder
    print_processes(moved)
    assert "runs in the former" in capsys.readouterr().out  # the table wraps the rest
    assert stop_processes(moved)
    assert not family(record)
    assert read_process_record(moved, "service") is None
