"""A planted password is found nowhere in what runs leave behind, those that succeed and those that fail."""

import base64
import contextlib
import gzip
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pyarrow.parquet as pq
import pytest
import sqlalchemy
from conftest import Render
from template_support import commit_all

from e2e.support import NOWHERE, Project, free_port, make_project, refuse, sample, succeed, wait_until_alone

CORE = "pLaNted7f3a"  # no encoding of text changes these letters
PASSWORD, TOKEN = f"{CORE}@/비밀", f"{CORE}-hook"
TABLE = "심은_고객"


@pytest.fixture
def planted(render: Render, postgres: str, tmp_path: Path) -> Iterator[Project]:
    """A project on a table of a PostgreSQL, with a password in `.env` and a webhook that nobody receives."""
    engine = sqlalchemy.create_engine(postgres.replace("postgresql://", "postgresql+psycopg://"))
    typed = pd.read_csv(io.StringIO(sample().to_csv(index=False)), parse_dates=["signup_month"])
    typed.to_sql(TABLE, engine, index=False, if_exists="replace")
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
    """The bytes of a file, and what is packed in them."""
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
    say(planted, "run")
    for words in (["status"], ["data", "log"], ["doctor"], ["ingest", "--full"], ["contract", "diff"], ["report"]):
        say(planted, *words)
    source = str(planted.json(f"snapshots/{planted.latest['ingest']}.json")["source"])
    assert "${DB_PASSWORD}" in source
    for wrong in (source.replace(TABLE, "없는_표"), re.sub(r"@[^/]*/", "@127.0.0.1:9/", source)):
        planted.configure("data", source=wrong)
        planted.configure("fetch", retries=0)
        assert CORE not in refuse(planted.ml("run"))
    assert not wait_until_alone(planted.root)
    assert (planted.store / "alerts").exists()  # what could not be told is kept, and looked through as well
    assert holders(tmp_path) == []


@pytest.mark.slow
def test_no_server_leaves_a_secret(planted: Project, tmp_path: Path) -> None:
    planted.configure("ports", prefect=free_port(), mlflow=free_port())
    planted.configure("service", port=free_port())
    say(planted, "run")
    try:
        say(planted, "up")
        for words in (["retrain", "--wait"], ["monitor"], ["status"]):
            assert CORE not in planted.ml(*words).stdout
    finally:
        say(planted, "down")
    assert not wait_until_alone(planted.root)
    assert holders(tmp_path) == []
