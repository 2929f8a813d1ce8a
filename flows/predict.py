"""Predict: the rows of any source are predicted into one file."""

from typing import Any

from ondol.deployment import (
    check_predictions,
    choose_bundle,
    predict_rows,
    report_predictions,
    resolve_destination,
)
from ondol.orchestration import name_run, stage, task
from ondol.project import open_project


@stage(timeout_hours=6, alone=False)
def predict(source: str, destination: str, version: str | None = None, explain: bool = False) -> dict[str, Any]:
    """Predict the rows of a source and write them, with all their columns, to a file.

    A row that breaks the contract is written with an empty prediction; the column `error` gives every reason.

    Args:
        source: What `ml ingest` reads too: a file's path or `sample://…`.
        destination: A `.csv`, `.parquet` or `.jsonl` file, replaced in one step when all is written. Like
            the source's, its path is relative to the project.
        version: A version that was deployed before; empty for the champion.
        explain: Add what each column contributed to each prediction.

    Returns:
        `rows` (all of them), `refused` and `version`.

    Raises:
        UserError: no model is in production, the source lacks a column, the destination is invalid, or no row could
            be predicted.
    """
    project = open_project()
    path = resolve_destination(project.settings.root / destination)
    project.store.refresh()  # what other hosts wrote, if the store is remote
    bundle = task(choose_bundle)(project.store, version)
    counts = task(predict_rows)(project, bundle, source, path, explain)
    name_run("predict", version=bundle.version)
    report_predictions(bundle, counts, destination)
    task(check_predictions)(counts, destination)
    return counts | {"version": bundle.version}
