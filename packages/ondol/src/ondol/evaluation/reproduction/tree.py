"""The project's files as they were when a version was trained: of a commit, or still lying here."""

import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ondol.config.settings import FILE_NAME
from ondol.errors import UserError
from ondol.storage.files import digest_json
from ondol.training.provenance import Provenance, project_files, tree_digest

SHORT = 10
LATER_COMMITS = 50  # of those after the base, the first that may hold what was not committed yet


@dataclass(frozen=True)
class Origin:
    """Where the files are found.

    Attributes:
        commit: The commit that has them; None where the project's folder itself still does.
        note: What a reader should know; empty where the commit is the recorded one.
        exact: Whether they are those that were trained with.
    """

    commit: str | None
    note: str = ""
    exact: bool = True


def find_origin(root: Path, recorded: Provenance, anyway: bool) -> Origin:
    """Return where the files are that a version was trained with.

    Args:
        root: The project.
        recorded: What is known of the version.
        anyway: Take the commit that it was based on where they are nowhere.

    Raises:
        UserError: they are nowhere, and `anyway` was not given or there is no such commit.
    """
    if recorded.commit != "uncommitted":
        return Origin(recorded.commit)
    digest = recorded.patch_digest or ""
    if found := _find_commit(root, digest, recorded.base):
        return Origin(found, f"It was trained before its files were committed: commit {found[:SHORT]} has just these.")
    if tree_digest(root) == digest:
        return Origin(None, "It was trained from files that are not committed; they are still as they were.")
    base = recorded.base[:SHORT] if recorded.base else ""
    what = f"changes to commit {base}" if base else "files"
    said = f"It cannot be made again exactly: it was trained from {what} that were never committed"
    if anyway and recorded.base:
        return Origin(recorded.base, f"{said} (digest {digest[:SHORT]}); this is commit {base} without them.", False)
    hint = f"; `--anyway` trains from commit {base} without them" if base else ""
    raise UserError(f"{said} and are no longer here (digest {digest[:SHORT]}){hint}.")


@contextmanager
def checked_out(root: Path, origin: Origin, folder: Path) -> Iterator[Path]:
    """Yield the project with the files of `origin`, in a worktree or a copy at `folder`, which is removed at the end.

    Raises:
        UserError: the commit is not here, or the project is not in it.
    """
    try:
        yield _add_worktree(root, origin.commit, folder) if origin.commit else _copy(root, folder)
    finally:
        remove_tree(root, folder)


def remove_tree(root: Path, folder: Path) -> None:
    """Remove what lies at `folder`, and let git forget a worktree there."""
    if (folder / ".git").exists():
        _git(root, "worktree", "remove", "--force", "--force", str(folder))
    shutil.rmtree(folder, ignore_errors=True)


def _add_worktree(root: Path, commit: str, folder: Path) -> Path:
    inside = _git(root, "rev-parse", "--show-prefix")
    if inside.returncode:
        raise UserError(
            f"{root} is in no git repository ({_last(inside.stderr)}): clone the one that has commit "
            f"{commit[:SHORT]}, and run there."
        )
    if _git(root, "cat-file", "-e", f"{commit}^{{commit}}").returncode:
        raise UserError(
            f"Commit {commit} is not in this repository: `git fetch origin {commit}` brings it, or "
            "`git fetch --unshallow` where the clone is shallow."
        )
    # Hooks are for people's checkouts.
    made = _git(root, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", "--force", str(folder), commit)
    if made.returncode:
        raise UserError(f"git could not check out {commit[:SHORT]}: {_last(made.stderr)}.")
    project = folder / inside.stdout.decode().rstrip("\n")
    if not (project / FILE_NAME).is_file():
        place = project.relative_to(folder)
        raise UserError(f"Commit {commit[:SHORT]} has no {FILE_NAME} in {place}/: the project lay elsewhere then.")
    return project


def _copy(root: Path, folder: Path) -> Path:
    for source in project_files(root):
        target = folder / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    return folder


def _find_commit(root: Path, digest: str, base: str | None) -> str | None:
    """Return the first commit after `base` that holds exactly the files of a digest, or None."""
    listed = _git(root, "rev-list", "--reverse", "--all", *([f"^{base}"] if base else []), "--", ".")
    commits = listed.stdout.decode().split() if listed.returncode == 0 else []
    return next((commit for commit in commits[:LATER_COMMITS] if _commit_digest(root, commit) == digest), None)


def _commit_digest(root: Path, commit: str) -> str:
    """Return the digest of the project's files in a commit, as `tree_digest` gives it of a folder."""
    packed = _git(root, "archive", "--format=tar", commit, "--", ".").stdout
    digests = {}
    with tarfile.open(fileobj=io.BytesIO(packed or bytes(tarfile.RECORDSIZE))) as archive:
        for member in archive:
            if member.isfile() and (file := archive.extractfile(member)):
                digests[member.name] = hashlib.sha256(file.read()).hexdigest()
    return digest_json(digests)


def _git(root: Path, *words: str) -> "subprocess.CompletedProcess[bytes]":
    """Run git in the project; where there is none, it fails."""
    try:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, check=False)
    except OSError:
        return subprocess.CompletedProcess(words, 127, b"", b"git is not installed")


def _last(said: bytes) -> str:
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
