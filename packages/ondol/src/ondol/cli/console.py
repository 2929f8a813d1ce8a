"""Input and output of the commands: tables, messages, progress, and where errors and warnings are logged."""

import errno
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import rich.console
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from ondol.config import Settings, find_root, load_settings
from ondol.errors import UserError
from ondol.orchestration.environment import LOGGERS, prepare
from ondol.orchestration.reporting import listeners
from ondol.project import place_in_project
from ondol.redaction import may_be_address, redact
from ondol.setup.leftovers import find_leftovers
from ondol.storage.files import explain_os_error
from ondol.storage.store import Store, open_store
from ondol_serving.names import printable

FULL = (
    "The disk is full, and nothing was left half-written: make room where the store is (ML_STORE, default .ml/store; "
    "`ml data gc` deletes unused snapshots) and in .ml, and run the command again"
)
PIPED = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160  # 80 columns would cut tables in a log
KEPT_TRACES = 50
STAGES = {
    "ingest": "reading the source",
    "validate": "checking rows",
    "train": "fitting",
    "evaluate": "scoring candidate and champion",
    "deploy": "compiling, verifying, smoke-testing",
    "predict": "predicting",
    "monitor": "comparing the log with the reference",
}


class Console(rich.console.Console):
    """A console that escapes control characters and markup, so that data cannot change what is shown."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text for the layout, escaped before widths are measured."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Yield the output; a `Text` is escaped here, because it does not pass through `render_str`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


console = Console(highlight=False, emoji=False, width=PIPED)  # ":id:" in a name is not an emoji
errors = Console(stderr=True, highlight=False, emoji=False)


def print_plain(text: str) -> None:
    """Print text without wrapping and styles, because other programs may read it."""
    print(printable(text))


class Notices(logging.Handler):
    """A log handler that prints why long work is waiting."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line; a running spinner replaces `sys.stderr`, and prints the line above itself."""
        print(record.getMessage(), file=sys.stderr)


notices = Notices(logging.WARNING)


def start_command(stored: bool = True, note: bool = True) -> Settings:
    """Prepare this process for a command of the project here, and return its settings.

    It sets the folders of the libraries, sends warnings to the log, and prints pauses of long work.

    Args:
        stored: Bring the records of a remote store up to date.
        note: Print a line if files of earlier releases are left.

    Raises:
        UserError: there is no project here, its settings are wrong, or its store cannot be reached.
    """
    settings = load_settings()
    prepare(settings)
    log = settings.home / "logs" / "warnings.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log, mode="w", encoding="utf-8", delay=True)
    logging.captureWarnings(True)
    warnings = logging.getLogger("py.warnings")
    warnings.handlers[:], warnings.propagate = [handler], False
    for name in LOGGERS:
        logging.getLogger(name).addHandler(notices)
    if note:
        note_leftovers(settings.root)
    if stored:
        open_store(settings).refresh()
    return settings


def absolute_source(source: str) -> str:
    """Return a path on the command line as an absolute one; another kind of source unchanged."""
    return source if may_be_address(source) else str(Path(source).expanduser().absolute())


def note_leftovers(root: Path) -> None:
    """Print one line to standard error if files of earlier releases are left."""
    found = find_leftovers(root)
    if count := len(found.released) + len(found.edited):
        what = "1 file of an earlier release is" if count == 1 else f"{count} files of earlier releases are"
        errors.print(f"[yellow]Note:[/] {what} left in this project: run `ml tidy`.", soft_wrap=True)


def current_store(settings: Settings, place: str) -> Store:
    """Open a store of the settings and bring its records up to date.

    Raises:
        UserError: it cannot be reached.
    """
    store = open_store(settings, place)
    store.refresh()
    return store


def leave(status: int) -> NoReturn:
    """End the process at once: a normal exit would spend one to two seconds on cleaning up the libraries."""
    logging.shutdown()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `ml report | head`: the reader has closed the pipe
        pass
    except OSError as error:
        status = status or report_error(_unwritten(error))
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


def _unwritten(error: OSError) -> UserError:
    return UserError(f"The output could not be written ({error.strerror}): write it to another place.")


def report_error(error: UserError) -> int:
    """Print an error and return the exit status."""
    errors.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)
    return error.exit_code


