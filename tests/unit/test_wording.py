"""Plain technical English: phrases that the code, the messages and the docs of this project do not use."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROOTS = (
    "packages",
    "flows",
    "template",
    "docs",
    "tests",
    "benchmarks",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "copier.yml",
)
SUFFIXES = {".jinja", ".json", ".md", ".py", ".toml", ".yaml", ".yml"}
INSTEAD = {  # by phrase: what to write
    r"tells? whether|telling whether": "Return True if …, check whether",
    r"(hold|held|holding)s? (\w+ ){0,4}against": "validate with, compare with, verify",
    r"(un)?mend(s|ed|ing)?": "correct",
    r"anew": "again",
    r"(is|are|was|were) told": "gets, is given",
    r"nobody waits": "no request waits",
    r"patient(ly)?": "with retries",
    r"(?<=\w )(?<!there )(is|are|was|were) no (?!(longer|more|less|later|earlier|greater|larger)\b)\w+": "is not a …",
    r"None where": "None if",
    r"nobody|no one": "no user, no caller, another project, …",
    r"whatever": "any, also if, for any",
    r"stands(?! for)": "is",
    r"shall": "must, should",
    r"(go|goes|going|went) on": "continue, be in progress",
    r"lest|thereby|hence|thus|upon|whereby|nevertheless|in vain": "so, still, anyway, without effect",
}
RECORDED = re.compile(r'"mended"|mended/|flows/mending\S*')  # names in existing stores and released versions
MOST_WORDS = 35  # of a sentence
SHORT = (  # pages whose sentences are that short
    "docs/index.md",
    "docs/tutorial/*.md",
    "docs/how-to/*.md",
    "docs/explanation/*.md",
    "docs/reference/*.md",
    "docs/benchmarks.md",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "packages/*/README.md",
    "template/README.md.jinja",
)
FORBIDDEN = {phrase: re.compile(rf"\b({phrase})\b", re.IGNORECASE) for phrase in INSTEAD}


def written() -> list[Path]:
    files = [REPOSITORY / root for root in ROOTS]
    files += [path for root in files if root.is_dir() for path in root.rglob("*")]
    texts = [path for path in files if path.is_file() and (path.suffix in SUFFIXES or path.name == "Dockerfile")]
    return sorted(
        {path for path in texts if not {".venv", "__pycache__", "vendor", Path(__file__).name} & set(path.parts)}
    )


@pytest.mark.parametrize("phrase", FORBIDDEN)
def test_a_forbidden_phrase_is_in_no_text(phrase):
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in written()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if FORBIDDEN[phrase].search(RECORDED.sub("", line))
    ]
    assert not found, f"write {INSTEAD[phrase]} in: " + "\n".join(found)


def test_forbidden_phrases_are_found_in_any_form():
    texts = (
        "Tell whether",
        "held the file against",
        "unmended",
        "ANEW",
        "are told",
        "nobody waits",
        "patiently",
        "which is no table",
        "None where it is missing",
        "No one asks",
        "whatever it is",
        "as it stands in the file",
        "others shall use",
        "The run goes on",
        "Hence",
    )
    assert [bool(pattern.search(text)) for pattern, text in zip(FORBIDDEN.values(), texts, strict=True)] == [True] * 15
    plain = "recommended amends, told, a new one; there is no table; it is no longer valid; it stands for a row"
    assert not any(pattern.search(plain) for pattern in FORBIDDEN.values())


def sentences(text: str) -> list[str]:
    """Return the sentences of a page outside of code, tables and headings; an item of a list begins one."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(\||#|!).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*([-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    parts = (part for paragraph in re.split(r"\n\s*\n", text) for part in re.split(r"(?<=[.?!])\s+", paragraph))
    return [" ".join(part.split()) for part in parts if part.strip()]


@pytest.mark.parametrize("pages", SHORT)
def test_sentences_are_short(pages):
    found = sorted(REPOSITORY.glob(pages))
    assert found
    long = [
        f"{path.name}: {sentence}"
        for path in found
        for sentence in sentences(path.read_text(encoding="utf-8"))
        if len(sentence.split()) > MOST_WORDS
    ]
    assert not long, f"more than {MOST_WORDS} words in: " + "\n".join(long)


def test_sentences_are_found_in_text_alone():
    page = "# A title\n\nOne\nword. Two?\n\n- [three](a.md)\n- four\n\n| a | b |\n\n```bash\nfive\n```\n"
    assert sentences(page) == ["One word.", "Two?", "[three]", "four"]
