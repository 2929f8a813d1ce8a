"""SQL databases are read in one state, in batches, in few types, and every failure is one sentence without a secret."""

import contextlib
import datetime as dt
import logging
import socket
import sqlite3
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from types import SimpleNamespace

import duckdb
import psycopg
import pyarrow as pa
import pymysql
import pytest
from growing_support import grow, project_of

from ondol import redaction as secrets
from ondol.config import Data, Fetch, Settings
from ondol.contract import Column, Contract
from ondol.errors import UserError
from ondol.ingestion.ingest import open_project_source, read_source
from ondol.ingestion.sources import Reading, Retyped, SupportsSince, open_source, read_through

PASSWORD = "hunter2-geheim"
SOON = Fetch(timeout_seconds=20, retries=0)


@pytest.fixture(autouse=True)
def _secrets(monkeypatch):
    monkeypatch.setattr(secrets, "_names", {})
    monkeypatch.setenv("PLANTED", PASSWORD)


@pytest.fixture(scope="session")
def maria():
    try:
        pymysql.connect(host="127.0.0.1", user="root", database="test", connect_timeout=10).close()
    except pymysql.Error as error:
        pytest.skip(f"no MariaDB answers on 127.0.0.1:3306: {error.args[0]}")
    return "mariadb://root@127.0.0.1:3306/test"


class Database:
    """One database with a table of its own, under an unused Korean name."""

    def __init__(self, uri, connect, quote='"'):
        self.uri, self.connect = uri, connect
        self.name = f"고객_{uuid.uuid4().hex[:8]}"
        self.quoted = f"{quote}{self.name}{quote}"

    def run(self, *statements):
        with contextlib.closing(self.connect()) as connection:
            for statement in statements:
                connection.cursor().execute(statement.replace("TABLE_", self.quoted))
            connection.commit()

    def source(self, rest=None, columns=None, root=None, fetch=SOON):
        reading = Reading(columns, root or Path.cwd(), fetch)
        return open_source(
            f"{self.uri}#{(rest or 'TABLE_').replace('TABLE_', self.quoted if rest else self.name)}", reading
        )


@contextlib.contextmanager
def _database(kind, request, tmp_path):
    if kind == "sqlite":
        path = tmp_path / "shop.db"
        yield Database(f"sqlite:///{path}", lambda: sqlite3.connect(path))
    elif kind == "duckdb":
        path = tmp_path / "shop.duckdb"
        yield Database(f"duckdb:///{path}", lambda: duckdb.connect(str(path)))
    else:
        if kind == "postgres":
            uri = request.getfixturevalue("postgres")
            made = Database(uri, lambda: psycopg.connect(uri))
        else:
            uri = request.getfixturevalue("maria")
            made = Database(uri, lambda: pymysql.connect(host="127.0.0.1", user="root", database="test"), "`")
        yield made
        made.run("DROP TABLE IF EXISTS TABLE_")


@pytest.fixture
def db(request, tmp_path):
    with _database(request.param, request, tmp_path) as made:
        yield made


def on(*kinds):
    return pytest.mark.parametrize("db", kinds or ("sqlite", "duckdb", "postgres", "maria"), indirect=True)


def _table(source):
    return read_through(source, lambda batches: pa.Table.from_batches(list(batches)))


def _refusal(act):
    with pytest.raises(UserError) as caught:
        act()
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith((".", "?"))
    assert PASSWORD not in sentence
    return sentence


def _customers(db):
    db.run(
        "CREATE TABLE TABLE_ (id INTEGER, 이름 VARCHAR(20), 지역 VARCHAR(20))",
        "INSERT INTO TABLE_ VALUES (1, '김', '서울'), (2, '이', '부산'), (NULL, '박', '서울 50%')",
    )


@on()
def test_tables_and_queries_are_read_in_any_script(db):
    _customers(db)
    assert _table(db.source()).to_pylist()[1] == {"id": 2, "이름": "이", "지역": "부산"}
    query = db.source("SELECT 이름, ':x' AS c\nFROM TABLE_ WHERE 지역 LIKE '서울%' ORDER BY 이름;")
    assert _table(query).to_pylist() == [{"이름": "김", "c": ":x"}, {"이름": "박", "c": ":x"}]
    assert query.fingerprint() is None


