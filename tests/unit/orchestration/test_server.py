"""The Prefect server of a command: who may open the project's database beside whom."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from template_support import REPOSITORY, python_path, repository_environment

from ondol.config import Settings, load_settings
from ondol.errors import UserError
from ondol.orchestration.guard import free_port
from ondol.orchestration.processes import start, stop
from ondol.orchestration.server import no_embedded_server
from ondol.services import plan

COMMAND = """
import sys
from pathlib import Path
from ondol.orchestration.environment import prepare
from ondol.orchestration.server import prefect_server
from ondol.config import load_settings
settings = load_settings(Path(sys.argv[1]))
prepare(settings)
with prefect_server(settings) as server:
    server.wait()
    print("its own" if server.child else server.url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "config.toml").write_text('[project]\nname = "shop"\n', encoding="utf-8")
    return load_settings(tmp_path)


@contextmanager
def command(settings: Settings) -> Iterator["subprocess.Popen[str]"]:
    """What `ml run`, `ml monitor` or `ml predict` are to the server: a process that has one and works."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(settings.root)],
        cwd=REPOSITORY,
        env=repository_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said_by(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def servers_of(settings: Settings) -> list[int]:
    """The Prefect servers that work in the project's folder."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        # The command lines of its guard and supervisor have it at a later position.
        command = process.info["cmdline"] or ()
        if process.info["cwd"] == str(settings.root) and list(command[1:3]) == ["-m", "uvicorn"]:
            found.append(process.pid)
    return found


def test_up_is_refused_until_every_embedded_server_has_ended(settings: Settings) -> None:
    with command(settings) as one, command(settings) as other:
        assert said_by(one) == said_by(other) == "its own"
        for process in (one, other):
            with pytest.raises(UserError, match="its own Prefect server"), no_embedded_server(settings):
                pass
            process.communicate("")
        assert not servers_of(settings)
    with no_embedded_server(settings):
        pass


def test_server_of_a_killed_command_is_gone_before_up_may_start_one(settings: Settings) -> None:
    with command(settings) as killed:
        assert said_by(killed) == "its own"
        assert servers_of(settings)
        killed.kill()
        wait_until(lambda: up_may_start(settings))


def up_may_start(settings: Settings) -> bool:
    try:
        with no_embedded_server(settings):
            assert not servers_of(settings)
            return True
    except UserError:
        return False


def test_command_that_waited_for_up_uses_the_server_of_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(settings.home / "prefect"))
    port = free_port()
    launch = plan("prefect", settings, port, "")
    with command(settings) as waiting:
        with no_embedded_server(settings):
            wait_until(lambda: waits_for_a_lock(waiting.pid))
            record = start(settings, "prefect", launch.command, launch.env | {"PYTHONPATH": python_path()}, port)
        try:
            assert said_by(waiting) == f"http://127.0.0.1:{port}/api"
            assert len(servers_of(settings)) == 1
        finally:
            stop(settings, record)


def waits_for_a_lock(pid: int) -> bool:
    return any(f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines() if "-> FLOCK" in line)


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not in {seconds} s"
        time.sleep(0.02)
