"""The decision on a rollout: a function of evidence, settings and time; and what it leads to on simulated traffic."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from benchmarks.bench_rollout import CHALLENGERS, Outcome, simulate
from ondol.config import RolloutPolicy
from ondol.registry.rollout import Rollout, Step, describe_step, plan_steps
from ondol.rollout.assessment import Assessment, describe_outcome
from ondol.rollout.evidence import CHALLENGER, CHAMPION, Evidence, Loss, Output
from ondol.rollout.judge import Check, Decision, check_all, decide
from ondol.rollout.report import as_markdown, draw_checks
from ondol.rollout.sequences import Arms, Bounds, Moments, Share

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = RolloutPolicy()
HOUR = timedelta(hours=1)


def make_rollout(strategy: str = "canary", taken: int = 1) -> Rollout:
    plan = plan_steps(POLICY, strategy)  # type: ignore[arg-type]
    steps = [Step(at=(START + n * HOUR).isoformat(), share=plan[n], who="김", why="") for n in range(taken)]
    return Rollout(
        id="2-b-1", strategy=strategy, champion="1-a", move="1 1-a", version="2", run_id="r", bundle="2-b", digest="d",
        plan=plan, steps=tuple(steps),
    )  # fmt: skip


def check(name: str = "errors", low: float = -0.001, high: float = 0.001, **changes: Any) -> Check:
    known = {"requests": 900, "champion": 0.1, "challenger": 0.1, "limit": 0.01}
    return Check(name=name, what=name, bounds=Bounds(low, high), **(known | changes))  # type: ignore[arg-type]


def act(checks: list[Check], strategy: str = "canary", hours: float = 1.0, requests: int = 900, **other: Any) -> str:
    labels = other.get("labels", False)
    return decide(checks, make_rollout(strategy), counted(requests), POLICY, START + hours * HOUR, labels).action


def counted(requests: int, beside: int = 0) -> Evidence:
    """Evidence of some requests of the challenger and of the champion in the first step."""
    return Evidence(rollout="r", requests={0: requests}, beside={0: beside})


GOOD, OPEN, BAD = check(), check(high=0.02), check(low=0.011, high=0.02)
TOO_FEW = GOOD.model_copy(update={"name": "latency", "bounds": None})


@pytest.mark.parametrize(
    ("checks", "situation", "expected"),
    [
        ([GOOD], {}, "advance"),
        ([GOOD, GOOD], {"strategy": "shadow"}, "advance"),
        ([GOOD, OPEN], {}, "wait"),
        ([GOOD, TOO_FEW], {}, "wait"),
        ([GOOD], {"hours": 0.9}, "wait"),
        ([GOOD], {"requests": 499}, "wait"),
        ([GOOD, BAD], {"hours": 0.01, "requests": 5}, "withdraw"),
        ([GOOD, OPEN], {"hours": 72}, "withdraw"),
        ([GOOD], {"hours": 72, "requests": 3}, "withdraw"),
        ([GOOD], {"hours": 73}, "advance"),
        ([GOOD], {"strategy": "blue-green"}, "advance"),
        ([GOOD, check("loss", high=0.02, deciding=False)], {}, "advance"),  # few labels do not stop a rollout
        ([GOOD, check("loss", high=0.02)], {}, "wait"),
        ([GOOD, check("loss", low=0.011, high=0.02, deciding=False)], {}, "withdraw"),
        # "ab" with labels: the metric decides, without a margin.
        ([GOOD], {"strategy": "ab"}, "advance"),
        ([GOOD], {"strategy": "ab", "labels": True}, "wait"),
        ([GOOD, check("loss")], {"strategy": "ab", "labels": True}, "wait"),
        ([GOOD, check("loss", low=-0.02, high=-0.001)], {"strategy": "ab", "labels": True}, "advance"),
        ([OPEN, check("loss", low=-0.02, high=-0.001)], {"strategy": "ab", "labels": True}, "wait"),
        ([GOOD, check("loss", low=0.001, high=0.005)], {"strategy": "ab", "labels": True}, "withdraw"),
        ([GOOD, check("loss", low=0.001, high=0.005)], {"labels": True}, "advance"),
        ([GOOD, check("loss")], {"strategy": "ab", "labels": True, "hours": 72}, "withdraw"),
    ],
)
def test_a_rollout_goes_on_waits_or_is_withdrawn(checks, situation, expected):
    assert act(checks, **situation) == expected


def test_each_decision_has_one_sentence_with_its_figures():
    rollout = make_rollout()
    worse = check(low=0.011, high=0.02, challenger=0.05, champion=0.001, requests=812)
    decision = decide([worse], rollout, counted(1), POLICY, START, labels=False)
    assert decision.why == "errors 5.00% against 0.10% on 812 requests: higher by 1.10% to 2.00%, limit 1.00%"
    waiting = decide([GOOD], rollout, counted(499), POLICY, START, labels=False)
    assert waiting.why == "499 requests in this step, 500 are needed"
    late = decide([OPEN], rollout, counted(900), POLICY, START + 72 * HOUR, labels=False)
    assert late.why.startswith("not decided after 72 hours: errors")
    assert "2026-01-01 01:00 UTC" in decide([GOOD], rollout, counted(900), POLICY, START, labels=False).why


@pytest.mark.parametrize(
    ("requests", "beside", "hours", "told"),
    [(0, 4000, 1, True), (0, 4000, 0.9, False), (0, 499, 1, False), (1, 4000, 1, False)],
)
def test_a_challenger_that_the_service_may_not_have_loaded_is_named(requests, beside, hours, told):
    now = START + hours * HOUR
    decision = decide([GOOD], make_rollout(), counted(requests, beside), POLICY, now, labels=False)
    assert decision.action == "wait"
    expected = (
        "no request of version 2 in this step, and 4,000 of version 1: the service may not have loaded version 2, see "
        "its log"
    )
    assert (decision.why == expected) == told
    if told:
        late = decide([GOOD], make_rollout(), counted(requests, beside), POLICY, START + 72 * HOUR, labels=False)
        assert late.why == f"not decided after 72 hours: {expected}"


def test_a_challenger_that_cannot_be_used_is_withdrawn():
    evidence = counted(900).model_copy(update={"fault": "its bundle is gone"})
    decision = decide([GOOD], make_rollout(), evidence, POLICY, START, labels=False)
    assert (decision.action, decision.why) == ("withdraw", "its bundle is gone")


@pytest.mark.parametrize(("share", "text"), [(0.005, "0.5%"), (0.125, "12.5%"), (0.05, "5%"), (1.0, "100%")])
def test_a_share_is_written_alike_everywhere(share, text):
    step = Step(at=START.isoformat(), share=share, who="김", why="")
    rollout = make_rollout().model_copy(update={"steps": (step,)})
    decision = Decision(action="wait", why="")
    assessment = Assessment(rollout, make_evidence(), [], decision)
    assert describe_outcome(assessment, rollout) == f"Version 2 stays at {text} of the requests"
    taken = rollout.model_copy(update={"steps": (make_rollout().step, step)})
    assert describe_outcome(assessment, taken) == f"Version 2 answers {text} of the requests now"
    assert f", {text} since" in as_markdown(rollout, make_evidence(), [], "", "")
    assert describe_step(rollout) == f"canary, {text} of the requests"


# The checks


def make_evidence(**changes: Any) -> Evidence:
    failures = {CHAMPION: Share(n=20_000, sum=20), CHALLENGER: Share(n=1_000, sum=1)}
    return Evidence(**({"rollout": "r", "failures": failures} | changes))


def find(evidence: Evidence, name: str, policy: RolloutPolicy = POLICY) -> Check:
    return next(check for check in check_all(evidence, policy) if check.name == name)


def test_only_checks_with_data_are_made():
    assert [check.name for check in check_all(make_evidence(), POLICY)] == ["errors"]


def test_a_model_that_fails_always_is_worse_after_a_few_requests():
    failures = {CHAMPION: Share(n=200, sum=0), CHALLENGER: Share(n=10, sum=10)}
    assert find(make_evidence(failures=failures), "errors").worse


def test_a_champion_that_fails_as_often_is_no_reason_to_withdraw():
    failures = {CHAMPION: Share(n=20_000, sum=4_000), CHALLENGER: Share(n=20_000, sum=4_000)}
    assert not find(make_evidence(failures=failures), "errors").worse


@pytest.mark.parametrize(("instead", "worse"), [(0, False), (40, True)])
def test_without_requests_of_the_champion_what_it_answers_instead_counts(instead, worse):
    """A challenger that fails on 2% of the requests, on which the champion fails too, or does not."""
    evidence = make_evidence(failures={CHALLENGER: Share(n=2_000, sum=40)}, instead=instead)
    found = find(evidence, "errors", RolloutPolicy(errors=0.005))
    assert found.worse == worse
    assert found.within == (not worse)
    assert found.sentence.startswith("failed requests 2.00% on 2,000 requests")


def test_latency_is_a_ratio_of_geometric_means():
    arms = Arms()
    arms.add(Moments(n=5000, mean=math.log(2.0), squares=500), Moments(n=5000, mean=math.log(4.0), squares=500))
    found = find(make_evidence(latency=arms), "latency")
    assert found.worse
    assert "4 ms against 2 ms" in found.sentence
    assert "limit 1.50" in found.sentence


def test_latency_of_a_shadow_is_that_of_pairs():
    found = find(make_evidence(ratios=Moments(n=500, mean=math.log(1.1), squares=5)), "latency")
    assert found.within
    assert found.challenger == pytest.approx(1.1)


def test_a_challenger_that_is_slow_only_when_it_answers_alone_is_slow():
    arms = Arms()
    arms.add(Moments(n=5000, mean=0.0, squares=500), Moments(n=5000, mean=0.0, squares=500))
    assert find(make_evidence(latency=arms), "latency").within
    arms.add(Moments(), Moments(n=5000, mean=math.log(2.0), squares=500))
    assert find(make_evidence(latency=arms), "latency").worse


def shifts(**means: float) -> dict[str, Output]:
    return {
        name: Output(champion=Moments(n=900, mean=0.2, squares=9), difference=Moments(n=900, mean=mean, squares=9))
        for name, mean in means.items()
    }


@pytest.mark.parametrize(("mean", "worse"), [(0.2, True), (-0.2, True), (0.02, False)])
def test_a_prediction_may_move_in_neither_direction(mean, worse):
    assert find(make_evidence(outputs=shifts(예=mean)), "shift").worse == worse


def test_of_several_classes_the_one_that_moves_most_decides():
    found = find(make_evidence(outputs=shifts(a=0.01, b=-0.2, c=0.1)), "shift")
    assert '"b"' in found.what
    assert find(make_evidence(outputs=shifts(b=-0.2)), "shift").bounds.low > found.bounds.low  # more classes, wider


def test_a_class_beyond_the_limit_is_not_hidden_by_another_with_wide_bounds():
    outputs = shifts(rare=0.15, wide=0.2)
    outputs["wide"].difference = Moments(n=900, mean=0.2, squares=9000)
    found = find(make_evidence(outputs=outputs), "shift")
    alone = find(make_evidence(outputs={"wide": outputs["wide"]}), "shift")
    assert not alone.worse
    assert found.worse
    assert '"rare"' in found.what
    assert found.bounds is not None and found.bounds.high > 0.3  # a step waits for the other one, too


def test_a_limit_of_all_requests_is_refused():
    with pytest.raises(ValueError, match="disagreement"):
        RolloutPolicy(disagreement=1)
    find(make_evidence(disagreement=Share(n=400, sum=400)), "disagreement", RolloutPolicy(disagreement=0.999999))


def test_a_different_model_is_found_by_its_answers():
    assert find(make_evidence(disagreement=Share(n=400, sum=200)), "disagreement").worse
    assert find(make_evidence(disagreement=Share(n=400, sum=40)), "disagreement").within


@pytest.mark.parametrize(("requests", "deciding"), [(499, False), (500, True)])
def test_labels_decide_from_as_many_requests_as_a_step(requests, deciding):
    loss = Loss(metric="mae", requests=requests, champion=100, challenger=130, worse=30, error=1, relative=True)
    found = find(make_evidence(loss=loss), "loss")
    assert found.deciding == deciding
    assert found.limit == pytest.approx(2.0)
    assert found.worse


def test_the_page_has_both_versions_side_by_side_and_a_picture():
    evidence = make_evidence(outputs=shifts(**{"서울 | `예`": 0.2}), disagreement=Share(n=400, sum=40))
    checks = check_all(evidence, POLICY)
    shown = as_markdown(make_rollout(), evidence, checks, "Version 2 is withdrawn", "the *reason*")
    assert "version 1 (champion) | version 2 (challenger)" in shown
    assert "| requests | 20,000 | 1,000 |" in shown
    assert r"\*reason\*" in shown
    assert all(line.count(" | ") == 5 for line in shown.splitlines() if line.startswith("| ") and "---" not in line)
    assert draw_checks([], checks, make_rollout()).startswith(b"\x89PNG")


# Simulated rollouts; `make bench BENCHMARKS=rollout` has many more


def outcomes(name: str, number: int, strategy: str = "canary") -> list[Outcome]:
    policy = RolloutPolicy(max_hours=12) if strategy == "ab" else RolloutPolicy()
    return [simulate(CHALLENGERS[name], seed, strategy, policy) for seed in range(number)]


@pytest.mark.parametrize("name", ["worse", "erring", "slow", "different"])
def test_a_bad_challenger_is_withdrawn_before_it_answers_half_of_the_requests(name):
    found = outcomes(name, 10)
    assert sum(one.end == "withdrawn" and one.step < 3 for one in found) >= 9


def test_a_failing_challenger_is_withdrawn_where_the_champion_has_no_requests():
    assert {one.end for one in outcomes("erring", 3, "blue-green")} == {"withdrawn"}


@pytest.mark.parametrize("strategy", ["canary", "shadow", "blue-green"])
def test_a_challenger_that_is_as_good_or_better_is_promoted(strategy):
    found = [*outcomes("better", 4, strategy), *outcomes("the same quality", 4, strategy)]
    assert {one.end for one in found} == {"promoted"}


def test_an_ab_test_tells_a_better_challenger_from_an_equal_one():
    assert {one.end for one in outcomes("better", 3, "ab")} == {"better"}
    assert {one.end for one in outcomes("worse", 3, "ab")} == {"withdrawn"}
    assert {one.end for one in outcomes("the same quality", 3, "ab")} == {"undecided"}
