"""`ml release` and `ml smoke`: two environments, each a store with a real service on the loopback."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Render
from docker_support import DockerHost
from e2e.support import Project, make_project, refuse, succeed, wait_for_version
from service_server import serve, wait_for

from ondol.registry.champion import read_champion
from ondol.storage.store import Store

NAME, STAGING = "customer-churn-production", "customer-churn-staging"
SILENT = {  # answers at production's address
    "ML_ENVIRONMENTS__PRODUCTION__URL": "http://127.0.0.1:9",
    "ML_ENVIRONMENTS__PRODUCTION__WAIT_SECONDS": "0.5",
}


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

    def alerts(self, kind: str) -> list[str]:
        """The alerts of a kind, the oldest first."""
        outbox = sorted((self.project.store / "alerts" / "outbox").glob("*.json"))
        told = [json.loads(path.read_bytes()) for path in outbox]
        return [message["what"] for message in told if message["kind"] == kind]

    def configure(self, name: str, **values: Any) -> None:
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        path = self.project.root / "config.toml"
        path.write_text(f"{path.read_text(encoding='utf-8')}\n[environments.{name}]\n{text}", encoding="utf-8")


@pytest.fixture(scope="module")
def environments(render: Render, prefect: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environments]:
    folder = tmp_path_factory.mktemp("environments")
    project = make_project(render(), folder / "shop-churn", PREFECT_API_URL=prefect)
    project.run()
    staging, production = folder / "staging", folder / "production"
    with serve(staging, folder / "s", ML_BUNDLE="") as first, serve(production, folder / "p", ML_BUNDLE="") as second:
        made = Environments(project, folder, {"staging": first, "production": second})
        for name, client in made.clients.items():
            made.configure(name, store=str(folder / name), url=str(client.base_url), wait_seconds=60)
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
    assert "version 1 was released to staging (first)" in said
    assert environments.served("staging") == "1"
    change = environments.champion("staging")["history"][-1]
    assert (change["action"], change["why"], change["from"]) == ("release", "first", None)
    assert change["who"]
    project = environments.project
    assert environments.champion("staging")["digest"] == project.champion["digest"]
    assert environments.clients["production"].get("/readyz").status_code == 503
    assert environments.alerts("released") == ["Version 1 was released to staging and verified there: first."]


def test_release_twice_changes_nothing(released):
    before, told = released.champion("production"), released.alerts("released")
    succeed(released.release("production", "--from", "staging"))
    assert released.champion("production") == before
    assert released.alerts("released") == told


def test_smoke_proves_what_was_released_there(released):
    for name, client in released.clients.items():
        said = succeed(released.project.ml("smoke", str(client.base_url))).stdout
        assert f"serves version {released.champion(name)['version']}" in said
        assert "answers the example" in said


def test_smoke_fails_if_another_version_is_loaded(released):
    """An address of no environment is compared with the project's own champion."""
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
    assert "version 1 is in production again" in done.stdout
    assert "but version 2 of" in refuse(done)
    assert released.champion("production") == before
    told = released.alerts("release-failed")[-1]
    assert told.startswith("The release of version 2 to production was rolled back, version 1 is in production: ")
    wait_for_version(released.clients["production"], "1")


def test_release_to_a_service_that_is_down_says_so_and_restores_nothing_where_nothing_was(released, tmp_path):
    new = {"STORE": str(tmp_path / "store"), "URL": "http://127.0.0.1:9", "WAIT_SECONDS": "0.5"}
    said = refuse(released.release("new", **{f"ML_ENVIRONMENTS__NEW__{key}": value for key, value in new.items()}))
    assert said.startswith("http://127.0.0.1:9/readyz is not ready")
    assert read_champion(Store(tmp_path / "store")) is None


def test_first_release_that_fails_takes_the_model_out_of_service_again(released, tmp_path):
    """The service at the address is another one; the store's own takes the model up, and must not keep it."""
    store, home = tmp_path / "store", tmp_path / "home"
    with serve(store, home, ML_BUNDLE="") as client:
        address = str(released.clients["staging"].base_url)
        new = {"STORE": str(store), "URL": address, "WAIT_SECONDS": "10"}
        done = released.release("new", **{f"ML_ENVIRONMENTS__NEW__{key}": value for key, value in new.items()})
        assert "but version 2 of" in refuse(done)
        assert "nothing is in production" in done.stdout
        wait_for(client, "/readyz", 503)
        assert client.post("/predict", json={"rows": []}).status_code == 503
        assert "Serving model version 2" in (home / "log").read_text(encoding="utf-8")
        assert "Version 2 is taken back" in (home / "log").read_text(encoding="utf-8")
        assert read_champion(Store(store)) is None
        new |= {"URL": str(client.base_url), "WAIT_SECONDS": "60"}
        succeed(released.release("new", **{f"ML_ENVIRONMENTS__NEW__{key}": value for key, value in new.items()}))
        assert client.get("/model").json()["version"] == "2"


