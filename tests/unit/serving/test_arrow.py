"""Tables of Arrow in `/predict`: the same predictions, errors and log as for the same rows in JSON."""

import io
import json
import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from service_support import ROW, TestClient, bundle_files, compile_model, crown, fit, write_bundle

from ondol_serving import arrow, request
from ondol_serving.bundle import Bundle, load_bundle
from ondol_serving.contract import Encoder, read_contract
from ondol_serving.errors import RequestRefused
from ondol_serving.request import Reader, compile_request
from ondol_serving.rollout import Rollout
from ondol_serving.serving import serving as state

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
STREAM = {"Content-Type": "application/vnd.apache.arrow.stream"}
ROWS = [ROW, ROW | {"house age": None, "class": "고양이", "지역": "부산", "가입일": None, "model_config": False}]
DATA = Path(__file__).parents[4] / "shared" / "data"


def write_stream(table: pa.Table, rows: int | None = None, **options: Any) -> bytes:
    """Return a table as a stream, in batches of `rows`."""
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return stream.getvalue()


def read_stream(content: bytes) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()


def table_of(rows: list[dict[str, Any]], **types: pa.DataType) -> pa.Table:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    return {problem: compile_model(fit(problem), problem) for problem in ("binary", "multiclass", "regression")}


@pytest.fixture
def serving(
    serve_store: Callable[[Path], TestClient], models: dict[str, bytes], tmp_path: Path
) -> Callable[..., TestClient]:
    def start(problem: str = "binary", **settings: Any) -> TestClient:
        files = bundle_files("7", problem, models[problem], settings={"max_rows": 100} | settings)
        crown(tmp_path, *write_bundle(tmp_path, files))
        return serve_store(tmp_path)

    return start


@pytest.fixture
def client(serving: Any) -> TestClient:
    made: TestClient = serving()
    return made


def post(client: TestClient, table: pa.Table | bytes, **headers: str) -> Any:
    body = table if isinstance(table, bytes) else write_stream(table)
    return client.post("/predict", content=body, headers=STREAM | headers)


def records(store: Path) -> list[dict[str, Any]]:
    lines = [line for file in sorted((store / "log").glob("*.jsonl")) for line in file.read_text("utf-8").splitlines()]
    return [json.loads(line) for line in lines]


# --- the answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["binary", "multiclass", "regression"])
def test_answer_has_the_numbers_of_json_in_columns(serving: Any, problem: str) -> None:
    client = serving(problem)
    wanted = client.post("/predict", json={"rows": ROWS}).json()["predictions"]
    answer = post(client, table_of(ROWS))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == STREAM["Content-Type"]
    table = read_stream(answer.content)
    if problem == "regression":
        assert table.to_pydict() == {"value": [one["value"] for one in wanted]}
    else:
        names = list(wanted[0]["probabilities"])
        assert table.column_names == ["label", *(f"probability {name}" for name in names)]
        assert table["label"].to_pylist() == [one["label"] for one in wanted]
        for name in names:
            assert table[f"probability {name}"].to_pylist() == [one["probabilities"][name] for one in wanted]
    about = {b"request_id": answer.headers["x-request-id"].encode(), b"model_version": b"7", b"role": b"champion"}
    assert table.schema.metadata == about
    assert answer.headers["x-model-version"] == "7"


def test_accept_decides_about_the_answer(client: TestClient) -> None:
    wanted = client.post("/predict", json={"rows": ROWS}).json()["predictions"]
    in_json = post(client, table_of(ROWS), Accept="application/json")
    assert in_json.json()["predictions"] == wanted
    in_arrow = client.post("/predict", json={"rows": ROWS}, headers={"Accept": STREAM["Content-Type"]})
    assert read_stream(in_arrow.content)["label"].to_pylist() == [one["label"] for one in wanted]


def test_a_number_that_overflowed_is_null(client: TestClient) -> None:
    bundle = state.bundle
    assert bundle is not None
    labels, probabilities = np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 0.5]], np.float32)
    table = read_stream(arrow.write_answer(bundle, labels, probabilities, "id"))
    assert table.to_pydict() == {"label": ["no", None], "probability no": [0.5, None], "probability yes": [0.5] * 2}
    logged = json.loads(arrow.write_predictions(bundle, labels, probabilities))
    assert logged == json.loads(json.dumps(bundle.describe(labels, probabilities)))


