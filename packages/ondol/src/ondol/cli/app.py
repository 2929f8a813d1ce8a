"""The `ml` command: the signature and help text of every command.

Every command imports this module. So only Typer and a few small modules are imported at the top, and each function
imports the module that does its work.
"""

import codecs
import io
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ondol import __version__
from ondol.errors import Refused, UserError

HELP = """Train, check, deploy and serve this project's model.

A first session: `ml run` trains on the sample and deploys, `ml serve` answers requests. Then
`ml init data.csv --target COLUMN` replaces the sample with your own data, and `ml run` again.
"""
PLAIN = {"✓": "v", "✗": "x", "–": "-", "…": "..."}  # for encodings without the character
LEAST_WEEKS = 4  # one week before the drift, [retrain] windows (2) with it, one after the promotion

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # in rich's markup, "[data] source" in a help text would be a style and not be shown
)
data_app = typer.Typer(help="List snapshots, compare two, delete unused ones.", no_args_is_help=True)
contract_app = typer.Typer(help="Compare model/schema.py with the data, and update it.", no_args_is_help=True)
quarantine_app = typer.Typer(
    help="Rows that failed validation: list them, show them, add corrected ones again.", no_args_is_help=True
)
loop_app = typer.Typer(help="Pause, resume or show automatic retraining.", no_args_is_help=True)
rollout_app = typer.Typer(help="Try a version beside the champion: start, show, advance, end.", no_args_is_help=True)
keys_app = typer.Typer(help="API keys of the service: create, list, revoke.", no_args_is_help=True)
compose_app = typer.Typer(help="Passwords of the containers of ops/compose.yaml.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(contract_app, name="contract")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(loop_app, name="loop")
app.add_typer(rollout_app, name="rollout")
app.add_typer(keys_app, name="keys")
app.add_typer(compose_app, name="compose")

Breaking = Annotated[bool, typer.Option("--breaking", help="Deploy even if callers must change their requests.")]
Digest = Annotated[str, typer.Argument(help="A snapshot's digest, or its first characters: see `ml data log`.")]
Source = Annotated[
    str | None, typer.Argument(help="Any source that ingest reads; default: [data] source.", show_default=False)
]
Validation = Annotated[str | None, typer.Argument(help="A validation's id; default: the last.", show_default=False)]
Version = Annotated[str | None, typer.Argument(help="A model version; default: the latest.", show_default=False)]
KeysOf = Annotated[str | None, typer.Option("--to", help="The environment: environments.NAME; default: this project.")]
Why = Annotated[str, typer.Option("--why", help="The reason, kept in the history.")]


class KeyScope(StrEnum):
    """What an API key allows."""

    predict = "predict"
    explain = "explain"
    metrics = "metrics"
    admin = "admin"


class RolloutStrategy(StrEnum):
    """How a version is tried."""

    canary = "canary"
    shadow = "shadow"
    ab = "ab"
    blue_green = "blue-green"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ondol {__version__}")
        raise typer.Exit


@app.callback()
def ml(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the engine's version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Define the options of `ml` itself; `HELP` is its help text."""


# The pipeline and its stages.


@app.command()
def init(
    source: Annotated[
        str, typer.Argument(help="The rows: a file, a folder or an address; see docs/reference/sources.md.")
    ],
    target: Annotated[str, typer.Option(help="The column to predict.")],
    problem: Annotated[str | None, typer.Option(help="binary, multiclass or regression; default: inferred.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite model/schema.py.")] = False,
) -> None:
    """Write model/schema.py and the data section of config.toml for your own data."""
    from ondol.cli.init import initialize_project

    initialize_project(source, target, problem, force)


@app.command()
def run(breaking: Breaking = False) -> None:
    """Run the whole pipeline: ingest, validate, train, evaluate, deploy."""
    from ondol.cli.pipeline import run_pipeline

    run_pipeline(breaking)


@app.command()
def ingest(
    full: Annotated[bool, typer.Option("--full", help="Read the whole source, not only new rows.")] = False,
) -> None:
    """Copy the whole source into a snapshot; with `[data] watermark`, append only its new rows."""
    from ondol.cli.pipeline import run_stage

    run_stage("ingest", full=full)


@app.command()
def validate(
    snapshot: Annotated[str | None, typer.Argument(help="A snapshot's digest; default: the latest.")] = None,
) -> None:
    """Validate a snapshot against model/schema.py; quarantine invalid rows."""
    from ondol.cli.pipeline import run_stage

    run_stage("validate", snapshot=snapshot)


@app.command()
def train(
    validation: Annotated[str | None, typer.Argument(help="A validation's id; default: the latest.")] = None,
) -> None:
    """Train a candidate and register it as challenger."""
    from ondol.cli.pipeline import run_stage

    run_stage("train", validation=validation)


@app.command()
def tune(
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, with those of earlier commands.")] = 50,
    hours: Annotated[
        float | None, typer.Option(min=0.001, max=8_760, help="No trial begins after this time; default: no limit.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=256, help="Local processes of one thread each; default: one per core.")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Find the same best trial with any number of workers.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write the best parameters to config.toml; else they are printed.")
    ] = False,
) -> None:
    """Search for parameters with Optuna, on the training rows alone; continue an earlier search."""
    from ondol.cli.tune import tune as search

    search(trials, hours, processes, deterministic, write)


@app.command()
def evaluate(version: Version = None) -> None:
    """Score a candidate and the champion on the same holdout; the gates decide."""
    from ondol.cli.pipeline import run_stage

    run_stage("evaluate", version=version)


@app.command()
def compare(
    versions: Annotated[list[str], typer.Argument(help="Registered versions; differences are to the first one.")],
) -> None:
    """Show versions side by side, on the same held-out rows: metrics, parameters, data, sizes and verdicts."""
    from ondol.cli.compare import print_comparison

    print_comparison(versions)


@app.command()
def deploy(version: Version = None, breaking: Breaking = False, why: Why = "passed its gates") -> None:
    """Compile a version that passed its gates, verify and smoke-test it, and put it into production."""
    from ondol.cli.pipeline import run_stage

    run_stage("deploy", version=version, breaking=breaking, why=why)


@app.command()
def predict(
    source: Annotated[str, typer.Argument(metavar="IN", help="The rows: any source that ingest reads.")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="A .csv, .parquet or .jsonl file.")],
    version: Annotated[
        str | None, typer.Option(help="A version that was in production before; default: the current one.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Add what each column contributed, as columns.")] = False,
) -> None:
    """Predict the rows of a source with the champion, in batch."""
    from ondol.cli.pipeline import run_predict

    run_predict(source, destination.absolute(), version, explain)


# The model in production.


@app.command()
def serve(
    port: Annotated[int | None, typer.Option(help="The port; default: service.port.", show_default=False)] = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Without TLS, also where service.certificate is set.")
    ] = False,
) -> None:
    """Serve the champion over HTTP, or HTTPS with a certificate, until interrupted."""
    from ondol.cli.deployment import serve_champion

    serve_champion(port, plain_http=plain_http)


