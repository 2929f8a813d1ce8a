"""Tells what a new contract would break for those who call the service under the old one."""

from ondol.contract.columns import Column, Contract
from ondol_serving.grammar import normalize


def breaking_changes(old: Contract, new: Contract) -> list[str]:
    """List in words the fields of `old` that a request can no longer carry, and those it now must."""
    # A bundle of before 0.3.1 may have names in another form than Unicode's NFC, in which callers may still write them.
    before, after = ({normalize(c.name): c for c in contract.features} for contract in (old, new))
    removed = [f'the field "{name}" is gone' for name in before if name not in after]
    retyped = [
        f'"{name}" was {column.kind} and is {after[name].kind}'
        for name, column in before.items()
        if name in after and after[name].kind != column.kind
    ]
    required = [
        f'"{name}" is now required' for name, column in after.items() if _newly_required(before.get(name), column)
    ]
    if old.problem != new.problem or old.target != new.target:
        retyped.append(f'the answer was "{old.target}" ({old.problem}) and is "{new.target}" ({new.problem})')
    return removed + retyped + required


def can_score(old: Contract, new: Contract) -> str | None:
    """Return None where a model of contract `old` can be scored on rows of `new`, else why not."""
    if (old.problem, old.target) != (new.problem, new.target):
        return f'it predicts "{old.target}" ({old.problem})'
    present = {c.name: c.kind for c in new.used}
    # The columns that decide which rows it was trained on are needed as they were, or it would be judged on those.
    needed = [c for c in old.used if c.role not in ("target", "ignored")]
    missing = [c.name for c in needed if present.get(c.name) != c.kind]
    return f'the data no longer has its column "{missing[0]}" as it was' if missing else None


def _newly_required(before: Column | None, after: Column) -> bool:
    return not after.nullable and (before is None or before.nullable)
