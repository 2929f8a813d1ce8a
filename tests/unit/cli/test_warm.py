"""Whether a run may have something to train, by which its imports are chosen."""

import os
from pathlib import Path

import pytest

from ondol.cli.pipeline import _may_train
from ondol.config import Data, Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name in ("model/schema.py", "flows/train.py", "config.toml", "rows.csv", ".ml/store/latest.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")
        os.utime(path, (1_000, 2_000 if name.endswith("latest.json") else 1_000))
    return Settings(root=tmp_path, data=Data(source="rows.csv"))


def test_nothing_is_newer_than_the_last_run(settings):
    assert not _may_train(settings)


@pytest.mark.parametrize("name", ["model/schema.py", "flows/train.py", "config.toml", "rows.csv"])
def test_a_file_that_is_newer_may_change_the_model(settings, name):
    os.utime(settings.root / name, (3_000, 3_000))
    assert _may_train(settings)


def test_a_first_run_trains(settings):
    (settings.root / ".ml" / "store" / "latest.json").unlink()
    assert _may_train(settings)


@pytest.mark.parametrize("source", ["sample://?rows=10", "s3://lake/" + "x" * 5_000, "a\0b.csv"])
def test_a_source_may_be_no_file(settings, source):
    assert not _may_train(settings.model_copy(update={"data": Data.model_construct(source=source)}))
