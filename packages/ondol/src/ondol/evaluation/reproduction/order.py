"""What passes between `ml reproduce` and the retraining, which another commit's code does.

Fields may be added, with defaults; none may be renamed or removed.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

# `python -m ENTRY ORDER OUTCOME` in the project's folder, and its file; the second is that of releases before 0.4.
ENTRIES = {
    "ondol.evaluation.reproduction_entry": "vendor/ondol/src/ondol/evaluation/reproduction_entry.py",
    "flows.reproducing.retrain": "flows/reproducing/retrain.py",
}


class Order(BaseModel):
    """What to train, as it was recorded; the commit that recorded it knows how to read it.

    Attributes:
        settings: The settings, those of the environment included.
        store: A folder with the snapshot, in which the retraining may write.
        snapshot: The snapshot's digest.
        validation: The id of the validation whose rows were trained on.
        holdout: Which rows were held out.
        basis: What the version was judged by; None where it never was.
        model: The recorded pipeline, whose predictions are compared.
    """

    settings: dict[str, Any]
    store: Path
    snapshot: str
    validation: str
    holdout: dict[str, Any]
    basis: dict[str, Any] | None = None
    model: Path


class Outcome(BaseModel):
    """What came of it.

    Attributes:
        error: Why it failed, in one sentence.
        train_rows: On how many rows the model was fitted.
        verdict: Its figures, as `verdict.json` has them.
        apart: How far the farthest of its predictions for the held-out rows is from that of the recorded model.
        packages: The versions by which it was made.
        python: Likewise.
        machine: Likewise.
    """

    error: str | None = None
    train_rows: int = 0
    verdict: dict[str, Any] | None = None
    apart: float | None = None
    packages: dict[str, str] = {}
    python: str | None = None
    machine: str | None = None
