"""A rendered project as a user sees it: the `ml` command, its files, its service, its processes."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import tomlkit
from template_support import clean_environment, commit_all, git, project_environment

from e2e.commands import run_command
from ondol.orchestration.guard import free_port

SAMPLE_ROWS = 1_500
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens there
KILLER = Path(__file__).with_name("killer.py")
Done = subprocess.CompletedProcess[str]


class Project:
    """A project in its own folder, and the environment of its commands."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.root = root
        self.environment = project_environment(root) | {"COLUMNS": "200", "PYTHONUTF8": "1"} | environment
        self.store = root / ".ml" / "store"
        self.saved = root.with_name(f"{root.name}-saved")

    def ml(self, *words: str, timeout: float = 240, **environment: str) -> Done:
        return run_command(words, self.root, self.environment | environment, timeout)

    def python(self, *words: str, timeout: float = 240, **environment: str) -> Done:
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.root,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run(self, **environment: str) -> Done:
        """Run the pipeline, which must succeed."""
        return succeed(self.ml("run", **environment))

    def save(self) -> "Project":
        """Save the state of every file for `restore`."""
        shutil.rmtree(self.saved, ignore_errors=True)
        shutil.copytree(self.root, self.saved)
        return self

    def restore(self) -> "Project":
        """Restore every file in the same place, because MLflow records the location of artifacts."""
        wait_until_alone(self.root)  # a process that ends may still write
        shutil.rmtree(self.root)
        shutil.copytree(self.saved, self.root)
        return self

    def configure(self, section: str, **values: Any) -> None:
        """Change settings in a section of config.toml."""
        path = self.root / "config.toml"
        config = tomlkit.parse(path.read_text(encoding="utf-8"))
        config.setdefault(section, tomlkit.table()).update(values)
        path.write_text(tomlkit.dumps(config), encoding="utf-8")

    def choose_ports(self) -> "Project":
        """Give the servers ports that are free."""
        self.configure("ports", prefect=free_port(), mlflow=free_port())
        self.configure("service", port=free_port())
        return self

    @contextmanager
    def brought_down(self) -> Iterator["Project"]:
        """Stop the processes of `ml up` at the block's end; no process may be left."""
        try:
            yield self
        finally:
            self.ml("down")
            assert not wait_until_alone(self.root)

    def use(self, frame: pd.DataFrame, name: str = "rows.csv") -> None:
        """Write a table into the project and use it as the source."""
        frame.to_csv(self.root / name, index=False)
        self.configure("data", source=name)

    @property
    def champion(self) -> dict[str, Any] | None:
        return self.json("champion.json")

    @property
    def latest(self) -> dict[str, str]:
        return self.json("latest.json") or {}

    def json(self, name: str) -> Any:
        path = self.store / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def versions(self) -> list[str]:
        """The registered versions, by the database that MLflow keeps."""
        return [str(row[0]) for row in self._mlflow("select version from model_versions order by version")]

    def aliases(self) -> dict[str, str]:
        rows = self._mlflow("select alias, version from registered_model_aliases")
        return {alias: str(version) for alias, version in rows}

    def training_runs(self) -> int:
        return int(self._mlflow("select count(*) from runs")[0][0])

    def _mlflow(self, query: str) -> list[tuple[Any, ...]]:
        path = self.root / ".ml" / "mlflow" / "mlflow.db"
        if not path.exists():
            return []
        with closing(sqlite3.connect(path)) as database:
            return database.execute(query).fetchall()

    def quarantine(self) -> pd.DataFrame:
        """The quarantined rows of the last validation."""
        return pd.read_parquet(self.store / "quarantine" / f"{self.last_validation()['id']}.parquet")

    def last_validation(self) -> dict[str, Any]:
        path = max((self.store / "quarantine").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
        return dict(json.loads(path.read_text(encoding="utf-8")))

    @contextmanager
    def serve(self, **environment: str) -> Iterator[httpx.Client]:
        """Run a real `ml serve` until the block ends."""
        port = free_port()
        log = self.root.with_name("serve.log")
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "ondol.cli", "serve", "--port", str(port)],
                cwd=self.root,
                env=self.environment | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
                    wait_for(client, "/livez", 200)
                    yield client
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(30)


