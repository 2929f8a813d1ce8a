"""Files as sources: format, compression and encoding, and the base class of all formats."""

import codecs
import contextlib
import copy
import hashlib
import io
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, TextIO

import pyarrow as pa

from ondol.config import Dialect
from ondol.errors import UserError, nearest
from ondol.ingestion.sources import Columns, Reading, Source
from ondol.storage.remote_files import WILD, resolve
from ondol_serving.grammar import normalize

if TYPE_CHECKING:
    import pyarrow as pa

HEAD_BYTES = 1 << 20
HARMLESS_BYTES = 16 << 20  # any compressed file may have this decompressed size, however small it is
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}
WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
UTF_8 = ("utf-8", "utf-8-sig")
WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
FOREIGN = {
    b"PK\x03\x04": "a ZIP archive (an Excel workbook is one)",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF document",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"SQLite format 3": "an SQLite database",
    b"ARROW1": "an Arrow file",
    b"PARE": "an encrypted Parquet file",
}


@dataclass(frozen=True)
class RawFile:
    """A file of bytes, compressed or not.

    Attributes:
        uri: Its name in messages.
        path: Its path on disk.
        max_ratio: The largest allowed ratio of decompressed to compressed size.
        encoding: The encoding of its text, a Python codec.
    """

    uri: str
    path: Path
    max_ratio: int = 200
    encoding: str = "utf-8"

    def open(self) -> IO[bytes]:
        """Open it for reading as UTF-8, decompressed.

        Raises:
            UserError: (while it is read) its content is longer than `max_ratio` times its size.
            UnicodeDecodeError: (while it is read) it is not in `encoding`, which is not UTF-8.
        """
        stream = self.open_raw()
        if self.encoding in UTF_8:
            return stream
        native = stream if isinstance(stream, pa.NativeFile) else pa.PythonFile(stream, mode="r")
        return pa.transcoding_input_stream(native, self.encoding, "utf-8")

    def open_raw(self) -> IO[bytes]:
        """Open it for reading in its own encoding, decompressed; raises as `open`."""
        compression = find_compression(self.path)
        stream = pa.input_stream(str(self.path), compression=compression)
        return io.BufferedReader(_Metered(stream, self), HEAD_BYTES) if compression else stream

    def read_head(self) -> bytes:
        """Return the first mebibyte, in its own encoding."""
        with explain_read_errors(self.uri), self.open_raw() as stream:
            return bytes(stream.read(HEAD_BYTES))

    def digest(self) -> str:
        """Return the SHA-256 of its bytes on disk."""
        with explain_read_errors(self.uri), self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class _Metered(io.RawIOBase):
    """A decompressed stream that raises an error when it becomes implausibly long."""

    def __init__(self, stream: pa.NativeFile, file: RawFile) -> None:
        """Count the bytes of `stream`, the content of `file`."""
        super().__init__()
        self._stream, self._file = stream, file
        self._size = file.path.stat().st_size
        self._left = max(HARMLESS_BYTES, file.max_ratio * self._size)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; see `io.RawIOBase`."""
        count = int(self._stream.readinto(buffer))
        self._left -= count
        if self._left < 0:
            raise UserError(
                f'"{self._file.uri}" holds more than {self._file.max_ratio} times its {self._size:,} bytes when it is '
                "decompressed: if that is right, raise `max_ratio` under [fetch] in config.toml."
            )
        return count

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        super().close()


def find_compression(path: Path) -> str | None:
    """Return the compression of the file, by its first bytes, with Arrow's name for it, or None."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), None)


def has_open_quote(file: RawFile) -> bool:
    """Return True if the file has an odd number of quotes, so that one is never closed."""
    count = 0
    with file.open() as stream:
        while chunk := bytes(stream.read(HEAD_BYTES)):
            count += chunk.count(b'"')
    return count % 2 == 1


@contextlib.contextmanager
def explain_read_errors(uri: str) -> Iterator[None]:
    """Turn errors of reading bytes (truncated, corrupt, forbidden) into a UserError."""
    try:
        yield
    except PermissionError:
        raise UserError(f'"{uri}" cannot be read: give this user the permission.') from None
    except (OSError, EOFError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f'"{uri}" is cut short or damaged ({reason}): fetch it again.') from None


