"""Web pages of other origins, in a real browser, against the servers of `ml up`, whose worker runs what it gets."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from conftest import Render

from e2e.browser import Browser, Page, open_browser
from e2e.support import Project, make_project, succeed

pytestmark = pytest.mark.slow

FOREIGN = "evil.example"  # leads to 127.0.0.1, as a name does whose owner rebinds it
WAYS = """
const outcomes = {};
const body = JSON.stringify(ORDER);
const late = () => new Promise(done => setTimeout(() => done('no answer'), 20000));
const say = async (way, act) => {
  try { outcomes[way] = await Promise.race([act(), late()]) } catch (error) { outcomes[way] = 'failed' }
};
const send = (more) => fetch(API + PATH, {method: 'POST', body, ...more}).then(r => r.status || 'sent');
await say('text', () => send({mode: 'no-cors', headers: {'Content-Type': 'text/plain'}}));
await say('untyped', () => send({mode: 'no-cors', body: new Blob([body])}));
await say('beacon', () => String(navigator.sendBeacon(API + PATH, new Blob([body], {type: 'text/plain'}))));
await say('json', () => send({headers: {'Content-Type': 'application/json'}}));
await say('form', () => new Promise(done => {
  const [frame, form, field] = ['iframe', 'form', 'input'].map(name => document.createElement(name));
  frame.name = form.target = 'answer' + performance.now();
  Object.assign(form, {method: 'post', enctype: 'text/plain', action: API + PATH});
  field.name = body.slice(0, -1) + ',"x":"'; field.value = '"}';
  form.append(field); document.body.append(frame, form);
  frame.onload = () => done('sent');
  form.submit();
}));
await say('read', () => fetch(API + READ, {headers: {}}).then(r => r.text()));
for (const path of SOCKETS)
  await say(path, () => new Promise(done => {
    const socket = new WebSocket(API.replace('http', 'ws') + path);
    socket.onopen = () => done('open'); socket.onerror = () => done('failed');
  }));
