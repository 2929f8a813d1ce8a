"""Deployments that had another name before: they go, so that no schedule starts a flow twice."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ondol.config import Settings, load_settings
from ondol.orchestration import deployments
from ondol.orchestration.deployments import deployment_name, remove_renamed

YAML = """
deployments:
  - {name: shop-pipeline, entrypoint: "flows/pipeline.py:pipeline"}
  - {name: shop-alerts, entrypoint: "flows/alerts.py:alerts"}
  - {name: shop, entrypoint: "flows/monitor.py:monitor"}
"""


class Prefect:
    """As much of a Prefect server as is asked: the deployments of the project's pool."""

    def __init__(self) -> None:
        names = [(flow, name) for flow in ("pipeline", "alerts", "monitor", "own") for name in ("shop", f"shop-{flow}")]
        self.there = {
            f"{flow}/{name}": {"id": f"{flow}/{name}", "name": name, "entrypoint": f"flows/{flow}.py:{flow}"}
            for flow, name in names
        }

    def post_prefect(self, url: str, body: dict[str, Any], timeout: float = 5.0) -> Any:
        assert body == {"work_pools": {"name": {"any_": ["shop"]}}}
        return list(self.there.values())

    def call(self, method: str, url: str, timeout: float) -> Any:
        assert method == "DELETE"
        del self.there[url.partition("/deployments/")[2]]
        return SimpleNamespace(is_success=True)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "config.toml").write_text('[project]\nname = "shop"\n', encoding="utf-8")
    (tmp_path / "prefect.yaml").write_text(YAML, encoding="utf-8")
    return load_settings(tmp_path)


def test_only_what_prefect_yaml_names_otherwise_now_is_removed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefect = Prefect()
    monkeypatch.setattr(deployments, "post_prefect", prefect.post_prefect)
    monkeypatch.setattr(deployments, "call_prefect", prefect.call)
    before = set(prefect.there)
    assert remove_renamed(settings, "http://nowhere/api") == 2
    assert before - set(prefect.there) == {"pipeline/shop", "alerts/shop"}
    assert remove_renamed(settings, "http://nowhere/api") == 0


def test_deployment_is_called_as_prefect_yaml_says(settings: Settings) -> None:
    assert deployment_name(settings, "pipeline") == "pipeline/shop-pipeline"
    assert deployment_name(settings, "monitor") == "monitor/shop"
    assert deployment_name(settings, "predict") == "predict/shop-predict"
