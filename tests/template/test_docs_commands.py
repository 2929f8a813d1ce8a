"""Executes the commands of the docs in a project, in the order of each page, with a check of the output."""

import json
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy
import yaml
from compose_support import Dockerfile
from conftest import Render
from docs_support import Command, Reader, read_blocks, read_commands
from e2e.support import NOWHERE, Project, make_project, sample, succeed
from marks import slow_but
from sources_support import Cluster, Server
from template_support import REPOSITORY, commit_all, git
from typer.main import get_command

from ondol.cli.app import app
from ondol.config import load_settings
from ondol.ingestion.sample import SampleSource
from ondol.orchestration.guard import free_port
from ondol.registry.bundles import open_bundle
from ondol.registry.champion import require_champion
from ondol.storage.store import open_store
from ondol_serving.keys import KEYS_FILE, NO_HASH, Key, list_entries

# The Korean pages show the commands of the English ones: tests/unit/test_docs_korean.py.
FOLLOWED_ELSEWHERE = {
    "docs/how-to/version-data-with-dvc.md": "tests/e2e/test_dvc.py",
    "docs/tutorial/first-model.md": "tests/template/test_tutorial.py",
    "docs/tutorial/retraining.md": "tests/template/test_tutorial.py",
}
# Commands that are not executed here, and what does so in another way.
NOT_EXECUTED = {
    "docker build ": "tests/template/test_images.py",  # by Buildah, if it is there
    "docker run ": "tests/template/test_images.py",
    "docker compose ": "tests/e2e/test_compose.py",  # the services as processes
    "docker --host ": "tests/unit/cli/test_container.py",  # a stand-in for a host
    "make ": "Makefile",  # the tests themselves
    "uv run ml simulate ": "tests/e2e/test_simulate.py",  # weeks in minutes
}
ASSIGNMENTS = re.compile(r"^(\w+=(\$\([^)]*\)|\S*) +)*")
PLACEHOLDER = re.compile(r"…|\bexample\b|@host|host:|\b(YOUR|COLUMN|FOLDER)\b")
SHELLS = {"bash", "console"}
NO_SHELL = {"", "diff", "json", "output", "python", "text", "toml", "yaml"}
TARGETS = ["churned", "next_plan", "next_spend"]
QUICK = ["docs/how-to/read-csv-in-other-notations.md", "docs/how-to/read-files.md"]


def read_pages() -> dict[str, Path]:
    """Return the pages by their paths in the repository."""
    patterns = ("README*.md", "CONTRIBUTING.md", "docs/**/*.md", "packages/*/README.md", "template/README.md.jinja")
    found = {path.relative_to(REPOSITORY).as_posix(): path for one in patterns for path in REPOSITORY.glob(one)}
    return {name: path for name, path in sorted(found.items()) if not name.startswith("docs/ko/")}


def commands_of(page: Path) -> list[str]:
    return [command.words for block in read_blocks(page) for command in read_commands(*block)]


def is_executed(words: str) -> bool:
    return not ASSIGNMENTS.sub("", words).startswith(tuple(NOT_EXECUTED))


ALL = {name: words for name, path in read_pages().items() if (words := commands_of(path))}
PAGES = {name: [*filter(is_executed, words)] for name, words in ALL.items() if name not in FOLLOWED_ELSEWHERE}
PAGES = {name: words for name, words in PAGES.items() if words}


@dataclass
class Place:
    """The reader of a page, its project, and the fixtures of the test."""

    reader: Reader
    project: Project
    request: pytest.FixtureRequest

    @property
    def root(self) -> Path:
        return self.project.root

    def run(self, words: str) -> None:
        self.reader.type([Command(words)])


def customers(rows: int) -> pa.Table:
    return pa.Table.from_batches(list(SampleSource(rows=rows).batches()))


def as_json(rows: pa.Table) -> list[dict[str, object]]:
    return list(json.loads(json.dumps(rows.to_pylist(), default=str)))


def row_of_the_sample(_: Place) -> dict[str, str]:
    rows = customers(9).filter(pc.field("churned") == "no").drop_columns(["customer_id", *TARGETS])
    row = json.dumps(as_json(rows)[0], ensure_ascii=False)
    return {"[…]": f"[{row}]", '{"signup_month": "2022-04-01T00:00:00", …}': row}


def table_of_ones_own(at: Place) -> dict[str, str]:
    sample().drop(columns=["next_plan", "next_spend"]).to_csv(at.root / "customers.csv", index=False)
    return {"YOUR.csv": "customers.csv", "COLUMN": "churned", **environments(at)}


