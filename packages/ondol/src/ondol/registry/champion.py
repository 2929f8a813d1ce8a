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
NOTHING = {"bundle": None}  # in the file, because a file that is not there for a moment must stop no service
Action = Literal["deploy", "promote", "rollback", "release"]


class HistoryEntry(BaseModel):
    """One move of the champion: who, when, from which bundle to which, and why."""

    at: str
    who: str
    action: Action
    before: str | None = Field(alias="from")
    to: str
    why: str

    model_config = {"populate_by_name": True}


class Champion(BaseModel):
    """The version in production, the MLflow run that made it, its bundle's folder and digest, and every move so far.

    A version's number says little: another registry begins at 1 again. The run's id is what names a model.
    """

    version: str
    run_id: str
    bundle: str
    digest: str
    since: str
    history: tuple[HistoryEntry, ...] = ()

    @property
    def move(self) -> str:
        """The last move's name, which no other has: times are to the second, and a bundle may be put back."""
        return f"{len(self.history)} {self.bundle} {self.since}"


def read_champion(store: Store) -> Champion | None:
    """Return the champion of the store, or None if nothing was deployed yet, or it was all taken back.

    Raises:
        Damaged: the file cannot be read.
    """
    path = store.folder / CHAMPION_FILE
    return None if read_json(path) == NOTHING else read_record(path, Champion)


def refresh_champion(store: Store) -> Champion | None:
    """Return the champion, as `read_champion` does, after bringing its record up to date.

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
    """Return the version in a bundle's name."""
    return bundle.rpartition("-")[0]


def rolled_back(champion: Champion | None, version: str) -> HistoryEntry | None:
    """Return the rollback or promotion that took `version` out of production, unless it was put back since."""
    moves = [c for c in (champion.history if champion else ()) if version in map(version_of, (c.before or "", c.to))]
    last = moves[-1] if moves else None
    return last if last and last.action in ("promote", "rollback") and version_of(last.to) != version else None


def move_champion(store: Store, bundle: "Bundle", action: Action, why: str, expected: str | None = ANY) -> Champion:
    """Name `bundle` as the one in production and add the move to the history.

    Args:
        store: The store.
        bundle: The bundle to put into production.
        action: What moved it.
        why: For the history.
        expected: The bundle that must be in production now, None for none; default: any.

    Raises:
        UserError: another bundle than `expected` is in production.
    """
    now = utc_now()
    with locked(store.folder / "champion.lock", wait=True):
        old = read_champion(store)
        before = old.bundle if old else None
        if expected not in (ANY, before):
            raise UserError(f"Bundle {before} was put into production in the meantime: run `ml evaluate` against it.")
        change = HistoryEntry(at=now, who=user_name(), action=action, before=before, to=bundle.name, why=why)
        champion = Champion(
            version=bundle.version,
            run_id=str(bundle.meta.get("run_id", "")),
            bundle=bundle.name,
            digest=bundle.digest,
            since=now,
            history=(*(old.history if old else ()), change),
        )
        write_champion(store, champion)
    return champion


def restore_champion(store: Store, bundle: str, before: Champion | None) -> None:
    """Put `before` back, unless another than the bundle of the name `bundle` was put into production since."""
    with locked(store.folder / "champion.lock", wait=True):
        now = refresh_champion(store)
        if now is not None and now.bundle == bundle:
            write_champion(store, before)


def write_champion(store: Store, champion: Champion | None) -> None:
    """Write `champion`, or that nothing is in production, to the file.

    The backup is written first: if it cannot be written, the champion has not changed.
    """
    text = champion.model_dump_json(indent=1, by_alias=True) if champion else json.dumps(NOTHING)
    for name in (BACKUP, CHAMPION_FILE):
        store.write_bytes(store.folder / name, f"{text}\n".encode())


def alert_new_champion(project: Project) -> None:
    """Send one alert for a new version in production: at its deploy, or later if the deploy was killed."""
    champion, settings = project.champion, project.settings
    path = alerted_champion_path(settings)
    if champion is None or read_note(path) in (champion.move, champion.since):  # the time alone: before 0.3.1
        return
    change = champion.history[-1]
    if change.action == "deploy":
        instead = f" in place of version {version_of(change.before)}" if change.before else ""
        what = f"Version {champion.version} was trained and is in production{instead}."
        todo = "`ml status` shows it."
        if change.before is not None:  # the first version has none before it to go back to
            todo = '`ml status` shows it; `ml rollback --why "…"` brings the previous one back.'
        alert(settings, "retrained", what, todo, key=f"retrained {champion.move}")
    with suppress(OSError):  # a full disk: the same alert is not sent twice within `repeat_hours`
        write_json(path, champion.move)
