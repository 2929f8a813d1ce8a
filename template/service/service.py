"""The service: `bentoml serve service.service:Service`, or `ml serve`."""

import asyncio
import os
from contextlib import suppress
from typing import Any

import bentoml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from service.endpoint import Item, PredictRequest, PredictResponse, group
from service.limits import Gate
from service.metrics import counters
from service.openapi import TypedService
from service.serving import NO_MODEL, serving

WORKERS = int(os.environ.get("ML_SERVICE__WORKERS") or 1)
BATCHING = os.environ.get("ML_SERVICE__BATCHING", "false").lower() in ("1", "true", "yes", "on")
MANY_ROWS = 64  # more than this takes milliseconds and leaves the event loop to others meanwhile


async def show_model(_: Request) -> JSONResponse:
    """Answer `GET /model`."""
    bundle = serving.bundle
    if bundle is None:
        return JSONResponse({"error": NO_MODEL}, 503)
    names = ("name", "version", "created", "problem", "runtime", "data_digest", "commit", "run_id", "metrics")
    return JSONResponse(
        {name: bundle.meta.get(name) for name in names}
        | {
            "target": bundle.contract.target,
            "classes": bundle.contract.classes,
            "schema": bundle.request_type.model_json_schema(),
        }
    )


@bentoml.service(
    name="model",
    service_class=TypedService,
    workers=WORKERS,
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ["/predict"]},
)
@bentoml.asgi_app(Starlette(routes=[Route("/model", show_model)]))
class Service:
    """Predictions of the champion. Send rows to `POST /predict`; `GET /model` tells which model answers."""

    @bentoml.on_startup
    async def start(self) -> None:
        """Load the champion, if there is one, and watch for the next."""
        serving.forget()
        counters()
        await asyncio.to_thread(serving.refresh)
        self._watcher = asyncio.create_task(serving.watch())

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Stop watching."""
        self._watcher.cancel()
        with suppress(asyncio.CancelledError):
            await self._watcher

    async def __is_ready__(self) -> bool:
        """Ready as soon as there is a model."""
        return serving.bundle is not None

    @bentoml.api(
        input_spec=PredictRequest,
        output_spec=PredictResponse,
        batchable=BATCHING,
        max_batch_size=1000,
        max_latency_ms=10_000,
    )
    async def predict(self, items: list[Item], /) -> list[Any]:
        """Predict each row by the model in service."""
        results: list[Item] = []
        for bundle, rows in group(items):
            if bundle is None:
                results += [(None, refusal) for refusal in rows]
                continue
            counters().count(bundle, rows)
            if bundle.runtime.slow or len(rows) > MANY_ROWS:
                predictions = await asyncio.to_thread(bundle.predict, rows)
            else:
                predictions = bundle.predict(rows)
            results += [(bundle, prediction) for prediction in predictions]
        return results


Service.add_asgi_middleware(Gate)
