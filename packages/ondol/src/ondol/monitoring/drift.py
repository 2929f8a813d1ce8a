"""Drift of a window from the reference, column by column.

The distance between two samples of the same population is never 0, and it is larger for fewer rows. So each limit is
the larger of two: the one in the settings, and the distance that about one window in a thousand reaches by chance:

- Jensen-Shannon distance of k categories: n m / (n + m) times eight times its square is about χ² with k - 1 degrees
  of freedom (Lin, 1991; the second-order term of the divergence);
- normed Wasserstein distance: measured at 3 √(1/n + 1/m) on normal, skewed and discrete columns;
- shares: four standard errors of their difference.
"""

import base64
import hashlib
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import BaseModel

from ondol.config import Monitor
from ondol.contract import Column
from ondol.contract.checking import clean_column
from ondol.contract.encoding import DAY, EPOCH, SECOND
from ondol.evaluation.targets import Reference
from ondol.monitoring.log import Logged
from ondol_serving.names import printable

if TYPE_CHECKING:
    import pandas as pd

# The other values of the reference share one category, so that names and free text can be compared.
MOST_CATEGORIES = 30
OTHERS = "(others)"
LEAST_SPREAD = 0.01  # below it, Evidently's norm (at least 0.001) would differ from the column's standard deviation

As = Literal["number", "category"]


@dataclass(frozen=True)
class Sides:
    """Both sides of the comparison, the same columns in both.

    Attributes:
        reference: The columns of the reference: float64, or categories as text; missing values are NaN or None.
        window: The columns of the window.
        kinds: How each column is compared: as numbers or as categories.
        dates: The columns that are dates, compared as days since 1970.
        unseen: For each text column, the shares of values not seen in training, on both sides.
    """

    reference: pd.DataFrame
    window: pd.DataFrame
    kinds: dict[str, As]
    dates: frozenset[str]
    unseen: dict[str, tuple[float, float]]


def window_frame(reference: Reference, logged: Sequence[Logged]) -> pd.DataFrame:
    """Return logged rows with the reference's features and predictions as columns."""
    columns = {c.name: _parse([row.features.get(c.name) for row in logged], c) for c in reference.features}
    answers = [row.prediction for row in logged]
    classes = reference.contract.classes
    columns[reference.prediction] = pd.Series([a.get("value" if classes is None else "label") for a in answers])
    if reference.probability:  # the service names the classes in the contract's order
        columns[reference.probability] = pd.Series([list(a["probabilities"].values())[1] for a in answers])
    return pd.DataFrame(columns)


def pair_sides(reference: Reference, window: pd.DataFrame) -> Sides:
    """Return both sides with the features and the model's output, converted for the comparison."""
    sides: dict[str, tuple[pd.Series[Any], pd.Series[Any]]] = {}
    kinds: dict[str, As] = {}
    unseen: dict[str, tuple[float, float]] = {}
    for column in reference.features:
        ours, theirs = reference.frame[column.name], window[column.name]
        kinds[column.name] = _kind(column, ours)
        sides[column.name] = _shape(kinds[column.name], ours, theirs)
        if column.encoding is not None and column.encoding.known is not None:
            unseen[column.name] = (_unseen(ours, column.encoding.known), _unseen(theirs, column.encoding.known))
    output = reference.output
    is_label = reference.contract.classes is not None and not reference.probability
    kinds[output] = "category" if is_label else "number"
    sides[output] = _shape(kinds[output], reference.frame[output], window[output])
    before, now = (pd.DataFrame({name: both[side] for name, both in sides.items()}) for side in (0, 1))
    dates = frozenset(c.name for c in reference.features if c.kind == "date" and kinds[c.name] == "number")
    return Sides(before, now, kinds, dates, unseen)


