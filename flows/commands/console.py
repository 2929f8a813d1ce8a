"""What is printed, and where faults and warnings go instead of the screen."""

import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from flows.environment import prepare
from flows.errors import UserError
from flows.settings import Settings, find_root, load_settings

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def open_project() -> Settings:
    """Read the settings of the project here, set the libraries' homes, and send warnings to the log.

    Raises:
        UserError: there is no project here, or its settings are wrong.
    """
    settings = load_settings()
    prepare(settings)
    log = settings.home / "logs" / "warnings.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log, mode="w", encoding="utf-8", delay=True)
    logging.captureWarnings(True)
    warnings = logging.getLogger("py.warnings")
    warnings.handlers[:], warnings.propagate = [handler], False
    return settings


def leave(status: int) -> NoReturn:
    """End the process at once: taking down these libraries' modules would cost one to two seconds more."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def report_error(error: UserError) -> int:
    """Print what was wrong and return the exit status."""
    errors.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)
    return error.exit_code


def report_unexpected(error: Exception) -> int:
    """Keep the trace of a fault that is not the user's, print where, and return the exit status."""
    lines = "".join(traceback.format_exception(error))
    try:
        path = find_root() / ".ml" / "logs" / f"error-{datetime.now(UTC):%Y%m%d-%H%M%S}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines, encoding="utf-8")
        where = f"The trace is in {path}."
    except (OSError, UserError):
        where = lines
    first = str(error).strip().splitlines() or [""]
    errors.print(
        f"[bold red]Unexpected {type(error).__name__}:[/] {escape(first[0][:500])} {escape(where)}", soft_wrap=True
    )
    return 1
