"""Secrets: filled in to connect with, shown by their names."""

from pathlib import Path

import pytest

from flows import secrets
from flows.errors import UserError
from flows.sources import Reading, open_source, refuse_plain, resolve


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_names", {})


def test_a_name_is_filled_in_and_encoded_inside_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "p@ss/비밀")
    assert resolve("postgresql://ann:${DB_PASSWORD}@host/db") == (
        "postgresql://ann:p%40ss%2F%EB%B9%84%EB%B0%80@host/db"
    )
    assert resolve("data/${DB_PASSWORD}.csv") == "data/p@ss/비밀.csv"


def test_a_whole_address_may_be_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://ann:pw@host/db")
    assert resolve("${DATABASE_URL}") == "postgresql://ann:pw@host/db"


def test_no_message_repeats_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "hunter 2!")
    resolve("postgresql://ann:${DB_PASSWORD}@host/db")
    assert str(UserError("refused: hunter 2! and hunter%202%21.")) == "refused: ${DB_PASSWORD} and ${DB_PASSWORD}."


def test_a_name_that_is_not_set_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'"\$\{NOWHERE_SET\}\.csv" needs NOWHERE_SET: set it'):
        open_source("${NOWHERE_SET}.csv", Reading(root=tmp_path))


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("postgresql://ann:hunter2@host/db", "password"),
        ("sample://?api_key=hunter2", "api_key"),
        ("sample://?rows=5#access_token=hunter2", "access_token"),
    ],
)
def test_a_secret_in_plain_text_is_refused_and_not_repeated(uri: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        refuse_plain(uri)
    assert "hunter2" not in str(caught.value)


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_TEST_FIRST", "environment")
    monkeypatch.setenv("ML_TEST_SECOND", "")
    monkeypatch.delenv("ML_TEST_SECOND")
    (tmp_path / ".env").write_text("ML_TEST_FIRST=file\nML_TEST_SECOND=파일\n", encoding="utf-8")
    secrets.load_env_file(tmp_path)
    assert resolve("${ML_TEST_FIRST} ${ML_TEST_SECOND}") == "environment 파일"
