"""The model registry: runs and versions in MLflow, stored bundles, and the champion.

The only package that imports MLflow. `champion.json` in the store names the version in production (`champion`);
MLflow's alias is a copy.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.registry.bundles import Bundle, find_bundle, open_bundle
    from ondol.registry.champion import Champion, alert_new_champion, read_champion, require_champion
    from ondol.registry.registry import Registry, read_version_tags, repair_mlflow_alias
else:
    __getattr__ = export(__name__)

__all__ = [
    "Bundle",
    "Champion",
    "Registry",
    "alert_new_champion",
    "find_bundle",
    "open_bundle",
    "read_champion",
    "read_version_tags",
    "repair_mlflow_alias",
    "require_champion",
]
