"""Commits, here and in projects: what the hooks correct and refuse, and which line ends git writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomlkit
from template_support import GIT, REPOSITORY, clean_environment, commit_all, copy_working_tree, find_uv, git

UV = find_uv()
CHECKOUT = """on: push
permissions: {}
jobs:
  a:
    runs-on: ubuntu-24.04
    steps:
      - uses: actions/checkout@main
"""
TOOLS = {"UV_NO_SYNC": "1", "UV_PROJECT_ENVIRONMENT": sys.prefix}  # `uv run` uses those of the tests
Done = subprocess.CompletedProcess[str]


def run(folder: Path, *command: str | Path, timeout: float = 120, **environment: str) -> Done:
    if UV is None:
        pytest.skip("the hooks need the uv binary: pip install uv")
    path = os.pathsep.join([str(Path(UV).parent), os.environ["PATH"]])
    return subprocess.run(
        command,
        cwd=folder,
        env=clean_environment() | {"PATH": path, "PRE_COMMIT_HOME": str(folder.parent / "pre-commit")} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def pre_commit(folder: Path, *words: str, **environment: str) -> Done:
    return run(folder, sys.executable, "-m", "pre_commit", *words, **environment)


def commit(folder: Path, **environment: str) -> Done:
    git(folder, "add", "--all")
    return run(folder, *GIT, "commit", "--message", "a change", **environment)


@pytest.fixture
def hooked(project: Path) -> Path:
    """A project without dependencies, so locked without PyPI, committed, with its hooks installed."""
    path = project / "pyproject.toml"
    settings = tomlkit.parse(path.read_text(encoding="utf-8"))
    settings["project"]["dependencies"] = []
    settings["dependency-groups"] = {}
    for name in ("workspace", "sources"):  # the engine, which has dependencies
        del settings["tool"]["uv"][name]
    path.write_text(tomlkit.dumps(settings), encoding="utf-8")
    locked = run(project, "uv", "lock", "--offline", UV_PYTHON=sys.executable)
    assert locked.returncode == 0, locked.stderr
    commit_all(project)
    assert pre_commit(project, "install").returncode == 0
    return project


def test_new_project_passes_its_hooks(hooked):
    done = pre_commit(hooked, "run", "--all-files", **TOOLS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Passed") == 4


def test_badly_formatted_file_is_corrected_before_it_is_committed(hooked):
    (hooked / "model" / "extra.py").write_text('"""Extra."""\n\nimport os\n\nx   =  [ 1 ]\n', encoding="utf-8")
    refused = commit(hooked, **TOOLS)
    assert refused.returncode == 1
    assert "files were modified by this hook" in refused.stderr
    assert (hooked / "model" / "extra.py").read_text(encoding="utf-8") == '"""Extra."""\n\nx = [1]\n'
    committed = commit(hooked, **TOOLS)
    assert committed.returncode == 0, committed.stderr


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("model/extra.py", '"""Extra."""\n\nx = undefined\n', "F821"),
        (".github/workflows/extra.yml", CHECKOUT, "unpinned-uses"),
        (".github/workflows/extra.yml", CHECKOUT.replace("runs-on", "runs"), '"runs-on" is a required property'),
        (".github/workflows/extra.yml", "on: [\n", "invalid YAML syntax"),
    ],
)
def test_mistake_is_refused(hooked, name, text, said):
    before = git(hooked, "rev-parse", "HEAD")
    (hooked / name).write_text(text, encoding="utf-8")
    done = commit(hooked, **TOOLS)
    assert done.returncode == 1
    assert said in done.stderr
    assert git(hooked, "rev-parse", "HEAD") == before


def test_lock_that_does_not_match_is_refused(hooked):
    path = hooked / "pyproject.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("<3.14", "<3.13"), encoding="utf-8")
    offline = TOOLS | {"UV_OFFLINE": "1", "UV_PYTHON": sys.executable}
    done = commit(hooked, **offline)
    assert done.returncode == 1
    assert "needs to be updated" in done.stderr
    assert run(hooked, "uv", "lock", **offline).returncode == 0
    done = commit(hooked, **offline)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_hooks_run_in_a_projects_own_environment(project):
    """As in its README, with packages from PyPI."""
    mine = {"UV_PYTHON": sys.executable, "UV_SYSTEM_CERTS": "1"}
    locked = run(project, "uv", "lock", timeout=300, **mine)
    if "Failed to fetch" in locked.stderr:
        pytest.skip(f"PyPI cannot be reached: {locked.stderr[-300:]}")
    assert locked.returncode == 0, locked.stderr
    installed = run(project, "uv", "run", "pre-commit", "install", timeout=600, **mine)
    assert installed.returncode == 0, installed.stderr
    done = commit(project, **mine)
    assert done.returncode == 0, done.stderr
    every = run(project, "uv", "run", "pre-commit", "run", "--all-files", **mine)
    assert (every.returncode, every.stdout.count("Passed")) == (0, 4), every.stdout + every.stderr
    path = project / "pyproject.toml"
    path.write_text(path.read_text(encoding="utf-8").replace('    "ondol",\n', '    "ondol",\n    "six",\n'), "utf-8")
    done = commit(project, **mine)
    assert done.returncode == 1
    assert "needs to be updated" in done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this repository with the environment of the tests."""
    folder = copy_working_tree(tmp_path / "checkout")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".ci" / "setup").write_text("#!/bin/sh\n", encoding="utf-8")  # nothing is installed
    return folder


