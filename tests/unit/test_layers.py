"""The engine's packages import lower packages only, and each library is imported in one package.

`project` is where all comes together: a `Project` opens what belongs to a project where it is first used. So that every
step can take one, the module is low, and what it imports in its functions, or for types only, may lie higher.
"""

import pytest
from imports_support import ENGINE, imports

# From the lowest to the highest: a package imports those before it. A name may be a single module.
ORDER = [
    "exports",
    "redaction",
    "errors",
    "config",
    "storage",
    "project",
    "orchestration",
    "contract",
    "snapshots",
    "ingestion",
    "validation",
    "registry",
    "training",
    "evaluation",
    "selection",
    "tuning",
    "deployment",
    "monitoring",
    "rollout",
    "retention",
    "services",
    "setup",
    "demo",
    "cli",
]
MODULES = {
    ".".join(path.relative_to(ENGINE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ENGINE.rglob("*.py")
    if path != ENGINE / "__init__.py"
}
ROOMS = {
    "prefect": {"orchestration"},
    "mlflow": {"registry"},
    "evidently": {"monitoring"},
    "skl2onnx": {"deployment"},
    "pandera": {"contract"},
    "bentoml": {"deployment"},  # and in the service
}
LAZY = "project"  # see above


def package_of(module: str) -> str:
    return module.partition(".")[0]


def module_of(name: str) -> str | None:
    """Return the module of the engine that an imported name is, or is defined in; None for another package's."""
    package, _, rest = name.partition(".")
    if package != "ondol":
        return None
    return rest if rest in MODULES else rest.rpartition(".")[0]


def test_every_package_has_its_place_in_the_order():
    assert {package_of(module) for module in MODULES} == set(ORDER)


def test_packages_import_lower_packages_only():
    found = {
        (module, imported)
        for module, path in MODULES.items()
        for imported in filter(None, map(module_of, imports(path, lazy=module != LAZY)))
        if ORDER.index(package_of(imported)) > ORDER.index(package_of(module))
    }
    assert not found


@pytest.mark.parametrize("library", ROOMS)
def test_a_library_is_imported_in_one_package(library):
    found = {
        module
        for module, path in MODULES.items()
        if package_of(module) not in ROOMS[library]
        if any(name.partition(".")[0] == library for name in imports(path))
    }
    assert not found
