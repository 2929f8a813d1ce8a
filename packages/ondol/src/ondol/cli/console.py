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
from ondol_serving.printable import printable

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
    """A console on which no text of the data moves the cursor, sets a style or hides another text."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text for the layout: escaped before widths are measured."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Yield what is written; escaped where it came as a `Text`, which no layout has passed through `render_str`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


console = Console(highlight=False, emoji=False, width=PIPED)  # ":id:" in a name is no emoji
errors = Console(stderr=True, highlight=False, emoji=False)


def print_plain(text: str) -> None:
    """Print text that is read by other programs too: neither wrapped nor styled."""
    print(printable(text))


class Notices(logging.Handler):
    """Prints why long work is waiting."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line; a running spinner replaces `sys.stderr`, and prints the line above itself."""
        print(record.getMessage(), file=sys.stderr)


notices = Notices(logging.WARNING)


def start_command(stored: bool = True, note: bool = True) -> Settings:
    """Prepare this process for a command of the project here, and return its settings.

    The libraries' homes are set, warnings go to the log, and pauses of long work are printed.

    Args:
        stored: Bring the records of a remote store up to date.
        note: Print a line where files of earlier releases are left.

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
    """Print one line to standard error where files of earlier releases are left."""
    found = find_leftovers(root)
    if count := len(found.released) + len(found.edited):
        what = "1 file of an earlier release is" if count == 1 else f"{count} files of earlier releases are"
        errors.print(f"[yellow]Note:[/] {what} left in this project: run `ml tidy`.", soft_wrap=True)


def current_store(settings: Settings, place: str) -> Store:
    """Return a store of the settings, its records up to date.

    Raises:
        UserError: it cannot be reached.
    """
    store = open_store(settings, place)
    store.refresh()
    return store


def leave(status: int) -> NoReturn:
    """End the process at once: taking down these libraries' modules would cost one to two seconds more."""
    logging.shutdown()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `ml report | head`: its reader has enough
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
    """Return the damaged file of the project that made a library raise an error, as an error; None if there is none."""
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
    """Keep the trace of a fault that is not the user's, print where, and return the exit status."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        try:
            print(flush=True)  # fails where the output is what is full
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
        """Show on `console`; `begin` gets the name of each flow that starts."""
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
        """Show what a flow that has started does."""
        self.started[flow.name] = time.perf_counter()
        self.status.update(f"{flow.name}: {STAGES[flow.name]}")
        self.begin(flow.name)

    def show_end(self, flow: Any, run: Any, state: Any) -> None:
        """Print that a flow is done."""
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
    """A spinner over steps that are not flows; each gets a line when it ends."""

    def __init__(self, console: rich.console.Console) -> None:
        """Show on `console`."""
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
        """Stop spinning; the current step is done, or failed."""
        self._end("[green]✓[/]" if kind is None else "[red]✗[/]")
        self.status.stop()

    def begin(self, name: str, what: str) -> None:
        """Show which step begins; the one before is done."""
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
