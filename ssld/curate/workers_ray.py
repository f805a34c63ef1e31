"""The work of `workers.ordered` on a Ray cluster, with Ray Data (Moritz et al. 2018, "Ray: A
Distributed Framework for Emerging AI Applications", OSDI; API of ray 2.60).

What is unusual: items and results travel pickled, as one column of bytes, because Arrow would turn
tuples into lists and could not hold them all. Errors of a job travel the same way and are raised
here: Ray's own would be another type, behind pages of its traceback.

A cluster's nodes must have this package and see all files under the same names. One that this
module starts ends with the process, however that ends.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import itertools
import logging
import os
import pickle
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import threadpoolctl

from ssld.common.errors import InputError, Interrupted

Item = TypeVar("Item")
Result = TypeVar("Result")

ITEMS_PER_CPU = 8
"""Items of a window, a dataset of its own, for each CPU of the cluster: about 16 seconds of work of
64 images each. That is long against the .2 seconds that a dataset takes to start, and short enough
for all that is under way to fit the driver's memory: 64 kB an item to send, 270 MB with 256 CPUs.
14 M images at once would be 14 GB."""
WINDOWS = 2
"""Under way at once: while one ends with some CPUs idle, the next has work for them."""
RETRIES = 3
"""Times that an item is tried again when its process or node is lost. Ray Data's own limit is none:
an image that kills every process that opens it would go round for ever."""


def require_ray() -> None:
    """Refuse, before any work begins, what this engine cannot do.

    Raises:
        InputError: ray is not installed, no cluster answers where one should, or launched
            processes would start a cluster each.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("engine is ray but ray is not installed: pip install 'ssld[ray]'")
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if _address():
        _refuse_silent(_address())
    elif launched > 1:
        raise InputError(
            f"engine is ray, {launched} processes were launched and no Ray cluster runs, so that "
            "each would start one: run `ray start --head` first or set RAY_ADDRESS"
        )


def ordered_on_ray(
    job: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """`job` of each item, in order, window by window; an exception of `job` is raised here.

    Args:
        workers: CPUs of the cluster, where none runs yet.

    Raises:
        InputError: the cluster cannot be reached, or lacks this package.
        Interrupted: an item was lost, with the process or node that had it, more than `RETRIES`
            times.
    """
    ray = _connected(workers)
    remaining, waiting, stop = iter(items), collections.deque(), threading.Event()
    with ThreadPoolExecutor(WINDOWS) as threads:  # Ray Data is waited for
        try:
            while True:
                size = ITEMS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
                window = list(itertools.islice(remaining, size))
                if window:
                    waiting.append(threads.submit(_outcomes, _dataset(ray, job, window), stop))
                if not waiting:
                    return
                if len(waiting) == WINDOWS or not window:
                    yield from _values(waiting.popleft().result())
        except ray.exceptions.RayTaskError as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise InputError(
                f"engine is ray but a node of its cluster cannot do the work ({reason}): all need "
                "this version of ssld, and the same files under the same names"
            ) from error
        except ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise Interrupted(
                f"Ray gave up on a piece of work ({type(error).__name__}: {reason}): see that no "
                "node runs out of memory or disk, then give the same command again"
            ) from error
        finally:
            stop.set()


def _dataset(ray: Any, job: Callable[[Any], Any], items: list[Any]) -> Any:
    """A ray.data.Dataset of a block, which is a task, for each item."""
    with warnings.catch_warnings(action="ignore"):  # of its own defaults, and of what goes away
        dataset = ray.data.from_arrow([_block(numbered) for numbered in enumerate(items)])
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        return dataset.map_batches(
            _attempt,
            fn_kwargs={"job": job, "folder": os.getcwd()},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            max_retries=RETRIES,  # ray 2.64 is to have another place for it
        )


def _outcomes(dataset: Any, stop: threading.Event) -> list[bytes]:
    """What `_attempt` made of each item, in order."""
    outcomes: list[bytes] = []
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        outcomes += table["pickled"].to_pylist()
        if stop.is_set():
            break
    return outcomes


def _attempt(table: pa.Table, job: Callable[[Any], Any], folder: str) -> pa.Table:
    """In a worker: the number of the item, whether `job` succeeded, and its result or error."""
    # Ray sets OMP_NUM_THREADS to 1 unless it is set; as a runtime_env it costs 13 s a dataset.
    threadpoolctl.threadpool_limits(1)
    with contextlib.suppress(OSError):  # relative paths mean the same wherever the folder is
        os.chdir(folder)
    number, item = pickle.loads(table["pickled"][0].as_py())
    try:
        return _block((number, True, job(item)))
    except Exception as error:  # whatever it is: it is raised again where the work was asked for
        return _block((number, False, error))


def _block(value: tuple) -> pa.Table:
    pickled = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return pa.table({"pickled": pa.array([pickled], pa.large_binary())})


def _values(outcomes: list[bytes]) -> Iterator[Any]:
    for i, pickled in enumerate(outcomes):
        number, succeeded, value = pickle.loads(pickled)
        assert number == i, f"result {number} came in place {i}"
        if not succeeded:
            raise value
        yield value


def _connected(workers: int) -> Any:
    """The module ray, connected to a cluster: RAY_ADDRESS's, one that `ray start` began, or a new
    one of this process."""
    with warnings.catch_warnings(action="ignore"):  # see `_dataset`
        import ray  # an extra, which `require_ray` has looked for
        import ray.data
        import ray.exceptions

        ray.data.DataContext.get_current()
        if not ray.is_initialized():
            _connect(ray, workers)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return ray


def _connect(ray: Any, workers: int) -> None:
    where: dict[str, Any] = {"address": _address()}
    if not where["address"]:
        where = {"address": "local", "num_cpus": max(1, workers), "include_dashboard": False}
    sigterm = signal.getsignal(signal.SIGTERM)  # Ray sets its own
    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"engine is ray but its cluster cannot be reached ({error})") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm)


def _address() -> str:
    """Where a cluster runs: as RAY_ADDRESS says, or `ray start` on this machine; else empty."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named not in ("", "auto"):
        return named
    folder = os.environ.get("RAY_TMPDIR", tempfile.gettempdir())
    started = Path(folder, "ray", "ray_current_cluster")
    return started.read_text().strip() if started.is_file() else ""


def _refuse_silent(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"engine is ray but no cluster answers at {address} ({error}): start it, or unset "
            "RAY_ADDRESS and run `ray stop`"
        ) from error
