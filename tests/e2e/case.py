"""One run in a process of its own: its command, its folder, and what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sabotage
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssld.engine.progress import depends_on_the_clock

STEPS = 24
TRY_AGAIN, MEND = 75, 2


class Case:
    """One run: its command, its folder, and what came of it."""

    def __init__(
        self,
        colours: Path,
        teacher_file: Path,
        folder: Path,
        command: str = "distill",
        **changes: Any,
    ) -> None:
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
            "data.workers": 0,  # a worker doubles what a run costs, and changes no result
            **changes,
        }
        words = [f"--{key}={value}" for key, value in settings.items() if value is not None]
        self.command = [command, *words]

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
        buffers = {f"{i}.{k}": v for i, state in optimizer.items() for k, v in state.items()}
        return {
            "export": load_file(self.out / "student/model.safetensors"),
            "student": load_file(last / "student.safetensors"),
            "ema": load_file(last / "ema.safetensors"),
            "optimizer": buffers,
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
        if part not in ("export", "student", "ema", "optimizer"):
            assert a[part] == b[part], part
            continue
        assert a[part].keys() == b[part].keys()
        different = [name for name in a[part] if not torch.equal(a[part][name], b[part][name])]
        assert not different, f"{part}: {different[:3]}"
