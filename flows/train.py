"""Train: a candidate for the service is fitted on validated rows."""

from ondol.orchestration import name_run, stage, task
from ondol.project import open_project
from ondol.registry import repair_alias
from ondol.training import check_leakage, find_version, fit, load_rows, register, train_key


@stage(timeout_hours=6)
def train(validation: str | None = None) -> str:
    """Fit and register a candidate on validated rows (default: the latest); return its version.

    Unchanged data, code and settings give the version that they gave before.

    Args:
        validation: A validation's id; empty for the latest.
    """
    project = open_project()
    validation = validation or project.latest.get("validate")
    repair_alias(project.settings)
    key = train_key(project, validation)
    version = find_version(project, key)
    if version is None:
        rows = task(load_rows)(project, validation)
        alarms = task(check_leakage)(project, rows)
        fitted = task(fit)(project, rows)
        version = task(register)(project, validation, key, fitted, alarms)
    project.latest.set("train", version)
    name_run("train", version=version, data=validation)
    return version
