"""The project's lock: one run that changes the project at a time, whoever started it."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from template_support import REPOSITORY, repository_environment

from ondol.config import Settings, load_settings
from ondol.errors import UserError
from ondol.storage import store as exclusive
from ondol.storage.store import only_one

HOLD = """
import sys, time
from pathlib import Path
from ondol.storage.store import only_one
from ondol.config import load_settings
with only_one(load_settings(Path(sys.argv[1])), wait=False):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "config.toml").write_text('[project]\nname = "shop"\n', encoding="utf-8")
    return load_settings(tmp_path)


def hold(root: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)],
        cwd=REPOSITORY,
        env=repository_environment(),
        stdin=-1,
        stdout=-1,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def release(process: "subprocess.Popen[str]") -> None:
    process.communicate("")
    assert process.returncode == 0


def test_command_is_refused_at_once_while_another_process_is_at_work(settings: Settings) -> None:
    other = hold(settings.root)
    with pytest.raises(UserError, match=rf"process {other.pid}\): wait"), only_one(settings, wait=False):
        pass
    release(other)
    with only_one(settings, wait=False):
        pass


def test_workers_run_waits_for_its_turn(settings: Settings) -> None:
    other = hold(settings.root)
    told_to_end = threading.Event()

    def end_other() -> None:
        told_to_end.set()
        release(other)

    timer = threading.Timer(0.5, end_other)
    timer.start()
    with only_one(settings, wait=True):
        assert told_to_end.is_set()
    timer.join()


def test_workers_run_does_not_wait_for_ever(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive, "WAIT_SECONDS", 0.6)
    other = hold(settings.root)
    with pytest.raises(UserError, match="wait until it ends"), only_one(settings, wait=True):
        pass
    release(other)


def test_lock_of_a_killed_process_is_free(settings: Settings) -> None:
    other = hold(settings.root)
    other.kill()
    other.communicate()
    with only_one(settings, wait=False):
        pass


def test_stages_within_a_pipeline_hold_the_lock_already(settings: Settings) -> None:
    with only_one(settings, wait=False):
        with only_one(settings, wait=True):
            pass
        other = subprocess.run(
            [sys.executable, "-c", HOLD, str(settings.root)],
            cwd=REPOSITORY,
            env=repository_environment(),
            capture_output=True,
            text=True,
        )
        assert "wait until it ends" in other.stderr
    release(hold(settings.root))
