"""Infers the target, the problem, and each column's type and role from a table."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ondol.config import Dialect, Problem
from ondol.contract import Column, Contract
from ondol.contract.checking import clean_column
from ondol.contract.encoding import require_answerable
from ondol.contract.schema import Kind, Label, Role
from ondol.errors import UserError, nearest
from ondol.ingestion.csv_files import NUMERIC, converts, read_cells
from ondol.ingestion.parquet import DURATION, ORDER
from ondol.setup.dates import ENOUGH, TRIED, prevails, reads
from ondol.setup.schema_file import ANNOTATIONS, Field
from ondol.validation.leakage import Alarm, find_alarms
from ondol_serving.grammar import AMBIGUOUS_FORMATS, NUMBER, DateGrammar, date_grammar, parse_duration

EXACT = 2**53
CLOCK = r"\d{1,2}:\d{2}:\d{2}(\.\d+)?"
SHORT_CLOCK = r"\d{1,2}:\d{2}"
# A year and a day of the month, with short text around them.
DATE_LIKE = (
    r"\D{0,12}((19|20)\d\d\D{1,12}[0-3]?\d(\D.{0,20})?|[0-3]?\d\D{1,12}([01]?\d\D{1,4})?(19|20)\d\d(\D.{0,20})?)"
)
FEW = 5
MOSTLY = 2 / 3  # share of the values
MOST_SHOWN = 3
MONEY = "%$€£¥₩원"
AMOUNT = rf"[+-]?[{MONEY}]? ?[+-]?(\d{{1,3}}([,.]\d{{3}})+([,.]\d+)?|\d+([,.]\d+)?) ?[{MONEY}]?"


def guess_text(values: pa.ChunkedArray, formats: tuple[str, ...] = AMBIGUOUS_FORMATS) -> tuple[Kind, str]:
    """Return the kind of a text column, and a hint if it stays text for a reason.

    Args:
        values: The column.
        formats: The listed formats of dates; see `ondol_serving.grammar`.
    """
    counted = pc.value_counts(values.combine_chunks())
    texts = counted.field("values").to_pandas().astype("str")
    texts, counts = _present(texts, pd.Series(counted.field("counts").to_numpy()))
    kind, hint = guess_counted(texts, counts, formats)
    if kind == "text" and not hint and not texts.empty:
        hint = _hint_mixed(texts, counts, date_grammar(formats)) or _hint(texts)
    return kind, hint


def guess_counted(
    texts: "pd.Series[str]", counts: "pd.Series[int]", formats: tuple[str, ...] = AMBIGUOUS_FORMATS
) -> tuple[Kind, str]:
    """Return the kind of distinct texts with counts, and a hint on how they are read."""
    texts, counts = _present(texts, counts)
    if texts.empty:
        return "text", ""
    if set(texts.str.lower()) <= {"true", "false"}:
        return "boolean", ""
    grammar = date_grammar(formats)
    if grammar.reads_digits and reads(grammar.parse, texts, counts):
        return "date", ""
    fits = texts.str.fullmatch(NUMBER)
    numbers = pd.to_numeric(texts.where(fits), errors="coerce").astype(np.float64)
    if prevails(numbers.abs() < np.inf, counts):
        return _guess_number(texts, numbers)
    if reads(parse_duration, texts, counts):
        clock = texts.str.fullmatch(CLOCK).all()
        return "duration", "clock times are read as durations, hours:minutes:seconds" if clock else ""
    if reads(grammar.parse, texts, counts):
        return "date", ""
    return "text", ""


def _present(texts: "pd.Series[str]", counts: "pd.Series[int]") -> "tuple[pd.Series[str], pd.Series[int]]":
    """Return the texts that are not blank, without spaces around them, and their counts."""
    texts = texts.str.strip()
    there = (texts.notna() & (texts != "")).to_numpy(dtype=bool)
    return texts[there], counts[there]


def _guess_number(texts: "pd.Series[str]", numbers: "pd.Series[float]") -> tuple[Kind, str]:
    if texts.str.match(r"[+-]?0\d").any():
        return "text", "codes with leading zeros stay text"
    readable = texts[np.isfinite(numbers)]
    if not readable.str.fullmatch(r"[+-]?\d+").all():
        return "number", ""
    if numbers.abs().max() >= EXACT:
        return "text", "numbers too long for arithmetic stay text"
    return "integer", ""


def _hint_mixed(texts: "pd.Series[str]", counts: "pd.Series[int]", grammar: DateGrammar) -> str:
    """Return a hint on a column of numbers or dates with some other texts."""
    texts, counts = texts.reset_index(drop=True), counts.reset_index(drop=True)
    dates = texts.iloc[:TRIED].map(lambda text: grammar.parse(text) is not None).astype(bool)
    if dates.mean() > MOSTLY:
        dates = texts.map(lambda text: grammar.parse(text) is not None).astype(bool)
    for what, fits in (
        ("numbers", texts.str.fullmatch(NUMBER)),
        ("dates", dates.reindex(texts.index, fill_value=False)),
    ):
        if fits.sum() < FEW or fits.all() or counts[fits].sum() <= MOSTLY * counts.sum():
            continue
        others = texts[~fits].loc[counts[~fits].sort_values(ascending=False, kind="stable").index]
        listed = json.dumps(others.head(MOST_SHOWN).tolist(), ensure_ascii=False)
        if len(others) <= MOST_SHOWN:
            return (
                f"most values are {what}, but {int(counts[~fits].sum()):,} are not: if they mean that there is no "
                f"value, write missing = {listed} under [data] in config.toml and run this again"
            )
        return f"most values are {what}, but {len(others):,} others are not, such as {listed[1:-1]}: it stays text"
    return ""


def _hint(texts: "pd.Series[str]") -> str:
    if texts.str.fullmatch(SHORT_CLOCK).all():
        return f"clock times without seconds stay text: {_rewrite('10:30:00', 'duration')}"
    if len(texts) >= FEW and texts.str.fullmatch(DATE_LIKE).all():
        return f'texts such as "{texts.iloc[0]}" may be dates in an unknown form: {_rewrite("2024-01-31", "date")}'
    plain = texts.str.translate(str.maketrans("−﹣－（）", "---()"))
    bare = plain.str.replace(r"^\((.*)\)$", r"-\1", regex=True).str.replace(r"^--", "-", regex=True)
    if bare.str.fullmatch(AMOUNT).all() and not texts.str.fullmatch(NUMBER).all():
        return (
            "numbers with commas, parentheses, another minus sign, or signs of money or percent stay text: "
            f"{_rewrite('1234.5', 'number')}"
        )
    return ""


def _rewrite(form: str, kind: Kind) -> str:
    """Return the remedy for texts that are not read as a kind."""
    return (
        f"write them as {form} in the source and run this again, or by `prepare` in model/source.py "
        f"(docs/how-to/change-the-rows-before-validation.md) "
        f"and declare the column as `{ANNOTATIONS[kind]} = pa.Field()` in model/schema.py"
    )


@dataclass(frozen=True)
class Profile:
    """One column of the table.

    Attributes:
        name: Its real name.
        kind: The inferred kind of its values.
        values: The values in that kind (see `ondol.contract.checking.clean_column`); unreadable ones are missing.
        blanks: The number of blank texts among numbers or dates.
        broken: The number of values that could not be read as the kind.
        stored_as_text: Whether the source stores numbers as text.
        hint: Why it is read as text, if that needs an explanation.
        order: The values in order, if the source defines an order.
    """

    name: str
    kind: Kind
    values: "pd.Series[Any]"
    blanks: int = 0
    broken: int = 0
    stored_as_text: bool = False
    hint: str = ""
    order: tuple[str, ...] | None = None

    @cached_property
    def counts(self) -> "pd.Series[int]":
        """The count of each value, the most frequent first."""
        return self.values.value_counts()

    @cached_property
    def missing(self) -> int:
        """The number of rows without a value."""
        return int(self.values.isna().sum()) - self.broken

    @property
    def distinct(self) -> int:
        """The number of distinct values."""
        return len(self.counts)

    @property
    def present(self) -> int:
        """The number of rows with a value."""
        return int(self.values.notna().sum())

    @property
    def unique(self) -> bool:
        """Whether every row has a different value."""
        return self.distinct == len(self.values)

    @property
    def whole(self) -> bool:
        """Whether all values are whole numbers."""
        return self.kind == "integer" or (self.kind == "number" and bool((self.values.dropna() % 1 == 0).all()))

    def read_as(self, kind: Kind) -> "Profile":
        """Return the profile with another kind that its values already have."""
        return replace(self, kind=kind)


@dataclass(frozen=True)
class TableFormat:
    """The settings for reading a table that are not in its file.

    Attributes:
        dialect: The dialect; None if the table is not delimited text.
        formats: The listed formats of its dates; see `ondol_serving.grammar`.
        notes: Sentences on settings that differ from the default.
        doubts: Sentences on ambiguous settings.
        dated: The columns whose date format `notes` or `doubts` explain.
    """

    dialect: Dialect | None = None
    formats: tuple[str, ...] = AMBIGUOUS_FORMATS
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    dated: frozenset[str] = frozenset()

    def column(self, name: str, kind: Kind) -> Column:
        """Return a contract column of a kind, for reading values."""
        return Column(name=name, kind=kind, formats=self.formats if kind == "date" else None)

    def spell(self, values: pa.ChunkedArray, kind: str, name: str) -> pa.ChunkedArray:
        """Convert a column of raw text like a source that knows its kind; other columns are unchanged."""
        if self.dialect is None or not pa.types.is_string(values.type) or not converts(self.dialect, kind, name):
            return values
        return pa.chunked_array([read_cells(chunk, self.dialect, kind, name) for chunk in values.chunks], values.type)


def profile_column(
    field: pa.Field, values: pa.ChunkedArray, typed: bool, written: TableFormat | None = None
) -> Profile:
    """Infer the profile of a column.

    Args:
        field: Its real name, and metadata of the source beyond the type.
        values: The raw values.
        typed: Whether the source has types, so that a number in a text column is stored as text.
        written: The format of the table.
    """
    name, metadata, written = field.name, field.metadata or {}, written or TableFormat()
    text, order = pa.types.is_string(values.type), metadata.get(ORDER)
    kind: Kind = "text"
    hint = ""
    if order is None:
        kind, hint = _guess(values, name, written) if text else (_of_type(values.type, metadata), "")
        hint = "" if name in written.dated else hint
    blanks = _count_blanks(values) if text and kind != "text" else 0
    values = written.spell(values, kind, name)
    series, unreadable = clean_column(_cast(values, kind) if text else values, written.column(name, kind))
    broken = int(unreadable.sum())
    as_text = text and kind in NUMERIC and bool(typed or blanks or broken)
    return Profile(name, kind, series, blanks, broken, as_text, hint, order and tuple(json.loads(order)))


def _guess(values: pa.ChunkedArray, name: str, written: TableFormat) -> tuple[Kind, str]:
    """Return the kind of a text column, and a hint; numbers and dates may have different formats."""
    guess = guess_text(written.spell(values, "number", name), written.formats)
    if guess[0] in NUMERIC or written.dialect is None or not converts(written.dialect, "number", name):
        return guess
    return guess_text(written.spell(values, "date", name), written.formats)


def _of_type(kind: pa.DataType, metadata: Mapping[bytes, bytes]) -> Kind:
    if DURATION in metadata:
        return "duration"
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind):
        return "integer"
    return "date" if pa.types.is_temporal(kind) else "number"


def _count_blanks(values: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.utf8_is_space(values)).as_py() or 0)


def _cast(values: pa.ChunkedArray, kind: Kind) -> pa.ChunkedArray:
    """Convert a text column to numbers, or return it unchanged if one is not a number."""
    if kind not in NUMERIC:
        return values
    trimmed = pc.utf8_trim_whitespace(values)
    filled = pc.if_else(pc.equal(trimmed, ""), None, trimmed)
    try:
        return pc.cast(filled, pa.int64() if kind == "integer" else pa.float64())
    except pa.ArrowInvalid:
        return values


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
    """A role and the reason for it; `doubt` is a sentence on what the owner should check."""

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
            guesses[profile.name] = Guess("time", "the first date whose name says that it is the row's time")
        else:
            guesses[profile.name] = _guess_use(profile)
    return guesses


def use_time_alone(profiles: Sequence[Profile], fields: Sequence[Field]) -> list[Field]:
    """Return the fields with the row's time as a feature if there is no other feature, as in a time series."""
    if any(field.seen for field in fields):
        return list(fields)
    varied = {profile.name for profile in profiles if profile.distinct > 1}
    return [replace(f, time_feature=f.role == "time" and f.name in varied) for f in fields]


