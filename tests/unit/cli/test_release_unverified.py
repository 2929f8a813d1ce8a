"""An unverified release, killed or not, is never used by the next release to or from that environment."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ondol.cli.deployment import print_environments
from ondol.cli.release import release_to
from ondol.contract import Contract
from ondol.errors import UserError
from ondol.registry.bundles import Bundle, write_bundle
from ondol.registry.champion import Champion, move_champion, read_champion
from ondol.storage.store import Store

CONFIG = """[project]
name = "churn"
[environments.staging]
store = "staging"
url = "http://127.0.0.1:9"
wait_seconds = 0.05
[environments.production]
store = "production"
url = "http://127.0.0.1:9"
wait_seconds = 0.05
"""
CONTRACT = Contract(problem="binary", target="y", classes=("a", "b"), columns=()).model_dump_json().encode()
RELEASE = "from ondol.cli.release import release_to; release_to('{}')"


class Delivery:
    """A project without a model of its own, and its environments, at whose addresses no service answers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "config.toml").write_text(CONFIG, encoding="utf-8")

    def bundle(self, place: str, version: str, runtime: str = "onnx") -> Bundle:
        meta = f'{{"version": "{version}", "run_id": "r{version}", "runtime": "{runtime}"}}'.encode()
        return write_bundle(self.store(place), version, {"contract.json": CONTRACT, "meta.json": meta})

    def store(self, place: str) -> Store:
        return Store(self.root / place)

    def serve(self, place: str, version: str) -> Champion:
        """Let a version serve there, as one that was verified."""
        return move_champion(self.store(place), self.bundle(place, version), "release", "verified")

    def version(self, place: str) -> str | None:
        champion = read_champion(self.store(place))
        return champion.version if champion else None

    def kill_amid_release(self, place: str, version: str) -> None:
        """Start a release that cannot be verified, and kill it after it has changed the champion."""
        self.serve(".ml/store", version)
        env = os.environ | {f"ML_ENVIRONMENTS__{place.upper()}__WAIT_SECONDS": "600"}
        command = [sys.executable, "-c", RELEASE.format(place)]
        with subprocess.Popen(command, cwd=self.root, env=env, stdout=subprocess.DEVNULL) as process:
            try:
                deadline = time.monotonic() + 200
                while self.version(place) != version:
                    assert process.poll() is None, "it ended by itself"
                    assert time.monotonic() < deadline, "it does not move the champion"
                    time.sleep(0.02)
            finally:
                process.kill()

    def fail(self, place: str, **choices: Any) -> str:
        with pytest.raises(UserError) as caught:
            release_to(place, **choices)
        return str(caught.value)


@pytest.fixture
def delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Delivery:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("ML_")]:
        monkeypatch.delenv(name)
    return Delivery(tmp_path)


@pytest.mark.parametrize("first", [True, False])
def test_next_release_begins_with_what_was_verified(delivery, capsys, first):
    """For the same bundle and for another one; also if nothing was in production before."""
    verified = None if first else delivery.serve("production", "1")
    delivery.kill_amid_release("production", "2")
    for version in ("2", "3"):
        delivery.serve(".ml/store", version)
        assert "/readyz is not ready" in delivery.fail("production")
        assert read_champion(delivery.store("production")) == verified
        assert not (delivery.store("production").folder / "release.json").exists()
    now = "nothing is in production" if first else "version 1 is in production again"
    assert f"A release failed: {now}." in capsys.readouterr().out


def test_what_somebody_put_into_service_since_stays(delivery):
    delivery.serve("production", "1")
    delivery.kill_amid_release("production", "2")
    by_hand = delivery.serve("production", "3")
    delivery.fail("production")
    assert read_champion(delivery.store("production")) == by_hand


def test_what_is_not_verified_in_one_environment_reaches_no_other(delivery):
    old = delivery.serve("staging", "1")
    delivery.kill_amid_release("staging", "2")
    said = delivery.fail("production", source="staging")
    assert said.startswith(f"Bundle {delivery.bundle('staging', '2').name} is not verified in ")
    assert "was in production" in delivery.fail(
        "production", source="staging", chosen=delivery.bundle("staging", "2").name
    )
    assert delivery.version("production") is None
    # What was verified before remains so: a late approval names it.
    assert "/readyz is not ready" in delivery.fail("production", source="staging", chosen=old.bundle)
    assert delivery.version("staging") == "2"


def test_a_champion_that_moves_within_the_block_is_noted_before(delivery, monkeypatch):
    """The note can be read during the verification."""
    seen = []

    def verify(*_: object) -> None:
        seen.append((delivery.version("staging"), (delivery.store("staging").folder / "release.json").exists()))

    monkeypatch.setattr("ondol.cli.release.verify", verify)
    delivery.serve(".ml/store", "1")
    release_to("staging")
    assert seen == [("1", True)]
    assert delivery.version("staging") == "1"
    assert not (delivery.store("staging").folder / "release.json").exists()


@pytest.mark.parametrize(("runtime", "named"), [("sklearn", True), ("onnx", False)])
def test_failed_release_of_a_bundle_without_onnx_names_what_its_image_needs(delivery, runtime, named):
    move_champion(delivery.store(".ml/store"), delivery.bundle(".ml/store", "1", runtime), "deploy", "new")
    said = delivery.fail("staging")
    assert said.startswith("http://127.0.0.1:9/readyz is not ready")
    assert ("GROUP=service-sklearn" in said) is named


def test_environments_tell_what_the_image_of_a_bundle_without_onnx_needs(delivery, capsys, monkeypatch):
    print_environments()
    assert "SERVICE_GROUP" not in capsys.readouterr().out
    monkeypatch.setenv("ML_DEPLOY__RUNTIME", "sklearn")
    print_environments()
    assert "`SERVICE_GROUP` = `service-sklearn`" in capsys.readouterr().out


def test_what_a_workflow_gives_empty_is_as_if_it_were_not_given(delivery, monkeypatch):
    """boto refuses an empty region, and a bucket's credentials are passed where no bucket is, too."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    print_environments()
    assert "AWS_DEFAULT_REGION" not in os.environ
    assert os.environ["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9"
