"""`ml tune`: search for parameters, show the progress, and print or write the best ones."""

import os
from pathlib import Path

import tomlkit
from rich.markup import escape

from ondol.cli.console import console, print_plain, start_command
from ondol.config import FILE_NAME, Settings
from ondol.errors import UserError
from ondol.orchestration.processes import mlflow_ui
from ondol.project import Project
from ondol.setup.schema_file import edit_params, read_config
from ondol.storage.files import write_bytes
from ondol.training.candidates import Choice, name_params
from ondol.tuning import Search, log_search, open_search, open_workers
from ondol.tuning.report import choose_best, count_states
from ondol.tuning.search import FOLDER, Progress, as_trial

MINUTE, HOUR = 60, 3600
PICTURE = "search.png"


def tune(trials: int, hours: float | None, processes: int | None, deterministic: bool, write: bool) -> None:
    """Search for parameters on the training rows, and print or write the best ones.

    Args:
        trials: The number of trials that the search has at the end, with those of earlier commands.
        hours: The time after which no trial begins; None for no limit.
        processes: The number of local processes; None for one per core.
        deterministic: Find the same with any number of workers.
        write: Write the best parameters to `config.toml`.

    Raises:
        UserError: the search cannot begin or continue.
    """
    settings = start_command()
    if write:
        read_config(settings.root)  # before the search: it must be writable at the end
    project, interrupted = Project(settings), False
    with console.status("tune: reading the training rows") as status, open_search(project, deterministic) as search:
        before, address = search.finished, settings.compute.dask
        try:
            if before < trials:
                with open_workers(search.validation, processes or os.cpu_count() or 1, address) as workers:
                    status.update(f"tune: starting {workers.count} workers")
                    limit = None if hours is None else hours * HOUR
                    search.run(workers, trials, limit, lambda progress: status.update(describe(progress)))
        except KeyboardInterrupt:
            interrupted = True
        status.update("tune: recording the trials")
        if search.best is not None:
            choice = choose_best(search)
            _report(project, search, choice, before)
            _offer(settings, choice, write and not interrupted)
    if interrupted:
        console.print("Interrupted: the finished trials are kept, and the same command continues.", soft_wrap=True)
        raise KeyboardInterrupt


def describe(progress: Progress) -> str:
    """Return the progress in words, for one line."""
    words = f"tune: {progress.finished} of {progress.trials} trials"
    if progress.best is not None:
        words += f", best {progress.best.value:.4g}"
    if progress.seconds_left is not None:
        words += f", {show_time(progress.seconds_left)} left"
    return words if progress.best is None else f"{words} [dim]{escape(as_trial(progress.best).name)}[/]"


def show_time(seconds: float) -> str:
    """Return a time in its largest unit."""
    if seconds >= HOUR:
        return f"{seconds / HOUR:.1f} h"
    return f"{seconds / MINUTE:.0f} min" if seconds >= MINUTE else f"{seconds:.0f} s"


def _report(project: Project, search: Search, choice: Choice, before: int) -> None:
    """Print the result; record it in MLflow unless no trial was added."""
    found = ", ".join(f"{count} {state}" for state, count in count_states(search).items())
    console.print(f"{search.finished} trials: {found}.", soft_wrap=True)
    console.print(escape(choice.reason), soft_wrap=True)
    if search.finished > before:
        page, picture = log_search(project, search, choice)
        path = project.settings.home / FOLDER / PICTURE
        write_bytes(path, picture)
        console.print(f"Picture: {escape(project.settings.show(path))}", soft_wrap=True)
        console.print(f"MLflow: {mlflow_ui(project.settings)}{page}", soft_wrap=True)


def _offer(settings: Settings, choice: Choice, write: bool) -> None:
    """Write the parameters to `config.toml`, or print them as they would be there."""
    params = dict(choice.params)
    if not params:
        console.print("The defaults of build_estimator are the best: nothing is to be written.")
        return
    if missing := [name for name, value in params.items() if value is None]:
        raise UserError(f"{missing[0]} is None in {name_params(params)}, which {FILE_NAME} cannot hold: leave it out.")
    if not write:
        print_plain(f"\n[train.params]\n{tomlkit.dumps(params)}")
        console.print(f"`ml tune --write` writes them to {FILE_NAME}; `ml run` then trains with them.")
        return
    path: Path = settings.root / FILE_NAME
    write_bytes(path, edit_params(read_config(settings.root), params).encode())
    console.print(f"Wrote \\[train.params] to {FILE_NAME}. Next: `ml run`, which trains with them.")
