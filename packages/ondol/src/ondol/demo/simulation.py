"""The simulated timeline: traffic, drift, retraining, and whether the metric recovered."""

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.table import Table

from ondol.config import Gates
from ondol.contract import Contract, check_rows, clean, encode_target, typed
from ondol.demo.sandbox import Sandbox
from ondol.demo.traffic import draw_week, send_rows, wait_for_version, write_table
from ondol.errors import UserError
from ondol.evaluation.gates import show_figure
from ondol.evaluation.metrics import Decided, Interval, choose_metric, metrics_of, paired_difference, score_metrics
from ondol.evaluation.scoring import Scorer
from ondol.monitoring.retraining import TrainingRequest, read_loop
from ondol.monitoring.windows import Window, Windows
from ondol.orchestration.processes import running
from ondol.orchestration.server import get_prefect, in_pool, post_prefect
from ondol.registry.bundles import Bundle
from ondol.registry.champion import Champion, require_champion
from ondol.storage.store import open_store

END_STATES = ("COMPLETED", "FAILED", "CANCELLED")  # the worker restarts crashed runs
RUN_SECONDS = 600.0
Run = dict[str, Any]
T = TypeVar("T")


def order_run(api: str, flow: str, project: str, key: str) -> Run:
    """Run the deployment of a project's flow once for `key`; wait, and return the finished run.

    Raises:
        UserError: it did not end in time.
    """
    wanted = in_pool(project) | {"flows": {"name": {"any_": [flow]}}}
    search = f"{api}/deployments/filter"
    found = _until(
        lambda: post_prefect(search, wanted) or None, f"no deployment of {flow} of {project} was found at {api}"
    )
    create = f"{api}/deployments/{found[0]['id']}/create_flow_run"
    body = {"idempotency_key": key, "state": {"type": "SCHEDULED"}}
    run = _until(lambda: post_prefect(create, body), f"a run of {flow}/{project} could not be started")
    return wait_for_run(api, run["id"])


