"""The service's settings: limits of requests, allowed hosts, and logging.

Each comes from the environment (`ML_SERVICE__…`, `ML_LOG__…`), else from the bundle, else from the default.
"""

import os
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from ondol_serving.callers import require_host, require_redis, show_value, split_hosts

HOSTS = "[service] hosts (ML_SERVICE__HOSTS)"
Model = TypeVar("Model", bound=BaseModel)


class Limits(BaseModel):
    """Limits of requests, and allowed hosts; see `ondol.config.Service` for the entries."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    max_rows: int = Field(1000, ge=1)
    max_explained_rows: int = Field(100, ge=1)
    max_body_bytes: int = Field(5_000_000, ge=1)
    max_bytes_in_flight: int = Field(50_000_000, ge=1)
    body_seconds: float = Field(10.0, gt=0)
    max_concurrency: int | None = Field(None, ge=1)
    max_wait_seconds: float = Field(2.0, gt=0)
    hosts: Annotated[tuple[Annotated[str, AfterValidator(require_host)], ...], BeforeValidator(split_hosts)] = ()


class Rules(BaseModel):
    """What is logged and how much is kept; see `ondol.config.Log` for the entries."""

    model_config = ConfigDict(frozen=True)

    enabled: bool = True
    sensitive: Literal["drop", "hash"] = "drop"
    file_bytes: int = Field(64_000_000, ge=1)
    keep_bytes: int = Field(2_000_000_000, ge=1)


def parse_rate(value: Any) -> Any:
    """Parse a rate, such as "100/second", into a number of requests and of seconds; return other values unchanged."""
    if not isinstance(value, str):
        return value
    count, _, unit = value.partition("/")
    seconds = {"second": 1.0, "minute": 60.0, "hour": 3600.0}.get(unit.strip())
    if seconds is None or not count.strip().isdecimal() or int(count) < 1:
        raise ValueError('a rate is written as "100/second", "100/minute" or "100/hour"')
    return float(count), seconds


def _require_audience(audience: str | None, others: ValidationInfo) -> str | None:
    if audience is None and others.data.get("jwks"):
        raise ValueError("tokens need an audience: without it, a token for another service would be valid here")
    return audience


class AccessRules(BaseModel):
    """Access control; see `ondol.config.Access` for the entries."""

    model_config = ConfigDict(frozen=True)

    open: bool = False
    rate: Annotated[tuple[float, float] | None, BeforeValidator(parse_rate)] = None
    redis: Annotated[str, AfterValidator(require_redis)] | None = None
    jwks: str | None = Field(None, pattern=r"^https?://\S+$")
    issuer: str | None = None
    audience: Annotated[str | None, AfterValidator(_require_audience)] = Field(None, validate_default=True)


def read_access_rules() -> AccessRules:
    """Return the rules of the environment (`ML_ACCESS__…`): those of a bundle must not open a service.

    Raises:
        ValueError: a value is not allowed.
    """
    return read_settings(AccessRules, {}, "ML_ACCESS__", "access control")


def read_limits(settings: dict[str, Any]) -> Limits:
    """Return the limits; `settings` are those of the bundle.

    Raises:
        ValueError: a value is not allowed.
    """
    return read_settings(Limits, settings, "ML_SERVICE__", "the service")


def read_rules(settings: dict[str, Any]) -> Rules:
    """Return the rules: each entry from the environment (`ML_LOG__…`), else from the bundle, else the default.

    Raises:
        ValueError: an entry is not allowed.
    """
    return read_settings(Rules, settings, "ML_LOG__", "the log")


def read_settings(model: type[Model], settings: dict[str, Any], prefix: str, owner: str) -> Model:
    """Build `model`: each entry comes from the environment (`prefix` and its name), else from `settings`.

    Raises:
        ValueError: an entry is not allowed; `owner` names the source in the message.
    """
    given = {name: os.environ.get(f"{prefix}{name.upper()}") or settings.get(name) for name in model.model_fields}
    try:
        return model.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"{prefix}{str(first['loc'][0]).upper()}"
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{owner}'s setting {name} is {show_value(first['input'])}: {reason}") from None
