"""Rendered projects for the tests: the working tree as a template, git, and commands inside a project."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PRIVATE = ("PREFECT_", "MLFLOW_", "BENTOML_", "ML_", "UV_PROJECT", "VIRTUAL_ENV", "GIT_DIR", "PYTHONWARNINGS")
GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]

OURS = {
    ".copier-answers.yml",
    ".dockerignore",
    ".editorconfig",
    ".gitattributes",
    ".github/workflows/ci.yml",
    ".github/workflows/deploy.yml",
    ".github/workflows/retrain.yml",
    ".github/workflows/template.yml",
    ".gitignore",
    ".pre-commit-config.yaml",
    "Dockerfile",
    "README.md",
    "config.toml",
    "ops/alertmanager.yaml",
    "ops/alerts.yaml",
    "ops/compose.objects.yaml",
    "ops/compose.yaml",
    "ops/grafana/dashboards/loop.json",
    "ops/grafana/dashboards/service.json",
    "ops/grafana/provisioning/dashboards/dashboards.yaml",
    "ops/grafana/provisioning/datasources/prometheus.yaml",
    "ops/postgres.sql",
    "ops/prometheus.yaml",
    "prefect.yaml",
    "pyproject.toml",
    "tests/conftest.py",
    "tests/test_contract.py",
    "tests/test_database.py",
    "tests/test_model.py",
    "tests/test_pipeline.py",
    "tests/test_service.py",
}
PACKAGES = {
    "flows": REPOSITORY / "flows",
    "vendor": REPOSITORY / "packages",
    "vendor/ondol/docs": REPOSITORY / "docs",
    **{name: REPOSITORY / "template" / name for name in ("model", "service")},
}
NOT_COPIED = {"__pycache__", "stylesheets"}
ENGINE = ("ondol/src", "ondol-serving/src")


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder and return what it printed."""
    done = subprocess.run([*GIT, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit_all(folder: Path, tag: str | None = None) -> None:
    """Make `folder` a repository if it is none, commit all that is in it, and tag it."""
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", tag or "all")
    if tag:
        git(folder, "tag", tag)


def copy_working_tree(destination: Path) -> Path:
    """Copy what git tracks or would track of this repository, links as links; return the copy."""
    listed = git(REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        source, copy = REPOSITORY / name, destination / name
        if source.exists():  # not where it was removed and the removal is not committed yet
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
    return destination


def clean_environment(home: Path | None = None) -> dict[str, str]:
    """Return this process's environment without variables that would affect a project."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
    return kept | ({"HOME": str(home)} if home else {})


def repository_environment() -> dict[str, str]:
    """Return the environment of a process that imports the packages from here, as the tests do."""
    return clean_environment() | {"PYTHONPATH": python_path(REPOSITORY, REPOSITORY / "template")}


def python_path(*folders: Path, engine: Path = REPOSITORY / "packages") -> str:
    """Return a PYTHONPATH of `folders` and of the engine."""
    return os.pathsep.join([*map(str, folders), *(str(engine / name) for name in ENGINE)])


def project_environment(project: Path) -> dict[str, str]:
    """Return the environment of a project's commands, with the engine that it carries."""
    engine = {"PYTHONPATH": python_path(engine=project / "vendor")}
    slow_start = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}  # 20 is the default
    one_model = {"ML_TRAIN__BUDGET": "0"}  # the choice among candidates has tests of its own
    return clean_environment() | engine | slow_start | one_model


def run_in(project: Path, *command: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
    """Run a command in a project with a clean environment."""
    environment = project_environment(project)
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def run_python(project: Path, *arguments: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
    """Run this Python in a project, whose own packages come first."""
    return run_in(project, sys.executable, *arguments, timeout=timeout)


def files_of(folder: Path) -> set[str]:
    """Return the files under a folder, without git's own."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and ".git" not in p.parts}


def expected_files() -> set[str]:
    """Return the files that every project has, with any answers."""
    return OURS | {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".png" and not NOT_COPIED & set(path.parts)
    }


def find_uv() -> str | None:
    """The uv binary of this environment; the one on PATH may be a script of pyenv."""
    places = [str(Path(sys.executable).parent), *os.environ["PATH"].split(os.pathsep)]
    found = [path for place in places if (path := shutil.which("uv", path=place))]
    return next((path for path in found if Path(path).read_bytes()[:4] == b"\x7fELF"), None)
