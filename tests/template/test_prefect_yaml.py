"""`prefect.yaml` declares existing flows, their parameters, and the event of the monitor."""

import importlib
from functools import cache
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import DeploymentEventTrigger
from prefect.utilities.callables import parameter_schema

from ondol.monitoring.retraining import EVENT, resource_of

NAMES = ("pipeline", "ingest", "validate", "train", "evaluate", "deploy", "monitor", "predict", "rollout", "alerts")
CHANGING = ("pipeline", "ingest", "validate", "train", "evaluate", "deploy")


@pytest.fixture(scope="module")
def declared(render) -> dict[str, Any]:
    return dict(yaml.safe_load((render() / "prefect.yaml").read_text(encoding="utf-8")))


def deployment(declared: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = [one for one in declared["deployments"] if one["entrypoint"].endswith(f":{name}")]
    return dict(found)


@cache
def flow_of(entrypoint: str) -> Flow[..., Any]:
    file, _, function = entrypoint.partition(":")
    flow = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), function)
    assert isinstance(flow, Flow)
    return flow


def test_every_flow_is_deployed_once(declared):
    assert sorted(one["entrypoint"].partition(":")[2] for one in declared["deployments"]) == sorted(NAMES)


def test_projects_that_share_a_server_stay_apart(declared):
    assert {one["name"] for one in declared["deployments"]} == {f"customer-churn-{name}" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_entrypoint_is_a_flow_that_bears_the_deployments_name(declared, name):
    one = deployment(declared, name)
    assert one["entrypoint"] == f"flows/{name}.py:{name}"
    assert flow_of(one["entrypoint"]).name == name


@pytest.mark.parametrize("name", NAMES)
def test_flow_takes_the_parameters_and_explains_them(declared, name):
    one = deployment(declared, name)
    flow = flow_of(one["entrypoint"])
    properties = parameter_schema(flow).properties
    assert set(one.get("parameters", {})) <= set(properties)
    assert flow.description
    assert [key for key, shown in properties.items() if not shown.get("description")] == []


@pytest.mark.parametrize("name", NAMES)
def test_flow_ends_at_some_time(declared, name):
    assert flow_of(deployment(declared, name)["entrypoint"]).timeout_seconds


@pytest.mark.parametrize("name", NAMES)
def test_worker_starts_the_flow_in_the_projects_folder(declared, name):
    """Relative paths: the same file serves on a laptop, in CI and in a container."""
    pool = deployment(declared, name)["work_pool"]
    assert pool == {"name": "customer-churn", "job_variables": {"working_dir": "."}}
    [[step, inputs]] = [item for one in declared["pull"] for item in one.items()]
    assert (step, inputs) == ("prefect.deployments.steps.set_working_directory", {"directory": "."})


@pytest.mark.parametrize("name", CHANGING)
def test_what_trains_or_deploys_waits_for_its_turn(declared, name):
    assert deployment(declared, name)["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}


@pytest.mark.parametrize("name", NAMES)
def test_schedules_can_be_read(declared, name):
    for schedule in deployment(declared, name).get("schedules", []):
        assert CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
        assert isinstance(schedule["active"], bool)


def test_monitors_event_starts_the_pipeline(declared):
    [spec] = deployment(declared, "pipeline")["triggers"]
    trigger = DeploymentEventTrigger.model_validate(spec)
    assert trigger.enabled
    assert trigger.expect == {EVENT}
    assert trigger.match.root == {"prefect.resource.id": resource_of("customer-churn")}
