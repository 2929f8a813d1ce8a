"""The commands that run a project in the background: up, down, worker, follow, retrain, simulate."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()
LEAST_WEEKS = 4  # one before the customers move, as many bad ones as [retrain] windows (2) asks for, one after the swap


@app.command()
def up() -> None:
    """Start Prefect, MLflow, the service and a worker in the background, and deploy the flows."""
    from ondol.cli.up import bring_up

    bring_up()


@app.command()
def down() -> None:
    """Stop what `ml up` started, and nothing else."""
    from ondol.cli.up import bring_down

    bring_down()


@app.command()
def worker() -> None:
    """Be the worker that runs what is due, until interrupted; `ml up` starts one in the background."""
    from ondol.cli.console import open_project
    from ondol.services import become_worker

    become_worker(open_project(stored=False))


@app.command()
def follow(
    into: Annotated[
        Path | None, typer.Option(help="The service's ML_STORE; default: the project's own mirror.", show_default=False)
    ] = None,
) -> None:
    """Keep a service's folder current where ML_STORE is an object store, until interrupted; `ml serve` starts one."""
    from ondol.cli.follow import follow_store

    follow_store(into)


@app.command()
def retrain() -> None:
    """Have Prefect run the pipeline now, by the worker: `prefect deployment run` on the server that is up."""
    from ondol.cli.up import order_training

    order_training()


@app.command()
def simulate(
    weeks: Annotated[
        int,
        typer.Option(
            min=LEAST_WEEKS,
            max=52,
            help="How many; the customers move half-way, or earlier where [retrain] windows needs the time.",
        ),
    ] = 8,
    rows: Annotated[int, typer.Option(min=200, max=100_000, help="Customers in a week.")] = 1000,
    shift: Annotated[bool, typer.Option(help="Whether the customers move at all.")] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the simulation's servers up, to be looked at.")] = False,
) -> None:
    """Play the sample's traffic through a copy of the project: drift, training, gates, swap."""
    from ondol.cli.simulate import simulate as play

    play(weeks, rows, shift, keep)
