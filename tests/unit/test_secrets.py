"""Secrets: filled in to connect with, shown by their names."""

import json
import traceback
from pathlib import Path

import pytest

from ondol import redaction as secrets
from ondol.cli import pipeline as stages
from ondol.cli.console import absolute_source, report_unexpected
from ondol.cli.init import source_from_root
from ondol.config import Settings, load_settings
from ondol.errors import UserError
from ondol.ingestion.sources import Reading, open_source
from ondol.orchestration.alerts import alert, waiting
from ondol.storage.remote_files import refuse_plain, resolve


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


def test_a_name_that_is_not_set_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'"\$\{NOWHERE_SET\}\.csv" needs NOWHERE_SET: set it'):
        open_source("${NOWHERE_SET}.csv", Reading(root=tmp_path))


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("postgresql://ann:hunter2@host/db", "password"),
        ("sample://?api_key=hunter2", "api_key"),
        ("sample://?rows=5#access_token=hunter2", "access_token"),
        ("az://lake/x.csv?sv=2024&sig=hunter2%3D", "sig"),
        ("https://h/x?api-key=hunter2", "api-key"),
        ("https://h/x?page=1&key=hunter2", "key"),
        ("rest+https://h/x?auth=hunter2", "auth"),
        ("https://h/x?accessToken=hunter2", "accessToken"),
        ("https://h/x?SharedAccessKey=hunter2", "SharedAccessKey"),
        ("https://hunter2@h/x", "user without a password"),
        ("https://hunter2:@h/x", "user without a password"),
        ("rest+http://hunter2@h:8080/x", "user without a password"),
        ("postgresql://ann:hun/hunter2@host/db", "password"),
        ("postgresql://ann:[hunter2@host/db", "password"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3D%7BODBC%7D%3BUID%3Dsa%3BPWD%3Dhunter2", "PWD"),
        ("mssql+pyodbc://?odbc_connect=DRIVER={ODBC};UID=sa;Pwd = hunter2", "Pwd"),
        ("kafka://h:1/t?group=g&ssl.key.pem=hunter2", "ssl.key.pem"),
        ("https://h/x#header=Authorization: Bearer hunter2", "header Authorization"),
        ("rest+https://h/x#records=a&header=X-Auth: hunter2", "header X-Auth"),
        ("rest+https://h/x#header=Proxy-Authorization:%20hunter2", "header Proxy-Authorization"),
        ("https://h/x#header=Cookie: hunter2", "header Cookie"),
        ("https://h/x#header=X-Team-Key: hunter2", "header X-Team-Key"),
    ],
)
def test_a_secret_in_plain_text_is_refused_and_not_repeated(uri: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        refuse_plain(uri)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://ann@h/db?require_auth=scram-sha-256",
        "mysql://ann@h/db?default_auth=mysql_native_password",
        "kafka://h:1/t?group=g&enable.sasl.oauthbearer.unsecure.jwt=true",
        "rest+https://h/x?max_tokens=100#header=Idempotency-Key: orders-7",
        "hdfs://namenode:8020/data/me@x.csv",
        "rest+https://h/x?keyword=a&keys=b&sort_key=c&page=2&monkey=d&author=e&sign=f&bypass=g&primary_key=h#page=p",
        "https://h:8080/users/@me?to=a@b",
        "https://ann:${PW}@h/x",
        "https://${TOKEN}@h/x?sig=${SIG}",
        "postgresql://ann@host/db?sslkey=client.key&sslmode=require",
        "postgresql://host:5432/db#SELECT * FROM t WHERE token = 'x' AND key = 'y;pwd=z'",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3DODBC%3BUID%3Dsa%3BPWD%3D${PW}",
        "mysql://ann:${PW}@host/db?ssl_key=client.pem",
        "bigquery://project?credentials_path=key.json",
        "s3://lake/a:b@c.csv",
        "kafka://h:1,i:2/t?group=a@b&ssl.key.location=x.pem&sasl.oauthbearer.token.endpoint.url=https://h/t",
        "rest+https://h/x#header=Authorization: Bearer ${TOKEN}&header=Accept: text/csv&header=Cookie: a=${B}; c=d",
        "data/token=x.csv",
    ],
)
def test_what_is_not_a_secret_is_not_refused(uri: str) -> None:
    refuse_plain(uri)


