"""The model registry: runs and versions in MLflow, stored bundles, and the champion.

The only package that imports MLflow. `champion.json` in the store names the version in production (`champion`);
MLflow's alias is a copy.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.registry.champion import alert_new_champion
    from ondol.registry.registry import read_version_tags, repair_mlflow_alias
else:
    __getattr__ = export(__name__)

__all__ = [
    "alert_new_champion",
    "read_version_tags",
    "repair_mlflow_alias",
]