return outcomes;
"""
SOCKETS = ["/events/in", "/events/out", "/logs/out"]


class Servers:
    """A project whose servers run, a browser, and a page of another port of this machine."""

    def __init__(self, project: Project, browser: Browser, elsewhere: int) -> None:
        self.project, self.browser, self.elsewhere = project, browser, elsewhere
        self.client = httpx.Client(timeout=60, trust_env=False)
        self.ports = {name: self.record(name) for name in ("prefect", "mlflow")}

    def record(self, name: str) -> int:
        return int(json.loads((self.project.root / ".ml" / "run" / f"{name}.json").read_text(encoding="utf-8"))["port"])

    def prefect(self, path: str, **body: Any) -> Any:
        answer = self.client.post(f"http://127.0.0.1:{self.ports['prefect']}/api{path}", json=body)
        return answer.raise_for_status().json()

    def deployment(self, flow: str) -> str:
        [found] = self.prefect("/deployments/filter", flows={"name": {"any_": [flow]}})
        return str(found["id"])

    def runs(self, deployment: str) -> int:
        return int(self.prefect("/flow_runs/count", deployments={"id": {"any_": [deployment]}}))

    def experiments(self) -> set[str]:
        url = f"http://127.0.0.1:{self.ports['mlflow']}/api/2.0/mlflow/experiments/search"
        found = self.client.post(url, json={"max_results": 1000}).raise_for_status().json()
        return {experiment["name"] for experiment in found["experiments"]}

    def attack(self, page: Page, server: str, path: str, order: dict[str, Any], read: str) -> dict[str, Any]:
        """Let a page send `order` in every way that it has, and return how each seemed to end."""
        api = f"http://127.0.0.1:{self.ports[server]}" + ("/api" if server == "prefect" else "")
        known = {"API": api, "PATH": path, "ORDER": order, "READ": read}
        known["SOCKETS"] = SOCKETS if server == "prefect" else []
        constants = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in known.items())
        return dict(page.run(f"(async () => {{ {constants}{WAYS} }})()"))


class Blank(BaseHTTPRequestHandler):
    """Answers with an empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title>")

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def serve_blank() -> Iterator[int]:
    """Serve empty pages from a port of their own until the block ends; yield the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Blank)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def servers(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("foreign")
    project = make_project(render(), folder / "shop-churn", 300).choose_ports()
    with (
        open_browser(folder / "chromium", FOREIGN, "localhost") as browser,
        serve_blank() as elsewhere,
        project.brought_down(),
    ):
        succeed(project.ml("up"))
        made = Servers(project, browser, elsewhere)
        yield made
        made.client.close()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", FOREIGN])
def test_page_of_another_origin_starts_and_reads_nothing(servers: Servers, tmp_path: Path, name: str) -> None:
    proof, ingest = tmp_path / "proof", servers.deployment("ingest")
    order = {"state": {"type": "SCHEDULED"}, "job_variables": {"command": f"touch {proof}"}}
    before, experiments = servers.runs(ingest), servers.experiments()
    with servers.browser.page() as page:
        page.open(f"http://{name}:{servers.elsewhere}/")
        page.await_true("document.title === 'elsewhere'")
        seemed = servers.attack(page, "prefect", f"/deployments/{ingest}/create_flow_run", order, "/flows/count")
        assert {seemed[way] for way in ("json", "read", *SOCKETS)} == {"failed"}
        made = {"name": "made-by-a-page"}
        seemed = servers.attack(
            page, "mlflow", "/api/2.0/mlflow/experiments/create", made, "/api/2.0/mlflow/experiments/get"
        )
        assert {seemed[way] for way in ("json", "read")} == {"failed"}
    assert servers.runs(ingest) == before
    assert not proof.exists()
    assert servers.experiments() == experiments


@pytest.mark.parametrize("server", ["prefect", "mlflow"])
def test_name_that_is_rebound_to_this_machine_gets_no_page(servers: Servers, server: str) -> None:
    with servers.browser.page() as page:
        page.open(f"http://{FOREIGN}:{servers.ports[server]}/")
        page.await_text("This server does not answer for the host")


@pytest.mark.parametrize("server", ["prefect", "mlflow"])
def test_page_of_another_origin_cannot_frame_the_servers(servers: Servers, server: str) -> None:
    address = f"http://127.0.0.1:{servers.ports[server]}/"
    with servers.browser.page() as page:
        page.open(f"http://127.0.0.1:{servers.elsewhere}/")
        page.await_true("document.title === 'elsewhere'")
        page.run(
            "new Promise(done => { const frame = document.createElement('iframe'); frame.onload = () => done(0);"
            f" frame.src = {json.dumps(address)}; document.body.append(frame); }})"
        )
        page.settle()
        assert "Prefect" not in page.text and "MLflow" not in page.text
        assert not page.run("document.querySelector('iframe').contentWindow.length")


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_own_pages_still_work_under_both_names_of_this_machine(servers: Servers, name: str) -> None:
    with servers.browser.page() as page:
        page.open(f"http://{name}:{servers.ports['prefect']}/deployments")
        page.await_text("pipeline", "monitor")
        page.open(f"http://{name}:{servers.ports['mlflow']}/#/experiments")
        page.await_text("Default")


def test_own_page_starts_a_run_that_the_worker_takes(servers: Servers, tmp_path: Path) -> None:
    """The same request as that of the foreign pages starts a run."""
    proof, ingest = tmp_path / "proof", servers.deployment("ingest")
    order = {"state": {"type": "SCHEDULED"}, "job_variables": {"command": f"touch {proof}"}}
    with servers.browser.page() as page:
        page.open(f"http://127.0.0.1:{servers.ports['prefect']}/deployments")
        page.await_text("pipeline")
        seemed = servers.attack(page, "prefect", f"/deployments/{ingest}/create_flow_run", order, "/flows/count")
    assert seemed["json"] in (200, 201)
    assert {seemed[path] for path in SOCKETS} == {"open"}
    end = time.monotonic() + 120
    while not proof.exists():
        assert time.monotonic() < end, "the worker did not run it"
        time.sleep(0.5)
