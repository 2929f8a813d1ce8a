"""Steps of the evaluate flow: score candidate and champion on the same held-out rows, and apply the gates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ondol.contract import Contract
from ondol.contract.schema import can_score
from ondol.errors import Refused
from ondol.evaluation.card import card_address, log_card, write_card
from ondol.evaluation.gates import (
    StoredVerdict,
    apply_gates,
    apply_own_gates,
    apply_slice_margin,
    apply_wanted,
    gate_rows,
    known_verdict,
    refusal_sentence,
    verdict_key,
    verdict_markdown,
)
from ondol.evaluation.metrics import (
    IMPORTANCE_ROWS,
    Decided,
    Interval,
    choose_metric,
    labels_of,
    measure_importance,
    numbers_of,
)
from ondol.evaluation.plots import Importance, bin_means, draw_importance, draw_plots, draw_slices, group_evenly
from ondol.evaluation.scoring import Scorer, predict_dummy
from ondol.evaluation.slices import Slice, describe_weak, measure_slices, row_losses, slice_rows
from ondol.evaluation.targets import Basis, Candidate, align_predictions, choose_rows, find_basis, load_candidate
from ondol.orchestration.processes import mlflow_ui
from ondol.orchestration.reporting import publish_image, publish_link, publish_markdown, publish_table, say
from ondol.project import Project
from ondol.registry.bundles import Bundle, find_bundle
from ondol.registry.champion import Champion
from ondol.registry.registry import CHOICE_TAG, DECISION_TAG
from ondol.training.dataset import log_dataset

TENTHS = 10  # of the rows, by the prediction


@dataclass(frozen=True)
class Scored:
    """Predictions of all models on the same rows.

    Attributes:
        frame: The rows, with all columns of the contract.
        y: The true targets: indexes of the classes, or values.
        predictions: The predictions of "candidate", "dummy" and, if a comparable model is in production, "champion".
        notes: Sentences on rows or models that were left out.
        basis: The settings and rows that the metrics depend on.
        against: The champion at that time, comparable or not.
    """

    frame: pd.DataFrame
    y: np.ndarray
    predictions: Mapping[str, Decided | np.ndarray]
    notes: list[str]
    basis: Basis
    against: Champion | None

    @property
    def candidate(self) -> np.ndarray:
        """The candidate's probabilities or values."""
        return numbers_of(self.predictions["candidate"])

    @property
    def champion(self) -> np.ndarray | None:
        """The champion's probabilities or values; None if no comparable model is in production."""
        return numbers_of(self.predictions["champion"]) if "champion" in self.predictions else None

    @property
    def dummy(self) -> np.ndarray:
        """The probabilities or values of a dummy model."""
        return numbers_of(self.predictions["dummy"])

    @property
    def labels(self) -> np.ndarray:
        """The candidate's labels, as the service decides them: indexes of the classes."""
        return labels_of(self.predictions["candidate"])


def find_verdict(project: Project, version: str) -> StoredVerdict | None:
    """Return the verdict if its inputs are unchanged, None if the version must be evaluated."""
    record = known_verdict(project, version)
    if record:
        say(f"Version {version} was already evaluated against the current champion: that verdict is used.")
    return record


def score_holdout(project: Project, version: str) -> Scored:
    """Return the predictions of all models on the rows that neither candidate nor champion was trained on.

    Raises:
        UserError: no such rows are left.
    """
    notes: list[str] = []
    candidate, champion = load_candidate(project.settings, version), project.champion
    contract = candidate.contract
    bundle = find_bundle(project.store, champion.bundle) if champion else None
    whole = bundle is not None
    why_not = can_score(bundle.contract, contract) if bundle else None
    if bundle and why_not:
        notes.append(f"Version {bundle.version} is in production but cannot be compared: {why_not}.")
        bundle = None
    basis = find_basis(project.settings.gates, bundle)
    rows = choose_rows(candidate, basis)
    if rows.unknown:
        notes.append(f"{rows.unknown:,} held-out rows of classes that training never saw are left out.")
    if champion and not whole:
        notes.append(f"Version {champion.version} is in production but cannot be compared: its bundle is incomplete.")
    metric = choose_metric(contract.problem, basis.metric)
    rule = contract.decision
    dummy = predict_dummy(contract.problem, metric, candidate.baseline, len(rows.y), rule)
    predictions = {"candidate": Decided.by(rule, rows.predictions), "dummy": Decided.by(None, dummy, rule)}
    if bundle:
        predictions["champion"] = predict_champion(bundle, candidate, rows.frame)
    return Scored(rows.frame, rows.y, predictions, notes, basis, champion)


def evaluate_candidate(project: Project, version: str, scored: Scored) -> StoredVerdict:
    """Apply the gates; return the verdict with the digest of its inputs."""
    candidate, champion = load_candidate(project.settings, version), scored.against
    predicted = scored.predictions
    verdict = apply_gates(
        candidate.contract.problem,
        scored.y,
        predicted["candidate"],
        predicted.get("champion"),
        predicted["dummy"],
        project.settings.gates,
    )
    slices, margin = find_slices(candidate.contract, scored), project.settings.gates.slice_margin
    gates = [*verdict.gates, *([] if margin is None else [apply_slice_margin(slices, margin)])]
    if candidate.contract.decision is not None:
        gates += apply_wanted(verdict, candidate.settings.decision)
    verdict = verdict.model_copy(update={"gates": (*gates, *apply_own_gates(verdict, scored))})
    return StoredVerdict(
        key=verdict_key(project, version),
        version=version,
        run_id=candidate.run_id,
        champion=champion.bundle if champion else None,
        verdict=verdict,
        refusal=refusal_sentence(verdict, champion.version if champion else None),
        notes=[
            *filter(None, [candidate.tags.get(CHOICE_TAG), candidate.tags.get(DECISION_TAG)]),
            *scored.notes,
            *describe_weak(slices, candidate.contract.problem),
        ],
        slices=slices,
    )


