"""Files of earlier releases that lie in a project after `copier update`, and what its owner changed in them.

Copier would delete a file that the template no longer has, the owner's edit with it. So copier.yml excludes them from
updates, and they are deleted here, where the digests of the releases distinguish edited files from others.
"""

import ast
import difflib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

RELEASED = Path(__file__).with_name("released.txt")  # by .ci/releases.py: a path and its digests in each line
OWN_CODE = ("flows", "model", "service", "tests")


@dataclass(frozen=True)
class Leftovers:
    """What lies in a project of the paths that only earlier releases had, relative to it.

    Attributes:
        released: Files that equal a release.
        edited: Files that differ from every release.
    """

    released: tuple[str, ...]
    edited: tuple[str, ...]


@lru_cache(maxsize=1)
def _digests() -> dict[str, list[str]]:
    """Return the digests that each path had in the releases."""
    lines = RELEASED.read_text(encoding="utf-8").splitlines()
    return {path: digests for path, *digests in (line.split(" ") for line in lines)}


def count_leftovers(root: Path) -> int:
    """Return how many files of earlier releases lie in the project; reads none of them."""
    return sum(_lies(root / name) for name in _digests())


def find_leftovers(root: Path) -> Leftovers:
    """Return the files of earlier releases that lie in the project."""
    released, edited = list[str](), list[str]()
    for name, digests in _digests().items():
        path = root / name
        if _lies(path):
            # Through a link is another place, which is not to be deleted from.
            same = path.resolve() == root.resolve() / name and _digest(path.read_bytes()) in digests
            (released if same else edited).append(name)
    return Leftovers(tuple(released), tuple(edited))


def delete_leftovers(root: Path, names: tuple[str, ...]) -> list[str]:
    """Delete files, what was compiled of them and the folders that become empty; return these folders."""
    for name in names:
        (root / name).unlink()
    gone = [Path(name) for name in _digests() if not _lies(root / name)]
    for path in gone:
        cache = root / path.parent / "__pycache__"
        if cache.resolve() == root.resolve() / path.parent / "__pycache__":
            for compiled in cache.glob(f"{path.stem}.*.py[co]"):
                compiled.unlink()
            _remove_empty(cache)
    folders = {folder for path in gone for folder in path.parents} - {Path()}
    deepest_first = sorted(folders, key=lambda folder: (-len(folder.parts), folder))
    return [folder.as_posix() for folder in deepest_first if _remove_empty(root / folder)]


def show_edit(root: Path, name: str) -> str | None:
    """Return the unified diff from the last committed text that equals a release to the present file.

    None where the project is no git repository, its history has no such text, or a link leads elsewhere.
    """
    from ondol.training.provenance import run_git  # here: each command counts the leftovers by this module

    if (root / name).resolve() != root.resolve() / name:
        return None
    digests = _digests()[name]
    for commit in (run_git(root, "log", "--format=%H", "--", name) or b"").decode().split():
        text = run_git(root, "show", f"{commit}:./{name}")
        if text is not None and _digest(text) in digests:
            before, now = (part.decode(errors="replace").split("\n") for part in (text, (root / name).read_bytes()))
            return "\n".join(difflib.unified_diff(before, now, f"{name} (released)", name, lineterm=""))
    return None


def find_imports(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each file of the owner that imports modules which only earlier releases had, with their names."""
    modules = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in _digests()}
    for path in sorted(path for folder in OWN_CODE for path in (root / folder).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name not in _digests() and (found := sorted(modules & set(_imported(path)))):
            yield name, found


def _imported(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # such as the markers of a conflict
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _remove_empty(folder: Path) -> bool:
    empty = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    if empty:
        folder.rmdir()
    return empty


def _lies(path: Path) -> bool:
    return os.path.lexists(path) and not path.is_dir()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
