"""Public names of a package, imported on first use.

The `__init__` of a package lists its public names as imports for type checkers only. `export` turns them into
attributes of the package, so that `from ondol.training import fit` imports only what `fit` needs, not what all modules
of the package need: scikit-learn, Evidently and matplotlib take seconds.
"""

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def export(package: str) -> Callable[[str], Any]:
    """Return a `__getattr__` for a package (PEP 562), which imports a public name from its module.

    `dir` lists the public names too, for completion in notebooks.
    """
    module = sys.modules[package]
    vars(module)["__dir__"] = lambda: sorted({*vars(module), *_modules_of(package)})

    def import_name(name: str) -> Any:
        defining = _modules_of(package).get(name)
        if defining is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(defining), name)
        setattr(module, name, value)  # so that `__getattr__` is not called again
        return value

    return import_name


@cache
def _modules_of(package: str) -> dict[str, str]:
    """Return the module that defines each public name, from the imports in the package's `__init__`."""
    tree = ast.parse(Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    own = [node for node in imports if str(node.module).startswith(f"{package}.")]
    return {alias.name: str(node.module) for node in own for alias in node.names}