@app.command()
def status() -> None:
    """Show the version in production, background processes, runs in progress, pending work and the history."""
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
def reproduce(
    version: Annotated[str, typer.Argument(help="A registered version, deployed or not.")],
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="If its files were never committed: train from the commit they were based on."),
    ] = False,
    install: Annotated[
        bool, typer.Option(help="Install its packages in a separate environment, or use the installed ones.")
    ] = True,
) -> None:
    """Train a version again from its record, and compare every metric.

    Its commit, packages, snapshot, settings and seed are the recorded ones. The project is not
    changed.
    """
    from ondol.cli.reproduce import reproduce_version

    reproduce_version(version, anyway, install)


@app.command()
def card(
    version: Annotated[
        str | None, typer.Argument(help="A registered version; default: the one in production.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder for card.md and card.html; default: .ml/cards/VERSION.")
    ] = None,
) -> None:
    """Write a version's model card, with the drift since its deployment and the history."""
    from ondol.cli.reproduce import write_current_card

    write_current_card(version, out.absolute() if out else None)


# The project on this machine.


@app.command()
def client(
    out: Annotated[
        Path | None, typer.Option("--out", help="The file; default: PROJECT_client.py.", show_default=False)
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare the file with model/schema.py; exit with 1 if it is old.")
    ] = False,
) -> None:
    """Write a typed Python client of the service, in one file, from model/schema.py."""
    from ondol.cli.contract import make_client

    make_client(out, check)


