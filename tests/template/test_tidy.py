"""Files of earlier releases: which of them `ml tidy` deletes, and which it shows and keeps."""

import json
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
FLOWS = (
    "__init__",
    "alerts",
    "deploy",
    "evaluate",
    "ingest",
    "monitor",
    "pipeline",
    "predict",
    "rollout",
    "train",
    "validate",
)


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
        lines.append(f"{name} 1111111111111111 {git(tmp_path, 'hash-object', str(root / name))[:16]}")
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


def test_tidy_shows_no_edit_where_git_does_not_have_the_released_text(project, capsys):
    commit_all(project.root)
    text = git(project.root, "rev-parse", "HEAD:flows/settings.py").strip()
    edit(project, "flows/settings.py")
    (project.root / ".git" / "objects" / text[:2] / text[2:]).unlink()
    said = tidy(capsys)
    assert "flows/settings.py was edited and is kept; git does not have its released text" in said
    said = tidy(capsys)
    assert "Nothing to delete" in said
    assert "then delete the file" in said


def test_file_at_the_path_of_a_release_is_the_owners_without_a_released_text_in_git(project, capsys, monkeypatch):
    shutil.rmtree(project.root / "service")
    edit(project, "flows/settings.py")
    edit(project, "flows/store/snapshots.py")
    own = leftovers.Leftovers(("flows/store/__init__.py",), ())
    assert leftovers.find_leftovers(project.root) == own  # no repository
    commit_all(project.root)
    assert leftovers.find_leftovers(project.root) == own  # a repository where each text is the owner's
    assert "edited" not in tidy(capsys)
    monkeypatch.setenv("PATH", "")
    assert leftovers.find_leftovers(project.root) == leftovers.Leftovers((), ())  # no git
    assert tidy(capsys).startswith("✓ No file of an earlier release is left here.")


def test_a_shallow_clone_says_of_which_files_it_does_not_show_whether_they_were_edited(
    project, capsys, monkeypatch, tmp_path
):
    commit_all(project.root)
    edit(project, "flows/settings.py")
    edit(project, "service/runtime.py")
    commit_all(project.root)
    (project.root / "flows" / "store" / "snapshots.py").unlink()
    commit_all(project.root)
    (project.root / "flows" / "store" / "snapshots.py").write_text("# the owner's\n", encoding="utf-8")
    commit_all(project.root)
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "3", f"file://{project.root}", str(shallow))
    unknown = ("flows/settings.py", "service/runtime.py")
    assert leftovers.find_leftovers(shallow) == leftovers.Leftovers(("flows/store/__init__.py",), (), unknown)
    monkeypatch.chdir(shallow)
    said = tidy(capsys)
    assert "flows/settings.py, service/runtime.py have the names of files of an earlier release, and this" in said
    assert "run `git fetch --unshallow`, then `ml tidy` again." in said
    git(shallow, "fetch", "-q", "--unshallow")
    assert leftovers.find_leftovers(shallow).edited == unknown


def test_file_is_the_owners_that_was_made_after_the_release_s_was_deleted(project, capsys):
    commit_all(project.root)
    text = (project.root / "flows" / "settings.py").read_text("utf-8")
    tidy(capsys)
    commit_all(project.root)
    (project.root / "flows" / "settings.py").write_text("# the owner's\n", encoding="utf-8")
    assert leftovers.find_leftovers(project.root) == leftovers.Leftovers((), ())
    commit_all(project.root)
    assert leftovers.find_leftovers(project.root) == leftovers.Leftovers((), ())
    (project.root / "flows" / "settings.py").write_text(text, encoding="utf-8")
    assert leftovers.find_leftovers(project.root) == leftovers.Leftovers(("flows/settings.py",), ())


def test_edited_file_is_found_in_a_folder_of_a_repository(project):
    outer = project.root.parent
    (outer / "flows").mkdir()
    (outer / "flows" / "settings.py").write_text("# of another project\n", encoding="utf-8")
    commit_all(outer)
    edit(project, "flows/settings.py")
    edit(project, "service/runtime.py")
    commit_all(outer)
    git(outer, "config", "log.showRoot", "false")
    git(outer, "config", "log.follow", "true")
    git(outer, "config", "color.ui", "always")
    assert leftovers.find_leftovers(project.root).edited == ("flows/settings.py", "service/runtime.py")


def test_git_is_asked_once_and_only_if_a_file_differs(project, monkeypatch):
    asked = []

    def run(root: Path, *words: str) -> bytes:
        asked.append(words)
        return b""

    monkeypatch.setattr(leftovers, "_run_git", run)
    leftovers.find_leftovers(project.root)
    assert asked == []
    edit(project, "flows/settings.py")
    edit(project, "service/runtime.py")
    leftovers.find_leftovers(project.root)
    assert len(asked) == 1


def test_tidy_dry_run_changes_nothing(project, capsys):
    commit_all(project.root)
    edit(project, "flows/settings.py")
    before = files_of(project.root)
    said = tidy(capsys, dry_run=True)
    assert files_of(project.root) == before
    assert "would delete 3 files above" in said
    assert all(name in said for name in NAMES)
    assert "flows/mine.py imports flows.settings, of an earlier release" in said


