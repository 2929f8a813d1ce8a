"""`ml release --to NAME`: brings the champion, and the image, to an environment; proves both or restores both."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from flows.commands.console import console, open_project
from flows.commands.container import Container
from flows.commands.smoke_url import prove
from flows.contract.compatibility import breaking_changes
from flows.errors import Refused, UserError, nearest
from flows.sections import Environment
from flows.settings import Settings
from flows.store.bundles import Bundle, find_bundle, open_bundle
from flows.store.champion import Champion, move_champion, read_champion, require_champion, restore_champion
from flows.store.files import digest_folder, locked, publish, scratch


def release_to(name: str, source: str | None, image: str | None, breaking: bool, why: str) -> None:
    """Put a champion into service in the environment `name`.

    Args:
        name: A section `[environments.NAME]` of the settings.
        source: The environment whose champion is released; None for this project's own.
        image: What the environment's host shall run; None leaves the one that runs.
        breaking: Release even if callers must change their requests.
        why: For the history.

    Raises:
        UserError: it cannot be brought there, or was not proved; champion and image are what they were.
        Refused: it would break the callers of what serves there.
    """
    settings = open_project()
    target = settings.root / find_environment(settings, name).store
    origin = settings.root / find_environment(settings, source).store if source else settings.store_path
    if target.resolve() == origin.resolve():
        raise UserError(f"The store of {name} is the one to release from: give [environments.{name}] one of its own.")
    bundle = open_bundle(origin, require_champion(origin).bundle)
    with locked(target / "release.lock", wait=False) as mine:
        if not mine:
            raise UserError(f"Another release to {name} is at work: wait until it ends.")
        before = read_champion(target)
        require_compatible(target, before, bundle, breaking)
        bring(settings, name, copy_bundle(bundle, target), image, why)
    console.print(f"[green]✓[/] [bold]version {bundle.version}[/] serves in {name} ({escape(why)})")


def find_environment(settings: Settings, name: str) -> Environment:
    """Return the environment of that name.

    Raises:
        UserError: the settings have none.
    """
    if name not in settings.environments:
        raise UserError(
            f'There is no environment "{name}": write [environments.{name}] with store and url into config.toml, or '
            f"set ML_ENVIRONMENTS__{name.upper()}__STORE and …__URL.{nearest(name, settings.environments)}"
        )
    return settings.environments[name]


def require_compatible(store: Path, before: Champion | None, bundle: Bundle, breaking: bool) -> None:
    """Check that those who call what serves in `store` can go on as they are.

    Raises:
        Refused: they cannot, and `breaking` was not given.
    """
    old = find_bundle(store, before.bundle) if before and not breaking else None
    changes = breaking_changes(old.contract, bundle.contract) if old else []
    if old and changes:
        raise Refused(
            f"Version {old.version} goes on serving: version {bundle.version} would break its callers "
            f"({'; '.join(changes)}). Tell them, then release again with --breaking."
        )


def copy_bundle(bundle: Bundle, store: Path) -> Bundle:
    """Copy a bundle into `store`, unless it is there whole; it appears there in one step.

    Raises:
        UserError: the copy differs, as where a disk is full or faulty.
    """
    there = find_bundle(store, bundle.name)
    if there is not None:
        return there
    target = store / "bundles" / bundle.name
    with scratch(target) as made:
        shutil.copytree(bundle.path, made)
        if digest_folder(made) != bundle.digest:
            raise UserError(f"The copy of {bundle.path} to {target} differs from it: see the disk of {store}.")
        shutil.rmtree(target, ignore_errors=True)  # what was found there is damaged
        publish(made, target)
    return open_bundle(store, bundle.name)


def bring(settings: Settings, name: str, bundle: Bundle, image: str | None, why: str) -> None:
    """Let the environment serve `bundle`, by `image` where one is given, and prove it.

    Raises:
        UserError: it did not pass; both are what they were.
    """
    environment = settings.environments[name]
    with _moved_image(settings, environment, image), _moved_champion(settings.root / environment.store, bundle, why):
        prove(environment.url, bundle, environment.wait_seconds)


@contextmanager
def _moved_champion(store: Path, bundle: Bundle, why: str) -> Iterator[None]:
    """Name `bundle` the store's champion; whatever fails within, the one before serves again."""
    before = read_champion(store)
    if before is not None and before.bundle == bundle.name:
        yield
        return
    move_champion(store, bundle, "release", why, expected=before.bundle if before else None)
    try:
        yield
    except BaseException:
        restore_champion(store, bundle, before)
        console.print(f"[yellow]The release failed: {_named(before)} serves again.[/]")
        raise


@contextmanager
def _moved_image(settings: Settings, environment: Environment, image: str | None) -> Iterator[None]:
    """Let the environment's host run `image`; whatever fails within, it runs the one before."""
    if environment.host is None or image is None:
        yield
        return
    container = Container(settings, environment)
    before = container.image()
    try:
        if image != before:
            container.replace(image)
        yield
    except BaseException:
        if image != before:
            container.replace(before)
            console.print(f"[yellow]The release failed: {before or 'no image'} runs again on {environment.host}.[/]")
        raise


def _named(champion: Champion | None) -> str:
    return f"version {champion.version}" if champion else "no model"
