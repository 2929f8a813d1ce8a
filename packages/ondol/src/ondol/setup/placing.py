"""Puts the draft into the project: `model/schema.py` whole, `config.toml` with all else as it was."""

import contextlib
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomlkit
import tomlkit.items
from tomlkit.exceptions import TOMLKitError

from ondol.config.base import Problem
from ondol.config.data import Dialect
from ondol.config.settings import FILE_NAME
from ondol.errors import UserError
from ondol.storage.files import digest_file, publish, scratch
from ondol_serving.grammar import AMBIGUOUS_FORMATS

if TYPE_CHECKING:
    from ondol.setup.profiles import TableFormat

SCHEMA_PATH = Path("model/schema.py")
SAMPLE = "sample://"
SAMPLE_SCHEMA = "6c9f1f72f6d58350d19c9eb47e592125e4e5bfe5dd8c67da3f17761658815685"  # SHA-256 of the file copied
Status = Literal["written", "unchanged", "differs"]


def read_config(root: Path) -> tomlkit.TOMLDocument:
    """Return the project's settings as they are written.

    Raises:
        UserError: there are none, or they are no TOML.
    """
    path = root / FILE_NAME
    try:
        return tomlkit.parse(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run this inside a project made with `copier copy`.") from None
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from None


def is_untouched(root: Path, config: tomlkit.TOMLDocument, proposed: str) -> bool:
    """Tell whether nothing of the owner's would be lost: the project still reads the sample, by its own schema.

    The schema may also be the proposed one already: a crash came before `config.toml` was written.
    """
    data: Any = config.get("data", {})
    source = str(data.get("source", SAMPLE))
    schema = root / SCHEMA_PATH
    there = schema.read_bytes() if schema.exists() else b""
    return reads_sample(root, source) or (source.startswith(SAMPLE) and there in (b"", proposed.encode()))


def reads_sample(root: Path, source: str) -> bool:
    """Tell whether `source` is the sample and the schema the one that came with it."""
    schema = root / SCHEMA_PATH
    return source.startswith(SAMPLE) and schema.exists() and digest_file(schema) == SAMPLE_SCHEMA


def may_keep_format(config: tomlkit.TOMLDocument, source: str) -> bool:
    """Return True if what `config.toml` says of how a table is written was said of `source`, not of another one."""
    now = str(config.get("data", {}).get("source", SAMPLE))
    return now == source or now.startswith(SAMPLE)


def edit_config(
    config: tomlkit.TOMLDocument, source: str, target: str, problem: Problem, written: "TableFormat | None" = None
) -> str:
    """Return `config.toml` with the data named and how it is written, everything else as it was."""
    edited = tomlkit.parse(config.as_string())
    if "data" not in edited:
        edited["data"] = tomlkit.table()
    data: Any = edited["data"]
    told: dict[str, Any] = {}
    if written is not None and written.dialect is not None:
        told = written.dialect.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    listed = written.formats if written is not None else ()
    if listed and ("date_formats" in data or listed != AMBIGUOUS_FORMATS):
        told["date_formats"] = list(listed)
    for key in (*Dialect.model_fields, "date_formats"):
        if key in data and key not in told:
            del data[key]
    before = ""
    for key, value in ({"source": source, "target": target, "problem": problem} | told).items():
        if key not in data:
            _insert(data, before, key, value)
        elif data[key] != value:
            data[key] = value
        before = key
    return edited.as_string()


def _insert(data: Any, before: str, key: str, value: Any) -> None:
    """Add a key below `before`, not at the table's end, where a comment may speak of the next section."""
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


def compare(root: Path, texts: dict[Path, str]) -> str:
    """Return the unified diff from what is there to `texts`."""
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
    """Write what differs, if allowed: the schema first, so that after a crash it may be written again."""
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
