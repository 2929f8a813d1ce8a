"""`ml smoke URL`: verify that a remote service answers with the version that was released to it."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from rich.markup import escape

from ondol.cli.console import console, current_store, open_project
from ondol.deployment.smoke import REQUEST_SECONDS, ask, require_same
from ondol.errors import UserError
from ondol.registry.bundles import Bundle, open_bundle
from ondol.registry.champion import require_champion

WAIT_SECONDS = 60.0
PAUSE_SECONDS = 0.2
GROUP = "service-sklearn"  # what the Dockerfile installs for a bundle without ONNX
TIMES = 5  # in a row, each over a connection of its own: a service has several workers and swaps in each


def smoke_url(url: str) -> None:
    """Prove the service at `url` against the champion of the environment that has this address, else of this project.

    Raises:
        UserError: nothing was released, or the service is not ready, serves another version or answers wrongly.
    """
    settings = open_project()
    known = (e for e in settings.environments.values() if e.url.rstrip("/") == url.rstrip("/"))
    environment = next(known, None)
    store = current_store(settings, environment.store) if environment else settings.store_path
    wait = environment.wait_seconds if environment else WAIT_SECONDS
    prove(url, open_bundle(store, require_champion(store).bundle), wait)


def prove(url: str, bundle: Bundle, wait_seconds: float = WAIT_SECONDS) -> None:
    """Prove that the service at `url` is ready, serves `bundle`, and answers its example as its model does.

    Args:
        url: The service's address.
        bundle: What it must serve.
        wait_seconds: How long it may take to be ready, and then to swap.

    Raises:
        UserError: one of these does not hold, also after some waiting.
    """
    try:
        _prove(url.rstrip("/"), bundle, wait_seconds)
    except UserError as error:
        if bundle.meta.get("runtime") != "sklearn":
            raise
        raise UserError(
            f"{error} Version {bundle.version} is served by scikit-learn itself: was the service's image built with "
            f"GROUP={GROUP}?"
        ) from None


def _prove(base: str, bundle: Bundle, wait_seconds: float) -> None:
    _wait(lambda: _require_ready(base), wait_seconds)
    console.print(f"[green]✓[/] {escape(base)} is ready")
    _wait(lambda: _require_version(base, bundle), wait_seconds)
    console.print(f"[green]✓[/] it serves version {bundle.version} ({bundle.name})")
    meta = bundle.meta
    answer = ask(base, meta["example"])
    require_same(answer, meta["expected"], meta["deploy"]["tolerance"])
    if answer.get("model_version") != bundle.version:
        raise UserError(f"{base} answered by version {answer.get('model_version')}, not {bundle.version}.")
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
    """Repeat a check until it passes; after `seconds` its error stands."""
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
        UserError: there is none: something else than the service answers.
    """
    try:
        return dict(json.loads(_get(url, "does not tell its model")))
    except (ValueError, RecursionError):
        raise UserError(f"{url} answers, but not as the service does: see whether the address is right.") from None


def _get(url: str, lacks: str) -> bytes:
    """Return what `url` answers.

    Raises:
        UserError: there is no answer, or a refusal.
    """
    try:
        with urllib.request.urlopen(url, timeout=REQUEST_SECONDS) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        raise UserError(f"{url} {lacks}: it answers {error.code}; see the service's log.") from None
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url} {lacks} ({error}): see whether the address is right and the service runs.") from None
