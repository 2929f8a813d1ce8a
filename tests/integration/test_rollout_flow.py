"""The flow `rollout` in a project: real bundles, a log in the service's form, Prefect and MLflow; kills and labels."""

import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from e2e.support import Project as Commands
from e2e.support import make_project, succeed
from monitor_support import predictions, records, typed_sample

from ondol.config import Strategy, load_settings
from ondol.deployment.bundle import build_bundle, json_rows
from ondol.evaluation.scoring import Scorer
from ondol.monitoring.monitor import load_context
from ondol.orchestration.alerts import waiting
from ondol.project import Project
from ondol.registry.bundles import Bundle, open_bundle
from ondol.registry.champion import read_champion, write_champion
from ondol.registry.rollout import Rollout, read_rollout, running_rollout, start_rollout, take_step, withdraw_challenger
from ondol.rollout import (
    act_on_decision,
    close_rollout,
    find_rollout,
    gather_evidence,
    is_running,
    judge_rollout,
    last_assessment,
)
from ondol.rollout.assessment import HOURLY
from ondol.rollout.evidence import CHALLENGER, CHAMPION, read_evidence, write_evidence
from ondol.storage.files import read_json

FLOW = "from flows.rollout import rollout; print('state:', rollout())"
LENIENT = {"step_minutes": 0, "min_requests": 100, "disagreement": 0.5, "errors": 0.2, "shift": 0.5, "slower": 9.0}


