"""Blocks of the docs that are files of a project, or edits of them."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Block:
    """A block of a page: a whole file, or hunks of lines to add, remove and leave."""

    kind: str
    path: str
    text: str

    def added(self) -> list[str]:
        lines = self.text.splitlines()
        if self.kind == "diff":
            lines = [line[1:] for line in lines if line.startswith("+")]
        return [line for line in lines if line.strip()]

    def apply(self, project: Path) -> None:
        path = project / self.path
        path.parent.mkdir(exist_ok=True)
        if self.kind == "python":
            path.write_text(self.text, encoding="utf-8")
            return
        content = path.read_text(encoding="utf-8")
        for hunk in re.split(r"^@@\n", self.text, flags=re.MULTILINE):
            lines = hunk.splitlines(keepends=True)
            assert all(line[0] in " +-\n" for line in lines), hunk
            old = "".join(line[1:] or "\n" for line in lines if line[0] != "+")
            new = "".join(line[1:] or "\n" for line in lines if line[0] != "-")
            if old:
                assert content.count(old) == 1, f"{self.path} has {content.count(old)} times:\n{old}"
            content = content.replace(old, new) if old else f"{content}\n{new}"
        path.write_text(content, encoding="utf-8")