def make_project(rendered: Path, folder: Path, rows: int | None = SAMPLE_ROWS, **environment: str) -> Project:
    """Copy a rendered project to `folder`, on a small sample, and commit it."""
    shutil.copytree(rendered, folder)
    project = Project(folder, **environment)
    if rows:
        project.configure("data", source=f"sample://?rows={rows}")
    commit_all(folder)
    return project


def sample(rows: int = SAMPLE_ROWS, **parameters: float) -> pd.DataFrame:
    """Rows of the sample, as texts, as they stand in a CSV."""
    import pyarrow as pa
    import pyarrow.csv

    from ondol.ingestion.sample import SampleSource

    table = pa.Table.from_batches(list(SampleSource(rows=rows, **parameters).batches()))
    buffer = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, buffer)
    return pd.read_csv(pa.BufferReader(buffer.getvalue()), dtype=str, keep_default_na=False)


def succeed(done: Done) -> Done:
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def refuse(done: Done, status: int = 2) -> str:
    """Check that a command ended with `status` and one sentence, but for pauses before it; return the sentence."""
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    assert "Traceback" not in said
    lines = [line for line in done.stderr.splitlines() if line.strip() and ": trying again in " not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: "), done.stderr
    return lines[0].removeprefix("Error: ")


def files_of(folder: Path, *without: str) -> dict[str, bytes]:
    """Every file under `folder` with its bytes, but for those below folders of the names `without`."""
    names = {"__pycache__", ".git", *without}
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and not names & set(p.parts))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def processes_in(folder: Path) -> dict[int, str]:
    """The living processes that work in `folder`, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cwd").resolve().is_relative_to(folder):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended, or is not ours to look at
            continue
    return {pid: command for pid, command in found.items() if command}


def wait_until_alone(folder: Path, seconds: float = 20) -> dict[int, str]:
    """Wait until no process works in `folder`; return those that still do."""
    end = time.monotonic() + seconds
    while (left := processes_in(folder)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def wait_for(client: httpx.Client, path: str, status: int, seconds: float = 60) -> httpx.Response:
    """Poll until `path` answers `status`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            answer = client.get(path)
            if answer.status_code == status:
                return answer
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{path} did not answer {status} in {seconds} s")


def wait_for_version(client: httpx.Client, version: str, seconds: float = 30) -> None:
    """Poll until the service answers with `version`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = client.get("/model")
        if answer.status_code == 200 and answer.json()["version"] == version:
            return
        time.sleep(0.1)
    raise TimeoutError(f"version {version} did not serve in {seconds} s")


@contextmanager
def prefect_server(home: Path, log: Path, **more: str) -> Iterator[str]:
    """Run a Prefect server on `home`, with `more` in its environment, until the block ends; yield its address."""
    port = free_port()
    home.mkdir(parents=True, exist_ok=True)
    environment: Mapping[str, str] = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_ENABLED": "0",
        "DO_NOT_TRACK": "1",
    }
    command = ["-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--lifespan", "on"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"],
            cwd=home,
            env=clean_environment() | environment | more,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                wait_for(client, "/api/health", 200, 120)
            yield f"http://127.0.0.1:{port}/api"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def digest_bundle(folder: Path) -> str:
    """The output of `LC_ALL=C sha256sum * | sha256sum` in a bundle, computed independently of the code."""
    script = "LC_ALL=C sha256sum -- * | sha256sum"
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def git_clean(folder: Path, besides: Collection[str] = ()) -> bool:
    """Return True if git sees no change in `folder` except in the files `besides`."""
    changed = {line[3:] for line in git(folder, "status", "--porcelain").splitlines()}
    return changed <= set(besides)
