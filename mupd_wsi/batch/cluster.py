"""Dask clusters: one on this machine, one that runs already, or one that a batch system starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from mupd_wsi.errors import ClusterError, UsageError

#: Classes of dask-jobqueue by what a cluster file calls them.
ENGINES: Final = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "lsf": "LSFCluster",
    "sge": "SGECluster",
    "htcondor": "HTCondorCluster",
    "oar": "OARCluster",
    "moab": "MoabCluster",
}
#: Seconds to wait for a scheduler to answer.
CONNECT_S: Final = 30
#: Seconds to wait for the first worker, which may stand in a queue.
QUEUE_S: Final = 24 * 3600
#: Threads of the libraries that a worker uses: its one core is the network's.
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@contextmanager
def opened_client(where: str, workers: int | None = None) -> Iterator[Any]:
    """Connect to a cluster, and start it where it does not run; whatever was started here is stopped again.

    Args:
        where: ``local``, a scheduler's address, or a YAML file for a batch system.
        workers: processes of a local cluster; None: one a core.

    Yields:
        A ``distributed.Client`` that has at least one worker.

    Raises:
        UsageError: Dask is not installed, or the file is not understood.
        ClusterError: the scheduler does not answer, or no worker comes.
    """
    distributed = _module("distributed")
    for name in ("distributed", "distributed.scheduler", "distributed.nanny", "distributed.worker"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a worker that is killed is told by what it costs
    with ExitStack() as stack:
        address: Any = where
        wait = CONNECT_S
        if where == "local":
            address = stack.enter_context(_local(distributed, workers))
        elif "://" not in where:
            address = stack.enter_context(_queued(Path(where)))
            wait = QUEUE_S
        try:
            client = stack.enter_context(distributed.Client(address, timeout=CONNECT_S))
            client.wait_for_workers(1, timeout=wait)
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                f"no Dask cluster with workers at {where} ({_said(error)}); start 'dask scheduler' and 'dask worker', "
                "or use --cluster local"
            ) from error
        yield client


def thread_count(client: Any) -> int:
    """How many tasks the workers of a cluster do at a time."""
    threads: dict[str, int] = client.nthreads()
    return max(1, sum(threads.values()))


def read_cluster_file(path: Path) -> tuple[str, int, dict[str, Any]]:
    """Read what a batch system is to be asked for.

    Args:
        path: YAML: ``engine`` (one of :data:`ENGINES`), ``jobs``, and whatever dask-jobqueue's class for it takes.

    Returns:
        The engine, the number of jobs, and the rest.

    Raises:
        UsageError: unreadable, or one of the two is missing or wrong.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is neither 'local', nor an address, nor a YAML file: {_said(error)}") from error
    if not isinstance(content, dict) or content.get("engine") not in ENGINES:
        raise UsageError(f"{path} needs 'engine:', one of {', '.join(ENGINES)}, and what its jobs are to have")
    rest = dict(content)
    engine, jobs = rest.pop("engine"), rest.pop("jobs", 1)
    if not isinstance(jobs, int) or jobs < 1:
        raise UsageError(f"{path}: 'jobs' is the number of jobs to ask for, got {jobs!r}")
    return engine, jobs, rest


@contextmanager
def _local(distributed: Any, workers: int | None) -> Iterator[Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with distributed.LocalCluster(
        n_workers=min(workers or cores, cores),
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        memory_limit=0,
        silence_logs=logging.CRITICAL,
        env=ONE_THREAD | {"OMP_WAIT_POLICY": "PASSIVE"},
        preload="mupd_wsi.batch.worker_setup",
    ) as cluster:
        yield cluster


@contextmanager
def _queued(path: Path) -> Iterator[Any]:
    engine, jobs, rest = read_cluster_file(path)
    jobqueue = _module("dask_jobqueue")
    try:
        cluster = getattr(jobqueue, ENGINES[engine])(**_one_thread_each(rest))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: {_said(error)}") from error
    with cluster:
        cluster.scale(jobs=jobs)
        yield cluster


def _one_thread_each(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A worker process a core, unless the file says otherwise."""
    return {"processes": asked.get("cores", 1), "dashboard_address": None} | dict(asked)


def _module(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError("--cluster needs Dask; install mupd-wsi[hpc]") from error


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