@pytest.mark.parametrize("form", ["pl+anted%21/x", "pl+anted%21%2Fx", "pl%20anted%21/x"])
def test_a_secret_is_known_as_forms_and_addresses_write_it(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv("API_TOKEN", "pl anted!/x")
    resolve("https://h/x?key=${API_TOKEN}")
    assert "anted" not in secrets.redact(f"Retrying after /x?key={form}&page=2")


@pytest.mark.parametrize("secret", ['pl"anted\\x', "plänted\n'x"])
def test_a_secret_is_known_as_json_and_python_write_it(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("API_TOKEN", secret)
    resolve("https://h/x?key=${API_TOKEN}")
    written = (secret, json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret))
    assert {secrets.redact(text).strip("'\"") for text in written} == {"${API_TOKEN}"}


@pytest.mark.parametrize(
    "address",
    [
        "https://h/x?page=2&key=pl+anted%21",
        "https://h/x#header=Authorization: Bearer pl%20anted!",
        "https://pl%20anted%21@h/x",
        "mssql:///?odbc_connect=UID%3Dsa%3BPWD%3Dpl+anted%21",
        "postgresql://ann:pl%20anted!@h/x",
    ],
)
def test_of_a_secret_address_each_secret_is_known(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("DATABASE_URL", address)
    resolve("${DATABASE_URL}")
    for form in ("pl anted!", "pl+anted%21", "pl%20anted%21"):
        assert "anted" not in secrets.redact(f"refused: {form} of x")


def test_a_fault_is_raised_without_the_secret_that_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "hunter 2!")
    resolve("postgresql://ann:${DB_PASSWORD}@host/db")
    for said, kind in (("no hunter%202%21", RuntimeError), ("refused", ValueError)):
        with pytest.raises(kind) as caught, secrets.redact_exceptions():
            try:
                raise KeyError("hunter 2!")
            except KeyError as error:
                raise ValueError(said) from error
        trace = "".join(traceback.format_exception(caught.value))
        assert trace.count("hunter") == trace.count('KeyError("hunter 2!")')  # the line of this test alone
    with pytest.raises(ZeroDivisionError) as whole, secrets.redact_exceptions():
        raise ZeroDivisionError("nothing") from ValueError("why")
    assert whole.value.__cause__ is not None


def test_a_trace_is_kept_and_shown_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text('[project]\nname = "shop"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DB_PASSWORD", "hunter 2!")
    resolve("postgresql://ann:${DB_PASSWORD}@host/db")
    assert report_unexpected(ValueError("refused: hunter%202%21")) == 1
    [log] = (tmp_path / ".ml" / "logs").glob("error-*.log")
    said = capsys.readouterr().err
    assert "refused: ${DB_PASSWORD}" in said and "refused: ${DB_PASSWORD}" in log.read_text(encoding="utf-8")
    assert "hunter" not in said + log.read_text(encoding="utf-8")


def test_predict_refuses_a_plain_secret_before_prefect_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "start_command", lambda: pytest.fail("the flow was begun"))
    with pytest.raises(UserError, match="password is in plain text"):
        stages.run_predict("postgresql://ann:hunter2@host/db#t", Path("out.csv"), None)


@pytest.mark.parametrize("source", ["${DATABASE_URL}", "${DATABASE_URL}#t", "https://h/x", "postgresql://${A}@h/db"])
def test_a_secret_that_is_a_whole_address_is_not_a_path_on_the_command_line(source: str, tmp_path: Path) -> None:
    assert absolute_source(source) == source_from_root(source, tmp_path) == source


def test_an_alert_says_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "hunter 2!")
    resolve("postgresql://ann:${DB_PASSWORD}@host/db")
    settings = Settings(root=tmp_path)
    alert(settings, "run-failed", "The run failed: no hunter%202%21", "Look.")
    [kept] = waiting(settings)
    assert json.loads(kept.read_bytes())["what"] == "The run failed: no ${DB_PASSWORD}"


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_TEST_FIRST", "environment")
    monkeypatch.setenv("ML_TEST_SECOND", "")
    monkeypatch.delenv("ML_TEST_SECOND")
    (tmp_path / ".env").write_text("ML_TEST_FIRST=file\nML_TEST_SECOND=파일\n", encoding="utf-8")
    secrets.load_env_file(tmp_path)
    assert resolve("${ML_TEST_FIRST} ${ML_TEST_SECOND}") == "environment 파일"


def test_a_byte_order_mark_of_the_env_file_is_not_a_part_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_TEST_FIRST", "")
    monkeypatch.delenv("ML_TEST_FIRST")
    (tmp_path / ".env").write_text("ML_TEST_FIRST=파일\n", encoding="utf-8-sig")
    secrets.load_env_file(tmp_path)
    assert resolve("${ML_TEST_FIRST}") == "파일"


@pytest.mark.parametrize("encoding", ["cp949", "utf-16"])
def test_an_env_file_in_another_encoding_is_one_sentence(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "config.toml").touch()
    (tmp_path / ".env").write_text("# 비밀번호\nML_TEST_FIRST=1\n", encoding=encoding)
    with pytest.raises(UserError, match=r"\.env is not UTF-8: save it as UTF-8\.$"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('\ufeff[project]\nname = "a"\n'.encode(), "begins with a byte order mark: save it as UTF-8 without one."),
        ('[project]\nname = "가"\n'.encode("cp949"), "is not UTF-8: save it as UTF-8."),
        (b"[project\n", "is not valid TOML: "),
    ],
)
def test_a_config_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_settings(tmp_path)
    assert said in str(caught.value)


def test_the_key_of_the_service_is_sent_and_shown_in_no_message(monkeypatch):
    from urllib.request import Request

    from ondol.redaction import add_authorization, redact

    key = "ondol_12345678_" + "k" * 43
    monkeypatch.setenv("ML_API_KEY", key)
    request = add_authorization(Request("https://churn.example.com/model"))
    assert request.unredirected_hdrs == {"Authorization": f"Bearer {key}"}
    assert key not in redact(f"it failed with {key}")
    monkeypatch.setenv("ML_API_KEY", f"{key}\n")  # of a file
    assert add_authorization(Request("https://churn.example.com")).unredirected_hdrs == request.unredirected_hdrs
    monkeypatch.setenv("ML_API_KEY", f"{key}\u00e9")
    assert add_authorization(Request("https://churn.example.com")).unredirected_hdrs == {}
    monkeypatch.delenv("ML_API_KEY")
    assert add_authorization(Request("https://churn.example.com/model")).unredirected_hdrs == {}
