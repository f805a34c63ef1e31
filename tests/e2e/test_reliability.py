"""What happens to long runs, done to short ones in processes of their own.

Each fault must lose nothing but the steps since the last checkpoint and say what happened; going on
with --resume must end in the very run that nothing happened to, bit by bit. docs/reliability.md has
the table.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sabotage
from case import MEND, STEPS, TRY_AGAIN, Case, assert_same, lines
from sabotage import at_call, at_step, sigkill

WORKER = {"data.workers": 1}
"""For what may meet a loader process."""


@pytest.fixture(scope="module")
def undisturbed(case) -> dict[str, Any]:
    """The run that nothing happens to, with a loader process; most others have none."""
    run = case(**WORKER)
    code, said = run.start(sabotage.draw)
    assert code == 0, said
    found = run.outcome()
    assert [x["step"] for x in found["lines"] if x["kind"] == "train"] == list(range(2, 25, 2))
    assert [x["step"] for x in found["lines"] if x["kind"] == "eval"] == [6, 12, 18, 24]
    tags = ("train/loss", "eval/agreement1", "eval/linear")
    assert [sum(p[0] == tag for p in found["points"]) for tag in tags] == [12, 4, 2]
    return found


def test_the_same_command_twice_is_the_same(case, undisturbed):
    run = case()
    assert run.start()[0] == 0
    assert_same(run.outcome(), undisturbed)


def test_sigkill_at_8_random_steps(case, undisturbed):
    run, steps = case(), sorted(random.Random(0).choices(range(STEPS), k=8))
    for number, step in enumerate(steps):
        harm = partial(at_step, step, sigkill)
        workers = {"data.workers": number % 2}  # with and without a process that outlives it
        code, said = run.resume(harm, **workers) if number else run.start(harm)
        assert code == -signal.SIGKILL, said
    assert run.resume()[0] == 0
    assert_same(run.outcome(), undisturbed)


ALL_THAT_IS_RANDOM = {
    "student.args": '{"drop_rate": 0.3}',
    "optimizer.name": "adamw",
    "schedule.lr": 0.01,
    "augment.policy": "randaugment",
    "precision": "bf16",
    "accumulate": 2,
}
TASKS = {
    "distill": {"teacher.batch_norm": "batch", "loss.temperature": 2.0},
    "supervised": {
        "data.unlabeled": None,
        "teacher.checkpoint": None,
        "teacher.verify": None,
        "mixup": 0.5,
        "cutmix": 0.5,
        "label_smoothing": 0.1,
    },
}


@pytest.mark.parametrize("command", TASKS)
def test_sigkill_with_all_that_is_random(case, command):
    changes = {"command": command, **ALL_THAT_IS_RANDOM, **TASKS[command]}
    whole, killed = case(**changes), case(**changes, **WORKER)
    code, said = whole.start()
    assert code == 0, said
    assert killed.start(partial(at_step, 7, sigkill))[0] == -signal.SIGKILL
    assert killed.resume(partial(at_step, 17, sigkill))[0] == -signal.SIGKILL
    assert killed.resume()[0] == 0
    assert_same(killed.outcome(), whole.outcome())


REPORT = "ssld.distill.report:write_report"
INSTANTS = {
    # what one run is killed at, one after another: (function, at which call, after it)
    "between steps and lines": [
        ("ssld.engine.run_folder:RunFolder.open", 1, True),
        ("torch.optim.optimizer:Optimizer.zero_grad", 9, False),
        ("ssld.engine.run_folder:RunFolder.log", 3, False),
        ("ssld.engine.run_folder:RunFolder.log", 3, True),
    ],
    "in an evaluation": [
        ("ssld.health.classification_metrics:ClassificationMetrics.add", 5, True),
        ("ssld.distill.probe:scores", 1, False),
        ("ssld.engine.trainer:Trainer.save", 2, False),  # between evaluation and checkpoint
    ],
    "in a checkpoint": [
        ("ssld.engine.checkpoint:save_file", 5, True),  # a network is written
        ("ssld.engine.checkpoint:sha256_of", 7, False),  # in the manifest
        ("ssld.engine.checkpoint:_sync", 8, False),
        ("ssld.engine.checkpoint:all_in", 3, False),  # before the old ones go
    ],
    "in an export": [
        ("ssld.engine.checkpoint:replace_folder", 1, False),
        ("ssld.engine.checkpoint:_write", 2, True),
    ],
    "around the reports": [
        (REPORT, 1, False),
        (REPORT, 1, True),
        (REPORT, 2, False),  # the last one
        (REPORT, 1, True),
    ],
}


@pytest.mark.parametrize("instants", INSTANTS)
def test_sigkill_at(case, undisturbed, instants):
    run, begin = case(), True
    for target, call, after in INSTANTS[instants]:
        harm = partial(at_call, target, call, sigkill, after)
        code, said = run.start(harm) if begin else run.resume(harm)
        assert code == -signal.SIGKILL, (target, call, said)
        begin = False
    code, said = run.resume()
    assert code == 0, said
    assert_same(run.outcome(), undisturbed)


def test_sigkill_within_a_line(case, undisturbed):
    run = case()
    assert run.start(partial(sabotage.half_a_line, 7))[0] == -signal.SIGKILL
    assert not (run.out / "metrics.jsonl").read_text().endswith("\n")
    assert run.resume()[0] == 0
    assert_same(run.outcome(), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_first(case, undisturbed, number):
    run = case(**WORKER)
    harm = partial(at_step, 10, partial(sabotage.signal_group, number))
    code, said = run.start(harm, *([sabotage.draw] if number == signal.SIGTERM else []))
    assert code == TRY_AGAIN and "Traceback" not in said
    assert f"stopped: {number.name}: the checkpoint of step 12 is written; go on with" in said
    assert run.checkpoints()[-1] == "step-00000012" and (run.out / "report.html").is_file()
    code, said = run.resume()
    assert code == 0 and "at step 12" in said
    assert_same(run.outcome(), undisturbed)


def test_checkpoints_by_minutes(case, undisturbed):
    minutes = {"checkpoint.every_steps": 1000, "checkpoint.every_minutes": 1e-6}
    run = case(**minutes, **{"checkpoint.keep": 99})
    assert run.start()[0] == 0
    assert run.checkpoints() == [f"step-{step:08d}" for step in range(2, STEPS + 1, 2)]
    assert_same(run.outcome(), undisturbed)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.fixture(scope="module")
def killed_at_15(case) -> Path:
    """The folder of a run that was killed before step 15."""
    run = case()
    assert run.start(partial(at_step, 15, sigkill))[0] == -signal.SIGKILL
    return run.out


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(case, undisturbed, killed_at_15):
    run = case()
    shutil.copytree(killed_at_15, run.out)
    names = run.checkpoints()
    flip_a_bit(run.out / "checkpoints" / names[-1] / "optimizer.pt")
    code, said = run.resume()
    assert code == 0 and f"{names[-1]} is damaged" in said
    assert f"at step {int(names[-2][-8:])}" in said
    assert_same(run.outcome(), undisturbed)


def test_damaged_checkpoints_do_not_count_as_the_latest(case, undisturbed):
    run = case(**{"checkpoint.keep": 3})
    assert run.start(partial(at_step, 23, sigkill))[0] == -signal.SIGKILL
    *_, whole, first, second = run.checkpoints()
    for name in (first, second):
        truncate(run.out / "checkpoints" / name / "optimizer.pt")
    at = int(whole[-8:])
    code, said = run.resume(partial(at_step, at + 1, partial(signal_self, signal.SIGTERM)))
    assert code == TRY_AGAIN and f"the checkpoint of step {at + 2} is written" in said
    assert {f"damaged-{first}", f"damaged-{second}", f"step-{at + 2:08d}"} <= set(run.checkpoints())
    assert f"at step {at + 2}" in run.resume()[1]
    assert_same(run.outcome(), undisturbed)


def signal_self(number: int) -> None:
    os.kill(os.getpid(), number)


def test_all_checkpoints_damaged_is_refused_and_nothing_is_lost(case, killed_at_15):
    run = case()
    shutil.copytree(killed_at_15, run.out)
    for name in run.checkpoints():
        (run.out / "checkpoints" / name / "manifest.json").write_text("{}")
    before = (run.out / "metrics.jsonl").read_text()
    code, said = run.resume()
    assert code == MEND and "manifest.json is not whole" in said and "are damaged: put a" in said
    assert (run.out / "metrics.jsonl").read_text() == before


def test_a_signal_before_the_first_step(case, undisturbed):
    run = case()
    harm = partial(
        at_call, "ssld.distill.distill:start_run", 1, partial(signal_self, signal.SIGTERM)
    )
    code, said = run.start(harm)
    assert code == TRY_AGAIN and "stopped: SIGTERM before or after the training loop" in said
    assert not run.out.exists()
    code, said = run.resume()
    assert code == 0 and "no checkpoint in" in said
    assert_same(run.outcome(), undisturbed)


def test_a_quota_stops_the_run_and_leaves_the_last_checkpoint(case, undisturbed):
    run = case(**WORKER)
    quota = partial(
        at_call, "ssld.engine.trainer:Trainer.save", 3, partial(sabotage.quota, 500_000)
    )
    code, said = run.start(quota)
    assert code == MEND and "Traceback" not in said
    assert "cannot be written" in said and "the last good one is step-" in said
    assert run.resume()[0] == 0
    assert_same(run.outcome(), undisturbed)


DISK_FULL = {
    "in a checkpoint": "ssld.engine.trainer:Trainer.save",
    "at a line": "ssld.engine.run_folder:RunFolder.log",
    "in an export": "ssld.distill.task:export",
    "in the last report": "ssld.distill.report:write_report",
}


@pytest.mark.parametrize("when", DISK_FULL)
def test_a_full_disk(case, undisturbed, colours, teacher_file, tmp_path, when):
    disk, rescued = tmp_path / "disk", tmp_path / "rescued"
    full = Case(colours, teacher_file, disk, **(WORKER if when == "in a checkpoint" else {}))
    full.said = tmp_path / "said.txt"
    mount = partial(sabotage.small_disk, str(disk), 64 * 2**20, str(rescued))
    fill = partial(at_call, DISK_FULL[when], 2, partial(sabotage.fill, str(disk)))
    code, said = full.start(mount, fill)
    if code == 77:
        pytest.skip("mounting needs user namespaces; the quota above is the same fault")
    assert code == MEND and "Traceback" not in said
    sentence = said.strip().splitlines()[-1]
    assert sentence.startswith("error: ") and "No space left on device" in sentence
    assert "--resume" in sentence
    run = case()
    shutil.copytree(rescued / "run", run.out)
    code, said = run.resume()
    assert code == 0 and ("resumed from" in said or when == "at a line")
    assert_same(run.outcome(), undisturbed)


def test_a_folder_that_becomes_unwritable(case, undisturbed):
    run = case()
    checkpoints, moved = run.out / "checkpoints", run.out / "moved"

    code, said = run.start(partial(at_step, 13, partial(swap_for_a_file, checkpoints, moved)))
    assert code == MEND and "Traceback" not in said and "cannot be written" in said
    checkpoints.unlink()
    moved.rename(checkpoints)
    assert run.resume()[0] == 0
    assert_same(run.outcome(), undisturbed)


def swap_for_a_file(folder: Path, moved: Path) -> None:
    """root may write into any folder, but nobody into a file."""
    folder.rename(moved)
    folder.write_text("in the way")


HARMED = {"disappears": (Path.unlink, "No such file"), "changes": (truncate, "changed since")}
HARMED["is corrupt"] = (lambda path: path.write_bytes(b"x" * path.stat().st_size), "")


@pytest.mark.parametrize("what", HARMED)
def test_a_sample_that(case, colours, tmp_path, what):
    photos = tmp_path / "photos"
    shutil.copytree(colours / "unlabeled", photos)
    victims = sorted(photos.iterdir())[:3]
    run = case(**{"data.unlabeled": photos})
    code, said = run.start(partial(at_step, 4, partial(harm_files, victims, what)))
    assert code == 0, said
    named = (run.out / "unreadable.jsonl").read_text()
    entries = [json.loads(line) for line in named.splitlines()]
    assert {Path(e["location"]).name for e in entries} <= {v.name for v in victims}
    assert entries and all(HARMED[what][1] in e["reason"] for e in entries)
    assert lines(run.out)[-1]["kind"] == "eval" and lines(run.out)[-2]["unreadable"] == len(entries)
    assert said.count("unreadable, left out") == len(entries)


def harm_files(paths: list[Path], what: str) -> None:
    for path in paths:
        HARMED[what][0](path)


@pytest.mark.parametrize("when", ["in a step", "while it hands a batch over"])
def test_a_loader_worker_that_dies(case, undisturbed, when):
    run = case(**WORKER)
    harm = partial(at_step, 9, sabotage.kill_a_worker)
    if when != "in a step":
        harm = partial(sabotage.lose_a_batch, 9)
    code, said = run.start(harm)
    assert code == TRY_AGAIN and "Traceback" not in said
    assert "stopped: a loader process is gone" in said and "--resume" in said
    assert run.resume()[0] == 0
    assert_same(run.outcome(), undisturbed)


def test_a_loader_worker_that_never_begins(case, undisturbed, tmp_path):
    run = case(**WORKER)
    code, said = run.start(partial(sabotage.hang_a_worker, str(tmp_path / "hung")))
    assert code == 0 and said.count("a loader process hangs before it begins") == 1
    assert_same(run.outcome(), undisturbed)


def test_a_loss_that_is_not_finite(case, undisturbed):
    run = case(**WORKER)
    code, said = run.start(partial(sabotage.poison, 13, 5))
    assert code == MEND and "Traceback" not in said
    assert "'divergence' is not finite at step 13 for the samples" in said
    assert run.checkpoints()[-1] == "step-00000012"
    assert run.resume()[0] == 0
    assert_same(run.outcome(), undisturbed)


def test_a_clock_that_goes_backwards(case, undisturbed):
    run = case()
    assert run.start(sabotage.clock_goes_backwards, sabotage.draw)[0] == 0
    assert_same(run.outcome(), undisturbed)
    raw = map(json.loads, (run.out / "metrics.jsonl").read_text().splitlines())
    assert all(x["seconds"] > 0 and x["images_per_second"] > 0 for x in raw if x["kind"] == "train")
