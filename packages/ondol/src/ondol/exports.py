"""The public names of a package, imported when they are first used.

The `__init__` of a package lists its public names as imports that only a type checker makes. `export` makes attributes
of the package of them, so that `from ondol.training import fit` imports what `fit` needs, and not what every other
module of the package needs: scikit-learn, Evidently and matplotlib take seconds.
"""

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def export(package: str) -> Callable[[str], Any]:
    """Return the function `__getattr__` of a package (PEP 562), which imports a public name from its module.

    `dir` lists the public names too, as a notebook's completion needs them.
    """
    module = sys.modules[package]
    vars(module)["__dir__"] = lambda: sorted({*vars(module), *_modules_of(package)})

    def import_name(name: str) -> Any:
        defining = _modules_of(package).get(name)
        if defining is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(defining), name)
        setattr(module, name, value)  # so that it is not asked for again
        return value

    return import_name


@cache
def _modules_of(package: str) -> dict[str, str]:
    """Return by public name the module that defines it, as the imports in the package's `__init__` say."""
    tree = ast.parse(Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    own = [node for node in imports if str(node.module).startswith(f"{package}.")]
    return {alias.name: str(node.module) for node in own for alias in node.names}
