"""Provenance of a version: commit, patch, packages, machine, and the digest of the code."""

import hashlib
import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ondol.errors import UserError
from ondol.project import module_paths, read_imports
from ondol.storage.files import digest_file, digest_json

# The SHA-256 of the template's flows/train.py: an unchanged one does not count, as in versions of earlier releases.
TRAIN_FLOW = "d64f53acb83adaefaefe65dd466475d20b24ba1a92454edba6dea6d45a05c879"
SHAPING = ("scikit-learn", "numpy", "scipy", "pandas", "skops", "mlflow", "skl2onnx", "onnxruntime")
BOOSTING = ("catboost", "lightgbm", "xgboost", "xgboost-cpu")  # where a project has them


class Provenance(BaseModel):
    """The information needed to reproduce a model.

    Attributes:
        commit: The git commit, or "uncommitted" if there is none or the tree differs from it.
        base: The commit that an uncommitted tree is based on.
        patch_digest: The SHA-256 of the project's files; None for a clean tree.
        packages: Versions by distribution name.
        python: The version of Python; None in older records.
        machine: System and processor, as distinguished by linear algebra libraries; None in older records.
        threads: The numbers of threads of "blas" and "openmp", which affect the last digits of sums.
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
        source: The source of its rows: its files do not count as changes of the project.
    """
    ignored = is_ignored(root, ".")  # a folder that another repository ignores
    base = None if ignored else _git(root, "rev-parse", "--verify", "-q", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=all", "--", ".", *_leave_out(root, source))
    about = read_machine()
    if built_from := os.environ.get("ML_COMMIT"):  # the worker's image is built from a clean checkout, without git
        return Provenance(commit=built_from, base=built_from, patch_digest=None, **about)
    if base and changes == "":
        return Provenance(commit=base, base=base, patch_digest=None, **about)
    return Provenance(commit="uncommitted", base=base or None, patch_digest=tree_digest(root), **about)


def _leave_out(root: Path, source: str) -> list[str]:
    """Return the arguments with which git excludes the files of a source inside the project."""
    if not source or "://" in source or "${" in source:
        return []
    place = Path(os.path.relpath(root / Path(source).expanduser(), root))  # not resolved: a pattern is not a path
    inside = bool(place.parts) and place.parts[0] != ".." and not place.is_absolute()
    return [f":(exclude,glob){place.as_posix()}"] if inside else []


def read_machine() -> dict[str, Any]:
    """Return packages, Python, machine and threads of this environment."""
    from threadpoolctl import threadpool_info

    pools = threadpool_info()  # of the loaded libraries
    kinds = sorted({pool["architecture"] for pool in pools if "architecture" in pool})
    return {
        "packages": installed_packages(),
        "python": platform.python_version(),
        "machine": " ".join([platform.system(), platform.machine(), *kinds]),
        "threads": {pool["user_api"]: pool["num_threads"] for pool in pools},
    }


def tree_digest(root: Path) -> str:
    """Return the SHA-256 of the project's files."""
    return digest_json({path.relative_to(root).as_posix(): digest_file(path) for path in project_files(root)})


def project_files(root: Path) -> list[Path]:
    """Return every file that git would commit; without git, the code, the lock file and the settings."""
    listed = _git(root, "-c", "core.quotePath=false", "ls-files", "-co", "--exclude-standard", "--", ".")
    if listed:
        files = [root / name for name in sorted(listed.splitlines())]
    else:
        code = (path for folder in ("flows", "model", "vendor") for path in (root / folder).rglob("*.py"))
        files = sorted([*code, *(root / name for name in ("config.toml", "pyproject.toml", "uv.lock"))])
    return [path for path in files if path.is_file()]


def code_digest(root: Path) -> str:
    """Return the SHA-256 of the project's code that can affect training.

    It covers `model/`, an edited train flow, and other files of the project that these import, directly or not.
    """
    files = [*sorted((root / "model").rglob("*.py")), *_edited_train_flow(root)]
    for path in files:  # grows on the way
        files += [imported for imported in _imported_files(root, path) if imported not in files]
    return digest_json({f.relative_to(root).as_posix(): digest_file(f) for f in files})


def _edited_train_flow(root: Path) -> list[Path]:
    """Return `flows/train.py` if it was edited; nothing if it is the template's."""
    flow = root / "flows" / "train.py"
    text = flow.read_text(encoding="utf-8", errors="replace") if flow.is_file() else ""
    return [flow] if text and hashlib.sha256(text.encode()).hexdigest() != TRAIN_FLOW else []


def _imported_files(root: Path, path: Path) -> list[Path]:
    """Return the project's files that a file imports, including the `__init__.py` of their packages."""
    found = set[Path]()
    for module, name in read_imports(path.read_bytes(), path.relative_to(root).parent.parts):
        parts = f"{module}.{name}".split(".")
        for end in range(1, len(parts) + 1):
            found |= {root / place for place in module_paths(".".join(parts[:end]))}
    return sorted(place for place in found if place.is_file())


@lru_cache(maxsize=1)
def shaping_packages() -> dict[str, str]:
    """Return the versions of packages that affect fitting or loading a model."""
    found = installed_packages()
    return {name: found[name] for name in (*SHAPING, *(one for one in BOOSTING if one in found))}


@lru_cache(maxsize=1)
def installed_packages() -> dict[str, str]:
    """Return the versions of all installed distributions by name."""
    return dict(sorted((d.name.lower(), d.version) for d in distributions() if d.name))


def is_behind(root: Path, commit: str, other: str | None) -> bool:
    """Return True if `commit` is an ancestor of `other`; False if `other` is not a commit of this history.

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
    """Return True if git ignores a file of the project; False without git."""
    return _git(root, "check-ignore", "-q", path) is not None


def run_git(root: Path, *words: str) -> bytes | None:
    """Return git's output; None without git, without a repository, or if an object does not exist."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _git(root: Path, *words: str) -> str | None:
    found = run_git(root, *words)
    return None if found is None else found.decode(errors="replace").strip()