def refuse_foreign(head: bytes, uri: str, encoding: str = "utf-8") -> None:
    """Refuse bytes that are clearly not a table as text: a picture, a web page, an archive, a binary.

    Raises:
        UserError: naming what it is.
    """
    if encoding in WIDE:
        return
    if head.startswith(WIDE_MARKS):
        raise UserError(
            f'"{uri}" is encoded as UTF-16, not {encoding.upper()}: write encoding = "utf-16" under [data] in '
            'config.toml, as `ml init` does, or save it as UTF-8 (Excel: "CSV UTF-8").'
        )
    what = next((name for magic, name in FOREIGN.items() if head.startswith(magic)), None)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:200].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        what = "a web page or XML"
    elif what is None and b"\x00" in head:
        what = "a binary file"
    if what:
        raise UserError(f'"{uri}" is not a table but {what}: name a CSV, Parquet or JSON Lines file.')


def refuse_encoding(head: bytes, file: RawFile) -> None:
    """Refuse a file whose first bytes are not in the configured encoding, or are UTF-8 instead.

    Raises:
        UserError: naming the line and the byte, or that it is UTF-8.
    """
    try:
        letters = codecs.getincrementaldecoder(file.encoding)().decode(head)
    except UnicodeDecodeError:
        raise explain_encoding(file) from None
    if file.encoding in (*UTF_8, *WIDE) or head.isascii() or not _is_utf_8(head):
        return
    # A code page decodes nearly any bytes, but UTF-8 becomes more letters. Some Korean text in a code page is also
    # valid UTF-8, with as many letters.
    if len(letters) > len(head.decode("utf-8", errors="ignore")):
        raise _say_utf_8(file)


def explain_encoding(file: RawFile) -> UserError:
    """Return an error on where the file cannot be decoded, and what to do."""
    decoder = codecs.getincrementaldecoder(file.encoding)()
    name = file.encoding.upper()
    lines, seen, kept = 1, 0, b""
    with file.open_raw() as stream:
        while chunk := bytes(stream.read(HEAD_BYTES)):
            pending = kept
            try:
                lines += decoder.decode(chunk).count("\n")
                kept = decoder.getstate()[0]
            except UnicodeDecodeError as error:
                whole = pending + chunk
                lines += whole[: error.start].decode(file.encoding, errors="ignore").count("\n")
                place = f"line {lines} holds the byte 0x{whole[error.start]:02X} (at offset "
                return _say_encoding(file, f"{place}{seen - len(pending) + error.start:,})", whole)
            seen += len(chunk)
    return UserError(f'"{file.uri}" is not {name} at its very end: fetch it again, or save it as {name}.')


def _say_encoding(file: RawFile, place: str, text: bytes) -> UserError:

    if file.encoding not in UTF_8 and _is_utf_8(text):
        return _say_utf_8(file)
    guess = find_encoding(text)
    if guess == file.encoding:
        remedy = "set encoding under [data] in config.toml to the one that it was written in, or save it as UTF-8"
    else:
        remedy = (
            f'write encoding = "{guess}" under [data] in config.toml, as `ml init` does, or save it as UTF-8, for '
            f"example with `iconv -f {guess.upper()} -t UTF-8`"
        )
    return UserError(f'"{file.uri}" is not {file.encoding.upper()}: {place}; {remedy}.')


def _say_utf_8(file: RawFile) -> UserError:
    name = file.encoding.upper()
    return UserError(
        f'"{file.uri}" is not {name}, as encoding under [data] in config.toml says, but UTF-8: save it as {name}, or '
        'with the mark of UTF-8 (Excel: "CSV UTF-8").'
    )


