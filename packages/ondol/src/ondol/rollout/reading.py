"""Reads the log of a rollout, sends a sample of its requests through the other version, too, and joins the labels."""

import json
import math
import re
import zlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ondol.config import Gates
from ondol.contract import Contract, encode_target
from ondol.errors import UserError
from ondol.evaluation.metrics import Decided, bootstrap, choose_metric, metrics_of, paired_difference, score_metrics
from ondol.evaluation.scoring import ERROR, PREDICTION, Scorer, predict_table
from ondol.evaluation.targets import read_reference
from ondol.monitoring.drift import plain_text
from ondol.monitoring.labels import read_labels
from ondol.monitoring.log import SHADOW, files_between, parse_line, whole_lines
from ondol.monitoring.replay import to_table
from ondol.project import Project
from ondol.registry.bundles import Bundle
from ondol.registry.rollout import Rollout
from ondol.rollout.evidence import CHALLENGER, CHAMPION, VALUE, Answers, Evidence, Loss, Stretch
from ondol.rollout.sequences import FEWEST
from ondol.storage.files import scratch
from ondol.storage.store import Store
from ondol_serving.decision import DecisionRule
from ondol_serving.names import label_key

BEFORE = timedelta(hours=1)  # of the champion's log before a rollout that leaves it no requests to compare with
RESAMPLED = 5_000  # requests of the bootstrap
ONE_ERROR = math.erf(math.sqrt(0.5))  # the coverage of an interval of one standard error to either side
SAMPLED = 500  # requests of each version in one look whose answers are compared
ROWS = 10  # of each of them, at most
# Rows whose answers are kept for labels. With more than that, the metric is compared on samples of one size, one each
# hour. The bounds at that size are so wide that even 100 samples without a row in common keep the error rate.
KEPT = 100_000
OTHER = {CHAMPION: CHALLENGER, CHALLENGER: CHAMPION}
# A record as the service writes it; other records are parsed as JSON, which is slower.
RECORD = re.compile(
    rb'\{"id":"([^"\\]*)","at":"([^"\\]*)","version":"[^"\\]*","bundle":"([^"\\]*)",(?:"role":"([a-z]+)",)?'
    rb'(?:"ms":([-+.eE0-9]+|null),)?(?:"champion_ms":([-+.eE0-9]+|null),)?"(request|predictions|error)":'
)
SIDES = pa.schema(
    [
        ("request_id", pa.string()),
        ("row", pa.int64()),
        ("id", pa.string()),
        (CHAMPION, pa.list_(pa.float64())),
        (CHALLENGER, pa.list_(pa.float64())),
    ]
)


class Record(NamedTuple):
    """The fields that are read from every record; latencies are in milliseconds, None if they were not measured."""

    id: str
    at: float
    bundle: str
    role: str
    ms: float | None
    champion_ms: float | None
    failed: bool


