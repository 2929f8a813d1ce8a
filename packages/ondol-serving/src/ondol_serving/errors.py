"""Error responses: JSON with one sentence in `error`, and in `detail` each thing that is wrong."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

from ondol_serving.request import shorten

LONGEST_PLACE = 200
FAILED = "An unexpected error has occurred, please check the server log."  # as BentoML's own endpoints answer


class RequestRefused(Exception):
    """The request is answered with an error."""

    answer: JSONResponse

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        """Store the answer."""
        super().__init__(message)
        self.answer = refuse(status, kind, message, headers)


class RowsRefused(RequestRefused):
    """The rows of a request do not match the contract."""

    def __init__(self, error: ValidationError) -> None:
        """Name the first thing that is wrong, and list all without the values that were sent."""
        found = error.errors(include_url=False, include_context=False, include_input=False)
        errors: list[dict[str, Any]] = [dict(one) | {"loc": list(one["loc"])} for one in found]
        place = shorten(".".join(map(str, errors[0]["loc"])) or "body", LONGEST_PLACE)
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        message = f"{place}: {errors[0]['msg']}{more}"
        Exception.__init__(self, message)
        self.answer = JSONResponse({"error": message, "detail": errors}, 400)


def refuse(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an error response whose message is one sentence."""
    detail: list[dict[str, Any]] = [{"type": kind, "loc": [], "msg": message}]
    return JSONResponse({"error": message, "detail": detail}, status, headers)


def refuse_method(methods: Iterable[str]) -> JSONResponse:
    """Return the answer to a request with a method that the route does not have."""
    allowed = ", ".join(sorted(methods))
    return refuse(405, "method_not_allowed", f"This path only accepts {allowed}", {"Allow": allowed})
