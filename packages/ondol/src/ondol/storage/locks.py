"""The project's lock: of two runs that train or deploy, the second waits or is refused."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from ondol.config import Settings, load_settings
from ondol.errors import UserError
from ondol.storage.files import locked, sweep
from ondol.storage.store import open_store

WAIT_SECONDS = 2 * 3600.0
POLL_SECONDS = 0.5
P = ParamSpec("P")
R = TypeVar("R")
_held: ContextVar[bool] = ContextVar("project_lock_held", default=False)


def exclusive(function: Callable[P, R]) -> Callable[P, R]:
    """Let `function`, the body of a flow, hold the project's lock and begin with the store's current records.

    A run of a worker waits for its turn. A command holds the lock before its flow begins, and does not wait.
    """

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        settings = load_settings()
        with only_one(settings, wait=True):
            open_store(settings).refresh()
            return function(*args, **kwargs)

    return alone


@contextmanager
def only_one(settings: Settings, *, wait: bool) -> Iterator[None]:
    """Hold the project's lock, which the system frees at the end of this process, even if it is killed.

    Raises:
        UserError: another process holds it; with `wait`, for more than two hours.
    """
    if _held.get():
        yield
        return
    path = settings.home / "lock"
    end = time.monotonic() + (WAIT_SECONDS if wait else 0)
    while True:
        with locked(path, wait=False) as mine:
            if mine:
                sweep(open_store(settings).folder, everywhere=True)
                token = _held.set(True)
                try:
                    yield
                finally:
                    _held.reset(token)
                return
        if time.monotonic() >= end:
            raise UserError(_occupied(path))
        time.sleep(POLL_SECONDS)


def _occupied(path: Path) -> str:
    number = path.read_text(encoding="utf-8")
    return f"Another run of this project is going on (process {number}): wait until it ends."
