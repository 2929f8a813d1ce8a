"""Follows the tutorial of docs/: each command, file and edit in order, with a check of the output."""

from pathlib import Path

import pytest
from conftest import Render
from docs_support import Command, Reader, missing_line, read_blocks, read_commands
from template_support import REPOSITORY

TUTORIAL = REPOSITORY / "docs" / "tutorial"
PAGES = ("first-model.md", "retraining.md")
SIMULATE = "uv run ml simulate"  # has its own tests


@pytest.mark.parametrize("name", PAGES)
def test_every_block_of_the_tutorial_can_be_followed(name):
    first = {"console": "$ ", "diff": "# ", "python": "# ", "bash": "uv", "output": ""}
    for kind, text in read_blocks(TUTORIAL / name):
        assert text.startswith(first[kind]), text


def test_lines_of_the_tutorial_are_compared_but_for_figures():
    printed = "✓ train    fitting     12.5 s\nroc_auc 0.85 is 0.05 worse\nend"
    assert missing_line(("✓ train fitting 9.1 s", "…", "roc_auc 0.8 is …", "end"), printed) is None
    assert missing_line(("end", "✓ train fitting 9.1 s"), printed) == "✓ train fitting 9.1 s"
    assert missing_line(("✓ train  waiting 9.1 s",), printed) == "✓ train  waiting 9.1 s"
    typed = read_commands("console", "$ a '{\n  b}' c\nd\n$ e\n")
    assert typed == [Command("a '{\n  b}' c", ["d"]), Command("e")]
    typed = read_commands("bash", "a \\\n  b  # c\n# d\ne 'f#g'\n")
    assert typed == [Command("a \\\n  b"), Command("e 'f#g'")]


@pytest.mark.slow
def test_tutorial(render: Render, tmp_path: Path) -> None:
    reader = Reader(tmp_path, tmp_path / "churn", render(project_name="Churn"), tmp_path)
    try:
        for name in PAGES:
            reader.follow(TUTORIAL / name, lambda words: None if words.startswith(SIMULATE) else words)
            reader.stop("http://127.0.0.1:3000/readyz")
    finally:
        reader.close()
