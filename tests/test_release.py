"""`ml release` and `ml smoke`: two environments, each a store with a real service on the loopback."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Render
from e2e.support import Project, make_project, refuse, succeed, wait_for_version
from service_server import serve, wait_for

STAND_IN = """#!/usr/bin/env bash
# A container host: notes every command, remembers which image runs, and cannot pull an image called broken.
echo "$*" >>"$DOCKER_LOG"
image=${@: -1}
case "$3" in
    container) cat "$DOCKER_LOG.image" 2>/dev/null || true ;;
    pull) [ "$image" != broken ] || { echo "manifest unknown" >&2; exit 1; } ;;
    rm) rm -f "$DOCKER_LOG.image" ;;
    run) echo "$image" >"$DOCKER_LOG.image" ;;
esac
"""


class Environments:
    """A project with a served version, and two environments with a service each."""

    def __init__(self, project: Project, folder: Path, clients: dict[str, httpx.Client]) -> None:
        self.project, self.folder, self.clients = project, folder, clients

    def release(self, name: str, *words: str, **environment: str) -> Any:
        return self.project.ml("release", "--to", name, *words, **environment)

    def champion(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / name / "champion.json").read_text(encoding="utf-8")))

    def served(self, name: str) -> str:
        return str(self.clients[name].get("/model").json()["version"])

    def configure(self, name: str, **values: Any) -> None:
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        path = self.project.root / "config.toml"
        path.write_text(f"{path.read_text(encoding='utf-8')}\n[environments.{name}]\n{text}", encoding="utf-8")


@pytest.fixture(scope="module")
def environments(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environments]:
    folder = tmp_path_factory.mktemp("environments")
    project = make_project(render(), folder / "shop-churn")
    project.run()
    staging, production = folder / "staging", folder / "production"
    with serve(staging, folder / "s", ML_BUNDLE="") as first, serve(production, folder / "p", ML_BUNDLE="") as second:
        made = Environments(project, folder, {"staging": first, "production": second})
        for name, client in made.clients.items():
            made.configure(name, store=str(folder / name), url=str(client.base_url), wait_seconds=8)
        yield made


@pytest.fixture(scope="module")
def released(environments: Environments) -> Environments:
    """Version 1 serves in both environments, version 2 in the project."""
    succeed(environments.release("staging", "--why", "first"))
    succeed(environments.release("production", "--from", "staging", "--why", "proved in staging"))
    environments.project.configure("train", seed=7)
    environments.project.configure("gates", margin=1.0)
    environments.project.run()
    assert environments.project.champion
    assert environments.project.champion["version"] == "2"
    return environments


def test_release_brings_the_champion_to_a_service_that_has_none(environments):
    assert environments.clients["staging"].get("/readyz").status_code == 503
    said = succeed(environments.release("staging", "--why", "first")).stdout
    assert "version 1 serves in staging (first)" in said
    assert environments.served("staging") == "1"
    change = environments.champion("staging")["history"][-1]
    assert (change["action"], change["why"], change["from"]) == ("release", "first", None)
    assert change["who"]
    project = environments.project
    assert environments.champion("staging")["digest"] == project.champion["digest"]
    assert environments.clients["production"].get("/readyz").status_code == 503


def test_release_twice_changes_nothing(released):
    before = released.champion("production")
    succeed(released.release("production", "--from", "staging"))
    assert released.champion("production") == before


def test_smoke_proves_what_was_released_there(released):
    for name, client in released.clients.items():
        said = succeed(released.project.ml("smoke", str(client.base_url))).stdout
        assert f"serves version {released.champion(name)['version']}" in said
        assert "answers the example" in said


def test_smoke_fails_where_another_version_serves(released):
    """An address of no environment is held against the project's own champion."""
    address = str(released.clients["staging"].base_url).replace("127.0.0.1", "localhost")
    staging_serves_first = released.served("staging") == "1"
    assert staging_serves_first
    said = refuse(
        released.project.ml(
            "smoke",
            address,
            ML_ENVIRONMENTS__LOCAL__URL=address,
            ML_ENVIRONMENTS__LOCAL__STORE=str(released.project.store),
            ML_ENVIRONMENTS__LOCAL__WAIT_SECONDS="1",
        )
    )
    assert "serves version 1 of" in said
    assert "but version 2 of" in said


def test_release_to_a_service_that_does_not_follow_restores_the_champion(released):
    """The service at the address reads another store."""
    before = released.champion("production")
    address = str(released.clients["staging"].base_url)
    wrong = {"ML_ENVIRONMENTS__PRODUCTION__URL": address, "ML_ENVIRONMENTS__PRODUCTION__WAIT_SECONDS": "2"}
    done = released.release("production", **wrong)
    assert "version 1 serves again" in done.stdout
    assert "but version 2 of" in refuse(done)
    assert released.champion("production") == before
    wait_for_version(released.clients["production"], "1")


