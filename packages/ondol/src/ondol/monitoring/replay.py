"""Replays logged requests through another version: which answers it would have changed, for whom, and how far."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ondol.contract import Contract
from ondol.errors import Refused, UserError
from ondol.evaluation.gates import Gate, known_verdict, verdict_markdown
from ondol.evaluation.scoring import CHUNK, ERROR, PREDICTION, Scorer, predict_table
from ondol.evaluation.targets import load_candidate
from ondol.monitoring.log import files_between, parse_line, read_head, whole_lines
from ondol.orchestration.reporting import say
from ondol.project import Project
from ondol.registry.bundles import Bundle, find_bundle, open_bundle, served_bundle
from ondol.registry.champion import Champion, require_champion
from ondol.storage.store import fetch_log
from ondol_serving.decision import decide
from ondol_serving.names import label_key

REPLAY = "replay"  # the gate
FEWEST_ROWS = 30  # of a slice that is shown
MOST_VALUES = 100  # of a column whose values are slices
MOST_SLICES = 10
MOST_REASONS = 3
SPREAD = 0.1  # two values differ if they are further apart than this share of the champion's standard deviation
QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class ReplaySlice:
    """The rows with one value of a column, and the share of them that is answered otherwise."""

    column: str
    value: str
    rows: int
    share: float


@dataclass
class Replay:
    """What a version would have answered to the requests that the champion answered.

    Attributes:
        version: The version that was replayed.
        champion: The version that answered.
        start: The beginning of the period.
        end: Its end.
        requests: The requests of the period that the champion answered.
        rows: Their rows.
        others: The requests that other bundles answered; they are left out.
        refused: The rows that the version refuses although the champion answered them.
        reasons: Why, for the first of them.
        differing: The rows that it answers otherwise: with another label, or with a value that is further away than a
            tenth of the standard deviation of the champion's values.
        distances: The median, 90% and 99% quantile and the largest distance: of probabilities, or of values.
        slices: The slices in which the largest share is answered otherwise.
        seconds: How long the version took to predict.
    """

    version: str
    champion: str
    start: datetime
    end: datetime
    requests: int = 0
    rows: int = 0
    others: int = 0
    refused: int = 0
    reasons: list[str] = field(default_factory=list)
    differing: int = 0
    distances: dict[float, float] = field(default_factory=dict)
    slices: list[ReplaySlice] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def compared(self) -> int:
        """The number of rows that both versions answered."""
        return self.rows - self.refused


def replay_log(project: Project, version: str, days: float) -> Replay:
    """Send the requests of the last `days` days through `version`, without the service.

    Raises:
        UserError: no model is in production, there is no such version, its problem or a feature is not that of the
            log, or the champion has answered nothing in that time.
    """
    champion = require_champion(project.store)
    if champion.version == version:
        raise UserError(f"Version {version} is in production: its answers are those of the log.")
    bundle, scorer = open_bundle(project.store, champion.bundle), open_scorer(project, version)
    if why_not := find_difference(bundle.contract, scorer.contract):
        raise UserError(f"The answers of version {version} and the champion cannot be compared: {why_not}.")
    found = compare_answers(project, bundle, scorer, version, days)
    if not found.rows:
        raise UserError(f"Version {champion.version} has answered nothing in the last {days:g} days: give more --days.")
    return found


def check_replay(project: Project, version: str) -> Gate | None:
    """Replay the log through a candidate that passed the other gates, if `[gates] replay_days` asks for it.

    Returns:
        The decision; None if the gate is off, or has nothing to decide.

    Raises:
        Refused: the candidate answers too many rows otherwise than the champion, or refuses one.
        UserError: the log lacks a feature.
    """
    if project.settings.gates.replay_days is None:
        return None
    record_replay(project, version)
    record = known_verdict(project, version)
    gate = record.gate(REPLAY) if record else None
    if record is None or gate is None:
        return None
    say(f"Gate {REPLAY} {'passed' if gate.passed else 'refused'}: {gate.sentence}.")
    if not gate.passed:
        raise Refused(record.refusal)
    return gate


def record_replay(project: Project, version: str) -> Replay | None:
    """Add the gate's decision to the verdict on a candidate, unless it is there; return the replay if there was one.

    Raises:
        UserError: the log lacks a feature.
    """
    record, champion = known_verdict(project, version), project.champion
    if record is None or record.gate(REPLAY) or (champion and champion.run_id == record.run_id):
        return None
    gate, found = apply_replay(project, champion, version)
    record = record.with_gate(gate, champion.version if champion else None)
    project.verdicts.write(record)
    project.registry.client.update_model_version(project.registry.name, version, verdict_markdown(record))
    return found


def apply_replay(project: Project, champion: Champion | None, version: str) -> tuple[Gate, Replay | None]:
    """Return the decision on a candidate by what it answers to the logged requests, and the replay if there was one.

    Raises:
        UserError: the log lacks a feature.
    """
    gates = project.settings.gates
    days, limit = gates.replay_days or 0.0, gates.replay_share

    def pass_unseen(why: str) -> tuple[Gate, None]:
        return Gate(name=REPLAY, figure=None, limit=None, passed=True, sentence=why), None

    if champion is None:
        return pass_unseen("no champion to compare with")
    bundle, scorer = find_bundle(project.store, champion.bundle), open_scorer(project, version)
    if bundle is None:
        return pass_unseen(f"the bundle of champion version {champion.version} is incomplete")
    if why_not := find_difference(bundle.contract, scorer.contract):
        return pass_unseen(f"it cannot be compared with champion version {champion.version}: {why_not}")
    found = compare_answers(project, bundle, scorer, version, days)
    if not found.rows:
        return pass_unseen(f"champion version {champion.version} has answered nothing in the last {days:g} days")
    of = f"of {found.rows:,} rows that champion version {champion.version} answered in the last {days:g} days"
    if found.refused:
        sentence = f"{found.refused:,} {of} are refused, such as for {found.reasons[0]!r}"
        return Gate(name=REPLAY, figure=None, limit=None, passed=False, sentence=sentence), found
    share = found.differing / found.rows
    sentence = f"{found.differing:,} {of} are answered otherwise ({share:.1%}), and at most {limit:.1%} are allowed"
    return Gate(name=REPLAY, figure=share, limit=limit, passed=share <= limit, sentence=sentence), found


def compare_answers(project: Project, bundle: Bundle, scorer: Scorer, version: str, days: float) -> Replay:
    """Compare what `scorer` answers to the requests of the last `days` days with the answers of the champion's bundle.

    Raises:
        UserError: the log lacks a feature.
    """
    require_logged(project, scorer.contract, version)
    end = datetime.now(UTC)
    found = Replay(version, bundle.version, end - timedelta(days=days), end)
    fetch_log(project.store, found.start)
    comparison = Comparison(scorer.contract)
    for rows, answers in read_chunks(project, bundle, found):
        started = time.perf_counter()
        predicted, refused = predict_table(scorer, to_table(scorer.contract, rows))
        found.seconds += time.perf_counter() - started
        found.refused += refused
        errors = predicted.column(ERROR).drop_null().to_pylist()
        found.reasons += [reason for reason in dict.fromkeys(errors) if reason not in found.reasons]
        found.reasons = found.reasons[:MOST_REASONS]
        comparison.add(rows, answers, predicted)
    if found.rows:
        comparison.finish(found)
    return found


def open_scorer(project: Project, version: str) -> Scorer:
    """Return the model of a version: from its bundle if there is one, else from the registry.

    Raises:
        UserError: there is no such version.
    """
    try:
        return Scorer.open(served_bundle(project.store, version).path)
    except UserError:  # it was never in production, or its bundle is missing
        candidate = load_candidate(project.settings, version)
    classes = candidate.contract.classes

    def run(encoded: pd.DataFrame) -> list[np.ndarray]:
        if classes is None:
            return [np.asarray(candidate.pipeline.predict(encoded))]
        probabilities = np.asarray(candidate.pipeline.predict_proba(encoded))
        return [decide(candidate.contract.decision, probabilities), probabilities]

    return Scorer(candidate.contract, run)


def find_difference(before: Contract, after: Contract) -> str:
    """Return why the answers of two contracts cannot be compared: the problem or the classes differ; else nothing."""
    if (before.problem, before.classes) == (after.problem, after.classes):
        return ""
    return f"they predict different things ({_show_answers(after)} and {_show_answers(before)})"


def _show_answers(contract: Contract) -> str:
    return "a value" if contract.classes is None else ", ".join(map(label_key, contract.classes))


def require_logged(project: Project, contract: Contract, version: str) -> None:
    """Check that the log has the features of a version as callers sent them.

    Raises:
        UserError: one is sensitive, so the log lacks or hashes it.
    """
    hidden = [column.name for column in contract.features if column.role == "sensitive"]
    if hidden:
        how = {"drop": "leaves out", "hash": "hashes"}[project.settings.log.sensitive]
        raise UserError(
            f"Version {version} needs {hidden[0]!r}, which is sensitive, and the log {how} it ([log] sensitive): the "
            "requests cannot be replayed."
        )


Rows = list[dict[str, Any]]


def read_chunks(project: Project, bundle: Bundle, found: Replay) -> Iterator[tuple[Rows, Rows]]:
    """Yield the rows of the period that `bundle` answered, and its answers, in chunks; count them in `found`."""
    low, high = found.start.timestamp(), found.end.timestamp()
    rows: Rows = []
    answers: Rows = []
    for path in files_between(project.store.folder / "log", low, high):
        for _, line in whole_lines(path):
            head = read_head(line)
            if head is None or not low <= head.at < high:
                continue
            if head.bundle != bundle.name:
                found.others += 1
                continue
            record = parse_line(line)
            rows += record["request"]["rows"]
            answers += record["predictions"]
            found.requests += 1
            if len(rows) >= CHUNK:
                found.rows += len(rows)
                yield rows, answers
                rows, answers = [], []
    if rows:
        found.rows += len(rows)
        yield rows, answers


def to_table(contract: Contract, rows: Rows) -> pa.Table:
    """Return the features of logged rows as a table; a column that was not sent is missing."""
    return pa.table({c.name: _to_array([row.get(c.name) for row in rows]) for c in contract.features})


def _to_array(values: list[Any]) -> pa.Array:
    """Return values in their own type, or as texts if they differ: a date may be sent as a text or as a number."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])


