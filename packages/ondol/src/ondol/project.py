"""A project: its settings, contract, store, registry and champion, each opened on first use.

Optional modules of `model/` extend the engine: `model/evaluation.py` may define `METRICS`, `GATES` and `SLICES`,
`model/source.py` a function `prepare`, and `model/converters.py` registers converters to ONNX.
"""

import ast
import importlib
import importlib.util
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ondol.config import Settings, find_root, load_settings
from ondol.errors import UserError
from ondol.storage.files import digest_file, require_resolved

if TYPE_CHECKING:
    from ondol.contract import Contract
    from ondol.evaluation.gates import Verdicts
    from ondol.registry.champion import Champion
    from ondol.registry.registry import Registry
    from ondol.snapshots.snapshots import Snapshots
    from ondol.storage.store import Store
    from ondol.validation.results import Latest, Validations

EVALUATION, SOURCE = "evaluation", "source"
FILE = "model/{}.py".format
OWN_FOLDERS = ("flows", "model", "service")
IMPORT = re.compile(r"^[ \t]*((?:from[ \t]+[.\w]+[ \t]+)?import\b[ \t]*(?:\([^)]*\)|.+))$", re.M)
OWN_ERRORS = (Exception, SystemExit)  # errors of the project's code; `sys.exit` in it must not end the command


@dataclass(frozen=True)
class Project:
    """A project, shared by the steps of one flow run."""

    settings: Settings

    @cached_property
    def store(self) -> "Store":
        """The store: its folder, or the folder that mirrors a remote one."""
        from ondol.storage.store import open_store

        return open_store(self.settings)

    @cached_property
    def contract(self) -> "Contract":
        """The contract from `model/schema.py`, without encodings."""
        from ondol.contract import load_contract

        return load_contract(self.settings)

    @cached_property
    def snapshots(self) -> "Snapshots":
        """The ingested tables."""
        from ondol.snapshots.snapshots import Snapshots

        return Snapshots(self.store)

    @cached_property
    def validations(self) -> "Validations":
        """The records of validated snapshots, and the quarantined rows."""
        from ondol.validation.results import Validations

        return Validations(self.store)

    @cached_property
    def latest(self) -> "Latest":
        """The last result of each stage."""
        from ondol.validation.results import Latest

        return Latest(self.store)

    @cached_property
    def registry(self) -> "Registry":
        """MLflow's runs and registered versions."""
        from ondol.registry.registry import Registry

        return Registry(self.settings)

    @cached_property
    def verdicts(self) -> "Verdicts":
        """The verdicts on versions."""
        from ondol.evaluation.gates import Verdicts

        return Verdicts(self.store)

    @property
    def champion(self) -> "Champion | None":
        """The version in production; read each time, because a deployment changes it."""
        from ondol.registry.champion import read_champion

        return read_champion(self.store)


def open_project() -> Project:
    """Return the project in whose folder this process runs.

    Raises:
        UserError: there is none, or its settings are wrong.
    """
    return Project(load_settings())


def read_extension(module: str, name: str) -> Any:
    """Return the value `name` of a module in `model/`; None if the module or the value does not exist.

    Raises:
        UserError: the module cannot be imported.
    """
    return getattr(import_extension(module), name, None)


def import_extension(module: str) -> ModuleType | None:
    """Return an optional module of `model/`; None if there is none.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        found = importlib.util.find_spec("model") and importlib.util.find_spec(f"model.{module}")
    except OWN_ERRORS:  # of model/__init__.py
        return import_owned(module)
    return import_owned(module) if found else None


def import_owned(module: str) -> ModuleType:
    """Return a module of `model/`.

    Raises:
        UserError: it cannot be imported.
    """
    return import_code(f"model.{module}")


def import_code(name: str) -> ModuleType:
    """Return a module of the project, such as `flows.train`.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except OWN_ERRORS as error:
        if isinstance(error, SyntaxError) and error.filename:
            require_resolved(Path(error.filename))
        reason = describe_error(error) + ("" if isinstance(error, SyntaxError) else place_in_project(error))
        raise UserError(f"{name.replace('.', '/')}.py cannot be imported: {reason}.") from error


def digest_extension(root: Path, module: str) -> str | None:
    """Return the SHA-256 of the module's file; None if there is none."""
    path = root / FILE(module)
    return digest_file(path) if path.is_file() else None


def module_paths(module: str) -> tuple[str, str]:
    """Return the possible paths of a module with a dotted name, in Python's order of search."""
    path = module.replace(".", "/")
    return f"{path}/__init__.py", f"{path}.py"


def read_imports(code: bytes, package: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield the imports of Python code: the full name of the module, and the imported name, empty for `import module`.

    Args:
        code: The code of a file, or of a cell of a notebook.
        package: The packages of the file, from which relative imports start.
    """
    for node in _parse(code):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level <= len(package):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            yield from ((module, alias.name) for alias in node.names)


def _parse(code: bytes) -> Iterator[ast.AST]:
    """Yield the syntax nodes of code; if it is not valid Python, those of its import lines."""
    try:
        with warnings.catch_warnings(action="ignore"):  # warnings about the owner's code, such as invalid escapes
            tree = ast.parse(code)
    except (SyntaxError, ValueError):  # such as merge conflict markers, or a notebook's magic command
        for found in IMPORT.finditer(code.decode(errors="replace")):
            with suppress(SyntaxError, ValueError):
                yield from ast.parse(found[1]).body
    else:
        yield from ast.walk(tree)


def place_in_project(error: BaseException) -> str:
    """Return the innermost line of an error in the project's code, ` (flows/train.py, line 21)`, or an empty string."""
    try:
        root = find_root()
    except UserError:
        return ""
    places = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [
        (path.relative_to(root), line)
        for path, line in places
        if path.is_relative_to(root) and path.relative_to(root).parts[0] in OWN_FOLDERS
    ]
    return f" ({own[-1][0].as_posix()}, line {own[-1][1]})" if own else ""


def describe_error(error: BaseException) -> str:
    """Return an error of the project's code on one line."""
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({'' if error.code is None else repr(error.code)}), which ends the process"
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(" .:")