@app.command()
def doctor() -> None:
    """Check the machine, the settings and the connections, and say how to fix what is wrong."""
    from ondol.cli.doctor import examine

    examine()


@app.command()
def docs(
    page: Annotated[
        str | None, typer.Argument(help="A page of the list; the last part of its name is enough.", show_default=False)
    ] = None,
) -> None:
    """Show a page of the documentation of this version, or list the pages; needs no network."""
    from ondol.cli.docs import print_docs

    print_docs(page)


@app.command()
def tidy(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be deleted.")] = False,
) -> None:
    """Delete files of earlier releases that `copier update` left; keep edited ones and show the edits."""
    from ondol.cli.tidy import tidy_project

    tidy_project(dry_run)


@app.command()
def up() -> None:
    """Start Prefect, MLflow, the service and a worker in the background, and deploy the flows."""
    from ondol.cli.up import bring_up

    bring_up()


@app.command()
def down(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Only these of prefect, mlflow, service and worker; default: all.", show_default=False),
    ] = None,
) -> None:
    """Stop what `ml up` started, and nothing else."""
    from ondol.cli.up import bring_down

    bring_down(names or [])


@app.command()
def worker() -> None:
    """Run the worker that executes scheduled runs, until interrupted; `ml up` starts one in the background."""
    from ondol.cli.up import run_worker

    run_worker()


@app.command()
def follow(
    into: Annotated[
        Path | None, typer.Option(help="The service's ML_STORE; default: the project's own mirror.", show_default=False)
    ] = None,
) -> None:
    """Keep a service's folder in sync with an object store (ML_STORE), until interrupted; `ml serve` starts one."""
    from ondol.cli.up import follow_store

    follow_store(into)


@app.command()
def retrain() -> None:
    """Run the pipeline now on the worker: `prefect deployment run` on the running server."""
    from ondol.cli.up import order_training

    order_training()


@app.command()
def simulate(
    weeks: Annotated[
        int,
        typer.Option(
            min=LEAST_WEEKS,
            max=52,
            help="How many weeks; the drift begins half-way, or earlier if [retrain] windows needs the time.",
        ),
    ] = 8,
    rows: Annotated[int, typer.Option(min=200, max=100_000, help="Requests (customers) per week.")] = 1000,
    shift: Annotated[bool, typer.Option(help="Whether the data drifts at all.")] = True,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the simulation's servers running for inspection.")
    ] = False,
) -> None:
    """Simulate weeks of the sample's traffic in a copy of the project: drift, retraining, gates, promotion."""
    from ondol.cli.simulate import simulate as play

    play(weeks, rows, shift, keep)


# Monitoring and retraining.


@app.command()
def replay(
    version: Annotated[str, typer.Argument(help="A registered version, deployed or not.")],
    days: Annotated[
        float | None,
        typer.Option(min=0.001, max=36_500, help="How many of the last days; without it [gates] replay_days, else 7."),
    ] = None,
) -> None:
    """Show what a version would have answered to the requests that the champion answered, and decide the gate."""
    from ondol.cli.status import print_replay

    print_replay(version, days)


@app.command()
def monitor() -> None:
    """Compare the predictions logged since the last window with the reference; request retraining on drift."""
    from ondol.cli.status import run_monitor

    run_monitor()


@loop_app.command("pause")
def loop_pause(why: Why) -> None:
    """Pause automatic retraining until `ml loop resume`; monitoring continues."""
    from ondol.cli.status import pause_loop

    pause_loop(why)


@loop_app.command("resume")
def loop_resume(why: Why = "resumed") -> None:
    """Resume automatic retraining: the next `ml monitor` decides again."""
    from ondol.cli.status import resume_loop

    resume_loop(why)


@loop_app.command("show")
def loop_show() -> None:
    """Show the last windows, and whether retraining is requested."""
    from ondol.cli.status import show_loop

    show_loop()


# Rollouts.


