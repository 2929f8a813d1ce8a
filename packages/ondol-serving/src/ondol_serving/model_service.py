"""The base class of a project's service, and the decorator that turns it into a BentoML service."""

import asyncio
import json
import logging
import os
from contextlib import suppress
from functools import lru_cache
from typing import Any, cast

import bentoml
from bentoml.exceptions import ServiceUnavailable
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ondol_serving.bundle import Bundle
from ondol_serving.endpoint import Accepted, Answer, Batcher, InvalidRequest, PredictRequest, PredictResponse
from ondol_serving.metrics import counters
from ondol_serving.middleware import AdmissionControl, refuse
from ondol_serving.openapi import Page, TypedService
from ondol_serving.printable import PrintableRecord
from ondol_serving.protocol import use_protocol
from ondol_serving.request import REQUEST
from ondol_serving.serving import NO_MODEL, serving

logging.setLogRecordFactory(PrintableRecord)  # an error's text may hold names and values of the data


def _is_fault(record: logging.LogRecord) -> bool:
    """Return False if an endpoint of the project refused rows or had no model: then the caller gets the reason."""
    error = record.exc_info[1] if record.exc_info else None
    return not (
        isinstance(error, ServiceUnavailable) or (isinstance(error, ValidationError) and error.title == REQUEST)
    )


logging.getLogger("bentoml._internal.server.http_app").addFilter(_is_fault)  # BentoML logs a traceback for each

WORKERS = int(os.environ.get("ML_SERVICE__WORKERS") or 1)


async def show_model(_: Request) -> JSONResponse:
    """Answer `GET /model`."""
    bundle = serving.bundle
    return refuse(503, "no_model", NO_MODEL) if bundle is None else describe_model(bundle)


@lru_cache(maxsize=1)
def describe_model(bundle: Bundle) -> JSONResponse:
    """Return the answer of `GET /model`; building the schema of a wide model is slow."""
    names = ("name", "version", "created", "problem", "runtime", "data_digest", "commit", "run_id", "metrics")
    return JSONResponse(
        {name: bundle.meta.get(name) for name in names}
        | {
            "target": bundle.contract.target,
            "classes": bundle.contract.classes,
            "schema": bundle.request_type.model_json_schema(),
        }
    )


class ModelService:
    """Loads the champion and answers `POST /predict`; a project's service inherits it."""

    @bentoml.on_startup
    async def start(self) -> None:
        """Load the champion, if there is one, and watch for the next."""
        serving.forget()
        counters()
        self._batcher = Batcher()
        # Resolved once: BentoML would inspect the method's signature at every request.
        self.__dict__["predict"] = self.predict
        await asyncio.to_thread(serving.refresh)
        self._watcher = asyncio.create_task(serving.watch())

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Stop watching."""
        self._watcher.cancel()
        with suppress(asyncio.CancelledError):
            await self._watcher

    async def __is_ready__(self) -> bool:
        """Return True if there is a model."""
        return serving.bundle is not None

    @bentoml.api(input_spec=PredictRequest, output_spec=PredictResponse)
    async def predict(self, request: Accepted | InvalidRequest, /) -> Answer | InvalidRequest:
        """Predict each row with the model in production."""
        if isinstance(request, InvalidRequest):
            return request
        return Answer(request, await self._batcher.predict(request.bundle, request.rows))

    async def predict_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the predictions of `rows`, as in `POST /predict`; for use in the project's own endpoints.

        They are not in the prediction log.

        Raises:
            pydantic.ValidationError: a row does not match the contract; BentoML answers 400.
            ServiceUnavailable: there is no model yet; BentoML answers 503.
        """
        bundle = serving.bundle
        if bundle is None:
            raise ServiceUnavailable(NO_MODEL)
        return await self._batcher.predict(bundle, bundle.parse(json.dumps({"rows": rows}).encode()))


def service(cls: type[ModelService]) -> TypedService:
    """Turn a class into a BentoML service with `GET /model`, request limits and a documentation page.

    Raises:
        TypeError: the class does not inherit `ModelService`.
    """
    if not issubclass(cls, ModelService):
        raise TypeError(f"{cls.__name__} does not inherit ModelService, which answers POST /predict")
    with_model = bentoml.asgi_app(Starlette(routes=[Route("/model", show_model)]))(cls)
    made = cast(
        TypedService,
        bentoml.service(
            name="model",
            service_class=TypedService,
            workers=WORKERS,
            logging={"access": {"enabled": False}},  # /metrics counts requests by status
            # Spans that are not collected cost a third of a request. A deployment that sets an exporter in
            # BENTOML_CONFIG sets `excluded_urls: []` beside it.
            tracing={"excluded_urls": ["/predict"]},
        )(with_model),
    )
    made.add_asgi_middleware(
        AdmissionControl, types={api.route: api.input_spec.mime_type() for api in made.apis.values()}
    )
    made.add_asgi_middleware(Page)
    use_protocol()
    return made
