"""`ssld curate` on a Ray cluster of one node writes what it writes without one."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import curation
import numpy as np
import psutil
import pytest
import sabotage

from ssld.common.errors import InputError, Interrupted
from ssld.curate import workers_ray as on_ray
from ssld.curate.workers_ray import ordered_on_ray, require_ray

Item = tuple[int, np.ndarray]
MANY = 70


def doubled(item: Item) -> tuple[int, np.ndarray, set[str]]:
    number, array = item
    return number, 2 * array, {"not", "for", "Arrow"}


def refuses_three(item: Item) -> int:
    if item[0] == 3:
        raise InputError("three: give another number")
    return item[0]


def dies_once(once: Path, item: Item) -> int:
    """As if the kernel had killed it for lack of memory."""
    with contextlib.suppress(FileExistsError), once.open("x"):
        os.kill(os.getpid(), signal.SIGKILL)
    return item[0]


def dies(item: Item) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return item[0]


def try_ray(folder: Path) -> None:
    """Note in `folder` what becomes of other jobs, in the process that curates afterwards."""
    from ray import cloudpickle

    notes: dict[str, Any] = {}
    given: list[int] = []

    def items(count: int) -> Iterator[Item]:
        for number in range(count):
            given.append(number)
            yield number, np.full(16_000, number, np.float32)

    def noted(job: Any, count: int) -> list[Any]:
        try:
            return list(ordered_on_ray(job, items(count), 2))
        except (InputError, Interrupted) as error:
            return [type(error).__name__, str(error)]

    notes["lacking"] = noted(doubled, 1)  # workers do not find this module
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    given.clear()
    found = ordered_on_ray(doubled, items(MANY), 2)
    first, taken = next(found), len(given)
    whole = [first, *found]
    right = all(x[1].tolist() == [2.0 * x[0]] * 16_000 and len(x[2]) == 3 for x in whole)
    notes |= {"order": [x[0] for x in whole], "right": right, "taken": taken}
    notes["sigterm"] = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    notes["refused"] = noted(refuses_three, 9)
    notes["lost once"] = noted(functools.partial(dies_once, folder / "once"), 4)
    on_ray.RETRIES = 0
    notes["lost"] = noted(dies, 1)
    on_ray.RETRIES = 3
    notes["processes"] = [child.pid for child in psutil.Process().children(recursive=True)]
    (folder / "notes.json").write_text(json.dumps(notes))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return curation.make(tmp_path_factory.mktemp("world"))


def curated(world: curation.World, name: str, harm: list[sabotage.Harm], **changes: Any) -> Path:
    out = world.root / name
    words = world.settings(out, None, labeled=None, **changes)
    code, said = sabotage.run(["curate", "duplicates", *words], world.root / f"{name}.txt", harm)
    assert code == 0, said
    return out


@pytest.fixture(scope="module")
def on_cluster(world) -> Path:
    """The folder of a curation; notes of what else was tried on its cluster are beside it."""
    harm: list[sabotage.Harm] = [functools.partial(try_ray, world.root)]
    return curated(world, "ray", harm, engine="ray", workers=2)


@pytest.fixture(scope="module")
def in_one_process(world) -> Path:
    return curated(world, "one", [])


@pytest.fixture(scope="module")
def notes(world, on_cluster) -> dict[str, Any]:
    return json.loads((world.root / "notes.json").read_text())


def test_the_tables_are_byte_for_byte_those_of_one_process(on_cluster, in_one_process):
    one, ray = curation.tables(in_one_process), curation.tables(on_cluster)
    assert "pairs.parquet" in one and sum(name.startswith("index/") for name in one) > 2
    del one["manifest.json"], ray["manifest.json"]  # names the engine
    assert sorted(name for name in one if one[name] != ray[name]) == [] and one.keys() == ray.keys()


def test_results_come_in_order_and_are_asked_for_as_they_are_needed(notes):
    assert notes["order"] == list(range(MANY)) and notes["right"]
    assert notes["taken"] == on_ray.WINDOWS * 2 * on_ray.ITEMS_PER_CPU < MANY


def test_an_input_error_of_a_job_arrives_as_it_was(notes):
    assert notes["refused"] == ["InputError", "three: give another number"]


def test_a_node_without_the_package_is_told_of(notes):
    kind, sentence = notes["lacking"]
    assert kind == "InputError" and "(ModuleNotFoundError: No module named 'test_" in sentence


def test_a_lost_worker_is_replaced(notes):
    assert notes["lost once"] == [0, 1, 2, 3]


def test_work_that_kills_every_worker_ends_in_a_sentence(notes):
    kind, sentence = notes["lost"]
    assert kind == "Interrupted" and sentence.startswith("Ray gave up on a piece of work (")
    assert "\n" not in sentence and sentence.endswith("give the same command again")


def test_nothing_of_ray_is_printed_and_nothing_stays(world, in_one_process, notes):
    lines = (world.root / "ray.txt").read_text().splitlines()
    said = [line for line in lines if "(raylet)" not in line]  # tells of workers that died
    one = (world.root / "one.txt").read_text().replace(str(in_one_process), str(world.root / "ray"))
    assert said == one.splitlines()
    assert notes["sigterm"]
    left = []
    for number in notes["processes"]:
        # Killed as this run was, Ray's agents see that their raylet is gone within a minute.
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(number)
            if process.name() not in ("ray::DashboardAgent", "ray::RuntimeEnvAgent"):
                left.append(process)
    assert notes["processes"] and not psutil.wait_procs(left, timeout=5)[1]


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ssld\[ray\]'"):
        require_ray()


def test_launched_processes_would_start_a_cluster_each(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match="2 processes were launched and no Ray cluster runs"):
        require_ray()
    with socket.create_server(("127.0.0.1", 0)) as cluster:
        address = f"127.0.0.1:{cluster.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray/ray_current_cluster").write_text(address)
        require_ray()
    with pytest.raises(InputError, match=f"no cluster answers at {address}"):
        require_ray()
