"""ops/compose.yaml without an engine: each service's own command as a process, in order, its own health check run.

PostgreSQL, Prometheus and Alertmanager are Debian's. Grafana is not run: Debian does not have it.
"""

import base64
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from compose_support import PORTS, Containers, read_compose
from conftest import Render
from dotenv import dotenv_values
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from e2e.support import Project, make_project, processes_in, refuse, succeed, wait_for, wait_until_alone
from ondol.orchestration.guard import free_port

pytestmark = pytest.mark.slow
SECONDS = 900.0  # until a service is healthy, or a run has ended
WEBHOOK = "http://alerts.invalid/hook?a=1&b=%7C"
PASSWORD = "p@ss:w/rd%41#?&=+ ${HOME} 비밀'\""  # of PostgreSQL, which may hold any character
OTHERS = {"prometheus": "prometheus", "alertmanager": "prometheus-alertmanager"}  # a service, and Debian's name for it


class Postgres:
    """The image's entry point: create the cluster, the user and the database, run the scripts, and start."""

    def __init__(self, containers: Containers) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found:
            pytest.skip("PostgreSQL's server is absent: apt-get install postgresql")
        self.programs, self.containers = found[-1].parent, containers
        self.options: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        self.folder = Path(tempfile.mkdtemp(prefix="ml-postgres-"))  # pytest's own folders are closed to other users
        if self.options:
            shutil.chown(self.folder, "postgres", "postgres")
        self.data = str(self.folder / "data")

    def make(self) -> None:
        told = self.containers.services["postgres"]["environment"]
        user, socket = told["POSTGRES_USER"], str(self.folder)
        password = self.folder / "password"
        secret = self.containers.inside("postgres", told["POSTGRES_PASSWORD_FILE"])
        password.write_bytes(secret.read_bytes())
        password.chmod(0o644)
        self.run("initdb", "--username", user, f"--pwfile={password}", "--auth=scram-sha-256", "--auth-local=trust")
        self.run("pg_ctl", "--wait", f"--options=-c listen_addresses='' -k {socket}", f"--log={socket}/log", "start")
        connection = ["--host", socket, "--username", user]
        self.run(
            "psql", *connection, "--dbname=postgres", f"--command=CREATE DATABASE {told['POSTGRES_DB']}", data=False
        )
        script = (self.containers.project / "ops" / "postgres.sql").read_text(encoding="utf-8")
        self.run("psql", *connection, f"--dbname={told['POSTGRES_DB']}", f"--command={script}", data=False)
        self.run("pg_ctl", "--wait", "stop")

    def run(self, program: str, *words: str, data: bool = True) -> None:
        where = ["--pgdata", self.data] if data else []
        command = [str(self.programs / program), *where, *words]
        done = subprocess.run(
            command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **self.options
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        command = [str(self.programs / "postgres"), "-D", self.data, "-k", str(self.folder), "-h", "127.0.0.1"]
        command += ["-p", str(self.containers.ports["postgres"])]
        self.containers.run("postgres", command, cwd=self.folder, env={"PATH": os.environ["PATH"]}, **self.options)


class Stack:
    """The containers as `docker compose up --wait` starts them, and the order of events."""

    def __init__(self, containers: Containers, project: Project) -> None:
        self.containers, self.project, self.happened = containers, project, list[tuple[str, str]]()
        self.commands: set[str] = set()
        self.ended = threading.Event()
        self.watch = threading.Thread(target=self.watch_commands)
        self.postgres = Postgres(containers)
        self.files: dict[str, set[str]] = {}

    def watch_commands(self) -> None:
        """Collect every command line of the containers, as `ps` shows them to all users."""
        while not self.ended.wait(0.3):
            self.commands |= set(processes_in(self.containers.root).values())

    def logins(self) -> dict[str, str]:
        """The variables of ops/secrets/servers.env."""
        found = dotenv_values(self.project.root / "ops" / "secrets" / "servers.env")
        return {name: str(value) for name, value in found.items()}

    def up(self) -> None:
        self.watch.start()
        for name, service in self.containers.services.items():
            for other, how in service.get("depends_on", {}).items():
                self.wait(other, how["condition"])
            self.start(name)
        for name in self.containers.processes:
            if "healthcheck" in self.containers.services[name]:
                self.wait(name, "service_healthy")

    def start(self, name: str) -> None:
        program = shutil.which(OTHERS.get(name, ""))
        if name == "grafana" or (name in OTHERS and program is None):
            return
        self.containers.make(name, program)
        self.files[name] = self.containers.written(name)
        if name == "postgres":
            self.postgres.make()
            self.postgres.start()
        else:
            self.containers.start(name)
        self.happened.append((name, "started"))

    def wait(self, name: str, condition: str) -> None:
        if (name, condition) in self.happened or name not in self.containers.processes:
            return
        process, end = self.containers.processes[name], time.monotonic() + SECONDS
        if condition == "service_completed_successfully":
            assert process.wait(SECONDS) == 0, self.containers.said(name)
        else:
            while not self.containers.healthy(name):
                assert process.poll() is None, self.containers.said(name)
                assert time.monotonic() < end, self.containers.said(name)
                time.sleep(0.5)
        self.happened.append((name, condition))

    def down(self) -> dict[str, int]:
        """Ask each process to end, the last started first, as Docker does; return how each ended."""
        ended = {}
        for name, process in reversed(self.containers.processes.items()):
            if process.poll() is None:
                process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
                ended[name] = process.wait(60)
        return ended

    def kill(self) -> None:
        """End the processes that a failed test has left."""
        self.ended.set()
        self.watch.join()
        for process in self.containers.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)
        for pid in processes_in(self.containers.root):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.postgres.folder, ignore_errors=True)

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.containers.ports[name]}"


