"""The smoke test: starts the real service with the bundle, and checks its answers to real requests."""

import ast
import http.client
import json
import math
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ondol.config import Settings
from ondol.errors import UserError
from ondol.orchestration.guard import Child, free_port
from ondol.project import Project, import_code
from ondol.redaction import add_authorization
from ondol.registry.bundles import new_bento_home
from ondol_serving.decision import DecisionRule, measure_margins

START_SECONDS = 90.0
REQUEST_SECONDS = 30.0
REFUSED = "Refused a bundle, there is none yet: "  # what `ondol_serving.serving` logs
TOLERANCE = 1e-5  # the least tolerance: answers are float32, scikit-learn predicts float64
_running: ContextVar["SmokeService | None"] = ContextVar("smoke_service", default=None)


class SmokeService:
    """The project's service in a separate process, which starts while the bundle is still being built."""

    def __init__(self, settings: Settings) -> None:
        """Start it on a free port of the loopback, without a bundle."""
        self.port = free_port()
        self.bundle = settings.home / "smoke" / str(self.port)
        self.bundle.parent.mkdir(parents=True, exist_ok=True)
        self.bundle.unlink(missing_ok=True)
        command = [sys.executable, "-m", "bentoml", "serve", "service.service:Service"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--working-dir", str(settings.root)]
        path = os.pathsep.join([str(settings.root), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = os.environ | {"ML_BUNDLE": str(self.bundle), "ML_SERVICE__WORKERS": "1", "PYTHONPATH": path}
        # Its requests are not traffic, and it needs no key: those of the store are not read.
        env |= {"ML_LOG__ENABLED": "0", "ML_STORE": str(self.bundle.with_suffix(".store")), "ML_ACCESS__JWKS": ""}
        env |= {"ML_ACCESS__REDIS": "", "ML_SERVICE__GRPC_PORT": ""}
        home, kept_open = new_bento_home(settings)
        self.child = Child(command, env | home, settings.root, settings.home / "logs" / "smoke-service.log", kept_open)
        for file in kept_open:
            os.close(file)  # the child keeps it open

    def offer(self, bundle: Path) -> None:
        """Let the service load `bundle`, and wait until it is ready.

        Raises:
            UserError: it ended, or was not ready in time.
        """
        self.bundle.symlink_to(bundle)
        self.wait()

    def wait(self) -> None:
        """Wait until the service is ready.

        Raises:
            UserError: it ended, or was not ready in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if refusal := self._refusal():
                raise UserError(f"The service refused the new bundle: {refusal}")
            ended = not self.child.alive()
            if ended:
                import_service()  # raises what is wrong with service.py, if that is the reason
            if ended or time.monotonic() > deadline:
                raise UserError(
                    f"The service did not become ready on the new bundle ({self.child.tail()}): see {self.child.log}."
                )
            time.sleep(0.05)

    def predict(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the service's answer to a request.

        Raises:
            UserError: it refused or failed.
        """
        return request_prediction(f"http://127.0.0.1:{self.port}", body)

    def stop(self) -> None:
        """Stop the service; it shuts down while the run continues."""
        self.child.dismiss()
        self.bundle.unlink(missing_ok=True)

    def _refusal(self) -> str | None:
        """Return why the service refused the bundle, if it did: then it would wait for another one."""
        lines = self.child.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.partition(REFUSED)[2] for line in lines if REFUSED in line), None)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, http.client.HTTPException):
            return False


