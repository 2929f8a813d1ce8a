"""Validate: the rows of a snapshot that break the contract go to quarantine."""

from ondol.orchestration import name_run, stage, task
from ondol.project import open_project
from ondol.validation import check_bad_share, report_validation, validate_rows


@stage(timeout_hours=3)
def validate(snapshot: str | None = None) -> str:
    """Validate a snapshot (default: the latest) by `model/schema.py`; return the validation's id.

    Args:
        snapshot: A snapshot's digest; empty for the latest.

    Raises:
        UserError: a column is missing, or more rows are bad than `max_bad_share` allows.
    """
    project = open_project()
    validation = task(validate_rows)(project, snapshot or project.latest.get("ingest"))
    name_run("validate", data=validation.snapshot)
    task(report_validation)(validation)
    task(check_bad_share)(project, validation)
    project.latest.set("validate", validation.id)
    return validation.id