def _guess_use(profile: Profile) -> Guess:
    """Distinguish features from columns that are useless for a model."""
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
    """Return the schema's field for a column that is not the target."""
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
    """Return 0 for numbers that are never negative: the only bound that can be inferred from a sample."""
    if profile.kind not in ("number", "integer"):
        return None
    return 0 if float(profile.values.min()) >= 0 else None


def find_categories(profile: Profile) -> tuple[Label, ...] | None:
    """Return the values of a set that seems closed (few values, each frequent); None for an open one."""
    counts = profile.counts
    if profile.order is not None and set(counts.index) <= set(profile.order) and len(profile.order) <= MOST_CATEGORIES:
        return profile.order
    if profile.kind == "integer":
        return (0, 1) if len(counts) == 2 and set(counts.index) == {0, 1} else None
    often = max(SEEN_OFTEN, profile.present // 1000)
    closed = profile.kind == "text" and 2 <= len(counts) <= MOST_CATEGORIES and counts.min() >= often
    return tuple(sorted(str(value) for value in counts.index)) if closed else None


def is_sequence(profile: Profile) -> bool:
    """Return True if whole numbers count the rows, in any order."""
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
    """Return True if texts look like keys: about one length, no spaces, no dates or numbers with marks."""
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
    parts = [f"{profile.blanks:,} blank"] if profile.blanks else []
    parts += [f"{profile.broken:,} unreadable"] if profile.broken else []
    return f" ({' and '.join(parts)})" if parts else ""


def _rarest(profile: Profile) -> str:
    value, times = profile.counts.index[-1], int(profile.counts.iloc[-1])
    short = str(value) if len(str(value)) <= 30 else f"{str(value)[:27]}..."
    return f'"{short}" was seen only {"once" if times == 1 else f"{times:,} times"}'


SURELY_FEW = 10
PERHAPS_FEW = 20
ROWS_PER_CLASS = 5
MOST_CLASSES = 100


@dataclass(frozen=True)
class Goal:
    """The target's field, the problem, the reason for it, and doubts."""

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
            f'"{problem}" is not a problem: use {", ".join(known[:-1])} or {known[-1]}.{nearest(problem, known)}'
        )