def _parse(values: list[Any], column: Column) -> "pd.Series[Any]":
    """Return one column of the log in its kind; unreadable values, as from an older contract, are missing."""
    try:
        raw = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # numbers and texts mixed
        raw = pa.array([None if v is None else str(v) for v in values])
    return clean_column(pa.chunked_array([raw]), column)[0]


def _kind(column: Column, reference: "pd.Series[Any]") -> As:
    """Return how a column is compared: numbers with at most two values are flags, and flags are categories."""
    if column.kind in ("text", "boolean") or reference.nunique() <= 2:
        return "category"
    return "number"


def _shape(kind: As, reference: "pd.Series[Any]", window: "pd.Series[Any]") -> "tuple[pd.Series[Any], pd.Series[Any]]":
    if kind == "category":
        ours, theirs = (_texts(side) for side in (reference, window))
        known = set(ours.value_counts().index[:MOST_CATEGORIES])
        return tuple(side.where(side.isin(known) | side.isna(), OTHERS) for side in (ours, theirs))  # type: ignore[return-value]
    ours, theirs = (_numbers(side) for side in (reference, window))
    low, high = np.nanmin(ours), np.nanmax(ours)
    # One extreme value must not make a column drift: values farther out than one more range are clipped.
    clipped = [side.clip(2 * low - high, 2 * high - low) for side in (ours, theirs)]
    spread = float(np.nanstd(ours))
    unit = 10.0 ** np.floor(np.log10(spread)) if 0 < spread < LEAST_SPREAD else 1.0
    return clipped[0] / unit, clipped[1] / unit


