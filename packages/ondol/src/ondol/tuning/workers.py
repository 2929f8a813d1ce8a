"""The workers of a search: local processes, or those of a Dask cluster. They fit folds, and know no study."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any
from unittest.mock import patch

from ondol.errors import UserError
from ondol.project import describe_error, import_owned
from ondol.redaction import show_uri
from ondol.selection.comparison import CrossValidation
from ondol.training.candidates import Trial
from ondol.training.provenance import code_digest, shaping_packages

CONNECT_SECONDS = 10
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # of libraries that a worker loads later


@dataclass(frozen=True)
class Workers:
    """Workers that fit folds.

    Attributes:
        count: How many fits run at once, each with one thread.
        submit: Starts the fit of a trial on the fold with this number.
    """

    count: int
    submit: Callable[[Trial, int], "Future[Trial]"]


@contextmanager
def open_workers(validation: CrossValidation, processes: int, address: str | None = None) -> Iterator[Workers]:
    """Start local processes, or connect to a Dask cluster, and yield the workers.

    Args:
        validation: The folds and rows; every worker gets them once.
        processes: The number of local processes.
        address: The address of Dask's scheduler; None for local processes.

    Raises:
        UserError: the cluster cannot be used, or a worker ended.
    """
    with _open_cluster(validation, address) if address else _open_processes(validation, processes) as workers:
        yield workers


@contextmanager
def _open_processes(validation: CrossValidation, processes: int) -> Iterator[Workers]:
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks of threads, such as OpenMP's
    executor = ProcessPoolExecutor(processes, context, _start_process, (validation,))
    try:
        with patch.dict(os.environ, dict.fromkeys(THREADS, "1")):
            for _ in range(processes):  # each starts one
                executor.submit(os.getpid)
        yield Workers(processes, lambda trial, number: executor.submit(_fit_in_process, trial, number))
    except BrokenExecutor:
        raise UserError(
            "A process of the search ended, perhaps without memory: run the command again with fewer --processes. The "
            "finished trials are kept."
        ) from None
    finally:
        for process in multiprocessing.active_children():  # after Ctrl-C they are still fitting
            process.terminate()
        executor.shutdown(cancel_futures=True)


_validation: CrossValidation  # of a worker process


def _start_process(validation: CrossValidation) -> None:
    """Prepare a worker process: it ends with the command, which alone handles Ctrl-C."""
    global _validation
    _validation = validation
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _fit_in_process(trial: Trial, number: int) -> Trial:
    return fit_fold(_validation, trial, number)


def fit_fold(validation: CrossValidation, trial: Trial, number: int) -> Trial:
    """Return the trial with the result of one more fold, fitted with one thread: equal on every worker.

    Raises:
        UserError: the model cannot be built or fitted.
    """
    from threadpoolctl import threadpool_limits

    import_owned("estimator")  # the limit only holds for libraries that are loaded
    with threadpool_limits(1):
        return validation.fit(trial, range(number, number + 1))


@contextmanager
def _open_cluster(validation: CrossValidation, address: str) -> Iterator[Workers]:
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise UserError('[compute] dask needs a package: run `uv add "ondol[dask]"`.') from None

    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"No Dask scheduler answers at [compute] dask = {show_uri(address)} ({reason}): start it, or leave the "
            "setting out for local processes."
        ) from None
    try:
        _require_equal(client, validation)
        executor: Executor = client.get_executor(pure=False)
        (rows,) = client.scatter([validation], broadcast=True)
        count = sum(client.nthreads().values())
        yield Workers(count, lambda trial, number: executor.submit(fit_fold, rows, trial, number))
    except (KilledWorker, CancelledError) as error:
        raise UserError(
            f"The cluster of [compute] dask lost a fit ({describe_error(error)}): run the command again when its "
            "workers are back. The finished trials are kept."
        ) from None
    finally:
        client.close()


def _require_equal(client: Any, validation: CrossValidation) -> None:
    """Check that every worker of a cluster has this project's code and packages.

    Raises:
        UserError: one has others, or there is none.
    """
    here = describe_environment()
    found = client.run(describe_environment, on_error="return")
    if not found:
        raise UserError("The cluster of [compute] dask has no workers: start some with `dask worker` in this project.")
    for worker, there in found.items():
        if isinstance(there, BaseException):
            what = f"cannot import this project ({type(there).__name__}: {' '.join(str(there).split())[:200]})"
        elif there != here:
            what = f"has other {' and '.join(name for name in here if there[name] != here[name])} than this project"
        else:
            continue
        raise UserError(
            f"The Dask worker {worker} {what}: start it in a checkout of the same commit, with `uv run dask worker`."
        )


def describe_environment() -> dict[str, Any]:
    """Return what must be equal on every worker: the digest of the project's code, and the packages."""
    from pathlib import Path

    root = Path(str(import_owned("estimator").__file__)).parents[1]
    return {"code": code_digest(root), "packages": shaping_packages()}
