"""Provenance of a version: commit, patch, packages, machine, and the digest of the code."""

import hashlib
import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ondol.errors import UserError
from ondol.project import module_paths, read_imports
from ondol.storage.files import digest_file, digest_json

# The SHA-256 of the template's flows/train.py, so that versions are found again that were trained before it counted.
TRAIN_FLOW = "f12630870f4e925eeed91d23adb5d8dac3d451c69d1f2572edf2985f42cde14f"
SHAPING = ("scikit-learn", "numpy", "scipy", "pandas", "skops", "mlflow", "skl2onnx", "onnxruntime")


class Provenance(BaseModel):
    """What is needed to make a model again.

    Attributes:
        commit: The git commit, or "uncommitted" where there is none or the tree differs from it.
        base: The commit that an uncommitted tree is based on.
        patch_digest: SHA-256 over the project's files as they are; None for a clean tree.
        packages: Versions by distribution name.
        python: The version of Python; None in records that are older than it.
        machine: System and processor, as the libraries of linear algebra distinguish processors; None likewise.
        threads: How many "blas" and "openmp" compute with: sums depend on it in their last digits.
    """

    commit: str
    base: str | None
    patch_digest: str | None
    packages: dict[str, str]
    python: str | None = None
    machine: str | None = None
    threads: dict[str, int] = {}


def read_provenance(root: Path, source: str = "") -> Provenance:
    """Read the state of the project at `root` and of the environment.

    Args:
        root: The project.
        source: Where its rows come from: what a snapshot was taken of is not a change of the project.
    """
    ignored = is_ignored(root, ".")  # a folder that another repository leaves out
    base = None if ignored else _git(root, "rev-parse", "--verify", "-q", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=all", "--", ".", *_leave_out(root, source))
    about = read_machine()
    if built_from := os.environ.get("ML_COMMIT"):  # the worker's image is made of a clean checkout, without git
        return Provenance(commit=built_from, base=built_from, patch_digest=None, **about)
    if base and changes == "":
        return Provenance(commit=base, base=base, patch_digest=None, **about)
    return Provenance(commit="uncommitted", base=base or None, patch_digest=tree_digest(root), **about)


def _leave_out(root: Path, source: str) -> list[str]:
    """Return the words by which git leaves out the file, folder or pattern of a source within the project."""
    if not source or "://" in source or "${" in source:
        return []
    place = Path(os.path.relpath(root / Path(source).expanduser(), root))  # not resolved: a pattern is not a path
    inside = bool(place.parts) and place.parts[0] != ".." and not place.is_absolute()
    return [f":(exclude,glob){place.as_posix()}"] if inside else []


def read_machine() -> dict[str, Any]:
    """Return what computes here: packages, Python, machine and threads."""
    from threadpoolctl import threadpool_info

    pools = threadpool_info()  # of the libraries that are loaded
    kinds = sorted({pool["architecture"] for pool in pools if "architecture" in pool})
    return {
        "packages": installed_packages(),
        "python": platform.python_version(),
        "machine": " ".join([platform.system(), platform.machine(), *kinds]),
        "threads": {pool["user_api"]: pool["num_threads"] for pool in pools},
    }


def tree_digest(root: Path) -> str:
    """Return the SHA-256 over the project's files."""
    return digest_json({path.relative_to(root).as_posix(): digest_file(path) for path in project_files(root)})


def project_files(root: Path) -> list[Path]:
    """Return every file that git would commit, or the code, the packages and the settings where there is no git."""
    listed = _git(root, "-c", "core.quotePath=false", "ls-files", "-co", "--exclude-standard", "--", ".")
    if listed:
        files = [root / name for name in sorted(listed.splitlines())]
    else:
        code = (path for folder in ("flows", "model", "vendor") for path in (root / folder).rglob("*.py"))
        files = sorted([*code, *(root / name for name in ("config.toml", "pyproject.toml", "uv.lock"))])
    return [path for path in files if path.is_file()]


def code_digest(root: Path) -> str:
    """Return the SHA-256 of the project's code that can change what is learned.

    It is `model/`, an edited train flow, and what these import of the project's other files, directly or not.
    """
    files = [*sorted((root / "model").rglob("*.py")), *_edited_train_flow(root)]
    for path in files:  # grows on the way
        files += [imported for imported in _imported_files(root, path) if imported not in files]
    return digest_json({f.relative_to(root).as_posix(): digest_file(f) for f in files})


def _edited_train_flow(root: Path) -> list[Path]:
    """Return `flows/train.py`; nothing where it is the template's."""
    flow = root / "flows" / "train.py"
    text = flow.read_text(encoding="utf-8", errors="replace") if flow.is_file() else ""
    return [flow] if text and hashlib.sha256(text.encode()).hexdigest() != TRAIN_FLOW else []


def _imported_files(root: Path, path: Path) -> list[Path]:
    """Return the files of the project that one of its files imports, those of the packages around them too."""
    found = set[Path]()
    for module, name in read_imports(path.read_bytes(), path.relative_to(root).parent.parts):
        parts = f"{module}.{name}".split(".")
        for end in range(1, len(parts) + 1):
            found |= {root / place for place in module_paths(".".join(parts[:end]))}
    return sorted(place for place in found if place.is_file())


@lru_cache(maxsize=1)
def shaping_packages() -> dict[str, str]:
    """Return the versions of the packages that shape a model, at fitting and at loading."""
    return {name: version(name) for name in SHAPING}


@lru_cache(maxsize=1)
def installed_packages() -> dict[str, str]:
    """Return the versions of all installed distributions by name."""
    return dict(sorted((d.name.lower(), d.version) for d in distributions() if d.name))


def is_behind(root: Path, commit: str, other: str | None) -> bool:
    """Return True if `commit` is an ancestor of `other`; False where `other` is none or not of this history.

    Raises:
        UserError: the clone is too shallow to know.
    """
    if other is None or commit == other:
        return False
    if _git(root, "rev-parse", "--verify", "-q", f"{other}^{{commit}}") is None:
        if _git(root, "rev-parse", "--is-shallow-repository") == "true":
            raise UserError(f"Commit {other[:12]} is not in this shallow clone: fetch the history (fetch-depth: 0).")
        return False
    return _git(root, "merge-base", "--is-ancestor", commit, other) is not None


def is_ignored(root: Path, path: str) -> bool:
    """Return True if git leaves out a file of the project; False where there is no git."""
    return _git(root, "check-ignore", "-q", path) is not None


def run_git(root: Path, *words: str) -> bytes | None:
    """Return what git prints, or None if there is no git, no repository or no such object."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _git(root: Path, *words: str) -> str | None:
    found = run_git(root, *words)
    return None if found is None else found.decode(errors="replace").strip()
