"""A planted password is in no file that successful or failed runs write."""

import base64
import contextlib
import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pandas as pd
import pyarrow.parquet as pq
import pytest
import sqlalchemy
from conftest import Render
from sources_support import Cluster, Server
from template_support import commit_all

from e2e.support import (
    NOWHERE,
    Project,
    make_project,
    prefect_server,
    refuse,
    sample,
    succeed,
    wait_until_alone,
)

CORE = "pLaNted7f3a"  # no encoding of text changes these letters
PASSWORD, TOKEN = f"{CORE}@/비밀", f"{CORE}-hook"
SPACED = f"pl {CORE}!/+x"  # which a query that is rewritten holds in another form
TABLE = "심은_고객"


def typed_sample() -> pd.DataFrame:
    return pd.read_csv(io.StringIO(sample().to_csv(index=False)), parse_dates=["signup_month"])


@pytest.fixture
def planted(render: Render, postgres: str, tmp_path: Path) -> Iterator[Project]:
    """A project on a table of a PostgreSQL, with a password in `.env` and a webhook without a receiver."""
    engine = sqlalchemy.create_engine(postgres.replace("postgresql://", "postgresql+psycopg://"))
    typed_sample().to_sql(TABLE, engine, index=False, if_exists="replace")
    project = make_project(render(), tmp_path / "customer-churn", None, HOME=str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (project.root / ".env").write_text(
        f'DB_PASSWORD="{PASSWORD}"\nML_ALERTS__WEBHOOK="{NOWHERE}/{TOKEN}"\n', encoding="utf-8"
    )
    address = re.sub(r"//(\w+):?@", r"//\1:${DB_PASSWORD}@", postgres)
    project.configure("data", source=f"{address}#{TABLE}")
    commit_all(project.root)
    yield project
    with engine.begin() as connection, contextlib.suppress(sqlalchemy.exc.DatabaseError):
        connection.exec_driver_sql(f'DROP TABLE "{TABLE}"')
    engine.dispose()


def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and those of archives in it."""
    held = path.read_bytes()
    yield held
    if held[:2] == b"\x1f\x8b":
        yield gzip.decompress(held)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            yield from (packed.read(name) for name in packed.namelist())
    if path.suffix == ".parquet":
        yield pq.read_table(path).to_pandas().to_csv(index=False).encode()


def holders(folder: Path) -> list[str]:
    """The files below `folder` that hold a secret in any form, but for `.env`."""
    forms = {CORE, *(form for text in (PASSWORD, TOKEN) for form in (quote(text, safe=""), text))}
    looked = [form.encode() for form in forms] + [base64.b64encode(t.encode())[:-4] for t in (PASSWORD, TOKEN)]
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".env"]
    assert len(files) > 50
    found = [path for path in files if any(form in held for held in contents(path) for form in looked)]
    return [path.relative_to(folder).as_posix() for path in found]


def say(project: Project, *words: str) -> str:
    done = project.ml(*words)
    assert CORE not in done.stdout + done.stderr
    return succeed(done).stdout


def test_no_run_leaves_a_secret(planted: Project, tmp_path: Path) -> None:
    """The first command starts its own server, the others use a running one; both databases are searched."""
    say(planted, "run")
    source = str(planted.json(f"snapshots/{planted.latest['ingest']}.json")["source"])
    assert "${DB_PASSWORD}" in source
    with prefect_server(tmp_path / "prefect", tmp_path / "prefect.log") as prefect:
        planted.environment["PREFECT_API_URL"] = prefect
        for words in (["status"], ["data", "log"], ["doctor"], ["ingest", "--full"], ["contract", "diff"], ["report"]):
            say(planted, *words)
        planted.configure("fetch", retries=0)
        for wrong in (source.replace(TABLE, "없는_표"), re.sub(r"@[^/]*/", "@127.0.0.1:9/", source)):
            planted.configure("data", source=wrong)
            assert CORE not in refuse(planted.ml("run"))
    assert not wait_until_alone(planted.root)
    assert (planted.store / "alerts").exists()  # what could not be told is kept, and looked through as well
    assert holders(tmp_path) == []


class Customers:
    """An API that wants a token in a header or in the query, and fails once on its second page."""

    def __init__(self) -> None:
        self.rows = json.loads(typed_sample().to_json(orient="records", date_format="iso"))
        self.failed = self.refusing = False
        self.server = Server(self.answer)

    def answer(self, query: dict[str, str], _: int) -> tuple[int, dict[str, str], list[object] | bytes]:
        allowed = query.get("key") == SPACED and not self.refusing
        if "p" not in query and allowed:
            return 200, {}, sample().to_csv(index=False).encode()
        if query.get("p") == "2" and not self.failed:
            self.failed = True
            return 500, {}, []
        start = (int(query.get("p", 1)) - 1) * 800
        return (200, {}, self.rows[start : start + 800]) if allowed else (401, {}, [SPACED])


@pytest.fixture
def keyed(render: Render, tmp_path: Path) -> Iterator[tuple[Project, Customers]]:
    """A project on an API, with a Prefect server whose database is also searched."""
    api = Customers()
    (tmp_path / "home").mkdir()
    with prefect_server(tmp_path / "prefect", tmp_path / "prefect.log") as prefect:
        surroundings = {"HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1", "PREFECT_API_URL": prefect}
        project = make_project(render(), tmp_path / "customer-churn", None, **surroundings)
        secrets = {
            "QUERY_TOKEN": SPACED,
            "HEADER_TOKEN": TOKEN,
            "KAFKA_PASSWORD": PASSWORD,
            "API_URL": f"http://{api.server.host}/all?key={quote_plus(SPACED)}#header=Authorization: Bearer {TOKEN}",
            "DATABASE_URL": f"postgresql://ann:{quote(PASSWORD, safe='')}@127.0.0.1:9/db",
        }
        lines = "".join(f"{name}='{value}'\n" for name, value in secrets.items())
        (project.root / ".env").write_text(lines, encoding="utf-8")
        read = "?key=${QUERY_TOKEN}#page=p&header=Authorization: Bearer ${HEADER_TOKEN}"
        project.configure("data", source=api.server.uri + read)
        project.configure("fetch", retries=1, timeout_seconds=5)
        yield project, api
        api.server.close()


@pytest.mark.slow
def test_no_token_or_secret_address_is_left(keyed: tuple[Project, Customers], tmp_path: Path) -> None:
    project, api = keyed
    say(project, "run")
    assert api.failed and f"Bearer {TOKEN}" in {headers.get("Authorization") for _, headers in api.server.asked}
    say(project, "predict", "${API_URL}", "out.csv")
    for source in ("${DATABASE_URL}#t", f"postgresql://ann:{CORE}@127.0.0.1:9/db#t", f"{api.server.uri}?sig={CORE}"):
        refuse(done := project.ml("predict", source, "out.csv"))
        assert CORE not in done.stdout + done.stderr
    api.refusing = True
    assert "refused (401)" in (said := refuse(project.ml("ingest"))) and CORE not in said
    cluster = Cluster()
    cluster.send("customers", api.rows)
    password = "&sasl.username=me&sasl.password=${KAFKA_PASSWORD}"
    project.configure("data", source=cluster.uri("customers", password))
    say(project, "ingest")
    secured = "&security.protocol=SASL_PLAINTEXT&sasl.mechanism=PLAIN"
    project.configure("data", source=f"kafka://127.0.0.1:9/customers?group=churn{password}{secured}")
    assert CORE not in refuse(project.ml("ingest"))
    assert not wait_until_alone(project.root)
    assert holders(tmp_path) == []


@pytest.mark.slow
def test_no_server_leaves_a_secret(planted: Project, tmp_path: Path) -> None:
    planted.choose_ports()
    say(planted, "run")
    try:
        say(planted, "up")
        for words in (["retrain", "--wait"], ["monitor"], ["status"]):
            assert CORE not in planted.ml(*words).stdout
    finally:
        say(planted, "down")
    assert not wait_until_alone(planted.root)
    assert holders(tmp_path) == []
