"""Bytes on disk: what a file is by its first bytes, decompressed reading, and where its encoding breaks."""

import codecs
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from flows.errors import UserError

HEAD_BYTES = 1 << 20
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}
WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
FOREIGN = {
    b"PK\x03\x04": "a ZIP archive (an Excel workbook is one)",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF document",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"SQLite format 3": "an SQLite database",
    b"ARROW1": "an Arrow file",
}


def find_compression(path: Path) -> str | None:
    """Return the compression that the file's first bytes show, as Arrow calls it, or None."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), None)


def open_stream(path: Path) -> pa.NativeFile:
    """Open the file for reading, decompressed."""
    return pa.input_stream(str(path), compression=find_compression(path))


def read_head(path: Path, uri: str) -> bytes:
    """Return the first mebibyte of the decompressed file."""
    with explain_damage(uri), open_stream(path) as stream:
        return bytes(stream.read(HEAD_BYTES))


def has_open_quote(path: Path) -> bool:
    """Tell whether the file has an odd number of quotes, so that one is never closed."""
    count = 0
    with open_stream(path) as stream:
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


def refuse_foreign(head: bytes, uri: str) -> None:
    """Refuse bytes that are clearly no table in text: a picture, a web page, an archive, a binary.

    Raises:
        UserError: naming what it is.
    """
    if head.startswith(WIDE_MARKS):
        raise UserError(f'"{uri}" is encoded as UTF-16, not UTF-8: save it as UTF-8 (Excel: "CSV UTF-8").')
    what = next((name for magic, name in FOREIGN.items() if head.startswith(magic)), None)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:200].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        what = "a web page or XML"
    elif what is None and b"\x00" in head:
        what = "a binary file"
    if what:
        raise UserError(f'"{uri}" is no table but {what}: name a CSV, Parquet or JSON Lines file.')


def refuse_encoding(head: bytes, path: Path, uri: str) -> None:
    """Refuse a file whose first bytes are not UTF-8.

    Raises:
        UserError: naming the line and the byte.
    """
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        raise explain_encoding(path, uri) from None


def explain_encoding(path: Path, uri: str) -> UserError:
    """Return the error that says where the file stops being UTF-8, and how to mend it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines, seen, kept = 1, 0, b""
    with open_stream(path) as stream:
        while chunk := bytes(stream.read(HEAD_BYTES)):
            pending = kept
            try:
                decoder.decode(chunk)
                kept = decoder.getstate()[0]
            except UnicodeDecodeError as error:
                at = seen - len(pending) + error.start
                whole = pending + chunk
                lines += whole[: error.start].count(b"\n")
                return _say_encoding(uri, lines, at, whole[error.start], _guess(whole))
            lines += chunk.count(b"\n")
            seen += len(chunk)
    return UserError(f'"{uri}" is not UTF-8 at its very end: fetch it again, or save it as UTF-8.')


def _say_encoding(uri: str, line: int, at: int, byte: int, guess: str) -> UserError:
    return UserError(
        f'"{uri}" is not UTF-8: line {line} holds the byte 0x{byte:02X} (at offset {at:,}); '
        f"save it as UTF-8, for example with `iconv -f {guess} -t UTF-8`."
    )


def _guess(text: bytes) -> str:
    """Name the likeliest of the encodings that spreadsheets write."""
    sample = text[: text.rfind(b"\n") + 1] or text
    try:
        decoded = sample.decode("cp949")
    except UnicodeDecodeError:
        return "CP1252"
    korean = sum("가" <= letter <= "힣" for letter in decoded)
    foreign = sum(not letter.isascii() for letter in decoded)
    return "CP949" if korean > foreign / 2 else "CP1252"
