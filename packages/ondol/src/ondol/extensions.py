"""The modules of a project's `model/`, and what the optional ones add to the engine.

`model/evaluation.py` may have `METRICS` and `GATES`, `model/source.py` a function `prepare`.
"""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from ondol.errors import UserError
from ondol.storage.files import digest_file

EVALUATION, SOURCE = "evaluation", "source"
FILE = "model/{}.py".format


def read_extension(module: str, name: str) -> Any:
    """Return the value `name` of a module in `model/`; None where there is no module, or no such value in it.

    Raises:
        UserError: the module cannot be imported.
    """
    if importlib.util.find_spec("model") is None or importlib.util.find_spec(f"model.{module}") is None:
        return None
    return getattr(import_owned(module), name, None)


def import_owned(module: str) -> ModuleType:
    """Return a module of `model/`.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return importlib.import_module(f"model.{module}")
    except Exception as error:  # the project's code may raise anything
        raise UserError(f"{FILE(module)} cannot be imported: {explain(error)}.") from error


def digest_extension(root: Path, module: str) -> str | None:
    """Return the SHA-256 of the module's file; None where there is none."""
    path = root / FILE(module)
    return digest_file(path) if path.is_file() else None


def explain(error: Exception) -> str:
    """Return an error of the project's code on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(" .:")
