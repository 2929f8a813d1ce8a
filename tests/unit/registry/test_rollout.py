"""The record of a rollout in the store: steps, ends, and what stays in the champion's history."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ondol.cli.deployment import previous_bundle
from ondol.config import RolloutPolicy
from ondol.errors import UserError
from ondol.registry.bundles import Bundle, write_bundle
from ondol.registry.champion import move_champion, require_champion, rolled_back
from ondol.registry.rollout import (
    LOADING_SECONDS,
    NOTICE_SECONDS,
    Rollout,
    cancel_rollout,
    describe_rollout,
    plan_steps,
    read_rollout,
    require_rollout,
    running_rollout,
    start_rollout,
    take_step,
    withdraw_challenger,
)
from ondol.storage.files import Damaged
from ondol.storage.store import Store

PLAN = (0.05, 0.5, 1.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def bundle(store: Store, version: str) -> Bundle:
    return write_bundle(
        store, version, {"meta.json": f'{{"version": "{version}", "run_id": "run {version}"}}'.encode()}
    )


def start(store: Store, version: str = "2", plan: tuple[float, ...] = PLAN, strategy: Any = "canary") -> Rollout:
    return start_rollout(store, bundle(store, version), require_champion(store), strategy, plan, "a test")


@pytest.fixture
def rollout(store: Store) -> Rollout:
    move_champion(store, bundle(store, "1"), "deploy", "first")
    return start(store)


def test_steps_take_effect_later_and_the_last_one_puts_the_challenger_into_production(
    store: Store, rollout: Rollout
) -> None:
    assert LOADING_SECONDS - 2 < (rollout.since - datetime.now(UTC)).total_seconds() <= LOADING_SECONDS
    for share in PLAN[1:]:
        assert rollout.next_share == share
        rollout = take_step(store, rollout, f"to {share}")
        assert NOTICE_SECONDS - 2 < (rollout.since - datetime.now(UTC)).total_seconds() <= LOADING_SECONDS
        assert running_rollout(store) == rollout and require_champion(store).version == "1"
    assert [step.share for step in rollout.steps] == list(PLAN) and rollout.next_share is None
    ended = take_step(store, rollout, "better")
    champion = require_champion(store)
    assert (ended.outcome, champion.version, champion.run_id) == ("promoted", "2", "run 2")
    assert (champion.bundle, champion.digest) == (rollout.bundle, rollout.digest)
    assert running_rollout(store) is None and read_rollout(store) == ended
    assert previous_bundle(champion) == rollout.champion


def test_what_was_withdrawn_is_in_the_history_and_not_deployed_again(store: Store, rollout: Rollout) -> None:
    withdraw_challenger(store, rollout, "slower")
    champion = require_champion(store)
    change = rolled_back(champion, "2")
    assert champion.version == "1" and running_rollout(store) is None
    assert change is not None and (change.action, change.why, change.to) == ("withdraw", "slower", champion.bundle)
    assert rolled_back(champion, "1") is None
    again = start(store)
    take_step(store, again, "by hand")
    assert rolled_back(require_champion(store), "2") is not None  # until it is in production
    while running_rollout(store):
        take_step(store, require_rollout(store), "by hand")
    assert rolled_back(require_champion(store), "2") is None


def test_a_rollback_skips_what_was_only_tried(store: Store, rollout: Rollout) -> None:
    withdraw_challenger(store, rollout, "slower")
    with pytest.raises(UserError, match="Version 1 is the first in production"):
        previous_bundle(require_champion(store))
    third = bundle(store, "3")
    move_champion(store, third, "deploy", "next")
    assert previous_bundle(require_champion(store)) == rollout.champion


def test_a_newer_version_replaces_the_one_that_is_tried(store: Store, rollout: Rollout) -> None:
    other = start(store, "3")
    assert running_rollout(store) == other
    last = require_champion(store).history[-1]
    assert (last.action, last.before, last.why) == ("withdraw", rollout.bundle, "version 3 replaces it")


def test_a_change_of_the_champion_ends_a_rollout(store: Store, rollout: Rollout) -> None:
    move_champion(store, bundle(store, "3"), "promote", "by hand")
    assert running_rollout(store) is None
    with pytest.raises(UserError, match="No rollout is running"):
        require_rollout(store)
    with pytest.raises(UserError, match="changed in the meantime"):
        take_step(store, rollout, "late")


def test_a_rollout_begins_beside_the_champion_that_was_judged_against(store: Store, rollout: Rollout) -> None:
    judged_against = require_champion(store)
    move_champion(store, bundle(store, "3"), "promote", "by hand")
    with pytest.raises(UserError, match="Another bundle was put into production in the meantime"):
        start_rollout(store, bundle(store, "2"), judged_against, "canary", PLAN, "a test")


def test_a_step_before_the_first_one_begins_does_not_begin_earlier(store: Store, rollout: Rollout) -> None:
    after = take_step(store, rollout, "at once")
    assert after.since == rollout.since


def test_a_challenger_whose_bundle_is_gone_takes_no_step(store: Store, rollout: Rollout) -> None:
    shutil.rmtree(store.folder / "bundles" / rollout.bundle)
    with pytest.raises(UserError, match="is missing"):
        take_step(store, rollout, "blind")
    assert require_champion(store).version == "1"
    withdraw_challenger(store, rollout, "its bundle is gone")
    assert running_rollout(store) is None


def test_a_cancelled_rollout_may_be_started_again_by_a_run(store: Store, rollout: Rollout) -> None:
    cancel_rollout(store, "3-abcdef012345")
    assert running_rollout(store) == rollout
    cancel_rollout(store, rollout.bundle)
    assert running_rollout(store) is None
    assert rolled_back(require_champion(store), "2") is None


def test_two_that_decide_at_once_take_one_step(store: Store, rollout: Rollout) -> None:
    take_step(store, rollout, "the first")
    with pytest.raises(UserError, match="The rollout of version 2 changed in the meantime: see `ml rollout status`"):
        take_step(store, rollout, "the second")
    assert len(require_rollout(store).steps) == 2


def test_a_damaged_record_names_its_remedy(store: Store, rollout: Rollout) -> None:
    (store.folder / "rollout.json").write_text("{")
    with pytest.raises(Damaged, match="remove it: the champion answers all requests then"):
        read_rollout(store)


@pytest.mark.parametrize(
    ("strategy", "plan", "said"),
    [
        ("canary", (0.125, 1.0), "Version 2 is tried beside version 1: canary, 12.5% of the requests."),
        ("shadow", (0.0,), "Version 2 is tried beside version 1: shadow, it answers no request."),
    ],
)
def test_a_rollout_is_described_in_a_sentence(
    strategy: Any, plan: tuple[float, ...], said: str, store: Store, rollout: Rollout
) -> None:
    assert describe_rollout(start(store, "2", plan, strategy)) == said


def test_each_strategy_has_its_shares() -> None:
    policy = RolloutPolicy(steps=(0.1, 1.0), share=0.3)
    plans = {name: plan_steps(policy, name) for name in ("shadow", "canary", "ab", "blue-green")}  # type: ignore[arg-type]
    assert plans == {"shadow": (0.0,), "canary": (0.1, 1.0), "ab": (0.3,), "blue-green": (1.0,)}


@pytest.mark.parametrize("steps", [(), (0.5,), (0.5, 0.5, 1.0), (0.5, 0.2, 1.0), (0.0, 1.0), (0.5, 1.5)])
def test_shares_that_do_not_grow_to_all_requests_are_refused(steps: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        RolloutPolicy(steps=steps)


def test_the_times_of_a_rollout_have_a_zone(rollout: Rollout) -> None:
    assert rollout.started == rollout.since and rollout.since.utcoffset() == timedelta(0)
