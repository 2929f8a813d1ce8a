"""`ml status` in every state: it names what has ended, refuses, waits or is paused, with a remedy."""

import base64
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
from template_support import clean_environment, python_path

from ondol.cli import up
from ondol.cli.console import console
from ondol.cli.status import loop_lines, print_alerts, print_due, print_last, print_processes, print_running
from ondol.config import Settings, load_settings
from ondol.errors import UserError
from ondol.monitoring.retraining import pause
from ondol.orchestration.alerts import alert, refused, waiting
from ondol.orchestration.asgi import SameOrigin
from ondol.orchestration.guard import free_port
from ondol.orchestration.processes import running, start, stop
from ondol.orchestration.recovery import flows_of_commands, note_step, register_command
from ondol.project import Project
from ondol.registry.registry import connect_mlflow
from ondol.storage.store import open_store

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
ENV = {"PYTHONPATH": python_path()}
ASK = """
import sys
from ondol.orchestration.server import post_prefect, get_prefect
print(post_prefect(f"{sys.argv[1]}/deployments/filter", {}), get_prefect(f"{sys.argv[1]}/flow_runs/1"))
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "config.toml").write_text('[project]\nname = "shop"\n', encoding="utf-8")
    return load_settings(tmp_path)


@pytest.fixture
def guarded() -> Iterator[str]:
    """A stand-in for Prefect's API that lets in a key or a user, without CSRF tokens as Prefect's own default."""
    user = base64.b64encode(b"anna:s3cret").decode()

    class Api(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            known = self.headers.get("Authorization") in (f"Basic {user}", "Bearer pnu_key")
            status = 404 if "csrf-token" in self.path else 200 if known else 401
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"[1]")

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/api"
        server.shutdown()


def said_by(show: Callable[[Settings], None], settings: Settings) -> str:
    with console.capture() as capture:
        show(settings)
    return " ".join(capture.get().split())


@pytest.mark.parametrize(
    ("credentials", "answer"),
    [
        ({"PREFECT_API_AUTH_STRING": "anna:s3cret"}, "[1] [1]"),
        ({"PREFECT_API_KEY": "pnu_key"}, "[1] [1]"),
        ({"PREFECT_API_KEY": "another"}, "None None"),
        ({}, "None None"),
    ],
)
def test_prefect_is_asked_with_the_credentials_of_the_environment(
    guarded: str, tmp_path: Path, credentials: dict[str, str], answer: str
) -> None:
    env = clean_environment() | ENV | {"PREFECT_HOME": str(tmp_path)} | credentials
    done = subprocess.run([sys.executable, "-c", ASK, guarded], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == answer, done.stderr


def test_nothing_up_is_reported(settings: Settings) -> None:
    assert "Nothing runs in the background" in said_by(print_processes, settings)
    assert not said_by(print_due, settings)


def test_a_run_in_progress_is_shown_with_its_step(settings: Settings) -> None:
    def show(settings: Settings) -> None:
        print_running(flows_of_commands(settings), "a command")

    with register_command(settings, "pipeline") as command:
        note_step(settings, command, "train")
        assert re.fullmatch(r"In progress: pipeline by a command since 20\S+, now train", said_by(show, settings))
    assert not said_by(show, settings)


def test_how_the_last_runs_ended_is_shown_with_the_reason(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    states = {
        "pipeline": {"type": "FAILED", "message": "Flow run encountered an exception: no file [x]\nat rows.csv"},
        "monitor": {"type": "COMPLETED", "message": None},
    }

    def answer(url: str, body: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
        assert "work_pools" in body  # a server that others share
        state = states[body["flows"]["name"]["any_"][0]]
        return [{"state": state | {"timestamp": "2026-11-21T02:05:09.12+00:00"}}]

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr("ondol.cli.status.post_prefect", answer)
    said = said_by(print_last, settings)
    assert said == (
        "Last pipeline: failed at 2026-11-21T02:05:09+00:00: Flow run encountered an exception: no file [x] "
        "Last monitor: completed at 2026-11-21T02:05:09+00:00"
    )
    monkeypatch.delenv("PREFECT_API_URL")
    assert not said_by(print_last, settings)


def test_one_process_is_stopped_and_the_others_continue(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(settings.root)
    with pytest.raises(UserError, match=r'no "workers": choose from prefect, mlflow, .* Did you mean "worker"'):
        up.bring_down(["workers"])
    worker, service = (start(settings, name, SLEEP, ENV) for name in ("worker", "service"))
    try:
        with console.capture() as capture:
            up.bring_down(["worker"])
        assert "worker stopped" in capture.get() and "`ml up` starts worker again" in capture.get()
        assert not running(settings, "worker") and running(settings, "service")
    finally:
        stop(settings, worker)
        stop(settings, service)


def test_retraining_needs_a_server_that_answers(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(settings.root)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    with pytest.raises(UserError, match=r"No Prefect server answers at http://127\.0\.0\.1:\d+/api: start it"):
        up.order_training()


def test_process_that_has_ended_is_named_with_its_log(settings: Settings) -> None:
    record = start(settings, "worker", SLEEP, ENV)
    try:
        supervisor = psutil.Process(record.pid)
        supervisor.kill()
        supervisor.wait(30)
        said = said_by(print_processes, settings)
        assert "worker has stopped `ml up` starts it again; see .ml/logs/worker.log" in said
    finally:
        stop(settings, record)


def test_process_that_does_not_answer_is_named_with_its_log(settings: Settings) -> None:
    record = start(settings, "service", SLEEP, ENV, free_port())
    try:
        assert f"service is not healthy {record.address}" in said_by(print_processes, settings)
    finally:
        stop(settings, record)


def test_prefect_that_is_down_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://anna:s3cret@127.0.0.1:9/api")
    said = said_by(print_due, settings)
    assert said == "No Prefect server answers at http://127.0.0.1:9/api: scheduled runs are not known."


def test_prefect_that_refuses_is_named(settings: Settings, guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", guarded)
    assert f"at {guarded} refuses the credentials (401): set PREFECT_API_AUTH_STRING" in said_by(print_due, settings)


@pytest.fixture
def guarded_by_host() -> Iterator[str]:
    """A server that does not know the name it is asked by: 0.0.0.0 leads to this machine and is not a loopback name."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    server = uvicorn.Server(uvicorn.Config(SameOrigin(app), port=free_port(), lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://0.0.0.0:{server.config.port}"
    server.should_exit = True
    thread.join()


