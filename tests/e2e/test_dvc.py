"""The recipe of docs/how-to/version-data-with-dvc.md for teams on DVC: a commit brings its data back."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from template_support import GIT, REPOSITORY, clean_environment, git

from e2e.conftest import Make
from e2e.support import Project, succeed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dvc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a `dvc` in a separate environment."""
    folder = tmp_path_factory.mktemp("dvc")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    done = subprocess.run([folder / "bin" / "pip", "install", "--quiet", "dvc<4"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"DVC cannot be installed: {done.stderr[-300:]}")
    return folder / "bin"


def recipe(name: str) -> str:
    """The commands of the recipe's block `name`, as they stand in the documentation."""
    text = (REPOSITORY / "docs" / "how-to" / "version-data-with-dvc.md").read_text(encoding="utf-8")
    return re.search(rf"<!-- {name} -->\n```bash\n(.*?)```", text, re.DOTALL)[1]  # type: ignore[index]


def run(project: Project, dvc: Path, script: str) -> None:
    """Run commands of the documentation, with `ml` of this environment and a remote in a folder."""
    said = script.replace("s3://lake/dvc", str(project.root.with_name("remote"))).replace("uv run ml", "ml")
    lines = f'ml() {{ "{sys.executable}" -m ondol.cli "$@"; }}\ngit() {{ command {" ".join(GIT)} "$@"; }}\n{said}'
    environment = clean_environment() | project.environment
    environment |= {"PATH": f"{dvc}:{environment['PATH']}", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines], cwd=project.root, env=environment, capture_output=True, text=True
    )
    succeed(done)


def snapshots(project: Project) -> set[str]:
    return {path.stem for path in (project.root / "store" / "snapshots").glob("*.json")}


def test_a_commit_brings_its_data_back(make: Make, dvc: Path) -> None:
    project = make(rows=1_000)
    run(project, dvc, recipe("dvc: once"))
    project.store = project.root / "store"
    run(project, dvc, recipe("dvc: each time"))
    first, commit = snapshots(project), git(project.root, "rev-parse", "HEAD").strip()
    assert len(first) == 1
    project.configure("data", source="sample://?rows=1200")
    run(project, dvc, recipe("dvc: each time"))
    assert len(snapshots(project)) == 2
    assert git(project.root, "status", "--porcelain") == ""
    shutil.rmtree(project.root / "store" / "snapshots")
    shutil.rmtree(project.root / ".dvc" / "cache")
    run(project, dvc, recipe("dvc: back").replace("COMMIT", commit))
    assert snapshots(project) == first
    succeed(project.ml("validate", *first))
    assert project.last_validation()["rows"] == 1_000