@rollout_app.command("start")
def rollout_start(
    version: Annotated[str, typer.Argument(help="A version that passed its gates.")],
    strategy: Annotated[
        RolloutStrategy | None, typer.Option(help="How it is tried; default: rollout.strategy, or canary.")
    ] = None,
    why: Why = "started by hand",
) -> None:
    """Try a version beside the champion; a version that was withdrawn may be tried again."""
    from ondol.cli.rollout import start

    start(version, strategy.value if strategy else None, why)


@rollout_app.command("status")
def rollout_status() -> None:
    """Show the rollout that runs, or the last one: its steps, and how both versions compare."""
    from ondol.cli.rollout import print_rollout

    print_rollout()


@rollout_app.command("step")
def rollout_step(why: Why = "by hand") -> None:
    """Take the next step without waiting for the decision; after the last one, the version is in production."""
    from ondol.cli.rollout import step

    step(why)


@rollout_app.command("abort")
def rollout_abort(why: Why) -> None:
    """End the rollout: the champion answers all requests again within two seconds."""
    from ondol.cli.rollout import abort

    abort(why)


# API keys.


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for the list.")],
    scope: Annotated[
        list[KeyScope] | None, typer.Option(help="What it allows; repeat it for several. Default: predict.")
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0.001, max=36_500, help="Days until it expires; default: it does not.")
    ] = None,
    to: KeysOf = None,
) -> None:
    """Create a key and print it, once. From the first key on, the service asks for one."""
    from ondol.cli.keys import print_new_key

    print_new_key(name, tuple(one.value for one in scope or [KeyScope.predict]), days, to)


@keys_app.command("list")
def keys_list(to: KeysOf = None) -> None:
    """List the keys, also those that are no longer valid. Only their hashes are stored."""
    from ondol.cli.keys import print_keys

    print_keys(to)


@keys_app.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(help="The key's id: see `ml keys list`.")], to: KeysOf = None
) -> None:
    """Revoke a key: services refuse it within two seconds."""
    from ondol.cli.keys import print_revoked

    print_revoked(key, to)


# Compose.


@compose_app.callback()
def compose() -> None:
    """Keep `secrets` a command of its own: Typer would take a single one for `ml compose`."""


@compose_app.command("secrets")
def compose_secrets() -> None:
    """Create the passwords of the containers in ops/secrets, once, and print how to log in."""
    from ondol.cli.compose import create_secrets

    create_secrets()


# Delivery: what the workflows call.


@app.command()
def release(
    to: Annotated[str, typer.Option("--to", help="The environment: environments.NAME in config.toml.")],
    source: Annotated[
        str | None,
        typer.Option("--from", help="Release what is in production in that environment; default: in this project."),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option(help="Release this bundle, which was in production there before; default: the current one."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(envvar="ML_IMAGE", help="The image to run on the environment's host; default: that of --from."),
    ] = None,
    breaking: Annotated[bool, typer.Option("--breaking", help="Release even if callers must change.")] = False,
    why: Why = "released",
    output: Annotated[
        typer.FileTextWrite | None,
        typer.Option(mode="a", encoding="utf-8", help="Append the verified bundle and image to this file."),
    ] = None,
    commit: Annotated[
        str | None, typer.Option(help="The commit that releases: nothing is done if a later one has released.")
    ] = None,
) -> None:
    """Release the champion, and the image, to an environment; verify both there, or restore both."""
    from ondol.cli.release import release_to

    release_to(to, source, bundle or None, image or None, breaking, why, output, commit or None)


@app.command()
def smoke(url: Annotated[str, typer.Argument(help="The address of a service.")]) -> None:
    """Verify that a service is ready, runs the released version, and answers as its model does.

    Where access is controlled, ML_API_KEY must be a key with the scope predict. During a rollout, the challenger may
    answer: then its answer is compared with its own model.
    """
    from ondol.cli.release import smoke_url

    smoke_url(url)


@app.command()
def report() -> None:
    """Print the last model's metrics and gates as Markdown."""
    from ondol.cli.deployment import print_model_report

    print_model_report()


@app.command()
def environments() -> None:
    """Print the version in production in each environment, and how to set up a missing one, as Markdown."""
    from ondol.cli.deployment import print_environments

    print_environments()


@app.command()
def pool(
    commit: Annotated[
        str | None,
        typer.Option(help="The commit whose flows are deployed next: it is recorded, unless a later one is."),
    ] = None,
    output: Annotated[
        typer.FileTextWrite | None,
        typer.Option(
            mode="a", encoding="utf-8", help="Append the commit to this file, unless a later one is recorded."
        ),
    ] = None,
) -> None:
    """Create the project's work pool on the Prefect server, unless it exists; flows are deployed to it."""
    from ondol.cli.up import make_pool

    make_pool(commit or None, output)


# Data: snapshots, the contract, quarantined rows.


@data_app.command("log")
def data_log() -> None:
    """List the snapshots, newest first, and the model versions that were trained from each."""
    from ondol.cli.data import print_log

    print_log()


@data_app.command("diff")
def data_diff(before: Digest, after: Digest) -> None:
    """Compare two snapshots: columns, rows, and the distribution of each column."""
    from ondol.cli.data import print_difference

    print_difference(before, after)


@data_app.command("gc")
def data_gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be deleted.")] = False,
) -> None:
    """Delete data that no model version uses, that no ingest continues from, and that is at least a day old."""
    from ondol.cli.data import collect

    collect(dry_run)