def test_server_that_does_not_know_its_name_gets_it_rather_than_credentials(
    settings: Settings, guarded_by_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remedy = "does not answer under this name: where it runs, add it to [ports] hosts (ML_PORTS__HOSTS)."
    monkeypatch.setenv("PREFECT_API_URL", f"{guarded_by_host}/api")
    assert said_by(print_due, settings).startswith(f"The Prefect server at {guarded_by_host}/api {remedy}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", guarded_by_host)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError) as refused:
        connect_mlflow(settings)
    assert str(refused.value).startswith(f"The MLflow server at {guarded_by_host} {remedy}")


def test_paused_loop_is_reported_before_there_is_a_champion(settings: Settings) -> None:
    pause(open_store(settings), "audit")
    [line] = loop_lines(Project(settings))
    assert line.startswith("Automatic retraining is paused since ")
    assert line.endswith(": audit")


def test_alerts_without_a_receiver_are_counted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not said_by(print_alerts, settings)
    alert(settings, "drift", "age drifted", "look")
    assert said_by(print_alerts, settings).startswith("Alerts not sent: 1.")
    monkeypatch.setenv("ML_ALERTS__WEBHOOK", f"http://127.0.0.1:{free_port()}/")
    known = load_settings(settings.root)
    assert "waiting to be sent: 1 (ConnectionRefusedError)" in said_by(print_alerts, known)
    refused(known).mkdir()
    [path] = waiting(known)
    path.rename(refused(known) / path.name)
    assert "receiver rejected: 1, in .ml/store/alerts/refused." in said_by(print_alerts, known)


def test_deploying_that_takes_too_long_is_one_sentence(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "DEPLOY_SECONDS", 0.01)
    with pytest.raises(UserError, match=r"did not finish within .* `ml up` again"):
        up.deploy_flows(settings, "http://127.0.0.1:9/api")
