"""Which new column a missing one has probably become."""

import difflib
import re
from collections.abc import Sequence

from ondol.contract.columns import Column, Contract
from ondol.setup.profiles import Profile

ALIKE = 0.7


def find_renames(
    contract: Contract, missing: Sequence[Column], new: Sequence[Profile], there: Sequence[str]
) -> dict[str, str]:
    """Return the new name of each missing column that seems to be there still, each new column taken once.

    A column is taken for another where its values fit, and it has nearly the same name, the same closed set of values,
    or stands between the same neighbours.
    """
    scores = [(_likeness(contract, c, p, there), c.name, p.name) for c in missing for p in new if _fits(c, p)]
    renamed: dict[str, str] = {}
    for score, old, name in sorted(scores, key=lambda found: -found[0]):
        if score > 0 and old not in renamed and name not in renamed.values():
            renamed[old] = name
    return renamed


def _fits(column: Column, profile: Profile) -> bool:
    wider = (column.kind, profile.kind) == ("number", "integer")
    if profile.kind != column.kind and not wider:
        return False
    return column.categories is None or set(profile.counts.index) <= set(column.categories)


def _likeness(contract: Contract, column: Column, profile: Profile, there: Sequence[str]) -> float:
    names = difflib.SequenceMatcher(None, _plain(column.name), _plain(profile.name)).ratio()
    if names >= ALIKE:
        return 2 + names
    if column.kind == "text" and column.categories is not None and profile.distinct == len(column.categories):
        return 2.0
    same_place = _neighbours([c.name for c in contract.columns], column.name) == _neighbours(there, profile.name)
    return 1.0 if same_place else 0.0


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _neighbours(names: Sequence[str], name: str) -> tuple[str | None, str | None]:
    place = list(names).index(name)
    return names[place - 1] if place else None, names[place + 1] if place + 1 < len(names) else None
