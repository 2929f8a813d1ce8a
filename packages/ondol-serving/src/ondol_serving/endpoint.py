"""The endpoints `/predict` and `/explain`: read a body, predict or explain its rows and write an answer.

One bundle both validates and predicts a request, so an answer never mixes two models: the one in production when the
request arrives, or the challenger of a rollout. `answer_predict` is what callers reach. BentoML gets the classes for
reading and writing as `input_spec` and `output_spec`: for the documentation, and for a service that overrides
`predict`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bentoml import IODescriptor
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ondol_serving import arrow
from ondol_serving.admission import HEAVY_BYTES
from ondol_serving.answers import Accepted, create_request_ids, log_failure
from ondol_serving.bundle import Bundle
from ondol_serving.callers import HeaderPair, read_headers
from ondol_serving.errors import RequestRefused, RowsRefused
from ondol_serving.explanation import explain, require_explainable
from ondol_serving.request import Envelope
from ondol_serving.rollout import Role, find_key
from ondol_serving.serving import serving

if TYPE_CHECKING:
    from starlette.requests import Request

AS_JSON: list[HeaderPair] = [(b"content-type", b"application/json")]
Write = Callable[[Accepted], Awaitable[bytes]]

_request_ids = create_request_ids()


class Prediction(BaseModel):
    """The answer for one row: a label and its probabilities, or a value."""

    label: Any = None
    probabilities: dict[str, float | None] | None = None
    value: float | None = None


class Explanation(BaseModel):
    """What each column contributed: baseline and contributions add up to the prediction, on the scale."""

    method: Literal["exact", "linear", "approximate"]
    scale: Literal["value", "probability", "log-odds", "score"]
    class_: Any = Field(None, alias="class", description="Of two classes, the one that the contributions are about.")
    baseline: Any = Field(description="The mean prediction of training rows; of three and more classes, by class.")
    contributions: list[dict[str, Any]] = Field(
        description="For each row a number by column; of three and more classes, an object by class."
    )


class PredictRequest(IODescriptor, Envelope):
    """Rows to predict. The fields of a row are those of the model in production."""

    __root_input__: ClassVar[bool] = True

    @classmethod
    async def from_http_request(cls, request: "Request", serde: Any) -> Any:
        """Return the validated rows of a request, or the answer 400."""
        try:
            accepted = await read_rows(request.scope["bundle"], request.scope["body"], request.scope["headers"])
            if accepted.explain:
                await require_explanation(accepted, request.scope)
            return accepted
        except RequestRefused as refused:
            return refused.answer


class PredictResponse(IODescriptor):
    """One prediction for each row, in the order of the rows."""

    model_config = ConfigDict(protected_namespaces=())

    request_id: str = Field(description="Names this request; also in the header X-Request-ID.")
    model_version: str
    role: str = Field(description="champion: in production; challenger: tried by a rollout.")
    predictions: list[Prediction]
    explanation: Explanation | None = Field(None, description='Only if the request has `"explain": true`.')

    @classmethod
    async def to_http_response(cls, obj: tuple[Accepted, bytes], serde: Any) -> Response:
        """Return the answer to a request, whose body has been written."""
        request, body = obj
        return Response(body, headers={"X-Request-ID": request.request_id}, media_type="application/json")


async def answer_predict(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `POST /predict`; an ASGI application behind `Application`, which has read the body."""
    bundle, body = scope["bundle"], scope["body"]
    is_table, wants_table = arrow.find_tables(scope["headers"])
    if wants_table and serving.rollout is None:
        request_id = next(_request_ids)
        answer = await asyncio.to_thread(arrow.predict_table, bundle, body, is_table, request_id)
    else:
        if is_table:
            body = await asyncio.to_thread(arrow.to_json_body, bundle, body)
        request = await read_rows(bundle, body, scope["headers"])
        if wants_table:
            arrow.refuse_explanation(request.explain)
        elif request.explain:
            await require_explanation(request, scope)
        request, answer = await answer_request(request)
        request_id, bundle = request.request_id, request.bundle
        if wants_table:
            answer = await asyncio.to_thread(arrow.rewrite_answer, bundle, answer, request_id, request.role)
    about = AS_JSON
    if wants_table:
        about = [(b"content-type", arrow.MEDIA_TYPE.encode()), (b"x-model-version", bundle.version.encode())]
    await send_answer(send, about, request_id, answer)


