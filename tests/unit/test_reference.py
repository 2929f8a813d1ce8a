"""The reference in docs/ is what the code says: every setting, command, route, metric and alert, and no other."""

import ast
import fnmatch
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from template_support import clean_environment
from typer.main import get_command

from ondol.cli.app import app
from ondol.cli.doctor import FOLDERS, RECORDS
from ondol.cli.release import RELEASED, UNVERIFIED
from ondol.config import Settings
from ondol.evaluation.metrics import DECISION_METRICS, METRICS, choose_metric
from ondol.monitoring import exporter
from ondol.orchestration.alerts import AlertKind
from ondol.storage.files import BACKUP, CHAMPION_FILE, KEYS_FILE, REMEDIES, ROLLOUT_FILE
from ondol_serving import metrics
from ondol_serving.access import HEALTH

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / ".ci" / "reference.py"
INTERNAL = {"ML_PROCESS", "ML_UMASK"}  # what a process of ours tells another


@pytest.fixture(scope="module")
def reference() -> Any:
    """The script that writes the pages."""
    spec = importlib.util.spec_from_file_location("reference", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as the script writes them: in a process of its own, since BentoML warns while it is imported."""
    folder = tmp_path_factory.mktemp("reference")
    done = subprocess.run(
        [sys.executable, SCRIPT, folder], capture_output=True, text=True, env=clean_environment(), timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder


def page(name: str) -> str:
    return (REPOSITORY / "docs" / "reference" / name).read_text(encoding="utf-8")


def first_cells(text: str) -> list[str]:
    """Return the code at the beginning of each row of the tables."""
    return re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)


def sections(text: str, level: str) -> dict[str, str]:
    """Return the text below each heading of a level."""
    parts = re.split(rf"^{level} (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def files(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in (REPOSITORY / folder).rglob("*"))
    return [path for path in found if path.is_file() and path.suffix != ".pyc"]


def test_the_pages_are_what_make_docs_writes(written: Path):
    names = {path.name for path in written.iterdir()}
    assert names == {"alerts.md", "commands.md", "http.md", "metrics.md", "settings.md"}
    for name in names:
        assert page(name) == (written / name).read_text(encoding="utf-8"), f"{name}: run `make docs`"


def test_a_page_without_its_marks_is_refused(reference: ModuleType):
    with pytest.raises(SystemExit, match=r"alerts\.md has the generated parts none, not alerts, rules\."):
        reference.write_page("alerts.md", "# Alerts\n")


def test_an_entry_that_the_code_does_not_have_is_refused(reference: ModuleType):
    with pytest.raises(SystemExit, match=r"^ALERTS in reference\.py and in the code differ: drift, gone\.$"):
        reference.require_same(["gone", "retrained"], ["retrained", "drift"], "ALERTS")


def test_every_setting_is_in_the_reference():
    listed = {heading: first_cells(text) for heading, text in sections(page("settings.md"), "##").items()}
    wanted: dict[str, list[str]] = {"Top level": ["store"]}
    for name, entry in Settings.model_fields.items():
        inner = get_args(entry.annotation)
        model: Any = inner[1] if inner else entry.annotation
        if hasattr(model, "model_fields"):
            wanted[f"[{name}.NAME]" if inner else f"[{name}]"] = list(model.model_fields)
    del listed["Other variables"]
    assert listed.pop("When a change takes effect") == ["store", *list(wanted)[1:]]
    assert listed == wanted


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ({"type": "string"}, "list of texts"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "list of numbers > 0, ≤ 1"),
    ],
)
def test_a_list_says_what_it_has(reference: ModuleType, items: dict[str, Any], expected: str):
    assert reference.describe_type({"type": "array", "items": items}) == expected


def test_every_variable_that_is_not_a_setting_is_in_the_reference():
    known = {"ML_STORE", *INTERNAL}
    texts = [path.read_text(encoding="utf-8") for path in files("packages", "flows", "template")]
    read = {name for text in texts for name in re.findall(r"\bML_[A-Z_]+\b", text) if "__" not in name}
    assert first_cells(sections(page("settings.md"), "##")["Other variables"]) == sorted(read - known)


def commands() -> dict[str, Any]:
    """Return each command by its words."""
    found, waiting = {}, [("ml", get_command(app))]
    while waiting:
        words, command = waiting.pop()
        inner = getattr(command, "commands", {})
        waiting += [(f"{words} {name}", below) for name, below in inner.items()]
        if not inner:
            found[words] = command
    return found


def test_every_command_with_its_arguments_and_options_is_in_the_reference():
    listed = sections(page("commands.md"), "###")
    assert listed.keys() == commands().keys()
    for words, command in commands().items():
        cells = first_cells(listed[words])
        wanted = [
            (one.metavar or one.name.upper())
            if one.param_type_name == "argument"
            else ", ".join([*one.opts, *one.secondary_opts])
            for one in command.params
            if one.name != "help"
        ]
        assert sorted(cells) == sorted(wanted), words


def test_every_route_and_refusal_is_in_the_reference(reference: ModuleType):
    text = sections(page("http.md"), "##")
    assert set(first_cells(text["Routes"])) == reference.ROUTES.keys()  # the script compares them with the service
    assert {"/predict", "/model", "/livez", "/readyz", "/metrics", "/docs.json"} <= reference.ROUTES.keys()
    answers = dict(re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([\d, ]+) \|", text["Routes"], re.MULTILINE))
    closed = {path for path, statuses in answers.items() if "401" in statuses}
    assert closed == {*answers} - {path for path in answers if path in HEALTH}
    kinds = {kind for _, kind in reference.find_refusals()}
    assert set(re.findall(r"^\| \d+ \| `(\w+)`", text["Errors"], re.MULTILINE)) == kinds == reference.REFUSALS.keys()
    assert {"no_model", "busy", "foreign_host"} <= kinds


def test_every_metric_is_in_the_reference():
    text = sections(page("metrics.md"), "##")
    assert first_cells(text["The worker"]) == list(exporter.GAUGES)
    code = Path(exporter.__file__).read_text(encoding="utf-8")
    for name in exporter.GAUGES:
        assert code.count(f'"{name}"') >= 2, f"{name} is listed and never written"
    own = (Path(metrics.__file__)).read_text(encoding="utf-8")
    counters = [f"{name}_total" for name in re.findall(r'Counter\(\s*"(\w+)"', own)]
    assert [name for name in first_cells(text["The service"]) if name.startswith("ml_")] == counters


def test_what_rules_dashboards_and_pages_name_is_a_metric():
    known = set(first_cells(page("metrics.md")))
    texts = {path: path.read_text(encoding="utf-8") for path in files("template/ops")}
    for path, text in texts.items():
        named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\b(?:ml|bentoml)_\w+\b", text)}
        assert named <= known, path
    assert any("ml_window_verdict" in text for text in texts.values())


def test_every_kind_of_alert_is_raised_and_in_the_reference():
    kinds = set(get_args(AlertKind))
    named = first_cells(page("alerts.md").partition("## The message")[0])
    assert named == list(get_args(AlertKind))
    raised = {
        node.value
        for path in files("packages/ondol/src")
        if path.suffix == ".py" and path.name != "alerts.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in kinds
    }
    in_alerts = (REPOSITORY / "packages/ondol/src/ondol/orchestration/alerts.py").read_text(encoding="utf-8")
    assert kinds - raised <= {kind for kind in kinds if in_alerts.count(f'"{kind}"') == 2}


def test_each_test_that_a_page_names_is_there_and_marked_as_slow_where_it_is():
    named = [
        (path.name, name, slow)
        for path in sorted((REPOSITORY / "docs").rglob("*.md"))
        for name, slow in re.findall(r"`(tests/[\w/]+\.py)`( \(slow\))?", path.read_text(encoding="utf-8"))
    ]
    assert len(named) > 10
    for page, name, slow in named:
        assert (REPOSITORY / name).is_file(), f"{page} names {name}"
        assert not slow or "mark.slow" in (REPOSITORY / name).read_text(encoding="utf-8"), f"{page}: {name} is not slow"


def test_every_rule_of_prometheus_is_in_the_reference():
    rules = re.findall(
        r"^ +- alert: (\w+)", (REPOSITORY / "template/ops/alerts.yaml").read_text(encoding="utf-8"), re.M
    )
    assert first_cells(page("alerts.md").partition("## Rules of Prometheus")[2]) == rules


def test_every_file_of_the_store_that_is_checked_is_in_the_reference():
    listed = first_cells(page("store.md"))
    names = [name for name, _ in RECORDS]
    assert [name for name in names if not fnmatch.filter(listed, name)] == []
    assert {name.partition("/")[0] for name in listed if "/" in name} - {".ml"} == set(FOLDERS)


def test_every_file_of_the_store_that_has_a_name_or_a_remedy_is_in_the_reference():
    listed = first_cells(page("store.md"))
    files = [Path(".ml/store", name, "meta.json" if name.endswith("/") else "") for name in listed]
    named = {CHAMPION_FILE, BACKUP, KEYS_FILE, ROLLOUT_FILE, UNVERIFIED, RELEASED}
    assert named - set(listed) == set()
    beside = (".ml/", ".tags.json")  # not in the store
    patterns = [pattern for pattern, _ in REMEDIES if not pattern.startswith(beside)]
    assert [pattern for pattern in patterns if not any(file.match(pattern) for file in files)] == []


def test_metrics_of_models_are_those_of_the_gates_with_their_direction_and_margin():
    tables = dict(zip(METRICS, list(sections(page("model-metrics.md"), "##").values())[:3], strict=True))
    for problem, usual in METRICS.items():
        known = {**usual, **DECISION_METRICS[problem]}
        assert f'`[data] problem = "{problem}"`' in tables[problem]
        rows = re.findall(r"^\| `(\w+)`( \(default\))? \| (greater|less) \| (.+) \|$", tables[problem], re.MULTILINE)
        assert [name for name, *_ in rows] == list(known)
        assert [name for name, default, *_ in rows if default] == [choose_metric(problem, None)]
        for name, _, better, rest in rows:
            assert (better == "greater") == known[name].greater_is_better
            assert (rest.startswith("a share |") or "margin is a share" in rest) == known[name].relative
