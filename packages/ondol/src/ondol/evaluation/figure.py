"""What all plots share: fonts with the letters that are needed, colours, labels and axes.

A machine without a Korean font still shows "서울": as "seoul". Nothing is ever drawn as an empty box.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAIN = "DejaVu Sans"  # comes with matplotlib
KOREAN = (
    "Noto Sans KR",
    "Noto Sans CJK KR",
    "Noto Sans CJK JP",
    "Source Han Sans KR",
    "Pretendard",
    "NanumGothic",
    "NanumBarunGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "AppleGothic",
    "UnDotum",
    "Baekmuk Gulim",
)
FIRST_SYLLABLE, LAST_SYLLABLE = 0xAC00, 0xD7A3
# Revised Romanization of Korean (2000), letter by letter, without the sound changes between syllables.
LETTERS = (
    "g kk n d tt r m b pp s ss - j jj ch k t p h",
    "a ae ya yae eo e yeo ye o wa wae oe yo u wo we wi yu eu ui i",
    "- k k k n n n t l k m l l l p l m p p t t ng t t k t p t",
)
INITIALS, MEDIALS, FINALS = (row.replace("-", "").split(" ") for row in LETTERS)


@cache
def find_fonts() -> tuple[str, ...]:
    """Return the font families to draw with: a Korean one before the plain one, where the machine has it."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return (*[name for name in KOREAN if name in installed][:1], PLAIN)


def letter(name: object, longest: int = 20) -> str:
    """Return `name` as it can be drawn: known letters, no markup, at most `longest` letters."""
    text = "".join(c if _drawable(c) else romanize(c) for c in str(name))
    text = "".join(c if _drawable(c) else "?" for c in text if c.isprintable())
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")  # matplotlib reads text between dollars as mathematics


def letter_all(names: Iterable[object]) -> Sequence[str]:
    """Return names as they can be drawn, each different: those that would look alike get a number."""
    drawn = [letter(name) for name in names]
    return [f"{i}: {text}" if drawn.count(text) > 1 or not text else text for i, text in enumerate(drawn)]


def romanize(text: str) -> str:
    """Return `text` with each Hangul syllable in Latin letters; other characters stay."""
    return "".join(_romanize(c) for c in text)


def _romanize(character: str) -> str:
    if not FIRST_SYLLABLE <= ord(character) <= LAST_SYLLABLE:
        return character
    place = ord(character) - FIRST_SYLLABLE
    return INITIALS[place // 588] + MEDIALS[place % 588 // 28] + FINALS[place % 28]


@cache
def _drawable(character: str) -> bool:
    from matplotlib import font_manager

    paths = [font_manager.findfont(name) for name in find_fonts()]
    return any(font_manager.get_font(path).get_char_index(ord(character)) for path in paths)


Array = NDArray[Any]
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#888888"
LINES: Mapping[str, dict[str, Any]] = {
    "candidate": {"color": BLUE, "linewidth": 1.8},
    "champion": {"color": ORANGE, "linewidth": 1.5, "linestyle": (0, (5, 2))},
}


@dataclass(frozen=True)
class Scene:
    """What every picture of one evaluation shows.

    Attributes:
        y: The true targets, [N]: indices of classes, or values.
        candidate: The candidate's probabilities [N, K] or values [N].
        champion: The champion's; None where there is none.
        classes: The classes as they are drawn.
        target: The target's name as it is drawn.
        note: How many rows are shown.
    """

    y: Array
    candidate: Array
    champion: Array | None
    classes: Sequence[str]
    target: str
    note: str

    @property
    def models(self) -> dict[str, Array]:
        """The predictions by the model's role."""
        both = {"candidate": self.candidate, "champion": self.champion}
        return {name: prediction for name, prediction in both.items() if prediction is not None}


Chart = Callable[["Figure", Scene], None]


def start(figure: "Figure", title: str, note: str) -> "Axes":
    """Return the one pair of axes of a picture, with its title and, small, how many rows it shows."""
    axes = figure.subplots()
    axes.set_title(title, loc="left")
    figure.text(0.995, 0.005, note, ha="right", va="bottom", fontsize=7, color="#666666")
    return axes


def thin(values: Array, most: int = 2_000) -> Array:
    """Return at most `most` positions into `values`, evenly spaced, first and last among them."""
    return np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).astype(np.int64))


def bin_means(by: Array, columns: Sequence[Array], bins: int) -> list[Array]:
    """Return the means of `columns` in `bins` groups of equally many rows, in the order of `by`.

    Rows with an equal `by` are never parted, so there may be fewer groups.
    """
    edges = np.unique(np.quantile(by, np.linspace(0, 1, bins + 1)[1:-1]))
    group = np.searchsorted(edges, by, side="right")
    sizes = np.bincount(group, minlength=len(edges) + 1)
    sums = [np.bincount(group, np.asarray(c, np.float64), minlength=len(sizes)) for c in columns]
    return [total[sizes > 0] / sizes[sizes > 0] for total in sums]


def mark_thousands(axes: "Axes") -> None:
    """Write large numbers on both axes as 1,200,000."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: show_number(value))
        axis.set_tick_params(labelsize=8)
    axes.locator_params(nbins=6)


def show_number(value: float) -> str:
    """Return a number as a person would write it."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
