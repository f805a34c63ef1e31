"""A curation that is killed at any instant, or done by several processes, is the same curation."""

from __future__ import annotations

import contextlib
import functools
import random
import shutil
import time
from pathlib import Path

import curation
import psutil
import pytest
import sabotage

KILLS = 3
KILLS_OF_TWO = 3
STAGES = ["index", "score", "duplicates", "select", "report"]
FIRST = dict.fromkeys(STAGES, "ssld.curate.command:opened")
FIRST["report"] = "ssld.curate.command:_report"
"""The function with which a stage begins to write."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return curation.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def undisturbed(world, teacher_file) -> dict[str, tuple[Path, float]]:
    """A copy of the folder after each stage, and how many seconds the stage worked."""
    found, out = {}, world.root / "out"
    for stage in STAGES:
        noted = world.root / f"{stage} begun"
        harm = functools.partial(sabotage.at_call, FIRST[stage], 1, noted.touch)
        argv = ["curate", stage, *world.settings(out, teacher_file)]
        code, said = sabotage.run(argv, world.root / "said", [harm])
        seconds = time.time() - noted.stat().st_mtime
        assert code == 0, said
        shutil.copytree(out, world.root / f"after {stage}")
        found[stage] = world.root / f"after {stage}", seconds
    shutil.rmtree(out)
    return found


def test_killed_between_the_lock_and_the_settings(world, undisturbed, teacher_file, tmp_path):
    out = tmp_path / "out"
    harm = functools.partial(
        sabotage.at_call, "ssld.curate.folder:write_atomically", 1, sabotage.sigkill
    )
    argv = ["curate", "index", *world.settings(out, teacher_file)]
    assert sabotage.run(argv, tmp_path / "said.txt", [harm])[0] == -9
    assert [path.name for path in out.iterdir()] == [".lock"]
    code, said = sabotage.run(argv, tmp_path / "said.txt")
    assert code == 0, said
    assert outcome(out) == outcome(undisturbed["index"][0])


def outcome(folder: Path) -> dict[str, bytes]:
    """All that a curation is judged by."""
    found = curation.tables(folder)
    if (folder / "report.html").is_file():
        found["report.html"] = (folder / "report.html").read_bytes()
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random_moments(stage, world, undisturbed, teacher_file, tmp_path):
    whole, seconds = undisturbed[stage]
    draw, killed, finished = random.Random(stage), 0, False
    out, before = world.root / "out", STAGES.index(stage) - 1
    argv = ["curate", stage, *world.settings(out, teacher_file)]
    while not finished:
        if not out.exists() and before >= 0:
            shutil.copytree(undisturbed[STAGES[before]][0], out)
        moment = draw.uniform(0, seconds)
        harm = (
            [functools.partial(sabotage.kill_after, FIRST[stage], moment)] if killed < KILLS else []
        )
        code, said = sabotage.run(argv, tmp_path / "said.txt", harm)
        assert code in (0, -9), said
        killed += code == -9
        if code == 0:  # where kills are left, it is compared all the same, and begun anew
            assert different(outcome(out), outcome(whole)) == []
            shutil.rmtree(out)
            finished = killed == KILLS


def different(a: dict[str, bytes], b: dict[str, bytes]) -> list[str]:
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_select_what_one_selects(processes, world, undisturbed, teacher_file):
    out = world.root / f"out of {processes}"
    argv = ["curate", "select", *world.settings(out, teacher_file)]
    started = sabotage.ranks(argv, world.root / f"said{processes}", [()] * processes)
    assert [each.end() for each in started] == [0] * processes, started[0].words
    for name in ("selected", "dropped", "inside"):
        one = curation.table(undisturbed["select"][0], name)
        assert curation.table(out, name) == one


def test_one_of_two_processes_killed_at_random_moments(world, undisturbed, teacher_file):
    """The other one ends, too, in a sentence; the same command goes on to the same tables."""
    out, draw, kills = world.root / "out", random.Random(4), 0
    argv = ["curate", "select", *world.settings(out, teacher_file)]
    seconds = undisturbed["select"][1]
    while kills < KILLS_OF_TWO or out.exists():
        victim, moment = draw.randrange(2), draw.uniform(0, seconds)
        kill = functools.partial(sabotage.kill_after, "ssld.curate.command:opened", moment)
        harm = [[kill] if kills < KILLS_OF_TWO and rank == victim else [] for rank in range(2)]
        started = sabotage.ranks(argv, world.root / "said of two", harm)
        codes = [each.end() for each in started]
        if codes == [0, 0]:  # where kills are left, it is compared all the same, and begun anew
            for name in ("selected", "dropped", "inside"):
                assert curation.table(out, name) == curation.table(undisturbed["select"][0], name)
            shutil.rmtree(out)
            continue
        kills += 1
        other = started[1 - victim].words
        assert codes[victim] == -9 and codes[1 - victim] in (75, 0), other
        if codes[1 - victim] == 75:
            assert "another process of this curation is gone" in other
            assert "the same command goes on" in other and "Traceback" not in other


def test_worker_processes_give_the_same_tables_and_end_with_a_killed_parent(
    world, undisturbed, teacher_file
):
    out = world.root / "out"
    argv = ["curate", "duplicates", *world.settings(out, teacher_file, workers=2)]
    moment = functools.partial(
        sabotage.at_call, "ssld.curate.tables:write_table", 6, sabotage.sigkill
    )
    killed = sabotage.Started(argv, world.root / "said", [moment])
    workers: set[psutil.Process] = set()
    while killed.process.is_alive():
        with contextlib.suppress(psutil.NoSuchProcess):
            workers |= set(psutil.Process(killed.process.pid).children(recursive=True))
        time.sleep(0.02)
    assert killed.end() == -9 and workers
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    code, said = sabotage.run(argv, world.root / "said")
    assert code == 0, said
    assert different(outcome(out), outcome(undisturbed["duplicates"][0])) == ["manifest.json"]
    shutil.rmtree(out)
