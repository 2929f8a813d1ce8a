"""The rules of the design page that hold for all code: which packages may import which."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FLOWS = REPOSITORY / "flows"
ENGINE = REPOSITORY / "packages" / "ondol" / "src" / "ondol"
SERVING = REPOSITORY / "packages" / "ondol-serving" / "src" / "ondol_serving"
MODEL, SERVICE = (REPOSITORY / "template" / name for name in ("model", "service"))
OURS = sorted(path for folder in (FLOWS, ENGINE) for path in folder.rglob("*.py"))
CODE = sorted([*OURS, *(path for folder in (MODEL, SERVICE, SERVING) for path in folder.rglob("*.py"))])
EVERYTHING = sorted(
    {
        *CODE,
        *(p for name in ("tests", "benchmarks", "template/tests") for p in (REPOSITORY / name).rglob("*.py")),
    }
)
ESTIMATOR = (
    REPOSITORY / "packages" / "ondol" / "src" / "ondol" / "training" / "formulas.py"
)  # a class of scikit-learn's
MODEL_MAY = {"numpy", "pandas", "pandera", "sklearn", "model"}
SERVICE_MAY = {
    "bentoml",
    "numpy",
    "ondol_serving",
    "onnxruntime",
    "prometheus_client",
    "pydantic",
    "pydantic_core",
    "starlette",
    "uvicorn",
}
EXCEPTIONS = {
    "access.py": {"jwt", "redis"},
    "arrow.py": {"nanoarrow"},
    "grpc_messages.py": {"google"},
    "grpc_server.py": {"google", "grpc"},
    "sklearn_runtime.py": {"pandas", "skops", "sklearn"},
}  # extras
HEAVY = {"bentoml", "evidently", "matplotlib", "mlflow", "onnx", "onnxruntime", "skl2onnx", "sklearn"}


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the top-level names of all packages that are imported anywhere in `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and imports_by_name(node):
            yield str(ast.literal_eval(node.args[0])).partition(".")[0]


def service_modules(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names of all modules of `ondol_serving` that are imported anywhere in `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "ondol_serving")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ondol_serving":
            yield node.module or ""
        elif isinstance(node, ast.Call) and imports_by_name(node):
            name = str(ast.literal_eval(node.args[0]))
            if name.partition(".")[0] == "ondol_serving":
                yield name


def imports_by_name(call: ast.Call) -> bool:
    """Return True if `call` is `import_module("…")` or `__import__("…")`."""
    named = bool(call.args) and isinstance(call.args[0], ast.Constant)
    return named and ast.unparse(call.func).endswith(("import_module", "__import__"))


def third_party(tree: ast.AST) -> set[str]:
    return set(imported(tree)) - set(sys.stdlib_module_names)


def at_import(tree: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported, but for those that only type checkers see."""
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from at_import(node)


@pytest.mark.parametrize("path", sorted(MODEL.rglob("*.py")), ids=name_of)
def test_model_imports_only_what_describes_and_fits_data(path):
    assert third_party(parse(path)) <= MODEL_MAY


@pytest.mark.parametrize("path", sorted([*SERVICE.rglob("*.py"), *SERVING.rglob("*.py")]), ids=name_of)
def test_service_imports_neither_flows_nor_anything_slow(path):
    assert third_party(parse(path)) <= SERVICE_MAY | EXCEPTIONS.get(path.name, set())


def test_service_imports_its_exception_only_where_it_is_needed():
    for path in SERVING.rglob("*.py"):
        for node in at_import(parse(path)):
            assert "sklearn_runtime" not in ast.unparse(node), path


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_flows_import_of_the_service_only_modules_of_the_standard_library_and_numpy(path):
    """What both must read alike is written once, where it drags nothing along."""
    for module in service_modules(parse(path)):
        assert module.count(".") == 1, module
        assert third_party(parse(SERVING / f"{module.partition('.')[2]}.py")) <= {"numpy"}, module


def test_what_flows_share_with_the_service_is_on_one_list():
    assert {module for path in OURS for module in service_modules(parse(path))} == {
        "ondol_serving.callers",
        "ondol_serving.decision",
        "ondol_serving.grammar",
        "ondol_serving.keys",
        "ondol_serving.names",
        "ondol_serving.shapley",
    }


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_flows_import_heavy_packages_only_where_they_are_used(path):
    heavy = {
        package
        for node in at_import(parse(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for package in imported(node)
        if package in HEAVY
    }
    assert heavy == ({"sklearn"} if path == ESTIMATOR else set())


def test_flows_import_their_estimator_only_where_it_is_needed():
    for path in OURS:
        for node in at_import(parse(path)):
            assert "from ondol.training.formulas" not in ast.unparse(node), path


def test_the_command_starts_without_the_settings_and_without_a_library_but_typer():
    """Each `ml` command waits for this import; what a command needs, it imports itself."""
    code = "import sys, ondol.cli.app; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "typer" in loaded
    assert not loaded & {"fsspec", "httpx", "numpy", "pandas", "prefect", "pyarrow", "pydantic", "rich", "yaml"}


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_text_files_are_opened_with_their_encoding(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".read_text", ".write_text")):
            assert any(keyword.arg == "encoding" for keyword in node.keywords), f"line {node.lineno}"


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_no_pickle_is_loaded(path):
    if path.is_relative_to(REPOSITORY / "benchmarks"):
        pytest.skip("what we are compared with may")
    assert not {"pickle", "cloudpickle", "dill", "joblib"} & set(imported(parse(path)))
