"""ops/: the compose file, the alert rules and the dashboard, tested with the real service and a real Prometheus."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from compose_support import Dockerfile, read_compose
from prometheus_client import CollectorRegistry, generate_latest
from service_server import serve, wait_for
from service_support import ROW, bundle_files, compile_model, crown, fit, write_bundle

from ondol.cli.compose import FOLDER, MADE
from ondol.config import Monitor, Settings
from ondol.errors import UserError
from ondol.evaluation.metrics import Interval
from ondol.monitoring.exporter import LoopCollector, serve_metrics
from ondol.monitoring.performance import Performance
from ondol.monitoring.retraining import pause
from ondol.monitoring.windows import Window, Windows, window_id
from ondol.orchestration.guard import free_port
from ondol.registry.champion import Champion, write_champion
from ondol.storage.store import open_store

BIN = Path(sys.executable).parent
ONE_SHOT = {"flows"}
NAME = r"\b(?:bentoml_service_\w+|ml_\w+)\b"


@pytest.fixture(scope="module")
def ops(render: Any) -> Path:
    return Path(render()) / "ops"


@pytest.fixture(scope="module")
def compose(ops: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((ops / "compose.yaml").read_text(encoding="utf-8")))


def queries(ops: Path) -> list[str]:
    """Every query of the dashboard and of the alert rules, as Grafana and Prometheus send them."""
    board = read_board(ops, "service")
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    found += [rule["expr"] for group in read_rules(ops) for rule in group["rules"]]
    return [query.replace("$__rate_interval", "1m") for query in found]


def read_rules(ops: Path) -> list[dict[str, Any]]:
    """The groups of the alert rules."""
    return list(yaml.safe_load((ops / "alerts.yaml").read_text(encoding="utf-8"))["groups"])


def read_board(ops: Path, name: str) -> dict[str, Any]:
    """A dashboard."""
    path = ops / "grafana" / "dashboards" / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def need(command: str, package: str) -> str:
    path = shutil.which(command)
    if path is None:
        pytest.skip(f"{command} is absent: apt-get install {package}")
    return path


@pytest.mark.parametrize("name", ["compose.yaml", "compose.objects.yaml"])
def test_compose_keeps_its_schema(ops, name):
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ops / name],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_brings_up_all_that_a_project_needs(compose):
    names = {"postgres", "prefect", "mlflow", "worker", "flows", "service", "prometheus", "grafana"}
    names |= {"alertmanager"}
    assert set(compose["services"]) == names
    used = {v.partition(":")[0] for s in compose["services"].values() for v in s.get("volumes", ()) if v[0] not in "./"}
    assert used == set(compose["volumes"])


def test_every_container_is_bounded_watched_and_confined(compose):
    for name, service in compose["services"].items():
        assert service["mem_limit"], name
        assert service["cpus"], name
        assert {"max-size", "max-file"} <= service["logging"]["options"].keys(), name
        assert service["restart"], name
        assert name in ONE_SHOT or service["healthcheck"]["retries"], name
        if name != "postgres":  # it changes to its user by itself
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name


def test_with_a_bucket_the_follower_keeps_the_services_folder(compose, ops):
    more = yaml.safe_load((ops / "compose.objects.yaml").read_text(encoding="utf-8"))["services"]
    assert set(more) == {"worker", "follower"}
    assert more["worker"]["environment"] == more["follower"]["environment"]
    follower, service = more["follower"], compose["services"]["service"]
    assert follower["volumes"] == service["volumes"] == ["store:/store"]
    assert follower["command"][-2:] == ["--into", "/store"]
    assert {name: follower[name] for name in ("image", "build")} == {
        name: compose["services"]["worker"][name] for name in ("image", "build")
    }
    assert follower["read_only"] is True and follower["cap_drop"] == ["ALL"] and follower["mem_limit"]


def test_prefects_leases_outlive_its_server(compose):
    """And the volume is at a folder that the image gives to its user: at another one it would be root's."""
    from ondol.services import LEASES

    prefect = compose["services"]["prefect"]
    assert prefect["environment"]["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] == LEASES
    assert prefect["volumes"] == ["prefect:/app/.ml"]
    assert prefect["environment"]["PREFECT_HOME"].startswith("/app/.ml/")


def test_service_and_images_get_what_is_set_here(ops):
    for name, value in (
        ("GROUP", "service-sklearn"),
        ("ML_LOG_KEY", "k"),
        ("ML_SERVICE__WORKERS", "2"),
        ("COMMIT", "c"),
    ):
        told = [read_compose(ops / "compose.yaml", more) for more in ({}, {name: value})]
        place = told[1]["worker" if name == "COMMIT" else "service"]
        assert str({**place["build"]["args"], **place["environment"]}[name]) == value
        unset = told[0]["worker" if name == "COMMIT" else "service"]
        assert ({**unset["build"]["args"], **unset["environment"]}[name] or "") == (
            "service" if name == "GROUP" else ""
        )
        if name in ("GROUP", "COMMIT"):
            assert f"ARG {name}=" in (ops.parent / "Dockerfile").read_text(encoding="utf-8")


def test_what_ends_by_itself_is_waited_for(compose):
    """`docker compose up --wait` takes the end of a container for a failure, unless another waits for just that."""
    awaited = {
        other
        for service in compose["services"].values()
        for other, how in service.get("depends_on", {}).items()
        if how["condition"] == "service_completed_successfully"
    }
    assert awaited == ONE_SHOT


def test_who_is_waited_for_is_healthy_first(compose):
    """And no two wait for each other: the order exists."""
    services = compose["services"]
    waits = {name: service.get("depends_on", {}) for name, service in services.items()}
    order = list(TopologicalSorter(waits).static_order())
    assert set(order) == set(services)
    for others in waits.values():
        for other, how in others.items():
            assert how["condition"] == "service_healthy" or other in ONE_SHOT
    assert order.index("flows") < order.index("worker")


def test_ports_are_open_on_the_loopback_alone(compose):
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert len(ports) == len({port.split(":")[1] for port in ports}) == 6
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_images_are_pinned_and_built_ones_are_targets_of_the_dockerfile(compose, ops):
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (ops.parent / "Dockerfile").read_text(encoding="utf-8"), re.M)
    for name, service in compose["services"].items():
        if "build" in service:
            assert (ops / service["build"]["context"]).resolve() == ops.parent.resolve()
            assert service["build"]["target"] in stages
        else:
            assert re.search(r"^docker\.io/\S+:v?\d+[\w.-]*$", service["image"]), name


