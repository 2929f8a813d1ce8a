"""The commands of delivery: what the workflows call."""

from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def release(
    to: Annotated[str, typer.Option("--to", help="The environment: environments.NAME in config.toml.")],
    source: Annotated[
        str | None, typer.Option("--from", help="Release what serves in that environment; default: in this project.")
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(help="Release this one, which has served there, rather than the one that serves.")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(envvar="ML_IMAGE", help="What the environment's host shall run; default: what runs in --from."),
    ] = None,
    breaking: Annotated[bool, typer.Option("--breaking", help="Release even if callers must change.")] = False,
    why: Annotated[str, typer.Option("--why", help="The reason, kept in the history.")] = "released",
    output: Annotated[
        typer.FileTextWrite | None,
        typer.Option(mode="a", encoding="utf-8", help="Append the bundle and the image that were proved to this file."),
    ] = None,
    commit: Annotated[
        str | None, typer.Option(help="The commit that releases: nothing is done where a later one has.")
    ] = None,
) -> None:
    """Bring the champion, and the image, to an environment; prove both there, or restore both."""
    from ondol.cli.release import release_to

    release_to(to, source, bundle or None, image or None, breaking, why, output, commit or None)


@app.command()
def smoke(url: Annotated[str, typer.Argument(help="The address of a service.")]) -> None:
    """Prove that a service is ready, serves what was released to it, and answers as its model does."""
    from ondol.cli.release import smoke_url

    smoke_url(url)


@app.command()
def report() -> None:
    """Print the last model's metrics and gates as Markdown."""
    from ondol.cli.deployment import print_report

    print_report()


@app.command()
def environments() -> None:
    """Print what serves in each environment, and what to set where one is missing, as Markdown."""
    from ondol.cli.deployment import print_environments

    print_environments()


@app.command()
def pool(
    commit: Annotated[
        str | None, typer.Option(help="The commit whose flows are deployed next: it is noted, unless a later one is.")
    ] = None,
    output: Annotated[
        typer.FileTextWrite | None,
        typer.Option(mode="a", encoding="utf-8", help="Append the commit to this file, unless a later one is noted."),
    ] = None,
) -> None:
    """Make the project's work pool on the Prefect server, unless it is there; flows are deployed to it."""
    from ondol.cli.up import make_pool

    make_pool(commit or None, output)
