"""How `/predict` reads a body and writes an answer, in place of BentoML's generic reading and writing.

BentoML takes both as its `input_spec` and `output_spec`. The request type is that of the bundle in production
when the request arrives, and that bundle predicts it, so that a swap never mixes two models in one answer.
"""

import asyncio
import json
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from bentoml import IODescriptor
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response

from ondol_serving.bundle import Bundle
from ondol_serving.contract import Envelope
from ondol_serving.load import HEAVY_BYTES
from ondol_serving.log import prediction_log
from ondol_serving.reading import shorten
from ondol_serving.record import Answered
from ondol_serving.together import MANY_ROWS

if TYPE_CHECKING:
    from starlette.requests import Request

LONGEST_PLACE = 200
_write = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was not of the bundle's type, on its way to becoming a 400."""

    errors: list[dict[str, Any]]


class Accepted(NamedTuple):
    """A request's rows, each its features' values, and the bundle that read and will predict them.

    The rest is for the log: the body, how many fields it has, when it was there (`time.perf_counter`), and whether it
    holds columns that are neither read nor logged.
    """

    bundle: Bundle
    rows: list[tuple[Any, ...]]
    body: bytes
    keys: int
    arrived: float
    unread: bool = False

    @property
    def heavy(self) -> bool:
        """Whether the event loop would be held up by it."""
        return len(self.body) > HEAVY_BYTES or len(self.rows) > MANY_ROWS


class Answer(NamedTuple):
    """The predictions, and the request that they answer."""

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
        """Return the request's rows, validated by the bundle that the gate saw in production, or its refusal."""
        bundle: Bundle = request.scope["bundle"]
        body, arrived = request.scope["body"], time.perf_counter()
        try:
            many = len(body) > HEAVY_BYTES
            read = await asyncio.to_thread(bundle.read, body) if many else bundle.read(body)
            return Accepted(bundle, read.rows, read.body, read.keys, arrived, read.unread)
        except ValidationError as error:
            return Refusal(explain(error))


class PredictResponse(IODescriptor):
    """One prediction for each row, in the order of the rows."""

    model_config = ConfigDict(protected_namespaces=())

    request_id: str = Field(description="Names this request; also in the header X-Request-ID.")
    model_version: str
    predictions: list[Prediction]

    @classmethod
    async def to_http_response(cls, obj: Answer | Refusal, serde: Any) -> Response:
        """Write the answer, once it is in the log, or the 400 of a refused request."""
        if isinstance(obj, Refusal):
            return _refuse(obj)
        asked, request_id = obj.asked, secrets.token_hex(16)
        write = asyncio.to_thread(_write_and_log, obj, request_id) if asked.heavy else None
        predictions = await write if write else _write_and_log(obj, request_id)
        head = f'{{"request_id":"{request_id}","model_version":{_write(asked.bundle.version)},"predictions":'
        headers = {"X-Request-ID": request_id}
        return Response(b"".join((head.encode(), predictions, b"}")), headers=headers, media_type="application/json")


def _write_and_log(answer: Answer, request_id: str) -> bytes:
    """Return the predictions as JSON, once they are in the log."""
    asked, predictions = answer.asked, _write(answer.predictions).encode()
    if asked.bundle.recorder.rules.enabled:
        ms = (time.perf_counter() - asked.arrived) * 1000
        answered = Answered(request_id, ms, asked.body, asked.keys, predictions, asked.unread)
        prediction_log.append(asked.bundle.recorder, answered)
    return predictions


def explain(error: ValidationError) -> list[dict[str, Any]]:
    """Return the errors of a request that was read, without the values that were sent."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [dict(one) | {"loc": list(one["loc"])} for one in found]


def _refuse(refusal: Refusal) -> JSONResponse:
    first = refusal.errors[0]
    place = shorten(".".join(map(str, first["loc"])) or "body", LONGEST_PLACE)
    more = f" (and {len(refusal.errors) - 1} more)" if len(refusal.errors) > 1 else ""
    return JSONResponse({"error": f"{place}: {first['msg']}{more}", "detail": refusal.errors}, 400)