def german_csv(at: Place) -> None:
    frame = sample(500)
    frame[["data_gb", "discount"]] = frame[["data_gb", "discount"]].replace(r"\.", ",", regex=True)
    (at.root / "data").mkdir()
    frame.to_csv(at.root / "data" / "customers.csv", index=False, sep=";", encoding="cp949")


def files_of_months(at: Place) -> None:
    for name in ("2024-01", "shops/2024-02"):
        path = at.root / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        customers(500).to_pandas().to_parquet(path)


def make_database(at: Place, name: str) -> str:
    """Make a database for this page; return its address, from the colon on."""
    server = sqlalchemy.make_url(at.request.getfixturevalue("postgres")).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")

    def execute(sql: str) -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql(sql)
        engine.dispose()

    execute(f"create database {name}")
    at.request.addfinalizer(lambda: execute(f"drop database {name} with (force)"))
    return server.set(database=name).render_as_string(hide_password=False).removeprefix("postgresql+psycopg")


def table_in_postgres(at: Place) -> dict[str, str]:
    address = make_database(at, "docs_shop")
    engine = sqlalchemy.create_engine(f"postgresql+psycopg{address}")
    customers(500).to_pandas().to_sql("customers", engine, index=False)
    engine.dispose()
    return {
        "PGPASSWORD=…": "PGPASSWORD=secret",
        "://ann:${PGPASSWORD}@host/shop": re.sub(r"//(\w+):?@", r"//\1:${PGPASSWORD}@", address),
    }


def api(at: Place) -> dict[str, str]:
    rows = as_json(customers(500))

    def answer(query: Mapping[str, str], _: int) -> tuple[int, dict[str, str], object]:
        last = query.get("cursor") == "2"
        page = {"items": rows[300:] if last else rows[:300]}
        return 200, {}, {"data": page, "meta": {"next_cursor": None if last else "2"}}

    server = Server(answer)
    at.request.addfinalizer(server.close)
    return {"https://api.example.org": f"http://{server.host}", "API_TOKEN=…": "API_TOKEN=secret"}


def topic(at: Place) -> dict[str, str]:
    cluster = Cluster()
    at.request.addfinalizer(cluster.producer.flush)  # the cluster lives as long as its producer
    cluster.send("orders", as_json(customers(500)))
    address = next(words for words in PAGES["docs/how-to/read-from-kafka.md"] if "ml init" in words).split("'")[1]
    return {"KAFKA_PASSWORD=…": "KAFKA_PASSWORD=secret", address: cluster.uri("orders")}


def files_in_bucket(at: Place) -> None:
    for month in ("01", "02"):
        customers(500).to_pandas().to_parquet(at.root / "orders.parquet")
        bucket_of(at)(Key=f"orders/2024-{month}.parquet", Body=(at.root / "orders.parquet").read_bytes())


def bucket_of(at: Place) -> Callable[..., object]:
    put: Callable[..., object] = at.request.getfixturevalue("bucket")
    at.reader.environment |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return put


def store_in_bucket(at: Place) -> dict[str, str]:
    bucket_of(at)
    return {"s3://bucket/prefix": "s3://lake/churn", "FOLDER": str(at.root / ".ml" / "followed")}


def growing_table(at: Place) -> None:
    at.project.configure("data", watermark="signup_month")


def other_data(at: Place) -> None:
    at.project.use(sample(drift=1.0).assign(shop="main"))


def bad_rows(at: Place) -> dict[str, str]:
    frame = sample(2_000)
    frame.loc[:8, "monthly_fee"] = "unknown"
    at.project.use(frame)
    replay = "uv run ml quarantine replay --from bad.csv"
    look = "uv run ml quarantine list"
    return {
        look: f"{look}; sed -i s/le=120/le=130/ model/schema.py",  # the contract is edited
        replay: f"sed -i s/unknown/44000/ bad.csv; {replay}",  # the rows are corrected
    }


def breaking_version(at: Place) -> None:
    at.project.use(sample(1_400))  # whose model has callers, other than that of the sample
    at.project.configure("gates", margin=0.9)
    at.run("uv run ml run")
    schema = at.root / "model" / "schema.py"
    text = schema.read_text(encoding="utf-8")
    schema.write_text(text.replace("    device: str = pa.Field()\n", ""), encoding="utf-8")
    at.run("! uv run ml run")


