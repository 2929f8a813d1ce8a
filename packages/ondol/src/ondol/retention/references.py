"""Who needs which data: the model versions that MLflow knows, the bundles of the store, and what was made last."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ondol.config.settings import Settings
from ondol.errors import UserError
from ondol.registry.champion import version_of
from ondol.storage.files import TEMPORARY, read_json
from ondol.validation.results import Validations, read_latest


@dataclass(frozen=True)
class Use:
    """One that was made from data.

    Attributes:
        version: The model version; None where it is none.
        snapshot: The snapshot's digest.
        validation: The validation's id.
    """

    version: str | None
    snapshot: str | None
    validation: str | None


def registered(settings: Settings) -> list[Use]:
    """Return what every version that MLflow has was made from.

    Raises:
        UserError: MLflow cannot be asked, or it is another than the one that the champion came from.
    """
    from ondol.registry.tracking import read_version_tags

    found = read_version_tags(settings)
    return [Use(version, tags.get("data_digest"), tags.get("validation")) for version, tags in found.items()]


def bundled(settings: Settings) -> list[Use]:
    """Return what the bundle of every version that served, or may, was made from.

    Raises:
        UserError: one says nothing that can be read.
    """
    found = []
    for folder in sorted((settings.store_path / "bundles").glob("*")):
        if folder.name.startswith(TEMPORARY) or not folder.is_dir():
            continue
        try:
            meta = read_json(folder / "meta.json") or {}
        except json.JSONDecodeError:
            raise UserError(f"{folder / 'meta.json'} cannot be read: bring the bundle back, or remove it.") from None
        found.append(Use(version_of(folder.name), meta.get("data_digest"), meta.get("validation")))
    return found


def latest(settings: Settings) -> Use:
    """Return what the stages made last, from which they go on."""
    made = read_latest(settings.store_path)
    return Use(None, made.get("ingest"), made.get("validate"))


def needed(settings: Settings, uses: Iterable[Use]) -> tuple[set[str], set[str]]:
    """Return the digests of the snapshots, and the ids of the validations, that `uses` refer to."""
    validations = Validations(settings.store_path)
    names = {use.validation for use in uses if use.validation}
    records = filter(None, map(validations.find, names))
    return {use.snapshot for use in uses if use.snapshot} | {record.snapshot for record in records}, names


def versions_of(uses: Iterable[Use]) -> dict[str, list[str]]:
    """Return by a snapshot's digest the model versions that were made from it, in order."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for use in uses:
        if use.version and use.snapshot:
            found[use.snapshot].add(use.version)
    return {digest: sorted(versions, key=lambda v: (len(v), v)) for digest, versions in found.items()}
