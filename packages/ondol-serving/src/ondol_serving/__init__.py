"""The prediction service of a project: it loads the champion's bundle and answers predictions over HTTP.

Its image contains neither the engine (`ondol`) nor pandas, scikit-learn, MLflow or Prefect. To avoid duplicate code,
the engine imports five modules of this package: `callers`, `grammar`, `keys`, `names` and `printable`.

In a project's `service/service.py`, a class inherits `ModelService`, and the decorator `service` makes it a BentoML
service. Both are imported on first use, so that the engine does not wait for BentoML.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ondol_serving.model_service import ModelService, service

__all__ = ["ModelService", "service"]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ondol_serving import model_service

    return getattr(model_service, name)
