"""Runs of deployments, ordered from the Prefect server and waited for, through the server's own downtime."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from ondol.errors import UserError
from ondol.orchestration.health import ask, look_up

END_STATES = ("COMPLETED", "FAILED", "CANCELLED")  # what crashed is started again by the worker
RUN_SECONDS = 600.0
Run = dict[str, Any]
T = TypeVar("T")


def order_run(api: str, flow: str, project: str, key: str) -> Run:
    """Run the deployment of a project's flow once for `key`, and return the run when it has ended.

    Raises:
        UserError: it did not end in time.
    """
    wanted = {"flows": {"name": {"any_": [flow]}}, "work_pools": {"name": {"any_": [project]}}}
    search = f"{api}/deployments/filter"
    found = _until(lambda: ask(search, wanted) or None, f"no deployment of {flow} of {project} was found at {api}")
    create = f"{api}/deployments/{found[0]['id']}/create_flow_run"
    body = {"idempotency_key": key, "state": {"type": "SCHEDULED"}}
    run = _until(lambda: ask(create, body), f"a run of {flow}/{project} could not be ordered")
    return wait_for_run(api, run["id"])


def runs_since(api: str, flow: str, since: datetime) -> list[Run]:
    """Return the runs of a flow that were created after `since`, oldest first.

    Raises:
        UserError: nobody answers in time: that there are none cannot be said then.
    """
    body = {
        "flows": {"name": {"any_": [flow]}},
        "flow_runs": {"expected_start_time": {"after_": since.isoformat()}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    return list(_until(lambda: ask(f"{api}/flow_runs/filter", body), f"{api} did not tell of runs of {flow}"))


def wait_for_run(api: str, run_id: str) -> Run:
    """Return a run when it has ended.

    Raises:
        UserError: it did not in time.
    """

    def ended() -> Run | None:
        run = look_up(f"{api}/flow_runs/{run_id}")
        return run if run and run["state_type"] in END_STATES else None

    return _until(ended, f"the flow run {run_id} did not end")


def _until(attempt: Callable[[], T | None], complaint: str) -> T:
    """Return the first answer that `attempt` gives.

    Raises:
        UserError: it gives none in time.
    """
    end = time.monotonic() + RUN_SECONDS
    while time.monotonic() < end:
        answer = attempt()
        if answer is not None:
            return answer
        time.sleep(0.5)
    raise UserError(f"Within {RUN_SECONDS:.0f} s {complaint}: `ml status` tells what runs.")