def set_goal(profile: Profile, problem: Problem | None) -> Goal:
    """Return the goal: the target and the problem.

    Args:
        profile: The target column.
        problem: The problem that the user gave; None to infer it.

    Raises:
        UserError: it has no or only one value, is an id or a date, or does not fit the problem.
    """
    _refuse_unlearnable(profile)
    found, reason = (problem, "as given") if problem else _infer(profile)
    _refuse_mismatch(profile, found)
    if found == "regression":
        require_answerable(profile.name, profile.values)
    classes = None if found == "regression" else profile.whole and profile.kind == "number"
    target = profile.read_as("integer") if classes else profile
    field = Field(
        name=profile.name,
        kind=target.kind,
        role="target",
        minimum=find_minimum(target) if found == "regression" else None,
        categories=_classes(target) if found != "regression" else None,
    )
    return Goal(field, found, reason, tuple(_doubt(profile, found, reason)))


def _refuse_unlearnable(profile: Profile) -> None:
    name = profile.name
    if not profile.distinct:
        raise UserError(f'The target "{name}" has no value in any row: name a column that has some.')
    if profile.distinct == 1:
        raise UserError(
            f'The target "{name}" is {profile.counts.index[0]!r} in every row: there is nothing to predict.'
        )
    if profile.kind in ("date", "duration"):
        raise UserError(f'The target "{name}" is a {profile.kind}: name a column of classes or numbers.')
    if profile.kind == "text" and profile.hint:
        raise UserError(f'The target "{name}" cannot be used in this form: {profile.hint}.')
    many = profile.distinct > max(PERHAPS_FEW, NEAR_UNIQUE * profile.present)
    if is_sequence(profile) or (profile.kind == "text" and many):
        raise UserError(
            f'The target "{name}" has {profile.distinct:,} different values in {profile.present:,} rows, as '
            "an id has: name the column to predict."
        )


