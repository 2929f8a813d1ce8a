"""Runs `ml`, writes down what it changes, and kills it there: `killer.py LOG POINT WHEN COMMAND …`.

LOG gets a line for each change that the command makes to what lasts: files that are renamed into the store, what
is registered with MLflow, what is imported into BentoML's store. At the change number POINT (from 1; 0 for none) the
process is killed as `kill -9` does: WHEN is `before` or `after` it, or `within`, where half of what is written is
on the disk.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ondol.deployment.bundle
import ondol.storage.files
from ondol.deployment.smoke import SmokeService
from ondol.ingestion.kafka import KafkaSource
from ondol.registry.registry import Registry

LOG, POINT, WHEN = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
done = 0


def watch(owner: Any, name: str, tell: Callable[..., str | None]) -> None:
    """Count the calls of a function for which `tell` gives a line, and be killed at the right one."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def watched(*arguments: Any, **options: Any) -> Any:
        global done
        line = tell(*arguments, **options)
        if line is None:
            return real(*arguments, **options)
        done += 1
        with LOG.open("a", encoding="utf-8") as log:
            log.write(f"{line}\n")
        if done == POINT and WHEN == "within" and isinstance(arguments[0], str | Path):
            halve(Path(arguments[0]))
        if done == POINT and WHEN != "after":
            die()
        result = real(*arguments, **options)
        if done == POINT:
            die()
        return result

    setattr(owner, name, watched)


def halve(made: Path) -> None:
    """Truncate the file to half before it is renamed."""
    files = sorted(made.iterdir()) if made.is_dir() else [made]
    for file in files[len(files) // 2 :]:
        os.truncate(file, file.stat().st_size // 2)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def into_store(made: Any, target: Any, **_: Any) -> str | None:
    """Name a file that is renamed into the store, without the digests that differ from run to run."""
    _, found, path = str(target).partition("/.ml/store/")
    return f"{path.split('/')[0]}{Path(path).suffix}" if found else None


def into_run(*arguments: Any, **_: Any) -> str:
    """Name data logged to an MLflow run after the stage that logs it."""
    return "mlflow verdict" if "verdict.json" in arguments[3] else "mlflow record"


watch(os, "replace", into_store)
watch(Registry, "log_model", lambda *_: "mlflow model")
watch(Registry, "register", lambda *_: "mlflow version")
watch(Registry, "set_alias", lambda _, alias, __: f"mlflow alias {alias}")
watch(Registry, "log_results", into_run)
watch(ondol.deployment.bundle, "import_bundle", lambda *_: "bentoml model")
watch(SmokeService, "offer", lambda *_: "smoke test")
watch(KafkaSource, "commit", lambda *_: "kafka offsets")

if __name__ == "__main__":
    from ondol.cli.app import main

    sys.argv = ["ml", *sys.argv[4:]]
    main()