def test_release_of_a_verified_bundle_is_not_of_the_current_champion(released, tmp_path):
    """As after a late approval: staging has version 2 meanwhile."""
    proved = tmp_path / "proved"
    succeed(released.release("staging", "--bundle", released.champion("staging")["bundle"], "--output", str(proved)))
    said = dict(line.split("=") for line in proved.read_text(encoding="utf-8").splitlines())
    assert said == {"bundle": released.champion("staging")["bundle"], "image": ""}
    succeed(released.release("staging", "--why", "meanwhile"))
    assert released.champion("staging")["version"] == "2"

    release = ("--from", "staging", "--bundle", said["bundle"])
    succeed(released.release("production", *release))
    assert released.champion("production")["bundle"] == said["bundle"]
    assert released.served("production") == "1"

    store = {"ML_STORE": str(released.folder / "staging"), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/no.db"}
    newest = released.champion("staging")["bundle"]
    succeed(released.project.ml("rollback", "--why", "it is bad", **store))
    said_no = refuse(released.release("production", "--from", "staging", "--bundle", newest), 1)
    assert "was taken out of production" in said_no
    assert "it is bad" in said_no
    assert released.served("production") == "1"


def test_bundle_that_never_served_or_is_gone_is_refused(released):
    before = released.champion("production")
    for name in ("9-0123456789ab", "../staging"):
        said = refuse(released.release("production", "--from", "staging", "--bundle", name))
        assert said.startswith(f"No bundle {name} was in production in ")
        assert before["bundle"] in said  # which staging serves, too
    assert released.champion("production") == before


def test_release_repairs_a_damaged_copy(released, tmp_path):
    name = released.project.champion["bundle"]
    copy = released.folder / "staging" / "bundles" / name
    copy.mkdir(parents=True, exist_ok=True)  # a release that was taken back may have left it
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
def host(tmp_path: Path) -> DockerHost:
    """The host of production's container."""
    made = DockerHost(tmp_path, "production")
    made.environment["ML_ENVIRONMENTS__PRODUCTION__HOST"] = made.address
    return made


def test_release_replaces_the_container_and_leaves_nothing_of_the_old_one(released, host):
    host.have(NAME)
    succeed(released.release("production", "--from", "staging", "--image", "churn:2", **host.environment))
    assert {name: c["image"] for name, c in host.containers.items()} == {NAME: "churn:2"}


def test_release_that_fails_restores_container_and_champion_without_a_registry(released, host):
    """The old image is no longer in the registry, as after a clean-up, nor in the host's list of images."""
    before, containers = released.champion("production"), host.have(NAME, ML_LOG_KEY="secret")
    host.write(registry=["churn:2"], images=[])
    done = released.release("production", "--image", "churn:2", **host.environment, **SILENT)
    assert refuse(done).startswith("http://127.0.0.1:9/readyz is not ready")
    assert "churn:1 runs again" in done.stdout
    assert host.containers == containers
    assert [words[-1] for words in host.state["log"] if words[0] == "pull"] == ["churn:2"]
    assert released.champion("production") == before


def test_release_from_an_environment_brings_the_image_that_runs_there(released, host, tmp_path):
    staging = DockerHost(tmp_path, "staging")
    staging.have(STAGING, "churn:2")
    host.have(NAME, "churn:1")
    both = host.environment | {"ML_ENVIRONMENTS__STAGING__HOST": staging.address}
    succeed(released.release("production", "--from", "staging", "--output", str(tmp_path / "proved"), **both))
    assert (host.running, staging.running) == ({NAME: "churn:2"}, {STAGING: "churn:2"})
    assert "image=churn:2\n" in (tmp_path / "proved").read_text(encoding="utf-8")


def test_mistakes_are_one_sentence(released):
    project = released.project
    assert 'Did you mean "staging"?' in refuse(project.ml("release", "--to", "stagin"))
    assert "a store of its own" in refuse(
        project.ml("release", "--to", "staging", ML_ENVIRONMENTS__STAGING__STORE=str(project.store))
    )
    assert "No model is in production yet" in refuse(
        project.ml("release", "--to", "staging", ML_STORE=str(released.folder / "empty"))
    )


def test_report_is_a_table_of_metrics_and_gates(released):
    said = succeed(released.project.ml("report")).stdout
    assert "### Version 2 on " in said
    assert "| metric | candidate | champion | dummy |" in said
    assert "| margin |" in said
    assert "✅ passed" in said


def test_environments_are_listed_with_their_versions(released):
    said = succeed(released.project.ml("environments", PREFECT_API_URL="")).stdout
    assert f"| production | {released.champion('production')['version']} |" in said
    assert "No staging" not in said
    assert "`PREFECT_API_URL`" in said
