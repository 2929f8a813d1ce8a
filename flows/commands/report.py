"""`ml report` and `ml environments`: Markdown for a terminal, a pull request or a workflow's summary."""

import os
from collections.abc import Iterable, Iterator

from flows.commands.console import open_project
from flows.commands.summary import show_interval
from flows.sections import Environment
from flows.settings import Settings
from flows.store.champion import read_champion
from flows.store.files import read_json
from flows.store.validations import Validations
from flows.store.verdicts import Record, Verdicts
from flows.verdict import show_figure

WHO = ("candidate", "champion", "dummy")


def print_report() -> None:
    """Print the metrics and gates of the last model."""
    print("\n".join(report_lines(open_project())))


def print_environments() -> None:
    """Print every environment, and what to set for those of the workflow that are missing."""
    print("\n".join(environment_lines(open_project())))


def report_lines(settings: Settings) -> Iterator[str]:
    """Yield the last model's report, as far as the last run came."""
    latest: dict[str, str] = read_json(settings.store_path / "latest.json") or {}
    record = Verdicts(settings.store_path).find(latest.get("train", ""))
    champion = read_champion(settings.store_path)
    yield f"## {settings.project.name}"
    yield ""
    yield f"Version {champion.version} serves since {champion.since}." if champion else "No model is in service yet."
    if validation := Validations(settings.store_path).find(latest.get("validate", "")):
        yield f"{validation.rows - validation.bad:,} rows were kept, {validation.bad:,} quarantined."
    if record is None:
        yield "No candidate was judged yet: `ml run` trains and judges one."
        return
    yield from _metric_lines(record)
    yield from _gate_lines(record)
    if record.refusal:
        yield from ("", f"**Refused**: {_cell(record.refusal)}")


def environment_lines(settings: Settings) -> Iterator[str]:
    """Yield a table of the environments, and what to set for those that deploy.yml knows and the settings do not."""
    yield from ("## Environments", "")
    if settings.environments:
        yield from _table(("environment", "version", "since", "service", "host"), _environment_rows(settings))
        yield ""
    for name in ("staging", "production"):
        if name not in settings.environments:
            prefix = f"ML_ENVIRONMENTS__{name.upper()}"
            yield (
                f"- No {name} is configured: write `[environments.{name}]` with `store` and `url` into config.toml; "
                f"for deploy.yml set the repository variables `{prefix}__STORE`, `{prefix}__URL` and, where "
                f"containers are to be moved, `{prefix}__HOST`."
            )
    if not os.environ.get("PREFECT_API_URL"):
        yield "- No Prefect server is configured: the repository variable `PREFECT_API_URL` lets flows be deployed."


def _environment_rows(settings: Settings) -> Iterator[tuple[str, ...]]:
    for name, environment in settings.environments.items():
        version, since = _serving(settings, environment)
        yield name, version, since, environment.url, environment.host or "–"


def _serving(settings: Settings, environment: Environment) -> tuple[str, str]:
    champion = read_champion(settings.root / environment.store)
    return (champion.version, champion.since) if champion else ("none yet", "–")


def _metric_lines(record: Record) -> Iterator[str]:
    scores = {who: record.verdict.scores[who] for who in WHO if who in record.verdict.scores}
    yield from ("", f"### Version {record.version} on {record.verdict.rows:,} held-out rows", "")
    yield from _table(
        ("metric", *scores),
        (
            (name, *(show_interval(f.value, f.low, f.high) if (f := scores[who].get(name)) else "–" for who in scores))
            for name in scores["candidate"]
        ),
    )


def _gate_lines(record: Record) -> Iterator[str]:
    yield from ("", "### Gates", "")
    yield from _table(
        ("gate", "figure", "limit", "", "what it says"),
        (
            (g.name, _figure(g.figure), _figure(g.limit), "✅ passed" if g.passed else "❌ refused", g.sentence)
            for g in record.verdict.gates
        ),
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(text: str) -> str:
    """Return a text that ends no cell, line or tag: it may hold names of columns and classes."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _figure(value: float | None) -> str:
    return "–" if value is None else show_figure(value)
