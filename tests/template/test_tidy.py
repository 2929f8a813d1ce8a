"""Files of earlier releases: which they are, what `ml tidy` deletes of them, and what it shows and leaves."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from copier._main import Worker
from e2e.support import Project, refuse, succeed
from releases_support import load_releases
from template_support import REPOSITORY, commit_all, files_of, git, python_path

from ondol.setup import leftovers

NAMES = ("flows/settings.py", "flows/store/snapshots.py", "flows/store/__init__.py", "service/runtime.py")
FLOWS = ("__init__", "alerts", "deploy", "evaluate", "ingest", "monitor", "pipeline", "predict", "train", "validate")


@pytest.fixture(scope="module")
def releases() -> Any:
    """The script that reads the releases from the history."""
    module = load_releases()
    if not module.releases():
        pytest.skip("the releases are not in this clone's history: it is shallow")
    return module


@pytest.fixture(scope="module")
def is_excluded() -> Any:
    """Copier's own answer to whether a path of a project is excluded."""
    with Worker(src_path=str(REPOSITORY), dst_path=Path("/nowhere"), vcs_ref="HEAD", defaults=True, quiet=True) as made:
        patterns = yaml.safe_load((REPOSITORY / "copier.yml").read_text(encoding="utf-8"))["_exclude"]
        yield made._path_matcher(patterns)


def test_list_is_what_the_history_says(releases):
    listed = {name: digests for name, *digests in map(str.split, releases.LISTED.read_text("utf-8").splitlines())}
    assert listed == releases.gone(), "run `python .ci/releases.py`"


def test_update_leaves_every_path_that_only_earlier_releases_had(releases, is_excluded):
    gone = releases.gone()
    assert set(NAMES) <= set(gone)
    assert [name for name in gone if not is_excluded(Path(name))] == []


def test_update_brings_every_path_of_this_release(releases, is_excluded):
    paths = releases.rendered_now() | {f"flows/{name}.py" for name in FLOWS}
    assert [name for name in paths if is_excluded(Path(name))] == []


