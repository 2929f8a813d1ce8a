"""Bytes on disk: what a file is by its first bytes, decompressed reading, and where its encoding breaks."""

import codecs
import contextlib
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from ondol.errors import UserError

HEAD_BYTES = 1 << 20
HARMLESS_BYTES = 16 << 20  # as much may come out of any compressed file, however small it is
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
        uri: What it is called in messages.
        path: Where it is on disk.
        max_ratio: How many times its size it may hold.
        encoding: Of its text, a codec of Python.
    """

    uri: str
    path: Path
    max_ratio: int = 200
    encoding: str = "utf-8"

    def open(self) -> IO[bytes]:
        """Open it for reading as UTF-8, decompressed.

        Raises:
            UserError: (while it is read) it holds more than `max_ratio` times its size.
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
        with explain_damage(self.uri), self.open_raw() as stream:
            return bytes(stream.read(HEAD_BYTES))

    def digest(self) -> str:
        """Return the SHA-256 of its bytes as they are on disk."""
        with explain_damage(self.uri), self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class _Metered(io.RawIOBase):
    """A decompressed stream that stops where it has become implausibly long."""

    def __init__(self, stream: pa.NativeFile, file: RawFile) -> None:
        """Count what `stream`, the content of `file`, gives."""
        super().__init__()
        self._stream, self._file = stream, file
        self._size = file.path.stat().st_size
        self._left = max(HARMLESS_BYTES, file.max_ratio * self._size)

    def readable(self) -> bool:
        """It can be read."""
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
    """Return the compression that the file's first bytes show, as Arrow calls it, or None."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), None)


def has_open_quote(file: RawFile) -> bool:
    """Tell whether the file has an odd number of quotes, so that one is never closed."""
    count = 0
    with file.open() as stream:
        while chunk := bytes(stream.read(HEAD_BYTES)):
            count += chunk.count(b'"')
    return count % 2 == 1


@contextlib.contextmanager
def explain_damage(uri: str) -> Iterator[None]:
    """Turn a failing read of the bytes (cut short, corrupt, forbidden) into one sentence."""
    try:
        yield
    except PermissionError:
        raise UserError(f'"{uri}" may not be read: give this user the permission to.') from None
    except (OSError, EOFError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f'"{uri}" is cut short or damaged ({reason}): fetch it again.') from None


def refuse_foreign(head: bytes, uri: str, encoding: str = "utf-8") -> None:
    """Refuse bytes that are clearly no table in text: a picture, a web page, an archive, a binary.

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
        raise UserError(f'"{uri}" is no table but {what}: name a CSV, Parquet or JSON Lines file.')


def refuse_encoding(head: bytes, file: RawFile) -> None:
    """Refuse a file whose first bytes are not in its encoding, or are UTF-8 though that is another one.

    Raises:
        UserError: naming the line and the byte, or that it is UTF-8.
    """
    try:
        letters = codecs.getincrementaldecoder(file.encoding)().decode(head)
    except UnicodeDecodeError:
        raise explain_encoding(file) from None
    if file.encoding in (*UTF_8, *WIDE) or head.isascii() or not _is_utf_8(head):
        return
    # A code page reads nearly any bytes, but makes more letters of those of UTF-8. Some Korean is UTF-8 by chance, of
    # as many letters.
    if len(letters) > len(head.decode("utf-8", errors="ignore")):
        raise _say_utf_8(file)


def explain_encoding(file: RawFile) -> UserError:
    """Return the error that says where the file cannot be read in its encoding, and what to do."""
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
    from ondol.ingestion.encodings import find_encoding

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
