"""`ml reproduce` and `ml card`: train a version again from its record, and write its model card from it."""

import math
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ondol.cli.console import Steps, console, print_plain, start_command
from ondol.errors import Refused
from ondol.evaluation.card import log_card, write_card
from ondol.evaluation.reproduction import (
    PREDICTIONS,
    TOLERANCE,
    Figure,
    FigureComparison,
    Reproduction,
    compare_all,
    figures_of,
    other_packages,
    retrain_version,
)
from ondol.monitoring.report import describe_windows
from ondol.monitoring.windows import Windows
from ondol.project import Project
from ondol.registry.champion import require_champion, version_of
from ondol.storage.files import write_bytes

SHOWN_PACKAGES = 8


def reproduce_version(version: str, anyway: bool, fresh: bool) -> None:
    """Train a version again, print every figure beside the recorded one, and compare them.

    Args:
        version: A registered version.
        anyway: Continue even if its files were never committed.
        fresh: Install its packages in a separate environment.

    Raises:
        UserError: its data, code or packages are missing.
        Refused: a figure differs.
    """
    settings = start_command()
    with Steps(console) as steps:
        reproduction = retrain_version(settings, version, anyway, fresh, steps)
    outcome = reproduction.outcome
    lines = compare_all(reproduction.recorded.figures, figures_of(outcome.train_rows, outcome.verdict), outcome.apart)
    _print_lines(version, lines)
    differences = _differences(reproduction)
    for note in [reproduction.origin.note, *_notes(reproduction), *differences]:
        if note:
            console.print(escape(note), soft_wrap=True)
    if other := [line for line in lines if not line.equal]:
        raise Refused(_tell(version, other, len(lines), bool(differences) or not reproduction.origin.exact))
    console.print(f"[bold green]Version {version} was reproduced:[/] every figure is equal within {TOLERANCE:g}.")


def _print_lines(version: str, lines: list[FigureComparison]) -> None:
    title = f"version {version}: each metric with the ends of its interval"
    table = Table("figure", "recorded", "reproduced", "deviation", title=title, title_justify="left")
    for line in lines:
        shown = [_show(line.recorded), _show(line.reproduced)]
        if line.name == PREDICTIONS:
            shown = ["of the recorded model", "largest deviation"]
        table.add_row(
            line.name, *shown, f"[{'green' if line.equal else 'bold red'}]{_show_deviation(line.deviation)}[/]"
        )
    console.print(table)


def _notes(reproduction: Reproduction) -> list[str]:
    """Return notes for the reader of the figures."""
    recorded = reproduction.recorded
    if recorded.verdict is None:
        return [f"Version {recorded.version} was never evaluated (`ml evaluate`): it has no metrics to compare."]
    if recorded.basis is None:
        return [
            "Its metrics were recorded without their evaluation rows by an older `ml evaluate`: they are not compared."
        ]
    return []


def _differences(reproduction: Reproduction) -> list[str]:
    """Return sentences on how the environment differs from the recorded one."""
    recorded, outcome = reproduction.recorded.origin, reproduction.outcome
    found = []
    if recorded.python and recorded.python != outcome.python:
        found.append(f"Reproduced with Python {outcome.python}, recorded with {recorded.python}.")
    if recorded.machine and recorded.machine != outcome.machine:
        found.append(f"Reproduced on another machine: {outcome.machine}, recorded on {recorded.machine}.")
    if others := other_packages(recorded.packages, outcome.packages):
        more = f" and {len(others) - SHOWN_PACKAGES} more" if len(others) > SHOWN_PACKAGES else ""
        found.append(f"Packages differ from the record: {', '.join(others[:SHOWN_PACKAGES])}{more}.")
    return found


def _tell(version: str, other: list[FigureComparison], figures: int, explained: bool) -> str:
    """Return a sentence with the largest deviation and its likely cause."""
    worst = max(other, key=lambda line: line.deviation)
    why = (
        "the differences above explain it"
        if explained
        else "model/ draws random numbers without the seed, reads files that are not in git, or sums in a varying order"
    )
    return (
        f"Version {version} was not reproduced: {len(other)} of {figures} figures differ, most of all {worst.name} by "
        f"{_show_deviation(worst.deviation)}; {why}."
    )


def _show(figure: Figure | None) -> str:
    """Return a figure with twelve significant digits."""
    return "–" if figure is None or figure[0] is None else f"{figure[0]:.12g}"


def _show_deviation(deviation: float) -> str:
    return "not comparable" if math.isinf(deviation) else f"{deviation:.2g}"


def write_current_card(version: str | None, folder: Path | None) -> None:
    """Write the card of a version into a folder and to its MLflow run, and print where it is.

    Args:
        version: A registered version; None for the one in production.
        folder: Where to write; None for `.ml/cards/VERSION`.

    Raises:
        UserError: there is no such version, or a record of it is missing.
    """
    project = Project(start_command())
    version = version or require_champion(project.store).version
    champion = project.champion
    bundles = {change.to for change in (champion.history if champion else ()) if version_of(change.to) == version}
    since = describe_windows(Windows(project.store).of_bundles(bundles), bool(bundles))
    files = write_card(project, version, since, private=True)
    folder = folder or project.settings.home / "cards" / version
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(folder / name, content)
        print_plain(project.settings.show(folder / name))
    print_plain(f"In MLflow: {log_card(project, version, files)}")
