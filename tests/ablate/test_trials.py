"""What happens to trials and to the command, and what a trial may use of a machine."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest
import yaml
from ablation_bench import FAKE, GRID, SECONDS, STAGE, lines_of, without_clock

from ssld.ablate import pool

KILLS = 3


def test_finished_trials_are_kept_when_the_grid_grows(bench, capsys):
    assert bench.run() == 0
    before = without_clock(bench.table())
    assert len(bench.started()) == 4
    assert bench.run() == 0 and not bench.starts()
    assert without_clock(bench.table()) == before
    grown = {"optimizer.weight_decay": [1e-3, 1e-5, 1e-4], "seed": [0, 1, 2]}
    bench.write(grown, finetune={})  # a stage more: the first one stays
    assert bench.run("--data.workers", "0") == 0
    assert len(bench.started()) == 9
    assert bench.run("--data.workers", "1") == 0 and not bench.starts()  # changes no result
    assert "not on the grid" not in capsys.readouterr().out
    bench.write({**GRID, "seed": [1]}, finetune={})
    assert bench.run() == 0 and len(bench.table()) == 4 and not bench.starts()
    said = f"7 more in {bench.out / 'cells'} are not on the grid (any more): kept there, left out"
    assert said in capsys.readouterr().out
    assert len(list((bench.out / "cells").iterdir())) == 9


def test_a_changed_recipe_is_refused_or_started_anew(bench, capsys):
    bench.write(finetune={})
    assert bench.run() == 0
    kept = bench.out / "cells" / "optimizer.weight_decay=1e-5,seed=0" / "distill" / "weights"
    kept.touch()
    bench.starts()
    bench.write(finetune={"epochs": 3})
    capsys.readouterr()
    assert bench.run() == 2
    said = capsys.readouterr().err
    assert "finetune.epochs was not given and is 3), and so were 3 more" in said
    assert said.count("\n") == 1 and not bench.starts()
    assert bench.run("--overwrite") == 0
    assert all(start["words"][-1] == "--overwrite" for start in bench.starts())
    assert kept.exists()  # only what has changed
    bench.write(distill={**STAGE, "batch_size": 8}, finetune={"epochs": 3})
    assert bench.run() == 2 and bench.run("--overwrite") == 0
    assert not kept.exists()
    assert bench.run() == 0


def test_settings_that_are_refused_cost_nothing(bench):
    bench.write({"seed": [0]}, finetune={})
    assert bench.run() == 0
    before, kept = without_clock(bench.table()), bench.out / "cells" / "seed=0" / "distill" / "kept"
    kept.touch()
    bench.write({"seed": [0]}, distill={**STAGE, "batch_size": 8}, finetune={})
    bench.ask("seed=0", "fails-distill")
    for words in (["--overwrite"], []):
        assert bench.run(*words) == 1 and kept.exists()
        assert [row["status"] for row in bench.table()] == ["failed"] * 2  # not what was before
        assert {row["top1"] for row in bench.table()} == {""}
    (bench.asked / "seed=0.fails-distill").unlink()
    bench.write({"seed": [0]}, finetune={})
    assert bench.run() == 0 and kept.exists()  # set back
    assert without_clock(bench.table()) == before
    bench.starts()
    assert bench.run() == 0 and not bench.starts()
    bench.write({"seed": [0]}, distill={**STAGE, "batch_size": 8}, finetune={})
    assert bench.run() == 2 and bench.run("--overwrite") == 0 and not kept.exists()


def test_a_failing_trial_does_not_stop_the_others(bench, capsys):
    bench.write(finetune={})
    name = "optimizer.weight_decay=1e-5,seed=1"
    bench.ask(name, "fails-finetune")
    assert bench.run() == 1
    said = capsys.readouterr()
    assert f"{name}: failed: data.labeled x: no such folder; name one" in said.out
    assert "1 of 4 trials failed" in said.err and said.err.count("\n") == 1
    status = [(row["stage"], row["status"]) for row in bench.table() if row["status"] != "done"]
    assert status == [("finetune", "failed")]
    assert "3 of 4 trials done" in said.out and "| 1/2 |" in said.out
    (bench.asked / f"{name}.fails-finetune").unlink()
    bench.starts()
    assert bench.run() == 0 and bench.started() == [name]


def test_what_never_began_may_be_mended(bench):
    bench.write({"seed": [0]})
    bench.ask("seed=0", "fails-distill")
    assert bench.run() == 1
    (bench.asked / "seed=0.fails-distill").unlink()
    bench.write({"seed": [0]}, distill={**STAGE, "data": {"labeled": ["photos"]}})
    assert bench.run() == 0
    recipe = yaml.safe_load((bench.out / "cells" / "seed=0" / "recipe.yaml").read_text())
    assert recipe["distill"]["data"] == {"labeled": ["photos"]}


def test_a_recipe_that_ends_without_a_stage_has_failed(bench, capsys, monkeypatch):
    monkeypatch.setattr(pool, "COMMAND", [sys.executable, "-c", "pass"])
    assert bench.run() == 1
    assert "its recipe ended without distill" in capsys.readouterr().out


def test_trials_that_are_stopped_from_outside_have_another_try(bench, capsys):
    killed, stopped = "optimizer.weight_decay=1e-5,seed=0", "optimizer.weight_decay=1e-4,seed=1"
    bench.ask(killed, "dies")
    bench.ask(stopped, "again")
    assert bench.run() == 1
    started = bench.started()
    assert len(started) == 6 and started.count(killed) == started.count(stopped) == 2
    log = bench.out / "cells" / stopped / "cell.log"
    assert f"{stopped}: failed: exit code 75; see {log}" in capsys.readouterr().out


def test_the_command_is_alone_and_may_be_killed_at_any_instant(bench, capsys):
    bench.write({"seed": [0, 1, 2]})
    whole = bench.out.with_name("whole")
    assert bench.run("--out", str(whole)) == 0
    (bench.asked / "seed=1.begun").unlink()
    bench.starts()
    bench.ask("seed=1", "waits")
    process = bench.process()
    bench.wait("seed=1.begun")
    child = psutil.Process(bench.starts()[-1]["pid"])
    assert bench.run() == 2
    assert "another command is at work there" in capsys.readouterr().err
    process.kill()
    process.communicate()
    child.wait(SECONDS)  # nobody is left behind
    assert not (bench.asked / "seed=1.checkpoint").exists()
    assert [row["status"] for row in bench.table()] == ["done", "pending", "pending"]
    (bench.asked / "go on").touch()
    assert bench.run() == 0 and bench.started() == ["seed=1", "seed=2"]
    assert without_clock(bench.table()) == without_clock(bench.table(whole))
    assert lines_of(bench) == (whole / "table.md").read_text().splitlines()


def test_killed_at_random_moments_it_ends_in_the_same_tables(bench):
    """The command or one of its trials, whoever it hits."""
    bench.write({"seed": [0, 1, 2], "epochs": [1, 2]})
    whole, draw, kills = bench.out.with_name("whole"), random.Random(2), 0
    assert bench.run("--out", str(whole)) == 0
    bench.starts()
    starts, code = 0, None
    while code != 0:
        process = bench.process()
        while kills < KILLS and process.poll() is None:
            time.sleep(draw.uniform(0, 0.1))
            if (bench.asked / "starts").exists():
                kills += _kill_one(process.pid, draw)
        process.communicate(timeout=SECONDS)
        code, starts = process.returncode, starts + len(bench.starts())
        assert code in (0, 1, -signal.SIGKILL)  # 1: a trial was hit twice
    assert kills == KILLS and starts <= 6 + KILLS  # what is done is not done again
    assert without_clock(bench.table()) == without_clock(bench.table(whole))
    assert lines_of(bench) == (whole / "table.md").read_text().splitlines()


def _kill_one(pid: int, draw: random.Random) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        command = psutil.Process(pid)
        draw.choice([command, *command.children(recursive=True)]).kill()
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_waited_for(bench, capsys, number, monkeypatch):
    bench.write({"seed": [0, 1, 2]})
    bench.ask("seed=1", "waits")
    ended = pool.run_trials

    def signalled(*arguments: Any) -> Any:
        watch = arguments[-1]

        def seen(names: list[str]) -> None:
            if (bench.asked / "seed=1.begun").exists() and not sent:
                sent.append(os.kill(os.getpid(), number))
            watch(names)

        return ended(*arguments[:-1], seen)

    sent: list[None] = []
    monkeypatch.setattr(pool, "run_trials", signalled)
    assert bench.run() == 75
    said = capsys.readouterr()
    assert (bench.asked / "seed=1.checkpoint").exists()
    assert "with 2 of 3 trials to go; the same command goes on" in said.err
    assert "failed" not in said.out and bench.started() == ["seed=0", "seed=1"]
    (bench.asked / "go on").touch()
    assert bench.run() == 0 and bench.started() == ["seed=1", "seed=2"]


def test_trials_side_by_side_share_the_cores(bench, monkeypatch):
    here = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # the tests may have one of them only
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, here)
    shared = [(cores[0],), (cores[-1],)]
    parts = [pool.Device({"OMP_NUM_THREADS": "3"}, part) for part in shared]
    monkeypatch.setattr(pool, "find_devices", lambda number: parts[:number])
    for decay, seed in itertools.product(("1e-5", "1e-4"), (0, 1)):  # each waits for its neighbour
        names = [f"optimizer.weight_decay={decay},seed={x}" for x in (seed, 1 - seed)]
        bench.ask(names[0], "meets", f"{names[1]}.begun")
    assert bench.run("--devices", "2") == 0
    starts = sorted(bench.starts(), key=lambda start: start["trial"])
    assert len(starts) == 4 and {start["threads"] for start in starts} == {"3"}
    for a, b in (starts[:2], starts[2:]):
        assert {tuple(a["cores"]), tuple(b["cores"])} == set(shared)
    assert os.sched_getaffinity(0) == here


def test_how_a_machine_is_shared(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 4, 6, 8, 9})
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        found = pool.find_devices(3)
        assert [one.cores for one in found] == [(0, 1), (2, 4), (6, 8)]
        assert all(one.environment == {"OMP_NUM_THREADS": "2"} for one in found)
    assert pool.find_devices(1) == [pool.Device({})]  # everything
    for visible in ("5,GPU-7", "0,0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found = pool.find_devices(2)
        named = [one.environment["CUDA_VISIBLE_DEVICES"] for one in found]
        assert named == visible.split(",") and not any(one.cores for one in found)
    with pytest.raises(ValueError, match="has 2 GPUs; give fewer"):
        pool.find_devices(3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    named = [one.environment for one in pool.find_devices(2)]
    assert named == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]


def test_the_command_does_not_import_torch(bench):
    code = f"import sys; import ssld.ablate.pool as p; p.COMMAND = {FAKE}; "
    code += "from ssld.__main__ import main; assert main() == 0; assert 'torch' not in sys.modules"
    words = [sys.executable, "-c", code, "ablate", str(bench.file)]
    subprocess.run(words, check=True, capture_output=True)
    page = (bench.out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and "http" not in page
    assert page.count('href="cells/optimizer.weight_decay%3D1e-5%2Cseed%3D0/cell.log"') == 1
    assert (bench.out / "plots" / "optimizer.weight_decay.png").read_bytes()[:4] == b"\x89PNG"