def test_release_to_a_service_that_is_down_says_so_and_restores_nothing_where_nothing_was(released, tmp_path):
    new = {"STORE": str(tmp_path / "store"), "URL": "http://127.0.0.1:9", "WAIT_SECONDS": "0.5"}
    said = refuse(released.release("new", **{f"ML_ENVIRONMENTS__NEW__{key}": value for key, value in new.items()}))
    assert said.startswith("http://127.0.0.1:9/readyz is not ready")
    assert not (tmp_path / "store" / "champion.json").exists()


def test_release_mends_a_damaged_copy(released, tmp_path):
    name = released.project.champion["bundle"]
    copy = released.folder / "staging" / "bundles" / name
    copy.mkdir(parents=True)
    (copy / "model.onnx").write_bytes(b"half")
    succeed(released.release("staging", "--why", "second"))
    assert released.served("staging") == "2"
    assert released.champion("staging")["history"][-1]["from"] == released.champion("production")["bundle"]
    # As the on-call person would: the environment's own store is rolled back.
    store = {"ML_STORE": str(released.folder / "staging")}
    succeed(
        released.project.ml("rollback", "--why", "night", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/no.db", **store)
    )
    assert released.champion("staging")["version"] == "1"
    wait_for(released.clients["staging"], "/readyz", 200)


@pytest.fixture
def host(released: Environments, tmp_path: Path) -> dict[str, str]:
    """The environment in which production has a container host, a stand-in."""
    command = tmp_path / "bin" / "docker"
    command.parent.mkdir()
    command.write_text(STAND_IN, encoding="utf-8")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    path = f"{command.parent}:{released.project.environment['PATH']}"
    log = str(tmp_path / "log")
    return {"PATH": path, "DOCKER_LOG": log, "ML_ENVIRONMENTS__PRODUCTION__HOST": "ssh://deploy@churn.example.org"}


def test_release_moves_the_image_with_the_least_rights(released, host):
    succeed(released.release("production", "--from", "staging", "--image", "churn:2", **host))
    lines = Path(host["DOCKER_LOG"]).read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("--host ssh://deploy@churn.example.org ") for line in lines)
    assert [line.split()[2] for line in lines] == ["container", "pull", "rm", "run"]
    for option in (
        "--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges",
        f"--volume {released.folder / 'production'}:/store --env ML_STORE=/store",
        "--publish 3000:3000",
        "--restart unless-stopped",
    ):
        assert option in lines[-1]
    assert lines[-1].endswith(" churn:2")


def test_release_that_fails_restores_image_and_champion(released, host):
    Path(f"{host['DOCKER_LOG']}.image").write_text("churn:1\n", encoding="utf-8")
    before = released.champion("production")
    done = released.release(
        "production", "--image", "churn:2", **host,
        ML_ENVIRONMENTS__PRODUCTION__URL="http://127.0.0.1:9", ML_ENVIRONMENTS__PRODUCTION__WAIT_SECONDS="0.5",
    )  # fmt: skip
    refuse(done)
    assert "churn:1 runs again" in done.stdout
    assert Path(f"{host['DOCKER_LOG']}.image").read_text(encoding="utf-8") == "churn:1\n"
    assert released.champion("production") == before


def test_image_that_cannot_be_pulled_moves_nothing(released, host):
    Path(f"{host['DOCKER_LOG']}.image").write_text("churn:1\n", encoding="utf-8")
    before = released.champion("production")
    said = refuse(released.release("production", "--image", "broken", **host))
    assert "manifest unknown" in said
    assert Path(f"{host['DOCKER_LOG']}.image").read_text(encoding="utf-8") == "churn:1\n"
    assert released.champion("production") == before


def test_mistakes_are_one_sentence(released):
    project = released.project
    assert 'Did you mean "staging"?' in refuse(project.ml("release", "--to", "stagin"))
    assert "one of its own" in refuse(
        project.ml("release", "--to", "staging", ML_ENVIRONMENTS__STAGING__STORE=str(project.store))
    )
    assert "No model is in service yet" in refuse(
        project.ml("release", "--to", "staging", ML_STORE=str(released.folder / "empty"))
    )


def test_report_is_a_table_of_metrics_and_gates(released):
    said = succeed(released.project.ml("report")).stdout
    assert "### Version 2 on " in said
    assert "| metric | candidate | champion | dummy |" in said
    assert "| margin |" in said
    assert "✅ passed" in said


def test_environments_are_listed_with_what_serves_there(released):
    said = succeed(released.project.ml("environments")).stdout
    assert f"| production | {released.champion('production')['version']} |" in said
    assert "No staging" not in said
    assert "`PREFECT_API_URL`" in said
