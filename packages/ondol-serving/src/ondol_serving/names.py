"""How the engine and the service write names and texts: digests of bundles, keys of labels, printable text.

It imports only the standard library.
"""

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any


def label_key(label: Any) -> str:
    """Return the JSON key of a label's probability in an answer."""
    return label if isinstance(label, str) else json.dumps(label)


def digest_folder(folder: Path) -> str:
    """Return the SHA-256 of a flat folder, equal to `LC_ALL=C sha256sum * | sha256sum` in that folder."""
    files = sorted((p for p in folder.iterdir() if p.is_file()), key=lambda p: p.name.encode())
    lines = "".join(f"{_digest_file(p)}  {p.name}\n" for p in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Scripts in which ZERO WIDTH JOINER and NON-JOINER change the visible text, and the parts of emoji.
_JOINED = (
    "\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefe"
    "\u20e3\u2190-\u2bff\u3030\u303d\ufe0f\U0001f000-\U0001faff"
)
_KEPT = f"(?<=[{_JOINED}])[\u200c\u200d](?=[{_JOINED}])|(?<=\U0001f3f4)[\U000e0020-\U000e007e]+\U000e007f"
_ESCAPED = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 except tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # direction, line and paragraph separators
    "\xad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200d\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U0001d173-\U0001d17a\U000e0000-\U000e00ff"  # no width
    "\ud800-\udfff"  # lone surrogates, which no stream can encode
)
_UNPRINTABLE = re.compile(f"(?P<kept>{_KEPT})|[{_ESCAPED}]")
_UNPRINTABLE_OR_BREAK = re.compile(f"(?P<kept>{_KEPT})|[\t\n{_ESCAPED}]")


def printable(text: str, one_line: bool = False) -> str:
    r"""Return text with each control, bidirectional or invisible character escaped, such as `\x1b`.

    Joiners are kept where scripts and emoji need them.

    Args:
        text: Any text, lone surrogates included.
        one_line: Escape tabs and line feeds too, so that a value cannot look like a separate line.
    """
    pattern = _UNPRINTABLE_OR_BREAK if one_line else _UNPRINTABLE
    return pattern.sub(_escape, text)


def _escape(found: "re.Match[str]") -> str:
    return found[0] if found["kept"] else found[0].encode("unicode_escape").decode()


class PrintableRecord(logging.LogRecord):
    """A log record whose message and traceback are printable for every handler."""

    def getMessage(self) -> str:
        """Return the message with its arguments."""
        return printable(super().getMessage())

    @property
    def exc_text(self) -> str | None:
        """The traceback, once a formatter has made it."""
        text: str | None = self.__dict__.get("exc_text")
        return text

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self.__dict__["exc_text"] = None if text is None else printable(text)
