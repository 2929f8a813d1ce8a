"""The checks of a rollout, and the decision: a pure function of the evidence, the settings and the time.

The error rate, 1 - `[rollout] confidence`, is shared equally by the checks. A confidence sequence has two sides, so it
bounds both mistakes: a challenger that is withdrawn although it is within its limits, and one that takes a step
although it is not.
"""

import math
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel

from ondol.config import RolloutPolicy
from ondol.registry.champion import version_of
from ondol.registry.rollout import Rollout
from ondol.rollout.evidence import CHALLENGER, CHAMPION, VALUE, Evidence, Output
from ondol.rollout.sequences import FEWEST, Bounds, Share, around

Name = Literal["errors", "latency", "shift", "disagreement", "loss"]
NAMES: tuple[Name, ...] = ("errors", "latency", "shift", "disagreement", "loss")
Action = Literal["wait", "advance", "withdraw"]


class Check(BaseModel):
    """One comparison of the challenger with the champion.

    Attributes:
        name: Its name, which is also that of its limit in `[rollout]`, but for `latency`, whose limit is `slower`.
        what: What is compared, in words.
        requests: The number of requests that it rests on.
        champion: The champion's figure; None if it has none.
        challenger: The challenger's figure.
        bounds: Of how much worse the challenger is; None if there are too few requests.
        limit: How much worse it may be.
        deciding: Whether there are enough requests for the next step to wait for it.
    """

    name: Name
    what: str
    requests: int
    champion: float | None
    challenger: float | None
    bounds: Bounds | None
    limit: float
    deciding: bool = True

    @property
    def worse(self) -> bool:
        """Whether the challenger is beyond the limit, with confidence."""
        return self.bounds is not None and self.bounds.low > self.limit

    @property
    def better(self) -> bool:
        """Whether the challenger is better than the champion, with confidence."""
        return self.bounds is not None and self.bounds.high < 0

    @property
    def within(self) -> bool:
        """Whether the challenger is within the limit, with confidence."""
        return self.bounds is not None and self.bounds.high < self.limit

    @property
    def sentence(self) -> str:
        """The result in words."""
        sides = f"{self.show(self.challenger)} against {self.show(self.champion)}"
        figures = self.show(self.challenger) if self.champion is None else sides
        if self.bounds is None:
            return f"{self.what} {figures} on {self.requests:,} requests, too few to compare"
        low, high, limit = map(self.show_bound, (*self.bounds, self.limit))
        return f"{self.what} {figures} on {self.requests:,} requests: {self.words} {low} to {high}, limit {limit}"

    @property
    def words(self) -> str:
        """What the bounds are of."""
        return {"errors": "higher by", "latency": "a ratio of", "loss": "worse by"}.get(self.name, "a difference of")

    def show(self, figure: float | None) -> str:
        """Return a figure as text."""
        if figure is None:
            return "unknown"
        if self.name in ("errors", "disagreement"):
            return f"{figure:.2%}"
        return f"{figure:.3g} ms" if self.name == "latency" else f"{figure:.4g}"

    def show_bound(self, bound: float) -> str:
        """Return a bound or the limit as text."""
        if self.name in ("errors", "disagreement"):
            return f"{bound:.2%}"
        return f"{math.exp(bound):.2f}" if self.name == "latency" else f"{bound:.4f}"


class Decision(BaseModel):
    """What to do with a rollout, and why."""

    action: Action
    why: str


def check_all(evidence: Evidence, policy: RolloutPolicy) -> list[Check]:
    """Return the checks that have data."""
    alpha = (1 - policy.confidence) / len(NAMES)
    found = [
        check_errors(evidence, policy, alpha),
        check_latency(evidence, policy, alpha),
        check_shift(evidence, policy, alpha),
        check_disagreement(evidence, policy, alpha),
        check_loss(evidence, policy, alpha),
    ]
    return [check for check in found if check is not None]


def check_errors(evidence: Evidence, policy: RolloutPolicy, alpha: float) -> Check:
    """Compare the shares of failed requests.

    Where the challenger answers everything, those of its failures count after which the champion answered, so that what
    fails with both does not.
    """
    ours, theirs = (evidence.failures.get(version, Share()) for version in (CHALLENGER, CHAMPION))
    if theirs.n < FEWEST:
        bounds = Share(n=ours.n, sum=evidence.instead).bounds(alpha / 2, policy.errors)
    else:
        first, second = (share.bounds(alpha / 2, policy.errors) for share in (ours, theirs))
        bounds = Bounds(first.low - second.high, first.high - second.low)
    return Check(
        name="errors",
        what="failed requests",
        requests=ours.n,
        champion=theirs.value if theirs.n else None,
        challenger=ours.value,
        bounds=bounds,
        limit=policy.errors,
    )


def check_latency(evidence: Evidence, policy: RolloutPolicy, alpha: float) -> Check | None:
    """Compare the geometric means of the latencies: one slow answer in a thousand must not decide."""
    limit = math.log1p(policy.slower)
    if evidence.ratios.n:
        ratios = evidence.ratios
        bounds = ratios.bounds(alpha, policy.min_requests)
        return Check(
            name="latency",
            what="ratio of the latencies",
            requests=ratios.n,
            champion=None,
            challenger=math.exp(ratios.mean),
            bounds=bounds,
            limit=limit,
        )
    arms = evidence.latency
    if not arms.challenger.n:
        return None
    return Check(
        name="latency",
        what="latency",
        requests=arms.challenger.n,
        champion=math.exp(arms.champion.mean) if arms.champion.n else None,
        challenger=math.exp(arms.challenger.mean),
        bounds=_worst(arms.bounds(alpha, policy.min_requests)),
        limit=limit,
    )


