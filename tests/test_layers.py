"""Packages import lower packages only, and each library is imported in one package.

The modules of `flows` are being arranged into packages; `layers.toml` says which module belongs to which.

`project` is where all comes together: a `Project` opens what belongs to a project where it is first used. So that every
step can take one, the module is low, and what it imports in its functions, or for types only, may lie higher.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FLOWS = TESTS.parent / "flows"
LAYERS = tomllib.loads((TESTS / "layers.toml").read_text(encoding="utf-8"))
ORDER = list(LAYERS)
PACKAGE = {old: package for package, modules in LAYERS.items() for names in modules.values() for old in names}
MODULES = {
    ".".join(path.relative_to(FLOWS).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FLOWS.rglob("*.py")
}
EMPTY = {"__init__", "steps", "store"}  # their files hold no code
ROOMS = {
    "prefect": {"orchestration", "flows"},
    "mlflow": {"registry"},
    "evidently": {"monitoring"},
    "skl2onnx": {"deployment"},
    "pandera": {"contract"},
    "bentoml": {"serving"},  # and in the service, which is not part of `flows`
}
LAZY = "project"  # see above


def imports(path: Path, lazy: bool = True) -> Iterator[str]:
    """Yield the dotted name of everything that a module imports, at its top or, if `lazy`, in a block or a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str | None:
    """Return the module of `flows` that an imported name is, or is defined in; None for another package's."""
    package, _, rest = name.partition(".")
    if package != "flows":
        return None
    return rest if rest in MODULES else rest.rpartition(".")[0]


def test_every_module_belongs_to_one_package():
    named = [old for modules in LAYERS.values() for names in modules.values() for old in names]
    assert len(named) == len(set(named))
    assert set(named) == MODULES.keys() - EMPTY


def test_packages_import_lower_packages_only():
    found = {
        (module, imported)
        for module, path in MODULES.items()
        for imported in filter(None, map(module_of, imports(path, lazy=module != LAZY)))
        if module not in EMPTY and ORDER.index(PACKAGE[imported]) > ORDER.index(PACKAGE[module])
    }
    assert not found


@pytest.mark.parametrize("library", ROOMS)
def test_a_library_is_imported_in_one_package(library):
    found = {
        module
        for module, path in MODULES.items()
        if module not in EMPTY and PACKAGE[module] not in ROOMS[library]
        if any(name.partition(".")[0] == library for name in imports(path))
    }
    assert not found
