"""Predicts requests that arrive together in one call of the model."""

import asyncio
from itertools import islice
from typing import Any, NamedTuple

from ondol_serving.admission import HEAVY_BYTES
from ondol_serving.answers import Accepted, Predictions, write_answers
from ondol_serving.bundle import Bundle
from ondol_serving.metrics import counters

MANY_ROWS = 64  # larger requests or batches are predicted in a thread, so that the event loop stays free
Result = Predictions | bytes | Exception


class Job(NamedTuple):
    """Rows to predict. With a request, the result is the body of its answer, else the predictions."""

    bundle: Bundle
    rows: list[Any]
    request: Accepted | None = None


class Batcher:
    """Collects the requests of the running event loop.

    A call of the model costs far more than an additional row. So one call predicts the rows of all requests that the
    event loop has read so far. No request waits for later ones, so a single client is not slowed down. BentoML's own
    adaptive batching waits in steps of a millisecond; `benchmarks/bench_serving.py` of the template compares them.
    """

    def __init__(self) -> None:
        """Create a batcher without requests."""
        self._loop = asyncio.get_running_loop()  # asked once: up to Python 3.11, each time is a system call
        self._jobs: list[Job] = []
        self._futures: list[asyncio.Future[Any]] = []
        self._busy = False  # whether a call is scheduled, or runs in a thread
        self._task: asyncio.Task[None] | None = None  # the event loop itself holds only a weak reference

    async def predict(self, bundle: Bundle, rows: list[Any]) -> Predictions:
        """Return the predictions of `bundle` for `rows`."""
        predictions: Predictions = await self._add(Job(bundle, rows), len(rows) > MANY_ROWS)
        return predictions

    async def answer(self, request: Accepted) -> bytes:
        """Return the body of the answer to `request`, which has been logged."""
        heavy = len(request.rows) > MANY_ROWS or len(request.body) > HEAVY_BYTES
        body: bytes = await self._add(Job(request.bundle, request.rows, request), heavy)
        return body

    async def _add(self, job: Job, heavy: bool) -> Any:
        if heavy:
            [result] = await asyncio.to_thread(_run, [job])
            if isinstance(result, Exception):
                raise result
            return result
        future = self._loop.create_future()
        self._jobs.append(job)
        self._futures.append(future)
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._run_waiting)
        return await future

    def _run_waiting(self) -> None:
        """Run the jobs of one bundle that wait. A slow call runs in a thread; jobs that arrive meanwhile come next."""
        jobs, futures = self._take_batch()
        if jobs[0].bundle.runtime.slow or sum([len(job.rows) for job in jobs]) > MANY_ROWS:
            self._task = self._loop.create_task(self._run_in_thread(jobs, futures))
        else:
            _resolve(futures, _run_safely(jobs))
            self._run_next()

    def _take_batch(self) -> tuple[list[Job], list["asyncio.Future[Any]"]]:
        """Remove and return the jobs of the first job's bundle, with their futures.

        During a rollout, jobs of two bundles wait together. They run one after the other, so that the answers of the
        first are sent while the second runs.
        """
        jobs, self._jobs = self._jobs, []
        futures, self._futures = self._futures, []
        bundle = jobs[0].bundle
        others = [place for place, job in enumerate(jobs) if job.bundle is not bundle]
        if not others:
            return jobs, futures
        self._jobs, self._futures = [jobs[place] for place in others], [futures[place] for place in others]
        first = [place for place, job in enumerate(jobs) if job.bundle is bundle]
        return [jobs[place] for place in first], [futures[place] for place in first]

    def _run_next(self) -> None:
        self._busy = bool(self._jobs)
        if self._busy:
            self._loop.call_soon(self._run_waiting)

    async def _run_in_thread(self, jobs: list[Job], futures: list["asyncio.Future[Any]"]) -> None:
        try:
            _resolve(futures, await asyncio.to_thread(_run_safely, jobs))
        finally:
            self._run_next()


def _resolve(futures: list["asyncio.Future[Any]"], results: list[Result]) -> None:
    for future, result in zip(futures, results, strict=True):
        if future.done():  # the client has disconnected
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _run_safely(jobs: list[Job]) -> list[Result]:
    """Return the result of each job, also after an error that is not of the model: every request must be answered."""
    try:
        return _run(jobs)
    except Exception as error:
        return [error] * len(jobs)


def _run(jobs: list[Job]) -> list[Result]:
    """Predict the jobs of one bundle in one call; if it fails, predict each separately, so that only bad ones fail."""
    bundle, rows = jobs[0].bundle, [row for job in jobs for row in job.rows]
    try:
        predictions = bundle.predict(rows)
    except Exception as error:
        return [error] if len(jobs) == 1 else [_run([job])[0] for job in jobs]
    counters().count(bundle, rows)  # after the call: a failed batch is tried again
    found = iter(predictions)
    results: list[Result] = [list(islice(found, len(job.rows))) for job in jobs]
    asked = [place for place, job in enumerate(jobs) if job.request is not None]
    if asked:
        bodies = write_answers([(jobs[place].request, results[place]) for place in asked])  # type: ignore[misc]
        for place, body in zip(asked, bodies, strict=True):
            results[place] = body
    return results
