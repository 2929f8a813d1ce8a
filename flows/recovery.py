"""Runs whose worker was killed: nobody goes on with them, so the next worker starts them again."""

from datetime import UTC, datetime
from typing import Any

from flows.alerting import alert
from flows.health import ask
from flows.settings import Settings

MOST_STARTS = 3  # a run that takes its worker along each time must not do so for ever


def restart_lost_runs(settings: Settings, prefect: str, worker: str) -> int:
    """Schedule anew what a worker of the project's pool was running when it ended; return how many runs.

    Safe, since a flow that is run again finds what it had made. Where another worker of the pool is alive, nothing
    is done: the runs may be its own.

    Args:
        settings: Those of the project.
        prefect: The address of Prefect's API.
        worker: The name of the worker that is about to start.
    """
    pool = settings.project.name
    workers = ask(f"{prefect}/work_pools/{pool}/workers/filter", {}) or []
    if any(known["name"] != worker and known["status"] == "ONLINE" for known in workers):
        return 0
    states = {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}
    lost = ask(f"{prefect}/flow_runs/filter", {"work_pools": {"name": {"any_": [pool]}}, "flow_runs": states}) or []
    for run in lost:
        _set_state(prefect, run["id"], {"type": "CRASHED", "message": "Its worker ended while it ran."}, force=False)
        if run["run_count"] < MOST_STARTS:
            details = {"scheduled_time": datetime.now(UTC).isoformat()}
            again = {"type": "SCHEDULED", "name": "AwaitingRetry", "state_details": details}
            _set_state(prefect, run["id"], again, force=True)
        else:
            what = f"The run {run['name']} ended {MOST_STARTS} times with its worker and is not started again."
            alert(
                settings, "run-failed", what, f"`.ml/logs/worker.log` may say why; the run is {run['id']} in Prefect."
            )
    return len(lost)


def _set_state(prefect: str, run: str, state: dict[str, Any], *, force: bool) -> None:
    ask(f"{prefect}/flow_runs/{run}/set_state", {"state": state, "force": force})
