"""The engine in a project is committed, also if the project's `.gitignore` has a pattern that matches it."""

import shutil
from pathlib import Path

import pytest
from template_support import REPOSITORY, git

from ondol.cli.doctor import _git as check_git
from ondol.config import Settings
from ondol.errors import UserError

PATTERNS = "*.txt\n*.toml\nbuild/\nlib/\nsetup/\nsrc/\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "packages", tmp_path / "vendor", ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path, "init", "--quiet")
    return tmp_path


def test_patterns_of_the_project_do_not_reach_into_the_engine(project):
    (project / ".gitignore").write_text(PATTERNS, encoding="utf-8")
    files = {path.relative_to(project).as_posix() for path in (project / "vendor").rglob("*") if path.is_file()}
    git(project, "add", "--all")
    assert files <= set(git(project, "ls-files").splitlines())
    assert check_git(Settings(root=project))


def test_caches_in_the_engine_are_left_out(project):
    for name in ("__pycache__/cli.cpython-313.pyc", "ondol.egg-info/PKG-INFO", ".ruff_cache/x"):
        path = project / "vendor" / "ondol" / name
        path.parent.mkdir()
        path.write_text("", encoding="utf-8")
        assert git(project, "check-ignore", path.as_posix())


@pytest.mark.parametrize("pattern", ["vendor/", "/vendor", "vendor"])
def test_an_engine_that_git_ignores_fails_the_check(project, pattern):
    (project / ".gitignore").write_text(f"{pattern}\n", encoding="utf-8")
    with pytest.raises(UserError, match="git ignores vendor/"):
        check_git(Settings(root=project))