def test_what_the_releases_rendered_is_what_copier_renders_now(releases, render):
    answers = ".copier-answers.yml"
    assert {n for n in releases.rendered_now() if "{{" not in n} == files_of(render()) - {answers}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with four files of a release, as committed; two of them edited later."""
    root = tmp_path / "churn"
    lines = []
    for name in NAMES:
        text = f"# {name} of the release\nVALUE = 1\n"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
        lines.append(f"{name} 0000000000000000 {hashlib.sha256(text.encode()).hexdigest()[:16]}")
    listed = tmp_path / "released.txt"
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(leftovers, "RELEASED", listed)
    leftovers._digests.cache_clear()
    (root / "config.toml").write_text("", encoding="utf-8")
    (root / "flows" / "mine.py").write_text("from flows import settings\nimport pandas\n", encoding="utf-8")
    monkeypatch.chdir(root)
    yield Project(root)
    leftovers._digests.cache_clear()


def tidy(capsys: pytest.CaptureFixture[str], dry_run: bool = False) -> str:
    from ondol.cli.tidy import tidy_project

    tidy_project(dry_run)
    return capsys.readouterr().out


def edit(project: Project, name: str) -> None:
    path = project.root / name
    path.write_text(path.read_text("utf-8").replace("VALUE = 1", "VALUE = 2"), encoding="utf-8")


def test_tidy_deletes_what_equals_a_release_and_nothing_else(project, capsys):
    kept = project.root / "flows" / "store" / "mine.py"
    kept.write_text("# the owner's\n", encoding="utf-8")
    said = tidy(capsys)
    assert files_of(project.root) == {"config.toml", "flows/mine.py", "flows/store/mine.py"}
    assert not (project.root / "service").exists()
    assert "Deleted 4 files: each equals a release, and 1 empty folder." in said
    assert tidy(capsys).startswith("✓ No file of an earlier release is left here.")


def test_tidy_deletes_the_compiled_code_and_the_empty_folders(project, capsys):
    for folder, names in (("store", ("snapshots", "__init__")), (".", ("settings", "mine"))):
        cache = project.root / "flows" / folder / "__pycache__"
        cache.mkdir()
        for name in names:
            (cache / f"{name}.cpython-311.pyc").write_bytes(b"")
    tidy(capsys)
    assert files_of(project.root) == {"config.toml", "flows/mine.py", "flows/__pycache__/mine.cpython-311.pyc"}
    assert not (project.root / "flows" / "store").exists()


def test_tidy_keeps_an_edited_file_and_shows_the_edit(project, capsys):
    commit_all(project.root)
    edit(project, "flows/settings.py")
    commit_all(project.root)
    edit(project, "flows/store/snapshots.py")
    said = tidy(capsys)
    assert "Deleted 2 files" in said
    for name in ("flows/settings.py", "flows/store/snapshots.py"):
        assert f"{name} was edited and is kept. The edit:\n--- {name} (released)\n+++ {name}\n" in said
        assert (project.root / name).read_text("utf-8").endswith("VALUE = 2\n")
    assert said.count("-VALUE = 1\n+VALUE = 2\n") == 2


def test_tidy_without_a_history_says_that_a_file_was_edited(project, capsys):
    edit(project, "flows/settings.py")
    assert "flows/settings.py was edited and is kept; the git history here has no released text" in tidy(capsys)
    said = tidy(capsys)
    assert "Nothing to delete" in said
    assert "then delete the file" in said


def test_tidy_dry_run_changes_nothing(project, capsys):
    edit(project, "flows/settings.py")
    before = files_of(project.root)
    said = tidy(capsys, dry_run=True)
    assert files_of(project.root) == before
    assert "would delete 3 files above" in said
    assert all(name in said for name in NAMES)


def test_tidy_names_own_code_that_imports_a_module_that_is_gone(project, capsys):
    assert "flows/mine.py imports flows.settings, of an earlier release" in tidy(capsys)
    assert "flows/mine.py imports flows.settings, of an earlier release" in tidy(capsys)


def test_tidy_does_not_delete_through_a_link(project, capsys, tmp_path):
    outside = tmp_path / "outside"
    shutil.move(project.root / "flows" / "store", outside)
    (project.root / "flows" / "store").symlink_to(outside)
    said = tidy(capsys)
    assert files_of(outside) == {"snapshots.py", "__init__.py"}
    assert "flows/store/snapshots.py was edited and is kept" in said


def test_commands_note_what_is_left_until_it_is_tidied(render, tmp_path):
    project = Project(Path(shutil.copytree(render(), tmp_path / "churn")))
    commit_all(project.root)
    assert "Note:" not in succeed(project.ml("status")).stderr
    doctor = project.ml("doctor").stdout
    assert "✓ leftovers  no file of an earlier release" in doctor
    left = project.root / "flows" / "settings.py"
    left.write_text("# edited\n", encoding="utf-8")
    done = succeed(project.ml("status"))
    assert done.stderr.splitlines() == ["Note: 1 file of an earlier release is left in this project: run `ml tidy`."]
    doctor = project.ml("doctor")
    assert "! leftovers  flows/settings.py with an edit of yours that this release does not use" in doctor.stdout
    assert "Note:" not in doctor.stderr
    succeed(project.ml("tidy"))
    assert left.is_file()
    assert git(project.root, "status", "--porcelain", "flows").split() == ["??", "flows/settings.py"]


def test_tidy_outside_a_project_is_one_sentence(tmp_path):
    assert "No config.toml" in refuse(Project(tmp_path, PYTHONPATH=python_path()).ml("tidy"))


def test_start_of_the_command_line_reads_no_list(tmp_path):
    code = "import sys, ondol.cli.app; assert 'ondol.setup.leftovers' not in sys.modules"
    succeed(Project(tmp_path, PYTHONPATH=python_path()).python("-c", code))
