"""Secrets: `${NAME}` in a source is read from the environment or `.env`, and is only ever shown by its name."""

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

PLACEHOLDER = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# A parameter's name; words of a query, `… WHERE token = 'x'`, are none.
SECRET_NAME = re.compile(r"(?i)^\S*(token|secret|passw|pwd|api_?key|credential|signature)\S*$")
SHORTEST = 4  # a shorter value would blank out ordinary words
_names: dict[str, str] = {}  # by the value that was filled in


def load_env_file(root: Path) -> None:
    """Add what the project's `.env` says to the environment; what is set there already stays."""
    from dotenv import load_dotenv

    if (root / ".env").is_file():
        load_dotenv(root / ".env", override=False, encoding="utf-8")


def expand(text: str) -> str:
    """Return `text` with each `${NAME}` replaced by its value, percent-encoded inside an address.

    Raises:
        KeyError: a name is not set; it is the error's argument.
    """

    def fill(found: re.Match[str]) -> str:
        value = os.environ[found[1]]
        filled = quote(value, safe="") if "://" in text[: found.start()] else value
        for form in (value, filled, *_passwords(value)):
            _names[form] = found[1]
        return filled

    return PLACEHOLDER.sub(fill, text)


def _passwords(value: str) -> tuple[str, ...]:
    """Return the password of a secret that is a whole address, as it stands there and as it is sent."""
    if "://" not in value:
        return ()
    password = value.partition("://")[2].rpartition("@")[0].partition(":")[2]
    return (password, unquote(password)) if password else ()


def redact(text: str) -> str:
    """Return `text` with every secret that was filled in anywhere replaced by its `${NAME}`."""
    for value in sorted(_names, key=len, reverse=True):
        if len(value) >= SHORTEST and value in text:
            text = text.replace(value, f"${{{_names[value]}}}")
    return text


def find_plain(uri: str) -> str | None:
    """Return what holds a secret in plain text in an address ("password", or a parameter's name), or None."""
    if "://" not in uri:
        return None
    parts = urlsplit(PLACEHOLDER.sub("", uri))
    if parts.password:
        return "password"
    given = (*parse_qsl(parts.query), *parse_qsl(parts.fragment))
    return next((name for name, value in given if value and SECRET_NAME.search(name)), None)
