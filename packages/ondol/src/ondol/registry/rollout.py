"""`rollout.json`: the challenger that is tried beside the champion, and its share of the requests, step by step.

The service reads the file as it reads `champion.json`, see `ondol_serving.rollout`. It is replaced atomically, and a
rollout that has ended stays in it.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from ondol.config import Strategy
from ondol.errors import UserError
from ondol.registry.bundles import open_bundle
from ondol.registry.champion import (
    LOCK,
    Champion,
    add_change,
    add_withdrawal,
    read_champion,
    refresh_champion,
    version_of,
    write_champion,
)
from ondol.storage.files import ROLLOUT_FILE, locked, read_record, user_name, utc_now
from ondol.storage.store import Store

if TYPE_CHECKING:
    from ondol.config import RolloutPolicy
    from ondol.registry.bundles import Bundle

# From the writing of a step until it takes effect: all processes of the service have read it by then, so that all of
# them change at the same moment. At the start of a rollout, they also load the challenger.
NOTICE_SECONDS = 3.0
LOADING_SECONDS = 10.0
Outcome = Literal["promoted", "withdrawn"]


class Step(BaseModel):
    """A step of a rollout: the share of the requests that the challenger answers from the time `at` on, and why."""

    at: str
    share: float
    who: str
    why: str


class Rollout(BaseModel):
    """A challenger, its steps so far and, at the end, the outcome.

    Attributes:
        id: A unique name; the service also draws by it which callers the challenger answers.
        strategy: How the challenger is tried.
        champion: The bundle in production.
        move: The last change of the champion at the start: the next change ends the rollout.
        version: The challenger.
        run_id: Its run in MLflow.
        bundle: The name of its bundle.
        digest: The digest of its bundle.
        plan: The shares of all steps.
        steps: The steps that were taken, the first of them at the start.
        outcome: How it ended; None while it runs.
        ended: When it ended.
        why: Why it ended.
    """

    id: str
    strategy: Strategy
    champion: str
    move: str
    version: str
    run_id: str
    bundle: str
    digest: str
    plan: tuple[float, ...]
    steps: tuple[Step, ...]
    outcome: Outcome | None = None
    ended: str | None = None
    why: str = ""

    @property
    def step(self) -> Step:
        """The last step that was taken."""
        return self.steps[-1]

    @property
    def since(self) -> datetime:
        """When the last step took effect, or will."""
        return datetime.fromisoformat(self.step.at)

    @property
    def started(self) -> datetime:
        """When the first step took effect, or will."""
        return datetime.fromisoformat(self.steps[0].at)

    @property
    def next_share(self) -> float | None:
        """The share of the next step; None if the last one has been taken."""
        return self.plan[len(self.steps)] if len(self.steps) < len(self.plan) else None


def plan_steps(policy: "RolloutPolicy", strategy: Strategy) -> tuple[float, ...]:
    """Return the share of each step of a strategy."""
    shares = {"canary": policy.steps, "ab": (policy.share,), "blue-green": (1.0,), "shadow": (0.0,), "direct": ()}
    return shares[strategy]


def show_share(share: float) -> str:
    """Return a share as text, such as "12.5%"."""
    return f"{100 * share:.3g}%"


def describe_step(rollout: Rollout) -> str:
    """Return a phrase for the strategy and the share of the last step, such as "canary, 5% of the requests"."""
    share = f"{show_share(rollout.step.share)} of the requests" if rollout.step.share else "it answers no request"
    return f"{rollout.strategy}, {share}"


def describe_rollout(rollout: Rollout) -> str:
    """Return a sentence about a rollout that runs."""
    return (
        f"Version {rollout.version} is tried beside version {version_of(rollout.champion)}: {describe_step(rollout)}."
    )


def read_rollout(store: Store) -> Rollout | None:
    """Return the last rollout of the store, which may have ended; None if there was none.

    Raises:
        Damaged: the file cannot be read.
    """
    return read_record(store.folder / ROLLOUT_FILE, Rollout)


def running_rollout(store: Store) -> Rollout | None:
    """Return the rollout that runs; None if there is none, or if it was cancelled or ended by a change of the champion.

    Raises:
        Damaged: the file cannot be read.
    """
    rollout, champion = read_rollout(store), read_champion(store)
    running = rollout and champion and champion.move == rollout.move and rollout.outcome is None
    return rollout if running else None


def require_rollout(store: Store) -> Rollout:
    """Return the rollout that runs.

    Raises:
        UserError: there is none.
    """
    rollout = running_rollout(store)
    if rollout is None:
        raise UserError("No rollout is running: `ml rollout start VERSION` starts one.")
    return rollout


def start_rollout(
    store: Store, bundle: "Bundle", champion: Champion, strategy: Strategy, plan: tuple[float, ...], why: str
) -> Rollout:
    """Start to try `bundle` beside `champion`; a rollout that runs is withdrawn.

    Raises:
        UserError: another bundle was put into production in the meantime.
    """
    with locked(store.folder / LOCK, wait=True):
        store.look(store.folder / ROLLOUT_FILE)
        now = refresh_champion(store)
        if now is None or now.bundle != champion.bundle:
            raise UserError("Another bundle was put into production in the meantime: run `ml evaluate` again.")
        if (before := running_rollout(store)) is not None:
            _withdraw(store, before, now, f"version {bundle.version} replaces it")
            now = read_champion(store) or now
        first = Step(at=_in_seconds(LOADING_SECONDS), share=plan[0], who=user_name(), why=why)
        rollout = Rollout(
            id=f"{bundle.name}-{int(time.time())}",
            strategy=strategy,
            champion=now.bundle,
            move=now.move,
            version=bundle.version,
            run_id=str(bundle.meta.get("run_id", "")),
            bundle=bundle.name,
            digest=bundle.digest,
            plan=plan,
            steps=(first,),
        )
        return _write(store, rollout)


def take_step(store: Store, rollout: Rollout, why: str) -> Rollout:
    """Give the challenger the share of its next step; after the last one, put it into production.

    Raises:
        UserError: the rollout has ended or has taken a step in the meantime, or the bundle is missing or was changed.
    """
    with locked(store.folder / LOCK, wait=True):
        champion = _require_current(store, rollout)
        open_bundle(store, rollout.bundle)
        if (share := rollout.next_share) is not None:
            at = max(_in_seconds(NOTICE_SECONDS), rollout.step.at)  # the first step may not have begun
            step = Step(at=at, share=share, who=user_name(), why=why)
            return _write(store, rollout.model_copy(update={"steps": (*rollout.steps, step)}))
        made = {"version": rollout.version, "run_id": rollout.run_id, "digest": rollout.digest}
        write_champion(store, add_change(champion, rollout.bundle, "rollout", why, **made))
        return _end(store, rollout, "promoted", why)


def withdraw_challenger(store: Store, rollout: Rollout, why: str) -> Rollout:
    """End a rollout: the champion answers all requests again, and its history says why.

    Raises:
        UserError: the rollout has ended or has taken a step in the meantime.
    """
    with locked(store.folder / LOCK, wait=True):
        return _withdraw(store, rollout, _require_current(store, rollout), why)


def cancel_rollout(store: Store, bundle: str) -> None:
    """End the rollout of a bundle whose deployment failed, if it runs; a later run may try its version again."""
    with locked(store.folder / LOCK, wait=True):
        rollout = running_rollout(store)
        if rollout is not None and rollout.bundle == bundle:
            _end(store, rollout, "withdrawn", "its deployment failed")


def _require_current(store: Store, rollout: Rollout) -> Champion:
    """Return the champion beside which the rollout runs.

    Raises:
        UserError: the rollout has ended or has taken a step in the meantime.
    """
    store.look(store.folder / ROLLOUT_FILE)
    champion = refresh_champion(store)
    if champion is None or running_rollout(store) != rollout:
        raise UserError(f"The rollout of version {rollout.version} changed in the meantime: see `ml rollout status`.")
    return champion


def _withdraw(store: Store, rollout: Rollout, champion: Champion, why: str) -> Rollout:
    write_champion(store, add_withdrawal(champion, rollout.bundle, why))
    return _end(store, rollout, "withdrawn", why)


def _end(store: Store, rollout: Rollout, outcome: Outcome, why: str) -> Rollout:
    """Record the outcome. Most rollouts have ended before, by the change of the champion: that is one atomic write."""
    return _write(store, rollout.model_copy(update={"outcome": outcome, "ended": utc_now(), "why": why}))


def _write(store: Store, rollout: Rollout) -> Rollout:
    store.write_bytes(store.folder / ROLLOUT_FILE, f"{rollout.model_dump_json(indent=1)}\n".encode())
    return rollout


def _in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat("T", "milliseconds")