@on()
@pytest.mark.parametrize("rest", ["TABLE_", "WITH t AS (SELECT * FROM TABLE_) SELECT * FROM t -- '50%'"])
def test_since_leaves_out_what_is_older_and_keeps_what_is_missing(db, rest):
    _customers(db)
    source = db.source(rest if rest != "TABLE_" else None)
    assert isinstance(source, SupportsSince)
    assert sorted(_table(source.since("id", 2)).column("이름").to_pylist()) == ["박", "이"]
    assert sorted(_table(source.since("지역", "서울")).column("이름").to_pylist()) == ["김", "박"]
    assert "no column" in _refusal(lambda: source.since("idd", 2))


@on()
def test_since_a_moment_takes_all_of_it_and_later(db):
    db.run(
        "CREATE TABLE TABLE_ (seen TIMESTAMP NULL)",
        "INSERT INTO TABLE_ VALUES ('2024-01-01 00:00:00'), ('2024-03-01 10:00:00'), ('2024-03-02 00:00:00'), (NULL)",
    )
    later = _table(db.source().since("seen", dt.datetime(2024, 3, 1, 10))).column("seen").to_pylist()
    assert later == [dt.datetime(2024, 3, 1, 10), dt.datetime(2024, 3, 2), None]


def _older(day):
    """Return what another program may have written for a moment, in forms of which some do not sort."""
    at = dt.datetime(2024, 1, 1, 9) + dt.timedelta(days=day)
    ahead, behind = (dt.timezone(dt.timedelta(hours=hours)) for hours in (9, -12))
    moment = at.replace(tzinfo=dt.UTC)
    forms = ("%d.%m.%Y %H:%M", "%m/%d/%Y %H:%M", "%Y/%m/%d %H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S.000001")
    zones = [moment.astimezone(zone).isoformat() for zone in (ahead, behind)]
    return [*(at.strftime(form) for form in forms), *zones, at.strftime("%d %b %Y")]


@on()
@pytest.mark.parametrize("kind", ["VARCHAR(40)", "DATETIME"])
def test_since_a_moment_keeps_all_that_may_be_later_in_any_form(db, kind):
    if kind == "DATETIME" and not db.uri.startswith("sqlite"):
        pytest.skip("other databases hold nothing but dates in a column of dates")
    later = [text for day in (23, 40, 300) for text in _older(day)]
    values = ", ".join(f"('{text}')" for text in [*_older(0), *later])
    db.run(f"CREATE TABLE TABLE_ (seen {kind})", f"INSERT INTO TABLE_ VALUES {values}, (NULL)")
    since = db.source(columns={"seen": "date"}).since("seen", dt.datetime(2024, 1, 24, 9))
    kept = _table(since).column("seen").to_pylist()
    assert set(kept) >= {*later, None}
    if db.uri.startswith("sqlite"):
        assert set(_older(0)) - set(kept) == {text for text in _older(0) if text[4] == "-"}


@on()
def test_since_a_number_keeps_all_that_may_be_later_in_a_column_of_text(db):
    db.run("CREATE TABLE TABLE_ (n VARCHAR(20))", "INSERT INTO TABLE_ VALUES ('9'), ('10'), ('100'), ('1e3'), (NULL)")
    kept = _table(db.source(columns={"n": "number"}).since("n", 9.5)).column("n").to_pylist()
    assert set(kept) >= {"10", "100", "1e3", None}


@on("maria")
def test_since_a_moment_keeps_a_zero_date_which_is_missing(db):
    db.run(
        "SET sql_mode = ''",
        "CREATE TABLE TABLE_ (seen DATE, at DATETIME)",
        "INSERT INTO TABLE_ VALUES ('0000-00-00', '0000-00-00'), ('2024-01-01', '2024-01-01'), (NULL, NULL)",
    )
    for name in ("seen", "at"):
        assert _table(db.source().since(name, dt.datetime(2024, 3, 1))).column(name).to_pylist() == [None, None]


