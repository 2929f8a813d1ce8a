"""`ml init`: reads the owner's table, and drafts `model/schema.py` and `[data]` of `config.toml`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import tomlkit

from ondol.config import FILE_NAME, Dialect, Problem, load_settings
from ondol.contract.checking import normalize_texts
from ondol.contract.schema import require_known_markers
from ondol.errors import UserError, nearest
from ondol.ingestion.sources import Reading, Source, open_source, read_through
from ondol.setup.dialects import drop_repeated_headers, find_format
from ondol.setup.hints import find_hints
from ondol.setup.inference import (
    Goal,
    Guess,
    Profile,
    TableFormat,
    check_problem,
    describe_field,
    find_leaks,
    guess_roles,
    profile_column,
    set_goal,
    use_time_alone,
)
from ondol.setup.schema_file import (
    SCHEMA_PATH,
    Field,
    Status,
    apply,
    edit_config,
    is_untouched,
    may_keep_format,
    read_config,
    show_differences,
    write_schema,
)
from ondol.setup.time_split import SplitComparison, compare_splits, explain_time, weigh_time
from ondol_serving.grammar import normalize

MOST_ROWS = 1_000_000


@dataclass(frozen=True)
class InitReport:
    """The results of `ml init`.

    Attributes:
        source: The source.
        rows: The number of rows that were read.
        limited: Whether the source has more rows than were read.
        target: The column to predict.
        problem: The kind of prediction.
        reason: The reason for the problem.
        notes: Sentences on unusual formats of the table.
        fields: The schema's field of each column, in order.
        doubts: Sentences on what the owner should check.
        status: "written", "unchanged" (nothing to change) or "differs" (not written: needs --force).
        diff: The changes as a unified diff; empty if the owner had edited nothing.
    """

    source: str
    rows: int
    limited: bool
    target: str
    problem: Problem
    reason: str
    notes: tuple[str, ...]
    fields: tuple[Field, ...]
    doubts: tuple[str, ...]
    status: Status
    diff: str


def initialize(root: Path, source: str, target: str, problem: str | None = None, force: bool = False) -> InitReport:
    """Draft the contract of the table at `source` and write it into the project at `root`.

    Without `force`, only a project that still has the sample is overwritten. On errors nothing is changed.

    Args:
        root: The project's folder, with `config.toml`.
        source: A path relative to `root`, or another URI that `ondol.ingestion.sources` reads.
        target: The name of the column to predict.
        problem: "binary", "multiclass" or "regression"; None to infer it.
        force: Whether to overwrite.

    Raises:
        UserError: the source is not a table, or the target cannot be learned.
    """
    check_problem(problem)
    target = normalize(target)
    config, settings = read_config(root), load_settings(root)
    kept = may_keep_format(config, source)
    given = settings.data.dialect if kept else Dialect()
    formats = settings.data.date_formats if kept and "date_formats" in settings.data.model_fields_set else None
    opened = open_source(source, Reading(root=root, fetch=settings.fetch, dialect=given, expected=(target,)))
    dialect: Dialect | None = getattr(opened, "dialect", None)
    table, limited = read_table(opened, target)
    require_known_markers(given, table.schema.names)
    table, repeated = drop_repeated_headers(table) if dialect is not None else (table, [])
    written = find_format(table, dialect, formats, target)
    profiles = _profile(table, opened, written)
    try:
        goal, fields, doubts = draft(profiles, target, problem)  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(" ".join([str(error), *written.doubts])) from None
    splits = compare_splits(profiles, fields, goal)
    split = choose_split(config, fields, splits)
    doubts += find_hints(profiles, fields, goal, split or "random", splits, delimited=dialect is not None)
    texts = {
        SCHEMA_PATH: write_schema(fields),
        Path(FILE_NAME): edit_config(config, source, target, goal.problem, written, split),
    }
    diff = show_differences(root, texts)
    status = apply(root, texts, diff, force or is_untouched(root, config, texts[SCHEMA_PATH]))
    found = (
        source,
        len(table),
        limited,
        target,
        goal.problem,
        goal.reason,
        (*written.notes, *note_forms(table, opened)),
    )
    return InitReport(*found, tuple(fields), (*repeated, *written.doubts, *doubts), status, diff)


def choose_split(config: tomlkit.TOMLDocument, fields: Sequence[Field], splits: SplitComparison | None) -> str | None:
    """Return `[split] by` for the table: the one that is set, else "time" if a random split flatters; None for neither.

    A split by time is not kept for a table without one.
    """
    known = config.get("split", {}).get("by")
    if known == "time" and not any(field.role == "time" for field in fields):
        return None
    return str(known) if known else "time" if splits is not None and splits.flatters else None


def read_table(source: Source, target: str | None = None) -> tuple[pa.Table, bool]:
    """Return about the first million rows of `source`, and whether there are more.

    Raises:
        UserError: it has no column `target`, if one is given, or no rows.
    """
    return read_through(source, lambda found: _read_head(source, found, target))


def _read_head(source: Source, found: Iterator[pa.RecordBatch], target: str | None) -> tuple[pa.Table, bool]:
    batches: list[pa.RecordBatch] = []
    rows = 0
    for batch in found:
        if target is not None and not batches and target not in batch.schema.names:
            _refuse_target(source, target, batch.schema.names)
        if rows >= MOST_ROWS:
            return pa.Table.from_batches(batches), True
        batches.append(batch)
        rows += batch.num_rows
    if not rows:
        raise UserError(f'"{source.uri}" has no rows: name a table with rows.')
    return pa.Table.from_batches(batches), False


def draft(profiles: Sequence[Profile], target: str, problem: Problem | None) -> tuple[Goal, list[Field], list[str]]:
    """Return the goal, a field for each column, and the doubts."""
    aim = next(p for p in profiles if p.name == target)
    goal = set_goal(aim, problem)
    guesses = guess_roles(profiles, target)
    fields = [goal.field if p is aim else describe_field(p, guesses[p.name]) for p in profiles]
    fields = use_time_alone(profiles, fields)
    if not any(field.seen for field in fields):
        raise UserError(f'Besides the target "{target}" no column is left to predict from: add columns.')
    gain = weigh_time(profiles, fields, goal)
    if gain is not None:
        fields = [replace(field, time_feature=field.role == "time") for field in fields]
    for name, sentence in explain_time(fields, gain).items():
        guesses[name] = replace(guesses[name], doubt=sentence)
    fates = {p.name: "quarantined where there is a label" for p in profiles if aim.missing and p is not aim}
    doubts = [
        *goal.doubts,
        *(doubt for p in profiles for doubt in _doubt(p, guesses[p.name], fates.get(p.name, "quarantined"))),
    ]
    doubts += [f"{alarm.finding}: {alarm.remedy}." for alarm in find_leaks(profiles, fields, target, goal.problem)]
    return goal, fields, doubts


def note_forms(table: pa.Table, source: Source) -> list[str]:
    """Return notes on names and texts that are not in Unicode's normal form C, which is used for comparisons."""
    listed = ", ".join(f'"{name}"' for name in sorted(getattr(source, "renamed", ())))
    sentences = [f"Written in decomposed letters (Unicode's NFD), and read in composed ones (NFC): {listed}."] * bool(
        listed
    )
    for field in table.schema:
        values = table.column(field.name)
        normal = normalize_texts(values) if pa.types.is_string(field.type) else values
        if normal is not values and (count := pc.sum(pc.not_equal(normal, values)).as_py()):
            sentences.append(
                f'"{field.name}" has {count:,} value{"s" * (count > 1)} in decomposed letters (Unicode\'s NFD): the '
                "same text in composed ones (NFC) is the same value."
            )
    return sentences


