"""Shared fixtures: projects of the working tree, the `ml` command in them, a Prefect server and a PostgreSQL."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from template_support import commit_all, copy_working_tree, project_environment, python_path

os.environ["PYTHONPATH"] = python_path()  # processes that the tests start import the engine from here, too
# Tests run side by side on few cores: OpenMP's threads would fight each other.
os.environ["OMP_NUM_THREADS"] = "1"
# `make test &` in a script ignores SIGINT, and so would what is started from here; a handler becomes the default there.
signal.signal(signal.SIGINT, signal.default_int_handler)

Render = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def forget_mlflow() -> Iterator[None]:
    """Remove the address of MLflow that a project sets for its process: the next test may open another project."""
    yield
    for name in ("MLFLOW_TRACKING_URI", "_MLFLOW_SERVER_ARTIFACT_ROOT"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree as a repository, committed and tagged."""
    folder = copy_working_tree(tmp_path_factory.mktemp("template"))
    commit_all(folder, "v0.1.0")
    return folder


@pytest.fixture(scope="session")
def render(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Render a project with the given answers; the same answers give the same, shared folder: do not write there."""
    from copier import run_copy

    made: dict[str, Path] = {}

    def render_once(**answers: str) -> Path:
        key = json.dumps(answers, sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("rendered") / "customer-churn"
            run_copy(str(template), folder, data=answers, defaults=True, vcs_ref="HEAD", quiet=True)
            made[key] = folder
        return made[key]

    return render_once


@pytest.fixture
def project(render: Render, tmp_path: Path) -> Path:
    """A project with the default answers, committed, for one test only."""
    folder = tmp_path / "customer-churn"
    shutil.copytree(render(), folder)
    commit_all(folder)
    return folder


@pytest.fixture(scope="session")
def ml() -> Run:
    """Run `ml` in a project, in this environment: `ml(project, "run")`."""

    from e2e.commands import run_command

    def run_ml(project: Path, *arguments: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        return run_command(arguments, project, project_environment(project) | {"PYTHONUTF8": "1"}, timeout)

    return run_ml


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server, so that not every command starts its own."""
    from e2e.support import prefect_server

    folder = tmp_path_factory.mktemp("prefect")
    with prefect_server(folder / "home", folder / "log") as address:
        yield address


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a PostgreSQL: the one that runs here, or an embedded one."""
    import psycopg

    with contextlib.suppress(psycopg.OperationalError):
        psycopg.connect("postgresql://postgres@127.0.0.1:5432/test", connect_timeout=10).close()
        yield "postgresql://postgres@127.0.0.1:5432/test"
        return
    pgserver = pytest.importorskip("pgserver")
    server = pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def app() -> Iterator[Any]:
    """The client of the one service application of this process: BentoML registers its metrics once."""
    from service_support import TestClient

    from service.service import Service

    with TestClient(Service.to_asgi(), base_url="http://127.0.0.1:3000") as client:
        yield client


@pytest.fixture
def serve_store(app: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """Make the service application serve from a store, as after a start."""
    from ondol_serving.serving import serving as state

    def serve(store: Path) -> Any:
        monkeypatch.setenv("ML_STORE", str(store))
        state.forget()
        state.refresh()
        return app

    return serve


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of an S3 server on the loopback."""
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    # S3 compares `If-None-Match` and writes in one step; moto does so in two, between which another thread may write.
    put_object, one_at_a_time = S3Response.put_object, threading.Lock()

    def put_alone(self: Any) -> Any:
        with one_at_a_time:
            return put_object(self)

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with patch.object(S3Response, "put_object", put_alone):
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Put objects into the bucket `lake`: `bucket(Key=…, Body=…)`."""
    import botocore.session

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-password")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = botocore.session.get_session().create_client("s3")
    client.create_bucket(Bucket="lake")
    yield partial(client.put_object, Bucket="lake")
    while found := client.list_objects_v2(Bucket="lake").get("Contents"):  # a thousand at a time
        for one in found:
            client.delete_object(Bucket="lake", Key=one["Key"])
    client.delete_bucket(Bucket="lake")
    client.close()
