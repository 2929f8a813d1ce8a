"""The base class of a project's service, and the decorator that turns it into a BentoML service."""

import asyncio
import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from http import HTTPStatus
from importlib.util import find_spec
from typing import Any, cast

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from bentoml.exceptions import BentoMLException, ServiceUnavailable
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ondol_serving import arrow, inference_protocol
from ondol_serving.access import Access, require_access_control
from ondol_serving.admission import Load
from ondol_serving.answers import Accepted
from ondol_serving.application import JSON, Application, Dispatcher
from ondol_serving.batching import Batcher
from ondol_serving.bundle import Bundle
from ondol_serving.endpoint import PredictRequest, PredictResponse, answer_explain, answer_predict, answer_request
from ondol_serving.errors import RequestRefused, refuse
from ondol_serving.explanation import explain
from ondol_serving.metrics import counters
from ondol_serving.names import PrintableRecord
from ondol_serving.openapi import UNFRAMED, DocumentedService, show_page
from ondol_serving.protocol import use_protocol
from ondol_serving.request import REQUEST
from ondol_serving.serving import NO_MODEL, serving
from ondol_serving.shadow import Shadow

logging.setLogRecordFactory(PrintableRecord)  # an error's text may hold names and values of the data


def _is_fault(record: logging.LogRecord) -> bool:
    """Return False if an endpoint of the project refused rows or had no model: then the caller gets the reason."""
    error = record.exc_info[1] if record.exc_info else None
    return not (
        isinstance(error, ServiceUnavailable) or (isinstance(error, ValidationError) and error.title == REQUEST)
    )


logging.getLogger("bentoml._internal.server.http_app").addFilter(_is_fault)  # BentoML logs a traceback for each

GRPC_PORT = int(os.environ.get("ML_SERVICE__GRPC_PORT") or 0)
NO_GRPC = "ML_SERVICE__GRPC_PORT needs gRPC: run `uv add --group service 'ondol-serving[grpc]'`, and build a new image."
NO_CARD = "The model in production was deployed before there were model cards: `ml deploy` of the next version adds one"
CARD_HEADERS = UNFRAMED | {"Vary": "Accept", "X-Content-Type-Options": "nosniff"}
STOP_SECONDS = 10.0  # for requests in progress over gRPC
WORKERS = int(os.environ.get("ML_SERVICE__WORKERS") or 1)


