"""`ml release` and `ml smoke`: deploy the champion, and the image, to an environment; verify both or restore both."""

import http.client
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TextIO
from urllib.parse import urlsplit

from pydantic import BaseModel
from rich.markup import escape

from ondol.cli.console import console, current_store, start_command
from ondol.cli.container import Container
from ondol.config import Environment, Settings
from ondol.contract.schema import require_compatible
from ondol.deployment.smoke import REQUEST_SECONDS, explain_refusal, request_prediction, require_same
from ondol.errors import Refused, UserError, nearest
from ondol.orchestration.alerts import alert
from ondol.redaction import add_authorization
from ondol.registry.bundles import Bundle, bundle_path, find_bundle, open_bundle
from ondol.registry.champion import (
    Champion,
    move_champion,
    read_champion,
    require_champion,
    restore_champion,
    rolled_back,
)
from ondol.registry.keys import read_keys
from ondol.registry.rollout import running_rollout
from ondol.storage.files import (
    ROLLOUT_FILE,
    open_for_others,
    read_json,
    read_record,
    scratch,
    sole,
)
from ondol.storage.store import Store, open_store
from ondol.training.provenance import is_behind
from ondol_serving.callers import is_loopback
from ondol_serving.names import digest_folder

WAIT_SECONDS = 60.0
PAUSE_SECONDS = 0.2
GROUP = "service-sklearn"  # the dependency group that the Dockerfile installs for a bundle without ONNX
TIMES = 5  # consecutive answers, each over its own connection: each worker of a service loads the bundle by itself
UNVERIFIED = "release.json"
RELEASED = "released.json"
TODO = "`ml environments` shows the version in production of each environment."


def smoke_url(url: str) -> None:
    """Verify the service at `url` against the champion of the environment with this address, else of this project.

    Raises:
        UserError: nothing was released, or the service is not ready, has another version or answers incorrectly.
    """
    settings = start_command()
    known = (e for e in settings.environments.values() if e.url.rstrip("/") == url.rstrip("/"))
    environment = next(known, None)
    store = current_store(settings, environment.store) if environment else open_store(settings)
    wait = environment.wait_seconds if environment else WAIT_SECONDS
    store.look(store.folder / ROLLOUT_FILE)
    rollout = running_rollout(store)
    challenger = open_bundle(store, rollout.bundle) if rollout else None
    verify(url, open_bundle(store, require_champion(store).bundle), wait, challenger)


def verify(url: str, bundle: Bundle, wait_seconds: float = WAIT_SECONDS, challenger: Bundle | None = None) -> None:
    """Verify that the service at `url` is ready, has loaded `bundle`, and answers its example as its model does.

    Args:
        url: The service's address.
        bundle: The bundle that it must serve.
        wait_seconds: The time limit for becoming ready, and then for loading the bundle.
        challenger: The bundle that may answer instead, during a rollout.

    Raises:
        UserError: one of these checks still fails after that time.
    """
    try:
        _verify(url.rstrip("/"), bundle, wait_seconds, challenger)
    except UserError as error:
        if bundle.meta.get("runtime") != "sklearn":
            raise
        raise UserError(
            f"{error} Version {bundle.version} is served by scikit-learn itself: was the service's image built with "
            f"GROUP={GROUP}?"
        ) from None


def _verify(base: str, bundle: Bundle, wait_seconds: float, challenger: Bundle | None) -> None:
    _wait(lambda: _require_ready(base), wait_seconds)
    console.print(f"[green]✓[/] {escape(base)} is ready")
    _wait(lambda: _require_version(base, bundle), wait_seconds)
    console.print(f"[green]✓[/] it serves version {bundle.version} ({bundle.name})")
    answer = request_prediction(base, bundle.meta["example"])
    known = {one.version: one for one in (challenger, bundle) if one}
    answering = known.get(str(answer.get("model_version")))
    if answering is None:
        raise UserError(f"{base} answered by version {answer.get('model_version')}, not {bundle.version}.")
    if answering is not bundle:  # the example is that of the other version
        answer = request_prediction(base, answering.meta["example"])
    meta = answering.meta
    require_same(answer, meta["expected"], meta["deploy"]["tolerance"], answering.contract.decision)
    console.print("[green]✓[/] it answers the example as the model does")


