"""The smoke test: the real service, started on a bundle, asked for real predictions."""

import json
import math
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from flows.errors import UserError
from flows.guard import Child, free_port
from flows.settings import Settings

START_SECONDS = 90.0
REQUEST_SECONDS = 30.0
TOLERANCE = 1e-5  # answers against the compiled model's own, in float32


class SmokeService:
    """The project's service in a process of its own, on a bundle that may be written later."""

    def __init__(self, settings: Settings, bundle: Path) -> None:
        """Start it on a free port of the loopback."""
        self.port = free_port()
        command = [sys.executable, "-m", "bentoml", "serve", "service.service:Service"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--working-dir", str(settings.root)]
        env = os.environ | {"ML_BUNDLE": str(bundle), "PYTHONPATH": os.pathsep.join([str(settings.root), *sys.path[1:]])}
        self.child = Child(command, env, settings.root, settings.home / "logs" / "smoke-service.log")

    def wait(self) -> None:
        """Wait until the service is ready.

        Raises:
            UserError: it ended, or was not ready in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if not self.child.alive() or time.monotonic() > deadline:
                raise UserError(f"The service did not become ready on the new bundle ({self.child.tail()}): see {self.child.log}.")
            time.sleep(0.05)

    def predict(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the service's answer to a request.

        Raises:
            UserError: it refused or failed.
        """
        data = json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}/predict"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            raise UserError(f"The service answered the smoke test with {error.code}: {said}") from error

    def stop(self) -> None:
        """End the service."""
        self.child.stop()

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def require_same(answer: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    """Check that the service's predictions are those that the model gives.

    Raises:
        UserError: one differs.
    """
    given = answer.get("predictions", [])
    if len(given) != len(expected):
        raise UserError(f"The smoke test sent {len(expected)} rows and the service answered {len(given)}.")
    for number, (got, want) in enumerate(zip(given, expected, strict=True)):
        if not _same(got, want):
            raise UserError(f"The smoke test's row {number} was answered {got}, but the model says {want}.")


def _same(got: dict[str, Any], want: dict[str, Any]) -> bool:
    if "value" in want:
        return math.isclose(got["value"], want["value"], rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    near = all(abs(got["probabilities"][k] - p) <= TOLERANCE for k, p in (want.get("probabilities") or {}).items())
    return bool(got["label"] == want["label"]) and near
