"""What happens to long runs, done to short ones in processes of their own (docs/reliability.md).

Each fault must lose nothing but the steps since the last checkpoint and say what happened; going on
with --resume must end in the very run that nothing happened to, bit by bit.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sabotage
import torch
from sabotage import at_call, at_step, sigkill
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssld.run.progress import depends_on_the_clock

STEPS = 24
TRY_AGAIN, MEND = 75, 2


class Case:
    """One run: its command, its folder, and what came of it."""

    def __init__(self, colours: Path, teacher_file: Path, folder: Path, **changes: Any) -> None:
        self.out, self.said = folder / "run", folder / "said.txt"
        settings = {
            "out": self.out,
            "steps": STEPS,
            "batch_size": 8,
            "log_every_steps": 2,
            "evaluate_every_epochs": 0.5,  # 6 steps
            "probe.every_epochs": 1,
            "checkpoint.every_steps": 4,
            "ema.decay": 0.9,
            "schedule.lr": 1.0,
            "student.arch": "test_resnet",
            "augment.size": 32,
            "teacher.checkpoint": teacher_file,
            "teacher.verify": "false",
            "data.labeled": colours / "train",
            "data.unlabeled": colours / "unlabeled",
            "data.val": colours / "val",
            "data.workers": 1,
            **changes,
        }
        self.command = ["distill", *(f"--{key}={value}" for key, value in settings.items())]

    def start(self, *harm: sabotage.Harm) -> tuple[int, str]:
        self.said.unlink(missing_ok=True)
        return sabotage.run(self.command, self.said, harm)

    def resume(self, *harm: sabotage.Harm, **changes: Any) -> tuple[int, str]:
        words = [f"--{key}={value}" for key, value in changes.items()]
        self.said.unlink(missing_ok=True)
        return sabotage.run([*self.command, "--resume", *words], self.said, harm)

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.out / "checkpoints").iterdir())

    def outcome(self) -> dict[str, Any]:
        """All that must not depend on what happened: final tensors, every line, every point."""
        last = self.out / "checkpoints" / f"step-{STEPS:08d}"
        optimizer = torch.load(last / "optimizer.pt", weights_only=True)["state"]
        return {
            "export": load_file(self.out / "student/model.safetensors"),
            "student": load_file(last / "student.safetensors"),
            "ema": load_file(last / "ema.safetensors"),
            "momentum": {str(i): state["momentum_buffer"] for i, state in optimizer.items()},
            "state": json.loads((last / "state.json").read_text()),
            "exported": json.loads((self.out / "run.json").read_text())["exported"],
            "lines": lines(self.out),
            "points": points(self.out / "tensorboard"),
        }


def lines(out: Path) -> list[dict[str, Any]]:
    found = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in x.items() if not depends_on_the_clock(k)} for x in found]


def points(folder: Path) -> list[tuple[str, int, float]]:
    """All scalars that a TensorBoard would show, twice where they were written twice."""
    found = []
    for file in folder.rglob("events.*"):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if not depends_on_the_clock(tag.rpartition("/")[2]):
                found += [(tag, x.step, x.value) for x in events.Scalars(tag)]
    return sorted(found)


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Bit by bit."""
    assert a.keys() == b.keys()
    for part in a:
        if part not in ("export", "student", "ema", "momentum"):
            assert a[part] == b[part], part
            continue
        assert a[part].keys() == b[part].keys()
        different = [name for name in a[part] if not torch.equal(a[part][name], b[part][name])]
        assert not different, f"{part}: {different[:3]}"


@pytest.fixture(scope="module")
def case(colours, teacher_file, tmp_path_factory):
    def make(**changes: Any) -> Case:
        return Case(colours, teacher_file, tmp_path_factory.mktemp("case"), **changes)

    return make


@pytest.fixture(scope="module")
def undisturbed(case) -> dict[str, Any]:
    """The run that nothing happens to."""
    run = case()
    code, said = run.start()
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


def test_sigkill_at_20_random_steps(case, undisturbed):
    run, steps = case(), sorted(random.Random(0).choices(range(STEPS), k=20))
    for number, step in enumerate(steps):
        harm = partial(at_step, step, sigkill)
        code, said = run.resume(harm) if number else run.start(harm)
        assert code == -signal.SIGKILL, said
    assert run.resume()[0] == 0
    assert_same(run.outcome(), undisturbed)