def file_to_predict(at: Place) -> None:
    frame = sample(300).drop(columns=TARGETS)
    frame.loc[7, "plan"] = "gold"
    frame.to_csv(at.root / "new.csv", index=False)


def labels(at: Place) -> None:
    """Send 600 rows, and write their labels."""
    rows = pa.Table.from_batches(list(SampleSource(rows=600, start=4_000).batches()))
    rows.select(["customer_id", "churned"]).to_pandas().to_csv(at.root / "labels.csv", index=False)
    at.project.configure("monitor", labels="labels.csv")
    (at.root / "rows.json").write_text(json.dumps({"rows": as_json(rows.drop_columns(TARGETS))}), encoding="utf-8")
    at.run("uv run ml serve")
    at.run("curl -s http://127.0.0.1:3000/predict --json @rows.json")


def metrics_of_worker(at: Place) -> dict[str, str]:
    port = str(free_port())
    at.project.configure("monitor", metrics=f"127.0.0.1:{port}")
    return {"9464": port}


def environments(at: Place) -> dict[str, str]:
    """Let the services of staging and of production run, without containers."""
    folder = at.root / ".ml" / "srv" / "churn"
    urls = {name: f"http://127.0.0.1:{free_port()}" for name in ("staging", "production")}
    for name, url in urls.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        at.project.configure("environments", **{name: {"store": str(folder / name), "url": url}})
        serve = Command(f"ML_STORE={folder / name} uv run ml serve --port {url.rpartition(':')[2]}")
        at.reader.start(serve, f"{url}/livez")
    return {
        "https://staging.churn.example.org": urls["staging"],
        "https://staging.example.org": urls["staging"],
        "/srv/churn": str(folder),
        "-o 10001 ": "",  # it takes root
    }


def released_twice(at: Place) -> dict[str, str]:
    folder = at.root / ".ml" / "srv" / "churn"
    shutil.rmtree(folder / "staging")
    shutil.copytree(at.project.store, folder / "staging")
    return {"/srv/churn": str(folder)}


def repository_on_github(at: Place) -> None:
    git(at.root.parent, "init", "--quiet", "--bare", "github")
    git(at.root, "remote", "add", "origin", str(at.root.parent / "github"))
    at.request.addfinalizer(lambda: shutil.rmtree(at.root.parent / "github"))


def repository_to_clone(at: Place) -> dict[str, str]:
    return {"https://github.com/acme/churn": f"{at.root} churn"}


