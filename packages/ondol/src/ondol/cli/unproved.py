"""`release.json` of an environment's store: a release that is not verified yet, so that a crash can be undone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from ondol.cli.console import console
from ondol.errors import UserError
from ondol.registry.bundles import Bundle
from ondol.registry.champion import Champion, read_champion, restore_champion, version_of
from ondol.storage.files import read_record, write_bytes
from ondol.storage.reach import look_again, remove

FILE = "release.json"


class Unproved(BaseModel):
    """The bundle that is on its way, and what served before it."""

    bundle: str
    before: Champion | None


def read_unproved(store: Path) -> Unproved | None:
    """Return what a release to `store` has not proved, None where none is going on or was killed."""
    look_again(store / FILE)
    return read_record(store / FILE, Unproved)


def require_proved(store: Path) -> None:
    """Check that what serves in `store`, the image too, was proved.

    Raises:
        UserError: a release is going on there, or was killed.
    """
    if found := read_unproved(store):
        raise not_proved(store, found)


def not_proved(store: Path, found: Unproved) -> UserError:
    """Return the error that says so."""
    return UserError(
        f"Bundle {found.bundle} is not proved in {store}: wait until its release ends, or release there again if that "
        "was killed."
    )


@contextmanager
def noted(store: Path, bundle: Bundle) -> Iterator[None]:
    """Keep a note that `bundle` is not proved, until the block has ended and all is proved or as it was."""
    note = Unproved(bundle=bundle.name, before=read_champion(store))
    write_bytes(store / FILE, f"{note.model_dump_json(indent=1, by_alias=True)}\n".encode())
    try:
        yield
    except BaseException:
        undo(store)
        raise
    remove(store / FILE)


def undo(store: Path) -> bool:
    """Let what served before an unproved release serve again, and forget it; return whether there was one."""
    there_was = restore(store)
    if there_was:
        remove(store / FILE)
    return there_was


def restore(store: Path) -> bool:
    """Let what served before an unproved release serve again, unless it does; return whether there was one."""
    found = read_unproved(store)
    if found is None:
        return False
    now, before = read_champion(store), found.before
    if now is not None and now.bundle == found.bundle and before != now:
        left = Bundle(path=store / "bundles" / found.bundle, version=version_of(found.bundle), digest="")
        restore_champion(store, left, before)
        serves = f"version {before.version}" if before else "nothing"
        console.print(f"[yellow]A release failed: {serves} serves again.[/]")
    return True
