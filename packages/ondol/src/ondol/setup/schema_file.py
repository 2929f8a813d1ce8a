"""Writes `model/schema.py`: names, literals and fields as Python source."""

import contextlib
import difflib
import keyword
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomlkit
import tomlkit.items
from tomlkit.exceptions import TOMLKitError

from ondol.config import FILE_NAME, Dialect, Problem
from ondol.contract import reserved_names
from ondol.contract.schema import Kind, Label, Role
from ondol.errors import UserError
from ondol.storage.files import digest_file, publish, scratch
from ondol_serving.grammar import AMBIGUOUS_FORMATS

if TYPE_CHECKING:
    from ondol.setup.inference import TableFormat

LONGEST = 40
# Names that annotations in the class refer to, and names that linters call ambiguous.
TAKEN = {"str", "int", "float", "bool", "pd", "pa", "Schema", "Config", "l", "O", "I"}


def make_attributes(names: Sequence[str], besides: Iterable[str] = ()) -> dict[str, str]:
    """Return an attribute name for each column: a unique identifier similar to the name, which shadows nothing.

    Args:
        names: The columns.
        besides: The names that the class already defines.
    """
    taken = TAKEN | reserved_names() | set(besides)
    attributes: dict[str, str] = {}
    exact_first = sorted(names, key=lambda name: _identify(name) != name)
    for name in exact_first:
        attributes[name] = _free(_identify(name), taken)
        taken.add(attributes[name])
    return {name: attributes[name] for name in names}


def _identify(name: str) -> str:
    """Return a similar identifier, which may be a keyword or in use."""
    letters = unicodedata.normalize("NFKC", name)
    kept = "".join(letter if _is_plain(letter) or letter == "_" else "_" for letter in letters)
    stem = re.sub(r"__+", "_", kept) if kept != name else kept
    stem = stem.strip("_") if kept != name else stem.lstrip("_")
    if not stem or not stem.isidentifier():
        stem = f"column_{stem}".rstrip("_")
    return stem[:LONGEST]


def _is_plain(letter: str) -> bool:
    """Return True if a letter is allowed in an identifier and is not changed by normalization."""
    stable = unicodedata.normalize("NFKC", letter) == letter
    return (letter.isascii() and letter.isalnum()) or (stable and unicodedata.category(letter) in {"Lu", "Ll", "Lo"})


def _free(stem: str, taken: set[str]) -> str:
    free = f"{stem}_" if keyword.iskeyword(stem) or (stem in taken and not stem.endswith("_")) else stem
    number = 2
    while free in taken or keyword.iskeyword(free):
        free = f"{stem.rstrip('_')}_{number}"
        number += 1
    return free


def quote(text: str) -> str:
    """Return `text` as a string literal in the style of `ruff format`; unusual letters are escaped."""
    mark = "'" if text.count('"') > text.count("'") else '"'
    return mark + "".join(_escape(letter, mark) for letter in text) + mark


def literal(value: object) -> str:
    """Return a category (text, number or truth value) as a literal."""
    return quote(value) if isinstance(value, str) else repr(value)


def readable(text: str) -> str:
    """Return `text` on one line, with unusual letters escaped, for a comment."""
    return "".join(_escape(letter, "") for letter in text)


