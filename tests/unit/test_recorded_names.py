"""Names that stores, registries and servers of existing projects record: no renaming changes them."""

from importlib import import_module

import pytest

from ondol.validation.corrections import CORRECTED

FIELDS = {  # of records, by their class: a field may be added, with a default
    "contract.schema.Column": "name kind role nullable minimum maximum exclusive_minimum exclusive_maximum categories "
    "ordered formats input encoding",
    "contract.schema.Contract": "format problem target classes columns",
    "contract.schema.Encoding": "tensor offset scale origin missing known many order parts",
    "evaluation.reproduction.Order": "settings store snapshot validation holdout basis model",
    "evaluation.reproduction.Outcome": "error train_rows verdict apart packages python machine",
    "evaluation.gates.Gate": "name figure limit passed sentence",
    "evaluation.gates.StoredVerdict": "key version run_id champion verdict refusal notes",
    "evaluation.gates.Verdict": "problem metric rows scores gains gates",
    "ingestion.ingest.Cursor": "snapshot watermark position fingerprint files identity",
    "monitoring.drift.ColumnDrift": "name method score limit missing missing_before unseen unseen_before why",
    "monitoring.performance.Performance": "metric rows figure before metrics lost",
    "monitoring.retraining.Loop": "paused wanted history",
    "monitoring.retraining.LoopEntry": "at who what why",
    "monitoring.retraining.TrainingRequest": "window windows version bundle reason requested_at emitted_at",
    "monitoring.windows.Window": "id start end version bundle verdict reasons requests rows sampled others unreadable "
    "rows_per_hour latency drift_share columns prediction performance notes alerted run_id",
    "orchestration.processes.ProcessRecord": "name pid token port command since root",
    "registry.champion.Champion": "version run_id bundle digest since history",
    "registry.champion.HistoryEntry": "at who action from to why",
    "snapshots.snapshots.Part": "digest rows dropped drops",
    "snapshots.snapshots.Snapshot": "digest rows columns source created parent parts watermark",
    "training.dataset.Holdout": "split cutoff since edges salts",
    "training.provenance.Provenance": "commit base patch_digest packages python machine threads",
    "validation.corrections.Correction": f"raw {CORRECTED} rows validation",
    "validation.results.Validation": "id snapshot rows bad unlabelled reasons digest",
    "cli.release.Unverified": "bundle before",
}
VALUES = {
    "cli.release.RELEASED": "released.json",
    "cli.release.UNVERIFIED": "release.json",
    "monitoring.log.COUNTER": "ml_log_dropped_total",
    "monitoring.retraining.EVENT": "ml.retrain",
    "registry.registry.CHALLENGER": "challenger",
    "registry.registry.CHAMPION": "champion",
    "registry.registry.KEY_TAG": "train_key",
    "registry.registry.MODEL_FILE": "model.skops",
    "storage.files.BACKUP": "champion.backup.json",
    "storage.files.CHAMPION_FILE": "champion.json",
    "validation.corrections.CORRECTED": "mended",
    "validation.corrections.CORRECTIONS_FOLDER": "mended",
    "validation.results.FILE": "latest.json",
}


def find(name):
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(f"ondol.{module}"), attribute)


@pytest.mark.parametrize("record", FIELDS)
def test_a_record_has_the_fields_that_stores_have(record):
    found = [field.alias or name for name, field in find(record).model_fields.items()]
    assert set(FIELDS[record].split()) <= set(found)


@pytest.mark.parametrize("name", VALUES)
def test_a_recorded_name_is_as_it_was(name):
    assert find(name) == VALUES[name]


def test_a_class_in_saved_models_is_where_they_say():
    for name in find("registry.registry.TRUSTED"):
        if name.startswith("ondol."):
            assert find(name.removeprefix("ondol.")).__module__ == name.rpartition(".")[0]


def test_a_commit_is_retrained_by_the_module_that_it_has():
    assert next(iter(find("evaluation.reproduction.ENTRIES"))) == find("evaluation.reproduction_entry.main").__module__
