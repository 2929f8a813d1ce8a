"""One line for each stage or step while it runs, with its duration in seconds."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape

from ondol.orchestration.progress import listeners

STAGES = {
    "ingest": "reading the source",
    "validate": "holding rows against the contract",
    "train": "fitting",
    "evaluate": "scoring candidate and champion",
    "deploy": "compiling, proving and trying",
    "predict": "predicting",
    "monitor": "comparing the log with the reference",
}


class Progress:
    """A spinner that follows Prefect's flows by their hooks."""

    def __init__(self, console: Console) -> None:
        """Show on `console`."""
        self.console = console
        self.status = console.status("starting")
        self.started: dict[str, float] = {}

    def __enter__(self) -> "Progress":
        """Start spinning."""
        self.status.start()
        listeners.append(self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop spinning."""
        listeners.remove(self._hear)
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
        """Say what a flow that has started does."""
        self.started[flow.name] = time.perf_counter()
        self.status.update(f"{flow.name}: {STAGES[flow.name]}")

    def show_end(self, flow: Any, run: Any, state: Any) -> None:
        """Say that a flow is done."""
        self._line("[green]✓[/]", flow.name)

    def show_failure(self, flow: Any, run: Any, state: Any) -> None:
        """Say that a flow failed."""
        self._line("[red]✗[/]", flow.name)

    def _hear(self, words: str) -> None:
        self.status.update(words)

    def _line(self, mark: str, name: str) -> None:
        seconds = time.perf_counter() - self.started.get(name, time.perf_counter())
        self.console.print(f"{mark} {name:<9}[dim]{STAGES[name]:<36}{seconds:6.1f} s[/]")


class Steps:
    """A spinner over steps that are no flows; each gets its line when it ends."""

    def __init__(self, console: Console) -> None:
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
        """Stop spinning; the step that goes on is done, or failed."""
        self._end("[green]✓[/]" if kind is None else "[red]✗[/]")
        self.status.stop()

    def begin(self, name: str, what: str) -> None:
        """Say which step begins; the one before is done."""
        self._end("[green]✓[/]")
        self.step = (name, what, time.perf_counter())
        self.say(what)

    def say(self, words: str) -> None:
        """Say how far the step has come."""
        self.status.update(escape(f"{self.step[0] if self.step else ''}: {words}"))

    def _end(self, mark: str) -> None:
        if self.step is not None:
            name, what, since = self.step
            self.console.print(f"{mark} {name:<9}[dim]{escape(what):<48}{time.perf_counter() - since:6.1f} s[/]")
