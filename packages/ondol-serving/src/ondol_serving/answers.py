"""Writes the answers of predicted requests, and their records and those of failures in the prediction log."""

import secrets
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic_core import to_json

from ondol_serving.bundle import Bundle
from ondol_serving.log import Answered, Failed, prediction_log
from ondol_serving.metrics import counters
from ondol_serving.rollout import Role

Predictions = list[dict[str, Any]]
IDS_AT_ONCE = 256


class Accepted(NamedTuple):
    """A validated request: the feature values of each row, and the bundle that validated them and will predict them.

    Five fields are for the log: the body, the number of its fields, its time of arrival (`time.perf_counter`),
    whether it has columns that are neither read nor logged, and the role of the bundle. The last two are whether an
    explanation is wanted, and whether the request names the version that must answer.
    """

    bundle: Bundle
    request_id: str
    rows: list[tuple[Any, ...]]
    body: bytes
    keys: int
    arrived: float
    unread: bool = False
    role: Role = "champion"
    explain: bool = False
    named: bool = False


def create_request_ids() -> Iterator[str]:
    """Yield random ids of 32 hexadecimal digits, drawn together: each draw is a system call."""
    while True:
        drawn = secrets.token_hex(16 * IDS_AT_ONCE)
        yield from (drawn[start : start + 32] for start in range(0, len(drawn), 32))


def write_answers(answers: list[tuple[Accepted, Predictions]]) -> list[bytes | Exception]:
    """Log the answers of one bundle, and return the body of each, or the error of what cannot be written as JSON."""
    bodies: list[bytes | Exception] = []
    records: list[Answered] = []
    now = time.perf_counter()
    bundle = answers[0][0].bundle
    version = to_json(bundle.version)
    for request, predictions in answers:
        try:
            text = to_json(predictions)
        except Exception as error:
            bodies.append(error)
            continue
        ms = (now - request.arrived) * 1000
        records.append(Answered(request.request_id, ms, request.body, request.keys, text, request.unread, request.role))
        about = request.request_id.encode(), version, request.role.encode(), text
        bodies.append(b'{"request_id":"%b","model_version":%b,"role":"%b","predictions":%b}' % about)
    if records and bundle.recorder.rules.enabled:
        prediction_log.append(bundle.recorder, records)
    return bodies


def log_failure(request: Accepted, error: Exception, *, recorded: bool = True) -> None:
    """Count that a bundle failed on a request of a rollout, and record it if its answer would be recorded."""
    counters().count_failure(request.bundle, request.role)
    if recorded and request.bundle.recorder.rules.enabled:
        ms = (time.perf_counter() - request.arrived) * 1000
        prediction_log.append_failure(request.bundle.recorder, Failed(request.request_id, ms, request.role, error))
