"""The ceiling: a BentoML endpoint with the same types that computes nothing.

Plain BentoML, written as its documentation shows, with the settings of our service.
"""

import os
from pathlib import Path
from typing import Any

import bentoml

from ondol_serving.bundle import load_bundle
from ondol_serving.endpoint import Prediction

Request: Any = load_bundle(Path(os.environ["ML_BUNDLE"])).request_type
ANSWER = Prediction(label="No", probabilities={"No": 0.9, "Yes": 0.1})


class Response(bentoml.IODescriptor):
    """The type of our service's answer."""

    request_id: str = "0"
    model_version: str = "1"
    predictions: list[Prediction]


@bentoml.service(
    name="empty",
    workers=1,
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ["/predict"]},
)
class Empty:
    """Answers a constant."""

    @bentoml.api
    async def predict(self, request: Request, /) -> Response:
        """Return a constant for each row."""
        return Response(predictions=[ANSWER for _ in request.rows])
