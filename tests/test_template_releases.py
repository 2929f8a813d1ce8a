"""`copier update` from each version that was released, with the edits that owners make, to the working tree."""

import re
import shutil
from pathlib import Path

import pytest
from copier import run_copy, run_update
from e2e.support import Project, succeed
from service_server import serve, wait_for
from template_support import REPOSITORY, commit_all, copy_working_tree, git, python_path, run_python

FOUNDATION = "7a2ccccf773eaaa0c87e095146699c9dfcb87095"  # 0.1.0: the one that pyproject.toml does not tell
NEXT = "v99.0.0"
TASK = '''

@task(name="shout", cache_policy=NO_CACHE)
def shout(rows: int) -> str:
    """An owner's own step."""
    return f"{rows} rows!"
'''
CALL = "    shout(snapshot.rows)\n"
COLUMN = '    coupon: str = pa.Field(nullable=True, metadata={"role": "ignored"})\n'
GONE = ("README.md", "tests/test_contract.py")
EDITED = {"pyproject.toml", "flows/ingest.py", "model/schema.py", "README.md"}


def releases() -> dict[str, str]:
    """The commit of each version: the one that set it in pyproject.toml. Tags need not travel with a clone."""
    if not is_here(FOUNDATION):
        return {}
    found = {"0.1.0": FOUNDATION}
    later = git(REPOSITORY, "log", "--reverse", "--format=%H", f"{FOUNDATION}..HEAD", "--", "pyproject.toml")
    for commit in later.split():
        set_now, before = version_at(commit), version_at(f"{commit}^")
        if set_now != before:
            found[set_now] = commit
    return found


def is_here(commit: str) -> bool:
    try:
        git(REPOSITORY, "cat-file", "-e", f"{commit}^{{commit}}")
    except AssertionError:
        return False
    return True


def version_at(commit: str) -> str:
    found = re.search(r'^version = "(.+)"$', git(REPOSITORY, "show", f"{commit}:pyproject.toml"), re.M)
    assert found
    return found[1]


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


@pytest.fixture(scope="module", params=releases() or [None])
def updated(request: pytest.FixtureRequest, history: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of a release with a model, its owner's edits, brought up to date."""
    if request.param is None:
        pytest.skip("no release is in this clone's history: it is shallow")
    project = Project(tmp_path_factory.mktemp("updated") / "shop-churn")
    run_copy(str(history), project.root, defaults=True, vcs_ref=f"v{request.param}", quiet=True)
    project.configure("data", source="sample://?rows=1500")
    commit_all(project.root)
    project.run()
    edit(project.root)
    commit_all(project.root)
    run_update(project.root, defaults=True, overwrite=True, quiet=True, vcs_ref=NEXT)
    return project


def edit(root: Path) -> None:
    """What owners do: `uv add lightgbm`, a step of their own in a flow, another column in the schema, files gone."""
    replace(root / "pyproject.toml", '    "typer",\n', '    "typer",\n    "lightgbm>=4",\n')
    with (root / "flows" / "ingest.py").open("a", encoding="utf-8") as file:
        file.write(TASK)
    told = '    publish_markdown("snapshot", _summary(snapshot))\n'
    replace(root / "flows" / "ingest.py", told, told + CALL)
    device = "    device: str = pa.Field()\n"
    replace(root / "model" / "schema.py", device, device + COLUMN)
    for name in GONE:
        (root / name).unlink()


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_releases_are_found_in_the_history():
    if not is_here(FOUNDATION):
        pytest.skip("this clone is shallow")
    assert next(iter(releases())) == "0.1.0"


@pytest.mark.slow
def test_update_conflicts_nowhere_but_in_what_the_owner_edited(updated):
    changed = git(updated.root, "ls-files", "--cached", "--others", "--exclude-standard").split("\n")
    there = [name for name in changed if name and (updated.root / name).is_file()]
    conflicts = {n for n in there if "<<<<<<< " in (updated.root / n).read_text(encoding="utf-8")}
    assert conflicts == set(), f"outside the owner's edits: {conflicts - EDITED}"
    assert not list(updated.root.rglob("*.rej"))


@pytest.mark.slow
def test_update_keeps_what_the_owner_wrote_and_brings_what_is_new(updated):
    root = updated.root
    assert '"lightgbm>=4"' in (root / "pyproject.toml").read_text(encoding="utf-8")
    ingest = (root / "flows" / "ingest.py").read_text(encoding="utf-8")
    assert ingest.endswith(TASK)
    assert f"{CALL}    return snapshot.digest\n" in ingest
    assert COLUMN in (root / "model" / "schema.py").read_text(encoding="utf-8")
    # Copier brings back what is seeded once ("even if deleted intentionally", as its source has it), and nothing else.
    assert [name for name in GONE if (root / name).exists()] == ["README.md"]
    assert "rows=1500" in (root / "config.toml").read_text(encoding="utf-8")
    for name in ("Dockerfile", "prefect.yaml", "ops/compose.yaml", ".github/workflows/deploy.yml"):
        assert (root / name).is_file(), name


@pytest.mark.slow
def test_updated_project_still_serves_its_old_model(updated, tmp_path):
    champion = updated.champion
    assert champion
    with serve(updated.store, tmp_path, PYTHONPATH=python_path(updated.root, engine=updated.root / "vendor")) as client:
        wait_for(client, "/readyz", 200)
        said = succeed(updated.ml("smoke", str(client.base_url))).stdout
    assert f"serves version {champion['version']}" in said


@pytest.mark.slow
def test_updated_project_passes_its_own_tests(updated):
    done = run_python(updated.root, "-m", "pytest", "-q", "-p", "no:cacheprovider", timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
