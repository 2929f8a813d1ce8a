"""`ml keys`: what it prints, here and for an environment."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ondol.cli.app import KeyScope, app
from ondol.registry.keys import read_keys
from ondol.storage.store import Store
from ondol_serving.keys import SCOPES, find_key


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = '[project]\nname = "shop"\n[environments.staging]\nstore = "there"\nurl = "https://shop.example"\n'
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ML_STORE", raising=False)
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["keys", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_has_the_scopes_of_the_service() -> None:
    assert tuple(KeyScope) == SCOPES


def test_a_key_is_printed_once_and_listed_without_its_secret(project: Path) -> None:
    first = run("create", "청구 서비스")
    [text] = [line for line in first.splitlines() if line.startswith("ondol_")]
    [key] = read_keys(Store(project / ".ml" / "store"))
    assert find_key([key], text) == key
    assert "is valid until it is revoked, for predict. It is shown only now" in first
    assert "From now on, the service answers only requests with a key" in first
    second = run("create", "prometheus", "--scope", "metrics", "--scope", "admin", "--days", "30")
    assert "for metrics, admin" in second and "From now on" not in second
    listed = run("list")
    assert text not in listed and "청구 서비스" in listed and "metrics, admin" in listed and "valid until 20" in listed
    assert f"Key {key.id} of 청구 서비스 is revoked" in run("revoke", key.id)
    assert "revoked 20" in run("list")


def test_keys_of_an_environment_are_in_its_store(project: Path) -> None:
    assert run("list", "--to", "staging").strip() == "There are no keys: `ml keys create NAME` creates one."
    run("create", "billing", "--to", "staging")
    assert [key.name for key in read_keys(Store(project / "there"))] == ["billing"]
    assert "There are no keys" in run("list")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["revoke", "00000000"], "There is no key 00000000 in"),
        (["revoke", f"ondol_00000000_{'s' * 43}"], "There is no key 00000000 in"),
        (["create", " "], "A key needs a name in one line, of at most 100 characters"),
        (["create", "two\nlines"], "A key needs a name in one line"),
        (["create", "x" * 101], "A key needs a name in one line"),
        (
            ["create", "billing", "--to", "stagin"],
            'There is no [environments.stagin] in config.toml. Did you mean "staging"?',
        ),
    ],
)
def test_mistakes_are_one_sentence(project: Path, arguments: list[str], said: str) -> None:
    from ondol.errors import UserError

    with pytest.raises(UserError) as caught:
        CliRunner().invoke(app, ["keys", *arguments], catch_exceptions=False)
    assert said in str(caught.value) and "sss" not in str(caught.value)
