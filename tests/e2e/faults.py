"""`kill -9` of a running simulation's processes, one at a time, with a check that each ended and was replaced."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

SECONDS = 1800.0  # for anything to happen, on a machine that is busy elsewhere
Processes = list[psutil.Process]


class Killer:
    """Kills the servers of a sandbox during the simulation."""

    def __init__(self, sandbox: Path) -> None:
        self.sandbox = sandbox
        self.client = httpx.Client(timeout=10, trust_env=False)
        self.ended = threading.Event()  # set when the simulation has ended, with any result
        self.killed: dict[str, tuple[set[int], set[int]]] = {}  # by what it was: the old processes, the new ones

    def kill_in_turn(self) -> None:
        """Kill service, server, monitor and worker, each in a different week, and check that each restarts."""
        self._until(lambda: self.asked(1) > 20, "week 1 is half asked")
        self.kill("service", self.tree("service"), lambda: self.serves("service", "/readyz"))
        self._until(lambda: self.asked(2) and self.run_process("monitor"), "the monitor of week 2 is at work")
        self.kill("prefect", self.children("prefect"), lambda: self.serves("prefect", "/api/health"))
        self._until(lambda: self.asked(3) and self.running("monitor"), "the monitor of week 3 runs")
        process = self._until(lambda: self.run_process("monitor"), "the process of the monitor of week 3")
        self.kill("monitor", process, lambda: bool(self.run_process("monitor")), lambda: self.run_process("monitor"))
        self._until(lambda: self.asked(4) and self.running("pipeline"), "the pipeline runs in week 4")
        self.kill("worker", self.children("worker"), lambda: bool(self.run_process("pipeline")))

    def kill(
        self, name: str, victims: Processes, well: Callable[[], bool], found: Callable[[], Processes] | None = None
    ) -> None:
        """Kill processes, and wait until they have ended and their replacements work."""
        assert victims, name
        old = {process.pid for process in victims}
        for process in victims:
            process.kill()
        _, alive = psutil.wait_procs(victims, timeout=60)
        assert not alive, (name, alive)
        heirs = found or (lambda: self.children(name))
        new = self._until(lambda: well() and {process.pid for process in heirs()} - old, f"{name} is back")
        self.killed[name] = (old, new)

    def asked(self, week: int) -> int:
        """How many requests of a week were answered so far."""
        with suppress(FileNotFoundError):
            lines = (self.sandbox / "answers.jsonl").read_text(encoding="utf-8").splitlines()
            return sum(line.startswith(f'{{"week": {week},') for line in lines)
        return 0

    def record(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.sandbox / ".ml" / "run" / f"{name}.json").read_text(encoding="utf-8")))

    def children(self, name: str) -> Processes:
        """Return the child processes of a recorded process's supervisor."""
        return psutil.Process(self.record(name)["pid"]).children()

    def tree(self, name: str) -> Processes:
        return psutil.Process(self.record(name)["pid"]).children(recursive=True)

    def run_process(self, flow: str) -> Processes:
        """The processes in which the worker of the sandbox runs a flow."""
        found = []
        for worker in self.children("worker"):
            for process in worker.children():
                with suppress(psutil.Error):
                    if process.environ().get("PREFECT__FLOW_NAME") == flow:
                        found.append(process)
        return found

    def running(self, flow: str) -> bool:
        """Whether Prefect says that a flow of the worker's is running."""
        wanted = {"state": {"type": {"any_": ["RUNNING"]}}, "deployment_id": {"is_null_": False}}
        body = {"flows": {"name": {"any_": [flow]}}, "flow_runs": wanted}
        answer = self.client.post(f"http://127.0.0.1:{self.record('prefect')['port']}/api/flow_runs/filter", json=body)
        return answer.is_success and any(run["work_pool_name"] for run in answer.json())

    def serves(self, name: str, path: str) -> bool:
        return self.client.get(f"http://127.0.0.1:{self.record(name)['port']}{path}").status_code == 200

    def _until(self, true: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + SECONDS
        while not self.ended.is_set():
            with suppress(httpx.TransportError, psutil.Error, FileNotFoundError):
                if found := true():
                    return found
            assert time.monotonic() < end, f"not in {SECONDS} s: {what}"
            time.sleep(0.1)
        raise AssertionError(f"the simulation ended before this: {what}")


@contextmanager
def killer(sandbox: Path) -> Iterator[Killer]:
    """Kill processes in a thread during the block; an error in the thread ends the simulation and is raised."""
    made = Killer(sandbox)
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            made.kill_in_turn()
        except BaseException as error:
            wrong.append(error)
            for process in psutil.Process().children():
                if "simulate" in process.cmdline():
                    process.terminate()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield made
    finally:
        made.ended.set()
        thread.join()
        made.client.close()
        if wrong:
            raise wrong[0]