@pytest.fixture(scope="module")
def stack(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("compose")
    project = make_project(render(project_name="Shop churn"), folder / "shop-churn", 1_500)
    succeed(project.ml("compose", "secrets", POSTGRES_PASSWORD=PASSWORD))
    services = read_compose(project.root / "ops" / "compose.yaml", {"ALERTMANAGER_WEBHOOK": WEBHOOK})
    containers = Containers(folder / "engine", project.root, services, {name: free_port() for name in PORTS})
    made = Stack(containers, project)
    (folder / "engine").mkdir()
    try:
        made.up()
        yield made
    finally:
        made.kill()


def login(stack: Stack) -> tuple[str, str]:
    """The name and the password of Prefect."""
    name, _, password = stack.logins()["PREFECT_API_AUTH_STRING"].partition(":")
    return name, password


def ask(stack: Stack, path: str, **body: Any) -> Any:
    address = f"{stack.address('prefect')}/api/{path}"
    answer = httpx.post(address, json=body, auth=login(stack), timeout=60, trust_env=False)
    assert answer.is_success, answer.text
    return answer.json()


def test_all_become_healthy_each_after_what_it_waits_for(stack: Stack) -> None:
    happened, services = stack.happened, stack.containers.services
    absent = {name for name, program in OTHERS.items() if shutil.which(program) is None}
    assert set(stack.containers.processes) == services.keys() - {"grafana"} - absent
    for name in stack.containers.processes:
        done = "service_healthy" if "healthcheck" in services[name] else "service_completed_successfully"
        assert (name, done) in happened
        for other, how in services[name].get("depends_on", {}).items():
            assert happened.index((other, how["condition"])) < happened.index((name, "started"))


def test_flows_are_deployed_before_the_worker_starts(stack: Stack) -> None:
    deployed = ask(stack, "deployments/filter")
    assert {one["name"].partition("-churn-")[0] for one in deployed} == {"shop"}
    assert len(deployed) == 9
    order = stack.happened
    assert order.index(("flows", "service_completed_successfully")) < order.index(("worker", "started"))


def test_worker_runs_the_pipeline_and_the_service_answers_with_its_model(stack: Stack) -> None:
    with httpx.Client(base_url=stack.address("service"), timeout=60, trust_env=False) as client:
        assert client.get("/readyz").status_code == 503  # alive without a model
        done = stack.containers.execute("worker", "ml", "retrain")
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for(client, "/readyz", 200, SECONDS)
    said = stack.containers.execute("worker", "ml", "smoke", "http://service:3000")
    assert said.returncode == 0, said.stdout + said.stderr
    assert "serves version 1" in said.stdout
    assert (stack.containers.volume("store") / "champion.json").exists()
    assert list((stack.containers.volume("store") / "log").glob("*.jsonl"))
    assert list(stack.containers.volume("artifacts").rglob("MLmodel"))  # by MLflow's server, not by the worker
    wait_for_runs(stack)


def test_commands_for_a_person_on_call_work_in_the_workers_container(stack: Stack) -> None:
    """Those of docs/how-to/run-with-compose.md."""
    expected = {
        ("ml", "status"): "version 1",
        ("ml", "doctor"): "version 1, its bundle is intact",
        ("ml", "quarantine", "show", "--out", "/app/.ml/bad.csv"): "0 rows in",
        ("ml", "loop", "pause", "--why", "a test"): "paused",
        ("ml", "loop", "resume"): "resumed",
        ("ml", "data", "gc", "--dry-run"): "Nothing to delete",
        ("prefect", "flow-run", "ls", "--state", "COMPLETED"): "pipeline",
    }
    for words, text in expected.items():
        done = stack.containers.execute("worker", *words)
        assert done.returncode == 0 and text in done.stdout, (words, done.stdout, done.stderr)
    status = stack.containers.execute("worker", "ml", "status").stdout
    assert "Last pipeline: completed at" in status and "Next runs:" in status


GUARDED = [
    *(("prefect", "POST", path) for path in ("/api/flow_runs/filter", "/api/deployments/filter", "/api/logs/filter")),
    *(("prefect", "GET", path) for path in ("/api/admin/version", "/api/admin/settings", "/api/csrf-token?client=x")),
    *(("mlflow", "GET", path) for path in ("/", "/version", "/static-files/index.html", "/graphql", "/metrics")),
    *(("mlflow", "POST", f"/{api}/2.0/mlflow/experiments/search") for api in ("api", "ajax-api")),
    *(("mlflow", method, "/api/2.0/mlflow-artifacts/artifacts/0/x") for method in ("GET", "PUT", "DELETE")),
]


@pytest.mark.parametrize(("name", "method", "path"), GUARDED)
def test_servers_refuse_who_has_no_login(stack: Stack, name: str, method: str, path: str) -> None:
    other = {"prefect": "ML_MLFLOW_AUTH_STRING", "mlflow": "PREFECT_API_AUTH_STRING"}[name]
    user, _, password = stack.logins()[other].partition(":")
    for shown in (None, (user, ""), ("", password), ("admin", "admin"), (user, password)):
        answer = httpx.request(
            method,
            stack.address(name) + path,
            json={} if method == "POST" else None,
            auth=shown,
            trust_env=False,
            timeout=60,
        )
        assert answer.status_code == 401, (shown, answer.text)


def test_health_checks_need_no_login(stack: Stack) -> None:
    for address in (f"{stack.address('prefect')}/api/health", f"{stack.address('mlflow')}/health"):
        assert httpx.get(address, trust_env=False).status_code == 200


@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out"])
@pytest.mark.parametrize("subprotocols", [None, ["prefect"]])
def test_prefects_streams_refuse_who_has_no_login(stack: Stack, path: str, subprotocols: Any) -> None:
    address = f"ws://127.0.0.1:{stack.containers.ports['prefect']}/api/{path}"
    with (
        pytest.raises((ConnectionClosed, InvalidStatus)),
        connect(address, subprotocols=subprotocols, proxy=None) as one,
    ):
        one.send('{"type": "auth", "token": "bWw6"}')
        one.recv(60)
        one.recv(60)


def test_developer_uses_the_servers_with_the_same_logins(stack: Stack) -> None:
    """As docs/how-to/run-with-compose.md says: the addresses, and the lines of ops/secrets/servers.env, in `.env`."""
    project = stack.project
    addresses = f"PREFECT_API_URL={stack.address('prefect')}/api\nMLFLOW_TRACKING_URI={stack.address('mlflow')}\n"
    (project.root / ".env").write_text(addresses, encoding="utf-8")
    assert "refuses the credentials (401)" in refuse(project.ml("ingest"))
    with (project.root / ".env").open("a", encoding="utf-8") as file:
        file.write((project.root / "ops" / "secrets" / "servers.env").read_text(encoding="utf-8"))
    said = succeed(project.ml("run", timeout=SECONDS, ML_TRAIN__SEED="7")).stdout
    assert "Version 2 is in production" in said  # the worker has registered the first in this MLflow
    runs = ask(stack, "flow_runs/filter")
    assert any(run["name"].startswith("pipeline version 2") and run["state_type"] == "COMPLETED" for run in runs)


def test_no_password_is_in_a_command_line_a_variable_or_a_log(stack: Stack) -> None:
    folder = stack.project.root / "ops" / "secrets"
    secrets = {value.removeprefix("ml:") for value in stack.logins().values()} - {"ml"}
    secrets |= {(folder / name).read_text(encoding="utf-8").rstrip("\n") for name in ("postgres", "grafana")}
    assert len(secrets) == 4
    forms = secrets | {
        form for one in secrets for form in (quote(one, safe=""), base64_of(one), base64_of(f"ml:{one}"))
    }
    rendered = {name: str(stack.containers.environment(name)) for name in stack.containers.processes}
    logs = {
        path.name: path.read_text(encoding="utf-8", errors="replace") for path in stack.containers.root.glob("*.log")
    }
    logs["prefect"] = str(ask(stack, "logs/filter"))
    shown = {"compose": str(stack.containers.services), "commands": "\n".join(stack.commands), **rendered, **logs}
    assert any("prefect worker" in command or "-m prefect" in command for command in stack.commands), stack.commands
    assert not [(place, one) for place, text in shown.items() for one in forms if one in text]


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def wait_for_runs(stack: Stack) -> None:
    """Wait until every run that began has ended well."""
    end = time.monotonic() + SECONDS
    while True:
        runs = ask(stack, "flow_runs/filter")
        states = {run["name"]: run["state_type"] for run in runs if run["state_type"] != "SCHEDULED"}
        if set(states.values()) == {"COMPLETED"}:
            assert any(name.startswith("pipeline version 1") for name in states), states
            return
        assert time.monotonic() < end, states
        time.sleep(0.5)


@pytest.mark.parametrize("job", ["service", "loop"])
def test_prometheus_sees_the_service_and_the_worker(stack: Stack, job: str) -> None:
    if "prometheus" not in stack.containers.processes:
        pytest.skip("prometheus is absent: apt-get install prometheus")
    end = time.monotonic() + SECONDS
    while True:
        query = {"query": f'up{{job="{job}"}}'}
        found = httpx.get(f"{stack.address('prometheus')}/api/v1/query", params=query, trust_env=False).json()
        if [one["value"][1] for one in found["data"]["result"]] == ["1"]:
            return
        assert time.monotonic() < end, found
        time.sleep(0.5)


def test_prometheus_sends_its_alerts_to_alertmanager(stack: Stack) -> None:
    if not OTHERS.keys() <= stack.containers.processes.keys():
        pytest.skip("apt-get install prometheus prometheus-alertmanager")
    query = f"{stack.address('prometheus')}/api/v1/alertmanagers"
    found = httpx.get(query, trust_env=False).json()["data"]["activeAlertmanagers"]
    assert [one["url"] for one in found] == [f"{stack.address('alertmanager')}/api/v2/alerts"]
    status = httpx.get(f"{stack.address('alertmanager')}/api/v2/status", trust_env=False).json()
    assert "receiver: webhook" in status["config"]["original"]
    assert WEBHOOK in stack.containers.folder("alertmanager").joinpath("tmp/alertmanager.yaml").read_text("utf-8")


def test_nothing_is_written_but_to_volumes_and_tmp(stack: Stack) -> None:
    """The containers' file systems are read-only."""
    assert {name: stack.containers.written(name) - before for name, before in stack.files.items()} == {
        name: set() for name in stack.files
    }


def test_all_end_when_they_are_asked_to(stack: Stack) -> None:
    running = {name for name, process in stack.containers.processes.items() if process.poll() is None}
    assert running == set(stack.containers.processes) - {"flows"}
    assert set(stack.down()) == running
    assert not wait_until_alone(stack.containers.root)