@on("sqlite")
def test_a_table_of_dates_that_do_not_sort_grows_by_every_new_row(db, tmp_path):
    columns = (Column(name="id", kind="integer", role="id"), Column(name="seen", kind="date", role="time"))
    contract = Contract(problem="binary", target="id", columns=columns)
    data = Data(source=f"{db.uri}#{db.name}", watermark="seen")
    chosen = Settings(root=tmp_path, data=data, fetch=SOON)
    db.run("CREATE TABLE TABLE_ (id INTEGER, seen TEXT)", "INSERT INTO TABLE_ VALUES (1, '24.01.2024')")
    assert grow(chosen, contract, open_project_source(chosen, contract)).rows == 1
    db.run("INSERT INTO TABLE_ VALUES (2, '01.02.2024'), (3, '02/03/2024'), (4, '2024-02-04')")
    assert grow(chosen, contract, open_project_source(chosen, contract)).rows == 4


INT, FLOAT, BOOL, TEXT, MOMENT = pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.timestamp("us")
NINE = dt.datetime(2024, 1, 1, 9)
TYPES = {
    "postgres": [
        ("smallint", "7", INT, 7),
        ("bigint", "9007199254740993", INT, 9007199254740993),
        ("numeric(10,2)", "1.5", FLOAT, 1.5),
        ("real", "0.5", FLOAT, 0.5),
        ("boolean", "true", BOOL, True),
        ("text", "'가'", TEXT, "가"),
        ("uuid", "'00000000-0000-0000-0000-000000000001'", TEXT, "00000000-0000-0000-0000-000000000001"),
        ("jsonb", """'{"가": [1]}'""", TEXT, '{"가": [1]}'),
        ("date", "'2024-01-01'", MOMENT, dt.datetime(2024, 1, 1)),
        ("timestamp", "'2024-01-01 09:00'", MOMENT, NINE),
        ("timestamptz", "'2024-01-01 18:00+09'", MOMENT, NINE),
        ("time", "'09:00'", TEXT, "09:00:00"),
        ("interval", "'1 day 1 second'", TEXT, "24:00:01"),
        ("text[]", "'{a,b}'", TEXT, '["a", "b"]'),
    ],
    "maria": [
        ("tinyint(1)", "1", BOOL, True),
        ("bit(1)", "1", BOOL, True),
        ("int unsigned", "4000000000", INT, 4000000000),
        ("decimal(10,2)", "1.5", FLOAT, 1.5),
        ("double", "0.5", FLOAT, 0.5),
        ("varchar(9)", "'가'", TEXT, "가"),
        ("longtext", "'가'", TEXT, "가"),
        ("enum('a','b')", "'a'", TEXT, "a"),
        ("date", "'2024-01-01'", MOMENT, dt.datetime(2024, 1, 1)),
        ("datetime(6)", "'2024-01-01 09:00'", MOMENT, NINE),
        ("time", "'-09:00'", TEXT, "-09:00:00"),
        ("year", "2024", INT, 2024),
    ],
    "sqlite": [
        ("INTEGER", "7", INT, 7),
        ("DECIMAL(10,2)", "5", FLOAT, 5.0),
        ("BOOLEAN", "1", BOOL, True),
        ("TEXT", "'가'", TEXT, "가"),
        ("DATE", "'2024-01-01'", MOMENT, dt.datetime(2024, 1, 1)),
        ("TIMESTAMP", "'2024-01-01T18:00:00+09:00'", MOMENT, NINE),
        ("", "1.5", FLOAT, 1.5),
    ],
    "duckdb": [
        ("utinyint", "7", INT, 7),
        ("hugeint", "7", FLOAT, 7.0),
        ("decimal(38,2)", "1.5", FLOAT, 1.5),
        ("boolean", "true", BOOL, True),
        ("enum('a','b')", "'a'", TEXT, "a"),
        ("uuid", "'00000000-0000-0000-0000-000000000001'", TEXT, "00000000-0000-0000-0000-000000000001"),
        ("date", "'2024-01-01'", MOMENT, dt.datetime(2024, 1, 1)),
        ("timestamptz", "'2024-01-01 18:00+09'", MOMENT, NINE),
        ("time", "'09:00'", TEXT, "09:00:00.000000"),
    ],
}


