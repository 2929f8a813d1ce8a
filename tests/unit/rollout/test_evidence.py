"""What is read of a rollout's log: roles, steps, failures, samples and labels; each record counts once."""

import json
import math
import uuid
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ondol.config import Gates
from ondol.contract import Column, Contract
from ondol.registry.rollout import Rollout, Step
from ondol.rollout.evidence import (
    CHALLENGER,
    CHAMPION,
    MOST_POINTS,
    Answers,
    Evidence,
    Point,
    Stretch,
    evidence_path,
    read_evidence,
    write_evidence,
)
from ondol.rollout.reading import (
    Sample,
    _join,
    _pair,
    can_replay,
    keep_answers,
    measure_loss,
    output_names,
    parse_record,
    read_answers,
    read_log,
    remove_samples,
    thin_requests,
)
from ondol.rollout.sequences import Bounds, Share
from ondol.storage.files import Damaged
from ondol.storage.store import Store
from ondol_serving.decision import DecisionRule

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ANSWER = {"label": "no", "probabilities": {"no": 0.9, "yes": 0.1}}


def make_rollout(strategy: str = "canary", plan: tuple[float, ...] = (0.05, 0.5, 1.0), steps: int = 1) -> Rollout:
    """A rollout whose steps began ten minutes apart."""
    taken = [
        Step(at=(START + 10 * number * MINUTE).isoformat(), share=plan[number], who="kim", why="")
        for number in range(steps)
    ]
    return Rollout(
        id="2-b-1", strategy=strategy, champion="1-a", move="1 1-a", version="2", run_id="r", bundle="2-b", digest="d",
        plan=plan, steps=tuple(taken),
    )  # fmt: skip


def record(role: str | None, at: datetime, **changes: Any) -> dict[str, Any]:
    """A record as the service writes it; with `error` in place of an answer if that is given."""
    bundle = "1-a" if role in (None, CHAMPION) else "2-b"
    head = {"id": uuid.uuid4().hex, "at": at.isoformat("T", "microseconds"), "version": bundle[0], "bundle": bundle}
    head |= {} if role is None else {"role": role}
    body: dict[str, Any] = {"ms": 2.0}
    if role == "shadow":
        body |= {"champion_ms": 1.0, "predictions": [ANSWER]}
    else:
        body |= {"request": {"rows": [{"x": 1.0}]}, "predictions": [ANSWER]}
    if "error" in changes:
        body = {"ms": 2.0}
    return head | body | changes


def text(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(one, ensure_ascii=False, separators=(",", ":")) + "\n" for one in records)