class Comparison:
    """Collects how the answers of a version differ, chunk by chunk."""

    def __init__(self, contract: Contract) -> None:
        """Start without answers."""
        self._contract = contract
        self._distances: list[np.ndarray] = []
        self._before: list[np.ndarray] = []  # values of a regression
        self._differs: list[np.ndarray] = []
        self._values: dict[str, list[np.ndarray]] = {
            column.name: [] for column in contract.features if column.kind in ("text", "boolean")
        }

    def add(self, rows: Rows, answers: Rows, predicted: pa.Table) -> None:
        """Compare the answers of the log with those of a version; rows that it refuses are left out."""
        kept = np.asarray(predicted.column(ERROR).is_null())
        if self._contract.classes is None:
            before = np.array([_number(one["value"]) for one in answers])[kept]
            after = predicted.column(PREDICTION).to_numpy()[kept].astype(np.float64)
            self._before.append(before)
            self._distances.append(np.abs(after - before))
        else:
            keys = [label_key(label) for label in self._contract.classes]
            shares = [np.array([_number(one["probabilities"][key]) for one in answers])[kept] for key in keys]
            after = [predicted.column(f"probability {key}").to_numpy()[kept] for key in keys]
            self._distances.append(np.abs(np.array(after) - np.array(shares)).max(axis=0))
            labels = np.array([label_key(one["label"]) for one in answers], dtype=object)[kept]
            found = np.array([label_key(one) for one in predicted.column(PREDICTION).to_pylist()], dtype=object)[kept]
            self._differs.append(labels != found)
        for name, parts in self._values.items():
            parts.append(np.array([_show(row.get(name)) for row in rows], dtype=object)[kept])

    def finish(self, found: Replay) -> None:
        """Write what differs into `found`."""
        distances = np.concatenate(self._distances)
        if not len(distances):
            return
        if self._contract.classes is None:
            limit = SPREAD * float(np.nanstd(np.concatenate(self._before)))
            differs = ~(distances <= limit)
        else:
            differs = np.concatenate(self._differs)
        found.differing = int(differs.sum())
        found.distances = {q: float(np.nanquantile(distances, q)) for q in QUANTILES}
        found.slices = sorted(self._slices(differs), key=lambda one: (-one.share, -one.rows))[:MOST_SLICES]

    def _slices(self, differs: np.ndarray) -> Iterator[ReplaySlice]:
        for name, parts in self._values.items():
            groups = pd.Series(differs).groupby(np.concatenate(parts), sort=False)
            if groups.ngroups > MOST_VALUES:
                continue
            for value, (rows, share) in groups.agg(["size", "mean"]).iterrows():
                if rows >= FEWEST_ROWS and share > 0:
                    yield ReplaySlice(name, str(value), int(rows), float(share))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _show(value: Any) -> str:
    return "(missing)" if value is None else str(value)
