"""Files that cannot be used: a sentence that names the file and the way back."""

import errno
import os
from pathlib import Path

from ondol.errors import UserError

DRAFT = ".tmp-"  # of the folders in which `ondol.storage.files` writes first
BACKUP = "champion.backup.json"  # what champion.json said at its last move
REMEDIES = (  # of a file by its path, the first that matches
    ("store/alerts/champion.json", "remove it"),
    ("store/alerts/recent.json", "remove it"),
    ("alerts/outbox/*.json", "remove it: it is an alert that is not sent"),
    ("store/latest.json", "remove it, and run `ml run`"),
    ("store/loop.json", "bring it back from a backup, or remove it: a pause and the history of the loop are lost then"),
    ("champion.backup.json", "remove it: it is written again when the champion moves"),
    ("store/release.json", "remove it, and release again"),
    ("verdicts/*.json", "remove it, and run `ml run`, which judges again"),
    ("quarantine/*.parquet", "remove it, and run `ml validate`"),
    ("snapshots/*.parquet", "bring it back from a backup, or remove it and run `ml ingest --full`"),
    ("quarantine/*.json", "remove it, and run `ml validate`"),
    ("windows/*.json", "remove it: the monitor judges its rows again"),
    ("holdouts/*.json", "bring it back from a backup, or remove it: rows are drawn again for it then"),
    ("snapshots/sources/*.json", "remove it, and run `ml ingest`"),
    ("snapshots/lines/*.json", "remove it, and run `ml ingest`, which reads the source from its beginning"),
    ("mended/made/*.json", "remove it, and run `ml ingest`"),
    ("snapshots/mended/*.json", "bring it back from a backup, or remove it: the corrected rows are lost then"),
    ("snapshots/*.json", "remove it, and run `ml ingest --full`"),
    ("bundles/*/*.json", "bring it back from a backup, or remove its folder and run `ml run`, which deploys again"),
    (".ml/run/*", "remove it, and run `ml up`"),
    (".tags.json", "remove its folder, which mirrors the store in the bucket"),
    (".ml/drops.json", "remove it"),
    (".ml/worker", "remove it, and run `ml up`"),
)


class Damaged(UserError):
    """A file is there and cannot be used."""


def explain_damage(path: Path, why: str = "") -> Damaged:
    """Return the error that says that the content of a file is not what was written."""
    said = f" ({why})" if why else ""
    return Damaged(f"{path} was changed or damaged{said}: {find_remedy(path)}.")


def find_remedy(path: Path) -> str:
    """Return what to do about a damaged file."""
    if path.name == "champion.json" and path.parent.name != "alerts":
        backup = path.with_name(BACKUP)
        if backup.is_file():
            away = "move that folder away and " * path.is_dir()
            return f"{away}copy {backup} to {path.name}, which is what it last said; the service goes on meanwhile"
        return "bring it back from a backup, or remove it and run `ml run`, which deploys again; the service goes on"
    for pattern, remedy in REMEDIES:
        if path.match(pattern):
            return remedy
    return "bring it back from a backup, or remove it"


def explain_os_error(error: OSError) -> Damaged | None:
    """Return in a sentence which file the system does not let us use, and what to do; None for other errors."""
    path = error.filename2 or error.filename
    if path is None or isinstance(path, int):
        return None
    whole = Path(os.fsdecode(path))
    draft = next((folder for folder in (whole, *whole.parents) if folder.name.startswith(DRAFT)), None)
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
        todo = "it is a link that leads nowhere: bring back what it names, or remove the link"
    elif error.errno in (errno.EIO, errno.ESTALE, errno.ENXIO):
        todo = "look at the disk or the network share that it is on"
    else:
        return None
    return Damaged(f"{name} cannot be used ({reason}): {todo}.")
