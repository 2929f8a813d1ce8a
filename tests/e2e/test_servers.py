"""The same commands on real servers: Prefect and MLflow with PostgreSQL behind both."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import Render
from sources_support import Server
from template_support import clean_environment

from e2e.support import Project, make_project, sample, succeed, wait_for, wait_until_alone
from ondol.orchestration.guard import free_port

pytestmark = pytest.mark.slow
POSTGRES = {"host": "127.0.0.1", "port": 5432, "user": "postgres"}
MODULE = ["-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--lifespan", "on"]


@contextmanager
def database() -> Iterator[str]:
    """Create a database with a unique name, yield its address without the scheme, and drop it."""
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    name = f"ml_{uuid.uuid4().hex[:12]}"
    try:
        connection = psycopg.connect(**POSTGRES, dbname="postgres", autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL answers at 127.0.0.1:5432: {error}")
    with connection:
        connection.execute(f"create database {name}")
        try:
            yield f"postgres@127.0.0.1:5432/{name}"
        finally:
            connection.execute(f"drop database {name} with (force)")


@contextmanager
def server(command: list[str], path: str, folder: Path, **environment: str) -> Iterator[str]:
    """Run a server on a free port until the block ends; yield its address."""
    port = free_port()
    env = clean_environment() | {"PREFECT_HOME": str(folder), "DO_NOT_TRACK": "1"} | environment
    words = [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)]
    log = folder / f"{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            words, cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                wait_for(client, path, 200, 180)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The servers of Prefect and of MLflow, on databases of their own."""
    folder = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        flows, models = stack.enter_context(database()), stack.enter_context(database())
        prefect = server(
            MODULE,
            "/api/health",
            folder,
            PREFECT_API_DATABASE_CONNECTION_URL=f"postgresql+asyncpg://{flows}",
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            PREFECT_UI_ENABLED="0",
        )
        store = ["--backend-store-uri", f"postgresql+psycopg://{models}", "--workers", "1"]
        artifacts = ["--artifacts-destination", str(folder / "artifacts")]
        mlflow = server(
            ["-m", "mlflow", "server", *store, *artifacts],
            "/health",
            folder,
            MLFLOW_DISABLE_TELEMETRY="true",
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        )
        yield f"{stack.enter_context(prefect)}/api", stack.enter_context(mlflow)


@pytest.fixture(scope="module")
def project(render: Render, addresses: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that gets both only from its environment."""
    prefect, mlflow = addresses
    folder = tmp_path_factory.mktemp("far") / "customer-churn"
    return make_project(render(), folder, 1_500, PREFECT_API_URL=prefect, MLFLOW_TRACKING_URI=mlflow)


def test_pipeline_runs_against_both(project: Project, addresses: tuple[str, str]) -> None:
    prefect, mlflow = addresses
    done = project.run()
    assert "Version 1 is in production" in done.stdout
    assert not done.stderr
    runs = httpx.post(f"{prefect}/flow_runs/filter", json={}, trust_env=False).json()
    assert "pipeline version 1, data" in " ".join(run["name"] for run in runs)
    assert {run["state_type"] for run in runs} == {"COMPLETED"}
    query = {"name": "customer-churn", "alias": "champion"}
    found = httpx.get(f"{mlflow}/api/2.0/mlflow/registered-models/alias", params=query, trust_env=False).json()
    assert found["model_version"]["version"] == "1"
    assert not (project.root / ".ml" / "mlflow").exists()
    assert not list((project.root / ".ml" / "prefect").glob("*.db"))


def test_second_run_and_rollback_work_there_too(project: Project) -> None:
    assert "Nothing changed" in project.run().stdout
    project.run(ML_TRAIN__SEED="1")
    succeed(project.ml("rollback", "--why", "night"))
    assert "version 1 is in production" in succeed(project.ml("status")).stdout


def test_up_starts_only_what_is_not_there(project: Project, addresses: tuple[str, str]) -> None:
    prefect, mlflow = addresses
    project.configure("service", port=free_port())
    try:
        printed = succeed(project.ml("up")).stdout
        assert prefect.removesuffix("/api") in printed
        assert mlflow in printed
        assert {path.stem for path in (project.root / ".ml" / "run").glob("*.json")} == {"service", "worker"}
        deployed = httpx.post(f"{prefect}/deployments/filter", json={}, trust_env=False).json()
        assert len(deployed) == 9
    finally:
        succeed(project.ml("down"))
    assert not wait_until_alone(project.root)
    assert httpx.get(f"{prefect}/health", trust_env=False).status_code == 200


def test_pause_is_printed_and_in_the_log_of_the_run(project: Project, addresses: tuple[str, str]) -> None:
    rows = json.loads(sample(300).to_json(orient="records"))
    api = Server(lambda _, number: (429, {"Retry-After": "1"}, {}) if number == 1 else (200, {}, rows))
    try:
        project.configure("data", source=api.uri)
        said = succeed(project.ml("ingest")).stderr
    finally:
        api.close()
    assert said == "The API answers with 429: trying again in 1.0 s\n"
    logs = httpx.post(f"{addresses[0]}/logs/filter", json={"limit": 200}, trust_env=False).json()
    [log] = [log for log in logs if log["message"] == said.strip()]
    run = httpx.get(f"{addresses[0]}/flow_runs/{log['flow_run_id']}", trust_env=False).json()
    assert run["name"].startswith("ingest")
