"""The limits of the service: each the environment's (`ML_SERVICE__…`), else the bundle's, else the default."""

import json
import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PREFIX = "ML_SERVICE__"


class Limits(BaseModel):
    """What a request may cost, and who may ask; the meaning of each entry is `flows.settings.Service`'s."""

    model_config = ConfigDict(frozen=True)

    max_rows: int = Field(1000, ge=1)
    max_body_bytes: int = Field(5_000_000, ge=1)
    max_bytes_in_flight: int = Field(50_000_000, ge=1)
    body_seconds: float = Field(10.0, gt=0)
    max_wait_seconds: float = Field(2.0, gt=0)
    hosts: tuple[str, ...] = ()


def read_limits(settings: dict[str, Any]) -> Limits:
    """Return the limits, those of the bundle being `settings`.

    Raises:
        ValueError: one is not allowed.
    """
    given = {name: os.environ.get(f"{PREFIX}{name.upper()}") or settings.get(name) for name in Limits.model_fields}
    if isinstance(given["hosts"], str):
        given["hosts"] = split_names(given["hosts"])
    try:
        return Limits.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"{PREFIX}{str(first['loc'][0]).upper()}"
        raise ValueError(f"the service's setting {name} is {first['input']!r}: {first['msg']}") from None


def split_names(text: str) -> list[str]:
    """Return the names of a list, which is JSON (as `ml` reads the variable) or has commas between them."""
    if text.lstrip().startswith("["):
        return [str(name) for name in json.loads(text)]
    return [name for part in text.split(",") if (name := part.strip())]
