"""Modules of the project's own that cannot be imported, and flows that are none."""

import sys
from types import ModuleType

import pytest

from ondol.cli.pipeline import load_flow
from ondol.errors import UserError
from ondol.project import import_code, read_extension

BROKEN = {
    "half": ("def (", r"^half.py cannot be imported: SyntaxError: .*half.py, line 1"),
    "raising": ("1 / 0", r"^raising.py cannot be imported: ZeroDivisionError: division by zero\.$"),
    "merged": ("\n<<<<<<< before\na = 1\n=======\n", r"/merged.py is in a merge conflict \(<<<<<<< in line 2\)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_code_of_the_project_that_cannot_be_imported_is_one_sentence(name, tmp_path, monkeypatch):
    text, message = BROKEN[name]
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=message):
        import_code(name)


def test_a_package_of_the_project_that_cannot_be_imported_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("1 / 0\n", encoding="utf-8")
    (tmp_path / "config.toml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "model", None)
    monkeypatch.delitem(sys.modules, "model")
    with pytest.raises(
        UserError, match=r"^model/source\.py cannot be imported: Zero.* \(model/__init__\.py, line 1\)\.$"
    ):
        read_extension("source", "prepare")


@pytest.mark.parametrize("names", [{}, {"ingest": print}], ids=["renamed", "without @stage"])
def test_a_module_of_a_flow_without_the_flow(names, monkeypatch):
    module = ModuleType("flows.ingest")
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, "flows.ingest", module)
    with pytest.raises(UserError, match=r"^flows/ingest\.py has no flow ingest: .*@stage"):
        load_flow("ingest")