def test_log_has_the_record_of_the_same_rows_in_json(client: TestClient, tmp_path: Path) -> None:
    client.post("/predict", json={"rows": ROWS})
    answers = [post(client, table_of(ROWS)), post(client, write_stream(table_of(ROWS), rows=1))]
    first, *others = records(tmp_path)
    for answer, record in zip(answers, others, strict=True):
        assert record["id"] == answer.headers["x-request-id"]
        assert {name: record[name] for name in ("version", "bundle", "request", "predictions")} == {
            name: first[name] for name in ("version", "bundle", "request", "predictions")
        }


@pytest.mark.parametrize("problem", ["binary", "multiclass", "regression"])
def test_a_rollout_answers_a_table_by_the_version_that_it_chooses(
    serving: Any, models: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    client = serving(problem)
    champion = state.bundle
    assert champion is not None
    name, _ = write_bundle(tmp_path, bundle_files("8", problem, models[problem], settings={"max_rows": 100}))
    challenger = load_bundle(tmp_path / "bundles" / name)
    before = read_stream(post(client, table_of(ROWS)).content)
    monkeypatch.setattr(state, "rollout", Rollout("r", "canary", champion, challenger, (0.0,), (1.0,)))
    answer = post(client, table_of(ROWS))
    table = read_stream(answer.content)
    assert table.to_pydict() == before.to_pydict()
    assert table.schema.types == before.schema.types
    assert table.schema.metadata[b"role"] == b"challenger"
    assert answer.headers["x-model-version"] == "8"
    assert (records(tmp_path)[-1]["version"], records(tmp_path)[-1]["id"]) == ("8", answer.headers["x-request-id"])


@pytest.mark.parametrize("in_rollout", [False, True])
def test_an_explanation_needs_an_answer_in_json(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_rollout: bool
) -> None:
    champion = state.bundle
    assert champion is not None
    if in_rollout:
        monkeypatch.setattr(state, "rollout", Rollout("r", "canary", champion, champion, (0.0,), (1.0,)))
    answer = client.post("/predict", json={"rows": ROWS, "explain": True}, headers={"Accept": STREAM["Content-Type"]})
    assert (answer.status_code, answer.json()["error"]) == (400, arrow.EXPLAINED_IN_JSON)
    assert records(tmp_path) == []


def test_predictions_and_new_texts_are_counted(client: TestClient) -> None:
    from prometheus_client import REGISTRY

    def read() -> tuple[float, float]:
        rows = REGISTRY.get_sample_value("ml_predictions_total", {"model_version": "7"}) or 0
        return rows, REGISTRY.get_sample_value("ml_unknown_categories_total", {"column": "class"}) or 0

    rows, unknown = read()
    post(client, table_of(ROWS))
    assert read() == (rows + 2, unknown + 1)


# --- types of columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "types",
    [
        {"a.b/c?": pa.int8(), "house age": pa.float32()},
        {"a.b/c?": pa.uint64(), "매출 (원)": pa.int64(), "house age": pa.float64()},
        {"a.b/c?": pa.float64(), "매출 (원)": pa.float64(), "house age": pa.float16()},
        {"class": pa.large_string(), "지역": pa.dictionary(pa.int8(), pa.large_string())},
        {"class": pa.dictionary(pa.int32(), pa.string()), "가입일": pa.dictionary(pa.int16(), pa.string())},
    ],
)
def test_types_of_arrow_give_the_same_predictions(client: TestClient, types: dict[str, pa.DataType]) -> None:
    rows = [*ROWS, ROW | {"house age": 3.0}]
    wanted = client.post("/predict", json={"rows": rows}).json()["predictions"]
    table = read_stream(post(client, table_of(rows, **types)).content)
    assert table["probability yes"].to_pylist() == [one["probabilities"]["yes"] for one in wanted]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Seoul"])