def display_width(text: str) -> int:
    """Return the width of `text` in columns, counted like ruff."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _escape(letter: str, mark: str) -> str:
    if letter == mark or (letter == "\\" and mark):
        return f"\\{letter}"
    if " " <= letter <= "~" or _is_common(letter):
        return letter
    return letter.encode("unicode_escape").decode("ascii")


def _is_common(letter: str) -> bool:
    """Return True if a letter beyond ASCII needs no escape: Latin, Korean, Chinese or Japanese."""
    return (
        ("\u00c0" <= letter <= "\u017e" and letter.isalpha())
        or "가" <= letter <= "힣"
        or "一" <= letter <= "鿿"
        or ("ァ" <= letter <= "ヺ" or "ぁ" <= letter <= "ゖ")
    )


SCHEMA_PATH = Path("model/schema.py")
SAMPLE = "sample://"
# SHA-256 of the file in the template.
SAMPLE_SCHEMA = "6c9f1f72f6d58350d19c9eb47e592125e4e5bfe5dd8c67da3f17761658815685"
Status = Literal["written", "unchanged", "differs"]


def read_config(root: Path) -> tomlkit.TOMLDocument:
    """Return the text of the project's `config.toml`.

    Raises:
        UserError: the file is missing, or is not TOML.
    """
    path = root / FILE_NAME
    try:
        return tomlkit.parse(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run this inside a project made with `copier copy`.") from None
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from None


def is_untouched(root: Path, config: tomlkit.TOMLDocument, proposed: str) -> bool:
    """Return True if no work of the owner would be lost: the project still has the sample and its schema.

    The schema may also be the proposed one, after a crash before `config.toml` was written.
    """
    data: Any = config.get("data", {})
    source = str(data.get("source", SAMPLE))
    schema = root / SCHEMA_PATH
    there = schema.read_bytes() if schema.exists() else b""
    return reads_sample(root, source) or (source.startswith(SAMPLE) and there in (b"", proposed.encode()))


def reads_sample(root: Path, source: str) -> bool:
    """Return True if `source` is the sample and the schema is unchanged."""
    schema = root / SCHEMA_PATH
    return source.startswith(SAMPLE) and schema.exists() and digest_file(schema) == SAMPLE_SCHEMA


def may_keep_format(config: tomlkit.TOMLDocument, source: str) -> bool:
    """Return True if the format settings of `config.toml` belong to `source`."""
    now = str(config.get("data", {}).get("source", SAMPLE))
    return now == source or now.startswith(SAMPLE)


def edit_config(
    config: tomlkit.TOMLDocument,
    source: str,
    target: str,
    problem: Problem,
    written: "TableFormat | None" = None,
    split: str | None = None,
) -> str:
    """Return `config.toml` with the source, target and format of the data; everything else is unchanged.

    Args:
        config: The current text.
        source: The source of the rows.
        target: The column to predict.
        problem: The kind of prediction.
        written: How the table is written.
        split: `[split] by`; None to leave it out.
    """
    edited = tomlkit.parse(config.as_string())
    if "data" not in edited:
        edited["data"] = tomlkit.table()
    data: Any = edited["data"]
    found: dict[str, Any] = {}
    if written is not None and written.dialect is not None:
        found = written.dialect.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    listed = written.formats if written is not None else ()
    if listed and ("date_formats" in data or listed != AMBIGUOUS_FORMATS):
        found["date_formats"] = list(listed)
    for key in (*Dialect.model_fields, "date_formats"):
        if key in data and key not in found:
            del data[key]
    before = ""
    for key, value in ({"source": source, "target": target, "problem": problem} | found).items():
        if key not in data:
            _insert(data, before, key, value)
        elif data[key] != value:
            data[key] = value
        before = key
    if split is not None:
        edited.setdefault("split", tomlkit.table())["by"] = split
    elif "by" in edited.get("split", {}):
        del edited["split"]["by"]  # type: ignore[union-attr]
    return edited.as_string()


def edit_params(config: tomlkit.TOMLDocument, params: Mapping[str, Any]) -> str:
    """Return `config.toml` with these `[train.params]` in place of the ones before; everything else is unchanged."""
    edited = tomlkit.parse(config.as_string())
    train: Any = edited.setdefault("train", tomlkit.table(is_super_table=True))
    made: Any = tomlkit.inline_table() if isinstance(train, tomlkit.items.InlineTable) else tomlkit.table()
    made.update(params)
    there = train.get("params")
    if isinstance(there, tomlkit.items.Table) and isinstance(made, tomlkit.items.Table):
        for name in [name for name in there if name not in made]:
            del there[name]
        there.update(made)  # in place, with its comments
    else:
        train["params"] = made
    return edited.as_string()


def _insert(data: Any, before: str, key: str, value: Any) -> None:
    """Add a key below `before`, not at the table's end, where a comment may belong to the next section."""
    content: Any = data.value if isinstance(data, tomlkit.items.Table) else None
    item: Any = tomlkit.item(value)
    if isinstance(item, tomlkit.items.Table):
        inline = tomlkit.inline_table()
        inline.update(value)
        item = inline
    if before and content is not None and content.last_item() is not content.item(before):
        item.trivia.trail = content.item(before).trivia.trail
        content._insert_after(before, key, item)
    else:
        data[key] = item


def show_differences(root: Path, texts: dict[Path, str]) -> str:
    """Return the unified diff from the current files to `texts`."""
    lines: list[str] = []
    for path, text in texts.items():
        there = root / path
        before = there.read_bytes().decode("utf-8", errors="replace") if there.exists() else ""
        name = path.as_posix()
        lines += difflib.unified_diff(
            before.splitlines(), text.splitlines(), f"{name} (now)", f"{name} (proposed)", lineterm=""
        )
    return "\n".join(lines)


def apply(root: Path, texts: dict[Path, str], diff: str, allowed: bool) -> Status:
    """Write the files that differ, if allowed: the schema first, so that it can be written again after a crash."""
    if not diff:
        return "unchanged"
    if not allowed and (root / SCHEMA_PATH).exists():
        return "differs"
    with contextlib.ExitStack() as stack:
        made = {path: stack.enter_context(scratch(root / path)) for path in texts}
        for path, text in texts.items():
            made[path].write_bytes(text.encode())
        for path, written in made.items():
            publish(written, root / path)
    return "written"


