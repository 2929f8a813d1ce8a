"""Rows that break the contract: quarantined with their reasons, until there are too many."""

import pandas as pd
import pytest

from e2e.conftest import Make
from e2e.support import Project, refuse, sample

ROWS = 1_500


@pytest.fixture(scope="module")
def good() -> pd.DataFrame:
    return sample(ROWS)


@pytest.fixture
def project(make: Make) -> Project:
    return make(rows=None)


BROKEN = {  # what is written where, and the reason that is given for it
    "monthly_fee": ("much", "monthly_fee = much: not a whole number"),
    "voice_minutes": ("a lot", "voice_minutes = a lot: not a finite number"),
    "age": ("150", "age = 150: less_than_or_equal_to(120)"),
    "support_calls": ("-1", "support_calls = -1"),
    "plan": ("gold", "plan = gold: isin("),
    "signup_month": ("some day", "signup_month = some day: not a date"),
    "autopay": ("perhaps", "autopay = perhaps: not true or false"),
    "region": ("", "region = missing: not_nullable"),
    "churned": ("perhaps", "churned = perhaps: isin("),
}


def spoil(frame: pd.DataFrame, share: float) -> pd.DataFrame:
    """Make this share of the rows invalid, each in one way, in turn; one repeats the id of another."""
    spoiled = frame.copy()
    chosen = spoiled.sample(round(len(frame) * share), random_state=0).index
    for number, row in enumerate(chosen[1:]):
        column = list(BROKEN)[number % len(BROKEN)]
        spoiled.loc[row, column] = BROKEN[column][0]
    spoiled.loc[chosen[0], "customer_id"] = spoiled.drop(index=chosen)["customer_id"].iloc[0]
    if chosen[0] < spoiled.drop(index=chosen).index[0]:
        raise AssertionError("the first of the two is kept, and this test wants it to be the whole one")
    return spoiled


def test_two_percent_are_quarantined_with_reasons_and_the_run_succeeds(project: Project, good: pd.DataFrame) -> None:
    project.use(spoil(good, 0.02))
    done = project.run()
    assert f"{ROWS - 30:,} kept, 30 quarantined (2.00%)" in done.stdout
    rows = project.quarantine()
    assert len(rows) == 30
    said = [reason for reasons in rows["_reasons"] for reason in reasons]
    assert len(said) == 30
    for _, reason in BROKEN.values():
        assert any(text.startswith(reason) for text in said), (reason, said)
    assert any(text.startswith("customer_id = ") and "unique" in text for text in said), said
    spoiled = spoil(good, 0.02)
    assert rows["monthly_fee"].tolist() == spoiled.loc[rows["_row"], "monthly_fee"].tolist()
    assert project.champion


def test_sixty_percent_fail_the_run_which_names_columns_and_checks(project: Project, good: pd.DataFrame) -> None:
    project.use(spoil(good, 0.6))
    sentence = refuse(project.ml("run"))
    assert "900 of 1,500 rows (60.0%) break the contract" in sentence
    assert "max_bad_share = 10%" in sentence
    named = [column for column in BROKEN if f"{column}: " in sentence]
    assert len(named) == 5, sentence
    assert "not a whole number" in sentence
    assert "quarantine/" in sentence
    assert project.champion is None
    assert len(project.quarantine()) == 900


@pytest.mark.slow
def test_rows_without_a_target_are_left_out_and_counted(project: Project, good: pd.DataFrame) -> None:
    lacking = good.copy()
    lacking.loc[::25, "churned"] = ""
    project.use(lacking)
    assert "1,440 kept, 0 quarantined (0.00%), 60 without a label left out" in project.run().stdout
    assert project.champion


@pytest.mark.slow
def test_share_is_the_owner_s_choice(project: Project, good: pd.DataFrame) -> None:
    project.use(spoil(good, 0.02))
    project.configure("data", max_bad_share=0.01)
    assert "max_bad_share = 1%" in refuse(project.ml("run"))
    project.configure("data", max_bad_share=0.02)
    project.run()


@pytest.mark.slow
def test_missing_column_is_named_with_the_nearest(project: Project, good: pd.DataFrame) -> None:
    project.use(good.rename(columns={"monthly_fee": "montly_fee"}))
    sentence = refuse(project.ml("run"))
    assert '"monthly_fee"' in sentence
    assert '"montly_fee"' in sentence


@pytest.mark.slow
def test_column_of_the_wrong_type_is_named(project: Project, good: pd.DataFrame) -> None:
    project.use(good.assign(monthly_fee="많이"))
    sentence = refuse(project.ml("run"))
    assert "monthly_fee: not a whole number (1,500 rows)" in sentence
