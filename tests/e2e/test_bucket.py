"""A project whose store is a bucket: two checkouts, a service that follows it, and a shared log."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Render

from e2e.support import Project, make_project, refuse, succeed, wait_for_version

ADDRESS = "s3://lake/churn"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("bucket")]


def mirror(project: Project) -> Path:
    return next((project.root / ".ml" / "mirrors").iterdir())


def champion(project: Project) -> dict[str, Any]:
    return dict(json.loads((mirror(project) / "champion.json").read_text(encoding="utf-8")))


def wait_until(check: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


def test_a_project_works_in_a_bucket_as_in_a_folder(render: Render, prefect: str, tmp_path: Path) -> None:
    mlflow = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    one, other = (
        make_project(render(), tmp_path / name / "shop-churn", PREFECT_API_URL=prefect, ML_STORE=ADDRESS, **mlflow)
        for name in ("one", "other")
    )
    assert "Version 1 is in production" in one.run().stdout
    assert not (one.root / ".ml" / "store").exists()
    shutil.rmtree(one.root / ".ml" / "mirrors")
    assert "version 1 is in production" in succeed(other.ml("status")).stdout
    assert "Nothing changed" in other.run().stdout
    rows = ("predict", "sample://?rows=50", "out.csv")
    assert "50 rows predicted by version 1" in succeed(one.ml(*rows)).stdout
    other.configure("gates", margin=1.0)
    assert "Version 2 is in production" in other.run(ML_TRAIN__SEED="7").stdout

    with one.serve() as client:
        wait_for_version(client, "2")
        succeed(other.ml("rollback", "--why", "night"))
        wait_for_version(client, "1")
        body = json.loads((mirror(one) / "bundles" / champion(one)["bundle"] / "meta.json").read_bytes())["example"]
        asked = client.post("/predict", json=body).json()["request_id"]
    said = succeed(other.ml("monitor", timeout=400)).stdout
    assert "monitor" in said
    logged = wait_until(lambda: (succeed(other.ml("monitor")), list((mirror(other) / "log").glob("*.jsonl")))[1])
    assert asked in logged[0].read_text(encoding="utf-8")
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "ML_FETCH__RETRIES": "0"}
    assert f'"{ADDRESS}" cannot be read: the host cannot be reached' in refuse(
        other.ml("rollback", "--why", "x", **away)
    )
    succeed(other.ml("down", **away))
