"""How the contract follows its data: what changed, and the edit of `model/schema.py` that says so."""

from flows.evolution.change import Change
from flows.evolution.changes import find_changes
from flows.evolution.editing import Proposal, propose

__all__ = ["Change", "Proposal", "find_changes", "propose"]
