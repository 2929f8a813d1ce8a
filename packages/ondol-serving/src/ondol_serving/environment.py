"""Settings that the environment can override."""

import os
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def read_settings(model: type[Model], settings: dict[str, Any], prefix: str, owner: str) -> Model:
    """Return `model`: each entry is taken from the environment (`prefix` and its name), else from `settings`.

    Raises:
        ValueError: an entry is not allowed; `owner` says whose setting it is.
    """
    given = {name: os.environ.get(f"{prefix}{name.upper()}") or settings.get(name) for name in model.model_fields}
    try:
        return model.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"{prefix}{str(first['loc'][0]).upper()}"
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{owner}'s setting {name} is {first['input']!r}: {reason}") from None