@pytest.fixture(scope="module")
def commands(render: Callable[..., Path], prefect: str, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """A project with version 1 in production, and the bundle of version 2, which differs."""
    made = make_project(render(), tmp_path_factory.mktemp("judged") / "churn", PREFECT_API_URL=prefect)
    made.run()
    made.configure("train", params={"max_iter": 40})
    made.configure("monitor", labels="labels.csv")
    succeed(made.ml("train"))
    build_bundle(Project(load_settings(made.root)), "2")
    return made


class Trial:
    """A rollout of version 2 beside version 1, and methods that write its log."""

    def __init__(self, commands: Commands) -> None:
        self.commands = commands
        self.project = Project(load_settings(commands.root))
        self.store = self.project.store
        self.log = self.store.folder / "log"
        self.sent = 0

    @property
    def bundles(self) -> dict[str, Bundle]:
        [two] = [path.name for path in (self.store.folder / "bundles").glob("2-*")]
        [one] = [path.name for path in (self.store.folder / "bundles").glob("1-*")]
        return {CHAMPION: open_bundle(self.store, one), CHALLENGER: open_bundle(self.store, two)}

    @property
    def rollout(self) -> Rollout:
        found = read_rollout(self.store)
        assert found is not None
        return found

    def start(self, strategy: Strategy = "canary", plan: tuple[float, ...] = (0.5, 1.0)) -> Rollout:
        """Start a rollout whose first step is in effect."""
        champion = read_champion(self.store)
        assert champion is not None
        made = start_rollout(self.store, self.bundles[CHALLENGER], champion, strategy, plan, "시험")
        begun = made.model_copy(
            update={
                "steps": (made.step.model_copy(update={"at": (datetime.now(UTC) - timedelta(minutes=5)).isoformat()}),)
            }
        )
        self.store.write_bytes(self.store.folder / "rollout.json", begun.model_dump_json().encode())
        return begun

    def send(self, role: str, requests: int, failing: int = 0) -> pd.DataFrame:
        """Log answers of a version; the first ones fail if it is the challenger, and the champion answers instead."""
        version = CHAMPION if role == CHAMPION else CHALLENGER
        bundle, at = self.bundles[version], datetime.now(UTC) - timedelta(seconds=20)
        frame = typed_sample(bundle.contract, requests, start=70_000 + self.sent)
        rows, answers = json_rows(bundle.contract, frame), predictions(Scorer.open(bundle.path), frame)
        self.sent += requests
        lines = [json.loads(line) for line in records(bundle.name, rows, answers, at, role=role)]
        lines = [one | {"id": uuid.uuid4().hex} for one in lines]
        written = []
        for number, line in enumerate(lines):
            if number >= failing:
                written.append(line)
                continue
            head = {name: line[name] for name in ("id", "at", "version", "bundle", "role", "ms")}
            instead = line | {"version": "1", "bundle": self.bundles[CHAMPION].name, "role": CHAMPION}
            written += [head | {"error": "RuntimeError: 실패"}, instead]
        self.write(written)
        return frame.assign(request_id=[one["id"] for one in lines])

    def write(self, lines: list[dict[str, Any]]) -> None:
        self.log.mkdir(exist_ok=True)
        path = self.log / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-host-1-{uuid.uuid4().int % 10**6}.jsonl"
        path.write_text(
            "".join(json.dumps(one, ensure_ascii=False, separators=(",", ":")) + "\n" for one in lines),
            encoding="utf-8",
        )

    def judge(self) -> str:
        """Run the flow; return the state that it returns."""
        done = succeed(self.commands.python("-c", FLOW))
        return done.stdout.rpartition("state: ")[2].strip()

    def alerts(self) -> list[dict[str, Any]]:
        found = [read_json(path) for path in waiting(self.project.settings)]
        return [one for one in found if one["kind"].startswith("rollout")]


@pytest.fixture
def trial(commands: Commands) -> Trial:
    """Version 1 in production, without a log, a rollout, and alerts of earlier tests."""
    made = Trial(commands)
    champion = read_champion(made.store)
    assert champion is not None
    first = next(path.name for path in (made.store.folder / "bundles").glob("1-*"))
    bundle = open_bundle(made.store, first)
    update = {"version": "1", "bundle": first, "digest": bundle.digest, "run_id": bundle.meta["run_id"]}
    write_champion(made.store, champion.model_copy(update=update | {"history": champion.history[:1]}))
    for name in ("log", "rollouts"):
        shutil.rmtree(made.store.folder / name, ignore_errors=True)
    (made.store.folder / "rollout.json").unlink(missing_ok=True)
    for path in waiting(made.project.settings):
        path.unlink()
    (commands.root / "labels.csv").unlink(missing_ok=True)
    commands.configure("rollout", **LENIENT)
    made.project = Project(load_settings(commands.root))
    return made


def test_without_a_rollout_a_run_ends_at_once(trial: Trial) -> None:
    assert trial.judge() == "no rollout"
    assert not (trial.store.folder / "rollouts").exists()


def test_an_erring_challenger_is_withdrawn_with_the_reason_everywhere(trial: Trial) -> None:
    trial.commands.configure("rollout", errors=0.01)
    trial.start()
    trial.send(CHAMPION, 300)
    trial.send(CHALLENGER, 100, failing=30)
    assert trial.judge() == "withdrawn"
    assert trial.rollout.outcome == "withdrawn"
    assert "failed requests 30.00% against 0.00% on 100 requests" in trial.rollout.why
    champion = read_champion(trial.store)
    assert champion is not None
    assert (champion.version, champion.history[-1].action) == ("1", "withdraw")
    assert champion.history[-1].why == trial.rollout.why
    [alert] = trial.alerts()
    assert alert["kind"] == "rollout-withdrawn"
    assert trial.rollout.why in alert["what"]
    shown = trial.commands.python(
        "-c",
        "from prefect.client.orchestration import get_client as c\n"
        "from prefect.client.schemas.filters import ArtifactFilter as Filter, ArtifactFilterKey as Key\n"
        "with c(sync_client=True) as client:\n"
        "    found = client.read_artifacts(artifact_filter=Filter(key=Key(like_='rollout')))\n"  # of many in the server
        "print(*{one.key for one in found}); print(*[one.data for one in found if one.key == 'rollout'])",
    )
    assert "plot-rollout" in shown.stdout
    assert "version 1 (champion)" in shown.stdout
    assert find_rollout(trial.project) is None


def test_a_good_challenger_takes_its_steps_and_is_promoted(trial: Trial) -> None:
    trial.start()
    trial.send(CHAMPION, 300)
    trial.send(CHALLENGER, 150)
    assert trial.judge() == "running"
    assert [step.share for step in trial.rollout.steps] == [0.5, 1.0]
    assert not trial.alerts()
    last = last_assessment(trial.project)
    assert last is not None
    assert last.evidence.requests.get(1, 0) == 0  # the records are from before the step took effect
    take_step(trial.store, trial.rollout, "by hand")
    assert trial.judge() == "promoted"  # what a person ended is finished, too
    champion = read_champion(trial.store)
    assert champion is not None
    assert (champion.version, champion.history[-1].action) == ("2", "rollout")
    [alert] = trial.alerts()
    assert alert["kind"] == "rollout-promoted"
    assert trial.commands.aliases()["champion"] == "2"
    assert not list((trial.store.folder / "rollouts").glob("*.parquet"))
    assert find_rollout(trial.project) is None


@pytest.mark.parametrize("damaged", [False, True])
def test_a_challenger_whose_bundle_is_gone_is_withdrawn(trial: Trial, damaged: bool) -> None:
    found = trial.start()
    trial.send(CHAMPION, 10)
    path = trial.bundles[CHALLENGER].path
    kept = shutil.copytree(path, path.parent.parent / "kept")
    try:
        if damaged:
            (path / "model.onnx").write_bytes(b"damaged")
        else:
            shutil.rmtree(path)
        assert trial.judge() == "withdrawn"
    finally:
        shutil.rmtree(path, ignore_errors=True)
        kept.rename(path)
    assert trial.rollout.why == f"the bundle {found.bundle} is missing or was changed after it was written"
    evidence = read_evidence(trial.store, found)
    assert evidence is not None and evidence.closed
    assert find_rollout(trial.project) is None


def test_a_judge_that_is_killed_counts_nothing_twice_and_misses_nothing(trial: Trial) -> None:
    trial.commands.configure("rollout", min_requests=100_000)
    started = trial.start()
    trial.send(CHAMPION, 400)
    trial.send(CHALLENGER, 200, failing=20)
    rollouts = trial.store.folder / "rollouts"
    for suffix in ("parquet", "json"):  # before and after the record is written
        with subprocess.Popen(
            [sys.executable, "-c", FLOW], cwd=trial.commands.root, env=trial.commands.environment
        ) as process:
            deadline = time.monotonic() + 120
            while not list(rollouts.glob(f"*.{suffix}")):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.001)
            process.kill()
    trial.send(CHALLENGER, 30)
    assert trial.judge() == "running"
    evidence = read_evidence(trial.store, started)
    assert evidence is not None
    counts = {version: (share.n, share.sum) for version, share in evidence.failures.items()}
    assert counts == {CHAMPION: (400, 0), CHALLENGER: (230, 20)}
    assert evidence.requests == {0: 230}
    assert evidence.disagreement.n == 400 + 180 + 30


