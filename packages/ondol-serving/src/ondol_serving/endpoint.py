"""The endpoint `/predict`: reads a body, predicts requests in batches and writes an answer.

BentoML gets the classes for reading and writing as `input_spec` and `output_spec`. The bundle that is in production
when a request arrives both validates and predicts it, so an answer never mixes two models.
"""

import asyncio
import json
import secrets
import time
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from bentoml import IODescriptor
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response

from ondol_serving.bundle import Bundle
from ondol_serving.log import Answered, prediction_log
from ondol_serving.metrics import counters
from ondol_serving.middleware import HEAVY_BYTES
from ondol_serving.request import Envelope, shorten

if TYPE_CHECKING:
    from starlette.requests import Request

LONGEST_PLACE = 200
MANY_ROWS = 64  # larger requests or batches are predicted in a thread, so that the event loop stays free
Predictions = list[dict[str, Any]]
_write = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class InvalidRequest:
    """A request that does not match the contract; it is answered with 400."""

    errors: list[dict[str, Any]]


class Accepted(NamedTuple):
    """A validated request: the feature values of each row, and the bundle that validated them and will predict them.

    The other fields are for the log: the body, the number of its fields, its time of arrival (`time.perf_counter`), and
    whether it has columns that are neither read nor logged.
    """

    bundle: Bundle
    rows: list[tuple[Any, ...]]
    body: bytes
    keys: int
    arrived: float
    unread: bool = False

    @property
    def heavy(self) -> bool:
        """Whether predicting it would block the event loop."""
        return len(self.body) > HEAVY_BYTES or len(self.rows) > MANY_ROWS


class Answer(NamedTuple):
    """The predictions of one request."""

    asked: Accepted
    predictions: list[dict[str, Any]]


class Prediction(BaseModel):
    """The answer for one row: a label and its probabilities, or a value."""

    label: Any = None
    probabilities: dict[str, float | None] | None = None
    value: float | None = None


class PredictRequest(IODescriptor, Envelope):
    """Rows to predict. The fields of a row are those of the model in production."""

    __root_input__: ClassVar[bool] = True

    @classmethod
    async def from_http_request(cls, request: "Request", serde: Any) -> Any:
        """Return the validated rows of a request, or its errors, by the bundle that is in production at its arrival."""
        bundle: Bundle = request.scope["bundle"]
        body, arrived = request.scope["body"], time.perf_counter()
        try:
            many = len(body) > HEAVY_BYTES
            read = await asyncio.to_thread(bundle.read, body) if many else bundle.read(body)
            return Accepted(bundle, read.rows, read.body, read.keys, arrived, read.unread)
        except ValidationError as error:
            return InvalidRequest(list_errors(error))


class PredictResponse(IODescriptor):
    """One prediction for each row, in the order of the rows."""

    model_config = ConfigDict(protected_namespaces=())

    request_id: str = Field(description="Names this request; also in the header X-Request-ID.")
    model_version: str
    predictions: list[Prediction]

    @classmethod
    async def to_http_response(cls, obj: Answer | InvalidRequest, serde: Any) -> Response:
        """Log the answer and return it, or return a 400 for an invalid request."""
        if isinstance(obj, InvalidRequest):
            return _refuse(obj)
        asked, request_id = obj.asked, secrets.token_hex(16)
        write = asyncio.to_thread(_write_and_log, obj, request_id) if asked.heavy else None
        predictions = await write if write else _write_and_log(obj, request_id)
        head = f'{{"request_id":"{request_id}","model_version":{_write(asked.bundle.version)},"predictions":'
        headers = {"X-Request-ID": request_id}
        return Response(b"".join((head.encode(), predictions, b"}")), headers=headers, media_type="application/json")


def _write_and_log(answer: Answer, request_id: str) -> bytes:
    """Log the predictions and return them as JSON."""
    asked, predictions = answer.asked, _write(answer.predictions).encode()
    if asked.bundle.recorder.rules.enabled:
        ms = (time.perf_counter() - asked.arrived) * 1000
        answered = Answered(request_id, ms, asked.body, asked.keys, predictions, asked.unread)
        prediction_log.append(asked.bundle.recorder, answered)
    return predictions


def list_errors(error: ValidationError) -> list[dict[str, Any]]:
    """Return the errors of an invalid request, without the values that were sent."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [dict(one) | {"loc": list(one["loc"])} for one in found]


def _refuse(refusal: InvalidRequest) -> JSONResponse:
    first = refusal.errors[0]
    place = shorten(".".join(map(str, first["loc"])) or "body", LONGEST_PLACE)
    more = f" (and {len(refusal.errors) - 1} more)" if len(refusal.errors) > 1 else ""
    return JSONResponse({"error": f"{place}: {first['msg']}{more}", "detail": refusal.errors}, 400)


Job = tuple[Bundle, list[Any], "asyncio.Future[Predictions]"]


class Batcher:
    """Predicts requests that arrive together in one call of the model. One for each event loop.

    A call of the model costs far more than an additional row. So one call predicts the rows of all requests that the
    event loop has read so far. No request waits for later ones, so a single client is not slowed down. BentoML's own
    adaptive batching waits in steps of a millisecond; `benchmarks/bench_serving.py` of the template compares them.
    """

    def __init__(self) -> None:
        """Create a batcher without requests."""
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
        """Predict until no request waits; requests that arrive during a slow call form the next batch."""
        try:
            while self._jobs:
                jobs, self._jobs = self._jobs, []
                for bundle, run in groupby(jobs, key=lambda job: job[0]):
                    await _predict_batch(bundle, list(run))
        finally:
            self._worker = None


async def _predict_batch(bundle: Bundle, jobs: list[Job]) -> None:
    """Predict the rows of `jobs` in one call; if it fails, predict each job separately, so that only bad ones fail."""
    rows = [row for _, rows, _ in jobs for row in rows]
    try:
        slow = bundle.runtime.slow or len(rows) > MANY_ROWS
        predictions = await asyncio.to_thread(_predict, bundle, rows) if slow else _predict(bundle, rows)
    except Exception as error:
        if len(jobs) > 1:
            for job in jobs:
                await _predict_batch(bundle, [job])
        elif not jobs[0][2].done():
            jobs[0][2].set_exception(error)
        return
    start = 0
    for _, own, future in jobs:
        if not future.done():  # done: the client has disconnected
            future.set_result(predictions[start : start + len(own)])
        start += len(own)


def _predict(bundle: Bundle, rows: list[Any]) -> Predictions:
    predictions = bundle.predict(rows)
    counters().count(bundle, rows)  # after the call: a failed batch is tried again
    return predictions
