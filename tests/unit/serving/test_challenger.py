"""A challenger beside the champion: who answers which request, and what is recorded."""

import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from service_support import ROW, TestClient, bundle_files, compile_model, fit, write_bundle

from ondol.registry import rollout as record
from ondol.registry.bundles import Bundle
from ondol.registry.champion import move_champion, read_champion, require_champion
from ondol.storage.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def models() -> list[bytes]:
    """Two models that answer differently."""
    return [compile_model(fit("binary", seed), "binary") for seed in (0, 1)]


class Service:
    """A service whose store has version 7 in production and version 8 beside it, which is not tried yet."""

    def __init__(self, store: Store, bundles: list[Bundle], serve: Callable[[Path], TestClient]) -> None:
        self.store, self.bundles = store, bundles
        move_champion(store, bundles[0], "deploy", "first")
        self.client = serve(store.folder)

    def start(self, strategy: Any, *plan: float) -> record.Rollout:
        found = record.start_rollout(
            self.store, self.bundles[1], require_champion(self.store), strategy, plan, "a test"
        )
        self.look()
        return found

    def look(self) -> None:
        from ondol_serving.serving import serving

        serving.look()

    def ask(self, customer: object = None, **headers: str) -> dict[str, Any]:
        row = ROW if customer is None else ROW | {"고객 번호": customer}
        answer = self.client.post("/predict", json={"rows": [row]}, headers=headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def records(self) -> list[dict[str, Any]]:
        files = sorted((self.store.folder / "log").iterdir())
        return [json.loads(line) for path in files for line in path.read_bytes().splitlines()]


@pytest.fixture
def service(models: list[bytes], tmp_path: Path, serve_store: Any, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(record, "LOADING_SECONDS", -1.0)
    monkeypatch.setattr(record, "NOTICE_SECONDS", -1.0)
    store = tmp_path / "store"
    bundles = []
    for version, model in zip(("7", "8"), models, strict=True):
        name, digest = write_bundle(store, bundle_files(version, "binary", model))
        bundles.append(Bundle(path=store / "bundles" / name, version=version, digest=digest))
    return Service(Store(store), bundles, serve_store)


def offline(bundle: Bundle) -> list[dict[str, Any]]:
    from ondol_serving.bundle import load_bundle

    loaded = load_bundle(bundle.path, bundle.digest)
    return loaded.predict(loaded.parse(json.dumps({"rows": [ROW]}).encode()))


def test_without_a_rollout_every_answer_and_record_is_the_champion_s(service: Service) -> None:
    answer = service.ask()
    assert (answer["model_version"], answer["role"]) == ("7", "champion")
    assert [(one["version"], one["role"]) for one in service.records()] == [("7", "champion")]


def test_a_share_of_the_customers_gets_the_challenger_and_keeps_it_as_the_share_grows(service: Service) -> None:
    rollout = service.start("canary", 0.25, 0.5, 1.0)
    expected = {bundle.version: offline(bundle) for bundle in service.bundles}
    taken: list[set[int]] = []
    for _ in range(3):
        answers = {customer: service.ask(customer) for customer in range(200)}
        taken.append({customer for customer, answer in answers.items() if answer["model_version"] == "8"})
        assert all(a["role"] == {"7": "champion", "8": "challenger"}[a["model_version"]] for a in answers.values())
        assert all(a["predictions"] == expected[a["model_version"]] for a in answers.values())
        assert taken[-1] == {c for c in range(200) if service.ask(c)["model_version"] == "8"}
        if rollout.next_share is not None:
            rollout = record.take_step(service.store, rollout, "better")
            service.look()
    assert taken[0] < taken[1] < taken[2] == set(range(200))
    assert 20 < len(taken[0]) < 80 and 65 < len(taken[1]) < 135
    roles = {(one["version"], one["role"]) for one in service.records()}
    assert roles == {("7", "champion"), ("8", "challenger")}


def test_another_rollout_draws_other_customers(service: Service) -> None:
    rollout, drawn = service.start("ab", 0.5), []
    for name in ("one", "another"):
        found = rollout.model_copy(update={"id": name})
        service.store.write_bytes(service.store.folder / "rollout.json", found.model_dump_json().encode())
        service.look()
        drawn.append({c for c in range(100) if service.ask(c)["role"] == "challenger"})
    assert 20 < len(drawn[0] & drawn[1]) < 35 < len(drawn[0]) < 65


@pytest.mark.parametrize("customer", [10**400, -(2**63), 2**53 + 1, 1e300, "", " ", "\u0000", [1], {"a": 1}, True])
def test_any_id_gets_an_answer(service: Service, customer: Any) -> None:
    service.start("ab", 0.5)
    assert service.ask(customer)["role"] == service.ask(customer)["role"]


@pytest.mark.parametrize("same", [(3, 3.0), ("가", "가")])
def test_equal_ids_get_the_same_version_whatever_their_notation(service: Service, same: tuple[Any, Any]) -> None:
    service.start("ab", 0.5)
    for number in range(30):
        first, second = (value * 10 + number if number and isinstance(value, float | int) else value for value in same)
        assert service.ask(first)["role"] == service.ask(second)["role"]


def test_a_request_without_an_id_goes_by_its_header_and_else_by_chance(service: Service) -> None:
    service.start("ab", 0.5)
    by_header = [
        {service.ask(**{"X-Rollout-Key": f"한-{n}".encode().hex()})["role"] for _ in range(5)} for n in range(20)
    ]
    assert all(len(roles) == 1 for roles in by_header) and len(set.union(*by_header)) == 2
    assert {service.ask()["role"] for _ in range(40)} == {"champion", "challenger"}


def test_the_id_counts_more_than_the_header(service: Service) -> None:
    service.start("ab", 0.5)
    roles = {service.ask(11, **{"X-Rollout-Key": str(n)})["role"] for n in range(30)}
    assert len(roles) == 1


def test_a_step_takes_effect_when_it_says(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "LOADING_SECONDS", 60.0)
    rollout = service.start("blue-green", 1.0)
    assert timedelta(seconds=50) < rollout.since - datetime.now(UTC) < timedelta(seconds=61)
    assert service.ask()["role"] == "champion"
    from ondol_serving import endpoint

    at = rollout.since.timestamp()
    monkeypatch.setattr(endpoint.time, "time", lambda: at - 0.001)
    assert service.ask()["role"] == "champion"
    monkeypatch.setattr(endpoint.time, "time", lambda: at)
    assert service.ask()["role"] == "challenger"


def test_a_promoted_challenger_is_the_champion_and_is_not_loaded_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ondol_serving import serving as module

    rollout = service.start("ab", 0.5)
    tried = module.serving.rollout
    monkeypatch.setattr(module, "load_bundle", lambda *_: pytest.fail("it is loaded already"))
    ended = record.take_step(service.store, rollout, "better")
    service.look()
    assert (ended.outcome, ended.why) == ("promoted", "better")
    assert module.serving.rollout is None and tried is not None and module.serving.bundle is tried.challenger
    assert {(a["model_version"], a["role"]) for a in (service.ask(c) for c in range(20))} == {("8", "champion")}
    champion = require_champion(service.store)
    assert (champion.version, champion.history[-1].action, champion.history[-1].why) == ("8", "rollout", "better")


def test_a_withdrawn_challenger_answers_nothing_and_the_history_says_why(service: Service) -> None:
    rollout = service.start("canary", 1.0)
    assert service.ask()["role"] == "challenger"
    ended = record.withdraw_challenger(service.store, rollout, "too many errors")
    service.look()
    assert {service.ask(c)["model_version"] for c in range(20)} == {"7"}
    champion = require_champion(service.store)
    last = champion.history[-1]
    assert (champion.version, ended.outcome) == ("7", "withdrawn")
    assert (last.action, last.before, last.to, last.why) == (
        "withdraw", service.bundles[1].name, service.bundles[0].name, "too many errors",
    )  # fmt: skip


def test_a_rollout_ends_when_the_champion_is_changed_by_hand(service: Service) -> None:
    service.start("canary", 1.0)
    move_champion(service.store, service.bundles[0], "promote", "by hand")
    service.look()
    assert service.ask()["role"] == "champion"
    assert record.running_rollout(service.store) is None


def test_a_step_of_a_rollout_that_has_changed_is_refused(service: Service) -> None:
    rollout = service.start("canary", 0.5, 1.0)
    record.take_step(service.store, rollout, "first")
    for act in (record.take_step, record.withdraw_challenger):
        with pytest.raises(Exception, match="rollout of version 8 changed in the meantime: see `ml rollout status`"):
            act(service.store, rollout, "second")


def test_where_the_challenger_fails_the_champion_answers(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from ondol_serving.serving import serving

    service.start("canary", 1.0)
    rollout = serving.rollout
    assert rollout is not None
    break_model(rollout.challenger, monkeypatch)
    answer = service.ask()
    assert (answer["role"], answer["predictions"]) == ("champion", offline(service.bundles[0]))
    failed, answered = service.records()
    assert (failed["version"], failed["role"], failed["error"]) == ("8", "challenger", "ArithmeticError: 나눗셈")
    assert "request" not in failed and "predictions" not in failed
    assert (answered["version"], answered["role"], answered["id"]) == ("7", "champion", failed["id"])
    assert answer["request_id"] == failed["id"]
    labels = {"model_version": "8", "role": "challenger"}
    assert REGISTRY.get_sample_value("ml_rollout_failures_total", labels) == 1


def test_where_the_explanation_of_the_challenger_fails_the_champion_explains(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ondol_serving.serving import serving

    async def explain(bundle: Any, _: Any) -> bytes:
        if bundle.version == "8":
            raise ArithmeticError("나눗셈")
        return b'{"method":"exact"}'

    monkeypatch.setattr("ondol_serving.endpoint.explain", explain)
    monkeypatch.setattr("ondol_serving.endpoint.require_explainable", lambda *_: None)
    service.start("canary", 1.0)
    assert serving.rollout is not None
    object.__setattr__(serving.rollout.challenger, "explainer", object())  # frozen
    answers = [
        service.client.post("/explain", json={"rows": [ROW]}),
        service.client.post("/predict", json={"rows": [ROW], "explain": True}),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        content = answer.json()
        assert (content["model_version"], content["role"]) == ("7", "champion")
        assert content["explanation"] == {"method": "exact"}
    [failed, answered] = service.records()  # of /predict: what /explain answers is not recorded
    assert (failed["version"], failed["role"], failed["id"]) == ("8", "challenger", answered["id"])


def test_a_challenger_without_an_explanation_explains_nothing(service: Service) -> None:
    """The champion answers 409 as without a rollout, since it has none either; the challenger is not asked."""
    service.start("canary", 1.0)
    answer = service.client.post("/explain", json={"rows": [ROW]})
    assert answer.status_code == 409 and "Version 7" in answer.json()["error"]
    assert service.ask()["role"] == "challenger"


def break_model(bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model of one bundle fail."""
    run = type(bundle.runtime).run

    def fail_for_it(self: Any, tensors: Any) -> Any:
        if self is bundle.runtime:
            raise ArithmeticError("나눗셈")
        return run(self, tensors)

    monkeypatch.setattr(type(bundle.runtime), "run", fail_for_it)


def test_where_the_champion_fails_in_a_rollout_that_is_recorded_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ondol_serving.serving import serving

    service.start("canary", 0.000001)
    assert serving.bundle is not None
    break_model(serving.bundle, monkeypatch)
    assert service.client.post("/predict", json={"rows": [ROW]}).status_code == 500
    [failed] = service.records()
    assert (failed["version"], failed["role"], failed["error"]) == ("7", "champion", "ArithmeticError: 나눗셈")


def test_rows_that_only_the_challenger_refuses_are_answered_and_count_as_its_failure(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ondol_serving.serving import serving

    files = bundle_files("8", "binary", (service.bundles[1].path / "model.onnx").read_bytes())
    contract = json.loads(files["contract.json"])
    next(column for column in contract["columns"] if column["name"] == "house age")["exclusive_maximum"] = 10
    meta = json.loads(files["meta.json"]) | {"example": None}
    files |= {"contract.json": json.dumps(contract).encode(), "meta.json": json.dumps(meta).encode()}
    name, digest = write_bundle(service.store.folder, files)
    service.bundles[1] = Bundle(path=service.store.folder / "bundles" / name, version="8", digest=digest)
    service.start("canary", 1.0)
    assert serving.rollout is not None
    assert service.ask()["role"] == "champion"
    failed, answered = service.records()
    assert (failed["version"], failed["role"], answered["version"]) == ("8", "challenger", "7")
    assert "house age" in failed["error"] or "ValidationError" in failed["error"]


def test_a_shadow_predicts_what_the_champion_answers(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from ondol_serving import shadow

    monkeypatch.setattr(shadow, "PAUSE_SECONDS", 0.0)
    service.start("shadow", 0.0)
    answers = [service.ask(customer) for customer in range(20)]
    assert {(a["model_version"], a["role"]) for a in answers} == {("7", "champion")}
    shadows = wait_for_shadows(service)
    ids = {answer["request_id"] for answer in answers}
    assert {one["id"] for one in shadows} <= ids
    assert all(one["predictions"] == offline(service.bundles[1]) for one in shadows)
    assert {(one["version"], one["bundle"]) for one in shadows} == {("8", service.bundles[1].name)}
    timed = [one for one in shadows if "ms" in one]
    assert timed and all(one["ms"] > 0 and one["champion_ms"] > 0 for one in timed)


def wait_for_shadows(service: Service) -> list[dict[str, Any]]:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        service.client.get("/livez")  # lets the event loop run
        if found := [one for one in service.records() if one["role"] == "shadow"]:
            return found
    raise AssertionError("no request was predicted by the challenger")


def test_a_shadow_that_fails_is_recorded_and_callers_notice_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ondol_serving import shadow
    from ondol_serving.serving import serving

    monkeypatch.setattr(shadow, "PAUSE_SECONDS", 0.0)
    service.start("shadow", 0.0)
    assert serving.rollout is not None
    break_model(serving.rollout.challenger, monkeypatch)
    assert service.ask()["role"] == "champion"
    assert {one["error"] for one in wait_for_shadows(service)} == {"ArithmeticError: 나눗셈"}


def test_a_challenger_that_cannot_be_loaded_is_logged_once_and_the_champion_answers(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ondol_serving import serving as module

    monkeypatch.setattr(module, "log", logging.getLogger("plain"))
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    (service.bundles[1].path / "model.onnx").write_bytes(b"broken")
    service.start("canary", 1.0)
    for _ in range(3):
        service.look()
        assert service.ask()["role"] == "champion"
    [said] = caplog.messages
    assert said.startswith("The rollout cannot begin, the champion answers alone: the content of ")


@pytest.mark.parametrize("text", ["{", "[]", "{}", "1"])
def test_a_damaged_record_leaves_the_champion_answering_and_is_named_once(
    service: Service, text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ondol_serving import serving as module

    service.start("canary", 1.0)
    monkeypatch.setattr(module, "log", logging.getLogger("plain"))
    service.store.write_bytes(service.store.folder / "rollout.json", text.encode())
    for _ in range(2):
        service.look()
        assert service.ask()["role"] == "champion"
    [said] = caplog.messages
    assert said.startswith("The rollout cannot begin, the champion answers alone: rollout.json cannot be understood")


def test_the_open_inference_protocol_takes_part_and_can_ask_for_either_version(service: Service) -> None:
    service.start("canary", 1.0)
    inputs = [
        {"name": name, "datatype": kind, "shape": [1], "data": [value]}
        for name, kind, value in (
            ("house age", "FP64", 12.5), ("class", "BYTES", "new"), ("지역", "BYTES", "서울"), ("a.b/c?", "INT64", 3),
            ("매출 (원)", "INT64", 3_000_000_010), ("가입일", "BYTES", "2021-02-03T04:05:06"),
            ("model_config", "BOOL", True),
        )
    ]  # fmt: skip
    found = {}
    for path in ("", "/versions/7", "/versions/8"):
        answer = service.client.post(f"/v2/models/model{path}/infer", json={"inputs": inputs})
        assert answer.status_code == 200, answer.text
        found[path] = (answer.json()["model_version"], answer.json()["parameters"]["role"])
    assert found == {"": ("8", "challenger"), "/versions/7": ("7", "champion"), "/versions/8": ("8", "challenger")}
    assert service.client.get("/v2/models/model").json()["versions"] == ["7", "8"]
    assert service.client.post("/v2/models/model/versions/9/infer", json={"inputs": inputs}).status_code == 404


def test_a_request_that_names_a_version_is_not_answered_by_another(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ondol_serving.serving import serving

    service.start("canary", 1.0)
    assert serving.rollout is not None
    break_model(serving.rollout.challenger, monkeypatch)
    inputs = {"inputs": [{"name": "house age", "datatype": "FP64", "shape": [1], "data": [12.5]}]}
    monkeypatch.setattr("ondol_serving.inference_protocol.to_rows", lambda *_: json.dumps({"rows": [ROW]}).encode())
    assert service.client.post("/v2/models/model/versions/8/infer", json=inputs).status_code == 500
    assert service.client.post("/v2/models/model/infer", json=inputs).json()["model_version"] == "7"


def test_a_rollout_beside_another_bundle_than_the_loaded_one_does_not_begin(service: Service) -> None:
    rollout = service.start("canary", 1.0)
    wrong = rollout.model_copy(update={"champion": "6-abcdef012345"})
    service.store.write_bytes(service.store.folder / "rollout.json", wrong.model_dump_json().encode())
    service.look()
    assert service.ask()["role"] == "champion"


def test_the_last_rollout_stays_in_the_record(service: Service) -> None:
    assert record.read_rollout(service.store) is None
    rollout = service.start("canary", 0.5, 1.0)
    assert record.running_rollout(service.store) == rollout
    record.withdraw_challenger(service.store, rollout, "enough")
    last = record.read_rollout(service.store)
    assert last is not None and (last.outcome, last.why, last.version) == ("withdrawn", "enough", "8")
    assert read_champion(service.store) is not None
