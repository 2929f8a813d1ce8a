"""`champion.json`: the file that names the version in production, replaced atomically, with its history."""

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from ondol.errors import UserError
from ondol.orchestration.alerts import alert, alerted_champion_path
from ondol.project import Project
from ondol.storage.files import (
    BACKUP,
    CHAMPION_FILE,
    locked,
    read_json,
    read_note,
    read_record,
    user_name,
    utc_now,
    write_json,
)
from ondol.storage.store import Store

if TYPE_CHECKING:
    from ondol.registry.bundles import Bundle

ANY = "any bundle"
# Content of the file without a champion: a file that is missing for a moment must not stop a service.
NOTHING = {"bundle": None}
Action = Literal["deploy", "promote", "rollback", "release", "rollout", "withdraw"]
LOCK = "champion.lock"  # held by what changes the champion or a rollout
REMOVING = ("promote", "rollback", "withdraw")  # actions by hand, or after a trial: the next run must not undo them


class HistoryEntry(BaseModel):
    """One change of the champion: who, when, from which bundle to which, and why.

    The actions `rollout` and `withdraw` end a rollout. With `withdraw`, `from` is the challenger, and `to` the
    champion, which stays in production.
    """

    at: str
    who: str
    action: Action
    before: str | None = Field(alias="from")
    to: str
    why: str

    model_config = {"populate_by_name": True}


class Champion(BaseModel):
    """The version in production, its MLflow run, the folder and digest of its bundle, and the history of changes.

    The run's id identifies a model, because version numbers begin at 1 again in another registry.
    """

    version: str
    run_id: str
    bundle: str
    digest: str
    since: str
    history: tuple[HistoryEntry, ...] = ()

    @property
    def move(self) -> str:
        """A unique name of the last change: times have a resolution of a second, and a bundle may be restored."""
        return f"{len(self.history)} {self.bundle} {self.since}"


def read_champion(store: Store) -> Champion | None:
    """Return the champion of the store, or None if nothing is in production.

    Raises:
        Damaged: the file cannot be read.
    """
    path = store.folder / CHAMPION_FILE
    return None if read_json(path) == NOTHING else read_record(path, Champion)


def refresh_champion(store: Store) -> Champion | None:
    """Return the champion like `read_champion`, after downloading its current record.

    Raises:
        UserError: the store cannot be reached.
    """
    store.look(store.folder / CHAMPION_FILE)
    return read_champion(store)


def require_champion(store: Store) -> Champion:
    """Return the champion of the store.

    Raises:
        UserError: nothing was deployed yet.
    """
    champion = read_champion(store)
    if champion is None:
        raise UserError("No model is in production yet: `ml run` trains, checks and deploys one.")
    return champion


def version_of(bundle: str) -> str:
    """Return the version from a bundle's name."""
    return bundle.rpartition("-")[0]


def rolled_back(champion: Champion | None, version: str) -> HistoryEntry | None:
    """Return the change that removed `version` from production or from its rollout, unless it was restored since."""
    moves = [c for c in (champion.history if champion else ()) if version in map(version_of, (c.before or "", c.to))]
    last = moves[-1] if moves else None
    return last if last and last.action in REMOVING and version_of(last.to) != version else None


def move_champion(store: Store, bundle: "Bundle", action: Action, why: str, expected: str | None = ANY) -> Champion:
    """Put `bundle` into production and add the change to the history.

    Args:
        store: The store.
        bundle: The bundle to put into production.
        action: The kind of change.
        why: The reason, for the history.
        expected: The bundle that must be in production now, None for none; default: any.

    Raises:
        UserError: another bundle than `expected` is in production.
    """
    with locked(store.folder / LOCK, wait=True):
        old = read_champion(store)
        before = old.bundle if old else None
        if expected not in (ANY, before):
            raise UserError(f"Bundle {before} was put into production in the meantime: run `ml evaluate` against it.")
        run_id = str(bundle.meta.get("run_id", ""))
        made = {"version": bundle.version, "run_id": run_id, "digest": bundle.digest}
        champion = add_change(old, bundle.name, action, why, **made)
        write_champion(store, champion)
    return champion


def add_change(
    old: Champion | None, bundle: str, action: Action, why: str, *, version: str, run_id: str, digest: str
) -> Champion:
    """Return the record with which `bundle` replaces `old`; it is not written."""
    now, before = utc_now(), old.bundle if old else None
    change = HistoryEntry(at=now, who=user_name(), action=action, before=before, to=bundle, why=why)
    history = (*(old.history if old else ()), change)
    return Champion(version=version, run_id=run_id, bundle=bundle, digest=digest, since=now, history=history)


def add_withdrawal(champion: Champion, challenger: str, why: str) -> Champion:
    """Return the champion's record with the withdrawal of a challenger's bundle in its history; it is not written."""
    change = HistoryEntry(
        at=utc_now(), who=user_name(), action="withdraw", before=challenger, to=champion.bundle, why=why
    )
    return champion.model_copy(update={"history": (*champion.history, change)})


def restore_champion(store: Store, bundle: str, before: Champion | None) -> None:
    """Restore `before`, unless a bundle other than `bundle` was put into production in the meantime."""
    with locked(store.folder / LOCK, wait=True):
        now = refresh_champion(store)
        if now is not None and now.bundle == bundle:
            write_champion(store, before)


def write_champion(store: Store, champion: Champion | None) -> None:
    """Write `champion`, or None if nothing is in production, to the file.

    The backup is written first: if that fails, the champion is unchanged.
    """
    text = champion.model_dump_json(indent=1, by_alias=True) if champion else json.dumps(NOTHING)
    for name in (BACKUP, CHAMPION_FILE):
        store.write_bytes(store.folder / name, f"{text}\n".encode())


def alert_new_champion(project: Project) -> None:
    """Send one alert for a new version in production, or for a withdrawn one: at once, or later if that was killed."""
    champion, settings = project.champion, project.settings
    path = alerted_champion_path(settings)
    if champion is None or read_note(path) in (champion.move, champion.since):  # before 0.3.1, only the time
        return
    change = champion.history[-1]
    if change.action == "deploy":
        instead = f" in place of version {version_of(change.before)}" if change.before else ""
        what = f"Version {champion.version} was trained and is in production{instead}."
        todo = "`ml status` shows it."
        if change.before is not None:  # there is no version before the first one
            todo = '`ml status` shows it; `ml rollback --why "…"` brings the previous one back.'
        alert(settings, "retrained", what, todo, key=f"retrained {champion.move}")
    elif change.action == "rollout":
        before = version_of(change.before or "")
        what = f"Version {champion.version} replaced version {before} in production after its rollout: {change.why}."
        todo = '`ml status` shows it; `ml rollback --why "…"` brings the previous one back.'
        alert(settings, "rollout-promoted", what, todo, key=f"rollout-promoted {champion.move}")
    elif change.action == "withdraw":
        version = version_of(change.before or "")
        what = f"Version {version} was withdrawn, version {champion.version} answers all requests: {change.why}."
        todo = "The artifact `rollout` in Prefect compares both versions."
        alert(settings, "rollout-withdrawn", what, todo, key=f"rollout-withdrawn {champion.move}")
    with suppress(OSError):  # a full disk: `repeat_hours` still prevents a repeated alert
        write_json(path, champion.move)
