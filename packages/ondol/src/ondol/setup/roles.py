"""Guesses what each column is for: key, time, feature, or nothing a model should see."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ondol.contract.columns import Label, Role
from ondol.setup.dates import ENOUGH
from ondol.setup.profiles import Profile
from ondol.setup.writing import Field

KEY_WORDS = {"id", "ids", "uuid", "guid", "key", "pk", "no", "nr", "index", "rowid", "identifier"}
KEY_ENDINGS = ("번호", "아이디", "식별자", "_id", "고유키")
TIME_WORDS = {"date", "time", "timestamp", "datetime", "ts", "ds", "event", "recorded", "observed"}
TIME_ENDINGS = ("_at", "_time", "_ts", "timestamp", "일시", "일자", "날짜", "시각", "기준일", "기준월")
NEAR_UNIQUE = 0.5
MOST_CATEGORIES = 30
SEEN_OFTEN = 10
WORDS_OF_PROSE = 5


@dataclass(frozen=True)
class Guess:
    """A role and the sentence that says why; `doubt` is what the owner should look at."""

    role: Role
    reason: str = ""
    doubt: str = ""


def guess_roles(profiles: Sequence[Profile], target: str) -> dict[str, Guess]:
    """Return a guess for every column, in order; at most one id and one time among them."""
    others = [p for p in profiles if p.name != target]
    key = next((p for p in others if _is_named_key(p) and p.unique), None)
    key = key or next((p for p in others if _is_key(p)), None)
    moments = [p for p in others if p.kind == "date" and p.distinct and _is_named_time(p.name)]
    guesses: dict[str, Guess] = {}
    for profile in profiles:
        if profile.name == target:
            guesses[profile.name] = Guess("target")
        elif profile is key:
            guesses[profile.name] = Guess("id", "every row has its own value")
        elif profile in moments[:1]:
            guesses[profile.name] = _guess_time(profile.name)
        else:
            guesses[profile.name] = _guess_use(profile)
    return guesses


def use_date_alone(profiles: Sequence[Profile], guesses: dict[str, Guess]) -> dict[str, Guess]:
    """Return the guesses with the row's time as a feature where no other column is one, as in a series."""
    if any(guess.role == "feature" for guess in guesses.values()):
        return guesses
    time = next((name for name, guess in guesses.items() if guess.role == "time"), None)
    if time is None or next(p for p in profiles if p.name == time).distinct < 2:
        return guesses
    doubt = (
        f'"{time}" is the only column to predict from, so it is a feature: the model sees its days, and the month, '
        "weekday and hour where these come round. Rows are held out at random between those learned from: how "
        "well a time to come is predicted, the figures do not say."
    )
    return guesses | {time: Guess("feature", "no other column is left to predict from", doubt)}


def _guess_time(name: str) -> Guess:
    doubt = f'"{name}" is taken for the row\'s time, which a model does not see: give it the role feature to use it.'
    return Guess("time", "the first date whose name says that it is the row's time", doubt)


def _guess_use(profile: Profile) -> Guess:
    """Tell a feature from what a model learns nothing from."""
    name = profile.name
    if not profile.distinct:
        if profile.broken:
            lost = f"no value can be read as a {profile.kind}"
            return Guess("ignored", lost, f'"{name}" has no value that can be read as a {profile.kind}: ignored.')
        return Guess("ignored", "no row has a value", f'"{name}" has no value in any row: ignored.')
    if profile.distinct == 1:
        if profile.missing:
            return Guess("feature", doubt=f'"{name}" has one value or none.')
        return Guess("ignored", "constant", f'"{name}" is constant, so it is ignored.')
    if _is_key(profile):
        return Guess("ignored", "every row has its own value, as an id has", f'"{name}" is a second id: ignored.')
    share = profile.distinct / profile.present
    if profile.present >= ENOUGH and share > NEAR_UNIQUE:
        figure = f"{profile.distinct:,} different values in {profile.present:,} rows"
        if profile.kind == "text":
            return Guess("ignored", f"near-unique text, {figure}", f'"{name}" is near-unique text ({figure}): ignored.')
        if profile.kind == "integer" and _has_key_name(name):
            return Guess("ignored", f"named as an id, {figure}", f'"{name}" is named as an id but repeats: ignored.')
    if profile.kind == "text" and profile.distinct > MOST_CATEGORIES and _is_prose(profile):
        return Guess("ignored", "free text", f'"{name}" is free text, which the template does not model: ignored.')
    return Guess("feature")


