"""Every table that was found to be difficult: `ml init` and `ml run` without an edit, or one sentence."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from e2e.conftest import Make
from e2e.support import Done, refuse, succeed

SHARED = Path(__file__).parents[3] / "shared"
TARGETS = {
    "telco_churn.csv": "Churn",
    "diamonds.csv": "price",
    "mpg.csv": "origin",
    "decimal_comma_target.csv": "preis",
    "no_header_spaces.csv": "column_4",
    "series.csv": "extent",
    "sum_with_zero_rows.csv": "total",
    "total_up_to_surcharges.csv": "tip",
}
# Allowed messages on made-up data in which there is nothing to learn, or in which a column is the answer.
SENTENCES = ("is refused by the floor gate", "looks like a leak", "leak", "at least")
FILES = sorted(p for p in (*SHARED.glob("faults/*"), *SHARED.glob("data/*")) if p.suffix in (".csv", ".json"))


def is_one_sentence(done: Done) -> bool:
    """Return True if a command ended well, or by one sentence without a traceback."""
    said = done.stderr.strip()
    if done.returncode == 0:
        return not said
    return said.startswith("Error: ") and "\n" not in said and "Traceback" not in said + done.stdout


@pytest.mark.slow
def test_the_tables_are_here() -> None:
    if not FILES:
        pytest.skip(f"{SHARED} is absent")
    assert {path.name for path in FILES} >= TARGETS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_table_is_accepted_or_refused_in_one_sentence(make: Make, path: Path) -> None:
    project = make(rows=None)
    done = project.ml("init", str(path), "--target", TARGETS.get(path.name, "y"), "--force")
    assert is_one_sentence(done), done
    assert done.returncode == 0, done.stderr
    ran = project.ml("run")
    assert is_one_sentence(ran), ran
    assert ran.returncode == 0 or any(said in ran.stderr for said in SENTENCES), ran.stderr


@pytest.mark.slow
def test_a_table_of_another_country_goes_through_every_command(make: Make) -> None:
    rng = np.random.default_rng(0)
    n = 900
    frame = pd.DataFrame(
        {
            "번호": [f"{i:05}-K" for i in range(n)],
            "가입일": pd.Series(pd.date_range("2021-01-01", periods=n)).dt.strftime("%d/%m/%Y %I:%M %p"),
            "금액": rng.uniform(100, 9000, n).round(2),
            "맥박": rng.integers(50, 120, n),
            "지역": rng.choice([" 서울", " 부산", " 없음"], n),
        }
    )
    frame["해지"] = np.where(frame["금액"] + 40 * frame["맥박"] + rng.normal(0, 500, n) > 8000, "예", "아니오")
    frame.loc[frame.index % 5 == 0, "해지"] = ""
    texts = frame.astype(str)
    texts["금액"] = [f"{v:,.2f}".translate(str.maketrans(",.", ".,")) for v in frame["금액"]]
    texts.loc[frame.index % 9 == 0, "맥박"] = "없음"
    project = make(rows=None)

    def write(name: str, part: pd.DataFrame, encoding: str = "cp949") -> None:
        part.to_csv(project.root / name, sep=";", index=False, encoding=encoding, quoting=csv.QUOTE_MINIMAL)

    write("표.csv", texts)
    done = succeed(project.ml("init", "표.csv", "--target", "해지"))
    for said in (
        "CP949",
        "semicolons",
        "decimal comma, and points between thousands",
        "day/month/year",
        '"없음" means in 100',
    ):
        assert said in done.stdout, done.stdout
    assert '"해지" is missing in 180 rows (20.0%): they are left out of training' in done.stdout
    ran = project.run()
    assert "720 kept, 0 quarantined (0.00%), 180 without a label left out" in ran.stdout
    succeed(project.ml("contract", "diff"))

    write("새.csv", texts.drop(columns="해지").head(50))
    succeed(project.ml("predict", "새.csv", "out.parquet"))
    scored = pd.read_parquet(project.root / "out.parquet")
    assert scored["prediction"].notna().all() and scored["금액"].tolist() == frame["금액"].head(50).tolist()
    typed = frame.drop(columns="해지").head(50)
    typed["지역"], typed["맥박"] = typed["지역"].str.strip(), typed["맥박"].where(typed.index % 9 != 0)
    typed.to_parquet(project.root / "새.parquet")
    succeed(project.ml("predict", "새.parquet", "again.parquet"))
    pd.testing.assert_series_equal(pd.read_parquet(project.root / "again.parquet")["prediction"], scored["prediction"])
    frame.head(5).to_csv(project.root / "plain.csv", index=False)
    assert "is not CP949" in refuse(project.ml("predict", "plain.csv", "no.csv"))
    frame.head(5).to_csv(project.root / "plain.csv", index=False, encoding="utf-8-sig")
    assert "when it is read with [data] of config.toml" in refuse(project.ml("predict", "plain.csv", "no.csv"))
