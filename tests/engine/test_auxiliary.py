"""What trains besides the student, a projection and a moving average, comes back bit for bit, and
is the same on all processes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sabotage
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssld.data.loading import Batch
from ssld.engine import loop, start
from ssld.engine.config import CheckpointConfig, EmaConfig, LoopConfig, OptimizerConfig
from ssld.engine.processes import open_accelerator
from ssld.engine.task import Task
from ssld.engine.trainer import Trainer
from ssld.models.classifier import ImageModel

STEPS, SIZE = 12, 4


class Killed(Exception):
    pass


class MovingAverage(nn.Module):
    """Of a loss, which it divides."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, loss: Tensor) -> Tensor:
        self.mean.lerp_(loss.detach().mean(), 0.1)
        return loss / self.mean


class Student(ImageModel):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 2), mean=[0.0] * 3, std=[1.0] * 3, label_names=None)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.float().mean((1, 2)) / 255)


class Distance:
    """The mean loss; the larger, the worse."""

    def __init__(self, total: Tensor) -> None:
        self.total = total

    def reduce(self, accelerator: Accelerator, cut_short: bool) -> bool:
        return not cut_short

    def metrics(self) -> dict[str, float]:
        return {"divergence": float(self.total)}


class FeatureLoss(Task[start.Run, Batch, Student, Distance]):
    """The student's two features, projected, are the mean colour of the image."""

    exported = "student"

    def __init__(self) -> None:
        self.projection, self.average = nn.Linear(2, 3), MovingAverage()

    @property
    def auxiliary(self) -> Mapping[str, nn.Module]:
        return {"projection": self.projection, "average": self.average}

    def train_batches(self, run: start.Run, first_step: int, last_step: int) -> Iterator[Batch]:
        steps = range(first_step, last_step)
        return (batch(step * run.world_size + run.rank) for step in steps)

    def held_out(self, run: start.Run) -> Iterator[Batch]:
        return iter([batch(-1)])

    def losses(self, student: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        distance = (self.projection(student(batch.images)) - colour(batch)).square().sum(1)
        return {"feature": self.average(distance)}

    def evaluate(self, student: Student, batches: Iterable[Batch]) -> Distance:
        projection = student.get_submodule("auxiliary").get_submodule("projection")
        (held,) = batches
        return Distance((projection(student(held.images)) - colour(held)).square().mean())

    def monitor(self, run: start.Run) -> str:
        return "divergence"

    def noted(self, network: Student, metrics: Mapping[str, Any], metric: str) -> dict[str, Any]:
        return {"metric": metric, "value": metrics[metric], "symptoms": []}

    def verdict(self, run: Any, network: Any, metrics: Any, **_: Any) -> str:
        return ""

    def export(self, network: Student, folder: Path, step: int) -> str:
        folder.mkdir(exist_ok=True)
        save_file(network.model.state_dict(), folder / "model.safetensors")
        return ""

    def write_report(self, run: Any, network: Any, score: Any) -> None:
        pass


def colour(batch: Batch) -> Tensor:
    return batch.images.float().mean((1, 2)).flip(1) / 255


def batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step % 1000)
    images = torch.randint(0, 256, (8, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.ones(8), torch.full((8,), -1), [str(i) for i in range(8)], [])


class Images:
    path = "made up"
    account = None

    def __len__(self) -> int:
        return 8 * STEPS

    def sample_id(self, i: int) -> str:
        return str(i)

    def size(self, i: int) -> int | None:
        return None


def train(folder: Path, ema: float) -> FeatureLoss:
    """Go on with the run in a folder, or begin it."""
    config = LoopConfig(
        out=str(folder),
        steps=STEPS,
        batch_size=8,
        log_every_steps=1,
        evaluate_every_epochs=1 / 4,
        trackers=[],
        resume=True,
        ema=EmaConfig(decay=ema),
        optimizer=OptimizerConfig(name="adamw"),
        checkpoint=CheckpointConfig(every_steps=3),
    )
    torch.manual_seed(0)
    task, student = FeatureLoss(), Student()
    images, facts = [Images()], {"flops_per_image": 1.0, "teacher_sha256": None}
    sampler = SimpleNamespace(samples_per_epoch=8 * STEPS)
    run = start.start(config, open_accelerator(config), images, images, sampler, facts)  # type: ignore[arg-type]
    loop.train(run, task, student)
    return task


def rank(folder: Path, number: int, port: int, kill: int) -> None:
    """One of two processes, which ends before step `kill`, or leaves what it has at the end."""
    here = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    here |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    os.environ.update({key: str(value) for key, value in here.items()})
    sabotage.at_step(kill, lambda: os._exit(0))
    task = train(folder, 0.9)
    torch.save(nn.ModuleDict(task.auxiliary).state_dict(), folder / f"{number}.pt")


def of_two(folder: Path, *kills: int) -> list[dict[str, Tensor]]:
    """What trained besides the student, by process."""
    for kill in (*kills, STEPS):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for process in [sabotage.forked(rank, folder, i, port, kill) for i in (0, 1)]:
            process.join(sabotage.SECONDS)
            assert process.exitcode == 0
    return [torch.load(folder / f"{i}.pt", weights_only=True) for i in (0, 1)]


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Callable[..., dict[str, Any]]:
    """Trains, killed before the given steps, and returns all that is left of it."""
    step = Trainer.train_step

    def trained(name: str, ema: float, *kills: int) -> dict[str, Any]:
        for at in (*kills, STEPS):

            def killed(trainer: Trainer, *arguments: Any, at: int = at) -> None:
                if trainer.step == at:
                    trainer.run.folder.unlock()
                    raise Killed
                step(trainer, *arguments)

            monkeypatch.setattr(Trainer, "train_step", killed)
            with pytest.raises(Killed) if at < STEPS else contextlib.nullcontext():
                train(tmp_path / name, ema)
        folder = tmp_path / name
        last = folder / f"checkpoints/step-{STEPS:08d}"
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        kept = ("kind", "step", "loss", "feature", "lr", "divergence")
        return {
            "lines": [{key: line.get(key) for key in kept} for line in lines],
            "optimizer": torch.load(last / "optimizer.pt", weights_only=True),
            "exported": load_file(folder / "student/model.safetensors"),
            **{path.stem: load_file(path) for path in last.glob("*.safetensors")},
        }

    return trained


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_killed_and_resumed_is_uninterrupted(trained, ema):
    whole, resumed = trained("whole", ema), trained("resumed", ema, 2, 5, 10)
    assert whole["lines"] == resumed["lines"]
    assert str(whole["optimizer"]) == str(resumed["optimizer"])
    names = {"student", "auxiliary", *(("ema", "ema_auxiliary") if ema else ())}
    assert whole.keys() == resumed.keys() == {*names, "lines", "optimizer", "exported"}
    for name in (*names, "exported"):
        for key, tensor in whole[name].items():
            assert torch.equal(tensor, resumed[name][key]), (name, key)
    fresh = FeatureLoss()
    assert whole["auxiliary"].keys() == nn.ModuleDict(fresh.auxiliary).state_dict().keys()
    assert whole["auxiliary"]["average.mean"] != fresh.average.mean
    assert whole["exported"].keys() == {"weight", "bias"}  # nothing of it is exported
    distances = [line["divergence"] for line in whole["lines"] if line["kind"] == "eval"]
    assert len(distances) == 4 and distances[-1] < distances[0]


def test_two_processes_have_the_same_and_go_on_with_it(tmp_path):
    whole, resumed = of_two(tmp_path / "whole"), of_two(tmp_path / "resumed", 5)
    fresh = nn.ModuleDict(FeatureLoss().auxiliary).state_dict()
    for key, tensor in whole[0].items():
        assert torch.equal(tensor, whole[1][key]), key
        assert all(torch.equal(tensor, x[key]) for x in resumed), key
        assert not torch.equal(tensor, fresh[key]), key