WIDTH = 120
ANNOTATIONS: dict[Kind, str] = {
    "number": "float",
    "integer": "int",
    "boolean": "bool",
    "text": "str",
    "date": "pd.Timestamp",
    "duration": "pd.Timedelta",
}
NULLABLE: dict[Kind, str] = {"integer": "pd.Int64Dtype", "boolean": "pd.BooleanDtype"}
HEAD = '''"""The data's contract, drafted by `ml init`. Yours to edit.

Everything else is derived from this class: validation, the service's request type, the compiled model.
`isin` closes a set (any other value is a bad row, a 4xx in the service); a plain `str` is open to new ones.
Roles: feature (the default), id, time, target, group, sensitive (a feature kept out of logs), ignored.
"""

'''
CLASS = '''import pandera.pandas as pa


class Schema(pa.DataFrameModel):
    """One row of the data."""

'''
CONFIG = '''
    class Config:
        """How Pandera reads the class."""

        coerce = True
        strict = False
        metadata = None
'''


@dataclass(frozen=True)
class Field:
    """The schema's field of one column.

    Attributes:
        time_feature: Whether a model sees the row's time.
        comments: The comments above it: a reason for each guess.
    """

    name: str
    kind: Kind
    role: Role = "feature"
    time_feature: bool = False
    nullable: bool = False
    unique: bool = False
    minimum: int | None = None
    categories: tuple[Label, ...] | None = None
    ordered: bool = False
    comments: tuple[str, ...] = ()

    @property
    def seen(self) -> bool:
        """Whether a model sees the column."""
        return self.role in ("feature", "sensitive") or self.time_feature


def write_schema(fields: Sequence[Field]) -> str:
    """Return the text of `model/schema.py`."""
    attributes = make_attributes([field.name for field in fields])
    body = "".join(write_field(field, attributes[field.name]) for field in fields)
    imports = "import pandas as pd\n" if "pd." in {_annotate(f)[:3] for f in fields} else ""
    return HEAD + imports + CLASS + body + CONFIG


def _annotate(field: Field) -> str:
    return NULLABLE.get(field.kind, ANNOTATIONS[field.kind]) if field.nullable else ANNOTATIONS[field.kind]


def write_field(field: Field, attribute: str) -> str:
    """Return the lines of one field, below its comments."""
    start = f"    {attribute}: {_annotate(field)} = pa.Field("
    options = _options(field, attribute)
    line = f"{start}{', '.join(options)})"
    if display_width(line) <= WIDTH:
        return _write_comments(field) + line + "\n"
    parts = "".join(_break_list(option, field) for option in options)
    return f"{_write_comments(field)}{start}\n{parts}    )\n"


def _options(field: Field, attribute: str) -> list[str]:
    arguments = [f"alias={quote(field.name)}"] if attribute != field.name else []
    arguments += ["nullable=True"] if field.nullable else []
    arguments += ["unique=True"] if field.unique else []
    arguments += [f"ge={field.minimum}"] if field.minimum is not None else []
    if field.categories is not None:
        arguments.append(f"isin=[{', '.join(literal(value) for value in field.categories)}]")
    about = [f'"role": "{field.role}"'] if field.role != "feature" else []
    about += ['"feature": True'] if field.time_feature else []
    about += ['"ordered": True'] if field.ordered else []
    return arguments + ([f"metadata={{{', '.join(about)}}}"] if about else [])


def _break_list(option: str, field: Field) -> str:
    """Return one option on a line of its own, or its list with one value on each line if too long."""
    if display_width(option) + 9 <= WIDTH or not option.startswith("isin="):
        return allow_long(f"        {option},")
    values = "".join(allow_long(f"            {literal(value)},") for value in field.categories or ())
    return f"        isin=[\n{values}        ],\n"


def allow_long(line: str) -> str:
    """Return a line that cannot be broken, with an exemption from the line limit if the linter needs it."""
    too_long = display_width(line) > WIDTH and len(line.split()) > 1
    return f"{line}  # noqa: E501\n" if too_long else f"{line}\n"


def _write_comments(field: Field) -> str:
    lines = [line for comment in field.comments for line in _wrap(readable(comment))]
    return "".join(f"    # {line}\n" for line in lines)


def _wrap(comment: str) -> list[str]:
    """Break a comment so that even wide letters fit the line."""
    width = WIDTH - 6 if display_width(comment) == len(comment) else (WIDTH - 6) // 2
    return textwrap.wrap(comment, width, break_on_hyphens=False) or [comment]