def runs_since(api: str, flow: str, since: datetime) -> list[Run]:
    """Return the runs of a flow that were created after `since`, oldest first.

    Raises:
        UserError: the server does not answer in time.
    """
    body = {
        "flows": {"name": {"any_": [flow]}},
        "flow_runs": {"expected_start_time": {"after_": since.isoformat()}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    return list(_until(lambda: post_prefect(f"{api}/flow_runs/filter", body), f"{api} did not list the runs of {flow}"))


def wait_for_run(api: str, run_id: str) -> Run:
    """Wait until a run has ended, and return it.

    Raises:
        UserError: it did not end in time.
    """

    def ended() -> Run | None:
        run = get_prefect(f"{api}/flow_runs/{run_id}")
        return run if run and run["state_type"] in END_STATES else None

    return _until(ended, f"the flow run {run_id} did not end")


def _until(attempt: Callable[[], T | None], complaint: str) -> T:
    """Repeat `attempt` until it returns an answer, and return that.

    Raises:
        UserError: there is none in time.
    """
    end = time.monotonic() + RUN_SECONDS
    while time.monotonic() < end:
        answer = attempt()
        if answer is not None:
            return answer
        time.sleep(0.5)
    raise UserError(f"Within {RUN_SECONDS:.0f} s {complaint}: `ml status` shows what runs.")


HISTORY = 3  # the newest weeks, which the table for training has
MOVED = 1.0  # how far customers and their behaviour shift half-way
ATTEMPTS = 3
START_SECONDS = 300.0  # time limit for the automation to start the pipeline


def movement(moved: bool) -> float:
    """Return the shift of the customers in a week."""
    return MOVED if moved else 0.0


@dataclass(frozen=True)
class Week:
    """The results of one week.

    Attributes:
        number: The number of the week, from 1.
        moved: Whether its customers had shifted.
        version: The version that answered.
        window: The window of the monitor.
        wanted: Its training request, if any.
        training: The final Prefect state of the pipeline that the automation started; None if none ran.
        after: The version in production afterwards.
    """

    number: int
    moved: bool
    version: str
    window: Window
    wanted: TrainingRequest | None
    training: str | None
    after: str


class Play:
    """One simulation."""

    def __init__(self, sandbox: Sandbox, rows: int, say: Callable[[str], None]) -> None:
        """Prepare to simulate weeks of `rows` customers."""
        self.sandbox, self.rows, self.say = sandbox, rows, say
        self.table: list[pd.DataFrame] = []
        self.began = self.looked = datetime.now(UTC)

    def begin(self) -> None:
        """Train the first model on the history, and start the servers."""
        self.table = [draw_week(week, self.rows, HISTORY, 0.0) for week in range(1 - HISTORY, 1)]
        write_table(self.sandbox.data, self.table)
        self.say("training the first model")
        self.sandbox.ml("run")
        self.say("starting Prefect, a worker, MLflow and the service")
        self.sandbox.ml("up")
        self.began = self.looked = datetime.now(UTC)

    def trainings(self) -> int:
        """Return the number of trainings requested since the first week."""
        return len(runs_since(self._api(), "pipeline", self.began))

    def play_week(self, number: int, moved: bool) -> Week:
        """Simulate one week and return its results.

        Raises:
            UserError: a server does not restart, or a run does not end.
        """
        before = self._champion()
        frame = draw_week(number, self.rows, HISTORY, movement(moved))
        self.say(f"week {number}: {self.rows:,} customers ask")
        wait_for_version(self._address("service"), before.version)
        send_rows(self._address("service"), frame, number, self.sandbox.answers)
        self.table = [*self.table[1 - HISTORY :], frame]
        write_table(self.sandbox.data, self.table)
        self.say(f"week {number}: the monitor looks")
        self._watch(number)
        window = self._latest(before)
        wanted = self._asked(window)
        training = self._wait_for_training(number) if wanted else self._unasked()
        after = self._champion()
        self.looked = datetime.now(UTC)
        return Week(number, moved, before.version, window, wanted, training, after.version)

    def _watch(self, number: int) -> None:
        """Run the monitor; if it fails, as when its server stops, run it again, as would happen the next day.

        Raises:
            UserError: it fails three times.
        """
        project = self.sandbox.settings.project.name
        for attempt in range(ATTEMPTS):
            run = order_run(self._api(), "monitor", project, f"week-{number}-{attempt}")
            if run["state_type"] == "COMPLETED":
                return
        raise UserError(f"The monitor's run of week {number} ended as {run['state_name']}: see {self._api()}.")

    def _latest(self, champion: Champion) -> Window:
        found = [window for window in Windows(open_store(self.sandbox.settings)).of(champion) if window.evaluated]
        if not found:
            raise UserError("The monitor ran and left no window: see the flow run in the Prefect UI.")
        return found[-1]

    def _asked(self, window: Window) -> TrainingRequest | None:
        wanted = read_loop(open_store(self.sandbox.settings)).wanted
        return wanted if wanted and wanted.window == window.id else None

    def _wait_for_training(self, number: int) -> str:
        """Wait for the training that the automation starts, and return its final state."""
        self.say(f"week {number}: drift; the automation trains")
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if runs := runs_since(self._api(), "pipeline", self.looked):
                return str(wait_for_run(self._api(), runs[-1]["id"])["state_name"])
            time.sleep(0.5)
        return "never started"

    def _unasked(self) -> str | None:
        runs = runs_since(self._api(), "pipeline", self.looked)
        return str(runs[-1]["state_name"]) if runs else None

    def _champion(self) -> Champion:
        return require_champion(open_store(self.sandbox.settings))

    def _api(self) -> str:
        return f"{self._address('prefect')}/api"

    def _address(self, name: str) -> str:
        record = running(self.sandbox.settings, name)
        if record is None or record.address is None:
            raise UserError(f"{name} does not run in the simulation's project: see {self.sandbox.root / '.ml/logs'}.")
        return record.address


LEAST_SHARE = 1 / 3  # share of the old champion's loss; the new one still trains on some weeks before the shift


@dataclass(frozen=True)
class MetricRecovery:
    """The metric that decides, in three figures.

    Attributes:
        metric: Its name.
        before: Of the old champion, on the weeks before the shift.
        lost: Of the old champion, on the weeks that the new one answered, with the answers that it would have given.
        back: Of the new champion, on those weeks, with its answers.
        gain: By how much `back` is better than `lost`, with the interval of the paired bootstrap.
        share: The recovered share of the loss; 1 is all of it. None if the old champion lost nothing.
        rows: The number of rows in these weeks.
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
        """Whether the metric recovered: significantly better, and by at least a third of the loss."""
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
class WeekPredictions:
    """Rows of some weeks: the true targets, and the predictions of the service and of another model."""

    y: np.ndarray
    served: np.ndarray
    other: np.ndarray


def measure_champions(
    weeks: Sequence[Week], rows: int, answers: Path, old: Bundle, gates: Gates
) -> MetricRecovery | None:
    """Compare the old and the new champion of a simulation; None if no week came after the promotion.

    Args:
        weeks: All simulated weeks.
        rows: Customers in each week.
        answers: The file with the answers of the service.
        old: The champion at the beginning.
        gates: The metric that decides, and the settings of intervals.
    """
    early = [week for week in weeks if not week.moved and week.version == old.version]
    late = [week for week in weeks if week.moved and week.version != old.version]
    if not early or not late:
        return None
    model, served = Scorer.open(old.path), read_answers(answers)
    first, last = (_gather(model, chosen, rows, served) for chosen in (early, late))
    return measure_recovery(model.contract, first, last, gates)


def measure_recovery(
    contract: Contract, first: WeekPredictions, last: WeekPredictions, gates: Gates
) -> MetricRecovery | None:
    """Compare two periods of weeks; None if the metric is undefined on one of them."""
    problem, metric = contract.problem, choose_metric(contract.problem, gates.metric)
    early, late, other = (Decided.by(contract.decision, one) for one in (first.served, last.served, last.other))
    before, back = (score_metrics(problem, y, one).get(metric) for y, one in ((first.y, early), (last.y, late)))
    lost = score_metrics(problem, last.y, other).get(metric)
    options = {"confidence": gates.confidence, "resamples": gates.resamples}
    gain = paired_difference(problem, metric, last.y, late, other, **options)  # type: ignore[arg-type]
    if before is None or back is None or lost is None or gain is None:
        return None
    loss = metrics_of(problem)[metric].sign * (before - lost)
    return MetricRecovery(metric, before, lost, back, gain, gain.value / loss if loss > 0 else None, len(last.y))


def read_answers(path: Path) -> dict[int, np.ndarray]:
    """Return the service's predictions [N, K] or [N] of each week, in the order of the requests."""
    found: dict[int, list[list[float] | float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        found.setdefault(answer["week"], []).extend(_numbers(one) for one in answer["predictions"])
    return {week: np.array(numbers, dtype=np.float64) for week, numbers in found.items()}


def _gather(model: Scorer, weeks: Sequence[Week], rows: int, served: dict[int, np.ndarray]) -> WeekPredictions:
    frame = pd.concat([draw_week(w.number, rows, HISTORY, movement(w.moved)) for w in weeks], ignore_index=True)
    table, contract = pa.Table.from_pandas(frame), model.contract
    target = (contract.target_column,)
    labels = typed(clean(table, target)[0], target)[contract.target]
    features = check_rows(table, contract.features).valid()
    places = features.index.to_numpy()
    answers = np.concatenate([served[week.number] for week in weeks])
    return WeekPredictions(encode_target(contract, labels)[places], answers[places], model.predict(features))


def _numbers(prediction: dict[str, object]) -> list[float] | float:
    probabilities = prediction.get("probabilities")
    return list(probabilities.values()) if isinstance(probabilities, dict) else float(str(prediction["value"]))


def tabulate(weeks: Sequence[Week]) -> Table:
    """Return the weeks as a table."""
    metric = next((w.window.performance.metric for w in weeks if w.window.performance), "metric")
    table = Table(title="timeline")
    for heading in ("week", "customers", "answered by", "drifted columns", metric, "verdict", "what followed"):
        table.add_column(heading, overflow="fold")
    for week in weeks:
        share = week.window.drift_share
        table.add_row(
            str(week.number),
            "moved" if week.moved else "unchanged",
            f"version {week.version}",
            "–" if share is None else f"{share:.0%}",
            _figure(week),
            week.window.verdict,
            _consequence(week),
        )
    return table


def conclude(weeks: Sequence[Week], shifts: bool, trainings: int, recovery: MetricRecovery | None) -> tuple[bool, str]:
    """Return whether the retraining loop behaved as expected, and a summary.

    Args:
        weeks: The weeks and their results.
        shifts: Whether the customers shift.
        trainings: The number of trainings in all weeks.
        recovery: The metric after the promotion, if there was one.
    """
    if not shifts:
        return _conclude_rest(weeks, trainings)
    trained = [week for week in weeks if week.training is not None]
    swapped = [week for week in weeks if week.after != week.version]
    moved = [week for week in weeks if week.moved]
    seen = [week for week in moved if week.window.bad]
    if not moved or not seen:
        return False, "The customers moved and no window saw it."
    if early := [week for week in trained if not week.moved]:
        return False, _name_weeks("Retrained before anything moved", early)
    if not swapped:
        return False, f"Drift was seen in week {seen[0].number}, and no new version came into production."
    if recovery is None:
        return False, f"Version {swapped[0].after} was promoted, and no metric shows whether it is better."
    last = swapped[0]
    summary = (
        f"The customers moved in week {moved[0].number}; the monitor saw it in week {seen[0].number}; the automation "
        f"retrained in week {last.number}, and version {last.after} passed its gates and was promoted. "
    )
    word = "The metric recovered. " if recovery.complete else "The metric did not recover. "
    return recovery.complete, summary + word + recovery.sentence


def draw(weeks: Sequence[Week], path: Path) -> None:
    """Draw the timeline as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    top = figure.subplots()
    numbers = [week.number for week in weeks]
    top.bar(
        numbers, [week.window.drift_share or 0.0 for week in weeks], color="#bbbbbb", label="share of drifted columns"
    )
    top.set(xlabel="week", ylabel="share of drifted columns", ylim=(0, 1), xticks=numbers)
    measured = [(w.number, w.window.performance) for w in weeks if w.window.performance]
    side = top.twinx()
    if measured:
        values = [performance.figure.value for _, performance in measured]
        side.plot([n for n, _ in measured], values, color="#0072b2", marker="o", label=measured[0][1].metric)
        side.set_ylabel(measured[0][1].metric)
    for week in weeks:
        if week.after != week.version:
            top.axvline(week.number + 0.5, color="#d55e00", linestyle="--", label=f"version {week.after} promoted")
    handles = [*top.get_legend_handles_labels()[0], *side.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8)
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=110)
    path.write_bytes(made.getvalue())


def _figure(week: Week) -> str:
    performance = week.window.performance
    return "–" if performance is None else f"{performance.figure.value:.3f}"


def _consequence(week: Week) -> str:
    if week.training is None:
        return ""
    if week.after != week.version:
        return f"retrained: version {week.after} is in production"
    return f"retrained ({week.training}): version {week.version} stays"


def _conclude_rest(weeks: Sequence[Week], trainings: int) -> tuple[bool, str]:
    if trained := [week for week in weeks if week.training is not None or week.after != week.version]:
        return False, _name_weeks("Retrained without need", trained)
    if trainings:
        return False, "Retrained without need, after the last week."
    return True, "Nothing moved, and nothing was retrained."


def _name_weeks(what: str, weeks: Sequence[Week]) -> str:
    return f"{what}: week {', '.join(str(week.number) for week in weeks)}."
