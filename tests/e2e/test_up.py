"""`ml up` and `ml down` for real: four servers in the background, a run by the worker, and nothing left behind."""

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import Render

from e2e.support import Done, Project, files_of, make_project, refuse, succeed, wait_for, wait_until_alone
from ondol.orchestration.guard import free_port

NAMES = ("prefect", "mlflow", "service", "worker")
STAGES = {"pipeline", "ingest", "validate", "train", "evaluate", "deploy"}


class Up:
    """A project with running servers, the output of `ml up`, and a client without an address."""

    def __init__(self, project: Project, printed: str, taken: int) -> None:
        self.project, self.printed, self.taken = project, printed, taken
        self.client = httpx.Client(timeout=30, trust_env=False, follow_redirects=True)

    def record(self, name: str) -> dict[str, Any]:
        path = self.project.root / ".ml" / "run" / f"{name}.json"
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.record(name)['port']}"

    def prefect(self, path: str, **body: Any) -> Any:
        answer = self.client.post(f"{self.address('prefect')}/api{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def runs(self) -> dict[str, dict[str, Any]]:
        return {run["id"]: run for run in self.prefect("/flow_runs/filter", limit=200)}


@pytest.fixture(scope="module")
def up(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Everything up, after a run by an embedded server; the port that the service wants is taken."""
    project = make_project(render(), tmp_path_factory.mktemp("up") / "customer-churn", 1_500)
    project.run()
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        project.choose_ports().configure("service", port=taken)
        made = Up(project, succeed(project.ml("up")).stdout, taken)
        with project.brought_down():
            yield made
            made.client.close()


def test_taken_port_is_named_with_the_one_instead(up: Up) -> None:
    instead = up.record("service")["port"]
    assert instead != up.taken
    assert f"Port {up.taken} is in use: service takes {instead} instead." in up.printed


def test_addresses_are_printed_and_answer(up: Up) -> None:
    for name in NAMES[:3]:
        assert up.address(name) in up.printed
    assert 'id="root"' in up.client.get(up.address("mlflow")).text
    assert up.client.get(f"{up.address('service')}/readyz").status_code == 200


def test_prefects_pages_load_and_know_the_api(up: Up) -> None:
    page = up.client.get(up.address("prefect"))
    scripts = re.findall(r'(?:src|href)="(/[^"]+\.(?:js|css))"', page.text)
    assert scripts
    for script in scripts:
        assert up.client.get(up.address("prefect") + script).status_code == 200
    settings = up.client.get(f"{up.address('prefect')}/ui-settings").json()
    assert settings["api_url"] == "/api"  # of the origin that the browser asked


def test_everything_listens_on_the_loopback_alone(up: Up) -> None:
    ports = {up.record(name)["port"] for name in NAMES[:3]}
    listening = [c for c in psutil.net_connections("inet") if c.status == "LISTEN" and c.laddr.port in ports]
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}


def test_runs_made_before_are_shown(up: Up) -> None:
    flows = {flow["id"]: flow["name"] for flow in up.prefect("/flows/filter")}
    done = {flows[run["flow_id"]] for run in up.runs().values() if run["state_type"] == "COMPLETED"}
    assert done >= STAGES
    query = {"experiment_ids": ["0", "1"], "max_results": 10}
    answer = up.client.post(f"{up.address('mlflow')}/api/2.0/mlflow/runs/search", json=query)
    assert answer.json()["runs"]


def flow_of(deployment: dict[str, Any]) -> str:
    return str(deployment["entrypoint"]).rpartition(":")[2]


def test_flows_are_deployed_with_what_people_read(up: Up) -> None:
    found = {flow_of(one): one for one in up.prefect("/deployments/filter")}
    assert {flow: one["name"] for flow, one in found.items()} == {flow: f"customer-churn-{flow}" for flow in found}
    assert found.keys() == {*STAGES, "monitor", "predict", "rollout", "alerts"}
    assert all(one["description"] for one in found.values())
    shown = found["pipeline"]["parameter_openapi_schema"]["properties"]["breaking"]["description"]
    assert shown.startswith("Deploy even if")
    assert found["train"]["concurrency_options"]["collision_strategy"] == "ENQUEUE"


def test_up_again_leaves_what_runs_and_says_so(up: Up) -> None:
    before = [up.record(name) for name in NAMES]
    said = succeed(up.project.ml("up")).stdout
    assert "runs already" not in up.printed
    assert "Everything was already running: only the flows were deployed again." in said
    for record in before:
        address = f"http://127.0.0.1:{record['port']}" if record["port"] else "polls for runs"
        assert re.search(rf"{record['name']} +{address} +runs already, since {re.escape(record['since'])}", said), said
    assert [up.record(name) for name in NAMES] == before


def test_status_shows_what_runs_and_what_is_due(up: Up) -> None:
    until(lambda: "Next runs: " in succeed(up.project.ml("status")).stdout, "a run is scheduled")
    said = succeed(up.project.ml("status")).stdout
    assert "version 1 is in production" in said
    for name in NAMES[:3]:
        assert re.search(rf"{name} +runs +{up.address(name)} +since 20", said), said
    assert re.search(r"worker +runs", said)
    assert re.search(r"Next runs: .*pipeline in", said)


def test_monitors_event_makes_the_worker_run_the_pipeline(up: Up) -> None:
    before = up.runs()
    event = {
        "event": "ml.retrain",
        "resource": {"prefect.resource.id": "ml.project.customer-churn"},
        "occurred": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "id": "0e3b7c1a-6c0f-4f57-9d35-2f2f6a2b9c11",
    }
    assert up.client.post(f"{up.address('prefect')}/api/events", json=[event]).is_success
    run = wait_for_new_pipeline(up, before)
    assert run["state_type"] == "COMPLETED", run["state"]
    data = up.project.latest["ingest"][:12]
    assert run["name"] == f"pipeline version 1, data {data}"
    names = {one["name"] for one in up.runs().values()}
    assert {f"train version 1, data {data}", f"deploy version 1, data {data}", f"ingest data {data}"} <= names


def test_command_uses_the_server_that_runs(up: Up) -> None:
    log = up.project.root / ".ml" / "logs" / "prefect-server.log"
    written, before = log.stat().st_mtime_ns, up.runs()
    succeed(up.project.ml("ingest"))
    assert log.stat().st_mtime_ns == written
    assert len(up.runs()) == len(before) + 1


@pytest.mark.slow
def test_killed_worker_is_replaced_and_its_run_begins_again(up: Up) -> None:
    before = up.runs()
    [pipeline] = [one for one in up.prefect("/deployments/filter") if flow_of(one) == "pipeline"]
    up.prefect(f"/deployments/{pipeline['id']}/create_flow_run", state={"type": "SCHEDULED"})
    until(lambda: [r for i, r in up.runs().items() if i not in before and r["state_type"] == "RUNNING"], "it runs")
    for name in NAMES:
        for child in psutil.Process(up.record(name)["pid"]).children():
            child.kill()
    for name, path in (("prefect", "/api/health"), ("mlflow", "/health"), ("service", "/readyz")):
        wait_for(up.client, up.address(name) + path, 200, 90)
    run = wait_for_new_pipeline(up, before)
    assert (run["state_type"], run["run_count"]) == ("COMPLETED", 2)


@pytest.mark.slow
def test_down_leaves_no_process_and_no_port_even_during_a_run(up: Up) -> None:
    [pipeline] = [one for one in up.prefect("/deployments/filter") if flow_of(one) == "pipeline"]
    before = up.runs()
    up.prefect(f"/deployments/{pipeline['id']}/create_flow_run", state={"type": "SCHEDULED"})
    until(lambda: [r for i, r in up.runs().items() if i not in before and r["state_type"] == "RUNNING"], "it runs")
    require_down(up)
    succeed(up.project.ml("up"))


def test_down_leaves_nothing_and_says_so(up: Up) -> None:
    require_down(up)
    assert "Nothing of this project is running" in succeed(up.project.ml("down")).stdout
    assert "Nothing runs in the background" in succeed(up.project.ml("status")).stdout
    sizes = [path.stat().st_size for path in (up.project.root / ".ml" / "logs").iterdir()]
    assert max(sizes) <= 5_000_000


def test_flow_that_cannot_be_imported_is_named_before_anything_is_deployed(render: Render, tmp_path: Path) -> None:
    """Prefect itself deploys it without a word."""
    project = make_project(render(), tmp_path / "customer-churn", 1_500, PREFECT_API_URL="http://127.0.0.1:9/api")
    project.configure("service", port=free_port())
    project.configure("ports", mlflow=free_port())
    (project.root / "flows" / "train.py").write_text("import nowhere_to_be_found\n", encoding="utf-8")
    try:
        assert "nowhere_to_be_found" in refuse(project.ml("up"))
    finally:
        succeed(project.ml("down"))
    assert not wait_until_alone(project.root)
    assert files_of(project.root / ".ml" / "run").keys() <= {"lock"}


def require_down(up: Up) -> None:
    ports = [up.record(name)["port"] for name in NAMES[:3]]
    done: Done = succeed(up.project.ml("down"))
    assert "Everything is stopped" in done.stdout
    assert not wait_until_alone(up.project.root, 2)
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def wait_for_new_pipeline(up: Up, before: dict[str, Any]) -> dict[str, Any]:
    """Wait until a pipeline that is not among `before` has ended, and return it."""
    [flow] = [flow["id"] for flow in up.prefect("/flows/filter") if flow["name"] == "pipeline"]

    def ended() -> list[dict[str, Any]]:
        new = [run for key, run in up.runs().items() if key not in before and run["flow_id"] == flow]
        return [run for run in new if run["state_type"] in ("COMPLETED", "FAILED", "CANCELLED")]

    return dict(until(ended, "a pipeline ends", 180)[0])


def until(true: Any, what: str, seconds: float = 90) -> Any:
    """Poll until something is true, and return it."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := true():
                return found
        except httpx.TransportError:  # a server that was killed
            pass
        assert time.monotonic() < end, f"not in {seconds} s: {what}"
        time.sleep(0.5)