@contract_app.command("diff")
def contract_diff(source: Source = None) -> None:
    """Show how the source differs from model/schema.py; exit with 1 if it does."""
    from ondol.cli.contract import print_changes

    print_changes(source)


@contract_app.command("update")
def contract_update(
    source: Source = None,
    apply: Annotated[bool, typer.Option("--apply", help="Write model/schema.py.")] = False,
) -> None:
    """Print the edit of model/schema.py that matches the source; write it only with --apply."""
    from ondol.cli.contract import update

    update(source, apply)


@quarantine_app.command("list")
def quarantine_list() -> None:
    """List the validations, newest first, and how often each check failed over time."""
    from ondol.cli.quarantine import print_validations

    print_validations()


@quarantine_app.command("show")
def quarantine_show(
    validation: Validation = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the rows and their reasons to this .csv, .parquet or .jsonl file.")
    ] = None,
) -> None:
    """Show the reasons by column and check, and a few rows; with --out, write all rows to a file to correct them."""
    from ondol.cli.quarantine import print_quarantine

    print_quarantine(validation, out.absolute() if out else None)


@quarantine_app.command("replay")
def quarantine_replay(
    validation: Validation = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="The corrected file of `show --out`; default: model/schema.py was corrected."),
    ] = None,
) -> None:
    """Validate the corrected rows, or all rows by the corrected contract, again; valid ones join the next snapshot."""
    from ondol.cli.quarantine import replay_quarantine

    replay_quarantine(validation, source.absolute() if source else None)


def main() -> None:
    """Run the command line. A user's mistake is one sentence; the traceback of any other error goes to a log."""
    _prepare_streams()  # before the console is created from them
    from ondol.cli.console import leave, report_error, report_unexpected
    from ondol.storage.files import keep_private

    keep_private()
    # A shell without job control, such as a script's, starts `ml … &` with SIGINT ignored, and Python keeps that. But a
    # SIGINT that reaches this process, as by `kill -INT`, is meant for it: so it always ends the command with 130.
    interrupted = False

    def interrupt(*_: object) -> NoReturn:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        app(prog_name="ml")
    except SystemExit as stop:
        if isinstance(stop.code, int | None):
            leave(stop.code or 0)
        leave(report_error(Refused(str(stop.code))))
    except UserError as error:
        leave(report_error(error))
    except KeyboardInterrupt:
        leave(130)
    except Exception as error:  # a bug: its traceback goes to a file, not to the screen
        # pydantic makes an error of its own of the interrupt, if a serializer receives it.
        leave(130 if interrupted else report_unexpected(error))


def _prepare_streams() -> None:
    """Make output safe for characters that its encoding lacks, and for streams that the shell has closed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # `ml status >&-`; the next file to be opened would take its number
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    codecs.register_error("ondol", _replace_unknown)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ondol")


def _replace_unknown(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return the replacement of a character that the encoding lacks; an error handler of `codecs`."""
    if isinstance(error, UnicodeEncodeError) and (plain := PLAIN.get(error.object[error.start])):
        return plain, error.start + 1
    return codecs.backslashreplace_errors(error)
