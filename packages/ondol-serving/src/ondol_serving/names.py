"""How a bundle and its probabilities are named, alike by the engine, which writes them, and by the service.

It imports the standard library alone.
"""

import hashlib
import json
from pathlib import Path
from typing import Any


def label_key(label: Any) -> str:
    """Return a label as the key of JSON under which an answer has its probability."""
    return label if isinstance(label, str) else json.dumps(label)


def digest_folder(folder: Path) -> str:
    """Return the SHA-256 of a flat folder: what `LC_ALL=C sha256sum * | sha256sum` prints inside it."""
    files = sorted((p for p in folder.iterdir() if p.is_file()), key=lambda p: p.name.encode())
    lines = "".join(f"{_digest_file(p)}  {p.name}\n" for p in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