def _is_utf_8(text: bytes) -> bool:
    """Return True if text, which may end within a letter, is UTF-8."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(text)
    except UnicodeDecodeError:
        return False
    return True


SCANNED_BYTES = 64 << 20
SAMPLE_BYTES = 64 << 10
# Windows code pages by script, which spreadsheets and databases write instead of Unicode. KOI8-R is from Unix.
PAGES = (
    *("cp949", "cp932", "gb18030", "big5", "cp1250", "cp1251", "cp1252"),
    *("cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874", "koi8_r"),
)
ASIAN = ("cp932", "gb18030", "big5")
SCRIPTS = {
    "cp1251": "CYRILLIC",
    "koi8_r": "CYRILLIC",
    "cp1253": "GREEK",
    "cp1255": "HEBREW",
    "cp1256": "ARABIC",
    "cp874": "THAI",
}
WESTERN = ("cp1252", "cp1250", "cp1254")


def find_file_encoding(file: RawFile, head: bytes) -> str:
    """Detect the encoding of a file, by its byte order mark or by its first 64 MiB."""
    if head.startswith(codecs.BOM_UTF32_LE):
        return "utf-32"
    if head.startswith(WIDE_MARKS):
        return "utf-16"
    if found := _find_unmarked(head):
        return found
    decoder, seen = codecs.getincrementaldecoder("utf-8")(), 0
    with explain_read_errors(file.uri), file.open_raw() as stream:
        while seen < SCANNED_BYTES and (chunk := bytes(stream.read(HEAD_BYTES))):
            seen += len(chunk)
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError:
                return "utf-8" if _is_damaged(chunk) else find_encoding(chunk)
    return "utf-8"


def _is_damaged(text: bytes) -> bool:
    """Return True if damaged text has more letters of UTF-8 than invalid bytes."""
    decoded = text.decode("utf-8", errors="replace")
    broken = decoded.count("\ufffd")
    return sum(not letter.isascii() for letter in decoded) - broken > broken


def _find_unmarked(head: bytes) -> str | None:
    """Detect UTF-16 without a byte order mark: every second byte of ASCII is zero."""
    sample = head[:1024]
    halves = {"utf-16-le": sample[1::2], "utf-16-be": sample[::2]}
    return next((name for name, half in halves.items() if len(half) > 8 and half.count(0) > 0.5 * len(half)), None)


def find_encoding(text: bytes) -> str:
    """Return the most probable encoding of text that is not UTF-8; Korean first.

    Args:
        text: Some of it, which may begin and end within a character.
    """
    sample = _sample(text)
    if _is_korean(sample):
        return "cp949"
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=list(PAGES)).best()
    found = best.encoding if best is not None else "cp1252"
    decoded = sample.decode(found, errors="ignore")
    if found in ASIAN:
        return found
    if found in SCRIPTS and _has_words(decoded, SCRIPTS[found]):
        return found
    broken = {name: _count_broken(sample, name) for name in WESTERN}
    return min(WESTERN, key=lambda name: broken[name])


def _sample(text: bytes) -> bytes:
    """Return the complete lines that are not ASCII: a table of numbers has only a few."""
    lines = text.split(b"\n")
    whole = lines[1:-1] if len(lines) > 2 and len(text) >= HEAD_BYTES else lines
    kept = [line for line in whole if not line.isascii()] or [line for line in lines if not line.isascii()]
    return b"\n".join(kept)[:SAMPLE_BYTES].rpartition(b"\n")[0] or b"\n".join(kept)[:SAMPLE_BYTES]


def _is_korean(sample: bytes) -> bool:
    try:
        decoded = sample.decode("cp949")
    except UnicodeDecodeError:
        return False
    foreign = sum(not letter.isascii() for letter in decoded)
    # Japanese text also decodes to syllables, but to rare ones, which EUC-KR does not have.
    korean = sum("가" <= letter <= "힣" for letter in sample.decode("euc-kr", errors="ignore"))
    return korean > foreign / 2


def _has_words(decoded: str, script: str) -> bool:
    """Return True if most letters beyond ASCII belong to one script and are adjacent, as in words."""
    marks = [unicodedata.name(letter, "").startswith(script) for letter in decoded]
    pairs = sum(one and other for one, other in pairwise(marks))
    return pairs > 0.5 * sum(marks) > 0


def _count_broken(sample: bytes, name: str) -> int:
    """Count the symbols inside words, which appear if letters are decoded with a wrong code page."""
    decoded = sample.decode(name, errors="replace")
    around = zip(f" {decoded}", decoded, f"{decoded[1:]} ", strict=False)
    return sum(
        not letter.isascii()
        and after.isalpha()
        and (before.isalpha() if unicodedata.category(letter)[0] == "P" else not letter.isalpha())
        for before, letter, after in around
    ) + 2 * decoded.count("\ufffd")


CHUNK = 1 << 20  # characters
LONGEST_ELEMENT = 16 << 20
START = re.compile(r'\s*(?:\[|\{\s*("(?:[^"\\]++|\\.)*+")\s*:\s*\[(?=\s*[{\]]))', re.DOTALL)
TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+("?)|[\[\]{}]', re.DOTALL)
OBJECTS = re.compile(r'\s*(?:\{\s*["}]|\[\s*[{\]])')


def is_json(head: bytes) -> bool:
    """Return True if a file with this beginning is JSON of any kind, not delimited text."""
    text = _decode(head)
    if OBJECTS.match(text):
        return True
    first, rest = _first_line(text)
    if not first.startswith("["):  # a header may begin with "[" too
        return False
    is_cut = not rest and len(head) >= CHUNK
    return is_cut or not first.strip("[ \t") or isinstance(_parse(first), list)


def is_array(head: bytes) -> bool:
    """Return True if JSON with this beginning is one array, or an object around an array, not JSON Lines."""
    text = _decode(head)
    start = START.match(text)
    if start is None or start[1] is None:
        return start is not None
    first, rest = _first_line(text)
    return not rest or not isinstance(_parse(first), dict)


def _decode(head: bytes) -> str:
    return head.decode("utf-8-sig", errors="replace")


def _first_line(text: str) -> tuple[str, str]:
    """Return the first line that is not blank, and the rest below it, without leading blanks."""
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
        UserError: it is not an array of objects.
    """
    start = START.match(stream.read(CHUNK))
    if start is None:
        raise UserError(f'"{uri}" changed while it was read: try again.')
    yield from ArrayReader(stream, uri, start).elements()


