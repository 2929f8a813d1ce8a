"""Database errors as one sentence, and whether a retry may help."""

import re
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError

from ondol.errors import UserError

LONGEST = 300


@dataclass(frozen=True)
class Rule:
    """A kind of failure.

    Attributes:
        what: The description of the failure in the sentence.
        todo: The remedy.
        codes: SQLSTATEs, and MySQL's error numbers.
        words: A pattern in the message, for drivers without codes.
        passing: Whether a retry may succeed.
    """

    what: str
    todo: str
    codes: frozenset[str]
    words: str
    passing: bool = False


RULES = (
    Rule(
        "refuses this user or password",
        "check both, and the secret that the address names",
        frozenset({"28P01", "28000", "1045", "1698"}),
        r"password authentication failed|no password supplied|role \"[^\"]*\" does not exist|no pg_hba",
    ),
    Rule(
        "names a database that does not exist",
        "check the name after the host",
        frozenset({"3D000", "1049"}),
        r"database \"[^\"]*\" does not exist",
    ),
    Rule(
        "cannot be read by this user",
        "ask for the right to SELECT",
        frozenset({"42501", "1142", "1143", "1044"}),
        r"permission denied",
    ),
    Rule(
        "would be changed",
        "a source is only read, name a SELECT",
        frozenset({"25006", "1792"}),
        r"readonly database|read-only (mode|transaction)",
    ),
    Rule(
        "took longer than {seconds:g} s",
        "make the query faster, or raise timeout_seconds under [fetch]",
        frozenset({"57014", "1969", "3024"}),
        r"during query \((?:The read operation )?timed out\)",
    ),
    Rule(
        "cannot be reached",
        "check the host's name",
        frozenset(),
        r"not known|No address associated|getaddrinfo failed|nodename nor servname",
    ),
    Rule(
        "cannot be reached",
        "check host and port, and that the server runs",
        frozenset({"2002", "2003", "57P03", "53300", "1040"}),
        r"Connection refused|No route to host|unreachable|timeout expired|timed out|resolve|in name resolution",
        passing=True,
    ),
    Rule(
        "is locked by another program",
        "wait for it to finish, and run this again",
        frozenset(),
        r"database (?:table )?is locked|Could not set lock|onflicting lock",
        passing=True,
    ),
    Rule(
        "is not a file of that database",
        "name another, or fetch it again",
        frozenset(),
        r"not a database|not a valid DuckDB|malformed|unable to open database",
    ),
)
LOST = Rule(
    "was cut off",
    "nothing was stored, so run it again",
    frozenset({"57P01", "57P02", "08006", "2006", "2013", "1927", "1053"}),
    r"closed the connection|connection is lost|Lost connection|consuming input failed|connection is closed",
    passing=True,
)
OTHER = Rule("cannot be read", "correct the address or the query", frozenset(), r"")


def find_rule(error: BaseException) -> Rule:
    """Return the rule that matches `error`."""
    code, text = _code(error), _reason(error)
    by_server = len(code) == 5 or code.startswith("1")  # its message may quote any text
    for rule in (*RULES, LOST):
        if code in rule.codes or (not by_server and re.search(rule.words, text)):
            return rule
    return LOST if isinstance(error, DBAPIError) and error.connection_invalidated else OTHER


def is_passing(error: BaseException) -> bool:
    """Return True if a retry may help."""
    return find_rule(error).passing


def explain_sql_error(error: BaseException, shown: str, seconds: float) -> UserError:
    """Return an error with what failed, the database's message, and what to do."""
    rule = find_rule(error)
    return UserError(f'"{shown}" {rule.what.format(seconds=seconds)} ({_reason(error)}): {rule.todo}.')


def _original(error: BaseException) -> BaseException:
    return getattr(error, "orig", None) or error


def _code(error: BaseException) -> str:
    """Return the SQLSTATE, or MySQL's number; empty if the driver gives none."""
    original = _original(error)
    given = next(iter(original.args), "")
    if not isinstance(given, int):  # MySQL's own numbers are more specific than its states
        given = getattr(original, "sqlstate", None) or given
    return str(given) if re.fullmatch(r"[0-9A-Z]{4,5}", str(given)) else ""


def _reason(error: BaseException) -> str:
    """Return the first line of the database's message."""
    original = _original(error)
    code, *rest = original.args or ("",)
    text = str(rest[0]) if isinstance(code, int) and rest else str(original)
    line = next((line for line in text.splitlines() if line.strip()), type(original).__name__)
    line = re.sub(r"^connection failed: |connection to server .*? failed: |FATAL:\s+", "", line)
    return line.strip().rstrip(".:")[:LONGEST]