def test_timestamps_are_moments_in_utc(client: TestClient, unit: str, zone: str | None) -> None:
    moment = pd.Timestamp("2021-02-03T04:05:06", tz="UTC")
    wanted = client.post("/predict", json={"rows": ROWS}).json()["predictions"]
    naive = moment.tz_localize(None).to_pydatetime()
    values = pa.array([naive, None], pa.timestamp(unit)).cast(pa.timestamp(unit, zone))
    table = table_of(ROWS)
    place = table.column_names.index("가입일")
    answer = post(client, table.set_column(place, "가입일", values))
    got = read_stream(answer.content)["probability yes"].to_pylist()
    assert got == [one["probabilities"]["yes"] for one in wanted]


def test_absent_columns_null_columns_and_nan_are_missing(client: TestClient) -> None:
    rows = [{k: v for k, v in ROW.items() if k != "가입일"} | {"house age": None}] * 2
    wanted = client.post("/predict", json={"rows": rows}).json()["predictions"]
    for column in (pa.nulls(2), pa.array([float("nan")] * 2), pa.array([None, float("nan")], pa.float64())):
        table = table_of(rows)
        answer = post(client, table.set_column(table.column_names.index("house age"), "house age", column))
        got = read_stream(answer.content)["probability yes"].to_pylist()
        assert got == [one["probabilities"]["yes"] for one in wanted]


def test_names_and_texts_are_compared_in_normal_form(client: TestClient) -> None:
    import unicodedata

    spelled = {unicodedata.normalize("NFD", name): value for name, value in ROW.items()}
    spelled[unicodedata.normalize("NFD", "지역")] = unicodedata.normalize("NFD", "서울")
    wanted = client.post("/predict", json={"rows": [ROW]}).json()["predictions"]
    got = read_stream(post(client, table_of([spelled])).content)
    assert got["probability yes"].to_pylist() == [wanted[0]["probabilities"]["yes"]]


def test_a_table_of_pandas_and_categories_that_do_not_occur(client: TestClient) -> None:
    frame = pd.DataFrame(ROWS).astype({"지역": pd.CategoricalDtype(["대구", "서울", "부산"])})
    frame["가입일"] = pd.to_datetime(frame["가입일"])
    wanted = client.post("/predict", json={"rows": ROWS}).json()["predictions"]
    got = read_stream(post(client, pa.Table.from_pandas(frame, preserve_index=False)).content)
    assert got["probability yes"].to_pylist() == [one["probabilities"]["yes"] for one in wanted]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"house age": -1.0},
        {"a.b/c?": -3},
        {"a.b/c?": 1.5},
        {"a.b/c?": None},
        {"지역": "대구"},
        {"지역": None},
        {"class": 3},
        {"가입일": "yesterday"},
        {"model_config": 1},
        {"model_config": "true"},
        {"stranger": 1, "다른": "x"},
        {"house age": 1e39},
    ],
)
def test_errors_are_those_of_json(client: TestClient, change: dict[str, Any]) -> None:
    rows = [row | change for row in ROWS]
    in_json = client.post("/predict", json={"rows": rows})
    answer = post(client, table_of(rows))
    assert (answer.status_code, answer.json()) == (400, in_json.json())


def test_a_missing_column_is_an_error_of_each_row(client: TestClient) -> None:
    rows = [{name: value for name, value in row.items() if name != "지역"} for row in ROWS]
    assert post(client, table_of(rows)).json() == client.post("/predict", json={"rows": rows}).json()


@pytest.mark.parametrize("rows", [0, 101])
def test_number_of_rows_is_limited_as_in_json(client: TestClient, rows: int) -> None:
    table = table_of([ROW] * 101).slice(0, rows)
    assert (
        post(client, write_stream(table, rows=7)).json() == client.post("/predict", json={"rows": [ROW] * rows}).json()
    )
    nulls = pa.table({"house age": pa.nulls(10**9)})  # costs its sender a few bytes
    assert "at most 100 rows" in post(client, nulls).json()["error"]


def test_bodies_are_limited(serving: Any) -> None:
    answer = post(serving(max_body_bytes=2_000), table_of([ROW] * 100))
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (413, "body_too_large")


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_streams_are_refused(client: TestClient, compression: str) -> None:
    answer = post(client, write_stream(table_of([ROW] * 100), compression=compression))
    assert answer.status_code == 400
    assert "compressed" in answer.json()["error"]


