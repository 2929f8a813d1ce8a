"""What is predicted: which problem it is, and whether it can be learned at all."""

from dataclasses import dataclass
from typing import get_args

from ondol.config.base import Problem
from ondol.contract.columns import Label
from ondol.contract.encoding import require_answerable
from ondol.errors import UserError, nearest
from ondol.setup.profiles import Profile
from ondol.setup.roles import NEAR_UNIQUE, find_minimum, is_sequence
from ondol.setup.writing import Field

SURELY_FEW = 10
PERHAPS_FEW = 20
ROWS_PER_CLASS = 5
MOST_CLASSES = 100


@dataclass(frozen=True)
class Goal:
    """The target as the schema says it, its problem, how that was found, and what is doubtful."""

    field: Field
    problem: Problem
    reason: str
    doubts: tuple[str, ...] = ()


def check_problem(problem: str | None) -> None:
    """Check that a problem is one of the three.

    Raises:
        UserError: it is not.
    """
    known = get_args(Problem)
    if problem is not None and problem not in known:
        raise UserError(
            f'"{problem}" is no problem: use {", ".join(known[:-1])} or {known[-1]}.{nearest(problem, known)}'
        )


def set_goal(profile: Profile, problem: Problem | None) -> Goal:
    """Return what is to be predicted.

    Args:
        profile: The target column.
        problem: What the user said it is; None to infer it.

    Raises:
        UserError: it has no value or one only, is an id or a date, or does not suit the problem.
    """
    _refuse_unlearnable(profile)
    found, reason = (problem, "as told") if problem else _infer(profile)
    _refuse_mismatch(profile, found)
    if found == "regression":
        require_answerable(profile.name, profile.values)
    classes = None if found == "regression" else profile.whole and profile.kind == "number"
    settled = profile.read_as("integer") if classes else profile
    field = Field(
        name=profile.name,
        kind=settled.kind,
        role="target",
        minimum=find_minimum(settled) if found == "regression" else None,
        categories=_classes(settled) if found != "regression" else None,
    )
    return Goal(field, found, reason, tuple(_doubt(profile, found, reason)))


def _refuse_unlearnable(profile: Profile) -> None:
    name = profile.name
    if not profile.distinct:
        raise UserError(f'The target "{name}" has no value in any row: name a column that has some.')
    if profile.distinct == 1:
        raise UserError(f'The target "{name}" is {profile.counts.index[0]!r} in every row: nothing is to be learned.')
    if profile.kind in ("date", "duration"):
        raise UserError(f'The target "{name}" is a {profile.kind}: name a column of classes or numbers.')
    if profile.kind == "text" and profile.hint:
        raise UserError(f'The target "{name}" cannot be learned as it is: {profile.hint}.')
    many = profile.distinct > max(PERHAPS_FEW, NEAR_UNIQUE * profile.present)
    if is_sequence(profile) or (profile.kind == "text" and many):
        raise UserError(
            f'The target "{name}" has {profile.distinct:,} different values in {profile.present:,} rows, as '
            "an id has: name the column to predict."
        )


def _infer(profile: Profile) -> tuple[Problem, str]:
    """Return the likeliest problem, and why."""
    count = profile.distinct
    if profile.kind == "boolean" or count == 2:
        return "binary", "it has two values"
    if profile.kind == "text":
        return "multiclass", f"it has {count} different texts"
    few = count <= PERHAPS_FEW and profile.present >= ROWS_PER_CLASS * count
    if profile.whole and few and (count <= SURELY_FEW or float(profile.values.abs().max()) <= PERHAPS_FEW):
        return "multiclass", f"a guess: it has {count} different whole numbers"
    return "regression", f"it has {count:,} different numbers"


def _refuse_mismatch(profile: Profile, problem: Problem) -> None:
    name, count = profile.name, profile.distinct
    if problem == "regression":
        if profile.kind not in ("number", "integer"):
            raise UserError(f'The target "{name}" holds {profile.kind} values: regression needs numbers.')
        return
    if profile.kind == "number" and not profile.whole:
        raise UserError(f'The target "{name}" holds fractions: use --problem regression.')
    if problem == "binary" and count != 2:
        raise UserError(
            f'The target "{name}" has {count:,} different values: binary needs two; try --problem multiclass.'
        )
    if problem == "multiclass" and count == 2:
        raise UserError(f'The target "{name}" has two values: use --problem binary.')
    if count > MOST_CLASSES:
        other = "group them" if profile.kind == "text" else "use --problem regression"
        raise UserError(f'The target "{name}" has {count:,} classes, more than {MOST_CLASSES}: {other}.')


def _classes(profile: Profile) -> tuple[Label, ...] | None:
    """Return the classes in order; None for truth values, which need no list."""
    if profile.kind == "boolean":
        return None
    values = profile.counts.index
    return tuple(sorted(int(v) for v in values)) if profile.kind == "integer" else tuple(sorted(str(v) for v in values))


def _doubt(profile: Profile, problem: Problem, reason: str) -> list[str]:
    name = profile.name
    doubts = []
    if reason.startswith("a guess"):
        doubts.append(
            f'"{name}" is taken as {problem} because it has few whole numbers; --problem regression says otherwise.'
        )
    rows = len(profile.values)
    if profile.missing:
        counted = "1 row" if profile.missing == 1 else f"{profile.missing:,} rows"
        left = "it is" if profile.missing == 1 else "they are"
        doubts.append(f'"{name}" is missing in {counted} ({profile.missing / rows:.1%}): {left} left out of training.')
    return doubts
