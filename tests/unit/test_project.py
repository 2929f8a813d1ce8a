"""Modules of the project's own that cannot be imported, and flows that are none."""

import sys
from types import ModuleType

import pytest

from ondol.cli.pipeline import load_flow
from ondol.errors import UserError
from ondol.project import import_code

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


@pytest.mark.parametrize("names", [{}, {"ingest": print}], ids=["renamed", "without @stage"])
def test_a_module_of_a_flow_without_the_flow(names, monkeypatch):
    module = ModuleType("flows.ingest")
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, "flows.ingest", module)
    with pytest.raises(UserError, match=r"^flows/ingest\.py has no flow ingest: .*@stage"):
        load_flow("ingest")
