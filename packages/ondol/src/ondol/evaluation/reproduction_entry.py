"""Trains a version again from an order: the entry point that `ml reproduce` calls in another commit's code.

Run as `python -m ondol.evaluation.reproduction_entry ORDER OUTCOME`. It uses neither Prefect nor MLflow, and writes
only into the order's store and this project's `.ml`.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ondol.config import FileSettings, Settings
from ondol.errors import UserError
from ondol.evaluation.reproduction import Order, Outcome
from ondol.orchestration.environment import prepare
from ondol.orchestration.reporting import listeners

if TYPE_CHECKING:
    from ondol.evaluation.targets import Candidate


def main(order_path: Path, outcome_path: Path) -> int:
    """Carry out the order, write the result, and return the exit status."""
    order = Order.model_validate_json(order_path.read_bytes())
    settings = FileSettings(**(order.settings | {"root": Path.cwd(), "store": order.store}))
    prepare(settings)
    listeners.append(_say)
    try:
        outcome = retrain(settings, order)
    except UserError as error:
        outcome = Outcome(error=str(error))
    outcome_path.write_text(outcome.model_dump_json(), encoding="utf-8")
    return 0


def retrain(settings: Settings, order: Order) -> Outcome:
    """Validate, fit, predict and score again.

    Raises:
        UserError: the rows cannot be validated as before, or a stage failed.
    """
    from ondol.training.provenance import read_machine

    check_again(settings, order)
    candidate, rows = fit_again(settings, order)
    _say("predicting")
    deviation = compare_predictions(candidate, order.model)
    _say("scoring")
    verdict = score_again(candidate, order.basis) if order.basis else None
    about = read_machine()
    return Outcome(
        train_rows=rows,
        verdict=verdict,
        apart=deviation,
        packages=about["packages"],
        python=about["python"],
        machine=about["machine"],
    )


def check_again(settings: Settings, order: Order) -> None:
    """Validate the snapshot with the contract; if the contract differs, the old record must exist.

    Raises:
        UserError: it differs, and the record is missing.
    """
    from ondol.project import Project
    from ondol.validation.validate import validate_snapshot, validation_id

    _say("checking rows")
    if validation_id(settings, order.snapshot) == order.validation:
        validate_snapshot(Project(settings), order.snapshot, order.validation)
    elif Project(settings).validations.find(order.validation) is None:
        raise UserError(
            f"its rows were validated by another model/schema.py than its files have, and the record "
            f"{order.validation} is no longer in the store's quarantine: bring it back."
        )


def fit_again(settings: Settings, order: Order) -> "tuple[Candidate, int]":
    """Return a candidate fitted on the version's training rows, and their number."""
    import skops.io

    from ondol.contract import load_contract
    from ondol.evaluation.targets import Candidate
    from ondol.registry.registry import trusted_types
    from ondol.training.candidates import Choice
    from ondol.training.dataset import Holdout, read_rows
    from ondol.training.train import fit_rows

    contract, holdout = load_contract(settings), Holdout.model_validate(order.holdout)
    frame = read_rows(settings, contract, order.validation, "train", holdout)
    _say(f"fitting on {len(frame):,} rows")
    fitted = fit_rows(settings, contract, frame, holdout, Choice(settings.train.params, "Recorded."))
    trusted = trusted_types(settings)
    made = Candidate(
        settings=settings,
        version="again",
        run_id="",
        # As in the version's evaluation.
        pipeline=skops.io.loads(skops.io.dumps(fitted.pipeline), trusted=list(trusted)),
        contract=fitted.contract,
        tags={"validation": order.validation, "holdout": holdout.model_dump_json()},
        baseline=fitted.baseline,
        trusted=trusted,
    )
    return made, fitted.rows


def compare_predictions(candidate: "Candidate", recorded: Path) -> float | None:
    """Return the largest difference of a prediction from the recorded model's, relative if that is above 1.

    None if no rows are held out, or the classes differ.
    """
    from dataclasses import replace

    import numpy as np

    from ondol.registry.registry import load_pipeline

    old = replace(candidate, pipeline=load_pipeline(recorded, candidate.trusted)).predictions
    if not len(old) or old.shape != candidate.predictions.shape:
        return None
    return float((np.abs(candidate.predictions - old) / np.maximum(1.0, np.abs(old))).max())


def score_again(candidate: "Candidate", recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the candidate's figures on the version's evaluation rows, without a champion."""
    from ondol.config import Gates
    from ondol.evaluation.gates import apply_gates
    from ondol.evaluation.metrics import Decided, choose_metric
    from ondol.evaluation.scoring import predict_dummy
    from ondol.evaluation.targets import Basis, choose_rows

    basis, problem = Basis.model_validate(recorded), candidate.contract.problem
    rows, rule = choose_rows(candidate, basis), candidate.contract.decision
    dummy = predict_dummy(problem, choose_metric(problem, basis.metric), candidate.baseline, len(rows.y), rule)
    limits = Gates(metric=basis.metric, confidence=basis.confidence, resamples=basis.resamples)
    ours, theirs = Decided.by(rule, rows.predictions), Decided.by(None, dummy, rule)
    return apply_gates(problem, rows.y, ours, None, theirs, limits).model_dump(mode="json")


def _say(words: str) -> None:
    print(words, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
