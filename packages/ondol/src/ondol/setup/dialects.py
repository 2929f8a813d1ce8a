"""Infers the format of a table's cells: spaces, numbers, markers of missing values, dates."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ondol.config import Dialect
from ondol.ingestion.csv_files import SPACES, name_markers, number_pattern, read_numbers
from ondol.setup.dates import ENOUGH, READABLE, decide_formats, describe_standard, find_written, shape
from ondol.setup.inference import TableFormat, guess_counted

# Most common first: among notations that fit equally many columns, the first one is taken.
NOTATIONS = ((".", ""), (",", ""), (".", ","), (",", "."), (",", " "), (".", " "), (".", "'"), (",", "'"))
MARKED = rf"^[+-]?[0-9.,'’{SPACES}]*[0-9][.,'’{SPACES}][0-9.,'’{SPACES}]*([eE][+-]?[0-9]+)?$"
GROUPED = r"^[+-]?[1-9][0-9]{0,2}([.,][0-9]{3})+$"
MARKERS = re.compile(
    r"\W{1,3}|n\W?/?\W?[ad]\W?|none|nil|null|nan|unk|unknown|undefined|missing|blank|empty|\W(blank|empty|na|null|none)\W"
    r"|not (available|applicable|known|recorded)|#(value!|ref!|div/0!|name\?|num!)|\\n"
    r"|k\.?a\.?|keine angabe|s\.?o\.?|없음|모름|미상|무응답|결측|해당 ?없음",
    re.IGNORECASE,
)
MOST_MARKERS = 5  # in one column
MOST_CLASSES = 100
LEAST_SHARE = 0.1  # values besides the markers
SPELLED = {
    "\t": "tabs",
    ";": "semicolons",
    "|": "bars",
    " ": "spaces",
    ",": "commas",
    ".": "points",
    "'": "apostrophes",
}


@dataclass(frozen=True)
class Cells:
    """The distinct texts of a column and their counts, without empty ones."""

    name: str
    texts: "pd.Series[str]"
    counts: "pd.Series[int]"

    def without(self, texts: Sequence[str]) -> "Cells":
        """Return the column without some texts."""
        kept = ~self.texts.isin(list(texts))
        return Cells(self.name, self.texts[kept], self.counts[kept])


def drop_repeated_headers(table: pa.Table) -> tuple[pa.Table, list[str]]:
    """Return the rows of delimited text without repeated headers, and a sentence on these, if any."""
    if not all(pa.types.is_string(kind) for kind in table.schema.types):
        return table, []
    same = [pc.equal(pc.utf8_trim_whitespace(table.column(name)), name) for name in table.schema.names]
    header = pc.fill_null(reduce(pc.and_, same), False)
    count = pc.sum(header).as_py() or 0
    if not count:
        return table, []
    rows = "1 row repeats the header: it is" if count == 1 else f"{count:,} rows repeat the header: they are"
    return table.filter(pc.invert(header)), [f"{rows} quarantined; remove such lines."]


def find_format(
    table: pa.Table, dialect: Dialect | None, formats: tuple[str, ...] | None, target: str = ""
) -> TableFormat:
    """Infer the format of a table from its cells.

    Args:
        table: Its raw columns; for delimited text, the text in the file.
        dialect: The known settings, which are kept; None if the table is not delimited text.
        formats: Its date formats, if known.
        target: The column to predict, in which question marks are not a class.
    """
    types = zip(table.schema.names, table.schema.types, strict=True)
    cells = [_count(name, table.column(name)) for name, kind in types if pa.types.is_string(kind)]
    resolved, notes, doubts = dialect, [], []
    if dialect is None:
        doubts = _doubt_markers(cells, formats)
    else:
        labels = next((column for column in cells if column.name == target), None)
        resolved, doubts = _find_dialect(table, cells, dialect)
        if "missing" not in dialect.model_fields_set:
            resolved = _add(resolved, {"missing": _find_missing(cells, labels, resolved, formats)})
        marks = _count_marks(cells, resolved, formats)
        doubts += _doubt_labels(labels, resolved, marks) if labels else []
        notes = [*_say(resolved, table.num_columns), *(_say_marks(name, marks[name]) for name in marks)]
    columns = [column.without(_markers_of(column, resolved)) for column in cells]
    listed = None if formats is None else set(map(shape, formats))
    dated = [found for c in columns if (found := find_written(c.name, c.texts, c.counts))]
    dated = [found for found in dated if listed is None or shape(found.fits[0]) in listed]
    formats, sentences, undecided = decide_formats(dated, formats)
    notes += [*sentences, *filter(None, (describe_standard(c.name, c.texts, c.counts) for c in columns))]
    return TableFormat(resolved, formats, tuple(notes), (*doubts, *undecided), frozenset(found.name for found in dated))


def _find_dialect(table: pa.Table, cells: Sequence[Cells], dialect: Dialect) -> tuple[Dialect, list[str]]:
    """Return the dialect inferred from the cells, without markers, and doubts about it."""
    known = dialect.model_fields_set
    found: dict[str, object] = {}
    doubts: list[str] = []
    if "trim" not in known and any(_is_padded(table.column(column.name)) for column in cells):
        found["trim"] = True
    if not {"decimal", "thousands"} & known:
        decimal, thousands, doubts = _find_notation(cells, dialect.delimiter)
        found |= {"decimal": decimal, "thousands": thousands}
    return _add(dialect, found), doubts


def _add(dialect: Dialect, found: dict[str, object]) -> Dialect:
    """Return the dialect with the inferred settings that differ from the default."""
    differing = {name: value for name, value in found.items() if value != Dialect.model_fields[name].default}
    return Dialect.model_validate(dialect.model_dump(exclude_unset=True) | differing)


def _markers_of(cells: Cells, dialect: Dialect | None) -> tuple[str, ...]:
    return name_markers(dialect, "date", cells.name) if dialect is not None else ()


def _is_padded(values: pa.ChunkedArray) -> bool:
    """Return True if a text has surrounding spaces; around numbers they do not matter."""
    trimmed = pc.utf8_trim_whitespace(values)
    padded = pc.and_(pc.not_equal(trimmed, values), pc.not_equal(trimmed, ""))
    kept = pc.unique(trimmed.filter(pc.fill_null(padded, False)))
    return bool(pc.any(pc.match_substring_regex(kept, r"[^0-9.,+-]")).as_py())


def _count(name: str, values: pa.ChunkedArray) -> Cells:
    counted = pc.value_counts(pc.utf8_trim_whitespace(values).combine_chunks())
    texts = counted.field("values").to_pandas().astype("str")
    there = (texts.notna() & (texts != "")).to_numpy(dtype=bool)
    return Cells(name, texts[there], pd.Series(counted.field("counts").to_numpy())[there])


def _find_notation(cells: Sequence[Cells], delimiter: str | None) -> tuple[str, str, list[str]]:
    """Return the decimal sign and the thousands separator that fit most columns, and doubts about them."""
    columns = [
        column for each in cells if (column := each.without(find_marker_texts(each))).texts.str.match(MARKED).any()
    ]
    fitting = {column.name: [n for n in NOTATIONS if _fits(column, *n)] for column in columns}
    suited = [column for column in columns if fitting[column.name]]
    if not suited:
        return ".", "", []
    score = {notation: sum(notation in fitting[column.name] for column in suited) for notation in NOTATIONS}
    best = [notation for notation in NOTATIONS if score[notation] == max(score.values())]
    for sign, plain, grouped in ((".", (".", ""), (",", ".")), (",", (",", ""), (".", ","))):
        if best[0] == plain and grouped in best:  # every value fits both, such as 1.234
            return _decide_notation(sign, plain, grouped, suited, delimiter)
    return *best[0], []


def _fits(cells: Cells, decimal: str, thousands: str) -> bool:
    """Return True if the values are numbers in a notation, except so few that these are errors."""
    fits = cells.texts.str.fullmatch(number_pattern(decimal, thousands).removeprefix("^").removesuffix("$"))
    total = cells.counts.sum()
    return bool(fits.all() or (total >= ENOUGH and cells.counts[fits].sum() >= READABLE * total))


def _decide_notation(
    sign: str, plain: tuple[str, str], grouped: tuple[str, str], columns: Sequence[Cells], delimiter: str | None
) -> tuple[str, str, list[str]]:
    """Choose between a decimal sign and a thousands separator if all values fit both."""
    marked = pd.concat([c.texts[c.texts.str.contains(sign, regex=False)] for c in columns])
    if not marked.str.match(GROUPED).all():  # none of these columns has the sign: another column decides
        return *plain, []
    whole = pd.concat([c.texts[c.texts.str.fullmatch(r"[+-]?[0-9]+")] for c in columns]).str.lstrip("+-0")
    small, large = (whole.str.len() <= 3).any(), (whole.str.len() > 3).any()
    example = str(marked.iloc[0])
    many = len(marked) >= 20
    if large:
        chosen = plain
    elif small:
        chosen = grouped if sign == "," or many else plain
    else:
        chosen = grouped if sign == "," and delimiter != ";" else plain
    as_number = example.replace(sign, "" if chosen == grouped else ".")
    other = grouped if chosen == plain else plain
    setting = f'decimal = "{other[0]}"' + (f' and thousands = "{other[1]}"' if other[1] else ' and thousands = ""')
    doubt = (
        f'"{example}" is read as {as_number}, which the data does not decide: in [data] of config.toml, {setting} '
        "read it otherwise."
    )
    certain = sign == "." and chosen == plain and delimiter != ";"
    return *chosen, [] if certain or (large and sign == ".") else [doubt]


def find_marker_texts(cells: Cells) -> list[str]:
    """Return the texts of a column that look like markers of a missing value."""
    return [text for text in cells.texts if MARKERS.fullmatch(text)]


def _find_missing(
    cells: Sequence[Cells], labels: Cells | None, dialect: Dialect, formats: tuple[str, ...] | None
) -> tuple[str, ...] | dict[str, tuple[str, ...]]:
    """Return the setting `missing`: a list, or a table if question marks among the classes `labels` are markers."""
    found = _find_markers(cells, dialect, formats)
    asked = _find_asked(labels) if labels and labels.name not in found else {}
    if labels and asked:
        return {name: tuple(counts) for name, counts in found.items()} | {labels.name: tuple(asked)}
    total = sum(map(Counter, found.values()), Counter())
    return tuple(text for text, _ in total.most_common())


def _count_marks(
    cells: Sequence[Cells], dialect: Dialect, formats: tuple[str, ...] | None
) -> dict[str, dict[str, int]]:
    """Return the counts of markers of missing values by column."""
    found = {}
    for column in cells:
        markers = _markers_of(column, dialect)
        marked = column.texts.isin(markers)
        named = isinstance(dialect.missing, dict)
        if marked.any() and (named or _is_readable(column.without(markers), dialect, formats)):
            found[column.name] = dict(zip(column.texts[marked], map(int, column.counts[marked]), strict=True))
    return found


def _doubt_markers(cells: Sequence[Cells], formats: tuple[str, ...] | None) -> list[str]:
    """Return doubts about columns of a typed source that are text only because of markers."""
    doubts = []
    for name, counts in _find_markers(cells, Dialect(), formats).items():
        shown = ", ".join(f'"{text}"' for text in counts)
        doubts.append(
            f'"{name}" stays text because of {shown} in {sum(counts.values()):,} rows: without them it is a column '
            "of numbers or dates; write null there."
        )
    return doubts


def _find_markers(
    cells: Sequence[Cells], dialect: Dialect, formats: tuple[str, ...] | None
) -> dict[str, dict[str, int]]:
    """Return the counts of markers by column, for columns in which all other values are numbers, dates or durations."""
    found = {}
    for column in cells:
        markers = find_marker_texts(column)
        rest = column.without(markers)
        # Words may be a third class next to two numbers.
        signs = all(re.fullmatch(r"\W+", marker) for marker in markers)
        enough = len(rest.texts) >= (2 if signs else 3) and rest.counts.sum() >= min(
            ENOUGH, LEAST_SHARE * column.counts.sum()
        )
        if 0 < len(markers) <= MOST_MARKERS and enough and _is_readable(rest, dialect, formats):
            counts = dict(zip(column.texts, column.counts, strict=True))
            found[column.name] = {text: int(counts[text]) for text in markers}
    return found


def _find_asked(labels: Cells) -> dict[str, int]:
    """Return the question marks among classes, and their counts."""
    asked = labels.texts[labels.texts.str.fullmatch(r"\?+")]
    if len(labels.texts) - len(asked) < 2:
        return {}
    return {str(text): int(labels.counts[place]) for place, text in asked.items()}


def _doubt_labels(labels: Cells, dialect: Dialect, marks: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a doubt about classes that look like markers of missing labels, if there are enough other classes.

    Args:
        labels: The column to predict.
        dialect: The dialect of the table.
        marks: The markers found so far by column, which the suggested setting includes.
    """
    markers = [text for text in find_marker_texts(labels) if text not in name_markers(dialect, "text", labels.name)]
    if not markers or len(labels.texts) - len(markers) < 2 or len(labels.texts) > MOST_CLASSES:
        return []
    if not isinstance(dialect.missing, dict) and set(markers) <= set(dialect.missing):
        return []  # of a column of numbers
    markers_by_column = (
        dialect.missing if isinstance(dialect.missing, dict) else {name: tuple(marks[name]) for name in marks}
    )
    kept = markers_by_column | {labels.name: (*markers_by_column.get(labels.name, ()), *markers)}
    setting = ", ".join(f"{_quote(name)} = {_quote(list(texts))}" for name, texts in kept.items())
    rows = int(labels.counts[labels.texts.isin(markers)].sum())
    values = f"value{'s' * (len(markers) > 1)} {_quote(markers).strip('[]')}"
    return [
        f'"{labels.name}" has the {values} in {rows:,} rows, which may mean that there is no label: '
        f"missing = {{ {setting} }} under [data] in config.toml leaves them out."
    ]