def test_a_decision_that_was_not_carried_out_is_made_again(trial: Trial) -> None:
    trial.start()
    trial.send(CHAMPION, 300)
    trial.send(CHALLENGER, 150)
    for _ in range(2):  # the process is killed before it acts, and the next one has no new records
        assessment = judge_rollout(trial.project, trial.rollout, gather_evidence(trial.project, trial.rollout))
        assert assessment.decision.action == "advance"
    assert len(act_on_decision(trial.project, assessment).steps) == 2


def test_what_a_person_decides_in_the_meantime_counts(trial: Trial) -> None:
    found = trial.start()
    trial.send(CHALLENGER, 150)
    trial.send(CHAMPION, 300)
    assessment = judge_rollout(trial.project, found, gather_evidence(trial.project, found))
    by_hand = take_step(trial.store, found, "by hand")
    assert act_on_decision(trial.project, assessment) == by_hand == running_rollout(trial.store)


def test_the_answers_of_both_to_the_same_requests_are_compared(trial: Trial) -> None:
    found = trial.start()
    frames = [trial.send(CHAMPION, 300), trial.send(CHALLENGER, 100)]
    evidence = gather_evidence(trial.project, found)
    sides = {
        name: np.concatenate([Scorer.open(bundle.path).predict(frame) for frame in frames])
        for name, bundle in trial.bundles.items()
    }
    differs = sides[CHAMPION].argmax(axis=1) != sides[CHALLENGER].argmax(axis=1)
    assert 0 < differs.sum() == evidence.disagreement.sum
    [output] = evidence.outputs.values()
    apart = sides[CHALLENGER][:, 1] - sides[CHAMPION][:, 1]
    assert output.difference.mean == pytest.approx(apart.mean(), abs=1e-6)
    assert output.difference.variance == pytest.approx(apart.var(ddof=1), rel=1e-3)


