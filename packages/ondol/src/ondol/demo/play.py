"""Plays the weeks: requests, labels, the monitor, and whatever training the automation starts by itself."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd

from ondol.demo.orders import order_run, runs_since, wait_for_run
from ondol.demo.sandbox import Sandbox
from ondol.demo.traffic import draw_week, send_rows, wait_for_version, write_table
from ondol.errors import UserError
from ondol.monitoring.loop import Wanted, read_loop
from ondol.monitoring.windows import Window, Windows
from ondol.orchestration.processes import running
from ondol.registry.champion import Champion, require_champion

HISTORY = 3  # weeks in the table that a training reads: the newest
MOVED = 1.0  # how far customers and their behaviour move half-way
ATTEMPTS = 3
START_SECONDS = 300.0  # until the automation has started the pipeline


def movement(moved: bool) -> float:
    """Return how far the customers of a week have moved."""
    return MOVED if moved else 0.0


@dataclass(frozen=True)
class Week:
    """What one week brought.

    Attributes:
        number: From 1.
        moved: Whether its customers had moved.
        version: Which version answered.
        window: What the monitor found.
        wanted: What it asked for, if it did.
        training: How the pipeline that the automation started ended: a Prefect state, or None where none ran.
        after: Which version serves afterwards.
    """

    number: int
    moved: bool
    version: str
    window: Window
    wanted: Wanted | None
    training: str | None
    after: str


class Play:
    """One simulation."""

    def __init__(self, sandbox: Sandbox, rows: int, say: Callable[[str], None]) -> None:
        """Prepare to play weeks of `rows` customers."""
        self.sandbox, self.rows, self.say = sandbox, rows, say
        self.table: list[pd.DataFrame] = []
        self.began = self.looked = datetime.now(UTC)

    def begin(self) -> None:
        """Train the first model on the weeks before the first, and bring the servers up."""
        self.table = [draw_week(week, self.rows, HISTORY, 0.0) for week in range(1 - HISTORY, 1)]
        write_table(self.sandbox.data, self.table)
        self.say("training the first model")
        self.sandbox.ml("run")
        self.say("starting Prefect, a worker, MLflow and the service")
        self.sandbox.ml("up")
        self.began = self.looked = datetime.now(UTC)

    def trainings(self) -> int:
        """Return how many trainings somebody or something has ordered since the first week."""
        return len(runs_since(self._api(), "pipeline", self.began))

    def play_week(self, number: int, moved: bool) -> Week:
        """Play one week and return what it brought.

        Raises:
            UserError: a server does not come back, or a run does not end.
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
        """Run the monitor; one that failed, as its server went away, runs again, as it would the next day.

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
        found = [window for window in Windows(self.sandbox.settings.store_path).of(champion) if window.judged]
        if not found:
            raise UserError("The monitor ran and left no window: see the flow run in the Prefect UI.")
        return found[-1]

    def _asked(self, window: Window) -> Wanted | None:
        wanted = read_loop(self.sandbox.settings.store_path).wanted
        return wanted if wanted and wanted.window == window.id else None

    def _wait_for_training(self, number: int) -> str:
        """Return how the training that the automation starts ends; nobody but the automation starts it."""
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
        return require_champion(self.sandbox.settings.store_path)

    def _api(self) -> str:
        return f"{self._address('prefect')}/api"

    def _address(self, name: str) -> str:
        record = running(self.sandbox.settings, name)
        if record is None or record.address is None:
            raise UserError(f"{name} does not run in the simulation's project: see {self.sandbox.root / '.ml/logs'}.")
        return record.address