def _infer(profile: Profile) -> tuple[Problem, str]:
    """Return the most probable problem, and the reason."""
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
    """Return the classes in order; None for booleans, which need no list."""
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


MOST_ROWS = 100_000
HELD_OUT_SHARE = 0.2


def find_leaks(profiles: Sequence[Profile], fields: Sequence[Field], target: str, problem: Problem) -> list[Alarm]:
    """Return what looks like a leak, in up to 100,000 rows of which a fifth represents the holdout.

    Args:
        profiles: The columns.
        fields: The contract's field of each, in the same order.
        target: The column to predict.
        problem: The kind of prediction.
    """
    columns = tuple(
        Column(
            name=field.name,
            kind=field.kind,
            role="feature" if field.time_feature else field.role,
            time=field.time_feature,
        )
        for field in fields
    )
    contract = Contract(problem=problem, target=target, columns=columns)
    ignored = [c for c, profile in zip(columns, profiles, strict=True) if c.role == "ignored" and _names(profile)]
    used = {column.name for column in (*contract.used, *ignored)}
    frame = pd.DataFrame({profile.name: profile.values for profile in profiles if profile.name in used})
    frame = frame[frame[target].notna()]
    chosen = np.random.default_rng(0).permutation(len(frame))[:MOST_ROWS]
    held_out = round(len(chosen) * HELD_OUT_SHARE)
    return find_alarms(contract, frame.iloc[chosen[held_out:]], frame.iloc[chosen[:held_out]], ignored, doubts=True)


