"""Predicts the champion's requests with a challenger that answers none of them, and records what it predicts."""

import asyncio
import time
from typing import Any

from pydantic_core import to_json

from ondol_serving.answers import Accepted, log_failure
from ondol_serving.bundle import Bundle
from ondol_serving.contract import Rows
from ondol_serving.log import Shadowed, prediction_log
from ondol_serving.rollout import Rollout

MOST_REQUESTS = 64  # of one call; others that arrive in the meantime are left out
MOST_ROWS = 256
SHARE = 0.05  # of the time of the process
PAUSE_SECONDS = 0.1


class Shadow:
    """Collects the requests of the running event loop, and predicts some of them together in a thread.

    Under load, it predicts a sample of the requests: its work takes at most a twentieth of the time, so callers wait
    hardly longer.
    """

    def __init__(self) -> None:
        """Start without requests."""
        self._loop = asyncio.get_running_loop()
        self._rollout: Rollout | None = None  # whose requests wait
        self._waiting: list[Accepted] = []
        self._rows = 0
        self._scheduled = False
        self._pause = PAUSE_SECONDS
        self._task: asyncio.Task[None] | None = None

    def add(self, rollout: Rollout, request: Accepted) -> None:
        """Add an answered request, unless enough of them wait; those of an earlier rollout are dropped."""
        if self._rollout is None or self._rollout.challenger is not rollout.challenger:
            self._waiting, self._rows = [], 0
        self._rollout = rollout
        if len(self._waiting) >= MOST_REQUESTS or self._rows >= MOST_ROWS:
            return
        self._waiting.append(request)
        self._rows += len(request.rows)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_later(self._pause, self._start)

    def _start(self) -> None:
        self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        rollout = self._rollout
        assert rollout is not None
        requests, self._waiting, self._rows = self._waiting, [], 0
        started = time.perf_counter()
        try:
            await asyncio.to_thread(predict_shadows, rollout, requests)
        finally:
            self._pause = max(PAUSE_SECONDS, (time.perf_counter() - started) / SHARE)
            self._scheduled = False


def predict_shadows(rollout: Rollout, requests: list[Accepted]) -> None:
    """Predict requests with the challenger, and record its predictions, or that it failed.

    The first request is predicted alone by both bundles, one after the other, to compare their times.
    """
    challenger, recorder = rollout.challenger, rollout.challenger.recorder
    shadowed: list[Shadowed] = []
    for place, request in enumerate(requests):
        try:
            predictions, taken = _measure(challenger, challenger.parse(request.body))
            times = (taken, _measure(rollout.champion, request.rows)[1]) if place == 0 else None
            shadowed.append(Shadowed(request.request_id, to_json(predictions), times))
        except Exception as error:  # a model may raise anything
            log_failure(request._replace(bundle=challenger, role="shadow"), error)
    if recorder.rules.enabled:
        prediction_log.append_shadows(recorder, shadowed)


def _measure(bundle: Bundle, rows: Rows) -> tuple[list[dict[str, Any]], float]:
    """Return the predictions for `rows`, and the milliseconds that they took."""
    started = time.perf_counter()
    predictions = bundle.predict(rows)
    return predictions, (time.perf_counter() - started) * 1000
