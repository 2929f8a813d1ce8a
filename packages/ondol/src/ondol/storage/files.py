"""Atomic writing of files; JSON records, digests and locks; SQLite files; file permissions.

Files below `.ml` are private to the user; other files follow the user's umask.
"""

import errno
import fcntl
import getpass
import hashlib
import json
import os
import platform
import shutil
import sqlite3
import stat
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from ondol.config import HOME, MIRRORS
from ondol.errors import UserError

TEMPORARY = ".tmp-"  # of temporary folders in which files are written first
CHAMPION_FILE = "champion.json"
KEYS_FILE = "access.json"  # of API keys of the service
ROLLOUT_FILE = "rollout.json"
SQLITE_HEADER = b"SQLite format 3\0"
SQLITE_WAIT_SECONDS = 10.0
BACKUP = "champion.backup.json"  # has the content of champion.json after its last change
REMEDIES = (  # remedy by the path of a file; the first match counts
    ("store/alerts/champion.json", "remove it"),
    ("store/alerts/recent.json", "remove it"),
    ("alerts/outbox/*.json", "remove it: it is an alert that was not sent"),
    ("store/latest.json", "remove it, and run `ml run`"),
    ("store/access.json", "restore it from a backup; services keep the keys that they have read"),
    ("store/rollout.json", "remove it: the champion answers all requests then"),
    ("rollouts/*.json", "remove it: the rollout is judged again from its start, as far as the log has it"),
    ("store/loop.json", "restore it from a backup, or remove it: a pause and the history of the loop are lost then"),
    ("champion.backup.json", "remove it: it is written again when the champion changes"),
    ("store/release.json", "remove it, and release again"),
    ("verdicts/*.json", "remove it, and run `ml run`, which evaluates again"),
    ("quarantine/*.parquet", "remove it, and run `ml validate`"),
    ("snapshots/*.parquet", "restore it from a backup, or remove it and run `ml ingest --full`"),
    ("quarantine/*.json", "remove it, and run `ml validate`"),
    ("windows/*.json", "remove it: the monitor evaluates its rows again"),
    ("holdouts/*.json", "restore it from a backup, or remove it: rows are drawn again for it then"),
    ("snapshots/sources/*.json", "remove it, and run `ml ingest`"),
    ("snapshots/lines/*.json", "remove it, and run `ml ingest`, which reads the source from its beginning"),
    ("mended/made/*.json", "remove it, and run `ml ingest`"),
    ("snapshots/mended/*.json", "restore it from a backup, or remove it: the corrected rows are lost then"),
    ("snapshots/*.json", "remove it, and run `ml ingest --full`"),
    ("bundles/*/*.json", "restore it from a backup, or remove its folder and run `ml run`, which deploys again"),
    (".ml/run/*", "remove it, and run `ml up`"),
    (".tags.json", "remove its folder, which mirrors the store in the bucket"),
    (".ml/drops.json", "remove it"),
    (".ml/worker", "remove it, and run `ml up`"),
)


class Damaged(UserError):
    """A file exists and cannot be used."""


def explain_damage(path: Path, why: str = "") -> Damaged:
    """Return an error on a file with changed or damaged content."""
    reason = f" ({why})" if why else ""
    return Damaged(f"{path} was changed or damaged{reason}: {find_remedy(path)}.")


def find_remedy(path: Path) -> str:
    """Return the remedy for a damaged file."""
    if path.name == CHAMPION_FILE and path.parent.name != "alerts":
        backup = path.with_name(BACKUP)
        if backup.is_file():
            away = "move that folder away and " * path.is_dir()
            return f"{away}copy {backup} to {path.name}, which has its last content; the service keeps running"
        return "restore it from a backup, or remove it and run `ml run`, which deploys again; the service keeps running"
    for pattern, remedy in REMEDIES:
        if path.match(pattern):
            return remedy
    return "restore it from a backup, or remove it"