def _names(profile: Profile) -> bool:
    """Return True if a column may identify what rows share, such as households: a group, but not a feature."""
    return profile.kind in ("text", "integer") and 1 < profile.distinct < profile.present


LIMITS = {sign * (2**bits - 1) for bits in (15, 16, 31, 32, 63) for sign in (1, -1)} | {-(2**15), -(2**31), -(2**63)}
FIRST_DAYS = ("0001-01-01", "1753-01-01", "1899-12-30", "1899-12-31", "1900-01-01", "1970-01-01")
LAST_YEAR = 2999
LARGEST = 1e30  # larger numbers are limits of floating point types


def find_marks(values: np.ndarray, column: Column) -> np.ndarray:
    """Return the values that probably mark a missing value: they look like a mark and are far from all other values.

    A number must be farther from the others than these are from each other; values such as -1 may also be the only
    negative ones. A date must be the first day of a calendar, or in the year 2999 or later.

    Args:
        values: The column's present values; dates in seconds since 1970.
        column: The contract's column.
    """
    if column.kind == "duration" or not len(values):
        return np.zeros(len(values), dtype=bool)
    known = {value: _looks_so(value, column) for value in np.unique(values).tolist()}
    marks = np.array([value for value, so in known.items() if so])
    others = np.array([value for value, so in known.items() if not so])
    if not len(marks) or not len(others):
        return np.zeros(len(values), dtype=bool)
    low, high = others.min(), others.max()
    if column.kind == "date":
        far_off = (marks < low) | (marks > high)
    else:
        spread = max(high - low, 1.0)
        far_off = (marks > high + spread) | (marks < low - spread) | ((marks < 0) & (low >= 0))
    return np.isin(values, marks[far_off])


def _looks_so(value: float, column: Column) -> bool:
    if column.kind == "date":
        first = {pd.Timestamp(day, tz="UTC").timestamp() for day in FIRST_DAYS}
        return value in first or value >= pd.Timestamp(f"{LAST_YEAR}-01-01", tz="UTC").timestamp()
    if not np.isfinite(value) or abs(value) >= LARGEST or value == -1 or value in LIMITS:
        return True
    digits = f"{abs(value):.10g}".replace(".", "").removesuffix("0") if abs(value) < 1e10 else f"{abs(value):.0f}"
    return len(digits) > (0 if value < 0 else 1) and set(digits) == {"9"}
