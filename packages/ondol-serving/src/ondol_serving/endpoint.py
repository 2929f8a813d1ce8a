"""The endpoint `/predict`: reads a body, predicts its rows and writes an answer.

The bundle that is in production when a request arrives both validates and predicts it, so an answer never mixes two
models. `answer_predict` is what callers reach. BentoML gets the classes for reading and writing as `input_spec` and
`output_spec`: for the documentation, and for a service that overrides `predict`.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Any, ClassVar

from bentoml import IODescriptor
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ondol_serving.admission import HEAVY_BYTES
from ondol_serving.answers import Accepted, create_request_ids
from ondol_serving.bundle import Bundle
from ondol_serving.errors import RequestRefused, RowsRefused
from ondol_serving.request import Envelope
from ondol_serving.serving import serving

if TYPE_CHECKING:
    from starlette.requests import Request

_request_ids = create_request_ids()


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
        """Return the validated rows of a request, or the answer 400."""
        try:
            return await read_rows(request.scope["bundle"], request.scope["body"])
        except RequestRefused as refused:
            return refused.answer


class PredictResponse(IODescriptor):
    """One prediction for each row, in the order of the rows."""

    model_config = ConfigDict(protected_namespaces=())

    request_id: str = Field(description="Names this request; also in the header X-Request-ID.")
    model_version: str
    predictions: list[Prediction]

    @classmethod
    async def to_http_response(cls, obj: tuple[Accepted, bytes], serde: Any) -> Response:
        """Return the answer to a request, whose body has been written."""
        request, body = obj
        return Response(body, headers={"X-Request-ID": request.request_id}, media_type="application/json")


async def answer_predict(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `POST /predict`; an ASGI application behind `Application`, which has read the body."""
    request = await read_rows(scope["bundle"], scope["body"])
    body = await serving.batcher.answer(request)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request.request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read_rows(bundle: Bundle, body: bytes) -> Accepted:
    """Return the validated rows of a request.

    Raises:
        RequestRefused: they do not match the contract.
    """
    arrived = time.perf_counter()
    try:
        many = len(body) > HEAVY_BYTES
        read = await asyncio.to_thread(bundle.read, body) if many else bundle.read(body)
    except ValidationError as error:
        raise RowsRefused(error) from None
    return Accepted(bundle, next(_request_ids), read.rows, read.body, read.keys, arrived, read.unread)