def describe_field(profile: Profile, guess: Guess) -> Field:
    """Return what the schema says of a column that is not the target."""
    comments = [f"Guess: {guess.role}, {guess.reason}."] if guess.reason else []
    if profile.stored_as_text:
        comments.append(f"Numbers stored as text{_count(profile)}.")
    elif profile.broken:
        comments.append(f"{profile.broken:,} values cannot be read as {profile.kind}.")
    if profile.hint:
        comments.append(profile.hint[0].upper() + profile.hint[1:] + ".")
    used = guess.role == "feature"
    categories = find_categories(profile) if used else None
    ordered = categories is not None and categories == profile.order
    if used and categories is None and profile.kind == "text" and profile.distinct <= MOST_CATEGORIES:
        comments.append(f"Open to new values: {_rarest(profile)}.")
    return Field(
        name=profile.name,
        kind=profile.kind,
        role=guess.role,
        nullable=profile.missing > 0,
        unique=guess.role == "id",
        minimum=find_minimum(profile) if used and categories is None else None,
        categories=categories,
        ordered=ordered,
        comments=tuple(comments),
    )


def find_minimum(profile: Profile) -> int | None:
    """Return 0 for numbers that are never negative: the one bound that a sample may be trusted with."""
    if profile.kind not in ("number", "integer"):
        return None
    return 0 if float(profile.values.min()) >= 0 else None


def find_categories(profile: Profile) -> tuple[Label, ...] | None:
    """Return the values of a set that seems closed: few, each seen often; None for an open one."""
    counts = profile.counts
    if profile.order is not None and set(counts.index) <= set(profile.order) and len(profile.order) <= MOST_CATEGORIES:
        return profile.order
    if profile.kind == "integer":
        return (0, 1) if len(counts) == 2 and set(counts.index) == {0, 1} else None
    often = max(SEEN_OFTEN, profile.present // 1000)
    closed = profile.kind == "text" and 2 <= len(counts) <= MOST_CATEGORIES and counts.min() >= often
    return tuple(sorted(str(value) for value in counts.index)) if closed else None


def is_sequence(profile: Profile) -> bool:
    """Tell whether whole numbers count the rows, in any order."""
    if profile.kind != "integer" or not profile.unique or len(profile.values) < ENOUGH:
        return False
    return bool(profile.values.max() - profile.values.min() + 1 == len(profile.values))


def _is_key(profile: Profile) -> bool:
    if not profile.unique or (len(profile.values) < ENOUGH and not _has_key_name(profile.name)):
        return False
    return _is_named_key(profile) or is_sequence(profile) or (profile.kind == "text" and _is_code(profile))


def _is_named_key(profile: Profile) -> bool:
    return profile.kind in ("integer", "text") and _has_key_name(profile.name)


def _is_code(profile: Profile) -> bool:
    """Tell whether texts look like keys: about one length, no spaces, no dates or numbers with marks."""
    lengths = profile.values.str.len()
    return bool(not profile.values.str.contains(r"[\s/,]").any() and lengths.std() <= 2)


def _is_prose(profile: Profile) -> bool:
    words = pd.Series(profile.counts.index[:1000].astype("str")).str.count(r"\S+")
    return float(np.mean(words)) >= WORDS_OF_PROSE


def _words(name: str) -> list[str]:
    parted = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return [word.lower() for word in re.split(r"[\W_]+", parted) if word]


def _has_key_name(name: str) -> bool:
    return bool(KEY_WORDS & set(_words(name))) or name.lower().endswith(KEY_ENDINGS)


def _is_named_time(name: str) -> bool:
    return bool(TIME_WORDS & set(_words(name))) or name.lower().endswith(TIME_ENDINGS)


def _count(profile: Profile) -> str:
    said = [f"{profile.blanks:,} blank"] if profile.blanks else []
    said += [f"{profile.broken:,} unreadable"] if profile.broken else []
    return f" ({' and '.join(said)})" if said else ""


def _rarest(profile: Profile) -> str:
    value, times = profile.counts.index[-1], int(profile.counts.iloc[-1])
    short = str(value) if len(str(value)) <= 30 else f"{str(value)[:27]}..."
    return f'"{short}" was seen only {"once" if times == 1 else f"{times:,} times"}'