@on()
def test_every_type_becomes_one_of_five_also_where_all_is_missing(db, request):
    cases = TYPES[request.node.callspec.params["db"]]
    columns = ", ".join(f"c{i} {case[0]}{' NULL' if case[0] else ''}" for i, case in enumerate(cases))
    db.run(f"CREATE TABLE TABLE_ ({columns})", f"INSERT INTO TABLE_ VALUES ({', '.join(c[1] for c in cases)})")
    for rest in (None, "SELECT * FROM TABLE_") if "sqlite" not in db.uri else (None,):
        table = _table(db.source(rest))
        assert dict(zip((c[0] for c in cases), table.schema.types, strict=True)) == {c[0]: c[2] for c in cases}
        assert list(table.to_pylist()[0].values()) == [c[3] for c in cases]
    if "sqlite" not in db.uri:
        empty = db.source("SELECT * FROM TABLE_ WHERE 1 = 0")
        assert empty.schema.types == [c[2] for c in cases]
        assert list(empty.batches()) == []


@on()
def test_bytes_are_refused_by_the_column_s_name(db):
    kind, value = ("bytea", "'\\x00'::bytea") if "postgres" in db.uri else ("blob", "'a'")
    value = "x'00'" if "sqlite" in db.uri or "maria" in db.uri else value
    db.run(f"CREATE TABLE TABLE_ (사진 {kind})", f"INSERT INTO TABLE_ VALUES ({value})")
    sentence = _refusal(lambda: _table(db.source()))
    assert '"사진"' in sentence and ("bytes" in sentence or "binary" in sentence)


@on("sqlite")
def test_late_values_of_other_types_widen_their_columns_at_once(db):
    rows = ", ".join(["(1, 1, 1, '2024-01-01')"] * 5000)
    db.run(
        "CREATE TABLE TABLE_ (a INTEGER, b INTEGER, c BOOLEAN, d DATE)",
        f"INSERT INTO TABLE_ VALUES {rows}",
        "INSERT INTO TABLE_ VALUES ('x', 0.5, 2, 'soon')",
    )
    source = db.source()
    with pytest.raises(Retyped):
        list(source.batches())
    table = pa.Table.from_batches(list(source.batches()))
    assert table.schema.types == [TEXT, FLOAT, INT, TEXT]
    assert table.to_pylist()[-1] == {"a": "x", "b": 0.5, "c": 2, "d": "soon"} and table.num_rows == 5001
    assert table.column("a")[0].as_py() == "1" and table.column("d")[0].as_py() == "2024-01-01"


