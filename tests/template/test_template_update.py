"""`copier update` keeps the owner's changes and adds the template's."""

import shutil
from pathlib import Path

import pytest
from copier import run_copy, run_update
from template_support import commit_all, git

OWNED = ("model/features.py", "README.md", "tests/test_model.py")


@pytest.fixture(scope="module")
def first(template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A template with a second version to come, and a project of the first: to be copied, not changed."""
    folder = tmp_path_factory.mktemp("first")
    source, project = folder / "template", folder / "churn"
    git(folder, "clone", "--quiet", str(template), str(source))
    run_copy(str(source), project, defaults=True, quiet=True)
    commit_all(project)
    return source, project


@pytest.fixture
def project(first: tuple[Path, Path], tmp_path: Path) -> Path:
    """A project of the first version, for one test only."""
    return Path(shutil.copytree(first[1], tmp_path / "churn", symlinks=True))


@pytest.fixture(scope="module")
def updated(first: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the owner's edits and files of a run, after the update to the next version."""
    folder = tmp_path_factory.mktemp("second")
    git(folder, "clone", "--quiet", str(first[0]), "template")
    source, project = folder / "template", Path(shutil.copytree(first[1], folder / "churn", symlinks=True))
    answers = project / ".copier-answers.yml"
    answers.write_text(answers.read_text(encoding="utf-8").replace(str(first[0]), str(source)), encoding="utf-8")
    edit(project)
    go_on(source)
    update(project)
    return project


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def release(source: Path, version: str) -> None:
    git(source, "add", "--all")
    git(source, "commit", "--quiet", "--message", version)
    git(source, "tag", version)


def update(project: Path, **answers: str) -> None:
    commit_all(project)
    run_update(project, data=answers, defaults=True, overwrite=True, quiet=True)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def edit(project: Path) -> None:
    """The owner's changes: lines in files, a setting, a dependency, a run."""
    for name in OWNED:
        append(project / name, "# the owner's\n")
    append(project / "config.toml", "\n[train]\nseed = 7\n")
    replace(project / "pyproject.toml", '    "ondol",\n', '    "ondol",\n    "xgboost>=3",\n')
    kept = project / ".ml" / "store" / "champion.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}", encoding="utf-8")


def go_on(source: Path) -> None:
    """The template's changes in its next version: in the same files, in others, and a new file."""
    for name in OWNED:
        there = next(p for p in (source / "template" / name, source / "template" / f"{name}.jinja") if p.exists())
        append(there, "# the template's\n")
    template_config = source / "template" / "config.toml.jinja"
    template_config.write_text("# A new first line.\n" + template_config.read_text("utf-8"), encoding="utf-8")
    engine = source / "packages" / "ondol"
    replace(engine / "pyproject.toml", "prefect<3.10", "prefect<3.11")
    (engine / "src" / "ondol" / "brand_new.py").write_text('"""New."""\n', encoding="utf-8")
    append(engine / "src" / "ondol" / "errors.py", "# newer\n")
    release(source, "v0.2.0")


@pytest.mark.parametrize("name", OWNED)
def test_update_leaves_the_owners_files_alone(updated, name):
    assert (updated / name).read_text(encoding="utf-8").endswith("# the owner's\n")


def test_update_merges_the_settings_around_the_owners_lines(updated):
    merged = (updated / "config.toml").read_text(encoding="utf-8")
    assert merged.startswith("# A new first line.\n")
    assert merged.endswith("\n[train]\nseed = 7\n")
    assert "<<<<<<<" not in merged


def test_update_and_the_owners_dependency_do_not_conflict(updated):
    merged = (updated / "pyproject.toml").read_text(encoding="utf-8")
    assert '"xgboost>=3"' in merged
    assert "<<<<<<<" not in merged
    assert '"prefect<3.11"' in (updated / "vendor" / "ondol" / "pyproject.toml").read_text(encoding="utf-8")


def test_update_brings_what_is_new_in_the_engine(updated):
    engine = updated / "vendor" / "ondol" / "src" / "ondol"
    assert (engine / "brand_new.py").is_file()
    assert (engine / "errors.py").read_text(encoding="utf-8").endswith("# newer\n")


def test_update_keeps_what_a_run_left_behind(updated):
    assert (updated / ".ml" / "store" / "champion.json").read_text(encoding="utf-8") == "{}"
    assert git(updated, "status", "--porcelain", ".ml") == ""


def test_update_changes_an_answer(project):
    update(project, problem="regression")
    assert 'target = "next_spend"' in (project / "config.toml").read_text(encoding="utf-8")


def test_update_changes_nothing_where_nothing_is_new(project):
    shutil.rmtree(project / ".github", ignore_errors=True)
    commit_all(project)
    before = git(project, "rev-parse", "HEAD^{tree}")
    update(project)
    commit_all(project)
    assert git(project, "rev-parse", "HEAD^{tree}") == before