def _texts(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return values as texts; 1, 1.0 and True are equal, since JSON and missing values convert one into the other."""
    plain = values.astype("float64") if values.dtype.kind in "biuf" or str(values.dtype) == "boolean" else values
    return plain.map(lambda value: None if pd.isna(value) else plain_text(value)).astype(object)


def plain_text(value: Any) -> str:
    """Return a value as text, whole numbers without a fraction."""
    return str(int(value)) if isinstance(value, bool | int | float) and float(value).is_integer() else str(value)


def _numbers(values: "pd.Series[Any]") -> "pd.Series[Any]":
    if values.dtype.kind == "M":
        return ((values - EPOCH) / DAY).astype("float64")
    if values.dtype.kind == "m":
        return (values / SECOND).astype("float64")
    return pd.Series(values.to_numpy(dtype=np.float64, na_value=np.nan))


def _unseen(values: "pd.Series[Any]", known: Sequence[str]) -> float:
    present = values.dropna()
    return float((~present.isin(known)).mean()) if len(present) else 0.0


NOISE = 3.0
STANDARD_ERRORS = 4.0
CHANCE = 0.001


def number_limit(distance: float, ours: int, theirs: int) -> float:
    """Return the limit of the normed Wasserstein distance of samples of two sizes."""
    return max(distance, NOISE * math.sqrt(1 / ours + 1 / theirs))


def category_limit(distance: float, categories: int, ours: int, theirs: int) -> float:
    """Return the limit of the Jensen-Shannon distance (natural logarithm) of samples of two sizes."""
    from scipy.stats import chi2

    noise = float(chi2.isf(CHANCE, max(categories - 1, 1))) / 8
    return max(distance, math.sqrt(noise * (1 / ours + 1 / theirs)))


def share_limit(change: float, before: float, after: float, ours: int, theirs: int) -> float:
    """Return the limit of the change of a share between samples of two sizes."""
    both = (before * ours + after * theirs) / (ours + theirs)
    return max(change, STANDARD_ERRORS * math.sqrt(both * (1 - both) * (1 / ours + 1 / theirs)))


METHODS = {"number": "wasserstein", "category": "jensenshannon"}
LEAST_VALUES = 20  # on each side; fewer do not describe a distribution
MOST_LETTERS = 60  # the longest label of a name or value in the report
SCRIPT = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL)
DATA_END = "</script>\n    </head>"
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)


class ColumnDrift(BaseModel):
    """How one column of a window differs from the reference.

    Attributes:
        method: Evidently's name of the distance.
        score: The distance; None if a side has too few values.
        limit: The limit of the distance.
        missing: The share of missing values in the window, `missing_before` in the reference.
        unseen: The share of values not seen in training; None if it is not computed.
        why: The changes in words; empty if there are none.
    """

    name: str
    method: str
    score: float | None
    limit: float | None
    missing: float
    missing_before: float
    unseen: float | None = None
    unseen_before: float | None = None
    why: tuple[str, ...] = ()

    @property
    def drifted(self) -> bool:
        """Whether anything has changed by more than its limit."""
        return bool(self.why)


@dataclass(frozen=True)
class DriftComparison:
    """The result of Evidently's comparison.

    Attributes:
        features: The features.
        prediction: The model's output.
        report: Evidently's report; None if there was no column to compare.
    """

    features: tuple[ColumnDrift, ...]
    prediction: ColumnDrift
    report: Any

    @property
    def share(self) -> float:
        """The share of features that drifted."""
        return sum(c.drifted for c in self.features) / len(self.features) if self.features else 0.0

    @cached_property
    def html(self) -> str:
        """The report as one HTML page, empty if there is none; building it takes a second."""
        return "" if self.report is None else confine(str(self.report.get_html_str(as_iframe=False)))


def compare_sides(sides: "Sides", output: str, rules: Monitor) -> DriftComparison:
    """Compare both sides column by column.

    Args:
        sides: Reference and window; see `ondol.monitoring.drift`.
        output: The column of the model's output; the others are features.
        rules: The limits.
    """
    limits = {name: _limit(sides, name, rules) for name in sides.kinds}
    comparable = {name: limit for name, limit in limits.items() if limit is not None}
    scores, report = _ask_evidently(sides, comparable, output, rules.drift_share)
    found = [_describe(sides, name, scores.get(name), limits[name], rules) for name in sides.kinds]
    features = tuple(column for column in found if column.name != output)
    return DriftComparison(features, next(c for c in found if c.name == output), report)


def confine(html: str) -> str:
    """Restrict a page by a Content Security Policy: it runs only its own scripts, and loads and sends nothing.

    Evidently writes its data as JSON into the first script, which `</script>` in a text would end. JSON has no line
    breaks, so the real end is the one followed by a line break. Names and values are labels without markup
    (`label_all`); the policy also protects against other text that Evidently may show.
    """
    start, end = html.find("<script>"), html.find(DATA_END)
    if 0 <= start < end:
        start += len("<script>")
        html = html[:start] + html[start:end].replace("<", "\\u003c") + html[end:]
    digests = [hashlib.sha256(script.encode()).digest() for script in SCRIPT.findall(html)]
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY.format(scripts=scripts)}">'
    return html.replace("<head>", f"<head>{policy}", 1)


def label_all(texts: Iterable[str]) -> dict[str, str]:
    """Return labels for texts in the report: short, unique and without markup.

    Evidently writes names and values unchanged into a `<script>`, and Plotly reads markup in the titles of charts.
    """
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for text in texts:
        shown = printable(text, one_line=True).translate({ord("<"): "‹", ord(">"): "›"}).strip() or "(empty)"
        shown = shown if len(shown) <= MOST_LETTERS else f"{shown[: MOST_LETTERS - 1]}…"
        number, label = 1, shown
        while label in taken:
            number += 1
            label = f"{shown} ({number})"
        taken.add(label)
        labels[text] = label
    return labels


def _limit(sides: "Sides", name: str, rules: Monitor) -> float | None:
    """Return a column's limit; None if a side has too few values to compare (without any, Evidently raises)."""
    ours, theirs = sides.reference[name].dropna(), sides.window[name].dropna()
    if min(len(ours), len(theirs)) < LEAST_VALUES:
        return None
    if sides.kinds[name] == "number":
        return number_limit(rules.distance, len(ours), len(theirs))
    return category_limit(rules.distance, len(set(ours) | set(theirs)), len(ours), len(theirs))


def _ask_evidently(
    sides: "Sides", limits: dict[str, float], output: str, drift_share: float
) -> tuple[dict[str, float], Any]:
    """Return each column's distance, and the report; None if no column can be compared."""
    if not limits:
        return {}, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Evidently's dependencies emit deprecation warnings
        return _run_evidently(sides, limits, output, drift_share)


def _run_evidently(
    sides: "Sides", limits: dict[str, float], output: str, drift_share: float
) -> tuple[dict[str, float], Any]:
    from evidently import Report
    from evidently.metrics import ValueDrift
    from evidently.presets import DataDriftPreset

    labels = label_all(limits)
    methods = {labels[name]: METHODS[sides.kinds[name]] for name in limits}
    thresholds = {labels[name]: limit for name, limit in limits.items()}
    metrics: list[Any] = []
    if output in limits:
        name = labels[output]
        metrics.append(ValueDrift(column=name, method=methods[name], threshold=thresholds[name]))
    features = [label for name, label in labels.items() if name != output]
    if features:
        asked: dict[str, Any] = {"per_column_method": methods, "per_column_threshold": thresholds}
        metrics.append(DataDriftPreset(columns=features, drift_share=drift_share, **asked))
    reference, window = _labelled(sides, labels)
    run = Report(metrics, include_tests=True).run(
        *(_dataset(frame, {labels[name]: sides.kinds[name] for name in labels}) for frame in (window, reference))
    )
    found = run.dict()["metrics"]
    scores = {m["config"]["column"]: float(m["value"]) for m in found if m["config"]["type"].endswith(":ValueDrift")}
    return {name: scores[label] for name, label in labels.items() if label in scores}, run


def _labelled(sides: "Sides", labels: dict[str, str]) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Return reference and window with labels for the names of columns and for the values of categories."""
    both = [frame[list(labels)].rename(columns=labels) for frame in (sides.reference, sides.window)]
    for name, label in labels.items():
        if sides.kinds[name] == "category":
            values = {value for frame in both for value in frame[label].dropna()}
            shown = label_all(sorted(values))
            for frame in both:
                frame[label] = frame[label].map(lambda value, shown=shown: shown.get(value, value)).astype(object)
    return both[0], both[1]


def _dataset(frame: "pd.DataFrame", kinds: "dict[str, As]") -> Any:
    from evidently import DataDefinition, Dataset

    numbers = [name for name, kind in kinds.items() if kind == "number"]
    categories = [name for name, kind in kinds.items() if kind == "category"]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=categories)
    return Dataset.from_pandas(frame, data_definition=definition)


def _describe(sides: "Sides", name: str, score: float | None, limit: float | None, rules: Monitor) -> ColumnDrift:
    ours, theirs = sides.reference[name], sides.window[name]
    sizes = len(ours), len(theirs)
    missing = float(ours.isna().mean()), float(theirs.isna().mean())
    why = []
    if score is not None and limit is not None and score >= limit:
        why.append(f"its distribution moved: {score:.3f}, limit {limit:.3f}")
    if abs(missing[1] - missing[0]) > share_limit(rules.missing, *missing, *sizes):
        why.append(f"missing in {missing[1]:.1%}, was {missing[0]:.1%}")
    unseen = sides.unseen.get(name)
    if unseen and unseen[1] - unseen[0] > share_limit(rules.unseen, *unseen, *sizes):
        why.append(f"values that training never saw in {unseen[1]:.1%}, was {unseen[0]:.1%}")
    return ColumnDrift(
        name=name,
        method=METHODS[sides.kinds[name]],
        score=score,
        limit=limit,
        missing=missing[1],
        missing_before=missing[0],
        unseen=unseen[1] if unseen else None,
        unseen_before=unseen[0] if unseen else None,
        why=tuple(why),
    )
