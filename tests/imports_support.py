"""The imports of the modules of the flows and of the engine, from their syntax trees."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from template_support import REPOSITORY

ENGINE = REPOSITORY / "packages" / "ondol" / "src" / "ondol"
ROOTS = {
    "flows": REPOSITORY,
    "ondol": REPOSITORY / "packages" / "ondol" / "src",
    "ondol_serving": REPOSITORY / "packages" / "ondol-serving" / "src",
}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def imports(path: Path, lazy: bool = True) -> Iterator[str]:
    """Yield the dotted name of everything that a module imports, at its top or, if `lazy`, in a block or a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if lazy else tree.body:
        yield from names_of(node)


def names_of(node: ast.AST) -> Iterator[str]:
    """Yield the dotted name of everything that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(node: ast.AST) -> Iterator[str]:
    """Yield the dotted name of everything that is imported below `node` when it runs, not for types only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield from names_of(child)
        yield from imports_of(child)


@cache
def parse(module: str) -> ast.Module | None:
    """Return the syntax tree of a module; None for one that is not of this repository, or for another name."""
    place = ROOTS.get(module.partition(".")[0], REPOSITORY / "nowhere") / module.replace(".", "/")
    path = next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)
    return ast.parse(path.read_text(encoding="utf-8")) if path else None


def module_defining(name: str) -> str | None:
    """Return the module that an imported name is, or is defined in; None for another package's.

    Where a package gives a name that one of its modules defines, it is that module.
    """
    package, _, last = name.rpartition(".")
    if parse(name):
        return name
    if not (tree := parse(package)):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and last in (alias.name for alias in node.names):
            return node.module
    return package
