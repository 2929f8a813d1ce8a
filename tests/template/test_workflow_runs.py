"""Every `run:` step of a project's workflows, executed in order in a rendered project."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from actions_support import Expressions, Runner
from conftest import Render
from docker_support import DockerHost
from e2e.support import make_project, prefect_server
from service_server import serve
from template_support import clean_environment, commit_all, find_uv, git

pytestmark = pytest.mark.slow
DIGEST = "sha256:" + "1" * 64
IMAGE = f"ghcr.io/acme/shop-churn:{'0' * 40}@{DIGEST}"


class Registry:
    """Stand-ins for the actions; what was built and pushed is noted."""

    def __init__(self) -> None:
        self.pushed: list[dict[str, str]] = []
        self.attested: list[dict[str, str]] = []
        self.opened: list[dict[str, str]] = []

    def stand_ins(self) -> dict[str, Any]:
        def nothing(_: dict[str, str]) -> dict[str, str]:
            return {}

        return {
            "actions/checkout": nothing,
            "astral-sh/setup-uv": nothing,
            "docker/setup-buildx-action": nothing,
            "docker/login-action": nothing,
            "docker/metadata-action": self.name,
            "docker/build-push-action": lambda given: self.pushed.append(given) or {"digest": DIGEST},
            "actions/attest-build-provenance": lambda given: self.attested.append(given) or {},
            "peter-evans/create-pull-request": lambda given: self.opened.append(given) or {},
        }

    def name(self, given: dict[str, str]) -> dict[str, str]:
        """As the action does: lower case, one tag for the commit."""
        tag = f"{given['images'].lower()}:{'0' * 40}"
        return {"tags": tag, "labels": "", "json": json.dumps({"tags": [tag]})}


@pytest.fixture(scope="module")
def expressions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Expressions]:
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("running workflows needs node and npm: apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "@actions/expressions@0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"@actions/expressions cannot be installed: {done.stderr[-300:]}")
    evaluator = Expressions(folder)
    yield evaluator
    evaluator.close()


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


@pytest.fixture(scope="module")
def runner(
    expressions: Expressions,
    registry: Registry,
    render: Render,
    postgres: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Runner:
    """A project, locked and committed by its owner, with uv as GitHub's machines have it."""
    uv = find_uv()
    if uv is None:
        pytest.skip("running workflows needs the uv binary: pip install uv")
    folder = tmp_path_factory.mktemp("runs")
    root = make_project(render(), folder / "shop-churn").root
    environment = clean_environment() | {"PATH": f"{Path(uv).parent}:{os.environ['PATH']}", "UV_PYTHON": sys.executable}
    subprocess.run([uv, "lock", "--quiet"], cwd=root, env=environment, check=True, timeout=300)
    commit_all(root)
    commit_all(root)  # an older and a newer commit
    made = Runner(expressions, root, environment, registry.stand_ins())
    made.called["ci.yml"] = "success"  # the test below runs it
    made.services["postgresql://postgres@127.0.0.1:5432/postgres"] = postgres
    return made


def test_ci_passes_in_a_new_project(runner):
    ended = runner.run("ci.yml")
    assert set(ended.values()) == {"success"}, runner.output
    assert runner.ran[:2] == ["uv lock --check", "uv sync --locked"]
    said = runner.summary.read_text(encoding="utf-8")
    assert "| metric | candidate |" in said
    assert "| floor |" in said


def test_nothing_is_built_or_released_where_the_checks_fail(runner, registry, monkeypatch):
    monkeypatch.setitem(runner.called, "ci.yml", "failure")
    servers = {"PREFECT_API_URL": "http://127.0.0.1:9", "ML_ENVIRONMENTS__STAGING__STORE": "nowhere"}
    ended = runner.run("deploy.yml", vars=servers)
    assert (ended["ci"], ended["deploy-ok"]) == ("failure", "failure")
    assert {ended[name] for name in ("image", "flows", "staging", "production")} == {"skipped"}
    assert registry.pushed == []


