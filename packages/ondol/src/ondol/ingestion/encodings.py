"""Finds the encoding of a text table: UTF-8, UTF-16, or one of those that spreadsheets of old write."""

import codecs
import unicodedata
from itertools import pairwise

from ondol.ingestion.raw import HEAD_BYTES, WIDE_MARKS, RawFile, explain_damage

SCANNED_BYTES = 64 << 20
SAMPLE_BYTES = 64 << 10
# Windows' code pages, by script: what spreadsheets and databases write that do not write Unicode. KOI8-R is of Unix.
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
    """Return the encoding of a file, by its byte order mark or by its first 64 MiB."""
    if head.startswith(codecs.BOM_UTF32_LE):
        return "utf-32"
    if head.startswith(WIDE_MARKS):
        return "utf-16"
    if found := _find_unmarked(head):
        return found
    decoder, seen = codecs.getincrementaldecoder("utf-8")(), 0
    with explain_damage(file.uri), file.open_raw() as stream:
        while seen < SCANNED_BYTES and (chunk := bytes(stream.read(HEAD_BYTES))):
            seen += len(chunk)
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError:
                return "utf-8" if _is_damaged(chunk) else find_encoding(chunk)
    return "utf-8"


def _is_damaged(text: bytes) -> bool:
    """Return True if text that is not UTF-8 throughout has more letters of it than bytes that are none."""
    decoded = text.decode("utf-8", errors="replace")
    broken = decoded.count("\ufffd")
    return sum(not letter.isascii() for letter in decoded) - broken > broken


def _find_unmarked(head: bytes) -> str | None:
    """Return which UTF-16 a text without a byte order mark is: every second byte of ASCII is zero."""
    sample = head[:1024]
    halves = {"utf-16-le": sample[1::2], "utf-16-be": sample[::2]}
    return next((name for name, half in halves.items() if len(half) > 8 and half.count(0) > 0.5 * len(half)), None)


def find_encoding(text: bytes) -> str:
    """Return the likeliest encoding of text that is not UTF-8; Korean before all others.

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
    """Return the lines that are not ASCII, whole: of a table of numbers they are few."""
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
    # Japanese text gives syllables too, but rare ones, which EUC-KR does not have.
    korean = sum("가" <= letter <= "힣" for letter in sample.decode("euc-kr", errors="ignore"))
    return korean > foreign / 2


def _has_words(decoded: str, script: str) -> bool:
    """Return True if most letters beyond ASCII are of a script and stand beside one another, as in its words."""
    marks = [unicodedata.name(letter, "").startswith(script) for letter in decoded]
    pairs = sum(one and other for one, other in pairwise(marks))
    return pairs > 0.5 * sum(marks) > 0


def _count_broken(sample: bytes, name: str) -> int:
    """Count the symbols that stand inside words, which a wrong page makes of letters."""
    decoded = sample.decode(name, errors="replace")
    around = zip(f" {decoded}", decoded, f"{decoded[1:]} ", strict=False)
    return sum(
        not letter.isascii()
        and after.isalpha()
        and (before.isalpha() if unicodedata.category(letter)[0] == "P" else not letter.isalpha())
        for before, letter, after in around
    ) + 2 * decoded.count("\ufffd")