def check_service(root: Path) -> None:
    """Check `service/service.py` by parsing it; import it, which takes a second, only if it looks wrong.

    Raises:
        UserError: it cannot be imported, or has no service.
    """
    try:
        tree = ast.parse((root / "service" / "service.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        import_service()
        return
    named = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    named += [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    services = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Service"]
    missing = any(find_spec(name.partition(".")[0]) is None for name in named)
    if missing or not any(node.decorator_list and node.bases for node in services):
        import_service()


def import_service() -> None:
    """Import `service/service.py`, as BentoML does.

    Raises:
        UserError: it cannot be imported, or has no service.
    """
    if not hasattr(getattr(import_code("service.service"), "Service", None), "to_asgi"):
        raise UserError("service/service.py has no service named Service: a class of this name, decorated by @service.")


@contextmanager
def smoke_service(project: Project) -> Iterator[SmokeService]:
    """Yield the service while it starts, and stop it afterwards; a nested block yields the service of the outer one.

    Raises:
        UserError: `service/service.py` cannot be imported, or has no service.
    """
    outer = _running.get()
    if outer is not None:
        yield outer
        return
    check_service(project.settings.root)
    service = SmokeService(project.settings)
    token = _running.set(service)
    try:
        yield service
    finally:
        _running.reset(token)
        service.stop()


def request_prediction(base: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of the service at the address `base` to a request, with retries while it is busy.

    Raises:
        UserError: it refused or failed.
    """
    end = time.monotonic() + REQUEST_SECONDS
    while (answer := _request_once(base, body)) is None:
        if time.monotonic() > end:
            raise UserError(f"The service at {base} was too busy for the smoke test for {REQUEST_SECONDS:.0f} s.")
        time.sleep(1.0)
    return answer


def explain_refusal(status: int) -> str:
    """Return what to do if a service answers 401 or 403."""
    if status == 401 and os.environ.get("ML_API_KEY"):
        return "it refuses the key in ML_API_KEY: it is unknown, expired or revoked (`ml keys list`)."
    if status == 401:
        return 'it asks for a key: set ML_API_KEY to one with the scope "predict" (`ml keys create NAME`).'
    return 'it answers 403: see whether the key in ML_API_KEY has the scope "predict" (`ml keys list`).'


def _request_once(base: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the answer of the service, None if it is busy."""
    headers = {"Content-Type": "application/json", "X-Rollout-Key": "smoke test"}  # the same version answers each time
    request = urllib.request.Request(f"{base}/predict", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(add_authorization(request), timeout=REQUEST_SECONDS) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        if error.code == 503 and "Retry-After" in error.headers:
            return None
        if error.code in (401, 403):
            raise UserError(f"The service refuses the smoke test: {explain_refusal(error.code)}") from error
        body_text = error.read().decode(errors="replace")[:500]
        raise UserError(f"The service answered the smoke test with {error.code}: {body_text}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"The service gave the smoke test no answer ({error}): see its log.") from error


def require_same(
    answer: dict[str, Any], expected: list[dict[str, Any]], tolerance: float, rule: DecisionRule | None = None
) -> None:
    """Check that the service's predictions equal scikit-learn's, within the tolerance of parity.

    Args:
        answer: The answer of the service.
        expected: The predictions of scikit-learn.
        tolerance: The largest allowed difference of a probability.
        rule: How labels are decided.

    Raises:
        UserError: one differs.
    """
    given = answer.get("predictions", [])
    if len(given) != len(expected):
        raise UserError(f"The smoke test sent {len(expected)} rows and the service answered {len(given)}.")
    unit = sum(abs(want.get("value", 0.0)) for want in expected) / max(
        len(expected), 1
    )  # the error of float32 sums depends on the scale
    for number, (got, want) in enumerate(zip(given, expected, strict=True)):
        if not _same(got, want, unit, max(tolerance, TOLERANCE), rule):
            raise UserError(f"The smoke test's row {number} was answered {got}, but the model says {want}.")


def _same(got: dict[str, Any], want: dict[str, Any], unit: float, tolerance: float, rule: DecisionRule | None) -> bool:
    if "value" in want:
        return math.isclose(got["value"], want["value"], rel_tol=tolerance, abs_tol=tolerance * unit)
    answered, expected = got["probabilities"], want["probabilities"]
    tie = measure_margins(rule, np.array([[*expected.values()]]))[0] <= tolerance
    return (got["label"] == want["label"] or tie) and all(
        abs(answered[k] - p) <= tolerance for k, p in expected.items()
    )
