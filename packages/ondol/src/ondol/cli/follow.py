"""`ml follow`: keeps the folder of a service current where `ML_STORE` is an object store."""

import os
import signal
import sys
import threading
from pathlib import Path

from ondol.cli.console import console, open_project
from ondol.config import Settings, is_address
from ondol.errors import UserError
from ondol.orchestration.guard import Child
from ondol.storage.log_upload import PATIENCE, follow
from ondol.storage.objects import Objects
from ondol.storage.remote import Mirror


def follow_store(into: Path | None) -> None:
    """Follow the store until SIGTERM or SIGINT.

    Args:
        into: The folder that the service has as its `ML_STORE`; None for the project's own mirror.

    Raises:
        UserError: the store is a folder.
    """
    settings = open_project(stored=False)
    if not is_address(settings.store):
        raise UserError(f"The store is the folder {settings.store_path}: the service reads it itself.")
    folder = into.absolute() if into else settings.store_path
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    _say(f"{folder} follows {settings.store}.")
    folder.mkdir(parents=True, exist_ok=True)
    follow(Mirror(folder, Objects(settings.store, PATIENCE)), settings.log.keep_bytes, stop, _say)


def start_follower(settings: Settings) -> None:
    """Let the mirror be followed for as long as this process lives, whatever program it becomes."""
    command = [sys.executable, "-m", "ondol.cli", "follow"]
    child = Child(command, os.environ, settings.root, settings.home / "logs" / "follow.log")
    assert child.process.stdin is not None
    os.set_inheritable(child.process.stdin.fileno(), True)  # its end is the follower's


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
    sys.stdout.flush()
