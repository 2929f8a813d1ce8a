"""The deployments that `prefect.yaml` declares."""

from typing import Any

from flows.errors import UserError
from flows.health import ask, call_prefect
from flows.settings import Settings

SECONDS = 20.0


def read_deployments(settings: Settings) -> list[dict[str, Any]]:
    """Return what `prefect.yaml` declares.

    Raises:
        UserError: there is no such file.
    """
    import yaml

    path = settings.root / "prefect.yaml"
    if not path.is_file():
        raise UserError(f"{path} is missing: `copier update` brings it back, or write one for `prefect deploy --all`.")
    return list(yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"])


def deployment_name(settings: Settings, flow: str) -> str:
    """Return the whole name, FLOW/NAME, of a flow's deployment."""
    names = {flow_of(one): one["name"] for one in read_deployments(settings)}
    return f"{flow}/{names.get(flow, f'{settings.project.name}-{flow}')}"


def remove_renamed(settings: Settings, prefect: str) -> int:
    """Remove the deployments with the names that they had before 0.3.1, where `prefect.yaml` gives them others.

    All nine had the project's name. Left on the server, their schedules would start every flow twice.

    Args:
        settings: Those of the project.
        prefect: The address of Prefect's API.

    Returns:
        How many were removed.
    """
    names = {flow_of(one): one["name"] for one in read_deployments(settings)}
    pool = {"work_pools": {"name": {"any_": [settings.project.name]}}}
    removed = 0
    for one in ask(f"{prefect}/deployments/filter", pool, SECONDS) or []:
        if one["name"] == settings.project.name and names.get(flow_of(one), one["name"]) != one["name"]:
            answer = call_prefect("DELETE", f"{prefect}/deployments/{one['id']}", SECONDS)
            removed += answer is not None and answer.is_success
    return removed


def flow_of(deployment: dict[str, Any]) -> str:
    """Return the name of a deployment's flow, by its entrypoint."""
    return str(deployment.get("entrypoint") or "").rpartition(":")[2]
