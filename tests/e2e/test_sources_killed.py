"""`ml ingest` from every kind of source, killed at each step and at any moment, resumed, and its rows counted."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer
from sources_support import Cluster, Server
from template_support import commit_all, python_path

from e2e.conftest import Make
from e2e.support import KILLER, Project, succeed
from ondol.snapshots.snapshots import Snapshots
from ondol.storage.store import Store

pytestmark = pytest.mark.slow
ROWS, MORE, AGAIN = 20_000, 300, 40  # rows at first, new ones each time, and old ones that change each time
START = datetime(2024, 1, 1, tzinfo=UTC)
SCHEMA = '''"""Orders."""

import pandas as pd
import pandera.pandas as pa


class Schema(pa.DataFrameModel):
    """An order."""

    id: int = pa.Field(unique=True, metadata={"role": "id"})
    updated_at: pd.Timestamp = pa.Field(metadata={"role": "time"})
    지역: str = pa.Field()
    amount: int = pa.Field()
    paid: str = pa.Field(isin=["no", "yes"], metadata={"role": "target"})
'''
Row = dict[str, Any]


class Orders:
    """The expected content of a source: the newest state of each order; `change` creates the next rows."""

    def __init__(self) -> None:
        self.state: dict[int, Row] = {}
        self.random = random.Random(7)
        self.clock = 0

    def change(self, new: int) -> list[Row]:
        """New orders, and existing ones in another state."""
        old = self.random.sample(sorted(self.state), min(AGAIN, len(self.state)))
        made = [self._row(key) for key in [*old, *range(len(self.state), len(self.state) + new)]]
        self.state |= {row["id"]: row for row in made}
        return made

    def _row(self, key: int) -> Row:
        self.clock += 1
        moment = (START + timedelta(seconds=self.clock)).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "id": key,
            "updated_at": moment,
            "지역": "서울",
            "amount": self.clock,
            "paid": "no" if key % 2 else "yes",
        }


Load = Callable[[list[Row]], None]


def as_csv(rows: list[Row]) -> bytes:
    return pd.DataFrame(rows).to_csv(index=False).encode()


@contextlib.contextmanager
def files(folder: Path, _: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str], Load]]:
    """A folder that gets one more file each time."""
    lake = folder / "lake"
    lake.mkdir()
    yield str(lake), {}, lambda rows: (lake / f"{time.time_ns()}.csv").write_bytes(as_csv(rows)) and None


@contextlib.contextmanager
def bucket(folder: Path, _: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str], Load]]:
    """A bucket that gets one more object each time."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "someone", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    import botocore.session

    client = botocore.session.get_session().create_client("s3", endpoint_url=f"http://{host}:{port}", **keys)
    lake = f"lake-{port}"  # moto's buckets outlive its servers
    client.create_bucket(Bucket=lake)
    environment = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_EC2_METADATA_DISABLED": "true"}
    environment |= {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret"}
    try:
        yield (
            f"s3://{lake}/in",
            environment,
            lambda rows: client.put_object(Bucket=lake, Key=f"in/{time.time_ns()}.csv", Body=as_csv(rows)) and None,
        )
    finally:
        client.close()
        server.stop()


@contextlib.contextmanager
def database(folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str], Load]]:
    """A table with added and updated rows."""
    address = request.getfixturevalue("postgres")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute('DROP TABLE IF EXISTS "주문"')
        connection.execute(
            'CREATE TABLE "주문" (id bigint PRIMARY KEY, updated_at timestamptz, "지역" text, amount bigint, paid text)'
        )

        def load(rows: list[Row]) -> None:
            values = [tuple(row.values()) for row in rows]
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany(
                    'INSERT INTO "주문" VALUES (%s, %s, %s, %s, %s) ON CONFLICT (id) DO UPDATE '
                    "SET updated_at = excluded.updated_at, amount = excluded.amount",
                    values,
                )

        yield f"{address}#주문", {}, load
        connection.execute('DROP TABLE "주문"')