class ArrayReader:
    """Splits a document into the texts of its array's elements; holds at most one of them and a mebibyte in memory.

    Attributes:
        key: The name of the array, unchanged, if an object is around it.
    """

    def __init__(self, stream: TextIO, uri: str, start: "re.Match[str]") -> None:
        """Begin behind the array's bracket.

        Args:
            stream: The rest of the document, after the text in which `start` was found.
            uri: The document's name in messages.
            start: The match of `START` in the first characters.
        """
        self._stream, self._uri = stream, uri
        self._text = start.string[start.end() :]
        self.key = start[1]

    def elements(self) -> Iterator[str]:
        """Yield each element on one line.

        Raises:
            UserError: one is not an object, the array is truncated, or something follows it.
        """
        depth, begun, place, number = 0, 0, 0, 1
        while True:
            token = TOKEN.search(self._text, place)
            if token is None or token[1] == "":  # none, or a string that continues
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

    def _more(self, text: str, number: int) -> None:
        chunk = self._stream.read(CHUNK)
        if not chunk:
            raise UserError(f'"{self._uri}" ends within its array, in element {number}: fetch it again.')
        if len(text) > LONGEST_ELEMENT:
            raise UserError(
                f'Element {number} of the array in "{self._uri}" is too long: write one JSON object on each line.'
            )
        self._text = text + chunk

    def _require_between(self, text: str, number: int, mark: str) -> None:
        """Check the text between two elements: a comma, and nothing before the first element and the end."""
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
            raise UserError(f'"{self._uri}" has more after its array: write one JSON object on each line.')

    def _refuse(self, number: int) -> None:
        raise UserError(
            f'Element {number} of the array in "{self._uri}" is not a JSON object: a table has one object, '
            'as in {"a": 1}, for each row.'
        )


READER = 2  # increased whenever the same bytes are read as other values
PARQUET = b"PAR1"


class NoRows(UserError):
    """A valid file without rows: refused as the only file, ignored among others."""


