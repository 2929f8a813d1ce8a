"""Secrets: `${NAME}` in an address is read from the environment or `.env`, and only its name is shown."""

import json
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, unquote_plus
from urllib.request import Request

PLACEHOLDER = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# A parameter's name, with words separated by "_"; not inside a secret, nor in a query such as `WHERE token = 'x'`.
SECRET_NAME = re.compile(
    r"(?i)(?!\S*_(file|location|path|url)$)"
    r"(\S*(token|secret|passw|passphrase|pwd|api_?key|key_pem|credential|signature)\S*"
    r"|sig|sas|pw|pass|jwt|(x_)?auth|(\S*_)?(authorization|cookie)"
    r"|(\S*_)?(access|account|auth|encryption|functions|master|private|signing|subscription)_?key|(x_)?key)"
)
WORDS = re.compile(r"[-.]|(?<=[a-z])(?=[A-Z])")  # other separators of words in a name
KEY_HEADER = re.compile(r"(?i)(?!(idempotency|(x-)?(partition|sort))-).*key")
PLAIN_VALUE = re.compile(r"(?i)\d{0,3}|true|false")  # no secret has such a value
WEB = re.compile(r"(?i)(rest\+)?https?")
PORT = re.compile(r"\d{1,5}/")  # after the host comes the path, which may contain "@"
SHORTEST = 4  # redacting shorter values would remove ordinary words
_names: dict[str, str] = {}  # by the value of the secret


def load_env_file(root: Path) -> None:
    """Add the variables of the project's `.env` to the environment; variables that are already set are kept."""
    from dotenv import load_dotenv

    if (root / ".env").is_file():
        load_dotenv(root / ".env", override=False, encoding="utf-8-sig")  # Windows writes a byte order mark


def expand(text: str) -> str:
    """Return `text` with each `${NAME}` replaced by its value, percent-encoded inside an address.

    Raises:
        KeyError: a name is not set; the argument is the name.
    """

    def fill(found: re.Match[str]) -> str:
        value = os.environ[found[1]]
        for secret in (value, *(inner for _, inner in _secrets(value))):
            _names.update(dict.fromkeys(_forms(secret), found[1]))
        return _quote(value) if "://" in text[: found.start()] else value

    return PLACEHOLDER.sub(fill, text)


def add_authorization(request: Request) -> Request:
    """Return `request` with the key in the variable `ML_API_KEY`; redirects do not get it.

    A value that no header can hold is left out: the service then refuses the request.
    """
    key = os.environ.get("ML_API_KEY", "").strip()
    if key.isascii() and key.isprintable() and key:
        _names.update(dict.fromkeys(_forms(key), "ML_API_KEY"))
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    return request


def _forms(value: str) -> set[str]:
    """Return a secret in its forms: unchanged, and as encoded in addresses, forms, JSON and Python."""
    forms = {value, unquote(value), unquote_plus(value)}
    for bare in tuple(forms):
        for safe in ("", "/"):
            forms |= {_quote(bare, safe), quote_plus(bare, safe, errors="surrogateescape")}
        forms |= {json.dumps(bare)[1:-1], json.dumps(bare, ensure_ascii=False)[1:-1], repr(bare)[1:-1]}
    return forms


def _quote(text: str, safe: str = "") -> str:
    return quote(text, safe=safe, errors="surrogateescape")  # bytes of the environment that are not UTF-8


def may_be_address(source: str) -> bool:
    """Return True if a source is an address, or begins with a secret, which may contain one."""
    return "://" in source or PLACEHOLDER.match(source) is not None


def redact(text: str) -> str:
    """Return `text` with every known secret replaced by its `${NAME}`."""
    for value in sorted(_names, key=len, reverse=True):
        if len(value) >= SHORTEST and value in text:
            text = text.replace(value, f"${{{_names[value]}}}")
    return text


@contextmanager
def redact_exceptions() -> Iterator[None]:
    """Remove secrets from exceptions and their tracebacks, which Prefect would store.

    Raises:
        RuntimeError: the redacted message of an exception that contains a secret itself.
    """
    try:
        yield
    except Exception as error:
        if _is_clean(error):
            raise
        if _is_clean(error, chain=False):  # the cause is not redacted
            raise error from None
        raise RuntimeError(redact(f"{type(error).__name__}: {error}")) from None


def _is_clean(error: Exception, chain: bool = True) -> bool:
    trace = "".join(traceback.format_exception(error, chain=chain))
    return redact(trace) == trace


def find_plain(uri: str) -> str | None:
    """Return the part of an address with a secret in plain text ("password", or a parameter's name), or None."""
    return next((what for what, value in _secrets(uri) if PLACEHOLDER.sub("", value)), None)


def _secrets(uri: str) -> Iterator[tuple[str, str]]:
    """Yield each secret in an address, `${NAME}` or plain text, and its name."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return
    web = WEB.fullmatch(scheme)
    # A database's password may contain a slash; in a web address, a path follows it.
    place = re.split(r"[/?#]" if web else r"[?#]", rest, maxsplit=1)[0]
    user, _, password = place.rpartition("@")[0].partition(":")
    if password and "/" not in user and not PORT.match(password):
        yield "password", password
    elif web and user:
        yield "user without a password", user
    before, _, fragment = rest.partition("#")
    for name, value in _pairs(before.partition("?")[2]):
        if _names_secret(name) and not PLAIN_VALUE.fullmatch(value):
            yield name, value
        yield from _inside(unquote_plus(value))
    for name, value in _pairs(fragment):
        if name == "header":
            yield from _header(unquote(value))
        elif _names_secret(name):
            yield name, value


def _pairs(query: str) -> Iterator[tuple[str, str]]:
    """Yield the parameters of a query, the values unchanged."""
    for part in query.split("&"):
        name, _, value = part.partition("=")
        yield unquote_plus(name), value


def _inside(value: str) -> Iterator[tuple[str, str]]:
    """Yield the secrets inside a parameter: `odbc_connect=DRIVER=…;PWD=…`."""
    for part in value.split(";"):
        name, equals, secret = part.partition("=")
        if equals and _names_secret(name.strip()):
            yield name.strip(), secret.strip()


def _header(header: str) -> Iterator[tuple[str, str]]:
    """Yield the secret in a header, `Authorization: Bearer …`; only the `${NAME}`, if there is one."""
    name, _, value = (part.strip() for part in header.partition(":"))
    if _names_secret(name) or KEY_HEADER.fullmatch(name):
        found = PLACEHOLDER.search(value)
        yield f"header {name}", found[0] if found else value.rpartition(" ")[2]


def _names_secret(name: str) -> bool:
    return SECRET_NAME.fullmatch(WORDS.sub("_", name)) is not None


def show_uri(uri: str) -> str:
    """Return an address without user name and password."""
    return re.sub(r"//[^/@]*@", "//", uri)


def leads_elsewhere(before: str, after: str) -> bool:
    """Return True if a redirect changes host, port or scheme (except http to https): then no secrets are sent."""
    from requests import Session

    with Session() as session:
        return session.should_strip_auth(before, after)
