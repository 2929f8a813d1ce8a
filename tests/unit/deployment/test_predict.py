"""Batch prediction: every row of any source, in order, with its prediction or with the reasons why it has none."""

import json
from datetime import date, time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from compiling_support import PLAN, PROBLEMS, REGION, boosting, fit, nasty_frame, training

from flows.predict import predict
from ondol.config import Data, Dialect, Settings
from ondol.contract import Column, Contract, encode
from ondol.contract.schema import free_names
from ondol.deployment.explanation import build_explanation
from ondol.deployment.onnx import compile_model
from ondol.deployment.predict import (
    check_predictions,
    choose_bundle,
    open_output,
    predict_rows,
    require_places,
    resolve_destination,
)
from ondol.errors import UserError
from ondol.evaluation.scoring import Scorer
from ondol.ingestion.sources import Reading, open_source
from ondol.project import Project as OpenProject
from ondol.registry.bundles import write_bundle
from ondol.registry.champion import move_champion
from ondol.storage.store import open_store


class Project:
    """A folder with a champion."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings = Settings(root=root)

    def crown(self, problem: str = "binary", version: str = "1", explained: bool = False, **params: Any) -> "Project":
        self.model, self.contract = fit(boosting(problem, **params), problem, training(problem))
        files = {
            "model.onnx": compile_model(self.model, self.contract),
            "contract.json": self.contract.model_dump_json().encode(),
        }
        about: dict[str, Any] = {"format": 1, "version": version}
        if explained:
            scorer = Scorer.from_onnx(files["model.onnx"], self.contract)
            made = build_explanation(files["model.onnx"], scorer, training(problem).head(50))
            files |= made.files
            about["explanation"] = made.about
        files["meta.json"] = json.dumps(about).encode()
        self.bundle = write_bundle(open_store(self.settings), version, files)
        move_champion(open_store(self.settings), self.bundle, "deploy", "a test")
        return self

    def write(self, frame: pd.DataFrame, name: str = "in.parquet") -> str:
        path = self.root / name
        if name.endswith(".csv"):
            frame.to_csv(path, index=False)
        elif name.endswith(".jsonl"):
            frame.to_json(path, orient="records", lines=True, force_ascii=False, date_format="iso")
        else:
            frame.to_parquet(path, index=False)
        return name

    def predict(
        self, frame: pd.DataFrame, name: str = "in.parquet", **options: Any
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        done = self.predict_file(self.write(frame, name), "out.parquet", **options)
        return pd.read_parquet(self.root / "out.parquet"), done

    def predict_file(
        self, source: str, destination: str, version: str | None = None, explain: bool = False
    ) -> dict[str, Any]:
        """Run the steps of the flow, outside of a run."""
        project = OpenProject(self.settings)
        path = resolve_destination(self.root / destination)
        bundle = choose_bundle(project.store, version)
        return predict_rows(project, bundle, source, path, explain) | {"version": bundle.version}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize(
    ("target", "cells", "refused"),
    [
        ("column_4", 3, False),
        ("column_4", 4, False),
        ("column_1", 4, False),
        ("column_1", 3, True),
        ("column_4", 2, True),
    ],
)
def test_columns_without_names_are_known_by_position_so_none_may_be_left_out(tmp_path, target, cells, refused):
    columns = tuple(Column(name=f"column_{i}", kind="text", role="ignored") for i in range(1, 5))
    contract = Contract(problem="binary", target=target, columns=columns)
    (tmp_path / "t.csv").write_text(",".join("abcd"[:cells]) + "\n", encoding="utf-8")
    rows = open_source("t.csv", Reading(contract.kinds, tmp_path, dialect=Dialect(header=False)))
    if refused:
        with pytest.raises(UserError, match="known by position"):
            require_places(rows, contract)
    else:
        require_places(rows, contract)


def by_scikit_learn(model: Any, contract: Contract, frame: pd.DataFrame) -> tuple[list[Any], np.ndarray]:
    encoded = encode(contract, frame)
    predicted = model.predict(encoded)
    if contract.classes is None:
        return [], predicted
    return [contract.classes[i] for i in predicted], model.predict_proba(encoded)


@pytest.mark.parametrize("name", ["in.parquet", "in.csv", "in.jsonl"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_row_gets_what_scikit_learn_says_in_the_sources_order(problem, name, project):
    project.crown(problem)
    frame = nasty_frame(300, seed=3, unknown=True)
    if name == "in.csv":  # where an unquoted nan cannot be told from a missing value
        frame[REGION] = frame[REGION].mask(frame[REGION] == "nan")
    written, done = project.predict(frame, name)
    labels, numbers = by_scikit_learn(project.model, project.contract, frame)
    assert done == {"rows": 300, "refused": 0, "version": "1"}
    assert written["id"].tolist() == frame["id"].tolist()
    assert written["error"].isna().all()
    if project.contract.classes is None:
        np.testing.assert_allclose(written["prediction"], numbers, atol=1e-6 * np.abs(numbers).mean())
        return
    assert written["prediction"].tolist() == labels
    given = written[[f"probability {label}" for label in project.contract.classes]]
    np.testing.assert_allclose(given, numbers, atol=1e-6)


def test_a_row_that_breaks_the_contract_gets_every_reason_and_no_prediction(project):
    project.crown()
    frame = nasty_frame(50).astype({"a.b": object})
    frame.loc[7, "a.b"], frame.loc[7, PLAN] = -1.0, "gold"
    frame.loc[9, "a.b"] = None
    frame.loc[11, "epoch, s"] = 10**15
    frame["a_b"] = frame["a_b"].astype("str").mask(frame.index == 20, "much")
    frame = frame.astype({"a.b": float})
    written, done = project.predict(frame, "in.csv")
    assert done["refused"] == 3 and done["rows"] == 50
    refused = written[written["error"].notna()]
    assert refused.index.tolist() == [7, 9, 20]
    assert refused.filter(regex="^(prediction|probability)").isna().all(axis=None)
    assert written.drop(index=refused.index)["prediction"].notna().all()
    said = refused["error"].tolist()
    assert said[0] == "a.b = -1.0: greater_than_or_equal_to(0.0); class = gold: isin(['basic', '플러스'])"
    assert said[1] == "a.b = missing: not_nullable"
    assert said[2] == "a_b = much: not a finite number"


def test_refused_rows_leave_the_numbers_of_the_others_as_they_were(project):
    project.crown("regression")
    frame = nasty_frame(60)
    clean, _ = project.predict(frame)
    frame.loc[::3, "a.b"] = -5.0
    mixed, done = project.predict(frame)
    assert done["refused"] == 20
    good = mixed["error"].isna()
    np.testing.assert_allclose(mixed["prediction"][good], clean["prediction"][good], rtol=1e-6, atol=5.0)


def test_rows_may_all_be_refused(project):
    project.crown("multiclass")
    written, done = project.predict(nasty_frame(5).assign(**{"a.b": -1.0}))
    assert done == {"rows": 5, "refused": 5, "version": "1"}
    said = r"^None of the 5 rows could be predicted, .*: correct what the column `error` of \"out\.parquet\" names\.$"
    with pytest.raises(UserError, match=said):
        check_predictions(done, "out.parquet")
    check_predictions(done | {"refused": 4}, "out.parquet")
    assert written["prediction"].isna().all() and written["error"].notna().all()


def test_a_number_that_float32_cannot_hold_is_refused_as_by_the_service(project):
    project.crown()
    frame = nasty_frame(10)
    frame.loc[4, "a_b"], frame.loc[4, "a.b"] = -1e39, 1e300
    written, done = project.predict(frame)
    assert done["refused"] == 1
    said = "a_b = -1e+39: too large for the model; a.b = 1e+300: too large for the model"
    assert written["error"].dropna().tolist() == [said]


def test_other_columns_are_passed_through_untouched(project):
    project.crown()
    extra = {
        "메모": ["a,b", 'say "x"', None, "l\nm"],
        "when": pd.date_range("2024-01-01", periods=4),
        "k": [1, 2, 3, 2**60],
    }
    frame = nasty_frame(4).assign(**extra)
    written, _ = project.predict(frame)
    pd.testing.assert_frame_equal(written[list(frame)], frame, check_dtype=False)
    assert list(written) == [*frame, "prediction", "probability 아니오", "probability 예", "error"]


def test_names_that_are_taken_get_a_number(project):
    project.crown()
    frame = nasty_frame(5).assign(prediction="old", error="e", **{"prediction 2": 1})
    written, _ = project.predict(frame)
    assert list(written)[-4:] == ["prediction 3", "probability 아니오", "probability 예", "error 2"]
    assert written["prediction"].tolist() == ["old"] * 5
    assert free_names(["a", "a"], []) == ["a", "a 2"]


@pytest.mark.parametrize("name", ["out.csv", "out.parquet", "out.jsonl", "OUT.CSV"])
def test_all_formats_hold_the_same(project, name):
    project.crown()
    frame = nasty_frame(40, seed=2)
    frame.loc[3, "a.b"] = -1
    wanted, _ = project.predict(frame)
    project.predict_file("in.parquet", f"deep/folder/{name}")
    path = project.root / "deep" / "folder" / name
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda p: pd.read_json(p, lines=True)}
    given = read[path.suffix.lower()](path)
    assert list(given) == list(wanted)
    np.testing.assert_allclose(given["probability 예"], wanted["probability 예"], atol=1e-9)
    assert given["prediction"].isna().tolist() == wanted["prediction"].isna().tolist()
    assert given["error"].dropna().tolist() == wanted["error"].dropna().tolist()
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_json_lines_hold_null_where_json_has_no_number(project):
    project.crown()
    table = pa.Table.from_pandas(nasty_frame(3)).append_column("n", pa.array([np.inf, np.nan, 1.0]))
    pq.write_table(table, project.root / "in.parquet")
    project.predict_file("in.parquet", "out.jsonl")
    rows = [json.loads(line) for line in (project.root / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["n"] for row in rows] == [None, None, 1.0]


NASTY = {
    "number": pa.array([1.5, np.nan, None, -np.inf, -0.0]),
    "narrow": pa.array([0.1, None, 1e30, np.inf, 3], pa.float32()),
    "large": pa.array([2**64 - 1, 0, None, 1, 2], pa.uint64()),
    "integer": pa.array([-(2**63), 2**63 - 1, 2**53 + 1, 1, 2]),
    "gaps": pa.array([None, 2**53 + 1, 2**63 - 1, None, 0]),
    "truth": pa.array([True, None, False, True, True]),
    "한글": pa.array(["서울", "\0\u2028", '"q\\/', "", None]),
    "wide": pa.array(["a", None, "é", "\U0001f600", "x"], pa.large_string()),
    "kinds": pa.array(["a", "b", None, "a", "a"]).dictionary_encode(),
    "day": pa.array([date(2024, 1, 1), None, date(1, 1, 1), date(9999, 12, 31), date(2000, 2, 29)]),
    "hour": pa.array([time(1, 2, 3, 4), None, time(0), time(23, 59), time(5)]),
    "moment": pa.array([0, None, 1, 10**15, -(62135596800 * 10**6)], pa.timestamp("us")),
    "nanos": pa.array([1, None, 10**18, 0, -1], pa.timestamp("ns")),
    "zone": pa.array([0, None, 10**15, 1, -(2 * 10**15)], pa.timestamp("us", "Asia/Seoul")),  # of 1906: +08:27:52
    "span": pa.array([1, None, 10**12, 0, 5], pa.duration("ns")),
    "nothing": pa.nulls(5),
}


def test_json_lines_hold_each_value_as_python_writes_it(tmp_path):
    def plain(value: Any) -> Any:
        if isinstance(value, float) and not np.isfinite(value):
            return None
        return value.isoformat() if hasattr(value, "isoformat") else value

    table = pa.table(NASTY)
    output = open_output(tmp_path / "out.jsonl", table.schema)
    output.write_table(table)
    output.write_table(table.slice(3))
    output.close()
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert len(rows) == 7 and list(rows[0]) == table.column_names
    for name, values in NASTY.items():
        expected = [plain(value) for value in values.to_pylist()]
        assert repr([row[name] for row in rows]) == repr(expected + expected[3:]), name


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_csv_is_written_in_the_notation_of_the_settings_and_read_back_as_the_same(project, suffix):
    project.crown("regression")
    project.settings = Settings(
        root=project.root, data=Data(delimiter=";", decimal=",", thousands=".", encoding="cp949")
    )
    frame = nasty_frame(60).assign(extra=np.linspace(0, 1, 60), note="1.5")
    numbers = [*frame.columns[frame.dtypes == "float64"]]
    if suffix == "csv":
        spelled = {name: frame[name].map(str).str.replace(".", ",").mask(frame[name].isna()) for name in numbers}
        frame.assign(**spelled).to_csv(
            project.root / "in.csv", sep=";", index=False, encoding="cp949", errors="replace"
        )
    else:
        frame.to_parquet(project.root / "in.parquet")
    tables = []
    for name in ("out.parquet", "out.csv"):
        done = project.predict_file(f"in.{suffix}", name)
        kinds = project.contract.kinds | {"prediction": "number"} | ({"extra": "number"} if suffix == "parquet" else {})
        reading = Reading(kinds, project.root, dialect=project.settings.data.dialect)
        tables.append(pa.Table.from_batches(open_source(name, reading).batches()).to_pandas())
    assert done["rows"] == 60
    for name in (*numbers, "prediction"):
        before, after = (table[name] for table in tables)
        pd.testing.assert_series_equal(before, after, check_exact=True, check_dtype=False)
    assert set(tables[1]["note"]) == {"1.5"}
    lines = (project.root / "out.csv").read_text(encoding="utf-8-sig").splitlines()
    assert lines[0].count('";"') > 5 and "." not in "".join(line.rsplit(";", 2)[1] for line in lines[1:])


def test_labels_are_written_as_the_type_they_had(project):
    project.crown("multiclass")
    frame = nasty_frame(30)
    frame.loc[0, "a.b"] = -1
    project.predict(frame)
    assert pq.read_schema(project.root / "out.parquet").field("prediction").type == pa.int64()


def test_a_long_source_is_scored_in_parts_of_bounded_size(project, monkeypatch):
    """However the source cuts its batches."""
    project.crown()
    frame = nasty_frame(1000, seed=4)
    frame.loc[::100, "a.b"] = -1
    whole, _ = project.predict(frame)
    sizes: list[int] = []
    score = Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda self, rows: sizes.append(len(rows)) or score(self, rows))
    monkeypatch.setattr("ondol.deployment.predict.CHUNK", 64)
    parts, done = project.predict(frame)
    assert max(sizes) <= 2 * 64 and sum(sizes) == 990
    pd.testing.assert_frame_equal(parts, whole, atol=1e-6)
    assert done["refused"] == 10


def test_a_column_that_turns_out_to_be_text_late_starts_the_file_again(project, monkeypatch):
    monkeypatch.setattr("ondol.ingestion.csv_files.HELD_BYTES", 1)
    monkeypatch.setattr("ondol.ingestion.csv_files.BLOCK_BYTES", 20_000)
    project.crown()
    frame = nasty_frame(1000)
    frame["a_b"] = frame["a_b"].astype("str").mask(frame.index == 990, "much")
    written, done = project.predict(frame, "in.csv")
    assert done["rows"] == len(written) == 1000
    assert written["error"].dropna().index.tolist() == [990]


def test_the_sample_can_be_predicted_too(project, tmp_path):
    from ondol.ingestion.sources import open_source

    project.crown()
    with pytest.raises(UserError, match=r'no column "a_b", which the contract asks for'):
        project.predict_file("sample://?rows=5", "out.csv")
    assert open_source("sample://?rows=5").schema.names[0] == "customer_id"
    assert not (tmp_path / "out.csv").exists()


def test_another_version_than_the_champion_can_predict(project):
    old = project.crown(version="1", max_iter=2)
    frame = nasty_frame(20)
    by_old, _ = old.predict(frame)
    by_new, done = project.crown(version="2").predict(frame)
    assert done["version"] == "2"
    again, done = project.predict(frame, version="1")
    assert done["version"] == "1"
    pd.testing.assert_frame_equal(again, by_old)
    assert not np.allclose(by_new["probability 예"], by_old["probability 예"])


def refusal(project: Project, source: str, destination: str, version: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        project.predict_file(source, destination, version)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_champion_one_sentence_says_what_to_do(project):
    assert refusal(project, project.write(nasty_frame(3)), "o.csv").startswith(
        "No model is in production yet: `ml run`"
    )


def test_an_unknown_version_is_refused(project):
    project.crown()
    assert "Version 7 never was in production" in refusal(project, project.write(nasty_frame(3)), "o.csv", "7")
    assert "Version * never was in production" in refusal(project, project.write(nasty_frame(3)), "o.csv", "*")


def test_a_changed_bundle_predicts_nothing(project):
    project.crown()
    (project.bundle.path / "model.onnx").write_bytes(b"other")
    assert "was changed after it was written" in refusal(project, project.write(nasty_frame(3)), "o.csv")


def test_a_missing_column_is_named_with_the_nearest(project):
    project.crown()
    source = project.write(nasty_frame(3).rename(columns={REGION: "지역명"}))
    assert f'no column "{REGION}"' in refusal(project, source, "out.csv")
    assert 'Did you mean "지역명"?' in refusal(project, source, "out.csv")


def test_a_marker_of_a_column_that_is_not_there_is_refused_with_the_nearest_name(project):
    project.crown()
    source = project.write(nasty_frame(3), "in.csv")
    project.settings = Settings(root=project.root, data=Data(missing={PLAN: ["none"], "other": ["-"]}))
    assert '[data] missing in config.toml names "other", which is not a column' in refusal(project, source, "out.csv")


def test_an_unknown_suffix_is_refused_before_anything_is_read(project):
    said = refusal(project, "missing.csv", "out.xlsx")
    assert ".csv, .parquet or .jsonl" in said
    assert 'Did you mean ".parquet"' in refusal(project, "missing.csv", "out.parqet")
    assert ".csv, .parquet or .jsonl" in refusal(project, "missing.csv", "out")


def test_a_folder_or_a_file_in_the_way_is_reported(project):
    (project.root / "out.csv").mkdir()
    (project.root / "file").write_text("", encoding="utf-8")
    assert "is a folder: name a file" in refusal(project, "in.csv", "out.csv")
    assert "cannot be made" in refusal(project, "in.csv", "file/out.csv")


@pytest.mark.parametrize("alias", ["in.csv", "./x/../in.csv", "link.csv", "hard.csv"])
def test_the_source_is_never_overwritten(project, alias):
    project.crown()
    project.write(nasty_frame(3), "in.csv")
    (project.root / "x").mkdir()
    (project.root / "link.csv").symlink_to(project.root / "in.csv")
    (project.root / "hard.csv").hardlink_to(project.root / "in.csv")
    before = (project.root / "in.csv").read_bytes()
    assert "is the source itself" in refusal(project, "in.csv", alias)
    assert (project.root / "in.csv").read_bytes() == before


def test_a_failure_leaves_the_file_of_the_last_time_and_nothing_else(project, monkeypatch):
    project.crown()
    project.predict(nasty_frame(300))
    before = (project.root / "out.parquet").read_bytes()
    monkeypatch.setattr("ondol.deployment.predict.CHUNK", 100)
    calls: list[int] = []

    def fail_late(self: Scorer, rows: pd.DataFrame) -> pd.DataFrame:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of power")
        return score(self, rows)

    score = Scorer.score
    monkeypatch.setattr(Scorer, "score", fail_late)
    with pytest.raises(RuntimeError, match="out of power"):
        project.predict(nasty_frame(300, seed=9))
    assert (project.root / "out.parquet").read_bytes() == before
    assert sorted(p.name for p in project.root.iterdir()) == [".ml", "in.parquet", "out.parquet"]


def test_the_flow_takes_and_returns_plain_values():
    parameters = predict.parameters.properties
    assert list(parameters) == ["source", "destination", "version", "explain"]
    assert predict.name == "predict"


@pytest.mark.parametrize("problem", ["binary", "multiclass", "regression"])
def test_contributions_are_columns_that_add_up_to_the_prediction(project: Project, problem: str) -> None:
    """In more than one chunk, with a row that breaks the contract, which has none."""
    frame = nasty_frame(5000, seed=4, unknown=True).drop(columns="id").assign(baseline="theirs")
    frame.loc[3, "a.b"] = -1.0
    made, done = project.crown(problem, explained=True).predict(frame, explain=True)
    names = [f"contribution {column.name}" for column in project.contract.features]
    assert list(made)[-len(names) - 2 :] == ["baseline 2", *names, "error"]
    assert list(made["baseline"]) == list(frame["baseline"])  # the source's own column
    assert done["refused"] == 1
    assert made.loc[3, ["baseline 2", *names]].isna().all()
    good = made.drop(index=3)
    sums = good["baseline 2"] + good[names].sum(axis=1)
    if problem == "regression":
        np.testing.assert_allclose(sums, good["prediction"], rtol=0, atol=1e-6 * good["prediction"].abs().max())
    elif problem == "binary":
        np.testing.assert_allclose(1 / (1 + np.exp(-sums)), good["probability 예"], atol=1e-6)
    else:  # of the predicted class: its score is the largest
        scores = project.model.decision_function(encode(project.contract, frame.drop(index=3)))
        np.testing.assert_allclose(sums, scores.max(axis=1), atol=1e-5)


def test_a_version_without_explanations_says_so(project: Project) -> None:
    with pytest.raises(UserError, match="Version 1 was deployed before models had explanations: leave out `--explain`"):
        project.crown().predict(nasty_frame(5), explain=True)
