"""How many modules a reader opens to follow a flow, and no module is a fragment.

Counted are the flow's module and, transitively, those that a module imports, at its top or in a function. For a name
that a package gives, it is the module that defines it. What is imported for types only does not count.

`ondol.project` is where all comes together, see `test_layers`: of what it imports in its functions, a module counts
where the attribute or the function that needs it is named, as in `project.registry`.
"""

import ast

import pytest
from imports_support import ENGINE, FUNCTIONS, imports_of, module_defining, parse

PROJECT = "ondol.project"
FEWEST_LINES = 40
SHORT = {  # modules with fewer lines, and why
    "cli.__main__": "`python -m ondol.cli`",
    "errors": "imported by nearly every module: classes of errors, and nothing else",
}
MOST = {  # to be lowered, and raised for a new step alone: a flow that needs more has a step that belongs elsewhere
    "ingest": 31,
    "validate": 20,
    "train": 34,
    "evaluate": 37,
    "deploy": 46,
    "predict": 31,
    "monitor": 46,
    "pipeline": 72,
    "alerts": 18,
    "rollout": 44,
}


def lazy_imports() -> dict[str, set[str]]:
    """Return by the name of each function of `ondol.project` what it imports."""
    return {node.name: set(imports_of(node)) for node in ast.walk(parse(PROJECT)) if isinstance(node, FUNCTIONS)}


def imported_by(module: str) -> set[str]:
    """Return the dotted names of everything that a module imports, or takes from a project."""
    tree = parse(module)
    if module == PROJECT:
        tree = ast.Module([node for node in tree.body if not isinstance(node, ast.ClassDef | FUNCTIONS)], [])
        return set(imports_of(tree))
    lazy, found = lazy_imports(), set(imports_of(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("project", "self.project"):
            found |= lazy.get(node.attr, set())
    for function in found & {f"{PROJECT}.{name}" for name in lazy}:
        found |= lazy[function.rpartition(".")[2]]
    return found


def opened_for(flow: str) -> set[str]:
    opened, waiting = set(), {f"flows.{flow}"}
    while waiting:
        module = waiting.pop()
        opened.add(module)
        waiting |= set(filter(None, map(module_defining, imported_by(module)))) - opened
    return opened


@pytest.mark.parametrize("flow", MOST)
def test_a_flow_is_followed_through_few_modules(flow):
    opened = sorted(opened_for(flow))
    assert len(opened) <= MOST[flow], opened


def test_what_a_flow_takes_from_its_project_is_counted():
    assert "ondol.validation.results.Latest" in imported_by("flows.ingest")  # `project.latest`
    assert "ondol.evaluation.gates.Verdicts" not in imported_by("flows.ingest")
    assert {"ondol.project", "ondol.validation.results"} <= opened_for("ingest")


def test_a_short_module_has_a_reason():
    lines = {
        ".".join(path.relative_to(ENGINE).with_suffix("").parts): len(path.read_text(encoding="utf-8").splitlines())
        for path in ENGINE.rglob("*.py")
        if path.stem != "__init__"
    }
    assert {module for module, count in lines.items() if count < FEWEST_LINES} == SHORT.keys()