@on("maria")
def test_integers_beyond_64_bits_become_text_and_no_date_is_missing(db):
    db.run("CREATE TABLE TABLE_ (n BIGINT UNSIGNED, d DATE)")
    with contextlib.closing(db.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("SET sql_mode = ''")
        cursor.execute(f"INSERT INTO {db.quoted} VALUES (18446744073709551615, '0000-00-00'), (1, '2024-01-01')")
        connection.commit()
    assert _table(db.source()).to_pylist() == [
        {"n": "18446744073709551615", "d": None},
        {"n": "1", "d": dt.datetime(2024, 1, 1)},
    ]


@on()
def test_text_of_the_contract_is_read_as_text(db):
    db.run("CREATE TABLE TABLE_ (code INTEGER)", "INSERT INTO TABLE_ VALUES (7)")
    assert _table(db.source(columns={"code": "text"})).to_pylist() == [{"code": "7"}]


@on("postgres", "maria")
def test_first_rows_come_before_the_query_ends_and_the_rest_is_left_unread(db):
    slow = (
        "SELECT i, CASE WHEN i > 20000 THEN pg_sleep(600)::text END AS t FROM generate_series(1, 30000) AS i"
        if "postgres" in db.uri
        else "SELECT seq AS i, IF(seq > 20000, SLEEP(600), 0) AS t FROM seq_1_to_30000"
    )
    source = db.source(slow)
    batches = source.batches()
    assert next(batches).num_rows > 0
    batches.close()


@on("postgres", "maria")
def test_a_table_written_meanwhile_gives_one_state(db):
    series = "generate_series(1, 50000) AS i" if "postgres" in db.uri else "(SELECT seq AS i FROM seq_1_to_50000) AS s"
    db.run("CREATE TABLE TABLE_ (i INTEGER)", f"INSERT INTO TABLE_ SELECT i FROM {series}")
    batches = db.source().batches()
    rows = next(batches).num_rows
    db.run("DELETE FROM TABLE_ WHERE i > 40000", "INSERT INTO TABLE_ VALUES (-1)")
    assert rows + sum(batch.num_rows for batch in batches) == 50_000


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_paths_are_relative_to_the_project_and_files_are_not_made(tmp_path, kind):
    (tmp_path / "data").mkdir()
    connect = sqlite3.connect if kind == "sqlite" else duckdb.connect
    with contextlib.closing(connect(str(tmp_path / "data/한 글.db"))) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS a")
        connection.commit()
    reading = Reading(root=tmp_path, fetch=SOON)
    assert _table(open_source(f"{kind}:///data/한 글.db#t", reading)).to_pylist() == [{"a": 1}]
    assert 'mean "한 글.db"' in _refusal(lambda: open_source(f"{kind}:///data/한글.db#t", reading))
    assert not (tmp_path / "data/한글.db").exists()
    (tmp_path / "data/text.db").write_text("no database at all, and quite long\n" * 100, encoding="utf-8")
    assert "text.db" in _refusal(lambda: _table(open_source(f"{kind}:///data/text.db#t", reading)))


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
@pytest.mark.parametrize("there", [["a%20b.db"], ["a b.db"], ["a%20b.db", "a b.db"]])
def test_a_file_is_the_one_that_the_address_has_literally_else_the_one_that_it_encodes(tmp_path, kind, there):
    connect = sqlite3.connect if kind == "sqlite" else duckdb.connect
    for name in there:
        with contextlib.closing(connect(str(tmp_path / name))) as connection:
            connection.execute(f"CREATE TABLE t AS SELECT '{name}' AS a")
            connection.commit()
    reading = Reading(root=tmp_path, fetch=SOON)
    read = {name: _table(open_source(f"{kind}:///{name}#t", reading)).to_pylist() for name in there}
    assert read == {name: [{"a": name}] for name in there}
    assert _table(open_source(f"{kind}:///a%20b.db#t", reading)).to_pylist() == [{"a": there[0]}]


@on()
def test_a_missing_table_names_those_there_are(db):
    _customers(db)
    assert f'"{db.name}"' in _refusal(lambda: open_source(f"{db.uri}", Reading(fetch=SOON)).schema)
    assert f'mean "{db.name}"' in _refusal(lambda: open_source(f"{db.uri}#{db.name[:-1]}", Reading(fetch=SOON)).schema)


@on()
def test_only_a_single_select_is_run(db):
    _customers(db)
    for rest in ("DELETE FROM TABLE_", "SELECT 1; DELETE FROM TABLE_", "WITH t AS (SELECT 1) DELETE FROM TABLE_"):
        _refusal(lambda rest=rest: _table(db.source(rest)))
    if "postgres" in db.uri:
        changing = "WITH gone AS (DELETE FROM TABLE_ RETURNING id) SELECT * FROM gone"
        assert "data-modifying" in _refusal(lambda: _table(db.source(changing)))
    assert _table(db.source()).num_rows == 3


@on()
def test_a_wrong_query_is_reported_in_the_database_s_words(db):
    _customers(db)
    assert "nowhere" in _refusal(lambda: _table(db.source("SELECT nowhere FROM TABLE_")))


def test_a_whole_address_in_a_secret_is_read_and_never_shown(tmp_path, monkeypatch, caplog):
    with contextlib.closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS a")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///shop.db")
    assert _table(open_source("${DATABASE_URL}#t", Reading(root=tmp_path))).to_pylist() == [{"a": 1}]
    monkeypatch.setenv("DATABASE_URL", f"postgres://ann:{PASSWORD}@127.0.0.1:1/shop")
    caplog.set_level(logging.DEBUG)
    source = open_source("${DATABASE_URL}#t", Reading(fetch=SOON))
    assert "${DATABASE_URL}#t" in _refusal(lambda: source.schema)
    assert PASSWORD not in str(UserError(PASSWORD)) and PASSWORD not in caplog.text + repr(vars(source))
    monkeypatch.setenv("DATABASE_URL", f"{PASSWORD}://x")
    assert "unknown scheme" in _refusal(lambda: open_source("${DATABASE_URL}#t"))


