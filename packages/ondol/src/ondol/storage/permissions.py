"""Permissions of files: below `.ml` for the user alone, elsewhere as the user's umask says."""

import os
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

PRIVATE = ".ml"
UMASK = "ML_UMASK"  # that of the user, for processes that inherit ours
OTHERS = 0o077


def keep_private() -> None:
    """Let this process, and all that it starts, make files that only this user may read.

    So the databases and logs of Prefect, MLflow and BentoML are private too. What a user names as an output gets the
    mode of the user's own umask where it is published, see `mode_of`.
    """
    os.environ.setdefault(UMASK, f"{os.umask(OTHERS):03o}")


def mode_of(target: Path, folder: bool = False) -> int:
    """Return the mode that a file or folder gets at `target`.

    A file that is replaced keeps its mode. Below `.ml`, a folder that was opened for others, as the store of a
    container that runs as another user is, passes that on.
    """
    most = 0o777 if folder else 0o666
    if PRIVATE in target.parts:
        return most & (0o700 | (target.parent.stat().st_mode & OTHERS))
    if not folder and target.is_file():
        return stat.S_IMODE(target.stat().st_mode)
    return most & ~_umask_of_the_user()


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode_of(folder, folder=True))


def make_private(home: Path, shared: Collection[Path] = ()) -> None:
    """Make the folder `home` where it is missing, and withdraw what others may do in it, but for the folders `shared`.

    Files with several names are left alone: they may belong to uv's cache. The folder itself comes last, so that one
    that is private shows that all below it was done.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if home.stat().st_mode & OTHERS:
        withdraw(home, shared)


def withdraw(home: Path, shared: Collection[Path] = ()) -> None:
    """Withdraw what others may do in a folder; see `make_private`."""
    for at, folders, files in os.walk(home):
        folders[:] = [name for name in folders if Path(at, name) not in shared]
        for path in (Path(at, name) for name in (*folders, *files)):
            _withdraw(path)
    _withdraw(home)


def open_for_others(store: Path) -> None:
    """Let others read a store below `.ml`: a container reads it as another user, through a mount of its own."""
    if PRIVATE not in store.parts:
        return
    make_folder(store / "bundles")
    for path in (store, *store.rglob("*")):
        with suppress(PermissionError):  # the log is its container's
            path.chmod(stat.S_IMODE(path.stat().st_mode) | (0o055 if path.is_dir() else 0o044))


def _withdraw(path: Path) -> None:
    with suppress(OSError):  # it was removed meanwhile, belongs to another user, or the disk is read-only
        state = path.lstat()
        if stat.S_ISDIR(state.st_mode) or (stat.S_ISREG(state.st_mode) and state.st_nlink == 1):
            path.chmod(stat.S_IMODE(state.st_mode) & ~OTHERS)


def _umask_of_the_user() -> int:
    if UMASK in os.environ:
        return int(os.environ[UMASK], 8)
    umask = os.umask(OTHERS)
    os.umask(umask)
    return umask
