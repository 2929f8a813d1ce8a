"""Batch prediction: every row of a source is written, predicted or with the reasons why not, or nothing is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from compiling_support import PLAN, PROBLEMS, REGION, WON, add_target, boosting, fit, nasty_frame, training

from flows.compiling import compile_model
from flows.contract import Contract, encode
from flows.errors import UserError
from flows.predict import predict_file
from flows.settings import Settings
from flows.store.bundles import write_bundle
from flows.store.champion import move_champion

Project = tuple[Settings, Any, Contract]


def make_project(root: Path, problem: str, version: str = "3") -> Project:
    """Put a champion into the store of a project at `root`."""
    fitted, contract = fit(boosting(problem), problem, training(problem))
    settings = Settings(root=root, store=root / "store")
    files = {
        "model.onnx": compile_model(fitted, contract),
        "contract.json": contract.model_dump_json().encode(),
        "meta.json": json.dumps({"format": 1, "version": version, "runtime": "onnx"}).encode(),
    }
    move_champion(settings.store_path, write_bundle(settings.store_path, version, files), "deploy", "a test")
    return settings, fitted, contract


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"), "binary")


def rows_of(problem: str, rows: int = 1000) -> pd.DataFrame:
    return add_target(nasty_frame(rows, seed=9, unknown=True), problem)


def expected(project: Project, frame: pd.DataFrame) -> np.ndarray:
    _, fitted, contract = project
    encoded = encode(contract, frame)
    return np.asarray(fitted.predict(encoded) if contract.classes is None else fitted.predict_proba(encoded))


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_every_format_gives_the_numbers_of_scikit_learn(tmp_path: Path, problem: str, suffix: str) -> None:
    made = make_project(tmp_path, problem)
    frame = rows_of(problem)
    source, out = tmp_path / f"in{suffix}", tmp_path / "deep" / f"out{suffix}"
    {
        ".csv": lambda: frame.to_csv(source, index=False),
        ".parquet": lambda: frame.to_parquet(source, index=False),
        ".jsonl": lambda: frame.to_json(
            source, orient="records", lines=True, force_ascii=False, date_format="iso", double_precision=15
        ),
    }[suffix]()
    assert predict_file(made[0], str(source), out) == {"rows": 1000, "refused": 0, "version": "3"}
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda p: pd.read_json(p, lines=True)}[suffix](
        out
    )
    names = ["prediction"] if problem == "regression" else [n for n in read if n.startswith("probability ")]
    found, wanted = read[names].to_numpy(), expected(made, frame).reshape(1000, -1)
    assert np.abs(found - wanted).max() <= 1e-6 * max(1.0, float(np.abs(wanted).mean()))
    assert list(read) == [*frame, "prediction", *(names if problem != "regression" else []), "error"]
    assert read["id"].tolist() == frame["id"].tolist()
    assert read["error"].isna().all()


def test_a_row_that_breaks_the_contract_is_written_with_every_reason_and_no_prediction(
    project: Project, tmp_path: Path
) -> None:
    frame = rows_of("binary", 6).astype(object).where(rows_of("binary", 6).notna(), None)
    frame.loc[1, "a.b"] = -1.0
    frame.loc[2, PLAN] = "gold"
    frame.loc[3, "epoch, s"] = "soon"
    frame.loc[3, "a.b"] = None
    frame.loc[4, REGION] = None
    frame.loc[5, "a_b"] = 1e300
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    frame.to_csv(source, index=False)
    assert predict_file(project[0], str(source), out)["refused"] == 4
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    errors = [row["error"] for row in rows]
    assert errors[0] is None and errors[4] is None
    assert "a.b = -1.0" in errors[1] and "gold" in errors[2]
    assert "epoch, s = soon: not a whole number" in errors[3] and "a.b = missing: not_nullable" in errors[3]
    assert "too large for the model" in errors[5]
    assert [row["prediction"] is None for row in rows] == [error is not None for error in errors]
    assert [row["probability 예"] is None for row in rows] == [error is not None for error in errors]
    assert rows[0]["prediction"] in ("예", "아니오")


def test_rows_are_predicted_across_batches_in_order(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.predict.CHUNK", 100)
    frame = rows_of("binary", 950)
    frame.loc[[0, 400, 949], "a.b"] = -1.0
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), source, row_group_size=70)
    assert predict_file(project[0], str(source), out) == {"rows": 950, "refused": 3, "version": "3"}
    read = pd.read_parquet(out)
    assert read["id"].tolist() == frame["id"].tolist()
    assert read.index[read["error"].notna()].tolist() == [0, 400, 949]
    good = read["error"].isna().to_numpy()
    assert np.allclose(read.loc[good, "probability 예"], expected(project, frame[good])[:, 1], atol=1e-6)


def test_all_rows_bad_is_still_a_file_of_the_same_columns(project: Project, tmp_path: Path) -> None:
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    rows_of("binary", 5).assign(**{"a.b": -1.0}).to_parquet(source)
    assert predict_file(project[0], str(source), out)["refused"] == 5
    schema = pq.read_schema(out)
    assert [str(schema.field(n).type) for n in ("prediction", "probability 예", "error")] == [
        "string",
        "double",
        "string",
    ]


def test_the_target_and_unknown_columns_need_not_be_there(project: Project, tmp_path: Path) -> None:
    frame = rows_of("binary", 20).drop(columns=["떠남", "id"]).assign(note="kept")
    frame.to_csv(tmp_path / "in.csv", index=False)
    predict_file(project[0], str(tmp_path / "in.csv"), tmp_path / "out.csv")
    assert (pd.read_csv(tmp_path / "out.csv")["note"] == "kept").all()


def test_lists_and_structures_are_json_in_csv(project: Project, tmp_path: Path) -> None:
    rows_of("binary", 3).assign(tags=[["가", "b"], [], None]).to_parquet(tmp_path / "in.parquet")
    predict_file(project[0], str(tmp_path / "in.parquet"), tmp_path / "out.csv")
    assert pd.read_csv(tmp_path / "out.csv")["tags"].tolist()[:2] == ['["가", "b"]', "[]"]


def refused(project: Project, source: Path, out: Path, version: str | None = None) -> str:
    """Return what is said, after checking that nothing was written or left over."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(UserError) as error:
        predict_file(project[0], str(source), out, version)
    assert sorted(out.parent.iterdir()) == before
    return str(error.value)