def require_resolved(path: Path) -> None:
    """Check that a text file, if it is there, has no merge conflict.

    Raises:
        UserError: it contains git's conflict markers.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    number = next((number for number, line in enumerate(lines, start=1) if line.startswith("<<<<<<< ")), None)
    if number is not None:
        raise UserError(f"{path} is in a merge conflict (<<<<<<< in line {number}): resolve it in this file.")


def explain_os_error(error: OSError) -> Damaged | None:
    """Return an error that names the unusable file and a remedy; None for other errors."""
    path = error.filename2 or error.filename
    if path is None or isinstance(path, int):
        return None
    whole = Path(os.fsdecode(path))
    draft = next((folder for folder in (whole, *whole.parents) if folder.name.startswith(TEMPORARY)), None)
    name = str(draft.parent if draft else whole)
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.EACCES, errno.EPERM):
        todo = "give this user the right to read and write it, and its folder"
    elif error.errno == errno.EROFS:
        todo = "make its file system writable, or let ML_STORE name another place for the store"
    elif error.errno == errno.ENOTDIR:
        blocking = next((parent for parent in Path(name).parents if parent.exists()), Path(name))
        return Damaged(f"{blocking} is a file where a folder belongs: move it away, or name another place.")
    elif error.errno == errno.EEXIST and Path(name).is_file():
        return Damaged(f"{name} is a file where a folder belongs: move it away, or name another place.")
    elif error.errno in (errno.EEXIST, errno.EISDIR):
        todo = "a file and a folder of one name are in each other's way: move away what does not belong there"
    elif error.errno == errno.ELOOP or (error.errno == errno.ENOENT and Path(name).is_symlink()):
        todo = "it is a broken link: restore its target, or remove the link"
    elif error.errno in (errno.EIO, errno.ESTALE, errno.ENXIO):
        todo = "check the disk or the network share that it is on"
    else:
        return None
    return Damaged(f"{name} cannot be used ({reason}): {todo}.")


M = TypeVar("M", bound=BaseModel)
Rename = Callable[[Path, Path], object]  # moves a written file to its place

SHORT = 12  # characters of a digest in names and messages
HOST = f"{zlib.crc32(platform.node().encode()):08x}"  # id of this machine, short and without a hyphen


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """Yield an unused path beside `target`; remove it at the end unless it was renamed."""
    make_folder(target.parent)
    sweep(target.parent)
    path = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{HOST}-{os.getpid()}-", dir=target.parent))
    try:
        yield path / target.name
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path, everywhere: bool = False) -> None:
    """Remove partly written files of killed processes in `folder`, or also in all folders below it."""
    pattern = f"{TEMPORARY}*"
    for path in list(folder.rglob(pattern) if everywhere else folder.glob(pattern)):
        host, _, rest = path.name.removeprefix(TEMPORARY).partition("-")  # several machines may share a store
        owner = rest.partition("-")[0]
        if host == HOST and owner.isdecimal() and not _alive(int(owner)):
            shutil.rmtree(path, ignore_errors=True)


def publish(made: Path, target: Path, rename: Rename | None = None) -> None:
    """Flush the file or folder at `made` to disk and rename it to `target` in one step.

    Its mode is set by `mode_of`. For files of a store, use `ondol.storage.store.Store.publish`.

    Args:
        made: The written file or folder.
        target: Its final path.
        rename: The function that moves it; default: a plain rename.

    Raises:
        RuntimeError: `target` is in the mirror of a remote store, and a plain rename would not reach other hosts.
    """
    if rename is None and is_mirrored(target):
        raise RuntimeError(f"{target} is in the mirror of a remote store: write it through its Store.")
    mode = mode_of(target)
    for path in [made, *made.iterdir()] if made.is_dir() else [made]:
        path.chmod(mode_of(target, folder=True) if path.is_dir() else mode)
        _sync(path)
    (rename or Path.replace)(made, target)
    _sync(target.parent)


def is_mirrored(path: Path) -> bool:
    """Return True if a path is in a folder that mirrors a remote store; see `Settings.folder_of`."""
    return (HOME, MIRRORS) in zip(path.parts, path.parts[1:], strict=False)


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Lock the file at `path`, and yield True if the lock was acquired. The system releases it when the process ends.

    Args:
        path: The lock file; it contains the id of the last process that acquired the lock.
        wait: Whether to wait for another process to release it.
    """
    make_folder(path.parent)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        with suppress(OSError):  # a full disk: the lock is still valid
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), str(os.getpid()).encode())
        yield True