def _quote(value: object) -> str:
    """Return a text, or a list of texts, as TOML."""
    return json.dumps(value, ensure_ascii=False)


def _is_readable(cells: Cells, dialect: Dialect, formats: tuple[str, ...] | None) -> bool:
    """Return True if a column's texts are numbers, dates, durations or booleans."""
    texts, counts = cells.texts.reset_index(drop=True), cells.counts.reset_index(drop=True)
    numbers = read_numbers(pa.array(texts, pa.string()), dialect.decimal, dialect.thousands).to_pandas().astype("str")
    if any(guess_counted(read, counts, formats or ())[0] != "text" for read in (numbers, texts)):
        return True
    return formats is None and find_written(cells.name, texts, counts) is not None


def _say(dialect: Dialect, columns: int) -> list[str]:
    """Return notes on settings that differ from the default."""
    sentences = []
    if dialect.encoding != "utf-8":
        # Most code pages decode any bytes; Korean and UTF-16 are recognized by their structure.
        guessed = not dialect.encoding.startswith(("utf", "cp949"))
        check = ", as a guess by its letters: check the names and values below" * guessed
        sentences.append(f"Its text is encoded as {dialect.encoding.upper()}{check}.")
    if dialect.delimiter not in (None, ","):
        sentences.append(f"Its fields are divided by {SPELLED.get(str(dialect.delimiter), repr(dialect.delimiter))}.")
    if dialect.skip_lines:
        lines = "line is" if dialect.skip_lines == 1 else f"{dialect.skip_lines} lines are"
        sentences.append(f"Its first {lines} above the table and not read.")
    if dialect.header is False:
        sentences.append(
            f"It has no header: its columns are called column_1 to column_{columns}, in order "
            '(header = true under [data] changes that, header = ["…", …] names them).'
        )
    if dialect.trim:
        sentences.append("Spaces around names and values are dropped.")
    if (dialect.decimal, dialect.thousands) != (".", ""):
        sign = "comma" if dialect.decimal == "," else "point"
        groups = f", and {SPELLED.get(dialect.thousands, repr(dialect.thousands))} between thousands" * bool(
            dialect.thousands
        )
        sentences.append(f"Its numbers have a decimal {sign}{groups}.")
    return sentences


def _say_marks(name: str, counts: dict[str, int]) -> str:
    shown = [f'"{text}"' for text in counts]
    listed = f"{', '.join(shown[:-1])} and {shown[-1]} mean" if len(shown) > 1 else f"{shown[0]} means"
    rows = sum(counts.values())
    return f'{listed} in {rows:,} row{"s" * (rows != 1)} of "{name}" that there is no value.'
