"""`loop.json`: whether the loop is paused, what was asked of the pipeline last, and who changed what when."""

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from ondol.storage.audit import user_name, utc_now
from ondol.storage.files import locked, read_record, write_bytes

KEPT = 100  # changes


class Change(BaseModel):
    """One change of the loop."""

    at: str
    who: str
    what: str
    why: str


class Wanted(BaseModel):
    """Training that is wanted. It is kept before anybody is told, so that a killed monitor forgets nothing.

    Attributes:
        window: The latest window, which names the request.
        windows: All that speak for it.
        emitted_at: When the Prefect event was confirmed; None until then.
    """

    window: str
    windows: tuple[str, ...]
    version: str
    bundle: str
    reason: str
    requested_at: str
    emitted_at: str | None = None


class Loop(BaseModel):
    """The state of the loop."""

    paused: Change | None = None
    wanted: Wanted | None = None
    history: tuple[Change, ...] = ()


def read_loop(store: Path) -> Loop:
    """Return the loop of the store."""
    return read_record(store / "loop.json", Loop) or Loop()


def change_loop(store: Path, change: Callable[[Loop], Loop]) -> Loop:
    """Replace the loop's state by what `change` makes of it, in one step, and return it."""
    with locked(store / "loop.lock", wait=True):
        loop = change(read_loop(store))
        write_bytes(store / "loop.json", (loop.model_dump_json(indent=1) + "\n").encode())
    return loop


def pause(store: Path, why: str) -> Loop:
    """Let nothing be asked for until `resume`; the windows go on."""
    made = _change("pause", why)
    return change_loop(store, lambda loop: _note(loop.model_copy(update={"paused": made}), made))


def resume(store: Path, why: str) -> Loop:
    """End a pause."""
    made = _change("resume", why)
    return change_loop(store, lambda loop: _note(loop.model_copy(update={"paused": None}), made))


def want(store: Path, wanted: Wanted) -> Loop:
    """Keep a request."""
    made = Change(at=wanted.requested_at, who="monitor", what="retrain", why=wanted.reason)
    return change_loop(store, lambda loop: _note(loop.model_copy(update={"wanted": wanted}), made))


def confirm(store: Path, window: str) -> Loop:
    """Keep that the event of the request of `window` has arrived."""

    def mark(loop: Loop) -> Loop:
        if loop.wanted is None or loop.wanted.window != window:
            return loop
        return loop.model_copy(update={"wanted": loop.wanted.model_copy(update={"emitted_at": utc_now()})})

    return change_loop(store, mark)


def _change(what: str, why: str) -> Change:
    return Change(at=utc_now(), who=user_name(), what=what, why=why)


def _note(loop: Loop, change: Change) -> Loop:
    return loop.model_copy(update={"history": (*loop.history, change)[-KEPT:]})