class FileSource(ABC):
    """The base class of file sources: their location and the digest of their content.

    Attributes:
        typed: Whether the format has types, so that text in it is text.
        vacant: Columns without any value, which have no type.
        schema: Names and types; the names are in Unicode's normal form C.
        renamed: The names that the file has in another form.
        dialect: The dialect of delimited text; None for other formats.
    """

    typed = True
    dialect: Dialect | None = None
    vacant: frozenset[str] = frozenset()
    renamed: frozenset[str] = frozenset()
    schema: "pa.Schema | Any"

    def __init__(self, file: RawFile, columns: Columns) -> None:
        """Store the file and how to read it."""
        self.uri = file.uri
        self.file = file
        self.columns = columns

    def fingerprint(self) -> str:
        """Return the SHA-256 of the file's bytes and of the settings for reading them."""
        return sign(self.file.digest(), self.columns, self.dialect)

    def reset_copy(self) -> Self:
        """Return a copy of the source without the types inferred by reading it."""
        return copy.copy(self)

    @abstractmethod
    def batches(self) -> "Iterator[pa.RecordBatch]":
        """Yield the rows; see `ondol.ingestion.sources.Source`."""


def sign(content: Any, columns: Columns, dialect: Dialect | None = None) -> str:
    """Return the SHA-256 of the content of files (a JSON-able value) and of the settings for reading them."""
    kinds = None if columns is None else sorted(columns.items())
    parts = [READER, kinds, content]
    if dialect is not None and dialect != Dialect():
        parts.append(dialect.model_dump(mode="json"))
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def open_file(uri: str, reading: Reading) -> Source:
    """Open the file, or the files of the folder or the pattern, at the path `uri`; their content decides their formats.

    Raises:
        UserError: there is none, or one is not a table.
    """
    given = Path(resolve(uri)).expanduser()
    path = (reading.root / given).resolve()
    if path.is_dir() or (not path.exists() and WILD.search(str(given))):
        from ondol.ingestion.many import open_many

        return open_many(uri, given, reading)
    _check_exists(path, uri)
    return open_table(RawFile(uri, path, reading.fetch.max_ratio), reading)


def open_table(file: RawFile, reading: Reading) -> FileSource:
    """Open one file, which exists.

    Raises:
        NoRows: it has none.
        UserError: it is not a table.
    """
    head, columns, dialect = file.read_head(), reading.columns, reading.dialect
    if head.startswith(PARQUET):
        from ondol.ingestion.parquet import ParquetSource

        return ParquetSource(file, columns)
    of_json = is_json(head)
    if reading.expected is not None and "encoding" not in dialect.model_fields_set and not of_json:
        found = find_file_encoding(file, head)
        dialect = Dialect(**(dialect.model_dump(exclude_unset=True) | ({} if found in UTF_8 else {"encoding": found})))
    file = replace(file, encoding="utf-8" if of_json or head.startswith(codecs.BOM_UTF8) else dialect.encoding)
    refuse_foreign(head, file.uri, file.encoding)
    refuse_encoding(head, file)
    if file.encoding not in UTF_8:
        head = head.decode(file.encoding, errors="ignore").encode()
    if not head.strip().removeprefix(codecs.BOM_UTF8):
        raise NoRows(f'"{file.uri}" is empty: it needs a header and rows.')
    if of_json:
        from ondol.ingestion.json_files import JsonLinesSource

        return JsonLinesSource(file, columns)
    from ondol.ingestion.csv_files import DelimitedSource

    return DelimitedSource(file, columns, head, reading.quoted, dialect, reading.expected)


def check_names(names: Sequence[str], uri: str) -> None:
    """Refuse a table whose columns cannot be distinguished by name.

    Raises:
        UserError: a name is repeated or empty.
    """
    for place, name in enumerate(names, start=1):
        if not name.strip():
            raise UserError(
                f'Column {place} of "{uri}" has no name: name every column in the header '
                "(pandas writes such a column without index=False)."
            )
    name, times = Counter(names).most_common(1)[0]
    normal, alike = Counter(map(normalize, names)).most_common(1)[0]
    if alike > times:
        raise UserError(
            f'"{uri}" has {alike} columns named "{normal}", which differ only in how Unicode writes their letters '
            "(NFC or NFD): rename one."
        )
    if times > 1:
        raise UserError(f'"{uri}" has {times} columns named "{name}": give each a different name.')


def _check_exists(path: Path, uri: str) -> None:
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        place = "" if uri == str(path) else f" (looked for {path})"
        raise UserError(f'"{uri}" does not exist{place}: check the path.{near}')
    if not path.is_file():
        raise UserError(f'"{uri}" is not a regular file: name a CSV, Parquet or JSON Lines file.')
