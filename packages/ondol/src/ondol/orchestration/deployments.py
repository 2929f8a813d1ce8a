"""Deployments on the Prefect server: `prefect.yaml`, the work pool, and the commit that was deployed last."""

import re
import subprocess
import sys
from typing import Any

from ondol.config import Settings
from ondol.errors import UserError
from ondol.orchestration.server import call_prefect, in_pool, post_prefect

SECONDS = 20.0


def read_deployments(settings: Settings) -> list[dict[str, Any]]:
    """Return the content of `prefect.yaml`.

    Raises:
        UserError: there is no such file.
    """
    import yaml

    path = settings.root / "prefect.yaml"
    if not path.is_file():
        raise UserError(f"{path} is missing: `copier update` brings it back, or write one for `prefect deploy --all`.")
    return list(yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"])


def deployment_name(settings: Settings, flow: str) -> str:
    """Return the full name, FLOW/NAME, of a flow's deployment."""
    names = {flow_of(one): one["name"] for one in read_deployments(settings)}
    return f"{flow}/{names.get(flow, f'{settings.project.name}-{flow}')}"


def remove_renamed(settings: Settings, prefect: str) -> int:
    """Remove deployments with names from before 0.3.1 if `prefect.yaml` has other names.

    All nine deployments had the project's name. If they stayed on the server, their schedules would start every flow
    twice.

    Args:
        settings: Those of the project.
        prefect: The address of Prefect's API.

    Returns:
        The number of removed deployments.
    """
    names = {flow_of(one): one["name"] for one in read_deployments(settings)}
    removed = 0
    for one in post_prefect(f"{prefect}/deployments/filter", in_pool(settings.project.name), SECONDS) or []:
        if one["name"] == settings.project.name and names.get(flow_of(one), one["name"]) != one["name"]:
            answer = call_prefect("DELETE", f"{prefect}/deployments/{one['id']}", SECONDS)
            removed += answer is not None and answer.is_success
    return removed


def flow_of(deployment: dict[str, Any]) -> str:
    """Return the name of a deployment's flow, from its entrypoint."""
    return str(deployment.get("entrypoint") or "").rpartition(":")[2]


def make_work_pool(name: str) -> bool:
    """Create a work pool on the Prefect server with Prefect's command, which adds the defaults of its type.

    Returns:
        False if the pool already exists.

    Raises:
        UserError: Prefect did not create it.
    """
    if _has_work_pool(name):
        return False
    command = [sys.executable, "-m", "prefect", "--no-prompt", "work-pool", "create", name, "--type", "process"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode and not _has_work_pool(name):  # another process may have been faster
        output = (done.stdout + done.stderr).strip().splitlines() or ["it printed nothing"]
        raise UserError(f"Prefect made no work pool {name}: {output[-1].strip()}")
    return True


def _has_work_pool(name: str) -> bool:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            return False
    return True


def deployed_commit(settings: Settings) -> str | None:
    """Return the commit of the flows deployed last, as recorded on the Prefect server, if any."""
    from prefect.variables import Variable

    noted = Variable.get(_variable(settings))
    return None if noted is None else str(noted)


def note_deployed(settings: Settings, commit: str) -> None:
    """Record on the Prefect server the commit of the deployed flows."""
    from prefect.variables import Variable

    Variable.set(_variable(settings), commit, overwrite=True)


def _variable(settings: Settings) -> str:
    return "ml_deployed_" + re.sub("[^a-z0-9]+", "_", settings.project.name)