@contextmanager
def sole(path: Path, complaint: str) -> Iterator[None]:
    """Lock the file at `path`, or raise at once if another process holds the lock.

    Raises:
        UserError: another process holds it; `complaint` is the message.
    """
    with locked(path, wait=False) as mine:
        if not mine:
            raise UserError(complaint)
        yield


def write_bytes(path: Path, content: bytes, rename: Rename | None = None) -> None:
    """Replace the file at `path` by `content` in one step; see `publish`."""
    with scratch(path) as made:
        made.write_bytes(content)
        publish(made, path, rename)


def write_json(path: Path, value: Any) -> None:
    """Replace the file at `path` by `value` as JSON in one step."""
    write_bytes(path, encode_json(value))


def encode_json(value: Any) -> bytes:
    """Return `value` as JSON, in the format of files."""
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def read_json(path: Path) -> Any | None:
    """Return the JSON value in the file at `path`, or None if there is no file.

    Raises:
        Damaged: the file cannot be read, or is not JSON.
    """
    content = read_bytes(path)
    if content is None:
        return None
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError; deep nesting raises RecursionError
        raise explain_damage(path, "it is empty" if not content.strip(b"\0 \n") else "it is not JSON") from None


def read_note(path: Path) -> Any | None:
    """Return the JSON value in a file that is only a cache; None if it is missing or cannot be read."""
    with suppress(Damaged):
        return read_json(path)
    return None


def read_record(path: Path, kind: type[M]) -> M | None:
    """Return the record in the JSON file at `path`, or None if there is no file.

    Raises:
        Damaged: the file cannot be read, or is not a record of this type.
    """
    value = read_json(path)
    if value is None and read_bytes(path) is None:
        return None
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise explain_damage(path, f"{place}: {first['msg']}" if place else first["msg"]) from None


def read_bytes(path: Path) -> bytes | None:
    """Return the bytes of a small file, or None if there is none.

    Raises:
        Damaged: the file cannot be read, or is a broken link.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if path.is_symlink():
            raise explain_damage(path, "it is a broken link") from None
        return None
    except IsADirectoryError:
        raise explain_damage(path, "it is a folder") from None
    except OSError as error:
        if damaged := explain_os_error(error):
            raise damaged from None
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def utc_now() -> str:
    """Return the current time: ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat("T", "seconds")


def user_name() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


PRIVATE = ".ml"
UMASK = "ML_UMASK"  # the user's umask, for processes that inherit ours
OTHERS = 0o077


def keep_private() -> None:
    """Make new files of this process and its children private to this user.

    So the databases and logs of Prefect, MLflow and BentoML are private too. An output file of the user gets the mode
    of the user's umask when it is published; see `mode_of`.
    """
    os.environ.setdefault(UMASK, f"{os.umask(OTHERS):03o}")


def mode_of(target: Path, folder: bool = False) -> int:
    """Return the mode for a file or folder at `target`.

    A replaced file keeps its mode. Below `.ml`, files inherit the permissions of a folder that was opened for others,
    such as the store of a container that runs as another user.
    """
    most = 0o777 if folder else 0o666
    if PRIVATE in target.parts:
        return most & (0o700 | (target.parent.stat().st_mode & OTHERS))
    if not folder and target.is_file():
        return stat.S_IMODE(target.stat().st_mode)
    return most & ~_umask_of_the_user()


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode_of(folder, folder=True))


