"""How `/predict` reads a body and writes an answer, in place of BentoML's generic reading and writing.

BentoML takes both as its `input_spec` and `output_spec`. The request type is that of the bundle in service when the
request arrives; each row then carries its bundle along, so that a swap, or a batch of several requests around a
swap, never mixes two models.
"""

import json
import uuid
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar

from bentoml import IODescriptor
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response

from service.bundle import Bundle
from service.contract import Envelope
from service.serving import serving

if TYPE_CHECKING:
    from starlette.requests import Request

MOST_ERRORS = 100
_write = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was not of the bundle's type, on its way to becoming a 400."""

    errors: list[dict[str, Any]]


# What runs through the endpoint, one for each row: the bundle and the row's values, later its prediction;
# for a refused request a single item of None and the refusal.
Item = tuple[Bundle | None, Any]


class Prediction(BaseModel):
    """The answer for one row: a label and its probabilities, or a value."""

    label: Any = None
    probabilities: dict[str, float] | None = None
    value: float | None = None


class PredictRequest(IODescriptor, Envelope):
    """Rows to predict. The fields of a row are those of the model in service."""

    __root_input__: ClassVar[bool] = True

    @classmethod
    async def from_http_request(cls, request: "Request", serde: Any) -> list[Item]:  # type: ignore[override]
        """Return the request's rows, validated by the bundle in service."""
        bundle = serving.bundle
        assert bundle is not None, "the gate answers while there is no model"
        try:
            return [(bundle, row) for row in bundle.parse(await request.body())]
        except ValidationError as error:
            return [(None, Refusal(explain(error, bundle)))]


class PredictResponse(IODescriptor):
    """One prediction for each row, in the order of the rows."""

    model_config = ConfigDict(protected_namespaces=())

    request_id: str = Field(description="Names this request; also in the header X-Request-ID.")
    model_version: str
    predictions: list[Prediction]

    @classmethod
    async def to_http_response(cls, obj: list[Item], serde: Any) -> Response:
        """Write the answer, or the 400 of a refused request."""
        bundle, first = obj[0]
        if bundle is None:
            return _refuse(first)
        request_id = uuid.uuid4().hex
        answer = {
            "request_id": request_id,
            "model_version": bundle.version,
            "predictions": [prediction for _, prediction in obj],
        }
        return Response(
            _write(answer).encode(), headers={"X-Request-ID": request_id}, media_type="application/json"
        )


def group(items: list[Item]) -> list[tuple[Bundle | None, list[Any]]]:
    """Return the runs of items that belong to one bundle (None: refusals), in order."""
    return [(bundle, [value for _, value in run]) for bundle, run in groupby(items, key=itemgetter(0))]


def explain(error: ValidationError, bundle: Bundle) -> list[dict[str, Any]]:
    """Return pydantic's errors with real column names, without the values that were sent."""
    integers = {c.name for c in bundle.contract.features if c.kind == "integer"}
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [_explain_one(dict(e), integers, bundle.max_rows) for e in found[:MOST_ERRORS]]


def _explain_one(error: dict[str, Any], integers: set[str], max_rows: int) -> dict[str, Any]:
    place = error["loc"]
    if place == ("rows",) and error["type"] == "too_long":
        error["msg"] = f"A request may hold at most {max_rows} rows (max_rows)"
    elif place and place[-1] in integers and error["type"] in ("multiple_of", "float_type"):
        error |= {"type": "int_type", "msg": "Input should be a valid integer"}
    elif error["type"] == "extra_forbidden":
        error["msg"] = "The model has no such field"
    return error | {"msg": error["msg"].removeprefix("Value error, "), "loc": list(place)}


def _refuse(refusal: Refusal) -> JSONResponse:
    first = refusal.errors[0]
    place = ".".join(map(str, first["loc"])) or "body"
    more = f" (and {len(refusal.errors) - 1} more)" if len(refusal.errors) > 1 else ""
    return JSONResponse({"error": f"{place}: {first['msg']}{more}", "detail": refusal.errors}, 400)