def check_shift(evidence: Evidence, policy: RolloutPolicy, alpha: float) -> Check | None:
    """Compare the mean predictions: the bounds are the worst of all classes, the figures those of the worst class."""
    alpha /= max(len(evidence.outputs), 1)
    found = [_compare_output(name, output, policy, alpha) for name, output in evidence.outputs.items()]
    if not found:
        return None
    shown = max(found, key=lambda check: check.bounds or (-1.0, -1.0))
    return shown.model_copy(update={"bounds": _worst([check.bounds for check in found if check.bounds])})


def _compare_output(name: str, output: Output, policy: RolloutPolicy, alpha: float) -> Check:
    difference, arms = output.difference, output.arms
    if difference.n:
        requests, before, after = difference.n, output.champion.mean, output.champion.mean + difference.mean
        both = [difference.bounds(alpha, policy.min_requests)]
    else:
        requests, before, after = arms.challenger.n, arms.champion.mean, arms.challenger.mean
        both = [*arms.bounds(alpha, policy.min_requests)]
    sizes = [Bounds(max(one.low, -one.high, 0.0), max(one.high, -one.low)) for one in both if one]
    return Check(
        name="shift",
        what="mean value in standard deviations" if name == VALUE else f'mean probability of "{name}"',
        requests=requests,
        champion=before,
        challenger=after,
        bounds=_worst(sizes),
        limit=policy.shift,
    )


def check_disagreement(evidence: Evidence, policy: RolloutPolicy, alpha: float) -> Check | None:
    """Return the share of the requests that both answer differently."""
    share = evidence.disagreement
    if not share.n:
        return None
    return Check(
        name="disagreement",
        what="answered differently:",
        requests=share.n,
        champion=None,
        challenger=share.value,
        bounds=share.bounds(alpha, policy.disagreement),
        limit=policy.disagreement,
    )


def check_loss(evidence: Evidence, policy: RolloutPolicy, alpha: float) -> Check | None:
    """Compare the metric of the gates where labels have come."""
    loss = evidence.loss
    if loss is None:
        return None
    variance = loss.error**2 * loss.requests
    return Check(
        name="loss",
        what=loss.metric,
        requests=loss.requests,
        champion=loss.champion,
        challenger=loss.challenger,
        bounds=around(loss.worse, loss.requests, variance, alpha, policy.min_requests),
        limit=policy.loss * (abs(loss.champion) if loss.relative else 1.0),
        deciding=loss.requests >= policy.min_requests,
    )


def _worst(bounds: list[Bounds]) -> Bounds | None:
    """Return the bounds of the largest of several differences."""
    return Bounds(max(one.low for one in bounds), max(one.high for one in bounds)) if bounds else None


def decide(
    checks: list[Check], rollout: Rollout, evidence: Evidence, policy: RolloutPolicy, now: datetime, labels: bool
) -> Decision:
    """Decide what to do with a rollout.

    It is withdrawn as soon as one check is beyond its limit, and takes its next step as soon as all are within theirs.
    With "ab" and labels, it is decided as soon as the metric is better or worse at all.

    Args:
        checks: Those that have data.
        rollout: The rollout.
        evidence: What is known of it.
        policy: The limits.
        now: The time, UTC.
        labels: Whether labels are expected, by `[monitor] labels`.
    """
    if evidence.fault:
        return Decision(action="withdraw", why=evidence.fault)
    if worse := [check for check in checks if check.worse]:
        return Decision(action="withdraw", why=_list(worse))
    loss = next((check for check in checks if check.name == "loss"), None)
    by_labels = rollout.strategy == "ab" and labels
    if by_labels and loss and loss.bounds and loss.bounds.low > 0:
        return Decision(action="withdraw", why=loss.sentence)
    waiting = _find_reason(checks, rollout, evidence, policy, now)
    if not waiting and by_labels and not (loss and loss.better):
        waiting = f"the labels do not decide yet ({loss.sentence if loss else 'none has come'})"
    if not waiting:
        return Decision(action="advance", why=_list([loss] if by_labels and loss else checks))
    if now - rollout.started >= timedelta(hours=policy.max_hours):
        return Decision(action="withdraw", why=f"not decided after {policy.max_hours:g} hours: {waiting}")
    return Decision(action="wait", why=waiting)


def _find_reason(
    checks: list[Check], rollout: Rollout, evidence: Evidence, policy: RolloutPolicy, now: datetime
) -> str:
    """Return why the next step cannot be taken yet; empty if it can."""
    step = len(rollout.steps) - 1
    requests, beside = evidence.requests.get(step, 0), evidence.beside.get(step, 0)
    due = rollout.since + timedelta(minutes=policy.step_minutes)
    if not requests and now >= due and beside >= policy.min_requests:
        return (
            f"no request of version {rollout.version} in this step, and {beside:,} of version "
            f"{version_of(rollout.champion)}: the service may not have loaded version {rollout.version}, see its log"
        )
    if requests < policy.min_requests:
        return f"{requests:,} requests in this step, {policy.min_requests:,} are needed"
    if now < due:
        return f"the step lasts until {due:%Y-%m-%d %H:%M} UTC"
    open_checks = [check for check in checks if check.deciding and not check.within]
    return _list(open_checks)


def _list(checks: list[Check]) -> str:
    return "; ".join(check.sentence for check in checks)
