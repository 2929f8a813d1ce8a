"""The prediction service of a project: it loads the champion's bundle and answers predictions over HTTP.

What its image contains, and no more: neither the engine (`ondol`) nor pandas, scikit-learn, MLflow or Prefect. The
engine imports four modules of it, so that nothing is written twice: `callers`, `grammar`, `names` and `printable`.

A project's `service/service.py` inherits `ModelService` and is made a BentoML service by `service`. Both are loaded
when they are first used: the engine must not wait for BentoML.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ondol_serving.model_service import ModelService, service

__all__ = ["ModelService", "service"]


def __getattr__(name: str) -> Any:
    """Return a public name, from the module that defines it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ondol_serving import model_service

    return getattr(model_service, name)
