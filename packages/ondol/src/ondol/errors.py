"""Errors that are shown to the user as one sentence, without a traceback."""

import difflib
from collections.abc import Iterable

from ondol.redaction import redact
from ondol_serving.names import printable


class UserError(Exception):
    """A mistake that the user can correct: the message says what was wrong, where, and what to do.

    The command line prints only the message and exits with `exit_code`.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        """Store `message`, with secrets replaced by their names and control characters of the data escaped."""
        # On one line: a name with a line feed cannot look like a separate message.
        super().__init__(printable(" ".join(redact(message).split("\n"))))


class Refused(UserError):
    """A gate refused: the result of the work was not accepted."""

    exit_code = 1


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean "…"?` for the closest of `known`, or an empty string."""
    names = {name.casefold(): name for name in known}
    matches = difflib.get_close_matches(word.casefold(), names, n=1, cutoff=0.5)
    return f' Did you mean "{names[matches[0]]}"?' if matches else ""
