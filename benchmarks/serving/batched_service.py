"""The service and the empty endpoint with BentoML's own adaptive batching, for comparison."""

import os
import secrets
from typing import Any

import bentoml
from starlette.responses import JSONResponse

from ondol_serving.bundle import load_bundle
from ondol_serving.endpoint import PredictRequest, PredictResponse
from ondol_serving.serving import serving

EMPTY = bool(os.environ.get("BENCH_EMPTY"))
ANSWER = {"label": "No", "probabilities": {"No": 0.9, "Yes": 0.1}}


class BatchRequest(PredictRequest):
    """Rows as a list of single items, which BentoML can join and split."""

    @classmethod
    async def from_http_request(cls, request: Any, serde: Any) -> Any:
        """Return one item for each row."""
        assert serving.bundle is not None
        return serving.bundle.parse(await request.body())


class BatchResponse(PredictResponse):
    """The answer of a list of predictions."""

    @classmethod
    async def to_http_response(cls, obj: Any, serde: Any) -> Any:
        """Write the answer."""
        assert serving.bundle is not None
        return JSONResponse(
            {"request_id": secrets.token_hex(16), "model_version": serving.bundle.version, "predictions": obj}
        )


@bentoml.service(
    name="batched",
    workers=1,
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ["/predict"]},
)
class Batched:
    """Predicts in BentoML's batches, or answers a constant."""

    @bentoml.on_startup
    async def start(self) -> None:
        """Load the bundle."""
        from pathlib import Path

        serving.bundle = load_bundle(Path(os.environ["ML_BUNDLE"]))

    @bentoml.api(
        input_spec=BatchRequest,
        output_spec=BatchResponse,
        batchable=True,
        max_batch_size=1000,
        max_latency_ms=10_000,
    )
    async def predict(self, rows: list[Any], /) -> list[Any]:
        """Predict a batch."""
        if EMPTY:
            return [ANSWER for _ in rows]
        assert serving.bundle is not None
        return serving.bundle.predict(rows)
