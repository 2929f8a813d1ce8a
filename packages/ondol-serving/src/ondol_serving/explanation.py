"""Explains the rows of a request, within limits: an approximation takes a hundred times as long as a prediction."""

import asyncio

from pydantic_core import to_json

from ondol_serving.admission import Busy
from ondol_serving.bundle import Bundle
from ondol_serving.contract import Rows
from ondol_serving.errors import RequestRefused
from ondol_serving.metrics import counters
from ondol_serving.serving import serving

FEW_ROWS = 4  # explained at once if that is quick; all others in a thread, one request at a time
NO_EXPLANATION = (
    "Version {version} was deployed before models had explanations: the next version that `ml run` deploys has one"
)


def require_explainable(bundle: Bundle, rows: Rows) -> None:
    """Check that rows can be explained.

    Raises:
        RequestRefused: the bundle has no explanation, or there are too many rows.
    """
    if bundle.explainer is None:
        raise RequestRefused(409, "no_explanation", NO_EXPLANATION.format(version=bundle.version))
    most = bundle.limits.max_explained_rows
    if len(rows) > most:
        message = f"A request may ask for the explanation of at most {most} rows (max_explained_rows)"
        raise RequestRefused(400, "too_many_explained_rows", message)


async def explain(bundle: Bundle, rows: Rows) -> bytes:
    """Return the explanation of rows as JSON.

    Raises:
        RequestRefused: as `require_explainable`.
        Busy: too many requests with many rows, or with approximations, wait for theirs.
    """
    require_explainable(bundle, rows)
    if bundle.explains_quickly and len(rows) <= FEW_ROWS:
        text = _explain(bundle, rows)
    else:
        seconds = bundle.limits.max_wait_seconds
        try:
            async with asyncio.timeout(seconds):
                await serving.explaining.acquire()
        except TimeoutError:
            raise Busy(seconds) from None
        try:
            text = await asyncio.to_thread(_explain, bundle, rows)
        finally:
            serving.explaining.release()
    counters().explanations.labels(bundle.version).inc(len(rows))
    return text


def _explain(bundle: Bundle, rows: Rows) -> bytes:
    return to_json(bundle.explain(rows))
