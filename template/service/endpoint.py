"""How `/predict` reads a body and writes an answer, in place of BentoML's generic reading and writing.

BentoML takes both as its `input_spec` and `output_spec`. The request type is that of the bundle in service
when the request arrives, and that bundle predicts it, so that a swap never mixes two models in one answer.
"""

import json
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from bentoml import IODescriptor
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response

from service.bundle import Bundle
from service.contract import Envelope
from service.log import prediction_log
from service.record import Answered

if TYPE_CHECKING:
    from starlette.requests import Request

MOST_ERRORS = 100
_write = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was not of the bundle's type, on its way to becoming a 400."""

    errors: list[dict[str, Any]]


class Accepted(NamedTuple):
    """A request's rows, each its features' values, and the bundle that read and will predict them.

    The rest is for the log: the body, how many fields it has, and when it was there (`time.perf_counter`).
    """

    bundle: Bundle
    rows: list[tuple[Any, ...]]
    body: bytes
    keys: int
    arrived: float


class Answer(NamedTuple):
    """The predictions, and the request that they answer."""

    asked: Accepted
    predictions: list[dict[str, Any]]


class Prediction(BaseModel):
    """The answer for one row: a label and its probabilities, or a value."""

    label: Any = None
    probabilities: dict[str, float] | None = None
    value: float | None = None


class PredictRequest(IODescriptor, Envelope):
    """Rows to predict. The fields of a row are those of the model in service."""

    __root_input__: ClassVar[bool] = True

    @classmethod
    async def from_http_request(cls, request: "Request", serde: Any) -> Any:
        """Return the request's rows, validated by the bundle that the gate saw in service, or its refusal."""
        bundle: Bundle = request.scope["bundle"]
        body, arrived = await request.body(), time.perf_counter()
        try:
            rows, keys = bundle.read(body)
            return Accepted(bundle, rows, body, keys, arrived)
        except ValidationError as error:
            return Refusal(explain(error, bundle))


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
        asked, request_id = obj.asked, uuid.uuid4().hex
        predictions = _write(obj.predictions).encode()
        head = f'{{"request_id":"{request_id}","model_version":{_write(asked.bundle.version)},"predictions":'
        if asked.bundle.recorder.rules.enabled:
            ms = (time.perf_counter() - asked.arrived) * 1000
            prediction_log.append(asked.bundle.recorder, Answered(request_id, ms, asked.body, asked.keys, predictions))
        headers = {"X-Request-ID": request_id}
        return Response(b"".join((head.encode(), predictions, b"}")), headers=headers, media_type="application/json")


def explain(error: ValidationError, bundle: Bundle) -> list[dict[str, Any]]:
    """Return pydantic's errors with real column names, without the values that were sent."""
    integers = {c.name for c in bundle.contract.features if c.kind == "integer"}
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [_explain_one(dict(e), integers, bundle.max_rows) for e in found[:MOST_ERRORS]]


def _explain_one(error: dict[str, Any], integers: set[str], max_rows: int) -> dict[str, Any]:
    place = error["loc"]
    if place == ("rows",) and error["type"] == "too_long":
        error["msg"] = f"A request may hold at most {max_rows} rows (max_rows)"
    elif place and place[-1] in integers and error["type"] == "float_type":
        error |= {"type": "int_type", "msg": "Input should be a valid integer"}
    elif error["type"] == "extra_forbidden":
        error["msg"] = "The model has no such field"
    return error | {"msg": error["msg"].removeprefix("Value error, "), "loc": list(place)}


def _refuse(refusal: Refusal) -> JSONResponse:
    first = refusal.errors[0]
    place = ".".join(map(str, first["loc"])) or "body"
    more = f" (and {len(refusal.errors) - 1} more)" if len(refusal.errors) > 1 else ""
    return JSONResponse({"error": f"{place}: {first['msg']}{more}", "detail": refusal.errors}, 400)
