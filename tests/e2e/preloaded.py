"""A process that has imported the stack's libraries, and forks for each command of a project.

Importing them takes longer than most commands do. Nothing of the engine or of a project is imported here, nor Prefect,
which reads the environment when it is imported.

`preloaded.py SOCKET` serves the requests of `commands.py` until its input ends.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

LIBRARIES = [
    "alembic.command",
    "fastapi",
    "griffe",
    "httpx",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mlflow",
    "mlflow.sklearn",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking",
    "numpy",
    "onnx",
    "onnxruntime",
    "pandas",
    "pandera.pandas",
    "pyarrow.csv",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pydantic_settings",
    "requests",
    "scipy.stats",
    "skl2onnx",
    "sklearn.calibration",
    "sklearn.compose",
    "sklearn.ensemble",
    "sklearn.impute",
    "sklearn.inspection",
    "sklearn.linear_model",
    "sklearn.metrics",
    "sklearn.model_selection",
    "sklearn.pipeline",
    "skops.io",
    "sqlalchemy.dialects.mysql",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.orm",
]
FOR_COMMANDS = {"monitor": ["evidently", "evidently.metrics", "evidently.presets"]}  # which take seconds, and few need
READY = b"ready"


def serve(path: Path) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request; return in the child that is to run it, with the request and its files."""
    load(LIBRARIES)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that answer are not waited for
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(str(path))
        listener.listen()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)  # it ends with the tests
        os.write(1, READY)
        while True:
            if any(key.fileobj is sys.stdin for key, _ in selector.select()):
                shutil.rmtree(path.parent)
                os._exit(0)
            connection, _ = listener.accept()
            request, files = read(connection)
            load(FOR_COMMANDS.get(request["words"][0], []))
            if fork() == 0:
                break
            connection.close()
            for file in files:
                os.close(file)
    if keep(connection, files) != 0:
        os._exit(0)
    return request, files


def load(names: list[str]) -> None:
    """Import the libraries that are not imported yet."""
    if all(name in sys.modules for name in names):
        return
    for name in names:
        importlib.import_module(name)
    there = {name.partition(".")[0] for name in sys.modules}
    assert not there & {"ondol", "ondol_serving", "flows", "model", "service", "prefect"}
    gc.collect()
    gc.freeze()  # else the first collection of each child copies all that is shared with it


def read(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Read a request: a line of JSON, and the files that come with it."""
    text, files, _, _ = socket.recv_fds(connection, 1_000_000, 3)
    while not text.endswith(b"\n"):
        text += connection.recv(1_000_000)
    return json.loads(text), files


def keep(connection: socket.socket, files: list[int]) -> int:
    """Fork the command; send its process id and then its status. Return 0 only in the child."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = fork()
    if child:
        for file in (0, 1, 2, *files):  # a pipe ends when the command and what it started have closed it
            os.close(file)
        connection.sendall(b"%d\n" % child)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(b"%d\n" % status)
    connection.close()
    return child


def fork() -> int:
    with warnings.catch_warnings():  # pyarrow and others have threads of their own, which a child does not use
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def become(request: dict[str, Any], files: list[int], before: list[str]) -> None:
    """Imitate a new process in the requested folder and environment; `before` is the module path."""
    import numpy as np

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    for name in ("stdout", "stderr"):  # opened again: Python recorded whether the earlier file can be sought in
        old = getattr(sys, name)
        new = os.fdopen(old.fileno(), "w", 1 if old.line_buffering else -1, old.encoding, old.errors, closefd=False)
        setattr(sys, name, new)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:] = [request["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *before]
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    sys.argv[1:] = request["words"]
    np.random.seed()  # else every command would draw the same


if __name__ == "__main__":
    become(*serve(Path(sys.argv[1])), before=sys.path[1:])
    runpy.run_module("ondol.cli", run_name="__main__", alter_sys=True)
