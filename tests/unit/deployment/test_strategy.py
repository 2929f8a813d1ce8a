"""How a version replaces the one in production: directly, or by a rollout."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ondol.config import Settings
from ondol.deployment import deploy as steps
from ondol.errors import Refused, UserError
from ondol.project import Project
from ondol.registry.bundles import Bundle, write_bundle
from ondol.registry.champion import move_champion, require_champion
from ondol.registry.rollout import running_rollout, withdraw_challenger


class Place:
    """A project with version 1 in production, and what the next version's contract says of it."""

    def __init__(self, root: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.project = Project(Settings(root=root, rollout={"strategy": "canary"}))  # type: ignore[arg-type]
        self.compatible = True
        meta = f'{{"version": "1", "run_id": "run 1", "source": "{source}"}}'.encode()
        self.bundle = write_bundle(self.project.store, "1", {"meta.json": meta})
        move_champion(self.project.store, self.bundle, "deploy", "first")
        monkeypatch.setattr(Bundle, "contract", property(lambda _: "contract"))
        monkeypatch.setattr(steps, "load_candidate", lambda *_: SimpleNamespace(contract="contract"))
        monkeypatch.setattr(steps, "require_compatible", self.require_compatible)
        monkeypatch.setattr(steps, "known_verdict", lambda *_: SimpleNamespace(refusal="", run_id="run 1"))
        self.said: list[str] = []
        monkeypatch.setattr(steps, "say", self.said.append)

    def require_compatible(self, *_: Any) -> None:
        if not self.compatible:
            raise Refused("a column is missing")

    def choose(self, version: str = "2", breaking: bool = False, wanted: Any = None) -> str:
        return steps.check_deployable(self.project, require_champion(self.project.store), version, breaking, wanted)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, "customers.csv", monkeypatch)


def test_a_strategy_of_the_settings_counts_and_one_by_hand_counts_more(place: Place) -> None:
    assert place.choose() == "canary"
    assert place.choose(wanted="shadow") == "shadow"
    assert place.choose(wanted="direct") == "direct"


def test_where_both_cannot_answer_the_same_callers_a_run_deploys_directly_and_says_why(place: Place) -> None:
    assert place.choose(breaking=True) == "direct"
    assert place.choose("1") == "direct"
    place.bundle.path.joinpath("meta.json").unlink()
    assert place.choose() == "direct"
    assert [one.partition(": ")[0] for one in place.said] == [
        "Version 2 is deployed directly", "Version 1 is deployed directly", "Version 2 is deployed directly",
    ]  # fmt: skip
    assert "missing or was changed" in place.said[-1]


@pytest.mark.parametrize("strategy", ["canary", "shadow", "ab", "blue-green"])
def test_a_rollout_by_hand_never_becomes_a_direct_deployment(place: Place, strategy: str) -> None:
    place.bundle.path.joinpath("meta.json").unlink()
    with pytest.raises(UserError, match="Version 2 cannot be tried beside another one: the bundle in production"):
        place.choose(wanted=strategy)
    with pytest.raises(UserError, match="no model is in production"):
        steps.choose_strategy(place.project, None, "2", False, strategy)  # type: ignore[arg-type]


def test_beside_a_model_of_the_sample_other_data_are_deployed_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Place(tmp_path, "sample://", monkeypatch)
    assert sample.choose() == "canary"
    sample.compatible = False
    assert sample.choose() == "direct"
    assert "is of the sample" in sample.said[-1]


def test_a_contract_that_breaks_callers_is_refused(place: Place) -> None:
    place.compatible = False
    with pytest.raises(Refused):
        place.choose()


def test_a_withdrawn_version_is_tried_again_by_hand_alone_and_never_deployed_directly(place: Place) -> None:
    project, store = place.project, place.project.store
    bundle = write_bundle(store, "2", {"meta.json": b'{"run_id": "run 2"}'})
    steps.release_bundle(project, bundle, require_champion(store), "canary", "a run")
    rollout = running_rollout(store)
    assert rollout is not None and rollout.version == "2"
    withdraw_challenger(store, rollout, "slower")
    for wanted in (None, "direct"):
        with pytest.raises(Refused, match=r"Version 2 was withdrawn at .* \(slower\)"):
            place.choose(wanted=wanted)
    assert place.choose(wanted="canary") == "canary"


def test_a_rollout_needs_the_log(tmp_path: Path, place: Place) -> None:
    project = Project(Settings(root=tmp_path, log={"enabled": False}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a rollout is judged by the prediction log"):
        steps.choose_strategy(project, require_champion(place.project.store), "2", False, "canary")
    assert steps.choose_strategy(project, require_champion(place.project.store), "2", False, None) == "direct"


def test_a_deployment_that_fails_after_its_rollout_began_takes_it_back(place: Place) -> None:
    project, store = place.project, place.project.store
    champion = require_champion(store)
    bundle = write_bundle(store, "2", {"meta.json": b'{"run_id": "run 2"}'})
    steps.release_bundle(project, bundle, champion, "canary", "a run")
    steps.restore_previous(project, champion, bundle)
    steps.discard_bundle(project, bundle)
    assert running_rollout(store) is None and not bundle.path.exists()
    assert place.choose() == "canary"  # a later run tries it again


def test_the_bundle_of_a_rollout_is_not_discarded(place: Place) -> None:
    project, store = place.project, place.project.store
    bundle = write_bundle(store, "2", {"meta.json": b'{"run_id": "run 2"}'})
    steps.release_bundle(project, bundle, require_champion(store), "canary", "a run")
    for one in (bundle, place.bundle):
        steps.discard_bundle(project, one)
        assert one.path.exists()
