"""The limits of the service: each the environment's (`ML_SERVICE__…`), else the bundle's, else the default."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from service.environment import read_settings


class Limits(BaseModel):
    """What a request may cost, and who may ask; the meaning of each entry is `flows.settings.Service`'s."""

    model_config = ConfigDict(frozen=True)

    max_rows: int = Field(1000, ge=1)
    max_body_bytes: int = Field(5_000_000, ge=1)
    max_bytes_in_flight: int = Field(50_000_000, ge=1)
    body_seconds: float = Field(10.0, gt=0)
    max_wait_seconds: float = Field(2.0, gt=0)
    hosts: tuple[str, ...] = ()

    @field_validator("hosts", mode="before")
    @classmethod
    def _split(cls, hosts: Any) -> Any:
        """Return the names of a text, which is JSON (as `ml` reads the variable) or has commas between them."""
        if not isinstance(hosts, str):
            return hosts
        if hosts.lstrip().startswith("["):
            return [str(name) for name in json.loads(hosts)]
        return [name for part in hosts.split(",") if (name := part.strip())]


def read_limits(settings: dict[str, Any]) -> Limits:
    """Return the limits, those of the bundle being `settings`.

    Raises:
        ValueError: one is not allowed.
    """
    return read_settings(Limits, settings, "ML_SERVICE__", "the service")