def _require_ready(base: str) -> None:
    _get(f"{base}/readyz", "is not ready")


def _require_version(base: str, bundle: Bundle) -> None:
    meta = bundle.meta
    wanted = {name: meta.get(name) for name in ("version", "run_id", "created")}
    for _ in range(TIMES):
        model = _read(f"{base}/model")
        served = {name: model.get(name) for name in wanted}
        if served != wanted:
            raise UserError(
                f"{base} serves version {served['version']} of {served['created']}, but version {bundle.version} of "
                f"{wanted['created']} was released: see whether the service reads that store, and its log."
            )


def _wait(check: Callable[[], None], seconds: float) -> None:
    """Repeat a check until it passes; after `seconds` raise its error."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return check()
        except UserError:
            if time.monotonic() > deadline:
                raise
        time.sleep(PAUSE_SECONDS)


def _read(url: str) -> dict[str, Any]:
    """Return the JSON object at `url`.

    Raises:
        UserError: there is none: another program answers at this address.
    """
    try:
        return dict(json.loads(_get(url, "does not report its model")))
    except (ValueError, RecursionError):
        raise UserError(f"{url} answers, but not as the service does: see whether the address is right.") from None


def _get(url: str, lacks: str) -> bytes:
    """Return the response of `url`.

    Raises:
        UserError: there is no answer, or an error status.
    """
    try:
        with urllib.request.urlopen(add_authorization(urllib.request.Request(url)), timeout=REQUEST_SECONDS) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise UserError(f"{url} {lacks}: {explain_refusal(error.code)}") from None
        raise UserError(f"{url} {lacks}: it answers {error.code}; see the service's log.") from None
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url} {lacks} ({error}): see whether the address is right and the service runs.") from None


class Unverified(BaseModel):
    """An unfinished release: its bundle, and the champion before it."""

    bundle: str
    before: Champion | None


def read_unverified(store: Store) -> Unverified | None:
    """Return the unfinished release to `store`; None if no release is running or was killed."""
    store.look(store.folder / UNVERIFIED)
    return read_record(store.folder / UNVERIFIED, Unverified)


def require_verified(store: Store) -> None:
    """Check that the champion and the image in production in `store` were verified.

    Raises:
        UserError: a release is running there, or was killed.
    """
    if found := read_unverified(store):
        raise unverified_error(store, found)


def unverified_error(store: Store, found: Unverified) -> UserError:
    """Return the error for an unverified release."""
    return UserError(
        f"Bundle {found.bundle} is not verified in {store}: wait until its release ends, or release there again if it "
        "was killed."
    )


@contextmanager
def noted(store: Store, bundle: Bundle) -> Iterator[None]:
    """Record `bundle` as not verified until the block has ended, when all is verified or restored."""
    note = Unverified(bundle=bundle.name, before=read_champion(store))
    store.write_bytes(store.folder / UNVERIFIED, f"{note.model_dump_json(indent=1, by_alias=True)}\n".encode())
    try:
        yield
    except BaseException:
        undo(store)
        raise
    store.remove(store.folder / UNVERIFIED)


def undo(store: Store) -> bool:
    """Restore what an unverified release replaced, and delete its record; return whether there was one."""
    there_was = restore(store)
    if there_was:
        store.remove(store.folder / UNVERIFIED)
    return there_was


def restore(store: Store) -> bool:
    """Restore the champion that an unverified release replaced; return whether there was one."""
    found = read_unverified(store)
    if found is None:
        return False
    now, before = read_champion(store), found.before
    if now is not None and now.bundle == found.bundle and before != now:
        restore_champion(store, found.bundle, before)
        again = f"version {before.version} is in production again" if before else "nothing is in production"
        console.print(f"[yellow]A release failed: {again}.[/]")
    return True


def release_to(
    name: str,
    source: str | None = None,
    chosen: str | None = None,
    image: str | None = None,
    breaking: bool = False,
    why: str = "released",
    output: TextIO | None = None,
    commit: str | None = None,
) -> None:
    """Put a model into production in the environment `name`.

    Args:
        name: A section `[environments.NAME]` of the settings.
        source: The environment to release from; None for this project's own store.
        chosen: A bundle that was in production there; None for the current one.
        image: The image for the environment's host; None takes that of `source`, or keeps the current one.
        breaking: Release even if callers must change their requests.
        why: For the history.
        output: Receives `bundle=…` and `image=…` once they are verified.
        commit: The commit that releases; nothing is done if a later commit has released there.

    Raises:
        UserError: it cannot be copied there, or was not verified; champion and image are restored.
        Refused: it would break the callers of the version there, or was rolled back in the source environment.
    """
    settings = start_command()
    target = current_store(settings, find_environment(settings, name).store)
    origin = current_store(settings, find_environment(settings, source).store) if source else open_store(settings)
    if target.folder.resolve() == origin.folder.resolve():
        raise UserError(
            f"The store of {name} is the one to release from: give [environments.{name}] a store of its own."
        )
    bundle = choose_bundle_to_release(origin, chosen)
    image = image or running_image(settings, name, source)
    with sole(target.folder / "release.lock", f"Another release to {name} is running: wait until it ends."):
        recover(settings, name)
        last = released_commit(target)
        if commit and is_behind(settings.root, commit, last):
            console.print(
                f"Nothing is released to {name}: commit {commit[:12]} is behind {last}, which was released.",
                soft_wrap=True,
            )
            return
        if settings.environments[name].host:
            open_for_others(target.folder)  # the container reads it as another user
        before = read_champion(target)
        if before and not breaking and (old := find_bundle(target, before.bundle)):
            require_compatible(old.contract, bundle.contract, old.version, bundle.version, "add --breaking")
        try:
            put_into_production(settings, name, copy_bundle(bundle, target), image, why)
        except Exception as error:
            alert_failure(settings, name, bundle, read_champion(target), error)
            raise
        if commit:
            target.write_json(target.folder / RELEASED, {"commit": commit})
        alert_release(settings, name, before, require_champion(target), why)
    console.print(f"[green]✓[/] [bold]version {bundle.version}[/] was released to {name} ({escape(why)})")
    console.print(f"  bundle {bundle.name}{f', image {escape(image)}' if image else ''}", soft_wrap=True)
    if output is not None:
        output.write(f"bundle={bundle.name}\nimage={image or ''}\n")


def released_commit(store: Store) -> str | None:
    """Return the commit of the last release to `store`; None if it had none."""
    store.look(store.folder / RELEASED)
    found = read_json(store.folder / RELEASED)
    return str(found["commit"]) if found else None


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


def choose_bundle_to_release(store: Store, name: str | None) -> Bundle:
    """Return the bundle in production in `store`, or the one called `name`, which was in production there.

    Raises:
        UserError: nothing is in production there, or that bundle never was or was deleted.
        Refused: it was taken out of production there by hand.
    """
    champion = verified_champion(store, name)
    if name is None or name == champion.bundle:
        return open_bundle(store, champion.bundle)
    bundle = find_bundle(store, name)
    if bundle is None or name not in {change.to for change in champion.history}:
        raise UserError(
            f"No bundle {name} was in production in {store}: omit --bundle to release {champion.bundle}, which is."
        )
    if change := rolled_back(champion, bundle.version):
        raise Refused(
            f"Bundle {name} was taken out of production at {change.at} by {change.who} ({change.why}): omit "
            f"--bundle to release {champion.bundle}, which is in production in {store}."
        )
    return bundle


def verified_champion(store: Store, name: str | None) -> Champion:
    """Return the verified champion of `store`: during an unverified release, the one before, if a bundle is named.

    Raises:
        UserError: nothing is in production there, or no bundle is named and the current one is not verified.
    """
    champion = require_champion(store)
    unverified = read_unverified(store)  # read after the champion, because a release writes this first
    if unverified is None:
        return champion
    if name is None or unverified.before is None:
        raise unverified_error(store, unverified)
    return unverified.before


def running_image(settings: Settings, name: str, source: str | None) -> str | None:
    """Return the image that runs in `source`, if both environments have a host to run it on."""
    if source is None or None in (settings.environments[name].host, settings.environments[source].host):
        return None
    image = Container(settings, source).image()
    # Read after the image, because a release records itself as unverified before it replaces the image.
    require_verified(open_store(settings, settings.environments[source].store))
    return image


def recover(settings: Settings, name: str) -> None:
    """Restore champion and container after a release to the environment that was killed."""
    environment = settings.environments[name]
    store = open_store(settings, environment.store)
    unverified = read_unverified(store)
    if not undo(store):
        return
    if environment.host:
        Container(settings, name).put_back()
    what = (
        f"A release of bundle {unverified.bundle if unverified else 'unknown'} to {name} ended before it was verified"
    )
    alert(settings, "release-failed", f"{what}: {describe_champion(read_champion(store))}.", TODO)


def alert_release(settings: Settings, name: str, before: Champion | None, now: Champion, why: str) -> None:
    """Send an alert that another bundle was released and verified; do nothing if the bundle is the same."""
    if before is not None and before.bundle == now.bundle:
        return
    instead = f" in place of version {before.version}" if before else ""
    todo = TODO
    if before is not None:
        todo += f' `ml release --to {name} --bundle {before.bundle} --why "…"` restores the previous one.'
    what = f"Version {now.version} was released to {name} and verified there{instead}: {why}."
    alert(settings, "released", what, todo, key=f"released {name} {now.move}")


def alert_failure(settings: Settings, name: str, bundle: Bundle, now: Champion | None, error: Exception) -> None:
    """Send an alert that a release was rolled back."""
    reason = str(error) or type(error).__name__
    what = f"The release of version {bundle.version} to {name} was rolled back, {describe_champion(now)}: {reason}"
    alert(settings, "release-failed", what, TODO)


def describe_champion(champion: Champion | None) -> str:
    """Return a phrase for the version in production."""
    return f"version {champion.version} is in production" if champion else "nothing is in production"


def copy_bundle(bundle: Bundle, store: Store) -> Bundle:
    """Copy a bundle into `store` in one step, unless it is there completely.

    Raises:
        UserError: the copy differs, as on a full or faulty disk.
    """
    there = find_bundle(store, bundle.name)
    if there is not None:
        return there
    target = bundle_path(store, bundle.name)
    with scratch(target) as made:
        shutil.copytree(bundle.path, made)
        if digest_folder(made) != bundle.digest:
            raise UserError(f"The copy of {bundle.path} to {target} differs from it: see the disk of {store}.")
        store.remove(target)  # a damaged copy
        store.publish(made, target)
    return open_bundle(store, bundle.name)


def put_into_production(settings: Settings, name: str, bundle: Bundle, image: str | None, why: str) -> None:
    """Put `bundle` into production in the environment, with `image` if one is given, and verify it.

    Raises:
        UserError: the verification failed; both were restored.
    """
    environment = settings.environments[name]
    store = open_store(settings, environment.store)
    host = _open_container(settings, name, store).replaced(image) if environment.host and image else nullcontext()
    with noted(store, bundle), host, _moved_champion(store, bundle, why):
        try:
            verify(environment.url, bundle, environment.wait_seconds)
        except UserError as error:
            raise UserError(f"{error}{_hint_of_address(name, environment)}") from error


def _open_container(settings: Settings, name: str, store: Store) -> Container:
    """Return the environment's container.

    Raises:
        UserError: other machines could reach it, and it would have no access control.
    """
    container = Container(settings, name)
    if not (container.open or read_keys(store)):
        raise UserError(
            f"Other machines can reach {container.place} ([environments.{name}] address), and the service there has no "
            f"access control: create a key with `ml keys create NAME --to {name}`, or set [access] open = true."
        )
    return container


def _hint_of_address(name: str, environment: Environment) -> str:
    """Return a hint if the container is published on the loopback address and called from elsewhere."""
    url = urlsplit(environment.url)
    if not environment.host or url.scheme != "http" or not environment.address.is_loopback:
        return ""
    if is_loopback(url.hostname or ""):
        return ""
    return (
        f" Its container is published on {environment.address} of {environment.host} alone: where no proxy there "
        f'passes {environment.url} on to it, set address = "0.0.0.0" in [environments.{name}].'
    )


@contextmanager
def _moved_champion(store: Store, bundle: Bundle, why: str) -> Iterator[None]:
    """Make `bundle` the store's champion; if the block fails, restore the one before."""
    before = read_champion(store)
    try:
        if before is None or before.bundle != bundle.name:
            move_champion(store, bundle, "release", why, expected=before.bundle if before else None)
        yield
    except BaseException:
        restore(store)  # before the container is restored
        raise
