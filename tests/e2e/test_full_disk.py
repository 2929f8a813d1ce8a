"""A disk that is full while rows are read: one sentence, nothing half-written, and runs succeed when there is room."""

import subprocess
from pathlib import Path

from service_server import mount_disk

from e2e.conftest import Make
from e2e.support import files_of, refuse, succeed


def test_full_disk_ends_ingest_in_one_sentence_and_leaves_what_was_there(make: Make, tmp_path: Path) -> None:
    project = make(rows=1_000)
    with mount_disk(tmp_path / "disk", "2m") as disk:
        store = {"ML_STORE": str(disk)}
        succeed(project.ml("ingest", **store))
        before = files_of(disk, "alerts")
        more = {"ML_DATA__SOURCE": "sample://?rows=400000"}
        said = refuse(project.ml("ingest", **store, **more))
        assert said.startswith("The disk is full") and "ML_STORE" in said
        assert files_of(disk, "alerts") == before
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        succeed(project.ml("ingest", **store, **more))
        assert len(list((disk / "snapshots").glob("*.parquet"))) == 2
