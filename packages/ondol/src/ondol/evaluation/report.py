"""The last model's report as Markdown: for a terminal or a pull request."""

from collections.abc import Iterator

from ondol.config import Settings
from ondol.evaluation.verdicts import StoredVerdict, Verdicts, gate_rows, metric_lines
from ondol.orchestration.artifacts import plain, table
from ondol.registry.champion import read_champion
from ondol.validation.results import Validations, read_latest

MARKED = {"passed": "✅ passed", "refused": "❌ refused"}  # not where a browser may have no font with them


def report_lines(settings: Settings) -> Iterator[str]:
    """Yield the last model's report, as far as the last run came."""
    latest = read_latest(settings.store_path)
    record = Verdicts(settings.store_path).find(latest.get("train", ""))
    champion = read_champion(settings.store_path)
    yield f"## {plain(settings.project.name)}"
    yield ""
    yield (
        f"Version {champion.version} is in production since {champion.since}."
        if champion
        else "No model is in production yet."
    )
    if validation := Validations(settings.store_path).find(latest.get("validate", "")):
        bare = f", {validation.unlabelled:,} without a label left out" if validation.unlabelled else ""
        yield f"{validation.kept:,} rows were kept, {validation.bad:,} quarantined{bare}."
    if record is None:
        yield "No candidate was evaluated yet: `ml run` trains and evaluates one."
        return
    yield from _metric_lines(record)
    yield from _gate_lines(record)
    if record.refusal:
        yield from ("", f"**Refused**: {plain(record.refusal)}")


def _metric_lines(record: StoredVerdict) -> Iterator[str]:
    yield from ("", f"### Version {record.version} on {record.verdict.rows:,} held-out rows", "")
    yield from metric_lines(record)


def _gate_lines(record: StoredVerdict) -> Iterator[str]:
    yield from ("", "### Gates", "")
    rows = gate_rows(record)
    yield from table(rows[0], ((MARKED.get(cell, cell) for cell in row.values()) for row in rows))
