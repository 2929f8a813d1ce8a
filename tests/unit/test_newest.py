"""What fails in the weekly run is filed as one issue that says what failed, and with what."""

import importlib.util
import os
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "newest.py"
RESULTS = """<testsuites><testsuite>
<testcase classname="tests.test_store" name="test_fine"/>
<testcase classname="tests.test_store" name="test_broken"><failure message="boom&#10;more">trace</failure></testcase>
</testsuite></testsuites>"""
GH = """#!/bin/sh
echo "$@" >> "$CALLS"
[ "$2" = list ] && printf '%s' "$OPEN"
exit 0
"""


@pytest.fixture
def newest(tmp_path, monkeypatch):
    """The script, with a stand-in for GitHub's command on the path."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gh").write_text(GH, encoding="utf-8")
    (tools / "gh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    spec = importlib.util.spec_from_file_location("newest", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BUILD", tmp_path)
    return module


@pytest.mark.parametrize(
    ("what", "title"), [("newest", "The newest dependencies break something"), ("all", "make test-all fails")]
)
def test_issue_names_what_failed_and_with_what(newest, monkeypatch, tmp_path, what, title):
    monkeypatch.setenv("OPEN", "")
    (tmp_path / f"{what}.xml").write_text(RESULTS, encoding="utf-8")
    assert newest.main(what) == 0
    text = (tmp_path / f"{what}.md").read_text(encoding="utf-8")
    assert "- `tests.test_store::test_broken`: boom\n" in text
    assert "test_fine" not in text
    assert "| prefect | 3." in text
    assert f"issue create --title {title} --body-file" in (tmp_path / "calls").read_text()


def test_open_issue_gets_a_comment(newest, monkeypatch, tmp_path):
    monkeypatch.setenv("OPEN", "17")
    (tmp_path / "newest.xml").write_text(RESULTS, encoding="utf-8")
    assert newest.main("newest") == 0
    assert "issue comment 17 --body-file" in (tmp_path / "calls").read_text()


def test_newest_that_cannot_be_installed_is_reported(newest, monkeypatch, tmp_path):
    monkeypatch.setenv("OPEN", "")
    assert newest.main("newest") == 0
    assert "could not be installed together" in (tmp_path / "newest.md").read_text(encoding="utf-8")


def test_newer_than_the_bound_is_marked(newest):
    assert newest.numbers("3.9.0") >= newest.numbers("3.9") > newest.numbers("3.8.8")
