"""What all sections have in common."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Problem = Literal["binary", "multiclass", "regression"]


class Section(BaseModel):
    """One section of `config.toml`: frozen, and refusing unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
