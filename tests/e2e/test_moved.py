"""A project that was copied or moved, in folders of any name: it never uses the original, and everything works."""

import json
import shutil
from pathlib import Path

import httpx
import pytest
from conftest import Render
from template_support import commit_all

from e2e.support import Project, files_of, make_project, succeed, wait_until_alone

pytestmark = pytest.mark.slow
NASTY = """a b#c%20d?e'f"g 한글 😀 {x} $HOME"""


def address(project: Project, name: str) -> str:
    record = json.loads((project.root / ".ml" / "run" / f"{name}.json").read_text(encoding="utf-8"))
    return f"http://127.0.0.1:{record['port']}"


def ports(project: Project) -> None:
    commit_all(project.choose_ports().root)


def test_copy_of_a_project_whose_servers_run_reaches_none_of_them(render: Render, tmp_path: Path) -> None:
    original = make_project(render(), tmp_path / NASTY)
    ports(original)
    original.run()
    try:
        succeed(original.ml("up"))
        copy = Project(Path(shutil.copytree(original.root, tmp_path / "복사본 copy", symlinks=True)))
        before = files_of(original.root / ".ml" / "mlflow" / "artifacts"), original.versions(), original.champion
        ports(copy)
        assert "Nothing runs in the background" in succeed(copy.ml("status")).stdout
        copy.run(ML_TRAIN__SEED="3")
        assert copy.versions() == ["1", "2"]
        assert "Nothing of this project is running" in succeed(copy.ml("down")).stdout
        after = files_of(original.root / ".ml" / "mlflow" / "artifacts"), original.versions(), original.champion
        assert after == before
        for path in ("/livez", "/readyz"):
            assert httpx.get(f"{address(original, 'service')}{path}", trust_env=False).status_code == 200
        shown = httpx.get(f"{address(original, 'mlflow')}/health", trust_env=False)
        assert shown.status_code == 200
        succeed(copy.ml("reproduce", "1", timeout=600))
    finally:
        succeed(original.ml("down"))
    assert not wait_until_alone(original.root)


def test_moved_project_works_in_its_new_place(render: Render, tmp_path: Path) -> None:
    project = make_project(render(), tmp_path / "first")
    ports(project)
    project.run()
    succeed(project.ml("up"))
    moved = Project(project.root.rename(tmp_path / NASTY))
    try:
        assert "runs in the former folder of the project" in succeed(moved.ml("status")).stdout
        succeed(moved.ml("up"))
        succeed(moved.ml("run", ML_TRAIN__SEED="3"))
        succeed(moved.ml("reproduce", "1", timeout=600))
        assert httpx.get(f"{address(moved, 'service')}/readyz", trust_env=False).status_code == 200
        query = {"experiment_ids": ["1"]}
        found = httpx.post(f"{address(moved, 'mlflow')}/api/2.0/mlflow/runs/search", json=query, trust_env=False).json()
        assert all(run["info"]["artifact_uri"].startswith(moved.root.as_uri()) for run in found["runs"])
        succeed(moved.ml("doctor"))
    finally:
        succeed(moved.ml("down"))
    assert not project.root.exists()
    assert not wait_until_alone(moved.root)