def test_addresses_inside_compose_name_its_services_and_their_ports(compose, ops):
    """Every address that a service calls is a service, on the port that its command opens."""
    listens = {
        "prefect": "4200",
        "mlflow": "5000",
        "postgres": "5432",
        "service": "3000",
        "prometheus": "9090",
        "worker": "9464",
    }
    listens["alertmanager"] = "9093"
    texts = [json.dumps(compose), *(p.read_text(encoding="utf-8") for p in ops.rglob("*.yaml") if p.parent != ops)]
    texts.append((ops / "prometheus.yaml").read_text(encoding="utf-8"))
    called = {pair for text in texts for pair in re.findall(r"[/@\"]([a-z]+):(\d{4})\b", text)}
    assert called == set(listens.items())
    for name in ("prefect", "mlflow"):
        assert listens[name] in compose["services"][name]["command"]
        assert compose["services"][name]["environment"]["ML_PORTS__HOSTS"].split(",")[0] == name
    assert "CREATE DATABASE mlflow;" in (ops / "postgres.sql").read_text(encoding="utf-8")


def test_what_is_mounted_is_there_and_where_it_is_looked_for(compose, ops):
    mounts = {v.split(":")[1]: v.split(":")[0] for s in compose["services"].values() for v in s.get("volumes", ())}
    for place in (p for p in mounts.values() if p.startswith("./")):
        assert (ops / place).exists(), place
    rules = yaml.safe_load((ops / "prometheus.yaml").read_text(encoding="utf-8"))["rule_files"]
    assert {f"/etc/prometheus/{rule}" for rule in rules} <= set(mounts)
    provider = ops / "grafana" / "provisioning" / "dashboards" / "dashboards.yaml"
    assert yaml.safe_load(provider.read_text(encoding="utf-8"))["providers"][0]["options"]["path"] in mounts