def make_private(home: Path, shared: Collection[Path] = ()) -> None:
    """Create the folder `home` if it is missing, and remove the permissions of others, except in the folders `shared`.

    Files with several hard links are unchanged, because they may belong to uv's cache. The folder itself comes last: if
    it is private, all files below it are done.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if home.stat().st_mode & OTHERS:
        withdraw(home, shared)


def withdraw(home: Path, shared: Collection[Path] = ()) -> None:
    """Remove the permissions of others in a folder; see `make_private`."""
    for at, folders, files in os.walk(home):
        folders[:] = [name for name in folders if Path(at, name) not in shared]
        for path in (Path(at, name) for name in (*folders, *files)):
            _withdraw(path)
    _withdraw(home)


def open_for_others(store: Path) -> None:
    """Let others read a store below `.ml`: a container reads it as another user, through a mount."""
    if PRIVATE not in store.parts:
        return
    make_folder(store / "bundles")
    for path in (store, *store.rglob("*")):
        with suppress(PermissionError):  # the log belongs to the container
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


def sqlite_url(path: Path, driver: str = "pysqlite") -> str:
    """Return the SQLAlchemy URL of a SQLite file.

    SQLAlchemy decodes the path from version 2.1 on. Earlier versions used the path unchanged, and accepted a `?`, which
    begins the URL's query, only in a URI of SQLite.
    """
    name = str(path)
    # MLflow creates the folder in the URL after "sqlite:///" without decoding it; with a driver in the URL it does not.
    if is_plain(name):
        return f"sqlite:///{name}" if driver == "pysqlite" else f"sqlite+{driver}:///{name}"
    major, minor = map(int, metadata.version("sqlalchemy").split(".")[:2])
    if (major, minor) >= (2, 1):
        return f"sqlite+{driver}:///{name.replace('%', '%25').replace('?', '%3F')}"
    return f"sqlite+{driver}:///file:{quote(name)}?uri=true"


def is_plain(path: str) -> bool:
    """Return True if SQLAlchemy accepts the path in a URL unchanged."""
    return not {"%", "?"} & set(path)


def check_database(path: Path, remedy: str, *, thorough: bool = False) -> None:
    """Check that a SQLite file, if it exists, can be read and written.

    Args:
        path: The file.
        remedy: The remedy for a damaged file, for the message.
        thorough: Read all pages; otherwise only header and size, which is fast.

    Raises:
        UserError: it is not a database, is truncated or damaged, or cannot be written.
    """
    try:
        if not os.path.lexists(path):
            return
        size = path.stat().st_size
        if size:
            with path.open("rb") as file:
                if file.read(len(SQLITE_HEADER)) != SQLITE_HEADER:
                    raise UserError(f"{path} is no longer a SQLite database: {remedy}.")
            _read_database(path, size, remedy, thorough)
        if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
            raise UserError(f"{path} cannot be written: make it and its folder writable for this user.")
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror or error}): {remedy}.") from None


def _read_database(path: Path, size: int, remedy: str, thorough: bool) -> None:
    # The next process that opens the file with write permission undoes the incomplete write of a killed one.
    mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
    try:
        url = f"file:{quote(str(path))}?mode={mode}"
        with closing(sqlite3.connect(url, uri=True, timeout=SQLITE_WAIT_SECONDS)) as connection:
            connection.execute("begin")
            connection.execute("select count(*) from sqlite_master").fetchone()  # no other process writes now
            pages, length = (connection.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "page_size"))
            cut = not path.with_name(f"{path.name}-wal").exists() and path.stat().st_size < pages * length
            found = [("cut",)] if cut else connection.execute("pragma quick_check(1)").fetchall() if thorough else []
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise UserError(f"{path} is locked by another process: wait until that ends, or end it.") from None
        raise UserError(f"{path} cannot be opened ({error}): {remedy}.") from None
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}.") from None
    if found and found[0][0] != "ok":
        raise UserError(f"{path} is damaged ({found[0][0]}): {remedy}.")
