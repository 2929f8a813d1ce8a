"""The engine's packages give their public names, and importing one imports no other package's libraries."""

import ast
import os
import subprocess
import sys
from importlib import import_module

import pytest
from imports_support import ENGINE
from template_support import REPOSITORY, python_path

PACKAGES = {
    f"ondol.{'.'.join(path.relative_to(ENGINE).parent.parts)}": path for path in sorted(ENGINE.rglob("*/__init__.py"))
}
HEAVY = {"pandas", "numpy", "pyarrow", "sklearn", "prefect", "mlflow", "evidently", "pandera", "matplotlib"}


def public_names(package: str) -> list[str]:
    return getattr(import_module(package), "__all__", [])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_is_for(package):
    assert ast.get_docstring(ast.parse(PACKAGES[package].read_text(encoding="utf-8")))


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist_and_are_not_modules(package):
    names = public_names(package)
    assert names == sorted(names)
    assert set(names) <= set(dir(import_module(package)))
    for name in names:
        assert hasattr(import_module(package), name)
        assert not (PACKAGES[package].parent / f"{name}.py").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_of_a_package_is_public(package):
    tree = ast.parse(PACKAGES[package].read_text(encoding="utf-8"))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    own = {alias.name for node in imported if node.module.startswith(f"{package}.") for alias in node.names}
    assert own == set(public_names(package))


def test_another_name_is_an_attribute_error():
    with pytest.raises(ImportError, match="nothing_of_the_kind"):
        exec("from ondol.training import nothing_of_the_kind")


def test_packages_are_imported_without_libraries():
    code = f"import sys, {', '.join(PACKAGES)}; print(*({HEAVY!r} & set(sys.modules)))"
    env = os.environ | {"PYTHONPATH": python_path(REPOSITORY)}
    assert subprocess.check_output([sys.executable, "-c", code], env=env).split() == []
