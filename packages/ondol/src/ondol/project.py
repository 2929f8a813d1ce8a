"""A project: its settings, and its contract, store, registry and champion, opened when they are first used."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ondol.config import Settings, load_settings

if TYPE_CHECKING:
    from ondol.contract import Contract
    from ondol.evaluation.verdicts import Verdicts
    from ondol.registry.champion import Champion
    from ondol.registry.registry import Registry
    from ondol.snapshots.snapshots import Snapshots
    from ondol.storage.store import Store
    from ondol.validation.results import Latest, Validations


@dataclass(frozen=True)
class Project:
    """A project as the steps of one flow run share it."""

    settings: Settings

    @cached_property
    def store(self) -> "Store":
        """The store: its folder, or the folder that mirrors a remote one."""
        from ondol.storage.store import open_store

        return open_store(self.settings)

    @cached_property
    def contract(self) -> "Contract":
        """What `model/schema.py` says of the data, without encodings."""
        from ondol.contract import load_contract

        return load_contract(self.settings)

    @cached_property
    def snapshots(self) -> "Snapshots":
        """The tables that were ingested."""
        from ondol.snapshots.snapshots import Snapshots

        return Snapshots(self.store)

    @cached_property
    def validations(self) -> "Validations":
        """The records of validated snapshots, and the quarantined rows."""
        from ondol.validation.results import Validations

        return Validations(self.store)

    @cached_property
    def latest(self) -> "Latest":
        """What each stage made last."""
        from ondol.validation.results import Latest

        return Latest(self.store)

    @cached_property
    def registry(self) -> "Registry":
        """MLflow's runs and registered versions."""
        from ondol.registry.registry import Registry

        return Registry(self.settings)

    @cached_property
    def verdicts(self) -> "Verdicts":
        """What the gates decided on each version."""
        from ondol.evaluation.verdicts import Verdicts

        return Verdicts(self.store)

    @property
    def champion(self) -> "Champion | None":
        """The version in production, read each time: a deployment changes it."""
        from ondol.registry.champion import read_champion

        return read_champion(self.store)


def open_project() -> Project:
    """Return the project in whose folder this process runs.

    Raises:
        UserError: there is none, or its settings are wrong.
    """
    return Project(load_settings())