def write(folder: Path, records: list[dict[str, Any]], name: str = "host-1-1", tail: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{START - 60 * MINUTE:%Y%m%dT%H%M%S}-{name}.jsonl"
    path.write_text(text(records) + tail, encoding="utf-8")
    return path


def read(folder: Path, rollout: Rollout, evidence: Evidence) -> Evidence:
    """One look without models."""
    batch = read_log(folder, rollout, evidence)
    evidence.add(batch.stretches, None, ("no", "yes"))
    evidence.read, evidence.unanswered = batch.read, batch.unanswered
    return evidence


def counts(evidence: Evidence) -> dict[str, tuple[int, float]]:
    return {version: (share.n, share.sum) for version, share in evidence.failures.items()}


def test_records_count_by_role_bundle_and_step(tmp_path):
    records = [record(None, START + MINUTE), record(CHAMPION, START + MINUTE), record(CHALLENGER, START + MINUTE)]
    records += [record(CHALLENGER, START + 11 * MINUTE), record(CHALLENGER, START + 12 * MINUTE, error="X: no")]
    records += [record(CHAMPION, START - MINUTE), record(CHALLENGER, START + MINUTE, bundle="3-c")]
    write(tmp_path, records)
    found = read(tmp_path, make_rollout(steps=2), Evidence(rollout="r"))
    assert counts(found) == {CHAMPION: (2, 0), CHALLENGER: (3, 1)}
    assert found.requests == {0: 1, 1: 2}
    assert math.exp(found.latency.challenger.mean) == pytest.approx(2.0)
    assert found.latency.champion.n == 2


def test_an_answer_in_place_of_the_failed_challenger_is_no_request_of_the_champion(tmp_path):
    failed = record(CHALLENGER, START + MINUTE, error="RuntimeError: no")
    instead = record(CHAMPION, START + MINUTE, id=failed["id"])
    path = write(tmp_path, [failed])
    evidence = read(tmp_path, make_rollout(), Evidence(rollout="r"))  # the look ends between the two records
    path.write_text(text([failed, instead, record(CHAMPION, START + MINUTE)]), encoding="utf-8")
    found = read(tmp_path, make_rollout(), Evidence.model_validate_json(evidence.model_dump_json()))
    assert counts(found) == {CHALLENGER: (1, 1), CHAMPION: (1, 0)}
    assert found.instead == 1
    assert not found.unanswered


def test_a_request_on_which_both_fail_is_not_answered_instead(tmp_path):
    failed = record(CHALLENGER, START + MINUTE, error="RuntimeError: no")
    write(tmp_path, [failed, record(CHAMPION, START + MINUTE, id=failed["id"], error="RuntimeError: no")])
    found = read(tmp_path, make_rollout(), Evidence(rollout="r"))
    assert counts(found) == {CHALLENGER: (1, 1)}
    assert found.instead == 0


def test_failures_without_an_answer_of_the_champion_are_forgotten_at_the_second_look(tmp_path):
    path, evidence, records = write(tmp_path, []), Evidence(rollout="r"), []
    for _ in range(5):
        records += [record(CHALLENGER, START + MINUTE, error="RuntimeError: no") for _ in range(3)]
        path.write_text(text(records), encoding="utf-8")
        evidence = read(tmp_path, make_rollout(), Evidence.model_validate_json(evidence.model_dump_json()))
        assert evidence.unanswered == {one["id"] for one in records[-3:]}
    assert not read(tmp_path, make_rollout(), evidence).unanswered
    assert counts(evidence)[CHALLENGER] == (15, 15)


def test_looks_at_any_places_count_each_record_once(tmp_path):
    """Also late records of a slow host, a torn line, and files that begin later."""
    random = np.random.default_rng(0)
    roles = random.choice([CHAMPION, CHALLENGER, "shadow"], 200)
    records = [record(str(role), START + number * MINUTE / 20) for number, role in enumerate(roles)]
    records = [one | ({"error": "X"} if number % 7 == 0 else {}) for number, one in enumerate(records)]
    whole = tmp_path / "whole"
    write(whole, records)
    expected = read(whole, make_rollout(), Evidence(rollout="r"))
    content = text(records).encode()
    log = tmp_path / "log"
    path, late = write(log, []), write(log, [], name="host-2-1")
    evidence = Evidence(rollout="r")
    half = content.index(b"\n", len(content) // 2) + 1
    for end in (0, 100, 5000, 5001, half):
        path.write_bytes(content[:end])
        evidence = read(log, make_rollout(), Evidence.model_validate_json(evidence.model_dump_json()))
    late.write_bytes(content[half:])
    evidence = read(log, make_rollout(), evidence)
    again = read(log, make_rollout(), evidence.model_copy(deep=True))
    for found in (evidence, again):
        assert counts(found) == counts(expected)
        assert found.requests == expected.requests


def test_a_look_that_is_killed_before_its_record_is_written_is_repeated(tmp_path):
    store, rollout = Store(tmp_path), make_rollout()
    write(tmp_path / "log", [record(CHALLENGER, START)] * 3)
    write_evidence(store, rollout, read(tmp_path / "log", rollout, Evidence(rollout=rollout.id)))
    write(tmp_path / "log", [record(CHALLENGER, START)] * 5)
    killed = read(tmp_path / "log", rollout, read_evidence(store, rollout))  # type: ignore[arg-type]
    repeated = read(tmp_path / "log", rollout, read_evidence(store, rollout))  # type: ignore[arg-type]
    assert counts(killed) == counts(repeated) == {CHALLENGER: (5, 0)}


def test_a_damaged_record_is_reported_with_its_remedy(tmp_path):
    store, rollout = Store(tmp_path), make_rollout()
    assert read_evidence(store, rollout) is None
    evidence_path(store, rollout).parent.mkdir()
    evidence_path(store, rollout).write_text("{", encoding="utf-8")
    with pytest.raises(Damaged, match="judged again from its start"):
        read_evidence(store, rollout)


def test_without_a_request_of_the_champion_latencies_of_the_hour_before_count(tmp_path):
    """But no failures: those of the champion are logged in a rollout only."""
    records = [record(CHAMPION, START - 2 * MINUTE), record(CHAMPION, START - 61 * MINUTE), record(CHALLENGER, START)]
    write(tmp_path, records)
    found = read(tmp_path, make_rollout("blue-green", (1.0,)), Evidence(rollout="r"))
    assert counts(found) == {CHALLENGER: (1, 0)}
    assert (found.latency.champion.n, found.latency.alone.n) == (1, 1)


def test_latencies_of_a_shadow_are_compared_within_requests(tmp_path):
    shadows = [record("shadow", START), record("shadow", START, ms=None, champion_ms=None)]
    bare = {name: value for name, value in record("shadow", START).items() if name not in ("ms", "champion_ms")}
    write(tmp_path, [record(CHAMPION, START), *shadows, bare])
    found = read(tmp_path, make_rollout("shadow", (0.0,)), Evidence(rollout="r"))
    assert counts(found)[CHALLENGER] == (3, 0)
    assert (found.ratios.n, math.exp(found.ratios.mean)) == (1, pytest.approx(2.0))
    assert found.latency.challenger.n == 0


@pytest.mark.parametrize("role", [None, CHAMPION, CHALLENGER, "shadow"])
@pytest.mark.parametrize("changes", [{}, {"error": "RuntimeError: 서울"}, {"ms": None}])
def test_records_are_read_alike_the_fast_and_the_slow_way(role, changes):
    made = record(role, START, **changes)
    fast = json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()
    assert parse_record(fast) == parse_record(json.dumps(made).encode())
    assert parse_record(fast).role == (role or CHAMPION)  # type: ignore[union-attr]


@pytest.mark.parametrize("line", [b"no json\n", b"[]\n", b"3\n", b"{}\n", b'{"id":"a","at":"never"}\n', b"\xff\n"])
def test_a_line_that_is_no_record_is_left_out(line):
    assert parse_record(line) is None


def test_the_same_requests_are_sampled_of_both_versions():
    one, other = Sample(10), Sample(10)
    for number in range(1000):
        one.add(str(number), 0, b'{"side": 1}')
        other.add(str(number), 0, b'{"side": 2}')
    assert one.records().keys() == other.records().keys()
    assert len(one.records()) == 10


def test_pairs_of_a_shadow_are_joined_by_request_and_row():
    contract = binary()
    champion = {"a": (0, {"request": {"rows": [{"x": 1}, {"x": 2}]}, "predictions": [answer(0.1), answer(0.2)]})}
    shadow = {"a": (0, {"predictions": [answer(0.3), answer(None)]})}
    found = _join([_pair(champion, shadow, ("아니오", "예"), contract)])
    assert found.champion[:, 1].tolist() == [0.1, 0.2]
    assert found.challenger[0, 1] == 0.3
    assert np.isnan(found.challenger[1, 1])
    assert found.keys == [("a", 0, None), ("a", 1, None)]


def answer(share: float | None) -> dict[str, Any]:
    return {"label": "예", "probabilities": {"아니오": None if share is None else 1 - share, "예": share}}


def binary(**changes: Any) -> Contract:
    columns = (Column(name="x", kind="number"), Column(name="y", kind="text", role="target"))
    known = {"problem": "binary", "target": "y", "classes": ("아니오", "예"), "columns": columns}
    return Contract(**(known | changes))  # type: ignore[arg-type]


def test_the_log_of_a_version_lacks_columns_that_it_does_not_read():
    target = Column(name="y", kind="text", role="target")
    wide = binary(columns=(Column(name="x", kind="number"), Column(name="z", kind="number"), target))
    hidden = binary(columns=(Column(name="x", kind="number", role="sensitive"), target))
    unread = binary(columns=(Column(name="x", kind="number"), Column(name="z", kind="number", role="ignored"), target))
    for complete in (False, True):
        assert can_replay(binary(), binary(), complete=complete)
        assert can_replay(wide, binary(), complete=complete)
        assert not can_replay(binary(), hidden, complete=complete)
        assert not can_replay(hidden, binary(), complete=complete)
        assert not can_replay(unread, wide, complete=complete)
        assert can_replay(binary(), wide, complete=complete) == complete  # callers of the champion may not send z


# The sums


def make_answers(champion: list[float], challenger: list[float], request: list[int] | None = None) -> Answers:
    """Answers of a binary problem, by the probability of the second class."""
    sides = [np.column_stack([1 - np.array(side), side]) for side in (champion, challenger)]
    number = np.array(request or range(len(champion)), np.int64)
    requests = int(number.max()) + 1
    return Answers(number, *sides, np.zeros(len(number), bool), np.zeros(requests, np.int64))


def test_the_rows_of_a_request_count_as_one():
    evidence = Evidence(rollout="r")
    evidence.add({}, make_answers([0.4] * 4, [0.4, 0.4, 0.4, 0.8], [0, 1, 1, 1]), ("아니오", "예"))
    assert (evidence.disagreement.n, evidence.disagreement.sum) == (2, pytest.approx(1 / 3))
    assert evidence.outputs.keys() == {"예"}
    output = evidence.outputs["예"]
    assert (output.difference.n, output.difference.mean) == (2, pytest.approx(0.4 / 3 / 2))


def test_values_are_compared_in_standard_deviations_of_the_champion():
    evidence = Evidence(rollout="r", spread=10.0)
    sides = [np.array([[0.0], [10.0], [20.0]]), np.array([[4.0], [16.0], [20.0]])]
    evidence.add({}, Answers(np.arange(3), *sides, np.zeros(3, bool), np.zeros(3, np.int64)), ("value",))
    assert evidence.disagreement == Share(n=3, sum=1)
    assert evidence.outputs["value"].difference.mean == pytest.approx(1 / 3)


def test_a_row_that_only_one_version_accepts_is_answered_differently():
    evidence = Evidence(rollout="r")
    answers = make_answers([0.4, 0.4], [0.4, np.nan])
    answers.refused[1] = True
    evidence.add({}, answers, ("no", "yes"))
    assert evidence.disagreement == Share(n=2, sum=1)
    assert evidence.outputs["yes"].difference.n == 1


def test_without_replay_the_answers_to_different_requests_are_compared():
    evidence = Evidence(rollout="r")
    nothing = [np.nan] * 2
    evidence.add({}, make_answers([0.4, 0.2, *nothing], [*nothing, 0.6, 0.8]), ("no", "yes"))
    arms = evidence.outputs["yes"].arms
    assert (arms.champion.mean, arms.challenger.mean) == (pytest.approx(0.3), pytest.approx(0.7))
    assert evidence.disagreement.n == 0


def test_a_clock_that_shows_no_time_does_not_stop_a_look():
    stretch = Stretch()
    stretch.ms[CHAMPION] = [0.0, 1.0]
    evidence = Evidence(rollout="r")
    evidence.add({0: stretch}, None, ("value",))
    assert math.isfinite(evidence.latency.champion.mean)


def test_the_picture_has_few_points_from_the_first_to_the_last():
    evidence = Evidence(rollout="r")
    for number in range(1000):
        evidence.draw(Point(at=START + number * MINUTE, bounds={"errors": Bounds(0, 1)}))
    assert len(evidence.points) <= MOST_POINTS
    assert evidence.points[0].at == START
    assert evidence.points[-1].at == START + 999 * MINUTE


# Labels


def labelled(requests: int, noise: float, seed: int = 0, together: int = 1) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    odds = 2 * random.standard_normal(requests)
    rows = {CHAMPION: odds, CHALLENGER: odds + noise * random.standard_normal(requests)}
    positive = {name: 1 / (1 + np.exp(-side)) for name, side in rows.items()}
    label = np.where(random.random(requests) < positive[CHAMPION], "예", "아니오")
    sides = {name: np.column_stack([1 - side, side]).tolist() for name, side in positive.items()}
    return pd.DataFrame({"request_id": [f"r{n // together}" for n in range(requests)], "label": label} | sides)


@pytest.mark.parametrize("metric", ["roc_auc", "log_loss", "accuracy", "f1"])
def test_each_metric_of_the_gates_is_compared_itself(metric):
    found = measure_loss(binary(), labelled(4000, 2.0), Gates(metric=metric))
    assert found is not None
    assert found.metric == metric
    assert found.worse > 3 * found.error > 0


def test_a_standard_error_is_that_of_pairs_and_of_requests():
    alone = measure_loss(binary(), labelled(4000, 1.0), Gates())
    together = measure_loss(binary(), labelled(4000, 1.0, together=20), Gates())
    rows = labelled(4000, 1.0)
    apart = rows.assign(
        **{
            side: [[math.nan] * 2 if (n % 2 == 0) == (side == CHAMPION) else one for n, one in enumerate(rows[side])]
            for side in (CHAMPION, CHALLENGER)
        }
    )
    unpaired = measure_loss(binary(), apart, Gates())
    assert alone is not None and together is not None and unpaired is not None
    assert unpaired.error > 1.5 * alone.error
    assert (together.requests, alone.requests, unpaired.requests) == (200, 4000, 2000)


def test_a_standard_error_is_scaled_from_a_sample_of_many_requests():
    few, many = (measure_loss(binary(), labelled(n, 1.0), Gates()) for n in (5_000, 20_000))
    assert few is not None and many is not None
    assert many.error == pytest.approx(few.error / 2, rel=0.2)


@pytest.mark.parametrize("rows", [0, 50])
def test_few_labels_are_no_figure(rows):
    assert measure_loss(binary(), labelled(rows, 1.0), Gates()) is None


def test_labels_of_one_class_are_no_figure():
    assert measure_loss(binary(), labelled(500, 1.0).assign(label="예"), Gates()) is None


def test_errors_have_a_limit_relative_to_the_champion():
    columns = (Column(name="x", kind="number"), Column(name="y", kind="number", role="target"))
    contract = Contract(problem="regression", target="y", columns=columns)
    random = np.random.default_rng(0)
    truth = random.normal(100, 10, 1000)
    rows = pd.DataFrame(
        {
            "request_id": [str(n) for n in range(1000)],
            "label": truth,
            CHAMPION: [[y] for y in truth + random.normal(0, 1, 1000)],
            CHALLENGER: [[y] for y in truth + random.normal(0, 2, 1000)],
        }
    )
    found = measure_loss(contract, rows, Gates(metric="mae"))
    assert found is not None
    assert found.relative
    assert found.worse == pytest.approx(found.challenger - found.champion) == pytest.approx(0.8, abs=0.2)


def test_compared_answers_are_kept_for_labels_until_the_end(tmp_path):
    store, rollout = Store(tmp_path), make_rollout()
    answers = make_answers([0.1, 0.2], [0.3, 0.4])
    answers.keys = [("a", 0, "7"), ("b", 0, None)]
    keep_answers(store, rollout, answers)
    later = make_answers([0.1, 0.2], [0.5, 0.4])
    later.keys = [("b", 0, None), ("c", 0, None)]
    for _ in range(2):  # a repeated look
        keep_answers(store, rollout, later)
    found = read_answers(store, rollout)
    assert found is not None
    assert found["request_id"].tolist() == ["a", "b", "c"]
    assert found["id"].iloc[0] == "7"
    assert [one.tolist() for one in found[CHALLENGER]] == [[0.7, 0.3], [0.5, 0.5], [0.6, 0.4]]
    remove_samples(store)
    assert read_answers(store, rollout) is None


def test_few_answers_are_kept_for_labels_however_long_a_rollout_lasts(tmp_path, monkeypatch):
    monkeypatch.setattr("ondol.rollout.reading.thin_requests", partial(thin_requests, most=100))
    store, rollout = Store(tmp_path), make_rollout()
    for look in range(20):
        answers = make_answers([0.1] * 40, [0.2] * 40, [n // 2 for n in range(40)])
        answers.keys = [(f"{look} {n // 2}", n % 2, None) for n in range(40)]
        keep_answers(store, rollout, answers)
        found = read_answers(store, rollout)
        assert found is not None
        assert len(found) == min(40 * (look + 1), 100)
        assert (found.groupby("request_id").size() == 2).all()  # whole requests
    looks = found["request_id"].str.partition(" ")[0].astype(int)
    assert looks.nunique() > 10  # of all the time alike
    assert abs(looks.mean() - 9.5) < 3
    assert len(list((tmp_path / "rollouts").iterdir())) == 1


def test_names_of_outputs_are_those_of_the_answer():
    assert output_names(binary(classes=(0, 1))) == ("0", "1")
    assert output_names(Contract(problem="regression", target="y", columns=())) == ("value",)


def test_versions_are_compared_at_their_own_thresholds():
    rows = labelled(4000, 0.0)  # equal probabilities
    costs = ((0.0, 1.0), (5.0, 0.0))
    found = measure_loss(binary(), rows, Gates(metric="cost"), DecisionRule(1 / 6, costs))
    assert found is not None
    assert found.challenger < found.champion - 0.1  # the champion decides by 0.5
    assert measure_loss(binary(), rows, Gates(metric="cost")) is None  # without costs there is no such metric
    probabilities = np.array([[0.7, 0.3], [0.9, 0.1]])
    places = np.arange(2)
    answers = Answers(
        places, probabilities, probabilities, np.zeros(2, bool), places * 0, rules=(None, DecisionRule(0.2))
    )
    evidence = Evidence(rollout="r")
    evidence.add({}, answers, ("no", "yes"))
    assert (evidence.disagreement.n, evidence.disagreement.sum) == (2, 1)
