"""Bundles: folders with all that the service loads, named by version and content, never rewritten."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ondol.contract.columns import Contract
from ondol.errors import UserError
from ondol.storage.files import digest_folder, publish, read_json, scratch
from ondol.storage.reach import fetch_folder, is_published, remove

SHORT = 12  # characters of a digest in a name


class Unusable(UserError):
    """A bundle is missing, or was changed."""


class Bundle(BaseModel):
    """A bundle on disk."""

    path: Path
    version: str
    digest: str

    @property
    def name(self) -> str:
        """The folder's name, `<version>-<digest>`."""
        return self.path.name

    @property
    def contract(self) -> Contract:
        """The contract that the bundle's model was trained under."""
        return Contract.model_validate_json((self.path / "contract.json").read_bytes())

    @property
    def meta(self) -> dict[str, Any]:
        """What is recorded of the model: see the design page."""
        return read_json(self.path / "meta.json") or {}


def write_bundle(store: Path, version: str, files: dict[str, bytes]) -> Bundle:
    """Write `files` as a bundle, or find the one that holds the same."""
    with scratch(store / "bundles" / version) as made:
        made.mkdir()
        for name, content in files.items():
            (made / name).write_bytes(content)
        digest = digest_folder(made)
        path = store / "bundles" / f"{version}-{digest[:SHORT]}"
        if not is_published(path / "meta.json"):
            publish(made, path)
    return Bundle(path=path, version=version, digest=digest)


def open_bundle(store: Path, name: str) -> Bundle:
    """Return the bundle with the folder name `name`, its bytes checked against it.

    Raises:
        Unusable: there is none, or it was changed since it was written.
        UserError: the store is elsewhere and cannot be reached.
    """
    path = store / "bundles" / name
    version, _, short = name.rpartition("-")
    digest = digest_folder(path) if path.is_dir() else None
    if digest is None or not digest.startswith(short):
        fetch_folder(path)
        digest = digest_folder(path) if path.is_dir() else None
    if digest is None:
        raise Unusable(f"The bundle {path} is missing: `ml run` deploys again.")
    if not digest.startswith(short):
        raise Unusable(
            f"The bundle {path} was changed after it was written (its digest is {digest[:SHORT]}): bring it back from "
            "a backup, or remove it and run `ml run`, which deploys again."
        )
    return Bundle(path=path, version=version, digest=digest)


def find_bundle(store: Path, name: str) -> Bundle | None:
    """Return the bundle with the folder name `name`, or None where it is missing or was changed.

    Raises:
        UserError: the store is elsewhere and cannot be reached: nobody knows.
    """
    try:
        return open_bundle(store, name)
    except Unusable:
        return None


def drop_bundle(bundle: Bundle) -> None:
    """Remove a bundle that never served."""
    remove(bundle.path)
