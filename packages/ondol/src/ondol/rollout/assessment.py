"""Steps of the rollout flow: read what was logged since the last look, decide, act, and report."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from ondol.errors import UserError
from ondol.orchestration.reporting import publish_image, publish_markdown, say
from ondol.project import Project
from ondol.registry.bundles import find_bundle, open_bundle
from ondol.registry.champion import alert_new_champion
from ondol.registry.registry import repair_mlflow_alias
from ondol.registry.rollout import (
    Rollout,
    read_rollout,
    running_rollout,
    show_share,
    take_step,
    withdraw_challenger,
)
from ondol.rollout.evidence import VALUE, Evidence, Point, read_evidence, write_evidence
from ondol.rollout.judge import Check, Decision, check_all, decide
from ondol.rollout.reading import (
    BEFORE,
    keep_answers,
    measure_labelled,
    output_names,
    pair_answers,
    read_log,
    reference_spread,
    remove_samples,
)
from ondol.rollout.report import as_markdown, draw_checks
from ondol.storage.files import CHAMPION_FILE, ROLLOUT_FILE, sole
from ondol.storage.store import fetch_log

# Looks from one reading of the labels to the next, and from picture to picture: each is kept in Prefect's database.
HOURLY = 12
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assessment:
    """A rollout as the last look left it.

    Attributes:
        rollout: The rollout.
        evidence: What is known of it.
        checks: The checks that have data.
        decision: What follows from them.
    """

    rollout: Rollout
    evidence: Evidence
    checks: list[Check]
    decision: Decision


def find_rollout(project: Project) -> Rollout | None:
    """Return the rollout that runs, or that has ended without a report; None if there is nothing to do.

    Raises:
        UserError: the store cannot be reached.
    """
    store = project.store
    for name in (CHAMPION_FILE, ROLLOUT_FILE):
        store.look(store.folder / name)
    rollout = read_rollout(store)
    if rollout is None or running_rollout(store) is not None:
        return rollout
    evidence = read_evidence(store, rollout)
    return rollout if evidence is not None and not evidence.closed else None


@contextmanager
def rollout_lock(project: Project) -> Iterator[None]:
    """Hold the judge's lock: two at once would read the same records.

    The lock of training runs is not needed: what moves the champion holds `champion.lock`, and ends the rollout.

    Raises:
        UserError: another process holds it.
    """
    complaint = "Another run of the rollout flow is at work on this store: wait until it ends."
    with sole(project.store.folder / "judge.lock", complaint):
        yield


def gather_evidence(project: Project, rollout: Rollout) -> Evidence:
    """Add what was logged since the last look to the rollout's record, and return it.

    The compared answers are written first. A look that was killed before the record is written is repeated.

    Raises:
        UserError: the champion's bundle is damaged, or the store cannot be reached.
    """
    store = project.store
    evidence = read_evidence(store, rollout) or Evidence(rollout=rollout.id)
    challenger, evidence.fault = find_bundle(store, rollout.bundle), ""
    if challenger is None:
        evidence.fault = f"the bundle {rollout.bundle} is missing or was changed after it was written"
        write_evidence(store, rollout, evidence)
        return evidence
    fetch_log(store, rollout.started - BEFORE)
    champion = open_bundle(store, rollout.champion)
    names = output_names(champion.contract)
    if evidence.spread is None and names == (VALUE,):
        evidence.spread = reference_spread(champion)
    batch = read_log(store.folder / "log", rollout, evidence)
    answers = pair_answers(batch, rollout, champion, challenger)
    labels = project.settings.monitor.labels is not None
    if labels and answers is not None:
        keep_answers(store, rollout, answers)
    evidence.add(batch.stretches, answers, names)
    evidence.read, evidence.unanswered = batch.read, batch.unanswered
    if labels and evidence.looks % HOURLY == 1:
        try:
            evidence.add_loss(measure_labelled(project, rollout, champion.contract, challenger.contract.decision))
        except UserError as error:  # the other checks need no labels
            say(str(error), notice=True)
    checks = check_all(evidence, project.settings.rollout)
    now = datetime.now(UTC)
    evidence.draw(Point(at=now, bounds={check.name: check.bounds for check in checks if check.bounds}))
    write_evidence(store, rollout, evidence)
    return evidence


def judge_rollout(project: Project, rollout: Rollout, evidence: Evidence) -> Assessment:
    """Return what follows from the evidence."""
    policy = project.settings.rollout
    checks = check_all(evidence, policy)
    labels = project.settings.monitor.labels is not None
    decision = decide(checks, rollout, evidence, policy, datetime.now(UTC), labels)
    return Assessment(rollout, evidence, checks, decision)


def act_on_decision(project: Project, assessment: Assessment) -> Rollout:
    """Take the next step or withdraw the challenger, if that was decided; return the rollout as it is now."""
    change = {"advance": take_step, "withdraw": withdraw_challenger}.get(assessment.decision.action)
    if change is None:
        return assessment.rollout
    try:
        return change(project.store, assessment.rollout, assessment.decision.why)
    except UserError as error:  # `ml rollout step` or `abort`, or another champion, was quicker
        say(str(error), notice=True)
        return read_rollout(project.store) or assessment.rollout


def is_running(project: Project, rollout: Rollout) -> bool:
    """Return True if a rollout has not ended."""
    return running_rollout(project.store) == rollout


def close_rollout(project: Project, rollout: Rollout) -> str:
    """Finish a rollout that has ended: alert, MLflow's alias, and removal of the compared answers; return its state."""
    store = project.store
    if running_rollout(store) is not None:
        return "running"
    alert_new_champion(project)
    remove_samples(store)
    try:
        repair_mlflow_alias(project)
    except Exception as error:  # MLflow is down: the next training run does it
        log.warning("MLflow's alias stays where it is for now (%s).", type(error).__name__)
    evidence = read_evidence(store, rollout) or Evidence(rollout=rollout.id)
    write_evidence(store, rollout, evidence.model_copy(update={"closed": True}))
    return rollout.outcome or "ended"


def report_rollout(assessment: Assessment, now: Rollout) -> None:
    """Show the two versions and the decision in the log and in the Prefect UI, at times with a picture."""
    outcome, why = describe_outcome(assessment, now), assessment.decision.why
    say(f"{outcome}: {why}.")
    publish_markdown("rollout", as_markdown(assessment.rollout, assessment.evidence, assessment.checks, outcome, why))
    if assessment.decision.action != "wait" or assessment.evidence.looks % HOURLY == 1:
        picture = draw_checks(assessment.evidence.points, assessment.checks, assessment.rollout)
        publish_image("plot-rollout", picture, "checks of the rollout")


def describe_outcome(assessment: Assessment, now: Rollout) -> str:
    """Return what was done, in words."""
    version = f"Version {now.version}"
    if now.outcome is not None:
        return f"{version} is {'in production' if now.outcome == 'promoted' else 'withdrawn'}"
    if len(now.steps) > len(assessment.rollout.steps):
        return f"{version} answers {show_share(now.step.share)} of the requests now"
    return f"{version} stays at {show_share(now.step.share)} of the requests"


def last_assessment(project: Project) -> Assessment | None:
    """Return the running rollout as the last look left it; None without one, or before the first look.

    It only reads, so `ml rollout status` may call it at any time.
    """
    rollout = running_rollout(project.store)
    evidence = read_evidence(project.store, rollout) if rollout else None
    return judge_rollout(project, rollout, evidence) if rollout and evidence else None
