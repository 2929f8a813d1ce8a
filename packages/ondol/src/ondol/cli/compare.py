"""`ml compare`: versions side by side, as a table and a picture."""

from rich.markup import escape
from rich.table import Table

from ondol.cli.console import console, start_command
from ondol.evaluation.gates import show_interval
from ondol.evaluation.metrics import Interval
from ondol.evaluation.versions import VersionComparison, compare_versions
from ondol.orchestration.processes import mlflow_ui
from ondol.project import Project
from ondol.storage.files import write_bytes

FOLDER = "compare"


def print_comparison(versions: list[str]) -> None:
    """Print versions side by side; write the picture, and record both in MLflow.

    Args:
        versions: At least two registered versions; differences are to the first one.

    Raises:
        UserError: they cannot be compared.
    """
    settings = start_command()
    project = Project(settings)
    with console.status("compare: scoring the versions on the same rows"):
        found, picture = compare_versions(project, versions)
        name = f"compare-{'-'.join(found.versions)}"
        path = settings.home / FOLDER / f"{name}.png"
        write_bytes(path, picture)
        registry = project.registry
        with registry.run(name, {"versions": ", ".join(found.versions)}) as run_id:
            registry.log_results(run_id, {"rows": found.rows}, {"comparison.json": found.describe()}, {name: picture})
    console.print(make_table(found))
    console.print(f"Picture: {escape(settings.show(path))}", soft_wrap=True)
    console.print(f"MLflow: {mlflow_ui(settings)}{registry.run_path(run_id)}", soft_wrap=True)


def make_table(found: VersionComparison) -> Table:
    """Return the comparison with a column for each version."""
    title = f"on the same {found.rows:,} rows, which none of them was trained on"
    table = Table("", *(f"version {version}" for version in found.versions), title=title, title_justify="left")
    names = dict.fromkeys([found.metric, *(name for scores in found.scores for name in scores)])
    for name in names:
        table.add_row(escape(name), *(show(scores.get(name)) for scores in found.scores))
        if name == found.metric:
            table.add_row("  better than the first by", *map(show, found.gains), end_section=True)
    table.add_section()
    for facts in (found.facts, found.params):
        for name in facts[0]:
            table.add_row(escape(name), *(escape(one[name]) for one in facts))
        table.add_section()
    return table


def show(figure: Interval | None) -> str:
    """Return a figure with its interval."""
    return "–" if figure is None else escape(show_interval(figure.value, figure.low, figure.high))