async def answer_explain(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `POST /explain`; an ASGI application behind `Application`, which has read the body."""
    request = await read_rows(scope["bundle"], scope["body"], scope["headers"], explains=True)
    request, body = await answer_request(request, write_explanation)
    await send_answer(send, AS_JSON, request.request_id, body)


async def send_answer(send: Send, about: list[HeaderPair], request_id: str, body: bytes) -> None:
    """Send an answer 200, with the headers `about` its body."""
    headers = [*about, (b"content-length", b"%d" % len(body)), (b"x-request-id", request_id.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def require_explanation(request: Accepted, scope: Scope) -> None:
    """Check that the explanation that a request to `/predict` wants is possible, and that its caller may have it.

    Raises:
        RequestRefused: it is not, or the caller may not.
    """
    if serving.access.controlled:
        client = scope["client"][0] if scope.get("client") else ""
        await serving.access.require("/explain", read_headers(scope["headers"]), client)
    require_explainable(request.bundle, request.rows)


async def read_rows(
    bundle: Bundle, body: bytes, headers: Iterable[HeaderPair] | None = None, *, explains: bool = False
) -> Accepted:
    """Return the validated rows of a request, and the bundle that will predict them.

    Args:
        bundle: The bundle in production when the request arrived, or the one that it asks for.
        body: The request's body.
        headers: The request's headers, by which a rollout may choose the challenger; None if it must not.
        explains: Whether the rows are explained, as also if the request says so.

    Raises:
        RequestRefused: they do not match the contract.
    """
    rollout = serving.rollout
    try:
        accepted = await _read(bundle, "champion", next(_request_ids), body)
    except ValidationError as error:
        raise RowsRefused(error) from None
    if rollout is None:
        return accepted
    if bundle is rollout.challenger:
        return accepted._replace(role="challenger", named=True)
    if headers is None or bundle is not rollout.champion or not rollout.share(time.time()):
        return accepted
    if (explains or accepted.explain) and rollout.challenger.explainer is None:
        return accepted
    find = partial(find_key, bundle, accepted.body, read_headers(headers), accepted.request_id)
    key = await asyncio.to_thread(find) if len(body) > HEAVY_BYTES else find()
    if not rollout.takes(key, time.time()):
        return accepted
    try:
        return await _read(rollout.challenger, "challenger", accepted.request_id, body)
    except ValidationError as error:
        log_failure(accepted._replace(bundle=rollout.challenger, role="challenger"), error)
        return accepted


async def _read(bundle: Bundle, role: Role, request_id: str, body: bytes) -> Accepted:
    """Return the validated rows of a request.

    Raises:
        ValidationError: they do not match the contract of `bundle`.
    """
    arrived = time.perf_counter()
    many = len(body) > HEAVY_BYTES
    read = await asyncio.to_thread(bundle.read, body) if many else bundle.read(body)
    return Accepted(bundle, request_id, read.rows, read.body, read.keys, arrived, read.unread, role, read.explain)


def write_predictions(request: Accepted) -> Awaitable[bytes]:
    """Return the body of an answer of `/predict`, which has been logged."""
    return write_explained(request) if request.explain else serving.batcher.answer(request)


async def write_explained(request: Accepted) -> bytes:
    """Return the body of an answer of `/predict` with its explanation; it has been logged."""
    explanation = await explain(request.bundle, request.rows)  # first: a request that is refused is not logged
    body = await serving.batcher.answer(request)
    return b'%b,"explanation":%b}' % (body[:-1], explanation)


async def answer_request(request: Accepted, write: Write = write_predictions) -> tuple[Accepted, bytes]:
    """Return a request and the body of its answer.

    Where a challenger fails, the champion answers, and the failure is logged. The returned request says which of both
    answered.

    Args:
        request: The request.
        write: Returns the body; default: that of `/predict`, which has been logged.

    Raises:
        RequestRefused: its explanation is wanted, and refused.
    """
    rollout = serving.rollout
    if rollout is None:
        return request, await write(request)
    try:
        body = await _write_watched(request, write)
    except RequestRefused:
        raise
    except Exception:
        if request.role == "champion" or request.named:
            raise
        explain = request.explain  # the body is that of the log, which does not have it
        request = await _read(rollout.champion, "champion", request.request_id, request.body)
        request = request._replace(explain=explain)
        body = await _write_watched(request, write)
    if rollout.strategy == "shadow" and request.bundle is rollout.champion and write is write_predictions:
        serving.shadow.add(rollout, request)
    return request, body


async def _write_watched(request: Accepted, write: Write) -> bytes:
    """Return the body of an answer; a failure counts against the bundle."""
    try:
        return await write(request)
    except RequestRefused:
        raise
    except Exception as error:
        log_failure(request, error, recorded=write is write_predictions)
        raise


async def write_explanation(request: Accepted) -> bytes:
    """Return the body of an answer of `/explain`; the rows are predicted, too, but neither logged nor counted."""
    bundle, rows = request.bundle, request.rows
    explanation = await explain(bundle, rows)
    predictions = await asyncio.to_thread(bundle.predict, rows) if bundle.runtime.slow else bundle.predict(rows)
    about = {"request_id": request.request_id, "model_version": bundle.version, "role": request.role}
    return b'%b,"predictions":%b,"explanation":%b}' % (to_json(about)[:-1], to_json(predictions), explanation)
