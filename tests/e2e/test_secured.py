"""Servers that let in only who shows credentials: Prefect's own, and a proxy before MLflow that asks for them."""

import base64
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from conftest import Render
from marks import slow_but

from e2e.support import Project, make_project, prefect_server, refuse, succeed
from e2e.test_servers import server
from e2e.test_up import until
from ondol.orchestration.guard import free_port

PASSWORD = "anna:s3cret"
KEPT = ("content-type", "accept")


@contextmanager
def guarded(target: str) -> Iterator[str]:
    """Run a proxy before `target` that wants the password; yield its address."""
    wanted = f"Basic {base64.b64encode(PASSWORD.encode()).decode()}"
    client = httpx.Client(base_url=target, trust_env=False, timeout=60)

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != wanted:
                self.answer(401, b"who are you?", "text/plain")
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() in KEPT}
            answer = client.request(self.command, self.path, content=body, headers=headers)
            self.answer(answer.status_code, answer.content, answer.headers.get("content-type", "text/plain"))

        def answer(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

        def log_message(self, *_: object) -> None:
            pass

    with client, ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
        proxy.shutdown()


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("secured")
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    command = ["-m", "mlflow", "server", *store, "--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    secured = {"PREFECT_SERVER_API_AUTH_STRING": PASSWORD, "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true"}
    with ExitStack() as stack:
        prefect = stack.enter_context(prefect_server(folder / "home", folder / "prefect.log", **secured))
        mlflow = stack.enter_context(server(command, "/health", folder, **quiet))
        yield prefect, stack.enter_context(guarded(mlflow))


@pytest.fixture(scope="module")
def project(render: Render, addresses: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose environment has both servers and the credentials."""
    name, _, word = PASSWORD.partition(":")
    servers = {"PREFECT_API_URL": addresses[0], "MLFLOW_TRACKING_URI": addresses[1]}
    credentials = {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": word}
    folder = tmp_path_factory.mktemp("far") / "customer-churn"
    made = make_project(render(), folder, 1_500, PREFECT_API_AUTH_STRING=PASSWORD, **servers, **credentials)
    made.configure("service", port=free_port())
    with made.brought_down():
        yield made


@pytest.fixture(scope="module")
def up(project: Project) -> Project:
    """The same project, after `ml up`."""
    succeed(project.ml("up"))
    return project


def ask(address: str, path: str, **body: Any) -> Any:
    """Send a request to Prefect like its client, with a CSRF token."""
    auth = httpx.BasicAuth(*PASSWORD.split(":"))
    with httpx.Client(base_url=address, auth=auth, trust_env=False, timeout=30) as client:
        token = client.get("/csrf-token", params={"client": "test"}).json()["token"]
        headers = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "test"}
        answer = client.post(path, json=body, headers=headers)
        assert answer.is_success, answer.text
        return answer.json()


@pytest.mark.slow
def test_status_shows_the_worker_and_what_is_due(up: Project) -> None:
    until(lambda: "Next runs: " in succeed(up.ml("status")).stdout, "a run is scheduled")
    said = succeed(up.ml("status")).stdout
    assert "is not healthy" not in said
    assert "worker   runs" in said


def test_pipeline_and_loop_run(project: Project) -> None:
    assert "Version 1 is in production" in succeed(project.ml("run", timeout=900)).stdout
    assert "too few to evaluate" in succeed(project.ml("monitor", timeout=900)).stdout
    succeed(project.ml("loop", "pause", "--why", "audit"))
    assert ": audit" in succeed(project.ml("status")).stdout
    succeed(project.ml("loop", "resume"))


@pytest.mark.slow
def test_run_that_a_worker_left_begins_again(up: Project, addresses: tuple[str, str]) -> None:
    succeed(up.ml("down"))
    [alerts] = [d for d in ask(addresses[0], "/deployments/filter") if d["entrypoint"].endswith(":alerts")]
    run = ask(addresses[0], f"/deployments/{alerts['id']}/create_flow_run", state={"type": "SCHEDULED"})
    for state in ("PENDING", "RUNNING"):
        ask(addresses[0], f"/flow_runs/{run['id']}/set_state", state={"type": state}, force=True)
    succeed(up.ml("up"))

    def ended() -> bool:
        [now] = ask(addresses[0], "/flow_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
        return bool(now["state_type"] == "COMPLETED")

    until(ended, "the run that was left ends", 180)


@pytest.mark.parametrize("command", slow_but(["run"], ["run", "up", "ingest"]))
def test_prefects_refusal_is_one_sentence(project: Project, command: str) -> None:
    said = refuse(project.ml(command, PREFECT_API_AUTH_STRING="anna:wrong"))
    assert "refuses the credentials (401): set PREFECT_API_AUTH_STRING" in said
    assert "wrong" not in said


def test_status_tells_of_a_refusal(project: Project) -> None:
    said = succeed(project.ml("status", PREFECT_API_AUTH_STRING="")).stdout
    assert "refuses the credentials (401): set PREFECT_API_AUTH_STRING" in said


def test_mlflows_refusal_is_one_sentence(project: Project) -> None:
    said = refuse(project.ml("train", MLFLOW_TRACKING_PASSWORD="wrong"))
    assert "refuses the credentials (401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said