INSTANTS = {
    # name: (function, at which call, after it)
    "before the first step": ("ssld.run.folder:RunFolder.open", 1, True),
    "between gradients and step": ("torch.optim.optimizer:Optimizer.zero_grad", 9, False),
    "before a line": ("ssld.run.folder:RunFolder.log", 6, False),
    "after a line": ("ssld.run.folder:RunFolder.log", 6, True),
    "in an evaluation": ("ssld.tally:Tally.add", 5, True),
    "in a probe": ("ssld.probe:scores", 1, False),
    "between evaluation and checkpoint": ("ssld.run.loop:Trainer.save", 2, False),
    "checkpoint: a network written": ("ssld.run.checkpoint:save_file", 5, True),
    "checkpoint: in the manifest": ("ssld.run.checkpoint:_sha256", 7, False),
    "checkpoint: before the sync": ("ssld.run.checkpoint:_sync", 8, False),
    "checkpoint: before the old ones go": ("ssld.run.checkpoint:_all", 3, False),
    "export: weights written": ("ssld.run.export:save_file", 2, True),
    "export: before it is put in place": ("ssld.run.export:replace_folder", 2, False),
    "before the last report": ("ssld.run.judgement:write_report", 1, False),
    "after the last report": ("ssld.run.judgement:write_report", 1, True),
}


@pytest.mark.parametrize("instant", INSTANTS)
def test_sigkill_at(case, undisturbed, instant):
    target, call, after = INSTANTS[instant]
    run = case()
    code, said = run.start(partial(at_call, target, call, sigkill, after))
    assert code == -signal.SIGKILL, said
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
    run = case()
    code, said = run.start(partial(at_step, 10, partial(sabotage.signal_group, number)))
    assert code == TRY_AGAIN and "Traceback" not in said
    assert f"stopped: {number.name}: the checkpoint of step 12 is written; go on with" in said
    assert run.checkpoints()[-1] == "step-00000012"
    code, said = run.resume()
    assert code == 0 and "at step 12" in said
    assert_same(run.outcome(), undisturbed)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(case, undisturbed, damage):
    run = case()
    assert run.start(partial(at_step, 15, sigkill))[0] == -signal.SIGKILL
    names = run.checkpoints()
    damage(run.out / "checkpoints" / names[-1] / "optimizer.pt")
    code, said = run.resume()
    assert code == 0 and f"{names[-1]} is damaged" in said
    assert f"at step {int(names[-2][-8:])}" in said
    assert_same(run.outcome(), undisturbed)


def test_a_quota_stops_the_run_and_leaves_the_last_checkpoint(case, undisturbed):
    run = case()
    quota = partial(at_call, "ssld.run.loop:Trainer.save", 3, partial(sabotage.quota, 500_000))
    code, said = run.start(quota)
    assert code == MEND and "Traceback" not in said
    assert "cannot be written" in said and "the last good one is step-" in said
    assert run.resume()[0] == 0
    assert_same(run.outcome(), undisturbed)


DISK_FULL = {
    "in a checkpoint": "ssld.run.loop:Trainer.save",
    "at a line": "ssld.run.folder:RunFolder.log",
    "in an export": "ssld.run.judgement:export",
    "in the last report": "ssld.run.judgement:write_report",
}


@pytest.mark.parametrize("when", DISK_FULL)
def test_a_full_disk(case, undisturbed, colours, teacher_file, tmp_path, when):
    disk, rescued = tmp_path / "disk", tmp_path / "rescued"
    full = Case(colours, teacher_file, disk)
    full.said = tmp_path / "said.txt"
    mount = partial(sabotage.small_disk, str(disk), 64 * 2**20, str(rescued))
    call = 1 if when == "in the last report" else 2
    fill = partial(at_call, DISK_FULL[when], call, partial(sabotage.fill, str(disk)))
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
    run = case(**{"data.unlabeled": photos, "data.workers": 0})
    code, said = run.start(partial(at_step, 4, partial(harm_files, victims, what)))
    assert code == 0, said
    named = (run.out / "unreadable.jsonl").read_text()
    assert all(victim.name in json.loads(f'"{victim.name}"') for victim in victims)
    entries = [json.loads(line) for line in named.splitlines()]
    assert {Path(e["location"]).name for e in entries} <= {v.name for v in victims}
    assert entries and all(HARMED[what][1] in e["reason"] for e in entries)
    assert lines(run.out)[-1]["kind"] == "eval" and lines(run.out)[-2]["unreadable"] == len(entries)
    assert said.count("unreadable, left out") == len(entries)


def harm_files(paths: list[Path], what: str) -> None:
    for path in paths:
        HARMED[what][0](path)


