"""Bundles: immutable folders with everything that the service loads, named by version and content."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ondol.config import Settings
from ondol.contract.schema import Contract
from ondol.errors import UserError
from ondol.registry.champion import require_champion, version_of
from ondol.storage.files import SHORT, read_json, scratch
from ondol.storage.store import Store
from ondol_serving.names import digest_folder


class Unusable(UserError):
    """A bundle is missing or was changed."""


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
        """The contract with which the bundle's model was trained."""
        return Contract.model_validate_json((self.path / "contract.json").read_bytes())

    @property
    def meta(self) -> dict[str, Any]:
        """The metadata of the model, from `meta.json`."""
        return read_json(self.path / "meta.json") or {}


def bundle_path(store: Store, name: str) -> Path:
    """Return the path of the bundle `name`, which may not exist."""
    return store.folder / "bundles" / name


def write_bundle(store: Store, version: str, files: dict[str, bytes]) -> Bundle:
    """Write `files` as a bundle, or return the existing bundle with the same content."""
    with scratch(bundle_path(store, version)) as made:
        made.mkdir()
        for name, content in files.items():
            (made / name).write_bytes(content)
        digest = digest_folder(made)
        path = bundle_path(store, f"{version}-{digest[:SHORT]}")
        if not store.has(path / "meta.json"):
            store.publish(made, path)
    return Bundle(path=path, version=version, digest=digest)


def open_bundle(store: Store, name: str) -> Bundle:
    """Return the bundle with the folder name `name` after a check of its content.

    Raises:
        Unusable: there is none, or it was changed since it was written.
        UserError: the store is remote and cannot be reached.
    """
    path = bundle_path(store, name)
    version, _, short = name.rpartition("-")
    digest = digest_folder(path) if path.is_dir() else None
    if digest is None or not digest.startswith(short):
        store.fetch_folder(path)
        digest = digest_folder(path) if path.is_dir() else None
    if digest is None:
        raise Unusable(f"The bundle {path} is missing: `ml run` deploys again.")
    if not digest.startswith(short):
        raise Unusable(
            f"The bundle {path} was changed after it was written (its digest is {digest[:SHORT]}): bring it back from "
            "a backup, or remove it and run `ml run`, which deploys again."
        )
    return Bundle(path=path, version=version, digest=digest)


def find_bundle(store: Store, name: str) -> Bundle | None:
    """Return the bundle with the folder name `name`, or None if it is missing or was changed.

    Raises:
        UserError: the store is remote and cannot be reached.
    """
    try:
        return open_bundle(store, name)
    except Unusable:
        return None


def served_bundle(store: Store, version: str) -> Bundle:
    """Return the last bundle of a version that was in production.

    Raises:
        UserError: the version never was in production.
    """
    names = [change.to for change in require_champion(store).history if version_of(change.to) == version]
    if not names:
        raise UserError(
            f"Version {version} never was in production, so it cannot be put back: `ml status` lists those that were."
        )
    return open_bundle(store, names[-1])


def drop_bundle(store: Store, bundle: Bundle) -> None:
    """Remove a bundle that never was in production."""
    store.remove(bundle.path)


SHARED = ("bentos", "models")  # files that the owner may have put into BentoML's stores


def new_bento_home(settings: Settings) -> tuple[dict[str, str], list[int]]:
    """Create a BentoML home for a new process, and remove those of ended processes.

    Returns:
        The variables for its environment, and the files that it must keep open: their locks show that it is still
        running. Both are empty if the folder cannot be created; then the process shares a home with others.
    """
    shared = Path(os.environ.get("BENTOML_HOME") or settings.home / "bentoml")
    folder = shared / "processes"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            _remove_ended(folder)
            home = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=folder))
            for name in SHARED:
                (shared / name).mkdir(exist_ok=True)
                (home / name).symlink_to((shared / name).resolve())
            kept_open = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(kept_open, fcntl.LOCK_EX)
    except OSError:
        return {}, []
    return {"BENTOML_HOME": str(home)}, [kept_open]


def _remove_ended(folder: Path) -> None:
    for home in folder.iterdir():
        if not home.is_dir():
            continue
        with suppress(OSError), (home / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