def test_deploy_without_an_environment_ends_after_the_images_and_says_what_to_set(runner, registry):
    ended = runner.run("deploy.yml")
    assert ended == {
        "ci": "success",
        "image": "success",
        "flows": "skipped",
        "staging": "skipped",
        "production": "skipped",
        "summary": "success",
        "deploy-ok": "success",
    }, runner.output
    assert [push["target"] for push in registry.pushed] == ["service", "worker"]
    assert registry.pushed[0]["tags"] == f"ghcr.io/acme/shop-churn:{'0' * 40}"
    assert registry.attested == []
    said = runner.summary.read_text(encoding="utf-8")
    assert "`ML_ENVIRONMENTS__STAGING__STORE`" in said
    assert "`PREFECT_API_URL`" in said


def model(client: httpx.Client) -> Any:
    """The version that a service serves, None for none."""
    return client.get("/model").json().get("version")


@pytest.fixture
def hosts(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[DockerHost, DockerHost]:
    """The container hosts of staging and production."""
    made = [DockerHost(tmp_path, name, IMAGE) for name in ("staging", "production")]
    for host in made:
        path = f"{host.environment['PATH']}:{runner.environment['PATH']}"
        monkeypatch.setitem(runner.environment, "PATH", path)
    monkeypatch.setitem(runner.environment, "DOCKER_STATE", str(tmp_path))
    return made[0], made[1]


@contextmanager
def environments(folder: Path, *hosts: DockerHost) -> Iterator[tuple[dict[str, str], httpx.Client, httpx.Client]]:
    """Run the services of staging and production; yield the variables of the repository that name them."""
    with serve(folder / "staging", folder / "s") as staging, serve(folder / "production", folder / "p") as production:
        values = {}
        for name, client in (("STAGING", staging), ("PRODUCTION", production)):
            values[f"ML_ENVIRONMENTS__{name}__STORE"] = str(folder / name.lower())
            values[f"ML_ENVIRONMENTS__{name}__URL"] = str(client.base_url)
        values |= {f"ML_ENVIRONMENTS__{host.place.stem.upper()}__HOST": host.address for host in hosts}
        yield values, staging, production


ALONE = {"ci": "skipped", "image": "skipped", "flows": "skipped", "staging": "skipped"}


def test_deploy_and_retrain_with_servers_and_environments(runner, registry, tmp_path, monkeypatch):
    with (
        prefect_server(tmp_path / "prefect", tmp_path / "prefect.log") as prefect,
        environments(tmp_path) as (values, staging, production),
    ):
        values |= {"PREFECT_API_URL": prefect, "ATTEST": "true"}
        ended = runner.run("deploy.yml", vars=values)
        assert (ended["staging"], ended["production"], ended["deploy-ok"]) == ("success", "skipped", "success"), (
            runner.output
        )
        assert (model(staging), model(production)) == ("1", None)  # no reviewers: production is released by hand
        assert [made["subject-digest"] for made in registry.attested] == [DIGEST]
        assert "| staging | 1 |" in runner.summary.read_text(encoding="utf-8")

        assert set(runner.run("retrain.yml", "workflow_dispatch", vars=values).values()) == {"success"}, runner.output
        runs = httpx.post(f"{prefect}/flow_runs/filter", json={}, trust_env=False).json()
        assert [run for run in runs if run["state_type"] == "SCHEDULED" and not run["auto_scheduled"]]

        staging_is_down = values | {"ML_ENVIRONMENTS__STAGING__URL": "http://127.0.0.1:9", "REVIEWERS": "true"}
        staging_is_down |= {"ML_ENVIRONMENTS__STAGING__STORE": str(tmp_path / "missing")}
        monkeypatch.setitem(runner.environment, "ML_ENVIRONMENTS__STAGING__WAIT_SECONDS", "1")
        ended = runner.run("deploy.yml", vars=staging_is_down)
        assert (ended["staging"], ended["production"], ended["deploy-ok"]) == ("failure", "skipped", "failure")
        assert model(production) is None
    assert runner.run("retrain.yml", "workflow_dispatch")["retrain-ok"] == "failure"


def test_late_approval_releases_what_this_run_has_proved_and_a_dispatch_its_environment_alone(
    runner, registry, hosts, tmp_path, monkeypatch
):
    def ml(*words: str, **environment: str) -> None:
        command = ["uv", "run", "ml", *words]
        env = runner.environment | environment
        done = subprocess.run(command, cwd=runner.project, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    def retrain_and_release() -> None:
        """While production waits for its approval, staging gets another model and another image."""
        ml("run", ML_TRAIN__SEED="7", ML_GATES__MARGIN="1")
        ml("release", "--to", "staging", "--image", "churn:2", **values)

    def dispatch(environment: str, **inputs: str) -> dict[str, str]:
        return runner.run("deploy.yml", "workflow_dispatch", vars=values, inputs={"environment": environment, **inputs})

    with environments(tmp_path, *hosts) as (values, staging, production):
        values |= {"REVIEWERS": "true", "ML_ENVIRONMENTS__PRODUCTION__VARIABLES": '["ML_LOG_KEY"]'}
        monkeypatch.setitem(runner.meanwhile, "production", retrain_and_release)
        ended = runner.run("deploy.yml", vars=values, secrets={"ML_LOG_KEY": "very secret"})
        assert ended["production"] == ended["deploy-ok"] == "success", runner.output
        assert (model(staging), model(production)) == ("2", "1")
        assert [list(host.running.values()) for host in hosts] == [["churn:2"], [IMAGE]]
        (made,) = hosts[1].containers.values()
        assert made["env"]["ML_LOG_KEY"] == "very secret"
        assert "very secret" not in str(hosts[1].state["log"])

        del runner.meanwhile["production"], values["ML_ENVIRONMENTS__PRODUCTION__VARIABLES"]
        pushed = len(registry.pushed)
        assert dispatch("production") == ALONE | {
            "production": "success", "summary": "success", "deploy-ok": "success"
        }, runner.output  # fmt: skip
        assert len(registry.pushed) == pushed  # it runs what staging has proved, and that is an image already
        assert (model(staging), model(production)) == ("2", "2")
        assert [list(host.running.values()) for host in hosts] == [["churn:2"], ["churn:2"]]
        assert "| production | 2 |" in runner.summary.read_text(encoding="utf-8")

        ended = dispatch("staging")
        assert (ended["staging"], ended["production"], ended["deploy-ok"]) == ("success", "skipped", "success")
        assert [list(host.running.values()) for host in hosts] == [[IMAGE], ["churn:2"]]

        newest = git(runner.project, "rev-parse", "HEAD").strip()
        older = git(runner.project, "rev-list", "--max-parents=0", "HEAD").strip()
        assert newest != older
        ended = runner.run("deploy.yml", sha=older, vars=values)  # its checks took longer than those of the newest
        assert (ended["staging"], ended["production"], ended["deploy-ok"]) == ("success", "skipped", "success")
        assert f"is behind {newest}" in runner.output
        assert [list(host.running.values()) for host in hosts] == [[IMAGE], ["churn:2"]]

        ended = dispatch("production", bundle="9-0123456789ab")
        assert (ended["production"], ended["deploy-ok"]) == ("failure", "failure")
        assert "No bundle 9-0123456789ab was in production" in runner.output
        assert model(production) == "2"


def test_dispatch_for_an_environment_that_is_not_configured_fails_and_says_what_to_set(runner):
    for name in ("staging", "production"):
        ended = runner.run("deploy.yml", "workflow_dispatch", inputs={"environment": name})
        assert (ended[name], ended["deploy-ok"]) == ("failure", "failure")
        assert f"[environments.{name}] with store and url" in runner.output


def test_template_opens_a_pull_request_only_with_its_token(runner, registry):
    assert set(runner.run("template.yml", "schedule").values()) == {"success"}, runner.output
    assert registry.opened == []
    assert "TEMPLATE_TOKEN is not set" in runner.summary.read_text(encoding="utf-8")
    commit_all(runner.project)
    ended = runner.run("template.yml", "schedule", secrets={"TEMPLATE_TOKEN": "t"})
    assert set(ended.values()) == {"success"}, runner.output
    assert [made["branch"] for made in registry.opened] == ["template-update"]
