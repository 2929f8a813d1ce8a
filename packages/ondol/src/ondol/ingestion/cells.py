"""Cells of delimited text as a dialect writes them, turned into the plain form that the contract reads.

What a cell means depends on the cell, its column's kind and the settings alone.
"""

import re
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from ondol.config.data import Dialect
from ondol.contract.cleaning import normalize_texts

NULLS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "#N/A")
NUMERIC = ("number", "integer")
NO_NUMBER = "'"  # as spreadsheets mark a text that looks like a number
PLAIN = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"
SPACES = " \u00a0\u2009\u202f"
ALIKE = {" ": f"[{SPACES}]", "'": "['’]", "’": "['’]"}


def converts(dialect: Dialect, kind: str, name: str) -> bool:
    """Return True if a column's cells may have to be changed before the contract can read them."""
    if dialect.trim or name_markers(dialect, kind, name):
        return True
    return kind in NUMERIC and (dialect.decimal, dialect.thousands) != (".", "")


def name_markers(dialect: Dialect, kind: str, name: str) -> tuple[str, ...]:
    """Return the texts that mean that a column of `kind` called `name` has no value."""
    if isinstance(dialect.missing, dict):
        return dialect.missing.get(name, ())
    return () if kind == "text" else dialect.missing


def read_cells(values: pa.Array, dialect: Dialect, kind: str, name: str) -> pa.Array:
    """Return a text column with markers of missing values as null and numbers as `1234.5`.

    A text that only looks like a number, because the table's numbers are written otherwise, gets an apostrophe before
    it: no reader takes it for one.

    Args:
        values: Text, as it stands in the file; null where missing.
        dialect: How the file is written.
        kind: The contract's kind of the column.
        name: Its name.
    """
    if dialect.trim:
        values = _trim(values)
    if markers := name_markers(dialect, kind, name):
        texts = normalize_texts(pa.chunked_array([pc.utf8_trim_whitespace(values)])).combine_chunks()
        found = pc.is_in(texts, value_set=pa.array(markers, values.type))
        values = pc.if_else(found, None, values) if pc.any(found).as_py() else values
    if kind in NUMERIC and (dialect.decimal, dialect.thousands) != (".", ""):
        values = read_numbers(values, dialect.decimal, dialect.thousands)
    return values


def trim_text(text: str) -> str:
    """Return one text without the spaces around it, and the quotes within these."""
    bare = text.strip()
    return bare[1:-1] if len(bare) > 1 and bare[0] == bare[-1] == '"' and '"' not in bare[1:-1] else bare


def _trim(values: pa.Array) -> pa.Array:
    """Drop the spaces around texts, and the quotes that a space before them kept from being read as such."""
    raw, values = values, pc.utf8_trim_whitespace(values)
    quoted = pc.match_substring_regex(values, '^"[^"]*"$')
    if pc.any(quoted).as_py():
        values = pc.if_else(quoted, pc.utf8_slice_codeunits(values, 1, -1), values)
    empty = pc.and_(pc.is_in(values, value_set=pa.array(NULLS, values.type)), pc.not_equal(values, raw))
    return pc.if_else(empty, None, values) if pc.any(empty).as_py() else values


def read_numbers(values: pa.Array, decimal: str, thousands: str) -> pa.Array:
    """Return texts that are numbers in a notation as `1234.5`; see `read_cells` for others."""
    fits = pc.match_substring_regex(values, number_pattern(decimal, thousands))
    plain = pc.utf8_trim(values, characters=SPACES + "\t") if thousands == " " else pc.utf8_trim_whitespace(values)
    if thousands:
        plain = pc.replace_substring_regex(plain, ALIKE.get(thousands, re.escape(thousands)), "")
    if decimal != ".":
        plain = pc.replace_substring(plain, decimal, ".")
    if pc.all(fits).as_py() is not False:
        return plain
    feigned = pc.match_substring_regex(values, PLAIN)
    others = pc.if_else(feigned, pc.binary_join_element_wise(NO_NUMBER, values, ""), values)
    return pc.if_else(fits, plain, others)


def write_numbers(values: pa.ChunkedArray, decimal: str) -> pa.ChunkedArray:
    """Return a column as text that `read_cells` reads as the same numbers, and as the same texts."""
    texts = values.cast(pa.string())
    if decimal == ".":
        return texts
    own = pc.replace_substring(texts, ".", decimal)
    texts = pc.if_else(pc.match_substring_regex(texts, PLAIN), own, texts)
    feigned = pc.match_substring_regex(texts, PLAIN.replace("^", f"^{NO_NUMBER}", 1))
    return pc.if_else(feigned, pc.utf8_slice_codeunits(texts, len(NO_NUMBER)), texts)


@lru_cache
def number_pattern(decimal: str, thousands: str) -> str:
    """Return the pattern of a whole text that is a number with these signs, in groups (also Indian ones) or without."""
    point, mark = re.escape(decimal), ALIKE.get(thousands, re.escape(thousands))
    fraction = rf"({point}[0-9]*)?"
    forms = [rf"[0-9]+{fraction}", rf"{point}[0-9]+"]
    if thousands:
        forms.append(rf"[1-9][0-9]{{0,2}}({mark}[0-9]{{3}})+{fraction}")
        forms.append(rf"[1-9][0-9]?({mark}[0-9]{{2}})+{mark}[0-9]{{3}}{fraction}")
    return rf"^\s*[+-]?({'|'.join(forms)})([eE][+-]?[0-9]+)?\s*$"
