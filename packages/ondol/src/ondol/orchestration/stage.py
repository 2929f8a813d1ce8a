"""`@stage` makes a function a flow, `task` a step of one; names, artifacts and deployments of runs."""

import base64
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, Task, flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import RunType
from prefect.context import FlowRunContext, SyncClientContext
from prefect.settings import temporary_settings
from prefect.transactions import Transaction

from ondol.config import Settings
from ondol.errors import UserError
from ondol.markdown import plain
from ondol.orchestration.alerts import alert_failed_run
from ondol.orchestration.server import ask, call_prefect
from ondol.storage.locks import exclusive

P = ParamSpec("P")
R = TypeVar("R")


def stage(*, timeout_hours: float, alone: bool = True) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a function a Prefect flow of its own name that raises an alert where a run fails or crashes.

    Args:
        timeout_hours: A run that takes longer fails.
        alone: Hold the project's lock during a run, so that no other such run changes the store or the champion.
    """

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        return flow(
            name=function.__name__,
            flow_run_name=function.__name__,
            timeout_seconds=timeout_hours * 3600,
            on_failure=[alert_failed_run],
            on_crashed=[alert_failed_run],
        )(exclusive(function) if alone else function)

    return decorate


def task(function: Callable[P, R], *, undo: Callable[[R], None] | None = None) -> Callable[P, R]:
    """Make a function a Prefect task of its own name; arguments are not hashed, and results stay in the process.

    Args:
        function: A step of a flow.
        undo: Takes the step back, by its result, where a later step of the same Prefect transaction fails.
    """
    if undo is None:
        return Step(function, name=function.__name__, cache_policy=NO_CACHE)
    results: list[R] = []

    @wraps(function)
    def keep_result(*args: P.args, **kwargs: P.kwargs) -> R:
        results.append(function(*args, **kwargs))
        return results[-1]

    def roll_back(_: Transaction) -> None:
        while results:
            undo(results.pop())

    return Step(keep_result, name=function.__name__, cache_policy=NO_CACHE, on_rollback=[roll_back])


class Step(Task[P, R]):
    """A task that records no flow run among the inputs of its runs.

    An argument that a subflow returned would be recorded as one. Prefect's UI (3.9.1) cannot read it ("Invalid
    TaskInputResponse") and then lists none of the flow run's tasks.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:  # type: ignore[override]
        """Run the task."""
        context = FlowRunContext.get()
        results = context.run_results if context else {}
        hidden = {key: entry for key, entry in results.items() if entry[1] is RunType.FLOW_RUN}
        for key in hidden:
            del results[key]
        try:
            return super().__call__(*args, **kwargs)  # type: ignore[return-value]
        finally:
            results.update(hidden)


def run_watched(stage: Flow[..., R], parameters: Mapping[str, Any]) -> R:
    """Run a flow in this process, on a terminal that somebody watches."""
    # Prefect waits up to a second for each flow's heartbeat thread, six times in a pipeline; nothing
    # watches the heartbeats of such a run.
    with temporary_settings({"flows.heartbeat_frequency": None}):
        return stage(**parameters)


TABLE_ROWS = 100  # the UI is for looking; the whole stands in the store


def publish_markdown(key: str, text: str) -> None:
    """Show Markdown under `key` in the run that is going on; its first line can be read in the list of artifacts."""
    first, _, rest = text.partition("\n")
    create_markdown_artifact(rest.strip(), key=_key(key), description=first)


def publish_table(key: str, rows: list[dict[str, Any]]) -> None:
    """Show the first rows of a table under `key`; Prefect's UI reads Markdown in the cells, so texts are escaped."""
    shown = [
        {name: plain(value) if isinstance(value, str) else value for name, value in row.items()}
        for row in rows[:TABLE_ROWS]
    ]
    create_table_artifact(shown, key=_key(key), description=f"{len(rows):,} rows")


def publish_image(key: str, png: bytes, description: str) -> None:
    """Show a picture under `key`; it travels within the artifact, so no file server is needed.

    As Markdown: of an artifact for images Prefect also shows the address, which here would be the whole picture.
    """
    address = "data:image/png;base64," + base64.b64encode(png).decode()
    create_markdown_artifact(f"![{description}]({address})", key=_key(key), description=description)


def publish_link(key: str, address: str, text: str) -> None:
    """Show a link under `key`."""
    create_link_artifact(link=address, link_text=text, key=_key(key), description=text)


def _key(words: str) -> str:
    """Return `words` in the characters that Prefect allows in a key."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


SHORT = 12


def name_run(what: str, *, version: str | None = None, data: str | None = None) -> None:
    """Name the run that is going on by its version and the digest of its data; do nothing outside of one."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    parts = [f"version {version}"] if version else []
    parts += [f"data {data[:SHORT]}"] if data else []
    with SyncClientContext.get_or_create() as made:
        made.client.update_flow_run(context.flow_run.id, name=f"{what} {', '.join(parts)}")


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


def make_work_pool(name: str) -> bool:
    """Make a work pool on the Prefect server, by Prefect's command, which fills in what runs of its type need.

    Returns:
        False if the pool was there.

    Raises:
        UserError: Prefect did not make it.
    """
    if _has_work_pool(name):
        return False
    command = [sys.executable, "-m", "prefect", "--no-prompt", "work-pool", "create", name, "--type", "process"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode and not _has_work_pool(name):  # another may have been faster
        said = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
        raise UserError(f"Prefect made no work pool {name}: {said[-1].strip()}")
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
    """Return the commit that the Prefect server has as the one whose flows were deployed last, if any."""
    from prefect.variables import Variable

    noted = Variable.get(_variable(settings))
    return None if noted is None else str(noted)


def note_deployed(settings: Settings, commit: str) -> None:
    """Save on the Prefect server the commit whose flows are deployed."""
    from prefect.variables import Variable

    Variable.set(_variable(settings), commit, overwrite=True)


def _variable(settings: Settings) -> str:
    return "ml_deployed_" + re.sub("[^a-z0-9]+", "_", settings.project.name)