def test_tidy_names_own_code_that_imports_a_module_that_is_gone(project, capsys):
    assert "flows/mine.py imports flows.settings, of an earlier release" in tidy(capsys)
    assert "flows/mine.py imports flows.settings, of an earlier release" in tidy(capsys)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry run", "deletes"])
def test_tidy_names_each_import_of_a_module_that_it_deletes(project, capsys, dry_run):
    imports = {
        "flows/mine.py": ("from .settings import VALUE", "flows.settings"),
        "flows/other.py": ("from . import settings", "flows.settings"),
        "flows/store/mine.py": (
            "from .. import settings\nfrom .snapshots import VALUE",
            "flows.settings, flows.store.snapshots",
        ),
        "flows/deep/er/mine.py": ("from ...store import VALUE", "flows.store"),
        "flows/conflict.py": ("<<<<<<< mine\n    from .settings import (\n    VALUE,\n)\n", "flows.settings"),
        "service/mine.py": ("def load():\n    from . import runtime, mine", "service.runtime"),
        "scripts/mine.py": ("import flows.settings as settings", "flows.settings"),
        "mine.py": ("from flows.store import snapshots", "flows.store.snapshots"),
    }
    for name, (code, _) in imports.items():
        write(project.root / name, f"{code}\nPATTERN = '\\d'\n")
    cells = [
        {"cell_type": "markdown", "source": ["import service.runtime"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "from flows.settings import VALUE\n"]},
        {"cell_type": "code", "source": "import flows.store.snapshots"},
    ]
    write(project.root / "notebooks" / "mine.ipynb", json.dumps({"cells": cells}))
    write(project.root / "notebooks" / "broken.ipynb", "{")
    said = tidy(capsys, dry_run).splitlines()
    expected = {name: modules for name, (_, modules) in imports.items()}
    expected["notebooks/mine.ipynb"] = "flows.settings, flows.store.snapshots"
    advice = "of an earlier release: import from `ondol` instead."
    assert [line for line in said if " imports " in line] == [
        f"{n} imports {m}, {advice}" for n, m in sorted(expected.items())
    ]


def test_tidy_names_no_import_of_the_owners_modules_nor_of_code_of_others(project, capsys):
    for folder in ("vendor", ".venv", ".ml", "env/lib", "web/node_modules", "flows/.x"):
        write(project.root / folder / "a.py", "import flows.settings\n")
    write(project.root / "env" / "pyvenv.cfg", "")
    write(project.root / "flows" / "settings.py", "# the owner's\n")
    write(
        project.root / "flows" / "store" / "own.py", "from . import own\nfrom .own import VALUE\nfrom .... import far\n"
    )
    write(project.root / "root.py", "from . import settings\nfrom .flows import nothing\nfrom flows.store import own\n")
    assert " imports " not in tidy(capsys)


def test_tidy_does_not_delete_through_a_link(project, capsys, tmp_path):
    outside = tmp_path / "outside"
    shutil.move(project.root / "flows" / "store", outside)
    (project.root / "flows" / "store").symlink_to(outside)
    said = tidy(capsys)
    assert files_of(outside) == {"snapshots.py", "__init__.py"}
    assert "Deleted 2 files" in said
    assert "flows/store/snapshots.py" not in said


def test_commands_note_what_is_left_until_it_is_tidied(render, tmp_path, releases):
    project = Project(Path(shutil.copytree(render(), tmp_path / "churn")))
    commit_all(project.root)
    assert "Note:" not in succeed(project.ml("status")).stderr
    doctor = project.ml("doctor").stdout
    assert "✓ leftovers  no file of an earlier release" in doctor
    left = project.root / "flows" / "settings.py"
    left.write_text("# the owner's\n", encoding="utf-8")
    assert "Note:" not in succeed(project.ml("status")).stderr
    assert "✓ leftovers  no file of an earlier release" in project.ml("doctor").stdout
    released = releases.rendered_at(releases.releases()["0.3.1"])["flows/settings.py"]
    left.write_bytes(releases.git("cat-file", "blob", released))
    commit_all(project.root)
    left.write_text("# edited\n", encoding="utf-8")
    done = succeed(project.ml("status"))
    assert done.stderr.splitlines() == ["Note: 1 file of an earlier release is left in this project: run `ml tidy`."]
    doctor = project.ml("doctor")
    assert "! leftovers  flows/settings.py with an edit of yours that this release does not use" in doctor.stdout
    assert "Note:" not in doctor.stderr
    succeed(project.ml("tidy"))
    assert left.is_file()
    assert git(project.root, "status", "--porcelain", "flows").split() == ["M", "flows/settings.py"]


def test_tidy_outside_a_project_is_one_sentence(tmp_path):
    assert "No config.toml" in refuse(Project(tmp_path, PYTHONPATH=python_path()).ml("tidy"))


def test_start_of_the_command_line_reads_no_list(tmp_path):
    code = "import sys, ondol.cli.app; assert 'ondol.setup.leftovers' not in sys.modules"
    succeed(Project(tmp_path, PYTHONPATH=python_path()).python("-c", code))
