"""Requests that arrive together go through the model together.

A call of the model costs far more than one more row in it. So the rows of all requests that the event loop
has read by now are predicted in one call; no request waits for others to arrive, so a lone client loses no time.
BentoML's own adaptive batching does wait, in steps of a millisecond; `benchmarks/bench_serving.py` of the
template compares the two.
"""

import asyncio
from itertools import groupby
from typing import Any

from ondol_serving.bundle import Bundle
from ondol_serving.metrics import counters

MANY_ROWS = 64  # more, of one request or of many together, are predicted in a thread: the event loop stays free

Predictions = list[dict[str, Any]]
Job = tuple[Bundle, list[Any], "asyncio.Future[Predictions]"]


class Together:
    """Predicts for many requests at a time. One for each event loop."""

    def __init__(self) -> None:
        """Start with nothing to do."""
        self._jobs: list[Job] = []
        self._worker: asyncio.Task[None] | None = None

    async def predict(self, bundle: Bundle, rows: list[Any]) -> Predictions:
        """Return the predictions of `bundle` for `rows`."""
        if len(rows) > MANY_ROWS:
            return await asyncio.to_thread(_predict, bundle, rows)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Predictions] = loop.create_future()
        self._jobs.append((bundle, rows, future))
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Predict until no request waits; what arrives during a slow call makes the next batch."""
        try:
            while self._jobs:
                jobs, self._jobs = self._jobs, []
                for bundle, run in groupby(jobs, key=lambda job: job[0]):
                    await _answer(bundle, list(run))
        finally:
            self._worker = None


async def _answer(bundle: Bundle, jobs: list[Job]) -> None:
    """Predict the rows of `jobs` in one call; where it fails, each alone, so that none spoils the others."""
    rows = [row for _, rows, _ in jobs for row in rows]
    try:
        slow = bundle.runtime.slow or len(rows) > MANY_ROWS
        predictions = await asyncio.to_thread(_predict, bundle, rows) if slow else _predict(bundle, rows)
    except Exception as error:
        if len(jobs) > 1:
            for job in jobs:
                await _answer(bundle, [job])
        elif not jobs[0][2].done():
            jobs[0][2].set_exception(error)
        return
    start = 0
    for _, own, future in jobs:
        if not future.done():  # done: the client has gone
            future.set_result(predictions[start : start + len(own)])
        start += len(own)


def _predict(bundle: Bundle, rows: list[Any]) -> Predictions:
    predictions = bundle.predict(rows)
    counters().count(bundle, rows)  # after: what failed is tried again
    return predictions
