"""Each kind of feature, from the source to the service: scikit-learn, batch and service say the same of every value."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow as arrow
import pyarrow.parquet as pq
import pytest
from init_support import check_own_source, field_of, load_schema, make_project
from pydantic import ValidationError
from service_support import TestClient  # noqa: F401 - imports starlette without its warning
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

from model.features import build_features
from ondol.contract import Contract, check_rows, describe, encode, encode_target, fit_encodings
from ondol.contract.encoding import MANY, encode_column
from ondol.deployment.bundle import json_rows
from ondol.deployment.onnx import check_parity, compile_model
from ondol.errors import UserError
from ondol.evaluation.scoring import Scorer
from ondol.setup.initialize import initialize
from ondol.training.pipeline import round_targets

ROWS = 1500
PROBLEMS = ("binary", "multiclass", "regression")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Found unknown categories:UserWarning")


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


class Schema(pa.DataFrameModel):
    """One column of each kind; `when` has a weekly and a yearly round."""

    when: pd.Timestamp = pa.Field(alias="언제", nullable=True)
    lasted: pd.Timedelta = pa.Field(nullable=True, le=pd.Timedelta(days=40_000))
    size: str = pa.Field(isin=["작음", "medium", "large"], nullable=True, metadata={"ordered": True})
    place: str = pa.Field(nullable=True)
    few: str = pa.Field()
    x: float = pa.Field()
    b: str = pa.Field(isin=["no", "yes"], metadata={"role": "target"})
    m: int = pa.Field(isin=[0, 1, 2], metadata={"role": "target"})
    r: float = pa.Field(metadata={"role": "target"})


TARGETS = dict(zip(PROBLEMS, "bmr", strict=True))
KINDS = {"date": "언제", "duration": "lasted", "ordered": "size", "text": "place"}


def make_rows(rows: int = ROWS) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    when = pd.Timestamp("2020-02-29") + pd.to_timedelta(rng.integers(0, 10**8, rows), unit="s")
    seconds, place = rng.exponential(90_000, rows).round(3), rng.integers(0, 2 * MANY, rows)
    size = rng.integers(0, 3, rows)
    signal = np.asarray(when.dayofweek / 3) + np.asarray(when.month == 12) + seconds / 90_000 + size - 2 * (size == 1)
    signal = signal + rng.normal(size=2 * MANY)[place] + rng.normal(size=rows) / 4
    frame = pd.DataFrame(
        {
            "언제": pd.Series(when).astype("datetime64[us]"),
            "lasted": pd.to_timedelta(seconds, unit="s").astype("timedelta64[us]"),
            "size": pd.Series(np.array(["작음", "medium", "large"])[size], dtype="str"),
            "place": pd.Series([f"곳 {i} 🙂" for i in place], dtype="str"),
            "few": pd.Series(rng.choice(["u", "v"], rows), dtype="str"),
            "x": rng.normal(size=rows),
            "b": np.where(signal > signal.mean(), "yes", "no"),
            "m": pd.qcut(signal, 3, labels=False),
            "r": signal * 1e6,
        }
    )
    for name in KINDS.values():
        frame[name] = frame[name].mask(rng.random(rows) < 0.1)
    return frame


EXTREMES: dict[str, list[Any]] = {
    "date": [None, "1969-12-31T23:59:59", "1700-01-01", "2100-03-01T12:00:00.000001", "9999-12-31", "2024-02-29"],
    "duration": [None, "-P20000D", "P40000D", "PT0.000001S", "-PT1H", "P1W", 86_399.5, -3, "P1DT2H3M4.5S"],
    "ordered": [None, "작음", "medium", "large"],
    "text": [None, " ", "never seen", "🙂", "한국어 " * 2_000, "x" * 100_000, "<missing>", "곳 1 🙂", "nan"],
}


def fit(problem: str, frame: pd.DataFrame) -> tuple[Any, Contract]:
    contract = fit_encodings(describe(Schema, TARGETS[problem], problem), frame)
    made = HistGradientBoostingRegressor if problem == "regression" else HistGradientBoostingClassifier
    pipeline = Pipeline([("features", build_features(problem)), ("estimator", made(max_iter=20, random_state=0))])
    pipeline.fit(encode(contract, frame), encode_target(contract, frame[contract.target]))
    round_targets(pipeline)
    return pipeline, contract


def write_bundle(folder: Path, pipeline: Any, contract: Contract) -> Path:
    (folder / "model.onnx").write_bytes(compile_model(pipeline, contract))
    (folder / "contract.json").write_text(contract.model_dump_json(), encoding="utf-8")
    (folder / "meta.json").write_text(json.dumps({"format": 1, "version": "1"}), encoding="utf-8")
    return folder


def served(folder: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    """Return the service's predictions, by its own types, encoder and runtime."""
    from ondol_serving.bundle import load_bundle

    bundle = load_bundle(folder)
    answers = bundle.predict(bundle.parse(json.dumps({"rows": rows}, ensure_ascii=False).encode()))
    return np.array([a["value"] if "value" in a else list(a["probabilities"].values()) for a in answers])


