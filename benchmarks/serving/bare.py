"""The same bundle, validation and batching under a bare ASGI callable: without checks, metrics, log and BentoML."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from ondol_serving.batching import Batcher
from ondol_serving.bundle import load_bundle

bundle = load_bundle(Path(os.environ["ML_BUNDLE"]))
batchers: list[Batcher] = []  # one, created by the first request in the server's event loop


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer each request as a prediction."""
    if scope["type"] != "http":
        return
    body = (await receive()).get("body", b"")
    if not body:  # is it ready?
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        return await send({"type": "http.response.body", "body": b""})
    if not batchers:
        batchers.append(Batcher())
    predictions = await batchers[0].predict(bundle, bundle.read(body).rows)
    answer = {"request_id": secrets.token_hex(16), "model_version": bundle.version, "predictions": predictions}
    text = json.dumps(answer, separators=(",", ":")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})