def test_words_of_a_query_are_not_plain_secrets(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        connection.execute("CREATE TABLE t AS SELECT 'x' AS token")
    source = open_source("sqlite:///s.db#SELECT * FROM t WHERE token = 'x'", Reading(root=tmp_path))
    assert _table(source).num_rows == 1


@pytest.mark.parametrize("scheme", ["postgresql", "mariadb", "mysql"])
def test_a_host_that_does_not_answer_is_tried_again_and_then_reported(scheme):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"{scheme}://ann:${{PLANTED}}@127.0.0.1:{port}/shop#t"
    fetch = Fetch(timeout_seconds=5, retries=1)
    sentence = _refusal(lambda: open_source(uri, Reading(fetch=fetch)).schema)
    assert "cannot be reached" in sentence and "refused" in sentence and "${PLANTED}" in sentence


def test_an_unknown_host_is_reported(postgres):
    uri = "postgresql://ann:${PLANTED}@nowhere.invalid/shop#t"
    assert "cannot be reached" in _refusal(lambda: open_source(uri, Reading(fetch=SOON)).schema)


def test_unknown_databases_are_reported(postgres, maria):
    for uri in (postgres, maria):
        named = uri.replace("/test", "/nowhere_there").replace("/postgres?", "/nowhere_there?")
        assert "database that does not exist" in _refusal(
            lambda u=named: open_source(f"{u}#t", Reading(fetch=SOON)).schema
        )


def test_wrong_password_is_reported_by_mariadb_and_postgresql(maria):
    uri = "mariadb://stranger:${PLANTED}@127.0.0.1/test#t"
    assert "user or password" in _refusal(lambda: open_source(uri, Reading(fetch=SOON)).schema)
    with _refusing_postgres() as (port, heard):
        uri = f"postgresql://ann:${{PLANTED}}@127.0.0.1:{port}/test?sslmode=disable#t"
        sentence = _refusal(lambda: open_source(uri, Reading(fetch=Fetch(timeout_seconds=20, retries=3))).schema)
    assert "user or password" in sentence
    assert heard == [PASSWORD]  # sent once: a wrong password is not tried again


@contextlib.contextmanager
def _refusing_postgres():
    """A server that asks for the password in plain text and refuses it, as PostgreSQL does."""
    heard = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                with client:
                    client.recv(4096)
                    client.sendall(b"R" + (8).to_bytes(4, "big") + (3).to_bytes(4, "big"))
                    heard.append(client.recv(4096)[5:-1].decode())
                    body = b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "ann"\0\0'
                    client.sendall(b"E" + (len(body) + 4).to_bytes(4, "big") + body)

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1], heard
    server.close()


@on("postgres")
def test_a_missing_right_is_reported(db):
    _customers(db)
    if "127.0.0.1" not in db.uri:
        pytest.skip("the embedded server is on a socket")
    role = f"r_{uuid.uuid4().hex[:8]}"
    db.run(f"CREATE ROLE {role} LOGIN")
    try:
        uri = db.uri.replace("postgres@", f"{role}@")
        assert "right to SELECT" in _refusal(lambda: _table(open_source(f"{uri}#{db.name}", Reading(fetch=SOON))))
    finally:
        db.run(f"DROP ROLE {role}")


@on("postgres", "maria")
def test_a_query_over_its_time_is_reported(db):
    slow = "SELECT pg_sleep(60)" if "postgres" in db.uri else "SELECT SLEEP(60) AS s"
    source = db.source(slow, fetch=Fetch(timeout_seconds=2, retries=0))
    assert "took longer than 2 s" in _refusal(lambda: source.schema)