@contextlib.contextmanager
def api(folder: Path, _: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str], Load]]:
    """An API that gives the changes since a moment, by pages."""
    held: list[Row] = []

    def answer(query: dict[str, str], _: int) -> tuple[int, dict[str, str], Any]:
        found = [row for row in held if row["updated_at"] >= query.get("since", "")]
        start = int(query.get("cursor", 0))
        end = start + 5_000
        return 200, {}, {"items": found[start:end], "next": end if end < len(found) else None}

    server = Server(answer)
    try:
        yield f"{server.uri}#records=items&next=next&param=cursor&since=since", {}, held.extend
    finally:
        server.close()


@contextlib.contextmanager
def topic(folder: Path, _: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str], Load]]:
    """A topic that gets one message a change, those of one order in one partition."""
    cluster = Cluster()

    def load(rows: list[Row]) -> None:
        for partition in range(3):
            cluster.send("orders", [row for row in rows if row["id"] % 3 == partition], partition)

    yield cluster.uri("orders"), {}, load


SOURCES = {"files": files, "bucket": bucket, "database": database, "api": api, "topic": topic}


@pytest.fixture(params=SOURCES)
def growing(request: pytest.FixtureRequest, make: Make, tmp_path: Path) -> Iterator[tuple[Project, Orders, Load]]:
    """A project on a source of one kind, its expected content, and a function that adds rows."""
    with SOURCES[request.param](tmp_path, request) as (uri, environment, load):
        project = make(rows=None)
        project.environment |= environment
        (project.root / "model" / "schema.py").write_text(SCHEMA, encoding="utf-8")
        project.configure("data", source=uri, target="paid", problem="binary", watermark="updated_at")
        project.configure("fetch", timeout_seconds=30)
        commit_all(project.root)
        orders = Orders()
        load(orders.change(ROWS))
        succeed(project.ml("ingest"))
        require_all(project, orders)
        yield project, orders, load


def require_all(project: Project, orders: Orders) -> None:
    """Check that the latest snapshot has every order once, in its newest state."""
    snapshots = Snapshots(Store(project.store))
    table = pa.concat_tables(list(snapshots.batches(project.latest["ingest"], ["id", "amount"])))
    found = sorted(zip(table["id"].to_pylist(), table["amount"].to_pylist(), strict=True))
    assert found == sorted((row["id"], row["amount"]) for row in orders.state.values())


def kill_at(project: Project, log: Path, point: int, when: str) -> bool:
    """Ingest until the change number `point`; return True if there is one."""
    log.unlink(missing_ok=True)
    path = {"PYTHONPATH": python_path(project.root, engine=project.root / "vendor")}
    done = project.python(str(KILLER), str(log), str(point), when, "ingest", **path)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def test_killed_at_each_step_nothing_is_lost_or_doubled(growing: tuple[Project, Orders, Load], tmp_path: Path) -> None:
    project, orders, load = growing
    killed = 0
    for when in ("within", "after"):  # a kill before a change is one after the change before it
        for point in range(1, 20):
            load(orders.change(MORE))
            alive = not kill_at(project, tmp_path / "log", point, when)
            if not alive and point % 2:  # the next one finds what two of them left
                load(orders.change(MORE))
            succeed(project.ml("ingest"))
            require_all(project, orders)
            if alive:
                break
            killed += 1
    assert killed >= 8
    assert not list(project.store.rglob(".tmp-*"))


def test_killed_at_any_moment_nothing_is_lost_or_doubled(growing: tuple[Project, Orders, Load]) -> None:
    project, orders, load = growing
    start = time.monotonic()
    succeed(project.ml("ingest"))
    usual = time.monotonic() - start
    chance = random.Random(11)
    for _ in range(6):
        load(orders.change(MORE))
        with subprocess.Popen(
            [sys.executable, "-m", "ondol.cli", "ingest"],
            cwd=project.root,
            env=project.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            time.sleep(usual * chance.uniform(0.5, 1))
            os.kill(process.pid, signal.SIGKILL)
    succeed(project.ml("ingest"))
    require_all(project, orders)