def cleaned(contract: Contract, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return JSON rows as batch prediction reads them: by way of text, as from a CSV file."""
    names = [c.name for c in contract.features]
    table = arrow.table({n: [None if row.get(n) is None else str(row[n]) for row in rows] for n in names})
    found = check_rows(table, contract.features)
    assert found.reasons.empty, found.reasons
    return found.valid()


@pytest.fixture(scope="module", params=PROBLEMS)
def model(request: Any, tmp_path_factory: Any) -> tuple[Any, Contract, pd.DataFrame, Path]:
    frame = make_rows()
    pipeline, contract = fit(request.param, frame)
    return pipeline, contract, frame, write_bundle(tmp_path_factory.mktemp("bundle"), pipeline, contract)


@pytest.mark.parametrize("kind", KINDS)
def test_scikit_learn_batch_and_service_agree_on_every_value(model, kind):
    pipeline, contract, frame, folder = model
    likely = json_rows(contract, frame.dropna().head(5))
    rows = [row | {KINDS[kind]: value} for row in likely for value in EXTREMES[kind]] + json_rows(contract, frame[:200])
    read = cleaned(contract, rows)
    encoded = encode(contract, read)
    wanted = pipeline.predict(encoded) if contract.classes is None else pipeline.predict_proba(encoded)
    close = 1e-6 * (np.abs(wanted).mean() if contract.classes is None else 1)
    np.testing.assert_allclose(Scorer.open(folder).predict(read), wanted, rtol=0, atol=close)
    np.testing.assert_allclose(served(folder, rows), wanted, rtol=0, atol=close)
    assert len(np.unique(wanted[: len(EXTREMES[kind])].round(9), axis=0)) > 1, "the column is of no use to the model"


def test_parity_is_proved_on_the_rows_and_with_values_put_in(model):
    pipeline, contract, frame, folder = model
    assert check_parity((folder / "model.onnx").read_bytes(), pipeline, contract, frame, 1e-6).verified


NONSENSE: dict[str, list[Any]] = {
    "date": ["yesterday", 20240101, "2024-13-01", True],
    "duration": ["soon", "P1Y", "P", "PT", "1:2", True, "P40001D", 1e300, [1]],
    "ordered": ["huge", "LARGE", 1, "medium "],
    "text": [5, True, ["곳"]],
}


@pytest.mark.parametrize("kind", KINDS)
def test_nonsense_is_refused_by_the_service_and_by_name(model, kind):
    from ondol_serving.bundle import load_bundle

    bundle, row = load_bundle(model[3]), json_rows(model[1], model[2].dropna().head(1))[0]
    for value in NONSENSE[kind]:
        with pytest.raises(ValidationError) as caught:
            bundle.parse(json.dumps({"rows": [row | {KINDS[kind]: value}]}).encode())
        assert KINDS[kind] in caught.value.errors()[0]["loc"], value


@pytest.mark.parametrize(
    ("kind", "value", "check"),
    [
        ("date", "yesterday", "not a date"),
        ("duration", "P1Y", "not a duration"),
        ("duration", "1 fortnight", "not a duration"),
        ("duration", "400000000000", "not a duration"),
        ("duration", "P40001D", "less_than_or_equal_to(40000 days 00:00:00)"),
        ("ordered", "huge", "isin(['작음', 'medium', 'large'])"),
    ],
)
def test_nonsense_is_a_bad_row_with_its_reason(kind, value, check):
    names = list(Schema.to_schema().columns)
    good = {n: str(v) for n, v in make_rows().dropna().iloc[0].items()}
    table = arrow.table({n: [good[n], value if n == KINDS[kind] else good[n]] for n in names})
    reasons = check_rows(table, describe(Schema, "b", "binary").used, Schema.to_schema()).reasons
    assert reasons[["row", "column", "check"]].to_numpy().tolist() == [[1, KINDS[kind], check]]


def test_old_features_still_work(monkeypatch, tmp_path):
    """`model/features.py` of 0.1.0 knew nothing of parts, ranks, texts of many values or the problem."""
    from sklearn.compose import ColumnTransformer, make_column_selector

    from ondol.config import Settings
    from ondol.training.pipeline import build_pipeline

    texts = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    chosen = make_column_selector(dtype_exclude="number")
    old = ColumnTransformer([("texts", texts, chosen)], remainder="passthrough", verbose_feature_names_out=False)
    monkeypatch.setattr("model.features.build_features", lambda: old)
    frame = make_rows()
    contract = fit_encodings(describe(Schema, "b", "binary"), frame, parts=False)
    assert len(contract.inputs) == len(contract.features)
    settings = Settings.model_validate({"root": tmp_path, "project": {"name": "t"}, "data": {"problem": "binary"}})
    pipeline = build_pipeline(settings, {"kind": "boosting"})
    pipeline.fit(encode(contract, frame), encode_target(contract, frame["b"]))
    assert check_parity(compile_model(pipeline, contract), pipeline, contract, frame, 1e-6).verified


def test_a_part_is_there_only_where_it_comes_round_and_its_name_is_free():
    def parts(dates: Any, *taken: str) -> dict[str, str] | None:
        frame = pd.DataFrame({"언제": pd.Series(dates).astype("datetime64[us]"), "b": "no"})
        columns = [c for c in describe(Schema, "b", "binary").columns if c.name in ("언제", "b")]
        columns += [columns[0].model_copy(update={"name": name, "role": "ignored"}) for name in taken]
        made = fit_encodings(Contract(problem="binary", target="b", columns=tuple(columns)), frame)
        return made.column("언제").encoding.parts  # type: ignore[union-attr]

    def every(step: str, count: int) -> Any:
        return pd.date_range("2021-01-01", periods=count, freq=step)

    assert parts(every("h", 10)) is None and parts([pd.NaT]) is None
    assert list(parts(every("h", 100)) or ()) == ["hour"]
    assert list(parts(every("D", 60)) or ()) == ["weekday"]
    assert list(parts(every("MS", 30)) or ()) == ["month"]
    assert parts(every("D", 800), "언제.month") == {"month": "언제.month_", "weekday": "언제.weekday"}


def test_ordered_is_for_texts_with_a_set():
    for field in (
        pa.Field(metadata={"ordered": True}),
        pa.Field(isin=[1, 2], metadata={"ordered": True}),
    ):
        annotated = {"size": int if "2" in str(field.checks) else str, "y": str}
        names = {"size": field, "y": pa.Field(metadata={"role": "target"})}
        schema = type("Schema", (pa.DataFrameModel,), {"__annotations__": annotated} | names)
        with pytest.raises(UserError, match="is ordered: write its values in order"):
            describe(schema, "y", "binary")


def test_an_ordered_text_is_its_rank_and_what_is_unseen_is_missing():
    column = fit_encodings(describe(Schema, "b", "binary"), make_rows()).column("size")
    made = encode_column(column, pd.Series(["large", "작음", None, "huge"], dtype="str"))
    np.testing.assert_array_equal(made, np.array([2, 0, np.nan, np.nan], dtype=np.float32))


def test_openapi_says_what_a_duration_and_an_order_are(model):
    from ondol_serving.bundle import load_bundle

    fields = load_bundle(model[3]).request_type.model_json_schema()["$defs"]["Row"]["properties"]
    said = json.dumps(fields["lasted"])
    assert '"format": "duration"' in said and "number of seconds" in said and str(40_000 * 86_400) in said
    assert '["작음", "medium", "large"]' in json.dumps(fields["size"], ensure_ascii=False)


def test_the_monitor_sees_each_kind_drift(tmp_path):
    from ondol.evaluation.targets import Reference
    from ondol.monitoring.drift import pair_sides

    frame = make_rows()
    contract = fit_encodings(describe(Schema, "b", "binary"), frame)
    frame.assign(prediction="no", probability=0.5).to_parquet(tmp_path / "r.parquet")
    reference = Reference(pd.read_parquet(tmp_path / "r.parquet"), contract, "prediction", "probability")
    longer = reference.frame.assign(lasted=reference.frame["lasted"] * 2, size="large")
    sides = pair_sides(reference, longer)
    kinds = {kind: sides.kinds[name] for kind, name in KINDS.items()}
    assert kinds == {"date": "number", "duration": "number", "ordered": "category", "text": "category"}
    known = reference.frame["lasted"].dt.total_seconds()
    np.testing.assert_allclose(sides.reference["lasted"], known)
    assert sides.window["lasted"].median() > 1.5 * known.median() and set(sides.window["size"]) == {"large"}


def test_a_new_value_of_an_ordered_text_is_reported_and_its_order_kept():
    from ondol.setup.evolution import find_changes
    from ondol.setup.schema_edit import propose

    contract = describe(Schema, "b", "binary")
    frame = make_rows(200).assign(m=1, few="u", size=["huge"] * 100 + ["large"] * 100)
    changes = find_changes(contract, arrow.Table.from_pandas(frame, preserve_index=False), typed=True)
    (change,) = [c for c in changes if c.column == "size"]
    assert change.what == "category" and "it is ordered" in str(change)
    field = '    size: str = pa.Field(isin=["작음", "large"], nullable=True, metadata={"ordered": True})\n'
    text = "import pandera.pandas as pa\n\n\nclass Schema(pa.DataFrameModel):\n" + field
    assert 'isin=["작음", "large", "huge"]' in propose(text, [change]).text
    many = propose(text, [dataclasses.replace(change, categories=None)])
    assert many.text == text and "it is ordered" in many.left[0]


# `ml init`.


def small_table() -> pd.DataFrame:
    frame = make_rows(600)[["언제", "lasted", "size", "place", "x", "b"]]
    order = ["large", "medium", "작음", "never"]
    return frame.assign(size=pd.Categorical(frame["size"], categories=order, ordered=True))


def as_text(duration: Any, form: str) -> str | None:
    return None if pd.isna(duration) else duration.isoformat() if form == "iso" else str(duration)


@pytest.mark.parametrize("form", ["parquet", "folder", "csv", "jsonl"])
def test_init_writes_each_kind_and_its_own_rows_keep_the_contract(project, form):
    frame, path = small_table(), project / f"t.{form}"
    if form == "folder":
        path.mkdir()
        frame[:300].to_parquet(path / "a.parquet")
        frame[300:].to_parquet(path / "b.parquet")
    elif form == "parquet":
        frame.to_parquet(path)
    elif form == "csv":
        frame.assign(lasted=[as_text(v, "days") for v in frame["lasted"]]).to_csv(path, index=False)
    else:
        plain = frame.assign(lasted=[as_text(v, "iso") for v in frame["lasted"]], 언제=frame["언제"].astype(str))
        plain.to_json(path, orient="records", lines=True, force_ascii=False)
    report = initialize(project, path.name, "b")
    text = (project / "model" / "schema.py").read_text(encoding="utf-8")
    assert "lasted: pd.Timedelta = pa.Field(nullable=True)" in text
    assert field_of(report, "언제").kind == "date" and field_of(report, "place").kind == "text"
    ordered = form in ("parquet", "folder")
    assert field_of(report, "size").ordered == ordered
    if ordered:
        assert 'isin=["large", "medium", "작음", "never"], metadata={"ordered": True}' in text
    assert check_own_source(project, report).empty
    made = describe(load_schema(project / "model" / "schema.py"), "b", "binary")
    assert made.column("size").ordered == ordered and made.column("lasted").kind == "duration"


def test_clock_times_are_durations_and_init_says_so(project):
    frame = pd.DataFrame({"at": [f"{i % 24:02}:{i % 60:02}:00" for i in range(200)], "y": ["no", "yes"] * 100})
    frame.assign(x=range(200)).to_csv(project / "t.csv", index=False)
    report = initialize(project, "t.csv", "y")
    assert field_of(report, "at").kind == "duration" and any("clock times" in doubt for doubt in report.doubts)


def test_what_parquet_says_of_a_column_outlives_reading(tmp_path):
    from ondol.ingestion.files import RawFile
    from ondol.ingestion.parquet import ParquetSource

    table = arrow.table({"d": arrow.array([1_500, None], arrow.duration("ms"))})
    pq.write_table(table, tmp_path / "t.parquet")
    source = ParquetSource(RawFile("t", tmp_path / "t.parquet"), None)
    assert next(source.batches()).column("d").to_pylist() == [1.5, None]