def own_servers(at: Place) -> dict[str, str]:
    flows, models, folder = make_database(at, "docs_prefect"), make_database(at, "docs_mlflow"), at.root / ".ml" / "srv"
    at.reader.environment |= {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    at.run(
        "MLFLOW_BACKEND_STORE_URI=sqlite:///.ml/mlflow/mlflow.db uv run uvicorn --factory "
        "ondol.registry.mlflow_server:mlflow --port 5000"
    )
    return {
        "https://prefect.example.org/api": at.request.getfixturevalue("prefect"),
        "https://mlflow.example.org": "http://127.0.0.1:5000",
        "://USER@HOST/prefect": flows,
        "://USER@HOST/mlflow": models,
        "prefect server start": "prefect server start --port 4200",
        "mlflow server": "mlflow server --port 5000 --workers 1",
        "/srv": str(folder),
    }


def server_of_another_machine(at: Place) -> dict[str, str]:
    return {"https://prefect.example.org/api": at.request.getfixturevalue("prefect")}


def readme_in_korean(at: Place) -> dict[str, str]:
    # Another target than the sample's, whose model is in production by then: it cannot be compared.
    own = sample().drop(columns=["next_plan", "next_spend"]).rename(columns={"churned": "해지"})
    own.to_csv(at.reader.folder / "customers.csv", index=False)
    return {"내_데이터.csv": "../customers.csv", "타깃_열": "해지"} | row_of_the_sample(at)


def key_of_the_service(at: Place) -> dict[str, str]:
    made = succeed(at.project.ml("keys", "create", "docs")).stdout
    return {"ondol_…": next(line for line in made.splitlines() if line.startswith("ondol_"))}


def keys_of_callers(at: Place) -> None:
    created = datetime(2026, 11, 30, tzinfo=UTC)
    about = (("52c7d87d", "billing", "predict"), ("1f431488", "prometheus", "metrics"))
    keys = [Key(id=name, name=caller, hash=NO_HASH, scopes=(scope,), created=created) for name, caller, scope in about]
    store = open_store(load_settings(at.root))
    store.write_json(store.folder / KEYS_FILE, list_entries(keys))


def logged_requests(at: Place) -> dict[str, str]:
    labels(at)
    return {"replay 4": "replay 1"}


def candidate_that_passed(at: Place) -> dict[str, str]:
    at.run("ML_TRAIN__SEED=2 uv run ml train")
    at.run("uv run ml evaluate")
    return {"rollout start 4": "rollout start 3"}


def inputs_of_the_protocol(at: Place) -> None:
    store = open_store(load_settings(at.root))
    bundle = open_bundle(store, require_champion(store).bundle)
    rows = as_json(pa.Table.from_batches(list(SampleSource(rows=2).batches())))
    kinds = {"integer": "FP64", "number": "FP64", "boolean": "BOOL"}
    inputs = [
        {"name": c.name, "datatype": kinds.get(c.kind, "BYTES"), "shape": [2], "data": [row[c.name] for row in rows]}
        for c in bundle.contract.features
    ]
    (at.root / "inputs.json").write_text(json.dumps({"inputs": inputs}), encoding="utf-8")


def table_of_new_customers(at: Place) -> None:
    customers(20).drop_columns(TARGETS).to_pandas().to_csv(at.root / "new.csv", index=False)


PREPARE: dict[str, Callable[[Place], Mapping[str, str] | None]] = {
    "README.md": row_of_the_sample,
    "README.ko.md": readme_in_korean,
    "template/README.md.jinja": table_of_ones_own,
    "docs/how-to/add-an-endpoint.md": row_of_the_sample,
    "docs/how-to/control-access.md": key_of_the_service,
    "docs/how-to/correct-bad-rows.md": bad_rows,
    "docs/how-to/deploy-a-breaking-change.md": breaking_version,
    "docs/how-to/explain-a-prediction.md": file_to_predict,
    "docs/how-to/measure-by-labels.md": labels,
    "docs/how-to/monitor-another-environment.md": environments,
    "docs/how-to/predict-a-file.md": file_to_predict,
    "docs/how-to/replay-requests.md": logged_requests,
    "docs/how-to/reproduce-a-version.md": lambda _: {"reproduce 3": "reproduce 2 --no-install"},
    "docs/how-to/predict-many-rows.md": table_of_new_customers,
    "docs/how-to/read-csv-in-other-notations.md": german_csv,
    "docs/how-to/read-files.md": files_of_months,
    "docs/how-to/read-from-a-database.md": table_in_postgres,
    "docs/how-to/read-from-a-rest-api.md": api,
    "docs/how-to/read-from-an-object-store.md": files_in_bucket,
    "docs/how-to/read-from-kafka.md": topic,
    "docs/how-to/read-only-new-rows.md": growing_table,
    "docs/how-to/receive-alerts.md": lambda _: {"https://hooks.example.org": NOWHERE},
    "docs/how-to/release-a-model.md": environments,
    "docs/how-to/revoke-a-key.md": keys_of_callers,
    "docs/how-to/roll-back.md": released_twice,
    "docs/how-to/run-in-the-background.md": server_of_another_machine,
    "docs/how-to/set-up-the-workflows.md": repository_on_github,
    "docs/how-to/store-in-a-bucket.md": store_in_bucket,
    "docs/how-to/try-a-version.md": candidate_that_passed,
    "docs/how-to/update-the-contract.md": other_data,
    "docs/how-to/use-the-open-inference-protocol.md": inputs_of_the_protocol,
    "docs/how-to/use-your-own-servers.md": own_servers,
    "docs/how-to/watch-in-prometheus-and-grafana.md": metrics_of_worker,
    "docs/how-to/work-on-a-colleagues-project.md": repository_to_clone,
}


@pytest.fixture(scope="module")
def trained_once(render: Render, prefect: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose version 2 is in production, and version 1 in staging, saved."""
    folder = tmp_path_factory.mktemp("docs") / "customer-churn"
    project = make_project(render(), folder, PREFECT_API_URL=prefect)
    project.run()
    shutil.copytree(project.store, folder / ".ml" / "srv" / "churn" / "staging")
    project.configure("train", seed=1)
    commit_all(folder)
    project.run()
    return project.save()


def make_place(page: str, request: pytest.FixtureRequest, scratch: Path) -> Place:
    """Open a terminal in an empty folder, a new project or a trained one, as the page needs it."""
    commands, rendered = PAGES[page], request.getfixturevalue("render")()
    if any("copier copy" in words for words in commands):
        project = Project(scratch / "churn")
        return Place(Reader(scratch, project.root, rendered, scratch), project, request)
    if any("ml init" in words for words in commands):
        project = make_project(rendered, scratch / "customer-churn")
    else:
        project = request.getfixturevalue("trained_once").restore()
    reader = Reader(project.root, project.root, rendered, scratch)
    if not any("ml up" in words or "PREFECT_API_URL" in words for words in commands):
        reader.environment["PREFECT_API_URL"] = request.getfixturevalue("prefect")
    return Place(reader, project, request)


@pytest.fixture
def at(page: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """The place of a page; no process may keep running there."""
    place = make_place(page, request, tmp_path)
    (tmp_path / ".curlrc").write_text("fail-with-body\n", encoding="utf-8")
    place.reader.environment["CURL_HOME"] = str(tmp_path)
    yield place
    place.reader.close()


@pytest.mark.parametrize("page", slow_but(QUICK, PAGES))
def test_a_page_can_be_followed(page: str, at: Place) -> None:
    changes = PREPARE.get(page, lambda _: None)(at) or {}

    def change(words: str) -> str | None:
        for old, new in changes.items():
            words = words.replace(old, new)
        return words if is_executed(words) else None

    path = at.root / "README.md" if page.endswith(".jinja") else REPOSITORY / page
    at.reader.follow(path, change)
    for source in re.findall(r'^source = "(.*)"', path.read_text(encoding="utf-8"), re.MULTILINE):
        if any("ml init" in words and source in words for words in PAGES[page]):
            assert tomllib.loads((at.root / "config.toml").read_text("utf-8"))["data"]["source"] == change(source)


def test_pages_with_placeholders_are_prepared():
    assert {name for name, words in PAGES.items() if PLACEHOLDER.search("\n".join(words))} <= PREPARE.keys()


def test_commands_within_the_text_exist():
    ml = get_command(app)
    texts = [path.read_text(encoding="utf-8") for path in read_pages().values()]
    for words in {words for text in texts for words in re.findall(r"`(?:uv run )?ml ([a-z][^`…]*)", text)}:
        command = ml
        for word in words.split():
            command = getattr(command, "commands", {}).get(word, command)
        options = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        assert command is not ml and set(re.findall(r" (--\S+)", words)) <= options, words


@pytest.mark.parametrize("page", [name for name in read_pages() if name.startswith("docs/")])
def test_settings_of_a_page_can_be_read(page: str, tmp_path: Path):
    for kind, text in read_blocks(REPOSITORY / page):
        if kind == "toml":
            (tmp_path / "config.toml").write_text(text, encoding="utf-8")
            load_settings(tmp_path)


def test_every_command_is_in_a_block_of_a_shell():
    for path in (REPOSITORY / "docs").rglob("*.md"):
        blocks = read_blocks(path)
        assert {kind for kind, _ in blocks} <= SHELLS | NO_SHELL, path
        others = [text for kind, text in blocks if kind not in SHELLS and re.match(r"(\$|uvx?|ml|make) ", text)]
        assert not others or path.name == "commands.md", others


def test_lists_of_pages_and_commands_name_what_there_is():
    assert PREPARE.keys() <= PAGES.keys()
    assert FOLLOWED_ELSEWHERE.keys() <= ALL.keys()
    left_out = [ASSIGNMENTS.sub("", words) for commands in ALL.values() for words in commands if not is_executed(words)]
    for words, place in [*NOT_EXECUTED.items(), *FOLLOWED_ELSEWHERE.items()]:
        assert (REPOSITORY / place).exists()
        assert words in ALL or any(command.startswith(words) for command in left_out), words


def test_commands_that_are_not_executed_name_what_there_is(render: Render):
    project, makefile = render(), (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    dockerfile = (project / "Dockerfile").read_text(encoding="utf-8")
    services = yaml.safe_load((project / "ops" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    for words in [words for commands in ALL.values() for words in commands if not is_executed(words)]:
        assert all((project / path).exists() for path in re.findall(r" -f (\S+)", words)), words
        assert set(re.findall(r" --target (\S+)", words)) <= Dockerfile(project / "Dockerfile").stages.keys(), words
        assert all(f"\nARG {name}=" in dockerfile for name in re.findall(r" --build-arg (\w+)=", words)), words
        assert set(re.findall(r" (?:exec|--detach) (\w+)", words)) <= services.keys(), words
        assert all(f"\n{target}:" in makefile for target in re.findall(r"^make (\S+)", words)), words
