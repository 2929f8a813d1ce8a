"""A home of its own for every BentoML process: it empties the metrics folder in its home whenever it starts."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ondol.config.settings import Settings

SHARED = ("bentos", "models")  # what an owner may have put into BentoML's own stores


def new_bento_home(settings: Settings) -> tuple[dict[str, str], list[int]]:
    """Make a home for a process that is about to start, and remove those whose process has ended.

    Returns:
        What its environment must say, and the files that it must hold open: their locks tell that it still runs. Both
        are empty where the disk takes no folder, so that it shares a home with others rather than not start.
    """
    shared = Path(os.environ.get("BENTOML_HOME") or settings.home / "bentoml")
    folder = shared / "processes"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            _remove_ended(folder)
            home = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=folder))
            for name in SHARED:
                (shared / name).mkdir(exist_ok=True)
                (home / name).symlink_to((shared / name).resolve())
            held = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(held, fcntl.LOCK_EX)
    except OSError:
        return {}, []
    return {"BENTOML_HOME": str(home)}, [held]


def _remove_ended(folder: Path) -> None:
    for home in folder.iterdir():
        if not home.is_dir():
            continue
        with suppress(OSError), (home / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