async def show_alive(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `GET /livez` and `GET /healthz`."""
    await PlainTextResponse("\n")(scope, receive, send)


async def show_ready(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `GET /readyz`."""
    ready = serving.bundle is not None
    await (PlainTextResponse("\n") if ready else refuse(503, "no_model", NO_MODEL))(scope, receive, send)


async def show_model(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `GET /model`."""
    if (bundle := serving.bundle) is None:
        return await refuse(503, "no_model", NO_MODEL)(scope, receive, send)
    await Response(describe_model(bundle), media_type=JSON)(scope, receive, send)


async def show_card(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `GET /model/card`: as HTML if the caller accepts it, such as a browser, else as Markdown."""
    if (bundle := serving.bundle) is None:
        return await refuse(503, "no_model", NO_MODEL)(scope, receive, send)
    wants_html = "text/html" in Headers(scope=scope).get("accept", "")
    name, media_type = ("card.html", "text/html") if wants_html else ("card.md", "text/markdown")
    if not (bundle.folder / name).is_file():
        return await refuse(404, "no_card", NO_CARD)(scope, receive, send)
    await FileResponse(bundle.folder / name, media_type=media_type, headers=CARD_HEADERS)(scope, receive, send)


@lru_cache(maxsize=1)
def describe_model(bundle: Bundle) -> bytes:
    """Return the body of `GET /model`; building the schema of a wide model is slow."""
    names = ("name", "version", "created", "problem", "runtime", "data_digest", "commit", "run_id", "metrics")
    about = {name: bundle.meta.get(name) for name in names} | {
        "target": bundle.contract.target,
        "classes": bundle.contract.classes,
        "schema": bundle.request_type.model_json_schema(),
    }
    if bundle.contract.decision is not None:
        about["decision"] = asdict(bundle.contract.decision)
    return json.dumps(about, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class ModelService:
    """Loads the champion and answers `POST /predict`; a project's service inherits it."""

    @bentoml.on_startup
    async def start(self) -> None:
        """Load the champion, if there is one, and watch for the next."""
        serving.forget()
        serving.access = Access()
        counters()
        serving.batcher, serving.load, serving.shadow = Batcher(), Load(), Shadow()
        serving.explaining = asyncio.Semaphore()
        await asyncio.to_thread(serving.look)
        self._grpc = None
        if GRPC_PORT:
            from ondol_serving.grpc_server import start_server  # of an extra

            self._grpc = await start_server(GRPC_PORT)
        self._watcher = asyncio.create_task(serving.watch())

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Stop watching, and answer the requests over gRPC that are in progress."""
        if self._grpc is not None:
            await self._grpc.stop(STOP_SECONDS)
        self._watcher.cancel()
        with suppress(asyncio.CancelledError):
            await self._watcher

    async def __is_ready__(self) -> bool:
        """Return True if there is a model."""
        return serving.bundle is not None

    @bentoml.api(input_spec=PredictRequest, output_spec=PredictResponse)
    async def predict(self, request: Accepted | Response, /) -> tuple[Accepted, bytes] | Response:
        """Predict each row with the model in production."""
        return request if isinstance(request, Response) else await answer_request(request)

    async def predict_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the predictions of `rows`, as in `POST /predict`; for use in the project's own endpoints.

        They are not in the prediction log.

        Raises:
            pydantic.ValidationError: a row does not match the contract; BentoML answers 400.
            ServiceUnavailable: there is no model yet; BentoML answers 503.
        """
        bundle = _require_model()
        return await serving.batcher.predict(bundle, bundle.parse(json.dumps({"rows": rows}).encode()))

    async def explain_rows(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the `explanation` of `rows`, as in `POST /explain`; for use in the project's own endpoints.

        Raises:
            pydantic.ValidationError: a row does not match the contract; BentoML answers 400.
            ServiceUnavailable: there is no model yet; BentoML answers 503.
            BentoMLException: the model has no explanation (409), there are too many rows (400), or too many wait (503).
        """
        bundle = _require_model()
        parsed = bundle.parse(json.dumps({"rows": rows}).encode())
        try:
            return dict(json.loads(await explain(bundle, parsed)))
        except RequestRefused as refused:
            raise BentoMLException(str(refused), error_code=HTTPStatus(refused.answer.status_code)) from None


def _require_model() -> Bundle:
    if serving.bundle is None:
        raise ServiceUnavailable(NO_MODEL)
    return serving.bundle


# Routes that BentoML does not know, with their methods.
OURS: dict[str, tuple[str, ASGIApp]] = {
    "/model": ("GET", show_model),
    "/model/card": ("GET", show_card),
    "/explain": ("POST", answer_explain),
    **inference_protocol.ROUTES,
}


class TypedService(DocumentedService):
    """A BentoML service that answers the routes of every prediction service before BentoML's own layers."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """Return the application that the server runs."""
        app: Any = super().to_asgi(is_main)
        # The requests have been counted. BentoML's timeout creates a task and a timer for every request and keeps the
        # timer for a minute; bodies have a time limit in `Application`.
        unused = (RunnerTrafficMetricsMiddleware, TimeoutMiddleware, *(added for added, _ in self.middlewares))
        app.user_middleware = [one for one in app.user_middleware if one.cls not in unused]
        direct = self._find_direct()
        admitted: ASGIApp = Dispatcher(direct, app)
        for added, options in reversed(self.middlewares):  # of the project's service, around all routes
            admitted = added(admitted, **options)
        types: dict[str, tuple[str, ...]] = {api.route: (api.input_spec.mime_type(),) for api in self.apis.values()}
        types.setdefault("/explain", (JSON,))
        types |= dict.fromkeys(inference_protocol.INFER, ("application/*",))  # JSON, or JSON and binary tensors
        if "/predict" in direct:
            types["/predict"] = (JSON, arrow.MEDIA_TYPE)
        ours = [Route(path, application, methods=[method]) for path, (method, application) in OURS.items()]
        return Application(admitted, [*app.routes, *ours], types)

    def _find_direct(self) -> dict[str, ASGIApp]:
        """Return the routes that are answered without BentoML: those that the project's service does not override."""
        direct = {"/": show_page} | {path: application for path, (_, application) in OURS.items()}
        if not hasattr(self.inner, "__is_alive__"):
            direct |= {"/livez": show_alive, "/healthz": show_alive}
        if self.inner.__is_ready__ is ModelService.__is_ready__:
            direct["/readyz"] = show_ready
        for path in self._own_paths(direct):  # of the project: BentoML answers them
            del direct[path]
        traced = BentoMLContainer.tracing.exporter_type.get() is not None  # by a middleware of BentoML
        if self.apis["predict"] is ModelService.predict and not traced:
            direct["/predict"] = answer_predict
        return direct

    def _own_paths(self, paths: Iterable[str]) -> list[str]:
        """Return those of `paths` that an endpoint or a mounted application of the project has, too."""
        routes = {api.route for api in self.apis.values()}
        mounts = tuple(f"{path.rstrip('/')}/" for _, path, _ in self.mount_apps if path.rstrip("/"))
        return [path for path in paths if path in routes or f"{path}/".startswith(mounts)]


def service(cls: type[ModelService]) -> TypedService:
    """Turn a class into a BentoML service with `GET /model`, request limits and a documentation page.

    Raises:
        TypeError: the class does not inherit `ModelService`.
        SystemExit: other machines could reach it, and it has no access control; or a package is missing.
    """
    if not issubclass(cls, ModelService):
        raise TypeError(f"{cls.__name__} does not inherit ModelService, which answers POST /predict")
    require_access_control()
    if GRPC_PORT and find_spec("grpc") is None:
        raise SystemExit(NO_GRPC)
    use_protocol()
    return cast(
        TypedService,
        bentoml.service(
            name="model",
            service_class=TypedService,
            workers=WORKERS,
            logging={"access": {"enabled": False}},  # /metrics counts requests by status
        )(cls),
    )
