"""Evaluate: candidate and champion are scored on the same held-out rows, and the gates decide."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.artifacts import publish_image, publish_link, publish_markdown, publish_table
from flows.basis import Basis, choose_rows, find_basis
from flows.candidate import Candidate, load_candidate
from flows.contract.compatibility import can_score
from flows.dummy import predict_dummy
from flows.errors import Refused
from flows.gates import judge, refusal_sentence
from flows.metrics import choose_metric
from flows.naming import name_run
from flows.plots import draw_plots
from flows.progress import say
from flows.recording import log_dataset
from flows.report import gate_rows, verdict_markdown
from flows.scoring import Scorer
from flows.settings import Settings, load_settings
from flows.stage import stage
from flows.store.bundles import Bundle, find_bundle
from flows.store.champion import read_champion
from flows.store.files import digest_json
from flows.store.validations import Latest
from flows.store.verdicts import Record, Verdicts
from flows.tracking import Registry


@dataclass(frozen=True)
class Scored:
    """Predictions of all on the same rows; `champion` is None where nothing comparable serves."""

    y: np.ndarray
    candidate: np.ndarray
    champion: np.ndarray | None
    dummy: np.ndarray
    notes: list[str]
    basis: Basis


@stage(timeout_hours=3)
def evaluate(version: str | None = None) -> str:
    """Judge a version (default: the latest candidate) against the champion; return it if it passed.

    Args:
        version: A registered version; empty for the latest candidate.

    Raises:
        Refused: a gate refused it; says which and by how much.
    """
    settings = load_settings()
    chosen = version or Latest(settings.store_path).get("train")
    name_run("evaluate", version=chosen, data=Registry(settings).get(chosen).tags.get("data_digest"))
    known = known_verdict(settings, chosen)
    record = known or judge_version(chosen)
    if known:
        say(f"Version {chosen} was judged before against what is in service now: that verdict counts.")
    for gate in record.verdict.gates:
        say(f"Gate {gate.name} {'passed' if gate.passed else 'refused'}: {gate.sentence}.")
    for note in record.notes:
        say(note)
    say(record.refusal or f"Version {chosen} passed its gates on {record.verdict.rows:,} held-out rows.")
    if record.refusal:
        raise Refused(record.refusal)
    return chosen


def known_verdict(settings: Settings, version: str) -> Record | None:
    """Return the verdict that stands: the champion's own, or one that nothing has changed for since."""
    record = Verdicts(settings.store_path).find(version)
    champion = read_champion(settings.store_path)
    run_id = Registry(settings).run_id(version)
    if record is None or record.run_id != run_id:
        return None
    serves = champion is not None and champion.run_id == run_id
    return record if serves or record.key == verdict_key(settings, version) else None


def verdict_key(settings: Settings, version: str) -> str:
    """Return the digest of everything that a verdict depends on."""
    champion = read_champion(settings.store_path)
    return digest_json([version, champion and champion.bundle, settings.gates.model_dump()])


@task(name="judge", cache_policy=NO_CACHE)
def judge_version(version: str) -> Record:
    """Score, judge, and keep the verdict where the next run, MLflow and the Prefect UI find it."""
    settings = load_settings()
    candidate = load_candidate(settings, version)
    champion = read_champion(settings.store_path)
    bundle = find_bundle(settings.store_path, champion.bundle) if champion else None
    scored = score_holdout(settings, candidate, bundle)
    if champion and bundle is None:
        scored.notes.append(f"Version {champion.version} serves but cannot be compared: its bundle is not whole.")
    verdict = judge(
        candidate.contract.problem, scored.y, scored.candidate, scored.champion, scored.dummy, settings.gates
    )
    record = Record(
        key=verdict_key(settings, version),
        version=version,
        run_id=candidate.run_id,
        champion=champion.bundle if champion else None,
        verdict=verdict,
        refusal=refusal_sentence(verdict, champion.version if champion else None),
        notes=scored.notes,
    )
    show(settings, candidate, record, scored)
    Verdicts(settings.store_path).write(record)
    return record


def score_holdout(settings: Settings, candidate: Candidate, bundle: Bundle | None) -> Scored:
    """Return every side's predictions on the rows that neither candidate nor champion was trained on.

    Raises:
        UserError: no such rows are left.
    """
    notes: list[str] = []
    contract = candidate.contract
    why_not = can_score(bundle.contract, contract) if bundle else None
    if bundle and why_not:
        notes.append(f"Version {bundle.version} serves but cannot be compared: {why_not}.")
        bundle = None
    basis = find_basis(settings.gates, bundle)
    judged = choose_rows(candidate, basis)
    if judged.unknown:
        notes.append(f"{judged.unknown:,} held-out rows of classes that training never saw are left out.")
    metric = choose_metric(contract.problem, basis.metric)
    dummy = predict_dummy(contract.problem, metric, candidate.baseline, len(judged.y))
    champion = predict_champion(bundle, candidate, judged.frame) if bundle else None
    return Scored(judged.y, judged.predictions, champion, dummy, notes, basis)


def predict_champion(bundle: Bundle, candidate: Candidate, frame: pd.DataFrame) -> np.ndarray:
    """Return the champion's predictions by its bundle, classes in the candidate's order."""
    found = Scorer.open(bundle.path).predict(frame)
    ours, theirs = candidate.contract.classes, bundle.contract.classes
    if ours is None or theirs is None:
        return found
    aligned = np.zeros((len(frame), len(ours)))
    for place, label in enumerate(ours):
        if label in theirs:
            aligned[:, place] = found[:, theirs.index(label)]
    return aligned


def show(settings: Settings, candidate: Candidate, record: Record, scored: Scored) -> None:
    """Put figures, gates and plots where MLflow's and Prefect's UIs show them."""
    verdict = record.verdict
    contract = candidate.contract
    plots = draw_plots(
        contract.problem, scored.y, scored.candidate, scored.champion, contract.classes or (), contract.target
    )
    registry = Registry(settings)
    log_dataset(
        registry, candidate.validation, candidate.run_id, contract, candidate.holdout, "evaluation", len(scored.y)
    )
    metrics: dict[str, float] = {}
    for name, figure in verdict.scores["candidate"].items():
        values = {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
        metrics |= {key: value for key, value in values.items() if value is not None}
    documents = {"basis.json": scored.basis.model_dump(mode="json"), "verdict.json": verdict.model_dump(mode="json")}
    registry.log_results(candidate.run_id, metrics, documents, plots)
    registry.show_metrics(
        candidate.run_id, sorted(verdict.scores["candidate"], key=lambda name: name != verdict.metric)
    )
    registry.client.update_model_version(registry.name, record.version, verdict_markdown(record))
    publish_markdown("verdict", verdict_markdown(record))
    publish_link("mlflow-run", registry.run_address(candidate.run_id), f"MLflow run of version {record.version}")
    publish_table("gates", gate_rows(record))
    for name, png in plots.items():
        publish_image(f"plot-{name}", png, name.replace("_", " "))
