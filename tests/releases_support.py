"""The releases of this repository's history, as `.ci/releases.py` reads them."""

import importlib.util
from typing import Any

from template_support import REPOSITORY


def load_releases() -> Any:
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("releases", REPOSITORY / ".ci" / "releases.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
