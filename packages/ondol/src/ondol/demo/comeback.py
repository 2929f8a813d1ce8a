"""Whether the metric came back: what the new champion answered, beside what the old one would have, row by row."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from ondol.config.model import Gates
from ondol.contract import Contract, check_rows, clean, encode_target, typed
from ondol.demo.play import HISTORY, Week, movement
from ondol.demo.traffic import draw_week
from ondol.evaluation.metrics import METRICS, Interval, choose_metric, paired_difference, score_metrics
from ondol.evaluation.scoring import Scorer
from ondol.evaluation.verdict import show_figure
from ondol.registry.bundles import Bundle

LEAST_SHARE = 1 / 3  # of what the old champion lost; the new one still learns from a week before the shift


@dataclass(frozen=True)
class Comeback:
    """The metric that decides, in three figures.

    Attributes:
        metric: Its name.
        before: Of the old champion, on the weeks before anything moved.
        lost: Of the old champion, on the weeks that the new one answered: what it would have answered.
        back: Of the new champion, on those weeks: what it did answer.
        gain: By how much `back` is better than `lost`, with the interval of the paired bootstrap.
        share: What part of the loss is made good; 1 is all of it. None where the old champion lost nothing.
        rows: On how many rows of these weeks.
    """

    metric: str
    before: float
    lost: float
    back: float
    gain: Interval
    share: float | None
    rows: int

    @property
    def complete(self) -> bool:
        """Whether it came back: better beyond chance, and by a third of the loss at least."""
        beyond_chance = self.gain.low is not None and self.gain.low > 0
        return beyond_chance and (self.share is None or self.share >= LEAST_SHARE)

    @property
    def sentence(self) -> str:
        """The figures in words."""
        before, lost, back = (show_figure(figure) for figure in (self.before, self.lost, self.back))
        bounds = [show_figure(bound) for bound in (self.gain.low, self.gain.high) if bound is not None]
        gain = show_figure(self.gain.value) + (f" ({' to '.join(bounds)})" if len(bounds) == 2 else "")
        part = "nothing had been lost" if self.share is None else f"{self.share:.0%} of what was lost"
        return (
            f"{self.metric}: {before} before, {lost} with the old version and {back} with the new one on the same "
            f"{self.rows:,} customers afterwards, better by {gain}: {part}."
        )


@dataclass(frozen=True)
class Answered:
    """Rows of some weeks: what came true, and what was predicted by the service and by another model."""

    y: np.ndarray
    served: np.ndarray
    other: np.ndarray


def measure_comeback(weeks: Sequence[Week], rows: int, answers: Path, old: Bundle, gates: Gates) -> Comeback | None:
    """Compare the champions of a simulation that has swapped; None where no week came after the swap.

    Args:
        weeks: All that were played.
        rows: Customers in each.
        answers: The file with what the service answered.
        old: The champion at the beginning.
        gates: Which metric decides, and how intervals are found.
    """
    early = [week for week in weeks if not week.moved and week.version == old.version]
    late = [week for week in weeks if week.moved and week.version != old.version]
    if not early or not late:
        return None
    model, served = Scorer.open(old.path), read_answers(answers)
    first, last = (_gather(model, chosen, rows, served) for chosen in (early, late))
    return compare(model.contract, first, last, gates)


def compare(contract: Contract, first: Answered, last: Answered, gates: Gates) -> Comeback | None:
    """Return the figures of two stretches of weeks; None where the metric is undefined on one."""
    problem, metric = contract.problem, choose_metric(contract.problem, gates.metric)
    before, back = (score_metrics(problem, one.y, one.served).get(metric) for one in (first, last))
    lost = score_metrics(problem, last.y, last.other).get(metric)
    options = {"confidence": gates.confidence, "resamples": gates.resamples}
    gain = paired_difference(problem, metric, last.y, last.served, last.other, **options)  # type: ignore[arg-type]
    if before is None or back is None or lost is None or gain is None:
        return None
    loss = before - lost if METRICS[problem][metric].greater_is_better else lost - before
    return Comeback(metric, before, lost, back, gain, gain.value / loss if loss > 0 else None, len(last.y))


def read_answers(path: Path) -> dict[int, np.ndarray]:
    """Return the predictions [N, K] or [N] of each week that the service gave, in the order of the requests."""
    found: dict[int, list[list[float] | float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        found.setdefault(answer["week"], []).extend(_numbers(one) for one in answer["predictions"])
    return {week: np.array(numbers, dtype=np.float64) for week, numbers in found.items()}


def _gather(model: Scorer, weeks: Sequence[Week], rows: int, served: dict[int, np.ndarray]) -> Answered:
    frame = pd.concat([draw_week(w.number, rows, HISTORY, movement(w.moved)) for w in weeks], ignore_index=True)
    table, contract = pa.Table.from_pandas(frame), model.contract
    target = (contract.target_column,)
    labels = typed(clean(table, target)[0], target)[contract.target]
    features = check_rows(table, contract.features).valid()
    places = features.index.to_numpy()
    answers = np.concatenate([served[week.number] for week in weeks])
    return Answered(encode_target(contract, labels)[places], answers[places], model.predict(features))


def _numbers(prediction: dict[str, object]) -> list[float] | float:
    probabilities = prediction.get("probabilities")
    return list(probabilities.values()) if isinstance(probabilities, dict) else float(str(prediction["value"]))
