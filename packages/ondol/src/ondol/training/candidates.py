"""The candidates for a project's model, and the choice among them."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ondol.config import Settings
from ondol.errors import UserError
from ondol.project import OWN_ERRORS, describe_error, import_owned

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One candidate in the comparison.

    Attributes:
        name: Its name: the parameters in words.
        params: The parameters of `build_estimator`, as `list_candidates` returns them.
        scores: The metric in each fold; NaN where it is undefined.
        rounds: The boosting rounds after which early stopping ended each fit; empty for other models.
        seconds: The time of its fits.
    """

    name: str
    params: Params
    scores: tuple[float, ...]
    rounds: tuple[int, ...]
    seconds: float

    @property
    def known(self) -> list[float]:
        """The scores that are defined."""
        return [score for score in self.scores if not math.isnan(score)]

    @property
    def mean(self) -> float:
        """Their mean; NaN if there is none."""
        return float(np.mean(self.known)) if self.known else math.nan


@dataclass(frozen=True)
class Choice:
    """The parameters with which the model is fitted, and why.

    Attributes:
        params: The parameters of `build_estimator`.
        reason: One sentence.
        metric: The metric that decided; None if nothing was compared.
        rows: The rows that the comparison used.
        trials: The candidates that were compared, the best one first.
        calibrated: Whether the probabilities are calibrated, see `ondol.training.calibration`.
    """

    params: Params
    reason: str
    metric: str | None = None
    rows: int = 0
    trials: tuple[Trial, ...] = ()
    calibrated: bool = False

    def describe(self) -> dict[str, Any]:
        """Return the choice as a JSON document."""
        return {
            "reason": self.reason,
            "params": dict(self.params),
            "metric": self.metric,
            "rows": self.rows,
            "calibration": "sigmoid" if self.calibrated else "none",
            "trials": [
                {"name": t.name, "params": dict(t.params), "scores": list(t.scores), "rounds": list(t.rounds)}
                for t in self.trials
            ],
        }


def read_candidates(settings: Settings) -> list[dict[str, Any]]:
    """Return the parameters of each candidate: those of `list_candidates` in `model/estimator.py`.

    `[train.params]` is the only candidate, if it is set; without `list_candidates`, the defaults of `build_estimator`
    are.

    Raises:
        UserError: `list_candidates` fails, or returns something else than a list of parameters.
    """
    if settings.train.params:
        return [dict(settings.train.params)]
    listed = getattr(import_owned("estimator"), "list_candidates", None)
    if listed is None:
        return [{}]
    try:
        found = listed(settings.data.problem)
    except OWN_ERRORS as error:
        raise UserError(f"list_candidates in model/estimator.py failed: {describe_error(error)}.") from error
    if not isinstance(found, list | tuple) or not found or not all(isinstance(one, Mapping) for one in found):
        raise UserError(
            "list_candidates in model/estimator.py must return a list of the parameters of build_estimator, such as "
            '[{"kind": "boosting"}, {"kind": "linear"}].'
        )
    for params in found:
        require_recordable(params, "list_candidates")
    return [dict(one) for one in found]


def require_recordable(params: Params, function: str) -> None:
    """Check that a record can hold the parameters of a function, from which `ml reproduce` fits again.

    Raises:
        UserError: one is an object.
    """
    for name, value in params.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise UserError(
                f"{function} in model/estimator.py has {name} = {value!r}, which cannot be recorded: name it with "
                "text or a number, and make the object in build_estimator."
            ) from None


def name_params(params: Params) -> str:
    """Return parameters in words: the kind first, if there is one."""
    rest = [f"{key} {value}" for key, value in params.items() if key != "kind"]
    words = [str(params["kind"])] if "kind" in params else []
    return ", ".join(words + rest) or "the defaults of build_estimator"