def parse_record(line: bytes) -> Record | None:
    """Return the fields of a record; None if the line is not a record."""
    match = RECORD.match(line)
    try:
        if match is None:
            return _parse_slowly(json.loads(line))
        name, at, bundle, role, ms, champion_ms, kind = match.groups()
        return Record(
            name.decode(),
            datetime.fromisoformat(at.decode()).timestamp(),
            bundle.decode(),
            role.decode() if role else CHAMPION,
            _read_ms(ms),
            _read_ms(champion_ms),
            kind == b"error",
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _parse_slowly(record: Any) -> Record:
    return Record(
        str(record["id"]),
        datetime.fromisoformat(record["at"]).timestamp(),
        str(record["bundle"]),
        str(record.get("role", CHAMPION)),
        _read_ms(record.get("ms")),
        _read_ms(record.get("champion_ms")),
        "error" in record,
    )


def _read_ms(value: bytes | float | None) -> float | None:
    return None if value in (None, b"null") else float(value)


class Sample:
    """A random sample of requests, by a hash of their ids: the same ids are in the samples of both versions."""

    def __init__(self, most: int = SAMPLED) -> None:
        """Keep `most` requests."""
        self._most = most
        self._limit = 2**32
        self._lines: dict[str, tuple[int, int, bytes]] = {}

    def add(self, request_id: str, step: int, line: bytes) -> None:
        """Offer the record of a request."""
        place = zlib.crc32(request_id.encode())
        if place < self._limit:
            self._lines[request_id] = (place, step, line)
            if len(self._lines) >= 2 * self._most:
                self._lines = dict(self._chosen())
                self._limit = max(place for place, _, _ in self._lines.values())

    def _chosen(self) -> list[tuple[str, tuple[int, int, bytes]]]:
        return sorted(self._lines.items(), key=lambda item: item[1][0])[: self._most]

    def records(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """Return step and record of the sampled requests by id."""
        return {name: (step, parse_line(line)) for name, (_, step, line) in self._chosen()}


@dataclass
class Batch:
    """What one look reads: counts by step, samples by version, and where the next look reads on.

    `earlier` and `unanswered` are requests on which the challenger failed, and whose record of the champion's answer is
    still to be read: from the look before, which wait no longer than this look, and from this look.
    """

    stretches: dict[int, Stretch] = field(default_factory=lambda: defaultdict(Stretch))
    samples: dict[str, Sample] = field(default_factory=lambda: {CHAMPION: Sample(), CHALLENGER: Sample()})
    read: dict[str, int] = field(default_factory=dict)
    earlier: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)


def read_log(folder: Path, rollout: Rollout, evidence: Evidence) -> Batch:
    """Read what was added to the log since the last look.

    The steps are numbered from 0; -1 is the time before the rollout, which is compared only where the challenger
    answers everything from the first step on. When the challenger fails, the champion answers that request: that
    answer is not one of its share, and is left out.
    """
    found = Batch(read=dict(evidence.read), earlier=evidence.unanswered)
    starts = [datetime.fromisoformat(step.at).timestamp() for step in rollout.steps]
    low = starts[0] - (BEFORE.total_seconds() if rollout.plan[0] == 1 else 0)
    for path in files_between(folder, low, np.inf):
        offset = evidence.read.get(path.name, 0)
        for place, line in whole_lines(path, offset):
            offset = place + len(line)
            record = parse_record(line)
            if record is not None and record.at >= low:
                _count(found, rollout, record, line, bisect_right(starts, record.at) - 1)
        found.read[path.name] = offset
    return found


def _count(found: Batch, rollout: Rollout, record: Record, line: bytes, step: int) -> None:
    version = CHAMPION if record.role == CHAMPION else CHALLENGER
    if record.bundle != (rollout.champion if version == CHAMPION else rollout.bundle):
        return
    stretch = found.stretches[step]
    if version == CHAMPION and record.id in found.unanswered | found.earlier:
        found.unanswered.discard(record.id)
        stretch.instead += not record.failed
        return
    stretch.requests[version] += 1
    if record.failed:
        stretch.failed[version] += 1
        if record.role == CHALLENGER:
            found.unanswered.add(record.id)
        return
    if record.role != SHADOW and record.ms is not None:
        stretch.ms[version].append(record.ms)
    elif record.ms and record.champion_ms:
        stretch.ratios.append(record.ms / record.champion_ms)
    if step >= 0:
        found.samples[version].add(record.id, step, line)


def output_names(contract: Contract) -> tuple[str, ...]:
    """Return what each number of an answer is called: the classes, or `value`."""
    return (VALUE,) if contract.classes is None else tuple(map(label_key, contract.classes))


def pair_answers(batch: Batch, rollout: Rollout, champion: Bundle, challenger: Bundle) -> Answers | None:
    """Return the answers of both versions to the sampled requests; None if there are none, or if the classes differ.

    With "shadow" both are in the log. Otherwise the requests of one version are sent through the other, too, unless
    the log lacks a column that it needs.
    """
    samples = {version: sample.records() for version, sample in batch.samples.items()}
    if rollout.strategy == "shadow":
        both = samples[CHAMPION].keys() & samples[CHALLENGER].keys()
        samples = {
            version: {name: one for name, one in found.items() if name in both} for version, found in samples.items()
        }
    contracts = {CHAMPION: champion.contract, CHALLENGER: challenger.contract}
    names = output_names(contracts[CHAMPION])
    if not any(samples.values()) or names != output_names(contracts[CHALLENGER]):
        return None
    parts = []
    if rollout.strategy == "shadow":
        parts.append(_pair(samples[CHAMPION], samples[CHALLENGER], names, contracts[CHAMPION]))
    else:
        paths = {CHAMPION: champion.path, CHALLENGER: challenger.path}
        for version, found in samples.items():
            replayed = can_replay(contracts[version], contracts[OTHER[version]], complete=version == CHAMPION)
            scorer = Scorer.open(paths[OTHER[version]]) if replayed and found else None
            parts.append(_replay(found, version, names, scorer, contracts[CHAMPION]))
    rules = contracts[CHAMPION].decision, contracts[CHALLENGER].decision
    return replace(_join(parts), rules=rules)


def can_replay(logged: Contract, other: Contract, *, complete: bool) -> bool:
    """Return True if the log of a version has what another one needs: it lacks sensitive and unread columns.

    Args:
        logged: The contract of the version that answered.
        other: The contract of the other one.
        complete: Whether requests have no columns but those of `logged`, as the service checks for the champion.
    """
    needed = {column.name for column in other.features}
    if complete:
        needed &= {column.name for column in logged.columns}
    sensitive = {column.name for column in (*logged.columns, *other.features) if column.role == "sensitive"}
    return needed <= {column.name for column in logged.features} - sensitive


class _Part(NamedTuple):
    """The rows of some requests, in order: ids and steps of requests, keys of rows, and the answers of both."""

    steps: list[int]
    request: list[int]
    keys: list[tuple[str, int, str | None]]
    champion: np.ndarray
    challenger: np.ndarray
    refused: np.ndarray


def _rows_of(
    records: dict[str, tuple[int, dict[str, Any]]], contract: Contract
) -> Iterator[tuple[int, int, tuple[str, int, str | None], dict[str, Any], dict[str, Any]]]:
    """Yield number and step of the request, key, features and answer of the first rows of each request."""
    identity = contract.role("id")
    for number, (name, (step, record)) in enumerate(records.items()):
        for place, answer in enumerate(record["predictions"][:ROWS]):
            row = record.get("request", {"rows": [{}] * ROWS})["rows"][place]
            sent = row.get(identity.name) if identity else None
            yield number, step, (name, place, None if sent is None else plain_text(sent)), row, answer


def _pair(
    champion: dict[str, tuple[int, dict[str, Any]]],
    shadow: dict[str, tuple[int, dict[str, Any]]],
    names: tuple[str, ...],
    contract: Contract,
) -> _Part:
    rows = list(_rows_of(champion, contract))
    answers = {(key[0], key[1]): answer for _, _, key, _, answer in _rows_of(shadow, contract)}
    ours = _as_array([answer for *_, answer in rows], names)
    theirs = _as_array([answers.get((key[0], key[1])) for _, _, key, _, _ in rows], names)
    return _Part(
        [step for step, _ in champion.values()],
        [number for number, *_ in rows],
        [key for _, _, key, _, _ in rows],
        ours,
        theirs,
        np.zeros(len(rows), bool),
    )


def _replay(
    records: dict[str, tuple[int, dict[str, Any]]],
    version: str,
    names: tuple[str, ...],
    scorer: Scorer | None,
    contract: Contract,
) -> _Part:
    """Return the logged answers of `version`, and those of the other one, NaN without its model."""
    rows = list(_rows_of(records, contract))
    logged = _as_array([answer for *_, answer in rows], names)
    other, refused = np.full(logged.shape, np.nan), np.zeros(len(rows), bool)
    if scorer is not None and rows:
        predicted, _ = predict_table(scorer, to_table(scorer.contract, [row for _, _, _, row, _ in rows]))
        columns = [PREDICTION] if names == (VALUE,) else [f"probability {name}" for name in names]
        other = np.column_stack([predicted.column(name).to_numpy().astype(np.float64) for name in columns])
        refused = ~np.asarray(predicted.column(ERROR).is_null())
    first, second = (logged, other) if version == CHAMPION else (other, logged)
    return _Part(
        [step for step, _ in records.values()],
        [number for number, *_ in rows],
        [key for _, _, key, _, _ in rows],
        first,
        second,
        refused,
    )


def _as_array(answers: Iterable[dict[str, Any] | None], names: tuple[str, ...]) -> np.ndarray:
    """Return answers as numbers, [N, K]; NaN for those that are missing."""
    found = []
    for answer in answers:
        values = [None] * len(names) if answer is None else [_value(answer, name) for name in names]
        found.append([np.nan if value is None else value for value in values])
    return np.array(found, np.float64).reshape(-1, len(names))


def _value(answer: dict[str, Any], name: str) -> float | None:
    value: float | None = answer["value"] if "value" in answer else answer["probabilities"][name]
    return value


def _join(parts: list[_Part]) -> Answers:
    request: list[int] = []
    steps: list[int] = []
    for part in parts:
        request += [len(steps) + number for number in part.request]
        steps += part.steps
    return Answers(
        np.array(request, np.int64),
        np.concatenate([part.champion for part in parts]),
        np.concatenate([part.challenger for part in parts]),
        np.concatenate([part.refused for part in parts]),
        np.array(steps, np.int64),
        [key for part in parts for key in part.keys],
    )


def reference_spread(champion: Bundle) -> float | None:
    """Return the standard deviation of the champion's values on its held-out rows; None if that is not known."""
    try:
        reference = read_reference(champion)
    except UserError:
        return None
    spread = float(reference.frame[reference.prediction].std())
    return spread if spread > 0 else None


# Labels


def sample_path(store: Store, rollout: Rollout) -> Path:
    """Return the path of the compared answers, which are kept for labels that come later."""
    return store.folder / "rollouts" / f"{rollout.id}.parquet"


def keep_answers(store: Store, rollout: Rollout, answers: Answers) -> None:
    """Add compared answers to those that are kept; a look that was killed is repeated, and replaces its rows."""
    columns = [*map(list, zip(*answers.keys, strict=True)), list(answers.champion), list(answers.challenger)]
    arrays = [pa.array(column, entry.type) for column, entry in zip(columns, SIDES, strict=True)]
    rows, path = pa.table(arrays, schema=SIDES), sample_path(store, rollout)
    store.look(path)
    if path.exists():
        before = pq.read_table(path, schema=SIDES)
        known = set(rows["request_id"].to_pylist())
        others = [name not in known for name in before["request_id"].to_pylist()]
        rows = pa.concat_tables([before.filter(pa.array(others, pa.bool_())), rows])
    rows = rows.filter(pa.array(thin_requests(rows["request_id"].to_pylist())))
    with scratch(path) as made:
        pq.write_table(rows, made, compression="zstd")
        store.publish(made, path)


def thin_requests(ids: Iterable[str], most: int = KEPT) -> np.ndarray:
    """Return which rows to keep, at most `most`: those of the requests with the smallest hashes, as in `Sample`.

    Args:
        ids: The request of each row.
        most: The number of rows.
    """
    places = np.array([zlib.crc32(name.encode()) for name in ids], np.int64)
    hashes, rows = np.unique(places, return_counts=True)
    return np.isin(places, hashes[np.cumsum(rows) <= most])


def read_answers(store: Store, rollout: Rollout) -> pd.DataFrame | None:
    """Return the compared answers that are kept; None if there are none."""
    path = sample_path(store, rollout)
    store.look(path)
    return pd.read_parquet(path) if path.exists() else None


def remove_samples(store: Store) -> None:
    """Remove the compared answers of rollouts that have ended."""
    for path in store.sizes(store.folder / "rollouts", "*.parquet"):
        store.remove(path)


def measure_labelled(
    project: Project, rollout: Rollout, contract: Contract, challenger: DecisionRule | None
) -> Loss | None:
    """Return the metric of the gates on the kept rows that have a label by now; None if they are too few.

    Args:
        project: The project.
        rollout: The rollout.
        contract: The contract of the champion.
        challenger: How the challenger decides labels.

    Raises:
        UserError: the labels cannot be read.
    """
    answers = read_answers(project.store, rollout)
    if answers is None:
        return None
    labels = read_labels(project.settings, contract, [answers])
    return measure_loss(contract, labels.join(answers), project.settings.gates, challenger)


def measure_loss(
    contract: Contract, rows: pd.DataFrame, gates: Gates, challenger: DecisionRule | None = None
) -> Loss | None:
    """Return by how much the challenger's metric is worse on labelled rows; None if it is undefined on them.

    The metric is any metric of the gates itself, and its standard error is that of the bootstrap over
    requests. If both versions have answered the same rows, the difference is that of pairs.

    Args:
        contract: The contract of the champion.
        rows: The columns `request_id`, `label` (in the target's dtype), and lists of numbers of each version.
        gates: The metric and the number of bootstrap samples.
        challenger: How the challenger decides labels; both are compared by its costs.
    """
    problem, metric = contract.problem, choose_metric(contract.problem, gates.metric)
    y = encode_target(contract, rows["label"])
    good = (y >= 0) if contract.classes else np.isfinite(y)
    rows, y = rows[good], y[good]
    sides = {name: np.array(rows[name].tolist(), np.float64) for name in (CHAMPION, CHALLENGER)}
    if not len(rows):
        return None
    known = {name: np.isfinite(side).all(axis=1) for name, side in sides.items()}
    if (both := known[CHAMPION] & known[CHALLENGER]).any():
        known = dict.fromkeys(known, both)
    request = rows["request_id"].to_numpy()
    rules, judge = {CHAMPION: contract.decision, CHALLENGER: challenger}, challenger or contract.decision
    data = {}
    for name, side in sides.items():
        chosen = known[name]
        _, groups = np.unique(request[chosen], return_inverse=True)
        predicted = Decided.by(rules[name], side[chosen], judge) if contract.classes else side[chosen, 0]
        data[name] = (y[chosen], predicted, groups)
    requests = [int(groups.max()) + 1 if len(groups) else 0 for _, _, groups in data.values()]
    if min(requests) < FEWEST:
        return None
    figures = {name: score_metrics(problem, truth, answers).get(metric) for name, (truth, answers, _) in data.items()}
    before, now = figures[CHAMPION], figures[CHALLENGER]
    if before is None or now is None:
        return None
    truth, answers, groups = data[CHALLENGER]
    if both.any():
        error = _error(problem, metric, gates, groups, truth, answers, data[CHAMPION][1])
    else:
        errors = [_error(problem, metric, gates, groups, truth, answers) for truth, answers, groups in data.values()]
        error = math.hypot(*errors)
    if not math.isfinite(error):
        return None
    kind = metrics_of(problem)[metric]
    return Loss(
        metric=metric,
        requests=min(requests),
        champion=before,
        challenger=now,
        worse=kind.sign * (before - now),
        error=error,
        relative=kind.relative,
    )


def _error(
    problem: str,
    metric: str,
    gates: Gates,
    groups: np.ndarray,
    y: np.ndarray,
    answers: Decided | np.ndarray,
    *other: Decided | np.ndarray,
) -> float:
    """Return the standard error of a metric, or of its difference to that of `other`; NaN if it is undefined.

    It is that of at most `RESAMPLED` requests, scaled to all of them: it falls with the square root of their number.
    """
    requests = int(groups.max()) + 1
    if requests > RESAMPLED:
        drawn = np.random.default_rng(0).choice(requests, RESAMPLED, replace=False)
        chosen = np.isin(groups, drawn)
        groups = np.unique(groups[chosen], return_inverse=True)[1]
        y, answers, *other = (one[chosen] for one in (y, answers, *other))  # type: ignore[assignment]
    options: dict[str, Any] = {"confidence": ONE_ERROR, "resamples": gates.resamples, "groups": groups}
    if other:
        found = paired_difference(problem, metric, y, answers, other[0], **options)
    else:
        found = bootstrap(problem, y, answers, metrics=[metric], **options).get(metric)
    if found is None or found.low is None or found.high is None:
        return math.nan
    return (found.high - found.low) / 2 * math.sqrt(min(RESAMPLED / requests, 1.0))