def _explain(error: BaseException) -> UserError | None:
    """Return an error that names the damaged file behind a library's error; None if no file is damaged."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and (damaged := explain_os_error(cause)):
            return damaged
        cause = cause.__cause__ or cause.__context__
    try:
        from ondol.cli.doctor import find_damage

        found = next(find_damage(load_settings()), None)
    except Exception:  # the first error is the one to report
        return None
    return UserError(found) if found else None


def report_unexpected(error: Exception) -> int:
    """Write the traceback of an unexpected error to a log, print where it is, and return the exit status."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        try:
            print(flush=True)  # fails if the output's own disk is full
        except OSError as again:
            return report_error(_unwritten(again))
        return report_error(UserError(f"{FULL}."))
    if damage := _explain(error):
        return report_error(damage)
    lines = printable(redact("".join(traceback.format_exception(error))))
    try:
        path = find_root() / ".ml" / "logs" / f"error-{datetime.now(UTC):%Y%m%d-%H%M%S}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines, encoding="utf-8")
        for old in sorted(path.parent.glob("error-*.log"))[:-KEPT_TRACES]:
            old.unlink(missing_ok=True)
        where = f"The trace is in {path}."
    except (OSError, UserError):
        where = lines
    first = (redact(str(error)).strip().splitlines() or [""])[0][:500].rstrip(" .")
    message = f"{first}{place_in_project(error)}."
    errors.print(f"[bold red]Unexpected {type(error).__name__}:[/] {escape(message)} {escape(where)}", soft_wrap=True)
    return 1


class FlowProgress:
    """A spinner that follows Prefect's flows by their hooks."""

    def __init__(self, console: rich.console.Console, begin: Callable[[str], None] = lambda name: None) -> None:
        """Show progress on `console`; `begin` is called with the name of each flow that starts."""
        self.console = console
        self.begin = begin
        self.status = console.status("starting")
        self.started: dict[str, float] = {}

    def __enter__(self) -> "FlowProgress":
        """Start spinning."""
        self.status.start()
        listeners.append(self._update)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop spinning."""
        listeners.remove(self._update)
        self.status.stop()

    def follow(self, flow: Any) -> None:
        """Show the stages of `flow`: itself, or those of the pipeline."""
        module = sys.modules[flow.fn.__module__]
        inner = [getattr(module, name) for name in STAGES if hasattr(module, name)]
        for one in [flow] if flow.name in STAGES else inner:
            one.on_running(self.show_start)
            one.on_completion(self.show_end)
            one.on_failure(self.show_failure)

    def show_start(self, flow: Any, run: Any, state: Any) -> None:
        """Show the flow that has started."""
        self.started[flow.name] = time.perf_counter()
        self.status.update(f"{flow.name}: {STAGES[flow.name]}")
        self.begin(flow.name)

    def show_end(self, flow: Any, run: Any, state: Any) -> None:
        """Print that a flow has completed."""
        self._line("[green]✓[/]", flow.name)

    def show_failure(self, flow: Any, run: Any, state: Any) -> None:
        """Print that a flow failed."""
        self._line("[red]✗[/]", flow.name)

    def _update(self, words: str) -> None:
        self.status.update(words)

    def _line(self, mark: str, name: str) -> None:
        seconds = time.perf_counter() - self.started.get(name, time.perf_counter())
        self.console.print(f"{mark} {name:<9}[dim]{STAGES[name]:<36}{seconds:6.1f} s[/]")


class Steps:
    """A spinner for steps that are not flows; each prints a line when it ends."""

    def __init__(self, console: rich.console.Console) -> None:
        """Show progress on `console`."""
        self.console = console
        self.status = console.status("starting")
        self.step: tuple[str, str, float] | None = None

    def __enter__(self) -> "Steps":
        """Start spinning."""
        self.status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop spinning and print whether the current step has completed or failed."""
        self._end("[green]✓[/]" if kind is None else "[red]✗[/]")
        self.status.stop()

    def begin(self, name: str, what: str) -> None:
        """Show the step that begins, and print that the one before has completed."""
        self._end("[green]✓[/]")
        self.step = (name, what, time.perf_counter())
        self.say(what)

    def say(self, words: str) -> None:
        """Show the progress of the step."""
        self.status.update(escape(f"{self.step[0] if self.step else ''}: {words}"))

    def _end(self, mark: str) -> None:
        if self.step is not None:
            name, what, since = self.step
            self.console.print(f"{mark} {name:<9}[dim]{escape(what):<48}{time.perf_counter() - since:6.1f} s[/]")
