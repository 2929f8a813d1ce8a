"""How the judge of a rollout decides, on simulated traffic: `make bench BENCHMARKS=rollout`.

Each rollout is simulated look by look, five minutes each, through the functions of the flow: `Evidence.add`,
`measure_loss`, `check_all` and `decide`, with the default settings. Only the log is not written: requests are drawn as
the counts and answers that are read from it. A request has one row, traffic is 1 to 10 requests a second and twice as
high at noon as at midnight, latencies grow with it, and the labels come after half an hour for a quarter of the
requests.

`--peek` judges the same data by z-tests that are repeated at each look, to show what that costs.
"""

import argparse
import json
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ondol.config import Gates, RolloutPolicy
from ondol.contract import Column, Contract
from ondol.registry.rollout import Rollout, Step, plan_steps
from ondol.rollout.evidence import CHALLENGER, CHAMPION, Answers, Evidence, Point, Stretch
from ondol.rollout.judge import NAMES, Check, check_all, decide
from ondol.rollout.reading import KEPT, SAMPLED, measure_loss, thin_requests
from ondol.rollout.report import draw_checks
from ondol.rollout.sequences import FEWEST, Share

LOOK = timedelta(minutes=5)
LABELS_AFTER = 6  # looks
LABELLED = 0.25
START = datetime(2026, 1, 1, 9, tzinfo=UTC)
CONTRACT = Contract(
    problem="binary",
    target="y",
    classes=("no", "yes"),
    columns=(Column(name="x", kind="number"), Column(name="y", kind="text", role="target")),
)
NAMES_OF_OUTPUT = ("no", "yes")
GATES = Gates(resamples=50)


@dataclass(frozen=True)
class Model:
    """A model: how often it fails, its latency (ms, median), and how its log-odds are off the truth.

    `noise` is the standard deviation of its own error in a request, `bias` is added to each of its log-odds.
    """

    failing: float = 0.001
    ms: float = 2.0
    noise: float = 1.0
    bias: float = 0.0


GOOD = Model()
CHALLENGERS = {
    "the same quality": GOOD,
    "worse": Model(noise=1.8),
    "erring": Model(failing=0.05),
    "slow": Model(ms=4.0),
    "different": Model(bias=-1.5),
    "better": Model(noise=0.3),
}
# By strategy: the share of the rollouts with a challenger of the same quality, and of each other one.
KINDS = {"canary": (0.4, 1.0), "ab": (0.05, 0.1), "shadow": (0.3, 0.1), "blue-green": (0.25, 0.1)}


@dataclass
class Outcome:
    """How a simulated rollout ended.

    Attributes:
        end: "promoted", "withdrawn" (by a check), "undecided" (withdrawn at the end), or "better" (promoted by labels).
        by: The checks that were worse.
        step: The number of the last step, from 1.
        share: Of all requests of the rollout that the challenger answered.
        requests: How many it answered.
        hours: How long it took.
        excluded: The checks whose bounds excluded the truth of two models of the same quality at any look.
        peeked: The checks whose repeated z-test did.
        picture: What draws the picture of the page: points, checks and rollout.
    """

    end: str
    by: list[str]
    step: int
    share: float
    requests: int
    hours: float
    excluded: set[str] = field(default_factory=set)
    peeked: set[str] = field(default_factory=set)
    picture: Any = None


