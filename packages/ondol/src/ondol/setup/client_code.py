"""The code of the typed client that `ml client` writes, with the types of a contract between the last two marks.

A program copies the written file. So it imports only the standard library.
"""

# begin of the file
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, timedelta
from typing import Any, NotRequired, TypedDict

# begin of the types
Row = TypedDict("Row", {"a column": NotRequired[float | None]})
Label = str


@dataclass(frozen=True)
class Prediction:
    """The prediction of one row; a number that overflowed is None."""

    label: Label | None
    probabilities: dict[str, float | None]


# end of the types


@dataclass(frozen=True)
class Answer:
    """The predictions of a request, in the order of its rows."""

    request_id: str  # keep it, if labels arrive later
    model_version: str
    role: str  # "champion", or "challenger" if a rollout tries this version
    predictions: list[Prediction]


class ServiceError(Exception):
    """The service refused a request, or failed.

    Attributes:
        status: The HTTP status.
        detail: Each thing that is wrong: `type`, `loc` (such as `["rows", 0, "a column"]`) and `msg`.
        retry_after: Seconds after which to try again; None if the service does not say.
    """

    def __init__(self, status: int, message: str, detail: list[dict[str, Any]], retry_after: float | None) -> None:
        """Store the answer of the service."""
        super().__init__(f"{status}: {message}")
        self.status, self.detail, self.retry_after = status, detail, retry_after


class Client:
    """Asks the prediction service; it may be used by several threads."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:3000",
        key: str | None = None,
        timeout: float = 10.0,
        retries: int = 3,
        longest_wait: float = 10.0,
    ) -> None:
        """Prepare for a service.

        Args:
            url: The address of the service.
            key: An API key or a token, if access is controlled.
            timeout: Of each request, in seconds.
            retries: How often a request that the service was too busy for is sent again.
            longest_wait: A request is not sent again if the service asks to wait for more seconds.
        """
        self._url, self._key = url.rstrip("/"), key
        self._timeout, self._retries, self._longest_wait = timeout, retries, longest_wait

    def predict(self, rows: Sequence[Row], rollout_key: str | None = None) -> Answer:
        """Return a prediction for each row.

        Args:
            rows: The rows, in the order of the answer.
            rollout_key: Such as a session: rows without an id get the same version by it while a version is tried.

        Raises:
            ServiceError: the service refused the rows; none was predicted.
            OSError: the service cannot be reached, or does not answer in time.
        """
        body = json.dumps({"rows": [_to_json(row) for row in rows]}, ensure_ascii=False, allow_nan=False)
        answer = json.loads(self._send("/predict", body.encode(), "application/json", rollout_key))
        names = [field.name for field in fields(Prediction)]  # a later service may answer with more
        predictions = [Prediction(**{name: one[name] for name in names}) for one in answer["predictions"]]
        role = answer.get("role", "champion")  # a service before 0.5 names none
        return Answer(answer["request_id"], answer["model_version"], role, predictions)

    def predict_arrow(self, stream: bytes, rollout_key: str | None = None) -> bytes:
        """Return the predictions of a table as a table, both as streams of Arrow's IPC format; for thousands of rows.

        Args:
            stream: The table.
            rollout_key: As of `predict`.

        Raises:
            ServiceError: the service refused the table, or does not read Arrow.
            OSError: the service cannot be reached, or does not answer in time.
        """
        return self._send("/predict", stream, "application/vnd.apache.arrow.stream", rollout_key)

    def model(self) -> dict[str, Any]:
        """Return the model in production: version, metrics, classes, and the schema of a request.

        Raises:
            ServiceError: there is no model, or the key is refused.
            OSError: the service cannot be reached, or does not answer in time.
        """
        found: dict[str, Any] = json.loads(self._send("/model"))
        return found

    def ready(self) -> bool:
        """Return True if the service can be reached and has a model."""
        try:
            self._ask("/readyz")
        except (ServiceError, OSError):
            return False
        return True

    def _send(
        self, path: str, body: bytes | None = None, media_type: str | None = None, rollout_key: str | None = None
    ) -> bytes:
        """Return the body of an answer; a request that the service was too busy for is sent again."""
        for _ in range(self._retries):
            try:
                return self._ask(path, body, media_type, rollout_key)
            except ServiceError as error:
                if error.status not in (429, 503) or error.retry_after is None:
                    raise
                if error.retry_after > self._longest_wait:
                    raise
                time.sleep(error.retry_after)
        return self._ask(path, body, media_type, rollout_key)

    def _ask(
        self, path: str, body: bytes | None = None, media_type: str | None = None, rollout_key: str | None = None
    ) -> bytes:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        if media_type:
            headers["Content-Type"] = media_type
        if rollout_key:
            headers["X-Rollout-Key"] = rollout_key.encode().decode("latin-1")  # sent as UTF-8
        request = urllib.request.Request(self._url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            with error:
                raise _read_error(error.code, error.read(), error.headers.get("Retry-After")) from None


def _read_error(status: int, body: bytes, retry_after: str | None) -> ServiceError:
    wait = float(retry_after) if retry_after and retry_after.isdecimal() else None
    try:
        found = json.loads(body)
        return ServiceError(status, str(found["error"]), list(found.get("detail", ())), wait)
    except (ValueError, KeyError, TypeError, AttributeError):  # of a proxy
        return ServiceError(status, body[:500].decode(errors="replace"), [], wait)


def _to_json(row: Mapping[str, object]) -> dict[str, object]:
    """Return a row as JSON has it: NaN is a missing value, and a number of numpy one of Python."""
    return {name: _to_value(value) for name, value in row.items()}


def _to_value(value: Any) -> object:
    if isinstance(value, date):
        return value.isoformat() if value == value else None  # NaT of pandas is not equal to itself
    if isinstance(value, timedelta):
        return value.total_seconds()
    if not isinstance(value, bool | int | float | str) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value
