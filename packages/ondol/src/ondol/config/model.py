"""How a model is fitted, judged and deployed."""

from typing import Any, Literal

from pydantic import Field

from ondol.config.base import Section


class Train(Section):
    """How the model is fitted; `params` go to `build_estimator`, `trusted_types` to skops.

    Of more than `sample_rows` rows, about as many are learned from, chosen by a hash of the row and the seed.
    """

    seed: int = 0
    sample_rows: int | None = Field(None, ge=100)
    params: dict[str, Any] = Field({})
    trusted_types: tuple[str, ...] = ()


class Gates(Section):
    """What a candidate must reach to be deployed; `metric` defaults to the problem's own."""

    metric: str | None = None
    minimum: float | None = None
    margin: float = Field(0.01, ge=0)
    confidence: float = Field(0.95, gt=0, lt=1)
    resamples: int = Field(200, ge=20)


class Deploy(Section):
    """How the model is served; `tolerance` bounds compiled against scikit-learn probabilities."""

    runtime: Literal["onnx", "sklearn"] = "onnx"
    tolerance: float = Field(1e-5, gt=0)