class Traffic:
    """Draws the requests of one rollout."""

    def __init__(self, champion: Model, challenger: Model, strategy: str, seed: int) -> None:
        """Draw with `seed`; the rate is between 1 and 10 requests a second."""
        self.models = {CHAMPION: champion, CHALLENGER: challenger}
        self.strategy = strategy
        self.random = np.random.default_rng(seed)
        self.rate = float(np.exp(self.random.uniform(0, math.log(10))))
        self.total = self.answered = 0
        self.labelled: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def count(self, version: str, requests: int, day: float) -> tuple[int, np.ndarray]:
        """Return failures and latencies of some requests of a version."""
        model = self.models[version]
        failed = int(self.random.binomial(requests, model.failing))
        return failed, model.ms * (1 + 0.5 * day) * self.random.lognormal(0.0, 0.6, requests - failed)

    def look(self, now: datetime, step: int, share: float) -> tuple[dict[int, Stretch], Answers]:
        """Return what one look reads."""
        day = hour(now)
        requests = int(self.random.poisson(self.rate * (1 + day / 3) * LOOK.total_seconds()))
        stretch = Stretch()
        shadow = self.strategy == "shadow"
        counts = {CHALLENGER: requests if shadow else int(self.random.binomial(requests, share))}
        counts[CHAMPION] = requests if shadow else requests - counts[CHALLENGER]
        for version, count in counts.items():
            failed, ms = self.count(version, count, day)
            stretch.requests[version], stretch.failed[version] = count, failed
            if not shadow:
                stretch.ms[version] = ms.tolist()
        if shadow:
            stretch.ratios = (
                self.models[CHALLENGER].ms / self.models[CHAMPION].ms * self.random.lognormal(0, 0.3, requests // 10)
            ).tolist()
        stretch.instead = 0 if shadow else stretch.failed[CHALLENGER]
        self.total += requests
        self.answered += 0 if shadow else counts[CHALLENGER]
        sampled = min(counts[CHAMPION], SAMPLED) + (0 if shadow else min(counts[CHALLENGER], SAMPLED))
        return {step: stretch}, self.answers(sampled, step)

    def answers(self, requests: int, step: int) -> Answers:
        """Return the answers of both versions to some requests, and keep them for the labels."""
        log_odds = 1.5 * self.random.standard_normal(requests) - 1.0
        sides = {}
        for version, model in self.models.items():
            own = log_odds + model.bias + model.noise * self.random.standard_normal(requests)
            positive = 1 / (1 + np.exp(-own))
            sides[version] = np.column_stack([1 - positive, positive])
        label = np.where(self.random.random(requests) < 1 / (1 + np.exp(-log_odds)), "yes", "no").astype(object)
        kept = self.random.random(requests) < LABELLED
        self.labelled.append((label[kept], sides[CHAMPION][kept], sides[CHALLENGER][kept]))
        number = np.arange(requests)
        return Answers(number, sides[CHAMPION], sides[CHALLENGER], np.zeros(requests, bool), np.full(requests, step))

    def arrived(self, looks: int) -> pd.DataFrame:
        """Return the labelled requests of the first looks, with both answers."""
        label, champion, challenger = map(np.concatenate, zip(*self.labelled[:looks], strict=True))
        rows = {"request_id": np.arange(len(label)).astype(str), "label": label}
        made = pd.DataFrame(rows | {CHAMPION: list(champion), CHALLENGER: list(challenger)})
        return made[thin_requests(made["request_id"], round(LABELLED * KEPT))]

    def before(self) -> dict[int, Stretch]:
        """Return the champion's requests before a rollout that leaves it none."""
        requests = int(self.rate * 3600)
        stretch = Stretch()
        stretch.requests[CHAMPION] = requests
        stretch.failed[CHAMPION], ms = self.count(CHAMPION, requests, hour(START - LOOK))
        stretch.ms[CHAMPION] = ms.tolist()
        return {-1: stretch}


def simulate(
    challenger: Model, seed: int, strategy: str = "canary", policy: RolloutPolicy | None = None, peek: bool = False
) -> Outcome:
    """Simulate one rollout to its end."""
    policy = policy or RolloutPolicy()
    traffic = Traffic(GOOD, challenger, strategy, seed)
    plan = plan_steps(policy, strategy)  # type: ignore[arg-type]
    rollout = Rollout(
        id="r", strategy=strategy, champion="1-a", move="1", version="2", run_id="", bundle="2-b", digest="",
        plan=plan, steps=(Step(at=START.isoformat(), share=plan[0], who="", why=""),),
    )  # fmt: skip
    evidence, excluded, peeked = Evidence(rollout="r"), set(), set()
    if plan[0] == 1:
        evidence.add(traffic.before(), None, NAMES_OF_OUTPUT)
    for look in range(round(policy.max_hours * 3600 / LOOK.total_seconds()) + 1):
        step = len(rollout.steps) - 1
        now = START + (look + 1) * LOOK
        stretches, answers = traffic.look(now, step, rollout.step.share)
        evidence.add(stretches, answers, NAMES_OF_OUTPUT)
        if look % 12 == LABELS_AFTER:
            evidence.add_loss(measure_loss(CONTRACT, traffic.arrived(look + 1 - LABELS_AFTER), GATES))
        checks = check_all(evidence, policy)
        evidence.draw(Point(at=now, bounds={check.name: check.bounds for check in checks if check.bounds}))
        excluded |= {c.name for c in checks if c.bounds and not covers(c, evidence)}
        if peek:
            peeked |= peek_at(evidence, (1 - policy.confidence) / len(NAMES))
        decision = decide(checks, rollout, evidence, policy, now, labels=True)
        if decision.action == "wait":
            continue
        ended = decision.action == "withdraw" or rollout.next_share is None
        if not ended:
            taken = Step(at=now.isoformat(), share=rollout.next_share or 0.0, who="", why=decision.why)
            rollout = rollout.model_copy(update={"steps": (*rollout.steps, taken)})
            continue
        end = "promoted"
        if decision.action == "withdraw":
            end = "undecided" if decision.why.startswith("not decided") else "withdrawn"
        elif strategy == "ab":
            end = "better"
        worse = [check.name for check in checks if check.worse]
        hours = (now - START).total_seconds() / 3600
        share = traffic.answered / traffic.total
        picture = evidence.points, checks, rollout
        return Outcome(end, worse, step + 1, share, traffic.answered, hours, excluded, peeked, picture)
    raise AssertionError("a rollout ends at max_hours")


def hour(now: datetime) -> float:
    """Return the load by the time of day, from -1 at midnight to 1 at noon."""
    return math.sin((now.hour + now.minute / 60 - 6) / 24 * 2 * math.pi)


def covers(check: Check, evidence: Evidence) -> bool:
    """Return True if the bounds include the truth of two models of the same quality: no difference.

    They fail independently of each other, so where the champion has no requests, it answers what the challenger failed
    on. How often they disagree is not known.
    """
    low, high = check.bounds or (-math.inf, math.inf)
    if check.name == "errors" and evidence.failures.get(CHAMPION, Share()).n < FEWEST:
        return low <= GOOD.failing <= high
    return check.name == "disagreement" or (low <= 0 and (high >= 0 or check.name == "shift"))


def peek_at(evidence: Evidence, alpha: float) -> set[str]:
    """Return the checks whose z-test finds a difference, at the same error rate but for one look alone."""
    from statistics import NormalDist

    z = NormalDist().inv_cdf(1 - alpha / 2)
    found = set()
    theirs, ours = (evidence.failures.get(version, Share()) for version in (CHAMPION, CHALLENGER))
    if min(theirs.n, ours.n) >= FEWEST:
        error = math.sqrt(sum(one.value * (1 - one.value) / one.n for one in (ours, theirs)))
        found |= {"errors"} if abs(ours.value - theirs.value) > z * error else set()
    first, second = evidence.latency.champion, evidence.latency.challenger
    if evidence.latency.weight and min(first.n, second.n) >= FEWEST:
        error = math.sqrt(first.variance / first.n + second.variance / second.n)
        found |= {"latency"} if abs(evidence.latency.difference) > z * error else set()
    for output in evidence.outputs.values():
        one = output.difference
        if one.n >= FEWEST and abs(one.mean) > z * math.sqrt(one.variance / one.n):
            found.add("shift")
    if evidence.loss and abs(evidence.loss.worse) > z * evidence.loss.error:
        found.add("loss")
    return found


def main() -> None:
    """Run the simulation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--same", type=int, default=1000, help="rollouts of a challenger of the same quality")
    parser.add_argument("--bad", type=int, default=200, help="rollouts of each other challenger")
    parser.add_argument("--strategy", nargs="+", default=list(KINDS))
    parser.add_argument("--challenger", nargs="+", default=list(CHALLENGERS))
    parser.add_argument("--peek", action="store_true", help="also judge by repeated z-tests")
    parser.add_argument("--picture", type=Path, help="draw the picture of one rollout, and end")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.picture:
        options.picture.write_bytes(draw_checks(*simulate(Model(noise=1.4, ms=2.2, failing=0.002), 4).picture))
        return
    started, table = time.perf_counter(), []
    for strategy in options.strategy:
        policy = RolloutPolicy(max_hours=24 if strategy == "ab" else 72)  # two equal models are never told apart
        for name in options.challenger:
            same, other = KINDS[strategy]
            number = round(options.same * same if name == "the same quality" else options.bad * other)
            found = [simulate(CHALLENGERS[name], seed, strategy, policy, options.peek) for seed in range(number)]
            table.append(summarize(strategy, name, found))
            print(json.dumps(table[-1], ensure_ascii=False), flush=True)
    print(f"{time.perf_counter() - started:.0f} s")
    if options.out:
        options.out.write_text(json.dumps(table, ensure_ascii=False, indent=1), encoding="utf-8")


def summarize(strategy: str, name: str, found: list[Outcome]) -> dict[str, Any]:
    """Return the figures of rollouts of one kind."""
    ends = Counter(one.end for one in found)
    row = {
        "strategy": strategy,
        "challenger": name,
        "rollouts": len(found),
        **{end: ends[end] for end in ("promoted", "better", "withdrawn", "undecided")},
        "before the 50% step": sum(one.end == "withdrawn" and one.step < 3 for one in found),
        "by": dict(Counter(name for one in found for name in one.by)),
        "share of traffic, median": round(float(np.median([one.share for one in found])), 4),
        "its 95% quantile": round(float(np.quantile([one.share for one in found], 0.95)), 4),
        "requests, median": int(np.median([one.requests for one in found])),
        "hours, median": round(float(np.median([one.hours for one in found])), 2),
        "hours, longest": round(max(one.hours for one in found), 2),
    }
    if name == "the same quality":
        for name, sets in (("excluded", [one.excluded for one in found]), ("z-tests", [one.peeked for one in found])):
            row[name] = {"any": sum(map(bool, sets)), **Counter(check for checks in sets for check in checks)}
    return row


if __name__ == "__main__":
    main()