@pytest.mark.parametrize("name", ["service", "loop"])
def test_dashboard_asks_the_source_that_is_provisioned(ops, name):
    provisioned = (ops / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text(encoding="utf-8")
    uids = {source["uid"] for source in yaml.safe_load(provisioned)["datasources"]}
    panels = read_board(ops, name)["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == uids
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:  # Grafana's grid is 24 wide; none may lie over another
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for other in (p["gridPos"] for p in panels if p is not panel):
            apart_x = place["x"] + place["w"] <= other["x"] or other["x"] + other["w"] <= place["x"]
            apart_y = place["y"] + place["h"] <= other["y"] or other["y"] + other["h"] <= place["y"]
            assert apart_x or apart_y, panel["title"]


def test_passwords_are_files_that_only_those_who_need_them_get(ops):
    """An address or a variable would show them in `docker inspect`; and addresses are logged."""
    services = read_compose(ops / "compose.yaml", {})
    postgres, logins = {"/run/secrets/postgres": "./secrets/postgres"}, {"/app/.env": "./secrets/servers.env"}
    assert {name: service["secrets"] for name, service in services.items() if service["secrets"]} == {
        "postgres": postgres,
        "prefect": postgres | logins,
        "mlflow": postgres | logins,
        "flows": logins,
        "worker": logins,
        "grafana": {"/run/secrets/grafana": "./secrets/grafana"},
    }
    variables = {key: value for service in services.values() for key, value in service.get("environment", {}).items()}
    named = {key: value for key, value in variables.items() if re.search("PASSW|AUTH_STRING|SECRET", key)}
    assert named == {
        "POSTGRES_PASSWORD_FILE": "/run/secrets/postgres",
        "PGPASSWORD_FILE": "/run/secrets/postgres",
        "GF_SECURITY_ADMIN_PASSWORD__FILE": "/run/secrets/grafana",
    }
    assert not [value for value in variables.values() if re.search("//[^/]*:[^/]*@", str(value))]


def test_containers_read_their_files_in_the_image(ops, compose):
    """`.env` is read in the working directory, whose files the image's user may not change."""
    dockerfile = Dockerfile(ops.parent / "Dockerfile")
    assert ("WORKDIR", "/app") in list(dockerfile.lines("worker"))
    assert not {service.get("working_dir") for service in compose["services"].values()} - {None}


def test_without_passwords_composes_error_names_the_command(ops, compose):
    """`env_file` is read before an image is built or a container made, and `ml compose secrets` creates it last."""
    path = ops / compose["services"]["postgres"]["env_file"]
    assert path.name == MADE and path.parent == ops.parent / FOLDER
    assert not path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_an_alert_arrives_at_the_webhook_that_is_set(ops, tmp_path, told):
    """Prometheus sees no service and alerts Alertmanager, which calls the webhook, if one is set."""
    prometheus = need("prometheus", "prometheus")
    alertmanager = need("prometheus-alertmanager", "prometheus-alertmanager")
    arrived: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            arrived.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ports = free_ports(2)
    url = f"http://127.0.0.1:{server.server_port}/hook?token=a%40b&c=|d" if told else ""
    service = read_compose(ops / "compose.yaml", {"ALERTMANAGER_WEBHOOK": url})["alertmanager"]
    (script,) = service["command"]
    places = {"/tmp/": f"{tmp_path}/", "/etc/alertmanager/": f"{tmp_path}/etc/", "=/alertmanager": f"={tmp_path}/am"}
    for there, here in places.items():
        script = script.replace(there, here)
    script = script.replace("exec alertmanager", f"exec {alertmanager} --web.listen-address=127.0.0.1:{ports[0]}")
    (tmp_path / "etc").mkdir()
    text = (ops / "alertmanager.yaml").read_text(encoding="utf-8")
    text = text.replace("group_wait: 10s", "group_wait: 1s")
    (tmp_path / "etc" / "alertmanager.yaml").write_text(text, encoding="utf-8")
    text = (ops / "prometheus.yaml").read_text(encoding="utf-8").replace("10s", "1s")
    text = text.replace("alertmanager:9093", f"127.0.0.1:{ports[0]}").replace("service:3000", "127.0.0.1:9")
    (tmp_path / "prometheus.yaml").write_text(text, encoding="utf-8")
    rules = (ops / "alerts.yaml").read_text(encoding="utf-8").replace("for: 1m", "for: 1s")
    (tmp_path / "alerts.yaml").write_text(rules, encoding="utf-8")
    commands = [
        [*service["entrypoint"], script],
        [prometheus, f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/data",
         f"--web.listen-address=127.0.0.1:{ports[1]}"],
    ]  # fmt: skip
    environment = {"PATH": os.environ["PATH"], "ALERTMANAGER_WEBHOOK": service["environment"]["ALERTMANAGER_WEBHOOK"]}
    with (tmp_path / "log").open("w") as log:
        running = [subprocess.Popen(command, env=environment, stdout=log, stderr=log) for command in commands]
    try:
        end = time.monotonic() + 60
        with httpx.Client(trust_env=False, timeout=5) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    alerts = client.get(f"http://127.0.0.1:{ports[0]}/api/v2/alerts").json()
                    if isinstance(alerts, list) and alerts and (arrived or not told):
                        break
                assert time.monotonic() < end, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.2)
        assert [alert["labels"]["alertname"] for alert in alerts] == ["ServiceDown"]
        assert [receiver["name"] for receiver in alerts[0]["receivers"]] == ["webhook" if told else "none"]
        assert [message["alerts"][0]["labels"]["alertname"] for message in arrived[:1]] == ["ServiceDown"] * told
    finally:
        for process in running:
            process.terminate()
            process.wait(20)
        server.shutdown()
        server.server_close()


def free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def test_alertmanager_takes_its_configuration(ops):
    done = subprocess.run(
        [need("amtool", "prometheus-alertmanager"), "check-config", ops / "alertmanager.yaml"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 receivers" in done.stdout


def test_prometheus_takes_its_configuration(ops):
    promtool = need("promtool", "prometheus")
    done = subprocess.run([promtool, "check", "config", ops / "prometheus.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "14 rules found" in done.stdout


DAYS = 12_000  # eight days in minutes
FRESH = {  # what the worker of a new project exports
    'up{job="loop"}': f"1x{DAYS}", 'up{job="service"}': f"1x{DAYS}", "ml_store_readable": f"1x{DAYS}",
    "ml_loop_paused": f"0x{DAYS}", "ml_alerts_waiting": f"0x{DAYS}", "ml_alerts_webhook": f"0x{DAYS}",
}  # fmt: skip
WORKS = FRESH | {  # and of one with a version in production, without traffic
    'ml_champion_since_seconds{version="3"}': f"0x{DAYS}", "ml_loop_request_open": f"0x{DAYS}",
    "ml_window_min_rows": f"200x{DAYS}",
}  # fmt: skip
TRAFFIC = {'ml_predictions_total{model_version="3"}': f"0+1x{DAYS}"}


def verdict(found: str) -> dict[str, str]:
    """The series of a window with this verdict."""
    return {f'ml_window_verdict{{verdict="{v}"}}': f"{int(v == found)}x{DAYS}" for v in ("ok", "drift", "worse")}


SERIES = 'bentoml_service_request_total{endpoint="/predict", http_response_code="%s"}'
SITUATIONS = [
    ("19m", "ServiceDown", {'up{job="service"}': "0x20"}),
    ("19m", "PredictionsFail", {SERIES % 200: "0+90x60", SERIES % 500: "0+10x60"}),
    ("19m", "RequestsAreRefused", {SERIES % 200: "0+60x60", SERIES % 400: "0+40x60"}),
    ("50m", "CategoriesAreUnknown", {'ml_predictions_total{model_version="1"}': "0+60x120",
                              'ml_unknown_categories_total{column="지역"}': "0+30x120"}),
    ("19m", "PredictionLogIsLosing", {"ml_log_dropped_total": "0+1x60"}),
    ("19m", "PredictionsAreSlow", {
        'bentoml_service_request_duration_seconds_bucket{endpoint="/predict", le="0.5"}': "0+10x60",
        'bentoml_service_request_duration_seconds_bucket{endpoint="/predict", le="1.0"}': "0+60x60",
        'bentoml_service_request_duration_seconds_bucket{endpoint="/predict", le="+Inf"}': "0+60x60"}),
    ("3d", "WorkerDown", {'up{job="loop"}': f"1x60 0x{DAYS}"}),
    ("3d", "StoreIsUnreadable", {'up{job="loop"}': f"1x{DAYS}", "ml_store_readable": f"1x60 0x{DAYS}"}),
    ("3d", "WindowDrifted", WORKS | verdict("drift")),
    ("3d", "PerformanceDegraded", WORKS | verdict("worse")),
    ("3d", "WindowIsOverdue", WORKS | TRAFFIC | {"ml_window_end_seconds": f"3600x{DAYS}"}),
    ("3d", "WindowIsOverdue", WORKS | TRAFFIC),  # none was evaluated since the version was put into production
    ("3d", "RetrainingDoesNotStart", WORKS | {"ml_loop_request_open": f"1x{DAYS}"}),
    ("3d", "AlertsAreWaiting", WORKS | {"ml_alerts_waiting": f"0x60 2x{DAYS}", "ml_alerts_webhook": f"1x{DAYS}"}),
    ("8d", "LoopIsPaused", WORKS | TRAFFIC | {"ml_loop_paused": f"1x{DAYS}"}),
    ("3d", None, FRESH),
    ("3d", None, WORKS | verdict("ok") | {"ml_window_end_seconds": "0x1440 86400x1440 172800x1440"} | TRAFFIC),
    ("3d", None, WORKS | {"ml_predictions_total": "0+0.03x20000"}),  # 80 rows in two days: too few to evaluate
    ("3d", None, WORKS | TRAFFIC | {"ml_window_min_rows": "_"}),  # [log] enabled = false
    ("3d", None, WORKS | {"ml_alerts_waiting": f"7x{DAYS}"}),  # for a webhook that may be named one day
    ("50m", None, {'up{job="service"}': "1x60", SERIES % 200: "0+60x60", SERIES % 500: "0x60",
            "ml_log_dropped_total": "0x60",
            'ml_predictions_total{model_version="1"}': "0+60x60",
            'ml_unknown_categories_total{column="지역"}': "0x60"}),
]  # fmt: skip


@pytest.mark.parametrize(("when", "alert", "series"), SITUATIONS)
def test_alerts_fire_when_they_should_and_only_then(ops, tmp_path, when, alert, series):
    """By Prometheus's own test runner: which rules fire after such figures, one a minute."""
    promtool = need("promtool", "prometheus")
    expected = [
        {
            "eval_time": when,
            "alertname": rule["alert"],
            "exp_alerts": [firing(rule)] if rule["alert"] == alert else [],
        }
        for group in read_rules(ops)
        for rule in group["rules"]
    ]
    given = [{"series": name, "values": values} for name, values in series.items()]
    tests = [{"interval": "1m", "input_series": given, "alert_rule_test": expected}]
    path = tmp_path / "test.yaml"
    steps = "1h" if when.endswith("d") else "1m"
    made = {"rule_files": [str(ops / "alerts.yaml")], "evaluation_interval": steps, "tests": tests}
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    done = subprocess.run([promtool, "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def firing(rule: dict[str, Any]) -> dict[str, Any]:
    """The alert of a rule in the situations above, with the labels that its series have."""
    labels = dict(rule["labels"]) | dict(re.findall(r'(?:up|verdict)\{(\w+)="(\w+)"\}', rule["expr"]))
    if rule["alert"] == "CategoriesAreUnknown":
        labels["column"] = "지역"
    summary = rule["annotations"]["summary"].replace("{{ $labels.column }}", "지역")
    return {"exp_labels": labels, "exp_annotations": {"summary": summary}}


def test_every_rule_has_a_severity_that_alertmanager_routes(ops):
    rules = [rule for group in read_rules(ops) for rule in group["rules"]]
    route = yaml.safe_load((ops / "alertmanager.yaml").read_text(encoding="utf-8"))["route"]
    routed = {match for more in route["routes"] for match in more["matchers"]}
    assert {rule["labels"]["severity"] for rule in rules} == {"page", "warn"}  # `warn` is the first route's
    assert routed == {'severity="page"'}
    amtool = need("amtool", "prometheus-alertmanager")
    for rule in rules:
        labels = [f"{name}={value}" for name, value in rule["labels"].items()]
        command = [amtool, "config", "routes", "test", f"--config.file={ops}/alertmanager.yaml", *labels]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "webhook"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A real service that has answered, refused, and seen a category that it does not know."""
    folder = tmp_path_factory.mktemp("service")
    crown(
        folder / "store",
        *write_bundle(folder / "store", bundle_files("1", "binary", compile_model(fit("binary"), "binary"))),
    )
    with serve(folder / "store", folder / "home") as client:
        wait_for(client, "/readyz", 200)
        ask(client)
        yield client


def ask(client: httpx.Client) -> None:
    client.post("/predict", json={"rows": [ROW, ROW | {"class": "never seen"}]}).raise_for_status()
    assert client.post("/predict", json={"rows": [{}]}).status_code == 400


def test_queries_name_what_the_service_and_the_worker_really_export(ops, service, loop_store):
    text = service.get("/metrics").text + worker_metrics(loop_store)
    exported = set(re.findall(rf"^({NAME})[{{ ]", text, re.M))
    labels = set(re.findall(r"[{,](\w+)=", text)) | {"job", "le"}
    for query in queries(ops):
        assert set(re.findall(NAME, re.sub(r"\{[^}]*\}|by \([^)]*\)", "", query))) <= exported, query
        assert set(re.findall(r"[{ ](\w+)=", query)) <= labels, query
        assert set(re.findall(r"by \((\w+)\)", query)) <= labels, query


def test_prometheus_answers_every_query_from_the_real_service(ops, service, tmp_path):
    prometheus = need("prometheus", "prometheus")
    port = free_port()
    text = (ops / "prometheus.yaml").read_text(encoding="utf-8").replace("10s", "1s")
    target = f"{service.base_url.host}:{service.base_url.port}"
    (tmp_path / "prometheus.yaml").write_text(text.replace("service:3000", target), encoding="utf-8")
    shutil.copy(ops / "alerts.yaml", tmp_path)
    command = [prometheus, f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            wait_for(client, "/-/ready", 200)
            end = time.monotonic() + 30
            while empty := [q for q in queries(ops) if ">" not in q and "==" not in q and not rows(client, q)]:
                assert time.monotonic() < end, empty
                ask(service)
                time.sleep(1)
            for query in queries(ops):
                rows(client, query)
    finally:
        process.terminate()
        process.wait(20)


def rows(client: httpx.Client, query: str) -> list[Any]:
    answer = client.get("/api/v1/query", params={"query": query})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"]["result"])


@pytest.fixture(scope="module")
def loop_store(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store with a champion, windows of every verdict and labels."""
    settings = Settings(root=tmp_path_factory.mktemp("loop"))
    start = datetime.now(UTC) - timedelta(days=4)
    champion = Champion(version="3", run_id="r", bundle="3-b", digest="d", since=start.isoformat())
    write_champion(open_store(settings), champion)
    column = {"method": "wasserstein", "score": 0.3, "limit": 0.1, "missing": 0.2, "missing_before": 0.1}
    live = Performance(
        metric="roc_auc", rows=412, figure=Interval(0.81, 0.78, 0.84), before=Interval(0.9, 0.88, 0.92), metrics={},
        lost=True,
    )  # fmt: skip
    for number, verdict in enumerate(("ok", "drift", "worse")):
        begin = start + timedelta(days=number)
        window = Window.model_validate(
            {
                "id": window_id(begin, "3"), "start": begin, "end": begin + timedelta(days=1), "version": "3",
                "bundle": "3-b", "verdict": verdict, "rows": 1000, "drift_share": 0.5, "performance": live,
                "columns": [column | {"name": name} for name in ("나이", 'quote"d\\ \n\x1b', "price")],
                "prediction": column | {"name": "probability"},
            }
        )  # fmt: skip
        Windows(open_store(settings)).write(window)
    return settings


def worker_metrics(settings: Settings) -> str:
    """The worker's metrics for Prometheus."""
    registry = CollectorRegistry()
    registry.register(LoopCollector(settings))
    return generate_latest(registry).decode()


def board_queries(ops: Path, name: str) -> list[str]:
    return [target["expr"] for panel in read_board(ops, name)["panels"] for target in panel["targets"]]


def test_prometheus_answers_every_query_of_the_loops_dashboard(ops, loop_store, tmp_path):
    prometheus = need("prometheus", "prometheus")
    exporter, port = free_port(), free_port()
    settings = loop_store.model_copy(update={"monitor": Monitor(metrics=f"127.0.0.1:{exporter}")})
    serve_metrics(settings)
    text = (ops / "prometheus.yaml").read_text(encoding="utf-8").replace("10s", "1s")
    text = text.replace("worker:9464", f"127.0.0.1:{exporter}").replace("service:3000", f"127.0.0.1:{port}")
    (tmp_path / "prometheus.yaml").write_text(text, encoding="utf-8")
    shutil.copy(ops / "alerts.yaml", tmp_path)
    command = [prometheus, f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
            wait_for(client, "/-/ready", 200)
            asked = board_queries(ops, "loop")
            end = time.monotonic() + 30
            while empty := [query for query in asked if not rows(client, query)]:
                assert time.monotonic() < end, empty
                time.sleep(1)
            [verdict] = rows(client, "ml_window_verdict == 1")
            assert verdict["metric"]["verdict"] == "worse"
            columns = {row["metric"]["column"] for row in rows(client, "ml_column_drift")}
            assert columns == {"나이", 'quote"d\\ \\n\\x1b', "price"}
            [live] = rows(client, 'ml_live_metric{what="value"}')
            assert (live["metric"]["metric"], live["value"][1]) == ("roc_auc", "0.81")
    finally:
        process.terminate()
        process.wait(20)


def test_what_the_loop_exports_follows_the_store_and_says_where_it_cannot_be_read(tmp_path):
    settings = Settings(root=tmp_path)
    assert exported(settings) == {
        "ml_store_readable": 1.0, "ml_loop_paused": 0.0, "ml_alerts_waiting": 0.0, "ml_alerts_webhook": 0.0
    }  # fmt: skip
    pause(open_store(settings), "a test")
    assert exported(settings)["ml_loop_paused"] == 1.0
    (settings.folder_of(settings.store) / "loop.json").write_text("{", encoding="utf-8")
    assert exported(settings) == {"ml_store_readable": 0.0}


def exported(settings: Settings) -> dict[str, float]:
    return {sample.name: sample.value for family in LoopCollector(settings).collect() for sample in family.samples}


def test_an_address_for_metrics_that_is_taken_is_reported_in_one_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = Settings(root=tmp_path, monitor=Monitor(metrics=address))
        with pytest.raises(UserError, match="cannot be opened"):
            serve_metrics(settings)


def test_a_port_for_metrics_that_cannot_be_is_reported_in_one_sentence(tmp_path):
    settings = Settings(root=tmp_path, monitor=Monitor(metrics="127.0.0.1:99999"))
    with pytest.raises(UserError, match=r"cannot be opened .*0-65535"):
        serve_metrics(settings)


def test_compose_passes_every_setting_of_access_control_and_the_port_of_grpc(render):
    from ondol.config import Access

    service = yaml.safe_load((render() / "ops" / "compose.yaml").read_text(encoding="utf-8"))["services"]["service"]
    wanted = {f"ML_ACCESS__{name.upper()}" for name in Access.model_fields} | {"ML_SERVICE__GRPC_PORT"}
    assert wanted <= service["environment"].keys()