@on("postgres", "maria")
def test_a_connection_that_is_cut_midway_is_reported(db):
    mark = f"m{uuid.uuid4().hex}"
    table = "generate_series(1, 3000000)" if "postgres" in db.uri else "seq_1_to_3000000"
    named = f"&application_name={mark}" if "?" in db.uri else f"?application_name={mark}"
    uri = db.uri + (named if "postgres" in db.uri else "")
    batches = open_source(f"{uri}#SELECT '{mark}' AS mark, s.* FROM {table} AS s", Reading(fetch=SOON)).batches()
    next(batches)
    if "postgres" in db.uri:
        db.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{mark}'")
    else:
        with contextlib.closing(db.connect()) as connection:
            cursor = connection.cursor()
            cursor.execute(
                f"SELECT id FROM information_schema.processlist WHERE info LIKE '%{mark}%' AND id <> CONNECTION_ID()"
            )
            cursor.execute(f"KILL {cursor.fetchone()[0]}")
    assert "cut off" in _refusal(lambda: list(batches))


@on("postgres")
def test_a_connection_lost_before_the_first_rows_is_made_again(db, caplog):
    _customers(db)
    if "127.0.0.1" not in db.uri:
        pytest.skip("the embedded server is on a socket")
    server, calls = socket.create_server(("127.0.0.1", 0)), []

    def pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        sink.close()

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                calls.append(1)
                if len(calls) <= 2:
                    client.close()
                    continue
                behind = socket.create_connection(("127.0.0.1", 5432))
                for pair in ((client, behind), (behind, client)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    uri = db.uri.replace(":5432", f":{server.getsockname()[1]}") + f"?sslmode=disable&gssencmode=disable#{db.name}"
    try:
        assert _table(open_source(uri, Reading(fetch=Fetch(timeout_seconds=20, retries=4)))).num_rows == 3
        assert caplog.text.count("was cut off: trying again in") == 2
    finally:
        server.close()
    assert len(calls) == 3


READER = """
import resource, sys
from ondol.ingestion.sources import open_source
rows = sum(batch.num_rows for batch in open_source(sys.argv[1]).batches())
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@on("postgres")
def test_memory_does_not_grow_with_the_table(db):
    peaks = {}
    db.run(
        "CREATE TABLE TABLE_ AS SELECT i AS id, i * 0.5 AS x, md5(i::text) AS t, now() AS at "
        "FROM generate_series(1, 1000000) AS i"
    )
    for rows in (100_000, 1_000_000):
        uri = f"{db.uri}#SELECT * FROM {db.quoted} WHERE id <= {rows}"
        done = subprocess.run([sys.executable, "-c", READER, uri], capture_output=True, text=True, check=True)
        read, peaks[rows] = map(int, done.stdout.split())
        assert read == rows
    assert (peaks[1_000_000] - peaks[100_000]) / 1024 < 100


def test_wide_rows_come_in_small_batches(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        connection.execute("CREATE TABLE t (a TEXT)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 10_000,)] * 9000)
        connection.commit()
    sizes = [batch.num_rows for batch in open_source("sqlite:///s.db#t", Reading(root=tmp_path)).batches()]
    assert sum(sizes) == 9000 and max(sizes[1:]) < 1000


@on("postgres")
def test_ingest_takes_a_snapshot_of_a_table_with_a_secret_in_its_address(db, tmp_path):
    _customers(db)
    uri = db.uri.replace("postgres@", "postgres:${PLANTED}@") + f"#{db.name}"
    settings = Settings(root=tmp_path, data=Data(source=uri))
    contract = SimpleNamespace(kinds={"id": "integer", "지역": "text"}, used=())
    snapshot = read_source(project_of(settings, contract))
    assert (snapshot.rows, snapshot.columns, snapshot.source) == (3, ("id", "이름", "지역"), uri)
    assert read_source(project_of(settings, contract)).digest == snapshot.digest
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept and not any(PASSWORD.encode() in path.read_bytes() for path in kept)
