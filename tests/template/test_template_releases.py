"""`copier update` from each version that was released, with the edits that owners make, to the working tree."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from copier import run_copy, run_update
from e2e.support import Project, files_of, succeed
from releases_support import load_releases
from service_server import serve, wait_for
from template_support import REPOSITORY, commit_all, copy_working_tree, git, python_path, run_in, run_python

releases = load_releases().releases
gone = load_releases().gone
IN_VENDOR = [version for version in releases() if tuple(map(int, version.split("."))) >= (0, 4)]  # the engine
IN_FLOWS = [version for version in releases() if version not in IN_VENDOR]
NEXT = "v99.0.0"
TASK = '''

@task(name="shout", cache_policy=NO_CACHE)
def shout(rows: int) -> str:
    """An owner's own step."""
    return f"{rows} rows!"
'''
CALL = "    shout(snapshot.rows)\n"
COLUMN = '    coupon: str = pa.Field(nullable=True, metadata={"role": "ignored"})\n'
FLOW = '''"""An owner's own flow."""

from prefect import flow

from flows.settings import load_settings


@flow(name="mine")
def mine() -> str:
    """Return the project's name."""
    return load_settings().project.name
'''
WORKFLOW = "name: mine\non: push\njobs: {}\n"
CRON = 'cron: "7 7 * * 7"'
LINE = "# an owner's line\n"
DELETED = ("README.md", "tests/test_contract.py")
EDITED_AND_GONE = ("flows/settings.py", "flows/store/snapshots.py", "service/limits.py")
CONFLICTS = {"pyproject.toml", "flows/ingest.py"}
BLOCK = re.compile(r"<<<<<<< before updating\n(.*?)=======\n(.*?)>>>>>>> after updating\n", re.S)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with each release tagged, and the working tree as the next one."""
    clone = tmp_path_factory.mktemp("history") / "template"
    git(REPOSITORY, "clone", "--quiet", str(REPOSITORY), str(clone))
    for tag in git(clone, "tag").split():
        git(clone, "tag", "--delete", tag)
    for version, commit in releases().items():
        git(clone, "tag", f"v{version}", commit)
    for path in clone.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    copy_working_tree(clone)
    commit_all(clone, NEXT)
    return clone


@pytest.fixture(scope="module", params=IN_FLOWS or [None])
def updated(request: pytest.FixtureRequest, history: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of a release with the engine in `flows/`, with a model and its owner's edits, brought up to date."""
    if request.param is None:
        pytest.skip("no release is in this clone's history: it is shallow")
    project = Project(tmp_path_factory.mktemp("updated") / "shop-churn")
    run_copy(str(history), project.root, defaults=True, vcs_ref=f"v{request.param}", quiet=True)
    project.configure("data", source="sample://?rows=1500")
    commit_all(project.root)
    succeed(project.python("-m", "flows.cli", "run"))
    edit(project.root)
    commit_all(project.root)
    run_update(project.root, defaults=True, overwrite=True, quiet=True, vcs_ref=NEXT)
    return project


@pytest.fixture(scope="module")
def resolved(updated: Project) -> Project:
    """The project with its conflicts resolved and its imports changed, as the CHANGELOG says."""
    for name in CONFLICTS:
        take_new_side(updated.root / name)
    add_lightgbm(updated.root)
    replace(updated.root / "tests" / "test_model.py", "from flows.settings ", "from ondol.config ")
    replace(updated.root / "tests" / "test_model.py", "from flows.train ", "from ondol.training.train ")
    return updated


@pytest.fixture(scope="module")
def tidied(resolved: Project) -> tuple[Project, str, set[str]]:
    """The project after `ml tidy`, its output, and the deleted files."""
    before = files_of(resolved.root, ".ml").keys()
    said = succeed(resolved.ml("tidy")).stdout
    return resolved, said, before - files_of(resolved.root, ".ml").keys()


def edit(root: Path) -> None:
    """Edits of owners: a dependency, a step in a flow, a column, lines in removed files, new files."""
    add_lightgbm(root)
    with (root / "flows" / "ingest.py").open("a", encoding="utf-8") as file:
        file.write(TASK)
    told = '    publish_markdown("snapshot", _summary(snapshot))\n'
    replace(root / "flows" / "ingest.py", told, told + CALL)
    device = "    device: str = pa.Field()\n"
    replace(root / "model" / "schema.py", device, device + COLUMN)
    for name in (*EDITED_AND_GONE, "model/features.py", ".github/workflows/ci.yml", "config.toml"):
        with (root / name).open("a", encoding="utf-8") as file:
            file.write(LINE)
    (root / "flows" / "mine.py").write_text(FLOW, encoding="utf-8")
    (root / ".github" / "workflows" / "mine.yml").write_text(WORKFLOW, encoding="utf-8")
    weekly = root / ".github" / "workflows" / "template.yml"
    if weekly.exists():  # not in 0.1.0
        replace(weekly, 'cron: "41 4 * * 2"', CRON)
    for name in DELETED:
        (root / name).unlink()


def add_lightgbm(root: Path) -> None:
    succeed(run_in(root, "uv", "add", "--frozen", "lightgbm>=4"))


def conflicts(root: Path) -> set[str]:
    """Return the files that an update left in conflict."""
    assert not list(root.rglob("*.rej"))
    listed = git(root, "ls-files", "--cached", "--others", "--exclude-standard").split("\n")
    there = [name for name in listed if name and (root / name).is_file()]
    return {name for name in there if re.search(r"(?m)^<<<<<<< ", (root / name).read_text(encoding="utf-8"))}


def deleted(root: Path) -> list[str]:
    """Return the committed files that an update deleted."""
    return git(root, "diff", "--name-only", "--diff-filter=D", "HEAD").split()


def take_new_side(path: Path) -> None:
    """Resolve each conflict with the template's version."""
    text, blocks = BLOCK.subn(r"\2", path.read_text(encoding="utf-8"))
    assert blocks
    path.write_text(text, encoding="utf-8")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("version", IN_VENDOR or [None])
def test_update_of_an_engine_in_vendor_conflicts_nowhere(version, history, tmp_path):
    if version is None:
        pytest.skip("no release with the engine in vendor/ is in this clone's history")
    root = tmp_path / "shop-churn"
    run_copy(str(history), root, defaults=True, vcs_ref=f"v{version}", quiet=True)
    commit_all(root)
    add_lightgbm(root)
    device = "    device: str = pa.Field()\n"
    replace(root / "model" / "schema.py", device, device + COLUMN)
    edited = ("model/features.py", "flows/ingest.py", "service/service.py", "config.toml", ".github/workflows/ci.yml")
    for name in edited:
        with (root / name).open("a", encoding="utf-8") as file:
            file.write(LINE)
    commit_all(root)
    run_update(root, defaults=True, overwrite=True, quiet=True, vcs_ref=NEXT)
    assert conflicts(root) == set()
    assert [name for name in deleted(root) if not name.startswith("vendor/")] == []
    assert '"lightgbm>=4"' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert COLUMN in (root / "model" / "schema.py").read_text(encoding="utf-8")
    for name in edited:
        assert LINE in (root / name).read_text(encoding="utf-8"), name


def test_releases_are_found_in_the_history():
    if not releases():
        pytest.skip("this clone is shallow")
    assert next(iter(releases())) == "0.1.0"


@pytest.mark.slow
def test_update_conflicts_nowhere_but_in_what_the_owner_edited(updated):
    assert conflicts(updated.root) == CONFLICTS


@pytest.mark.slow
def test_update_keeps_what_the_owner_wrote_and_brings_what_is_new(updated):
    root = updated.root
    assert '"lightgbm>=4"' in (root / "pyproject.toml").read_text(encoding="utf-8")
    ingest = (root / "flows" / "ingest.py").read_text(encoding="utf-8")
    assert TASK.strip() in ingest
    assert CALL in ingest
    assert COLUMN in (root / "model" / "schema.py").read_text(encoding="utf-8")
    assert (root / "flows" / "mine.py").read_text(encoding="utf-8") == FLOW
    assert (root / ".github" / "workflows" / "mine.yml").read_text(encoding="utf-8") == WORKFLOW
    for name in ("model/features.py", ".github/workflows/ci.yml", "config.toml"):
        assert LINE in (root / name).read_text(encoding="utf-8"), name
    was_there = git(root, "ls-tree", "--name-only", "HEAD", ".github/workflows/template.yml")
    assert (CRON in (root / ".github" / "workflows" / "template.yml").read_text("utf-8")) == bool(was_there)
    # Copier brings back what is seeded once ("even if deleted intentionally", as its source has it), and nothing else.
    assert [name for name in DELETED if (root / name).exists()] == ["README.md"]
    assert "rows=1500" in (root / "config.toml").read_text(encoding="utf-8")
    for name in ("Dockerfile", "prefect.yaml", "ops/compose.yaml", ".github/workflows/deploy.yml"):
        assert (root / name).is_file(), name


@pytest.mark.slow
def test_update_deletes_nothing(updated):
    assert deleted(updated.root) == []
    for name in EDITED_AND_GONE:
        assert (updated.root / name).read_text(encoding="utf-8").endswith(LINE)


@pytest.mark.slow
def test_doctor_and_each_command_name_what_the_update_left(resolved):
    line = next(line for line in resolved.ml("doctor").stdout.splitlines() if line.startswith("! leftovers"))
    for name in EDITED_AND_GONE:
        assert name in line
    assert re.search(r"[0-9]+ files of an earlier release and ", line)
    assert "files of earlier releases are left in this project: run `ml tidy`." in resolved.ml("status").stderr


@pytest.mark.slow
def test_tidy_deletes_the_files_of_the_release_that_were_not_edited(tidied):
    project, said, deleted = tidied
    there = set(git(project.root, "ls-tree", "-r", "--name-only", "HEAD").split("\n"))
    assert deleted == (there & gone().keys()) - set(EDITED_AND_GONE)
    for name in EDITED_AND_GONE:
        assert f"{name} was edited and is kept. The edit:" in said
        assert (project.root / name).read_text(encoding="utf-8").endswith(LINE)
    assert said.count(f"+{LINE}") == len(EDITED_AND_GONE)
    assert "flows/mine.py imports flows.settings, of an earlier release" in said
    assert {path.name for path in (project.root / "flows").iterdir() if path.is_dir()} - {"__pycache__"} == {"store"}


@pytest.mark.slow
def test_resolved_pyproject_is_the_templates_with_the_owners_dependency(resolved):
    project = tomllib.loads((resolved.root / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dependencies"] == ["lightgbm>=4", "ondol"]
    assert "scripts" not in project["project"]
    assert project["tool"]["uv"]["workspace"]["members"] == ["vendor/ondol", "vendor/ondol-serving"]
    assert "constraint-dependencies" not in project["tool"]["uv"]


@pytest.mark.slow
def test_updated_project_still_answers_with_its_old_model(tidied, tmp_path):
    project, *_ = tidied
    champion = project.champion
    assert champion
    with serve(project.store, tmp_path, PYTHONPATH=python_path(project.root, engine=project.root / "vendor")) as client:
        wait_for(client, "/readyz", 200)
        said = succeed(project.ml("smoke", str(client.base_url))).stdout
    assert f"serves version {champion['version']}" in said


@pytest.mark.slow
def test_updated_project_passes_its_own_tests(tidied):
    project, *_ = tidied
    done = run_python(project.root, "-m", "pytest", "-q", "-p", "no:cacheprovider", timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
