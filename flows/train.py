"""Train: a candidate version is fitted on the validated rows of the training split."""

from ondol.orchestration import name_run, stage, task
from ondol.project import open_project
from ondol.registry import repair_mlflow_alias
from ondol.selection import choose
from ondol.training import cache_key, check_leakage, find_version, fit, load_rows, register


@stage(timeout_hours=6)
def train(validation: str | None = None) -> str:
    """Fit and register a candidate on validated rows (default: the latest); return its version.

    Unchanged data, code and settings give the version that they gave before.

    Args:
        validation: A validation's id; empty for the latest.
    """
    project = open_project()
    validation = validation or project.latest.get("validate")
    repair_mlflow_alias(project)
    key = cache_key(project, validation)
    version = find_version(project, key)
    if version is None:
        rows = task(load_rows)(project, validation)
        alarms = task(check_leakage)(project, rows)
        choice = task(choose)(project, rows)
        fitted = task(fit)(project, rows, choice)
        version = task(register)(project, validation, key, fitted, alarms)
    project.latest.set("train", version)
    name_run("train", version=version, data=validation)
    return version
