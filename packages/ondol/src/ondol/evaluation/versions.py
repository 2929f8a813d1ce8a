"""Compares registered versions side by side: on the same held-out rows, and by their records."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ondol.contract import encode_target
from ondol.contract.schema import can_score
from ondol.errors import UserError
from ondol.evaluation.metrics import Interval, bootstrap, choose_metric, numbers_of, paired_difference
from ondol.evaluation.plots import draw_versions
from ondol.evaluation.targets import Candidate, align_predictions, load_candidate
from ondol.project import Project
from ondol.training.dataset import in_holdout

SHORT = 12  # letters of a commit


@dataclass(frozen=True)
class VersionComparison:
    """Versions side by side; each list has one entry for each version, in the order in which they were given.

    Attributes:
        versions: The versions.
        metric: The deciding metric.
        rows: The number of rows that no version was trained on, which all of them are scored on.
        scores: Each metric with its interval.
        gains: By how much the deciding metric is better than that of the first version; None for that one, and where it
            is undefined.
        facts: The data, sizes, times and verdict, by name.
        params: The recorded parameters that are not equal for all versions, by name.
    """

    versions: list[str]
    metric: str
    rows: int
    scores: list[dict[str, Interval]]
    gains: list[Interval | None]
    facts: list[dict[str, str]]
    params: list[dict[str, str]]

    def describe(self) -> dict[str, Any]:
        """Return the comparison as a JSON document."""
        return asdict(self)


def compare_versions(project: Project, versions: Sequence[str]) -> tuple[VersionComparison, bytes]:
    """Return the comparison, and its picture as a PNG image.

    Raises:
        UserError: there are fewer than two versions, one cannot be scored on the rows of the newest one, or no rows are
            left that none was trained on.
    """
    if len(set(versions)) < 2:
        raise UserError("`ml compare` needs at least two different versions: MLflow and `ml status` list them.")
    settings = project.settings
    candidates = [load_candidate(settings, version) for version in dict.fromkeys(versions)]
    newest = max(candidates, key=lambda one: int(one.version))
    frame, contract = newest.held_out, newest.contract
    for other in candidates:
        if why := can_score(other.contract, contract):
            raise UserError(f"Version {other.version} cannot be compared with version {newest.version}: {why}.")
        frame = frame[in_holdout(frame, other.contract, other.holdout)]
    y = encode_target(contract, frame[contract.target])
    known = (y >= 0) if contract.classes else np.ones(len(y), bool)
    if not known.any():
        raise UserError("No rows are left that none of these versions was trained on.")
    frame, y = frame[known], y[known]
    predictions = [align_predictions(one.predict(frame), one.contract, contract) for one in candidates]
    metric, gates = choose_metric(contract.problem, settings.gates.metric), settings.gates
    how: dict[str, Any] = {"confidence": gates.confidence, "resamples": gates.resamples}
    scores = [bootstrap(contract.problem, y, found, needed=metric, **how) for found in predictions]
    gains = [
        None if place == 0 else paired_difference(contract.problem, metric, y, found, predictions[0], **how)
        for place, found in enumerate(predictions)
    ]
    runs = [project.registry.run_of(one.version).data for one in candidates]
    names = sorted({name for run in runs for name in run.params})
    different = [name for name in names if len({run.params.get(name) for run in runs}) > 1]
    found = VersionComparison(
        versions=[one.version for one in candidates],
        metric=metric,
        rows=len(y),
        scores=scores,
        gains=gains,
        facts=[describe_version(project, one, run.metrics) for one, run in zip(candidates, runs, strict=True)],
        params=[{name: run.params.get(name, "") for name in different} for run in runs],
    )
    positive = predictions if contract.problem == "binary" else []
    curves = {version: numbers_of(made)[:, 1] for version, made in zip(found.versions, positive, strict=False)}
    return found, draw_versions(dict(zip(found.versions, scores, strict=True)), metric, len(y), y == 1, curves)


def describe_version(project: Project, candidate: Candidate, metrics: dict[str, float]) -> dict[str, str]:
    """Return the facts of a version's record in words."""
    record = project.verdicts.of_run(candidate.version, candidate.run_id)
    verdict = "not evaluated" if record is None else record.refusal or "passed its gates"
    return {
        "validation": candidate.validation,
        "commit": candidate.tags.get("git_commit", "")[:SHORT],
        "training rows": f"{metrics.get('train_rows', 0):,.0f}",
        "seconds to fit": f"{metrics.get('fit_seconds', 0):.1f}",
        "model size": f"{len(candidate.skops_bytes()) / 1000:,.0f} kB",
        "verdict": verdict,
    }
