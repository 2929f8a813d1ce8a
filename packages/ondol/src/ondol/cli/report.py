"""`ml report` and `ml environments`: Markdown for a terminal, a pull request or a workflow's summary."""

import os
from collections.abc import Iterator

from ondol.cli.console import current_store, open_project, print_plain
from ondol.cli.smoke_url import GROUP
from ondol.config import Environment, Settings
from ondol.evaluation.report import report_lines
from ondol.markdown import plain, table
from ondol.orchestration.processes import running
from ondol.registry.champion import read_champion


def print_report() -> None:
    """Print the metrics and gates of the last model."""
    print_plain("\n".join(report_lines(open_project())))


def print_environments() -> None:
    """Print every environment, and what to set for those of the workflow that are missing."""
    print_plain("\n".join(environment_lines(open_project())))


def environment_lines(settings: Settings) -> Iterator[str]:
    """Yield a table of the environments, and what to set for those that deploy.yml knows and the settings do not."""
    yield from ("## Environments", "")
    if rows := [*_running_rows(settings), *_environment_rows(settings)]:
        yield from table(("environment", "version", "since", "service", "host"), rows, show=str)
        yield ""
    for name in ("staging", "production"):
        if name not in settings.environments:
            prefix = f"ML_ENVIRONMENTS__{name.upper()}"
            yield (
                f"- No {name} is configured: write `[environments.{name}]` with `store` and `url` into config.toml; "
                f"for deploy.yml set the repository variables `{prefix}__STORE`, `{prefix}__URL` and, where "
                f"containers are to be moved, `{prefix}__HOST`."
            )
    if settings.deploy.runtime == "sklearn":
        yield (
            f"- Models are served by scikit-learn itself: the service's image must be built with `GROUP={GROUP}`, in "
            f"deploy.yml by the repository variable `SERVICE_GROUP` = `{GROUP}`."
        )
    if not os.environ.get("PREFECT_API_URL"):
        yield "- No Prefect server is configured: the repository variable `PREFECT_API_URL` lets flows be deployed."


def _running_rows(settings: Settings) -> Iterator[tuple[str, ...]]:
    """Yield the line of the service that `ml up` runs here, if it does."""
    if record := running(settings, "service"):
        champion = read_champion(settings.store_path)
        version, since = (champion.version, champion.since) if champion else ("none yet", "–")
        yield "here, by `ml up`", plain(version), since, str(record.address), "–"


def _environment_rows(settings: Settings) -> Iterator[tuple[str, ...]]:
    for name, environment in settings.environments.items():
        version, since = _serving(settings, environment)
        yield plain(name), plain(version), since, environment.url, plain(environment.host or "–")


def _serving(settings: Settings, environment: Environment) -> tuple[str, str]:
    champion = read_champion(current_store(settings, environment.store))
    return (champion.version, champion.since) if champion else ("none yet", "–")
