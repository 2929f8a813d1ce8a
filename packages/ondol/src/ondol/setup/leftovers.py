"""Files of earlier releases that remain in a project after `copier update`, and the owner's edits in them.

Copier would delete a file that the template no longer has, even with edits of the owner. So copier.yml excludes these
files from updates, and this module deletes them, because the digests of the releases show which files were edited. The
path is not enough: a file that equals no release is an edited one only if git has a released text at its path. A
shallow clone may lack that text.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ondol.project import module_paths, read_imports

RELEASED = Path(__file__).with_name("released.txt")  # written by .ci/releases.py: a path and its digests in each line
DIGITS = 16  # length of the prefix of git's object name, which `git log` prints without reading the file
LOG = (
    *("-c", "log.follow=false", "-c", "log.showRoot=true", "-c", "log.showSignature=false"),
    *("log", "--decorate=full", "--format=commit%d", "--raw", "--no-abbrev", "--no-renames"),
    *("--no-color", "--relative", "--"),
)
CUT = "commit (grafted"  # how git decorates the oldest commits of a shallow clone
SKIPPED = ("node_modules", "__pycache__")  # in addition to hidden folders, environments and the project's vendor/


@dataclass(frozen=True)
class Leftovers:
    """The files of a project at paths that only earlier releases had, relative to the project.

    Attributes:
        released: Files that equal a release.
        edited: Files that differ from every release, but were committed as a release had them.
        unknown: Files that differ from every release, in a shallow clone that may lack such a commit.
    """

    released: tuple[str, ...]
    edited: tuple[str, ...]
    unknown: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def _digests() -> dict[str, list[str]]:
    """Return the digests of each path in the releases."""
    lines = RELEASED.read_text(encoding="utf-8").splitlines()
    return {path: digests for path, *digests in (line.split(" ") for line in lines)}


def find_leftovers(root: Path) -> Leftovers:
    """Return the files of earlier releases in the project."""
    released, others = list[str](), list[str]()
    for name, digests in _digests().items():
        path = root / name
        # A link leads to another place, which belongs to the owner.
        if _lies(path) and path.resolve() == root.resolve() / name:
            (released if _digest(path) in digests else others).append(name)
    texts, unknown = _find_released_texts(root, others)
    return Leftovers(tuple(released), tuple(texts), unknown)


def delete_leftovers(root: Path, names: tuple[str, ...]) -> list[str]:
    """Delete files, their bytecode and the folders that become empty; return these folders."""
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

    None if git does not have this text, such as in a clone that omits files.
    """
    found = _find_released_texts(root, [name])[0].get(name)
    text = _run_git(root, "cat-file", "blob", found) if found else None
    if text is None:
        return None
    before, now = (part.decode(errors="replace").split("\n") for part in (text, (root / name).read_bytes()))
    return "\n".join(difflib.unified_diff(before, now, f"{name} (released)", name, lineterm=""))


def find_imports(root: Path, found: Leftovers) -> list[tuple[str, list[str]]]:
    """Return the owner's files that import modules of earlier releases, with the names of the modules.

    Args:
        root: The project; its Python files and notebooks are read, except in vendor/ and in environments.
        found: Its leftovers; a module at a path of a release that is not among them belongs to the owner.
    """
    left = {*found.released, *found.edited}
    modules = {_module(name) for name in _digests()}
    there = {module: next((path for path in module_paths(module) if _lies(root / path)), None) for module in modules}
    gone = {module for module, path in there.items() if path is None or path in left}
    importing = []
    for path in _code_files(root):
        name = path.relative_to(root).as_posix()
        if name not in left and (names := sorted(set(_imported(path, root, gone)))):
            importing.append((name, names))
    return sorted(importing)


def _find_released_texts(root: Path, names: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return git's object of the last committed text that equals a release, for each file that had one.

    Commits before the last deletion of the file do not count: a later file belongs to the owner.

    Returns:
        The objects by file, and the files whose earlier commits a shallow clone lacks.
    """
    if not names:
        return {}, ()
    found = dict[str, str]()
    closed, unknown, is_oldest = set[str](), set[str](), False
    for line in (_run_git(root, *LOG, *names) or b"").decode(errors="replace").splitlines():
        if line.startswith("commit"):
            is_oldest = line.startswith(CUT)
        about, _, name = line.partition("\t")  # :mode mode object object status, the newest commit first
        if name in names and name not in closed:
            _, _, old, new, status = about.split(" ")
            texts = [text for text in (new, old) if text[:DIGITS] in _digests()[name]]
            if texts and status != "D":
                found[name] = texts[0]
            if texts or status == "D":
                closed.add(name)
            elif is_oldest:
                unknown.add(name)
    return {name: found[name] for name in names if name in found}, tuple(name for name in names if name in unknown)


def _run_git(root: Path, *words: str) -> bytes | None:
    # Imported here: each command looks for leftovers, and most projects have none.
    from ondol.training.provenance import run_git

    return run_git(root, *words)


def _module(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _code_files(root: Path) -> Iterator[Path]:
    """Yield the Python files and notebooks of the owner and of the template."""
    for place, folders, files in os.walk(root):
        at_root = Path(place) == root
        folders[:] = [
            name
            for name in folders
            if not (name.startswith(".") or name in SKIPPED or (at_root and name == "vendor"))
            and not os.path.lexists(Path(place, name, "pyvenv.cfg"))
        ]
        yield from (Path(place, name) for name in files if name.endswith((".py", ".ipynb")))


def _imported(path: Path, root: Path, modules: set[str]) -> Iterator[str]:
    """Yield the given modules that a file imports, also relative to its package."""
    package = path.relative_to(root).parent.parts
    for module, name in (found for code in _read_code(path) for found in read_imports(code, package)):
        inside = f"{module}.{name}"
        if name and inside in modules:
            yield inside
        elif module in modules and not (name and any(_lies(root / place) for place in module_paths(inside))):
            yield module


def _read_code(path: Path) -> Iterator[bytes]:
    """Yield the code of a Python file, or of each code cell of a notebook."""
    try:
        if path.suffix == ".py":
            yield path.read_bytes()
            return
        for cell in json.loads(path.read_bytes())["cells"]:
            if cell["cell_type"] == "code":
                yield "".join(cell["source"]).encode()
    except (OSError, ValueError, KeyError, TypeError):  # not a notebook, or one in the format from before 2015
        return


def _remove_empty(folder: Path) -> bool:
    empty = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    if empty:
        folder.rmdir()
    return empty


def _lies(path: Path) -> bool:
    return os.path.lexists(path) and not path.is_dir()


def _digest(path: Path) -> str | None:
    """Return the prefix of git's object name of a file; None if it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()[:DIGITS]
