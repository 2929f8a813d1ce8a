"""The limits of the service: each the environment's (`ML_SERVICE__…`), else the bundle's, else the default."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ondol_serving.callers import require_host, split_hosts
from ondol_serving.environment import read_settings


class Limits(BaseModel):
    """What a request may cost, and who may ask; the meaning of each entry is `ondol.config.Service`'s."""

    model_config = ConfigDict(frozen=True)

    max_rows: int = Field(1000, ge=1)
    max_body_bytes: int = Field(5_000_000, ge=1)
    max_bytes_in_flight: int = Field(50_000_000, ge=1)
    body_seconds: float = Field(10.0, gt=0)
    max_wait_seconds: float = Field(2.0, gt=0)
    hosts: Annotated[tuple[Annotated[str, AfterValidator(require_host)], ...], BeforeValidator(split_hosts)] = ()


def read_limits(settings: dict[str, Any]) -> Limits:
    """Return the limits, those of the bundle being `settings`.

    Raises:
        ValueError: one is not allowed.
    """
    return read_settings(Limits, settings, "ML_SERVICE__", "the service")
