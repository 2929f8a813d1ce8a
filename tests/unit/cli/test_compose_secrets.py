"""`ml compose secrets`: passwords that are made once, and what it prints."""

import stat
import subprocess
from pathlib import Path

import pytest
from dotenv import dotenv_values
from typer.testing import CliRunner

from ondol.cli.app import app
from ondol.cli.compose import FOLDER

OWN = "p@ss:w/rd%41#?&=+ ${HOME} 비밀'\""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.toml").write_text('[project]\nname = "shop"\n', encoding="utf-8")
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "compose.yaml").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("POSTGRES_PASSWORD", "GRAFANA_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / FOLDER


def run() -> str:
    result = CliRunner().invoke(app, ["compose", "secrets"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_passwords_are_made_once(folder: Path) -> None:
    said = run()
    assert "Created in ops/secrets, which git ignores: postgres, grafana, servers.env." in said
    made = read(folder)
    assert "nothing was changed" in run()
    assert read(folder) == made


def test_passwords_are_random_and_none_is_printed(folder: Path) -> None:
    said = run()
    first = read(folder)
    values = {str(value) for value in dotenv_values(folder / "servers.env").values()}
    secrets = {value.removeprefix("ml:") for value in values - {"ml"}}
    secrets |= {(folder / name).read_text(encoding="utf-8").rstrip("\n") for name in ("postgres", "grafana")}
    assert len(secrets) == 4 and all(len(secret) == 32 for secret in secrets)
    assert not [secret for secret in secrets if secret in said]
    for path in folder.iterdir():
        path.unlink()
    run()
    assert not {first[name] for name in ("postgres", "grafana", "servers.env")} & set(read(folder).values())


def test_client_and_server_have_the_same_logins(folder: Path) -> None:
    run()
    env = dotenv_values(folder / "servers.env")
    assert env["PREFECT_API_AUTH_STRING"] == env["PREFECT_SERVER_API_AUTH_STRING"]
    assert f"{env['MLFLOW_TRACKING_USERNAME']}:{env['MLFLOW_TRACKING_PASSWORD']}" == env["ML_MLFLOW_AUTH_STRING"]


def test_missing_file_is_made_and_the_others_stay(folder: Path) -> None:
    run()
    before = read(folder)
    (folder / "grafana").unlink()
    assert "which git ignores: grafana." in run()
    after = read(folder)
    assert after.pop("grafana") != before.pop("grafana")
    assert after == before


def test_passwords_of_an_earlier_version_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", OWN)
    monkeypatch.setenv("GRAFANA_PASSWORD", "s3cret")
    said = run()
    assert "The password in ops/secrets/postgres is that of the variable POSTGRES_PASSWORD." in said
    assert OWN not in said and "s3cret" not in said
    assert (folder / "postgres").read_text(encoding="utf-8") == f"{OWN}\n"
    assert (folder / "grafana").read_text(encoding="utf-8") == "s3cret\n"


def test_only_the_owner_enters_the_folder_and_containers_can_read_the_files(folder: Path) -> None:
    """Compose mounts the files themselves, so the folder's mode does not concern a container."""
    folder.mkdir(mode=0o755)
    run()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}


def test_git_ignores_them(folder: Path) -> None:
    run()
    root = folder.parents[1]
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    said = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=root, check=True, capture_output=True, text=True
    )
    assert "ops/compose.yaml" in said.stdout and "ops/secrets" not in said.stdout


def test_a_project_without_compose_is_told_so(folder: Path) -> None:
    (folder.parent / "compose.yaml").unlink()
    result = CliRunner().invoke(app, ["compose", "secrets"])
    assert "There is no ops/compose.yaml in" in str(result.exception)
    assert not folder.exists()
