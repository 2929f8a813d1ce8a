"""Metrics and gates of a version as Markdown: for Prefect, MLflow, a terminal or a pull request."""

from collections.abc import Iterator

from ondol.config import Settings
from ondol.evaluation.verdicts import Gate, StoredVerdict, Verdicts, show_figure, show_interval
from ondol.orchestration.artifacts import plain, table
from ondol.registry.champion import read_champion
from ondol.validation.results import Validations, read_latest

WHO = ("candidate", "champion", "dummy")
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


def verdict_markdown(record: StoredVerdict) -> str:
    """Return the verdict on a version, its metrics, and the decision of every gate."""
    word = "refused" if record.refusal else "passed"
    first = f"**Version {record.version} {word}** on {record.verdict.rows:,} held-out rows."
    gates = [f"- **{gate.name}** {_decision(gate)}: {plain(gate.sentence)}" for gate in record.verdict.gates]
    notes = [f"- {plain(note)}" for note in record.notes]
    return "\n".join([first, "", *_metrics(record), "", *gates, *notes, "", plain(record.refusal)]).strip()


def gate_rows(record: StoredVerdict) -> list[dict[str, str]]:
    """Return the decision of every gate, by heading."""
    return [
        {
            "gate": gate.name,
            "figure": _figure(gate.figure),
            "limit": _figure(gate.limit),
            "ruling": _decision(gate),
            "explanation": gate.sentence,
        }
        for gate in record.verdict.gates
    ]


def _metric_lines(record: StoredVerdict) -> Iterator[str]:
    yield from ("", f"### Version {record.version} on {record.verdict.rows:,} held-out rows", "")
    yield from _metrics(record)


def _metrics(record: StoredVerdict) -> Iterator[str]:
    scores = {who: record.verdict.scores[who] for who in WHO if who in record.verdict.scores}
    yield from table(
        ("metric", *scores),
        (
            (name, *(show_interval(f.value, f.low, f.high) if (f := scores[who].get(name)) else "–" for who in scores))
            for name in scores["candidate"]
        ),
    )


def _gate_lines(record: StoredVerdict) -> Iterator[str]:
    yield from ("", "### Gates", "")
    rows = gate_rows(record)
    yield from table(rows[0], ((MARKED.get(cell, cell) for cell in row.values()) for row in rows))


def _decision(gate: Gate) -> str:
    return "passed" if gate.passed else "refused"


def _figure(value: float | None) -> str:
    return "–" if value is None else show_figure(value)
