"""BentoML's model store: each deployed bundle is imported, so that BentoML's commands list and build it."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ondol.registry.bundles import Bundle

if TYPE_CHECKING:
    from bentoml import Tag


def tag_of(bundle: Bundle) -> str:
    """Return the tag under which a bundle is kept: project and bundle name."""
    return f"{bundle.meta['name']}:{bundle.name}"


def import_bundle(bundle: Bundle) -> str:
    """Copy the bundle into the store unless it is there whole; return its tag."""
    import bentoml
    from bentoml.exceptions import NotFound

    tag = tag_of(bundle)
    try:
        bentoml.models.get(tag)
    except NotFound:
        with bentoml.models.create(tag, module="service", labels={"version": bundle.version}, signatures={}) as model:
            for file in bundle.path.iterdir():
                shutil.copy2(file, Path(model.path) / file.name)
    return tag


def forget_bundle(tag: "str | Tag") -> None:
    """Remove a bundle from the store."""
    import bentoml

    bentoml.models.delete(tag)
