"""What is generated, for a pairwise cover of all answers: the exact files, rendered, formatted, clean, and it works.

`make test` takes the defaults and, where that is quick, the first row of each other problem; `make test-all` all rows.
"""

import re
import shutil
import tomllib
from importlib.metadata import metadata
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from conftest import Render
from cover_support import DEFAULT, Row, cover, given, questions
from marks import slow_but
from template_support import REPOSITORY, expected_files, files_of, run_python

ROWS = cover(questions())
FIRST = [next(row for row in ROWS if row["problem"] == problem) for problem in questions()["problem"]]


def title(row: Row) -> str:
    return f"{ROWS.index(row):02}-{row['problem']}-{row['python_version']}"


every_row = pytest.mark.parametrize("row", slow_but(FIRST, ROWS), ids=title)


def test_any_two_answers_stand_together_in_a_row():
    for (first, these), (second, those) in combinations(questions().items(), 2):
        for this in these:
            for other in those:
                assert any((row[first], row[second]) == (this, other) for row in ROWS), (first, this, second, other)
    assert len(ROWS) <= 20


def test_cover_answers_every_question_and_begins_with_the_defaults():
    settings = yaml.safe_load((REPOSITORY / "copier.yml").read_text(encoding="utf-8"))
    asked = [q for q, details in settings.items() if not q.startswith("_") and details.get("when") is not False]
    assert all(list(row) == asked for row in ROWS)
    assert all(answer in (DEFAULT, settings[question]["default"]) for question, answer in ROWS[0].items())


@every_row
def test_project_has_exactly_the_expected_files(render: Render, row: Row) -> None:
    assert files_of(render(**given(row))) == expected_files()


@every_row
def test_nothing_is_left_unrendered(render: Render, row: Row) -> None:
    project = render(**given(row))
    for name in files_of(project):
        text = (project / name).read_text(encoding="utf-8")
        assert "{%" not in text, name
        copied = REPOSITORY / "template" / name  # byte for byte: Grafana and Prometheus have such braces of their own
        assert "{{" not in text.replace("${{", "") or (copied.is_file() and copied.read_text("utf-8") == text), name
        assert not name.endswith(".jinja")
        assert "{{" not in name


@every_row
def test_data_files_parse(render: Render, row: Row) -> None:
    project = render(**given(row))
    for path in (project / "pyproject.toml", project / "config.toml"):
        tomllib.loads(path.read_text(encoding="utf-8"))
    for path in (project / ".copier-answers.yml", *(project / ".github").rglob("*.yml"), *project.rglob("*.yaml")):
        yaml.safe_load(path.read_text(encoding="utf-8"))


@every_row
def test_text_files_end_with_one_newline_and_have_no_trailing_spaces(render: Render, row: Row) -> None:
    project = render(**given(row))
    for name in files_of(project):
        text = (project / name).read_text(encoding="utf-8")
        assert not text or (text.endswith("\n") and not text.endswith("\n\n")), name
        assert not [line for line in text.splitlines() if line != line.rstrip()], name


@every_row
def test_project_is_formatted_and_lint_clean(render: Render, row: Row) -> None:
    """For the oldest Python that the project accepts: ruff reads it from `requires-python`."""
    project = render(**given(row))
    for command in (["format", "--check", "--diff"], ["check", "--output-format=concise"]):
        done = run_python(project, "-m", "ruff", *command, "--no-cache", ".")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def checked_types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of mypy for all rows."""
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.slow  # `make lint` checks the types of the same code
@pytest.mark.parametrize("row", ROWS, ids=title)
def test_project_is_type_clean(render: Render, row: Row, checked_types: Path) -> None:
    """For the oldest Python that the project accepts, or the oldest that the packages installed here are typed for."""
    version = max(row["python_version"], oldest_python("numpy"), key=numbers)
    options = ["--python-version", version, "--cache-dir", str(checked_types)]
    done = run_python(render(**given(row)), "-m", "mypy", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no issues found in" in done.stdout


def oldest_python(package: str) -> str:
    found = re.search(r">=\s*(3\.\d+)", metadata(package)["Requires-Python"])
    assert found
    return found[1]


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


@pytest.mark.parametrize("row", slow_but(FIRST[:1], ROWS), ids=title)
def test_project_passes_its_own_tests(
    render: Render, row: Row, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_POSTGRES", postgres)
    project = tmp_path / "project"
    shutil.copytree(render(**given(row)), project)
    done = run_python(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.fullmatch(r"\d+ passed in .+", done.stdout.strip().splitlines()[-1]), done.stdout[-500:]