def _profile(table: pa.Table, source: Source, written: TableFormat) -> list[Profile]:
    typed = bool(getattr(source, "typed", True))
    return [profile_column(field, table.column(field.name), typed, written) for field in table.schema]


def _doubt(profile: Profile, guess: Guess, fate: str) -> list[str]:
    doubts = [guess.doubt] if guess.doubt else []
    lost = f"{profile.broken:,} value{'s' * (profile.broken != 1)}"
    whose = f"{'its row is' if profile.broken == 1 else 'their rows are'} {fate}"
    if profile.stored_as_text:
        sentences = [f"{profile.blanks:,} blank value{'s are' if profile.blanks > 1 else ' is'} missing"] * bool(
            profile.blanks
        )
        sentences += [f"{lost} cannot be read: {whose}"] * bool(profile.broken)
        doubts.append(
            f'"{profile.name}" holds numbers stored as text{": " if sentences else ""}{", ".join(sentences)}.'
        )
    elif profile.broken:
        doubts.append(f'"{profile.name}" has {lost} that cannot be read as a {profile.kind}: {whose}.')
    return doubts + ([f'"{profile.name}": {profile.hint}.'] if profile.hint else [])


def _refuse_target(source: Source, target: str, names: list[str]) -> None:
    hint = nearest(target, names) or f" It has: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}."
    dialect = getattr(source, "dialect", None)
    bare = dialect is not None and dialect.header is False
    hint_on_header = (
        " Its first line looks like a row, not like names (header = true under [data] reads it as names)."
        if bare
        else ""
    )
    raise UserError(f'"{source.uri}" has no column "{target}".{hint_on_header}{hint}')