def test_mistakes_are_one_sentence_and_write_nothing(project: Project, tmp_path: Path) -> None:
    frame = rows_of("binary", 5)
    source = tmp_path / "in.csv"
    frame.to_csv(source, index=False)
    assert "names no format: end it in .csv, .parquet, .jsonl" in refused(project, source, tmp_path / "out.xlsx")
    assert "is the source itself" in refused(project, source, source)
    assert "does not exist" in refused(project, tmp_path / "im.csv", tmp_path / "out.csv")
    assert "Version 9 was never deployed" in refused(project, source, tmp_path / "out.csv", "9")
    frame.rename(columns={WON: "누적 결제액"}).to_csv(source, index=False)
    assert 'no column "누적 결제액 (원)"' in refused(project, source, tmp_path / "out.csv")
    frame.assign(prediction=1).to_csv(source, index=False)
    assert 'has a column "prediction"' in refused(project, source, tmp_path / "out.csv")


def test_without_a_champion_the_way_to_one_is_named(tmp_path: Path) -> None:
    rows_of("binary", 5).to_csv(tmp_path / "in.csv", index=False)
    nothing = (Settings(root=tmp_path, store=tmp_path / "store"), None, None)
    assert "No model is in service yet" in refused(nothing, tmp_path / "in.csv", tmp_path / "out.csv")  # type: ignore[arg-type]


def test_a_failure_midway_keeps_the_old_file(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    rows_of("binary", 500).to_csv(source, index=False)
    out.write_text("old", encoding="utf-8")
    monkeypatch.setattr("flows.predict.explain_rows", lambda checked: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict_file(project[0], str(source), out)
    assert out.read_text(encoding="utf-8") == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.csv", "out.csv"]


def test_an_earlier_version_can_be_asked(tmp_path: Path) -> None:
    settings, *_ = make_project(tmp_path, "binary", "1")
    make_project(tmp_path, "binary", "2")
    rows_of("binary", 5).to_csv(tmp_path / "in.csv", index=False)
    assert predict_file(settings, str(tmp_path / "in.csv"), tmp_path / "a.csv")["version"] == "2"
    assert predict_file(settings, str(tmp_path / "in.csv"), tmp_path / "b.csv", "1")["version"] == "1"