def test_a_shadow_is_compared_with_what_the_champion_answered(trial: Trial) -> None:
    found = trial.start("shadow", (0.0,))
    frame = trial.send(CHAMPION, 200)
    answers = predictions(Scorer.open(trial.bundles[CHALLENGER].path), frame)
    at = datetime.now(UTC).isoformat()
    head = {"at": at, "version": "2", "bundle": found.bundle, "role": "shadow"}
    trial.write(
        [
            {"id": name} | head | {"ms": 1.5, "champion_ms": 1.0, "predictions": [answer]}
            for name, answer in zip(frame["request_id"], answers, strict=True)
        ]
    )
    evidence = gather_evidence(trial.project, found)
    assert evidence.disagreement.n == evidence.ratios.n == 200
    assert evidence.failures[CHALLENGER].n == 200


def test_labels_that_come_later_are_joined_to_both_versions(trial: Trial) -> None:
    found = trial.start()
    frame = pd.concat([trial.send(CHAMPION, 300), trial.send(CHALLENGER, 200)])
    evidence = gather_evidence(trial.project, found)  # there are no labels yet, which is reported and nothing more
    assert evidence.loss is None
    frame[["request_id", "churned"]].to_csv(trial.commands.root / "labels.csv", index=False)
    assert gather_evidence(trial.project, found).loss is None  # labels are read once an hour
    write_evidence(trial.store, found, evidence.model_copy(update={"looks": HOURLY}))
    loss = gather_evidence(trial.project, found).loss
    assert loss is not None
    assert (loss.metric, loss.requests, loss.relative) == ("roc_auc", 500, False)
    assert loss.champion - loss.challenger == pytest.approx(loss.worse)
    assert loss.error > 0


def test_a_rollout_does_not_disturb_the_windows_of_the_monitor(trial: Trial) -> None:
    from ondol.monitoring.log import tally_window

    found = trial.start()
    trial.send(CHAMPION, 40)
    trial.send(CHALLENGER, 30, failing=10)
    now = datetime.now(UTC)
    name = load_context(trial.project).bundle.name
    tally = tally_window(trial.log, now - timedelta(hours=1), now, name)
    assert (tally.requests, tally.others, tally.unreadable) == (50, 20, 0)  # 10 in place of the challenger
    assert running_rollout(trial.store) == found


def test_a_rollout_that_ended_before_its_first_look_is_closed_with_its_outcome(trial: Trial) -> None:
    found = trial.start()
    assert close_rollout(trial.project, found) == "running"
    ended = withdraw_challenger(trial.store, found, "by hand")
    assert close_rollout(trial.project, ended) == "withdrawn"
    evidence = read_evidence(trial.store, found)
    assert evidence is not None and evidence.closed
    assert find_rollout(trial.project) is None


def test_a_rollout_that_the_champion_ended_is_found_until_it_is_closed(trial: Trial) -> None:
    found = trial.start()
    assert find_rollout(trial.project) == found
    trial.send(CHALLENGER, 5)
    gather_evidence(trial.project, found)
    champion = read_champion(trial.store)
    assert champion is not None
    write_champion(trial.store, champion.model_copy(update={"since": "2026-01-01T00:00:00+00:00"}))
    assert find_rollout(trial.project) == found
    assert not is_running(trial.project, found)
    assert close_rollout(trial.project, found) == "ended"
    assert find_rollout(trial.project) is None