@pytest.mark.parametrize(
    "column",
    [pa.array([[1.0]] * 2), pa.array([b"1"] * 2), pa.array([{"a": 1}] * 2), pa.array([1] * 2, pa.decimal128(20))],
)
def test_other_types_are_refused_by_name(client: TestClient, column: pa.Array) -> None:
    answer = post(client, table_of(ROWS).set_column(0, "house age", column))
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (400, "invalid_arrow")
    assert "'house age'" in answer.json()["error"]


def test_a_column_that_is_there_twice_is_refused(client: TestClient) -> None:
    table = table_of(ROWS).append_column("지역", pa.array(["서울"] * 2))
    assert "twice" in post(client, table).json()["error"]


def test_without_the_extra_the_answer_names_it(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "AVAILABLE", False)
    answers = [
        post(client, table_of(ROWS)),
        client.post("/predict", json={"rows": ROWS}, headers={"Accept": STREAM["Content-Type"]}),
    ]
    for answer in answers:
        assert answer.status_code == 415
        assert "ondol-serving[arrow]" in answer.json()["error"]
    assert client.post("/predict", json={"rows": ROWS}).status_code == 200


def test_damaged_streams_are_refused(client: TestClient) -> None:
    """Of bytes at random places, none may end the process, and no answer is a 500."""
    types = {"class": pa.dictionary(pa.int8(), pa.string())}
    sound, chance = write_stream(table_of(ROWS, **types)), random.Random(0)
    for size in (0, 1, 7, 8, 100, len(sound) // 2):
        assert post(client, sound[:size]).status_code == 400
    for _ in range(1500):
        damaged = bytearray(sound)
        for _ in range(chance.choice([1, 1, 4, 16])):
            damaged[chance.randrange(len(damaged))] = chance.choice([0, 1, 127, 255, chance.randrange(256)])
        assert post(client, bytes(damaged)).status_code in (200, 400)


# --- the same as row by row ------------------------------------------------------------------------------------------

COLUMNS = [
    {"name": "나이", "kind": "integer", "minimum": 0, "maximum": 120, "nullable": True},
    {"name": "score", "kind": "number", "exclusive_minimum": -5.0},
    {"name": "등급", "kind": "integer", "categories": [1, 2, 3]},
    {"name": "plan", "kind": "text", "categories": ["기본", "premium"], "nullable": True},
    {"name": "메모", "kind": "text", "nullable": True},
    {"name": "city", "kind": "text"},
    {"name": "size", "kind": "text", "categories": ["S", "M", "L"], "encoding": {"order": ["S", "M", "L"]}},
    {"name": "ok", "kind": "boolean", "nullable": True},
    {"name": "since", "kind": "date", "nullable": True, "minimum": 0, "maximum": 4e9},
    {"name": "waited", "kind": "duration", "nullable": True, "minimum": 0},
    {"name": "id", "kind": "text", "role": "id"},
    {"name": "y", "kind": "number", "role": "target"},
]
POOLS: dict[str, list[Any]] = {  # valid values of each column
    "나이": [0, 35, 120, None],
    "score": [0.1, 1e-9, -4.5, 3],
    "등급": [1, 2, 3],
    "plan": ["기본", "premium", None],
    "메모": ["", "  ", "긴 메모 " * 20, "a,b", '"', "가", None],
    "city": ["서울", "Seoul", "São Paulo", "x\x00", "x"],
    "size": ["S", "M", "L"],
    "ok": [True, False, None],
    "since": ["2021-02-03", "2024-02-29T23:59:59.123456", "2001-01-01T00:00:00+09:00", None],
    "waited": [0, 90.5, "PT1H", "1 days 02:03:04", None],
    "id": ["C1", "고객", None],
}
WRONG: dict[str, list[Any]] = {
    "나이": [-1, 121, 1.5, True, "3", 2**63, [3], {}],
    "score": [-5.0, float("nan"), float("inf"), None, False, "x", 10**400],
    "등급": [4, None, True],
    "plan": ["gold", 1, ""],
    "메모": [1, ["x"]],
    "city": ["", " ", None, 5],
    "size": ["XL", None],
    "ok": [1, 0, "true", 1.0],
    "since": ["yesterday", 20240131, True, "1969-12-31", "2999-01-01", []],
    "waited": [-1, True, "P1Y", float("nan")],
}


def describe() -> dict[str, Any]:
    columns, place = [], 0
    for entry in COLUMNS:
        column = {"role": "feature", "nullable": False, "input": None, **entry}
        order = (column.pop("encoding", None) or {}).get("order")
        if column["role"] == "feature":
            encoding: dict[str, Any] = {"tensor": "float32", "offset": 0.0, "scale": 1.0}
            if column["kind"] == "text" and not order:
                encoding = {"tensor": "string", "missing": "<missing>", "known": ["기본", "서울", "가"]}
            encoding |= {"order": order} if order else {}
            if column["kind"] == "date":
                encoding |= {"origin": "2000-01-01T00:00:00", "parts": {p: p for p in ("month", "weekday", "hour")}}
            column |= {"input": f"c{place}", "encoding": encoding}
            place += 1
        columns.append(column)
    return {"format": 1, "problem": "regression", "target": "y", "classes": None, "columns": columns}


@pytest.fixture(scope="module")
def bundle() -> Any:
    """The parts of a bundle that validate and encode."""
    contract = read_contract(describe())
    reader = Reader(contract, compile_request(contract, 1000), 1000)
    known = tuple(
        (i, c.name, frozenset((*c.encoding["known"], None, "")))
        for i, c in enumerate(contract.features)
        if c.encoding.get("known") is not None
    )
    made = SimpleNamespace(
        contract=contract, reader=reader, read=reader.read, encoder=Encoder(contract.features), known=known
    )
    made.count_unknown = lambda rows: Bundle.count_unknown(made, rows)  # type: ignore[arg-type]
    return made


def draw(chance: random.Random, count: int, wrong: float) -> list[dict[str, Any]]:
    rows = [{name: chance.choice(values) for name, values in POOLS.items()} for _ in range(count)]
    while chance.random() < wrong:
        name = chance.choice(list(WRONG))
        chance.choice(rows)[name] = chance.choice(WRONG[name])
    return rows


def result_of(encode: Callable[[Any, bytes], arrow.Encoded], bundle: Any, body: bytes) -> Any:
    """Return what a request is encoded to, or the answer of its refusal."""
    try:
        done = encode(bundle, body)
    except RequestRefused as refused:
        return bytes(refused.answer.body)
    tensors = {name: [repr(one) for one in tensor[:, 0].tolist()] for name, tensor in done.tensors.items()}
    return done.rows, tensors, done.unknown


def test_many_rows_give_the_same_as_each_by_itself(bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    for turn in range(300):
        rows = draw(chance, 40, 0.5)
        if turn % 5 == 0:
            del chance.choice(rows)[chance.choice(list(POOLS))]
        body = json.dumps({"rows": rows}).encode()
        columns = result_of(arrow.encode_rows, bundle, body)
        with monkeypatch.context() as patch:
            patch.setattr(request, "MANY_ROWS", 10**9)
            assert columns == result_of(arrow.encode_rows, bundle, body), rows


def arrays(chance: random.Random, name: str, values: list[Any]) -> Iterator[pa.Array]:
    """Yield the values as Arrow holds them; nothing if it does not hold them in one column."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {str}:
        yield pa.array(values, pa.string())
        yield pa.array(values, pa.large_string())
        yield pa.array(values, pa.string()).dictionary_encode()
    elif kinds == {bool}:
        yield pa.array(values)
    elif kinds and kinds <= {int, float}:
        with_floats = [None if v is None else float(v) for v in values if abs(v or 0) < 1e300]
        if len(with_floats) == len(values):
            yield pa.array(with_floats, pa.float64())
        if kinds == {int} and all(abs(v or 0) < 2**62 for v in values):
            yield pa.array(values, pa.int64())
            if all(abs(v or 0) < 100 for v in values):
                yield pa.array(values, chance.choice([pa.int8(), pa.int16(), pa.int32()]))


def test_tables_give_the_same_as_their_rows_in_json(bundle: Any) -> None:
    chance = random.Random(2)
    compared = 0
    for _ in range(400):
        rows = draw(chance, chance.choice([1, 5, 100]), 0.3)
        for row in rows:  # a column of Arrow has one type
            row["waited"] = row["waited"] if isinstance(row["waited"], int | float) else None
        columns = {}
        for name in POOLS:
            values = [row[name] for row in rows]
            made = list(arrays(chance, name, values))
            if not made:
                break
            columns[name] = chance.choice(made)
        if columns.keys() != POOLS.keys():
            continue
        compared += 1
        table = pa.table(columns)
        body = write_stream(table, rows=chance.choice([None, 7]))
        wanted = json.dumps({"rows": [{n: None if v != v else v for n, v in row.items()} for row in rows]}).encode()
        got = result_of(arrow.encode_table, bundle, body)
        assert got == result_of(arrow.encode_rows, bundle, wanted), rows
    assert compared > 100


def test_dates_and_durations_of_arrow_give_the_same_as_their_texts(bundle: Any) -> None:
    chance = random.Random(3)
    for _ in range(100):
        count = chance.choice([1, 30])
        moments = [datetime(2000, 1, 1) + timedelta(microseconds=chance.randrange(2**51)) for _ in range(count)]
        waits = [timedelta(microseconds=chance.randrange(2**45)) for _ in range(count)]
        unit = chance.choice(["s", "ms", "us", "ns"])
        step = {"s": timedelta(seconds=1), "ms": timedelta(milliseconds=1)}.get(unit, timedelta(microseconds=1))
        moments = [moment - (moment - datetime(1970, 1, 1)) % step for moment in moments]
        waits = [wait - wait % step for wait in waits]
        rows = draw(chance, count, 0)
        for row, moment, wait in zip(rows, moments, waits, strict=True):
            row |= {"since": moment, "waited": wait}
        zone = chance.choice([None, "Asia/Seoul"])
        types = {"since": pa.timestamp(unit, zone), "waited": pa.duration(unit)}
        table = table_of(rows, **types)
        for row in rows:
            row |= {"since": row["since"].isoformat(), "waited": row["waited"].total_seconds()}
        wanted = json.dumps({"rows": rows}).encode()
        got = result_of(arrow.encode_table, bundle, write_stream(table))
        assert got == result_of(arrow.encode_rows, bundle, wanted)


def test_days_and_moments_beyond_the_calendar(bundle: Any) -> None:
    rows = [row | {"waited": None} for row in draw(random.Random(4), 2, 0)]
    types = {"since": pa.date32()}
    days = [row | {"since": datetime(2020, 2, 29).date()} for row in rows]
    texts = json.dumps({"rows": [row | {"since": "2020-02-29"} for row in rows]}).encode()
    got = result_of(arrow.encode_table, bundle, write_stream(table_of(days, **types)))
    assert got == result_of(arrow.encode_rows, bundle, texts)
    for unit, far in (("s", 2**62), ("ms", -(2**62)), ("us", 2**62), ("s", 2**40)):
        table = table_of(rows).drop(["since"]).append_column("since", pa.array([far] * 2, pa.timestamp(unit)))
        assert b'"rows",0,"since"' in result_of(arrow.encode_table, bundle, write_stream(table))


@pytest.mark.parametrize("name", ["telco_churn", "diamonds", "mpg"])
def test_the_log_of_a_real_table_is_its_rows(name: str) -> None:
    """Each column becomes the JSON that pandas reads back, also of mixed and missing values."""
    frame = pd.read_csv(DATA / f"{name}.csv").head(300)
    columns = [{"name": n, "kind": "text", "role": "id", "nullable": True} for n in frame]
    contract = read_contract({"problem": "regression", "target": "", "classes": None, "columns": columns})
    reader = Reader(contract, compile_request(contract, 1000), 1000)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    body = arrow.read_table(SimpleNamespace(reader=reader), write_stream(table)).to_json()  # type: ignore[arg-type]
    assert json.loads(body)["rows"] == table.to_pylist()
