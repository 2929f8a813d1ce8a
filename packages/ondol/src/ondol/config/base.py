"""What all sections have in common."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

Problem = Literal["binary", "multiclass", "regression"]


class Section(BaseModel):
    """One section of `config.toml`: frozen, and refusing unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def is_address(store: str) -> bool:
    """Tell whether a store is an object store's address rather than a folder."""
    return "://" in store


def _require_store(value: Any) -> Any:
    if str(value).startswith(("http://", "https://")):
        raise ValueError("a web server cannot be written: use a folder, s3://, gs:// or az://")
    return str(value)


StorePlace = Annotated[str, BeforeValidator(_require_store)]  # a folder or an address
