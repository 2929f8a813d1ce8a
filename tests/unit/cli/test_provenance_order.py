"""Which of two commits is the older one: a release by the older one must not replace that of the later one."""

import pytest
from template_support import commit_all, git

from ondol.errors import UserError
from ondol.training.provenance import is_behind


def test_ancestor_is_behind_and_nothing_else_is(tmp_path):
    commits = []
    for number in range(2):
        (tmp_path / "file").write_text(str(number), encoding="utf-8")
        commit_all(tmp_path)
        commits.append(git(tmp_path, "rev-parse", "HEAD").strip())
    older, newer = commits
    assert is_behind(tmp_path, older, newer)
    assert not is_behind(tmp_path, newer, older)
    assert not is_behind(tmp_path, newer, newer)
    assert not is_behind(tmp_path, newer, None)
    assert not is_behind(tmp_path, newer, "0" * 40)  # of a history that was replaced


def test_shallow_clone_without_the_needed_history_is_refused(tmp_path):
    origin = tmp_path / "origin"
    origin.mkdir()
    commit_all(origin)
    commit_all(origin)
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{origin}", "clone")
    head = git(origin, "rev-parse", "HEAD").strip()
    with pytest.raises(UserError, match="fetch-depth: 0"):
        is_behind(tmp_path / "clone", head, git(origin, "rev-parse", "HEAD~1").strip())