def find_slices(contract: Contract, scored: Scored) -> list[Slice]:
    """Return the error in parts of the scored rows."""
    problem, champion = contract.problem, scored.predictions.get("champion")
    theirs = None if champion is None else row_losses(problem, scored.y, champion)
    return measure_slices(
        contract, scored.frame, row_losses(problem, scored.y, scored.predictions["candidate"]), theirs
    )


def predict_champion(bundle: Bundle, candidate: Candidate, frame: pd.DataFrame) -> Decided | np.ndarray:
    """Return the predictions of the champion's bundle, with the classes in the candidate's order."""
    return align_predictions(Scorer.open(bundle.path).predict(frame), bundle.contract, candidate.contract)


def log_verdict(project: Project, scored: Scored, record: StoredVerdict) -> None:
    """Log metrics, gates and plots to MLflow and Prefect, then store the verdict."""
    verdict, registry = record.verdict, project.registry
    candidate = load_candidate(project.settings, record.version)
    contract = candidate.contract
    plots = draw_plots(
        contract.problem,
        scored.y,
        scored.predictions["candidate"],
        scored.predictions.get("champion"),
        contract.classes or (),
        contract.target,
        rule=contract.decision,
    )
    importance = measure_importance(
        contract.problem,
        verdict.metric,
        scored.y,
        scored.frame,
        [column.name for column in contract.features],
        lambda frame: Decided.by(contract.decision, candidate.predict(frame)),
        confidence=scored.basis.confidence,
        resamples=scored.basis.resamples,
    )
    if record.slices:
        plots["slices"] = draw_slices(record.slices, contract.problem)
        publish_table("slices", slice_rows(record.slices, contract.problem))
    if importance:
        plots["importance"] = draw_importance(
            Importance(importance, verdict.metric, min(len(scored.y), IMPORTANCE_ROWS))
        )
    log_dataset(
        project, candidate.validation, candidate.run_id, contract, candidate.holdout, "evaluation", len(scored.y)
    )
    metrics: dict[str, float] = {}
    for name, figure in verdict.scores["candidate"].items():
        values = {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
        metrics |= {key: value for key, value in values.items() if value is not None}
    documents = {
        "basis.json": scored.basis.model_dump(mode="json"),
        "verdict.json": verdict.model_dump(mode="json"),
        "importance.json": importance_table(importance),
        "slices.json": slices_table(record.slices),
        "calibration.json": calibration_table(contract.problem, scored.y, scored.candidate),
    }
    registry.log_results(candidate.run_id, metrics, documents, plots)
    registry.show_metrics(
        candidate.run_id, sorted(verdict.scores["candidate"], key=lambda name: name != verdict.metric)
    )
    registry.client.update_model_version(registry.name, record.version, verdict_markdown(record))
    publish_markdown("verdict", verdict_markdown(record))
    page = mlflow_ui(project.settings) + registry.run_path(candidate.run_id)
    publish_link("mlflow-run", page, f"MLflow run of version {record.version}")
    publish_table("gates", gate_rows(record))
    for name, png in plots.items():
        publish_image(f"plot-{name}", png, name.replace("_", " "))
    address = log_card(project, record.version, write_card(project, record.version, verdict=record))
    publish_link("model-card", address, f"Model card of version {record.version}")
    project.verdicts.write(record)


def calibration_table(problem: str, y: np.ndarray, prediction: np.ndarray) -> dict[str, Any]:
    """Return mean prediction, mean outcome and rows of each tenth of the rows, in the form of MLflow's tables.

    The prediction is the probability of the second of two classes, else of the most probable class, or the value.
    """
    predicted, outcome = prediction, y
    if problem != "regression":
        place = np.ones(len(y), np.intp) if problem == "binary" else prediction.argmax(axis=1)
        predicted, outcome = prediction[np.arange(len(y)), place], y == place
    means = bin_means(predicted, (predicted, outcome), TENTHS)
    rows = np.bincount(group_evenly(predicted, TENTHS))
    return {"columns": ["predicted", "observed", "rows"], "data": np.column_stack([*means, rows]).tolist()}


def importance_table(importance: Mapping[str, Interval]) -> dict[str, Any]:
    """Return the importance of columns in the form of MLflow's tables."""
    rows = [[name, one.value, one.low, one.high] for name, one in importance.items()]
    return {"columns": ["column", "importance", "low", "high"], "data": rows}


def slices_table(slices: list[Slice]) -> dict[str, Any]:
    """Return the error in parts of the rows in the form of MLflow's tables."""
    names = list(Slice.model_fields)
    return {"columns": names, "data": [[getattr(one, name) for name in names] for one in slices]}


def check_gates(record: StoredVerdict) -> None:
    """Log the decisions of the gates, and raise if one refused.

    Raises:
        Refused: one refused the version.
    """
    for gate in record.verdict.gates:
        say(f"Gate {gate.name} {'passed' if gate.passed else 'refused'}: {gate.sentence}.")
    for note in record.notes:
        say(note)
    say(record.refusal or f"Version {record.version} passed its gates on {record.verdict.rows:,} held-out rows.")
    if record.refusal:
        raise Refused(record.refusal)


def publish_summary(project: Project, version: str) -> None:
    """Publish the verdict in the pipeline's run; the stages publish their results in their own runs."""
    if record := project.verdicts.find(version):
        card = f"[Model card of version {version}]({card_address(project, record.run_id)})"
        publish_markdown("summary", f"{verdict_markdown(record)}\n\n{card}")
