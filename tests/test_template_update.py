"""`copier update`: what the owner wrote stays, what the template brings arrives."""

import shutil
from pathlib import Path

import pytest
from copier import run_copy, run_update
from template_support import commit_all, git


@pytest.fixture
def versions(template: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A template with a second version to come, and a project of the first with its owner's edits."""
    source, project = tmp_path / "template", tmp_path / "churn"
    git(tmp_path, "clone", "--quiet", str(template), str(source))
    run_copy(str(source), project, defaults=True, quiet=True)
    commit_all(project)
    return source, project


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def release(source: Path, version: str) -> None:
    git(source, "add", "--all")
    git(source, "commit", "--quiet", "--message", version)
    git(source, "tag", version)


def update(project: Path, **answers: str) -> None:
    commit_all(project)
    run_update(project, data=answers, defaults=True, overwrite=True, quiet=True)


def test_update_leaves_the_owners_files_alone(versions):
    source, project = versions
    for name in ("model/features.py", "README.md", "tests/test_model.py"):
        append(project / name, "# the owner's\n")
        there = next(p for p in (source / "template" / name, source / "template" / f"{name}.jinja") if p.exists())
        append(there, "# the template's\n")
    release(source, "v0.2.0")
    update(project)
    for name in ("model/features.py", "README.md", "tests/test_model.py"):
        assert (project / name).read_text(encoding="utf-8").endswith("# the owner's\n"), name


def test_update_merges_the_settings_around_the_owners_lines(versions):
    source, project = versions
    append(project / "config.toml", "\n[train]\nseed = 7\n")
    template_config = source / "template" / "config.toml.jinja"
    text = template_config.read_text(encoding="utf-8")
    template_config.write_text("# A new first line.\n" + text, encoding="utf-8")
    release(source, "v0.2.0")
    update(project)
    merged = (project / "config.toml").read_text(encoding="utf-8")
    assert merged.startswith("# A new first line.\n")
    assert merged.endswith("\n[train]\nseed = 7\n")
    assert "<<<<<<<" not in merged


def test_update_and_the_owners_dependency_do_not_conflict(versions):
    source, project = versions
    pyproject, template_pyproject = project / "pyproject.toml", source / "template" / "pyproject.toml.jinja"
    text = pyproject.read_text(encoding="utf-8")
    pyproject.write_text(text.replace('    "typer",\n', '    "typer",\n    "xgboost>=3",\n'), encoding="utf-8")
    bound = template_pyproject.read_text(encoding="utf-8")
    template_pyproject.write_text(bound.replace("prefect<3.10", "prefect<3.11"), encoding="utf-8")
    release(source, "v0.2.0")
    update(project)
    merged = pyproject.read_text(encoding="utf-8")
    assert '"xgboost>=3"' in merged
    assert '"prefect<3.11"' in merged
    assert "<<<<<<<" not in merged


def test_update_brings_new_flows(versions):
    source, project = versions
    (source / "flows" / "brand_new.py").write_text('"""New."""\n', encoding="utf-8")
    release(source, "v0.2.0")
    update(project)
    assert (project / "flows" / "brand_new.py").is_file()


def test_update_changes_an_answer(versions):
    _, project = versions
    update(project, problem="regression")
    assert 'target = "next_spend"' in (project / "config.toml").read_text(encoding="utf-8")


def test_update_keeps_what_a_run_left_behind(versions):
    source, project = versions
    kept = project / ".ml" / "store" / "champion.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}", encoding="utf-8")
    append(source / "flows" / "errors.py", "# newer\n")
    release(source, "v0.2.0")
    update(project)
    assert kept.read_text(encoding="utf-8") == "{}"
    assert git(project, "status", "--porcelain", ".ml") == ""


def test_update_changes_nothing_where_nothing_is_new(versions):
    _, project = versions
    shutil.rmtree(project / ".github", ignore_errors=True)
    commit_all(project)
    before = git(project, "rev-parse", "HEAD^{tree}")
    update(project)
    commit_all(project)
    assert git(project, "rev-parse", "HEAD^{tree}") == before