def test_make_setup_installs_the_hooks_of_a_checkout(checkout):
    commit_all(checkout)
    for _ in range(2):
        done = run(checkout, "make", "setup")
        assert done.returncode == 0, done.stderr
    (checkout / "flows" / "extra.py").write_text('"""Extra."""\n\nx = undefined\n', encoding="utf-8")
    done = commit(checkout)
    assert done.returncode == 1
    assert "F821" in done.stderr


def test_make_setup_leaves_a_repository_around_an_unpacked_archive_alone(checkout):
    git(checkout.parent, "init", "--quiet")
    done = run(checkout, "make", "setup")
    assert done.returncode == 0, done.stderr
    assert not (checkout.parent / ".git" / "hooks" / "pre-commit").exists()


def test_this_repository_passes_its_hooks(checkout):
    commit_all(checkout)
    done = pre_commit(checkout, "run", "--all-files", SKIP="lock")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Passed") == 3


@pytest.mark.slow
@pytest.mark.parametrize(("bound", "code"), [("hypothesis<7", 0), ("hypothesis<0.0.1", 1)])
def test_dependencies_that_do_not_resolve_are_refused_here(checkout, bound, code):
    path = checkout / "pyproject.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("hypothesis<7", bound), encoding="utf-8")
    commit_all(checkout)
    done = pre_commit(checkout, "run", "lock", "--all-files", UV_SYSTEM_CERTS="1")
    if "Failed to fetch" in done.stdout:
        pytest.skip(f"PyPI cannot be reached: {done.stdout[-300:]}")
    assert done.returncode == code, done.stdout
    assert not (checkout / "uv.lock").exists()


def test_checkout_has_the_same_bytes_where_git_converts_line_ends(project, tmp_path):
    """As Git for Windows does by default. A table keeps its own line ends: one may be part of a value."""
    table = b'id,note\r\n1,"two\r\nlines"\r\n'
    (project / "data.csv").write_bytes(table)
    written = (project / "model" / "schema.py").read_bytes()
    (project / "model" / "schema.py").write_bytes(written.replace(b"\n", b"\r\n"))
    commit_all(project)
    git(tmp_path, "-c", "core.autocrlf=true", "clone", "--quiet", str(project), "clone")
    assert (tmp_path / "clone" / "data.csv").read_bytes() == table
    assert (tmp_path / "clone" / "model" / "schema.py").read_bytes() == written


def test_one_editorconfig_is_that_of_this_repository_and_of_projects(render):
    assert (render() / ".editorconfig").read_bytes() == (REPOSITORY / ".editorconfig").read_bytes()