def test_a_loader_worker_that_dies(case, undisturbed):
    run = case()
    code, said = run.start(partial(at_step, 9, sabotage.kill_a_worker))
    assert code == TRY_AGAIN and "Traceback" not in said
    assert "stopped: a loader process is gone" in said and "--resume" in said
    assert run.resume()[0] == 0
    assert_same(run.outcome(), undisturbed)


def test_a_loss_that_is_not_finite(case, undisturbed):
    run = case()
    code, said = run.start(partial(sabotage.poison, 13, 5))
    assert code == MEND and "Traceback" not in said
    assert "'divergence' is not finite at step 13 for the samples" in said
    assert run.checkpoints()[-1] == "step-00000012"
    assert run.resume()[0] == 0
    assert_same(run.outcome(), undisturbed)


def test_a_clock_that_goes_backwards(case, undisturbed):
    run = case()
    assert run.start(sabotage.clock_goes_backwards)[0] == 0
    assert_same(run.outcome(), undisturbed)
    raw = map(json.loads, (run.out / "metrics.jsonl").read_text().splitlines())
    assert all(x["seconds"] > 0 and x["images_per_second"] > 0 for x in raw if x["kind"] == "train")


def both(run: Case, *words: str, harm=((), ())) -> list[sabotage.Started]:
    started = sabotage.ranks([*run.command, *words], run.said, harm)
    for process in started:
        process.end()
    return started


@pytest.fixture(scope="module")
def undisturbed_pair(case) -> dict[str, Any]:
    run = case()
    started = both(run)
    assert [p.process.exitcode for p in started] == [0, 0], started[0].words + started[1].words
    return run.outcome()


def test_sigkill_of_both_processes(case, undisturbed_pair):
    run = case()
    for number, step in enumerate((3, 7, 13, 14, 21)):
        harm = [[partial(at_step, step, sigkill)]] * 2
        for process in both(run, *(["--resume"] if number else []), harm=harm):
            assert process.process.exitcode in (-signal.SIGKILL, TRY_AGAIN)
    assert [p.process.exitcode for p in both(run, "--resume")] == [0, 0]
    assert_same(run.outcome(), undisturbed_pair)


@pytest.mark.parametrize("killed", [0, 1])
def test_one_of_two_processes_is_killed(case, undisturbed_pair, killed):
    run, start = case(), time.monotonic()
    harm: list[list[sabotage.Harm]] = [[], []]
    harm[killed] = [partial(at_step, 14, sigkill)]
    started = both(run, harm=harm)
    assert time.monotonic() - start < 60
    other = started[1 - killed]
    assert other.process.exitcode == TRY_AGAIN, other.words
    assert "another process of this run is gone" in other.words and "--resume" in other.words
    assert [p.process.exitcode for p in both(run, "--resume")] == [0, 0]
    assert_same(run.outcome(), undisturbed_pair)


def test_a_signal_to_one_of_two_processes(case, undisturbed_pair):
    run = case()
    harm = [[], [partial(at_step, 9, partial(sabotage.signal_group, signal.SIGTERM))]]
    started = both(run, harm=harm)
    assert [p.process.exitcode for p in started] == [TRY_AGAIN, TRY_AGAIN]
    assert "the checkpoint of step 10 is written" in started[0].words
    assert [p.process.exitcode for p in both(run, "--resume")] == [0, 0]
    assert_same(run.outcome(), undisturbed_pair)


def samples(files: list[Path]) -> dict[int, list[str]]:
    """Step -> sample ids in their global order: processes take interleaved positions."""
    parts = [dict(map(json.loads, file.read_text().splitlines())) for file in files]
    return {
        step: [name for row in zip(*(p[step] for p in parts), strict=True) for name in row]
        for step in parts[0]
    }


def test_another_number_of_processes_takes_the_same_samples(case, tmp_path):
    whole, changed = case(), case()
    names = [tmp_path / name for name in ("whole", "one", "two.0", "two.1")]
    notes = [partial(sabotage.note_samples, str(name)) for name in names]
    assert whole.start(notes[0])[0] == 0
    assert changed.start(notes[1], partial(at_step, 12, sigkill))[0] == -signal.SIGKILL
    both(changed, "--resume", harm=[[notes[2]], [notes[3]]])
    expected, first, second = samples(names[:1]), samples(names[1:2]), samples(names[2:])
    assert list(second) == list(range(12, STEPS))
    assert {step: expected[step] for step in first} == first
    assert {step: expected[step] for step in second} == second
    losses = [
        [x["loss"] for x in lines(run.out) if x["kind"] == "train"] for run in (whole, changed)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
