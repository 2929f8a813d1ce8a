"""The flows are short, and each step of one is a task, which Prefect shows."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from imports_support import module_defining

FLOWS = Path(__file__).parents[2] / "flows"
MOST_LINES = 60
TASKS = {
    "ingest": ["read_source", "apply_corrections"],
    "validate": ["validate_rows", "report_validation", "check_bad_share"],
    "train": ["load_rows", "check_leakage", "choose", "fit", "register"],
    "evaluate": ["score_holdout", "evaluate_candidate", "log_verdict", "check_gates"],
    "deploy": [
        "check_deployable",
        "build_bundle",
        "import_bundle",
        "smoke_test",
        "release_bundle",
        "set_mlflow_alias",
    ],
    "pipeline": ["check_replay", "publish_summary"],  # its other steps are the five flows above
    "predict": ["choose_bundle", "predict_rows", "check_predictions"],
    "monitor": [
        "send_unsent_training_request",
        "detect_drift",
        "measure_performance",
        "log_window",
        "save_window",
        "decide_retraining",
    ],
    "rollout": ["gather_evidence", "act_on_decision", "close_rollout"],
    "alerts": ["alert_dropped_records", "alert_new_champion", "send_alerts"],
}
MODULES = {  # of the engine, which hold the steps
    "ondol.ingestion.ingest",
    "ondol.validation.validate",
    "ondol.training.train",
    "ondol.evaluation.evaluate",
    "ondol.deployment.deploy",
    "ondol.deployment.predict",
    "ondol.monitoring.monitor",
    "ondol.monitoring.replay",
    "ondol.rollout.assessment",
}
DECIDING = {  # whether there is anything to do, and on what
    "cache_key",
    "find_version",
    "find_verdict",
    "is_deployed",
    "is_trained",
    "monitor_lock",
    "load_context",
    "resolve_destination",
    "window_end",
    "find_rollout",
    "is_running",
    "judge_rollout",
    "rollout_lock",
}
UNDOING = {"discard_bundle", "restore_previous"}  # what a task did
REPORTING = {
    "report_snapshot",
    "report_deployment",
    "report_predictions",
    "report_window",
    "report_rollout",
}  # on the page of the run itself


def read(name: str) -> ast.Module:
    return ast.parse((FLOWS / f"{name}.py").read_text(encoding="utf-8"))


def task_calls(tree: ast.Module) -> Iterator[str]:
    """Yield the names of the functions that are called as tasks, in order: `task(f)(…)`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Call(func=ast.Name("task"), args=[ast.Name(step)])):
                yield step


def plain_calls(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(function)):
                yield function


def imported_steps(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if module_defining(f"{node.module}.{alias.name}") in MODULES)


def is_flow(tree: ast.Module) -> bool:
    decorated = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.decorator_list)
    return any(ast.unparse(one).startswith(("stage(", "flow(")) for node in decorated for one in node.decorator_list)


def test_there_are_nine_flows():
    assert {path.stem for path in FLOWS.rglob("*.py") if is_flow(ast.parse(path.read_text("utf-8")))} == TASKS.keys()


@pytest.mark.parametrize("name", TASKS)
def test_a_flow_is_one_short_function(name):
    text = (FLOWS / f"{name}.py").read_text(encoding="utf-8")
    assert 10 <= len(text.splitlines()) <= MOST_LINES
    assert [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)] == [name]


@pytest.mark.parametrize("name", TASKS)
def test_steps_of_a_flow_are_tasks(name):
    tree = read(name)
    assert sorted(task_calls(tree)) == sorted(TASKS[name])
    assert set(imported_steps(tree)) <= {*TASKS[name], *DECIDING, *UNDOING, *REPORTING}
    assert not set(plain_calls(tree)) & {*TASKS[name]}
