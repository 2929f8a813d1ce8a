"""What a version is judged by: which held-out rows, and how; recorded with it, so that it can be judged so again."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import BaseModel

from ondol.config.model import Gates
from ondol.contract import Contract, encode_target
from ondol.errors import UserError
from ondol.evaluation.candidate import Candidate
from ondol.registry.bundles import Bundle
from ondol.training.rows import Holdout, in_holdout


class Basis(BaseModel):
    """What decides a candidate's figures beside its own predictions.

    Attributes:
        metric: The one that decides; None for the problem's own.
        confidence: The coverage of the intervals.
        resamples: How many resamples they rest on.
        contract: Of the champion that it was compared with; None where there was none.
        holdout: Which rows that champion was not trained on; no others count.
    """

    metric: str | None
    confidence: float
    resamples: int
    contract: Contract | None = None
    holdout: Holdout | None = None


@dataclass(frozen=True)
class Judged:
    """The rows that a candidate is judged on, its predictions for them, and what is true of them."""

    frame: pd.DataFrame
    predictions: np.ndarray
    y: np.ndarray
    unknown: int  # rows left out because their class was never seen in training


def find_basis(gates: Gates, bundle: Bundle | None) -> Basis:
    """Return what a candidate is judged by, beside the champion of `bundle` where there is one."""
    made = Basis(metric=gates.metric, confidence=gates.confidence, resamples=gates.resamples)
    if bundle is None:
        return made
    holdout = Holdout.model_validate(bundle.meta["holdout"])
    return made.model_copy(update={"contract": bundle.contract, "holdout": holdout})


def choose_rows(candidate: Candidate, basis: Basis) -> Judged:
    """Return the rows that neither the candidate nor the champion was trained on.

    Raises:
        UserError: no such rows are left.
    """
    frame, predictions = candidate.held_out, candidate.predictions
    if basis.contract and basis.holdout:
        unseen = in_holdout(frame, basis.contract, basis.holdout)
        frame, predictions = frame[unseen], predictions[unseen]
    y = encode_target(candidate.contract, frame[candidate.contract.target])
    known = (y >= 0) if candidate.contract.classes else np.ones(len(y), bool)
    if not known.any():
        raise UserError("No held-out rows are left to judge by: bring more rows, or raise [split] holdout.")
    return Judged(frame[known], predictions[known], y[known], int((~known).sum()))
