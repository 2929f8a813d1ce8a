"""Names of bundles and of probabilities, shared by the engine and the service.

It imports only the standard library.
"""

import hashlib
import json
from pathlib import Path
from typing import Any


def label_key(label: Any) -> str:
    """Return the JSON key of a label's probability in an answer."""
    return label if isinstance(label, str) else json.dumps(label)


def digest_folder(folder: Path) -> str:
    """Return the SHA-256 of a flat folder, equal to `LC_ALL=C sha256sum * | sha256sum` in that folder."""
    files = sorted((p for p in folder.iterdir() if p.is_file()), key=lambda p: p.name.encode())
    lines = "".join(f"{_digest_file(p)}  {p.name}\n" for p in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
