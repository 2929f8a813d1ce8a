"""JSON documents that are an array of objects, or an object around one, split into elements as they are read."""

import json
import re
from collections.abc import Iterator
from typing import TextIO

from ondol.errors import UserError

CHUNK = 1 << 20  # characters
LONGEST_ELEMENT = 16 << 20
START = re.compile(r'\s*(?:\[|\{\s*("(?:[^"\\]++|\\.)*+")\s*:\s*\[(?=\s*[{\]]))', re.DOTALL)
TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+("?)|[\[\]{}]', re.DOTALL)
OBJECTS = re.compile(r'\s*(?:\{\s*["}]|\[\s*[{\]])')


def is_json(head: bytes) -> bool:
    """Return True if a file that begins with `head` is JSON of whatever kind, not delimited text."""
    text = _decode(head)
    if OBJECTS.match(text):
        return True
    first, rest = _first_line(text)
    if not first.startswith("["):  # a header may begin with "[" too
        return False
    is_cut = not rest and len(head) >= CHUNK
    return is_cut or not first.strip("[ \t") or isinstance(_parse(first), list)


def is_array(head: bytes) -> bool:
    """Return True if JSON that begins with `head` is one array, or one object around it, rather than JSON Lines."""
    text = _decode(head)
    start = START.match(text)
    if start is None or start[1] is None:
        return start is not None
    first, rest = _first_line(text)
    return not rest or not isinstance(_parse(first), dict)


def _decode(head: bytes) -> str:
    return head.decode("utf-8-sig", errors="replace")


def _first_line(text: str) -> tuple[str, str]:
    """Return the first line that is not blank, and what is below it, without the blanks before them."""
    first, _, rest = text.lstrip().replace("\r", "\n").partition("\n")
    return first, rest.lstrip()


def _parse(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def read_elements(stream: TextIO, uri: str) -> Iterator[str]:
    """Yield the elements of the array in a document, each on one line; see `ArrayReader`.

    Raises:
        UserError: it is no array of objects.
    """
    start = START.match(stream.read(CHUNK))
    if start is None:
        raise UserError(f'"{uri}" changed while it was read: try again.')
    yield from ArrayReader(stream, uri, start).elements()


class ArrayReader:
    """Splits a document into the texts of its array's elements; at most one of them is held, and a mebibyte.

    Attributes:
        key: The name of the array, as it is written, where an object is around it.
    """

    def __init__(self, stream: TextIO, uri: str, start: "re.Match[str]") -> None:
        """Begin behind the array's bracket.

        Args:
            stream: The rest of the document, behind what `start` was found in.
            uri: What the document is called in messages.
            start: What `START` found in the first characters.
        """
        self._stream, self._uri = stream, uri
        self._text = start.string[start.end() :]
        self.key = start[1]

    def elements(self) -> Iterator[str]:
        """Yield each element on one line.

        Raises:
            UserError: one is no object, the array is cut short, or something is behind it.
        """
        depth, begun, place, number = 0, 0, 0, 1
        while True:
            token = TOKEN.search(self._text, place)
            if token is None or token[1] == "":  # none, or a string that goes on
                place = (len(self._text) if token is None else token.start()) - begun
                self._more(self._text[begun:], number)
                begun = 0
                continue
            place = token.end()
            if token[1]:
                if not depth:
                    self._refuse(number)
            elif token[0] in "{[":
                if not depth:
                    self._require_between(self._text[begun : token.start()], number, token[0])
                    begun = token.start()
                depth += 1
            elif depth:
                depth -= 1
                if not depth:
                    yield self._text[begun:place].replace("\n", " ").replace("\r", " ") + "\n"
                    begun, number = place, number + 1
            else:
                self._require_between(self._text[begun : token.start()], number, token[0])
                self._require_end(place)
                return

    def _more(self, held: str, number: int) -> None:
        chunk = self._stream.read(CHUNK)
        if not chunk:
            raise UserError(f'"{self._uri}" ends within its array, in element {number}: fetch it again.')
        if len(held) > LONGEST_ELEMENT:
            raise UserError(
                f'Element {number} of the array in "{self._uri}" is too long: write one JSON object on each line.'
            )
        self._text = held + chunk

    def _require_between(self, text: str, number: int, mark: str) -> None:
        """Check what stands between two elements: a comma; nothing before the first and the array's end."""
        wanted = "," if number > 1 and mark != "]" else ""
        if mark == "[" or mark == "}" or text.strip() != wanted:
            self._refuse(number)

    def _require_end(self, place: int) -> None:
        rest = self._text[place:] + self._stream.read(CHUNK)
        if self.key is not None:
            rest = rest.strip()
            if not rest.startswith("}"):
                raise UserError(
                    f'"{self._uri}" has more than the list {self.key} in one object: keep that list alone, or write '
                    "one JSON object, without lists, on each line."
                )
            rest = rest[1:]
        if rest.strip():
            raise UserError(f'"{self._uri}" goes on behind its array: write one JSON object on each line.')

    def _refuse(self, number: int) -> None:
        raise UserError(
            f'Element {number} of the array in "{self._uri}" is no JSON object: a table has one object, '
            'as in {"a": 1}, for each row.'
        )
