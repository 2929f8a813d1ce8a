"""Names that a picture can show: a font that has the letters, or letters that the font has.

A machine without a Korean font still shows "서울": as "seoul". Nothing is ever drawn as an empty box.
"""

from collections.abc import Iterable, Sequence
from functools import cache

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
