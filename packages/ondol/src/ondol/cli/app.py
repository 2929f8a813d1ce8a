"""The `ml` command: one entry point for everything a project does."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from ondol.cli import contract, data, delivery, loop, operate, quarantine, reproduce
from ondol.errors import UserError
from ondol.redaction import may_be_address
from ondol.storage.permissions import keep_private

HELP = """Train, check, deploy and serve this project's model.

A first session: `ml run` trains on the sample and deploys, `ml serve` answers requests. Then
`ml init data.csv --target COLUMN` puts your own data in the sample's place, and `ml run` again.
"""
app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # in rich's own markup, "[data] source" in a help text is a style and not shown
)
app.add_typer(operate.app)  # up, down, worker, follow
app.add_typer(loop.app)  # monitor, loop
app.add_typer(delivery.app)  # release, smoke, report, environments
app.add_typer(data.app, name="data")  # log, diff, gc
app.add_typer(contract.app)  # contract
app.add_typer(reproduce.app)  # reproduce
app.add_typer(quarantine.app, name="quarantine")

Why = Annotated[str, typer.Option("--why", help="The reason, kept in the history.")]
Breaking = Annotated[bool, typer.Option("--breaking", help="Deploy even if callers must change their requests.")]
Version = Annotated[str | None, typer.Argument(help="A model version; default: the latest.", show_default=False)]


@app.command()
def init(
    source: Annotated[str, typer.Argument(help="The rows: a file, a folder or an address; see docs/data.md.")],
    target: Annotated[str, typer.Option(help="The column to predict.")],
    problem: Annotated[str | None, typer.Option(help="binary, multiclass or regression; default: inferred.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite model/schema.py.")] = False,
) -> None:
    """Name your data: write model/schema.py and the data section of config.toml from it."""
    from ondol.cli.console import note_leftovers
    from ondol.cli.init import print_report
    from ondol.config import find_root
    from ondol.setup.initialize import initialize

    root = find_root()
    note_leftovers(root)
    report = initialize(root, _from_root(source, root), target, problem, force)
    print_report(report)
    if report.status == "differs":
        raise typer.Exit(1)


@app.command()
def run(breaking: Breaking = False) -> None:
    """Run the whole pipeline: ingest, validate, train, evaluate, deploy."""
    from ondol.cli.pipeline import run_pipeline

    run_pipeline(breaking)


@app.command()
def ingest(
    full: Annotated[bool, typer.Option("--full", help="Read all of it, not only what is new.")] = False,
) -> None:
    """Copy the source into a snapshot, or append what is new in it."""
    from ondol.cli.pipeline import run_stage

    run_stage("ingest", full=full)


@app.command()
def validate(
    snapshot: Annotated[str | None, typer.Argument(help="A snapshot's digest; default: the latest.")] = None,
) -> None:
    """Hold a snapshot against model/schema.py; bad rows go to quarantine."""
    from ondol.cli.pipeline import run_stage

    run_stage("validate", snapshot=snapshot)


@app.command()
def train(
    validation: Annotated[str | None, typer.Argument(help="A validation's id; default: the latest.")] = None,
) -> None:
    """Fit a candidate and register it as challenger."""
    from ondol.cli.pipeline import run_stage

    run_stage("train", validation=validation)


@app.command()
def evaluate(version: Version = None) -> None:
    """Score a candidate and the champion on the same holdout; the gates decide."""
    from ondol.cli.pipeline import run_stage

    run_stage("evaluate", version=version)


@app.command()
def deploy(version: Version = None, breaking: Breaking = False, why: Why = "passed its gates") -> None:
    """Compile a version that passed, prove it, try it, and put it into production."""
    from ondol.cli.pipeline import run_stage

    run_stage("deploy", version=version, breaking=breaking, why=why)


@app.command()
def serve(
    port: Annotated[int | None, typer.Option(help="The port; default: service.port.", show_default=False)] = None,
) -> None:
    """Serve the champion over HTTP until interrupted."""
    from ondol.cli.deployment import serve_champion

    serve_champion(port)


@app.command()
def predict(
    source: Annotated[str, typer.Argument(metavar="IN", help="The rows: any source that ingest reads.")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="A .csv, .parquet or .jsonl file.")],
    version: Annotated[str | None, typer.Option(help="A version that served; default: the one in production.")] = None,
) -> None:
    """Predict the rows of a source by the champion, in batch."""
    from ondol.cli.pipeline import run_predict

    run_predict(_absolute(source), destination.absolute(), version)


@app.command()
def status() -> None:
    """Show which version serves, since when and from what; what is pending; the history."""
    from ondol.cli.status import print_status

    print_status()


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="A version that was deployed before.")],
    why: Why,
) -> None:
    """Put a version that was deployed before back into production, by hand."""
    from ondol.cli.deployment import promote_version

    promote_version(version, why)


@app.command()
def rollback(why: Why) -> None:
    """Put the previous version back into production; needs neither MLflow nor Prefect."""
    from ondol.cli.deployment import roll_back

    roll_back(why)


@app.command()
def doctor() -> None:
    """Check the machine, the settings and the connections, and say what to correct."""
    from ondol.cli.doctor import examine

    examine()


@app.command()
def tidy(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be deleted.")] = False,
) -> None:
    """Delete files of earlier releases that `copier update` left, but for those that you edited: show the edits."""
    from ondol.cli.tidy import tidy_project

    tidy_project(dry_run)


def _absolute(source: str) -> str:
    """Return a path on the command line as seen from here; another kind of source as it is."""
    return source if may_be_address(source) else str(Path(source).expanduser().absolute())


def _from_root(source: str, root: Path) -> str:
    """Return a path on the command line as `config.toml` holds it: relative to the project where it lies inside."""
    if may_be_address(source):
        return source
    path = Path(_absolute(source))
    path = path.parent.resolve() / path.name  # as `root` is; the file itself may be a link to elsewhere
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def main() -> None:
    """Run the command line; a user's mistake is one sentence, anything else is kept in a log."""
    from ondol.cli.console import leave, report_error, report_unexpected

    keep_private()
    # A shell without job control, such as a script's, starts `ml … &` with SIGINT ignored, and Python leaves it so. Who
    # sends one all the same means this command, as `kill -INT` does: it ends with 130 then, however it was started.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app(prog_name="ml")
    except SystemExit as stop:
        leave(int(stop.code or 0))
    except UserError as error:
        leave(report_error(error))
    except KeyboardInterrupt:
        leave(130)
    except Exception as error:  # a fault of ours: its trace goes to a file, not to the screen
        leave(report_unexpected(error))
