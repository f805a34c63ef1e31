"""A step from stored labels against a supervised one, and a build against the teacher alone.

    OMP_NUM_THREADS=1 python benchmarks/stored_labels.py

On JPEGs of 341 x 256 px that are read in the process, with random weights. CPU seconds (a GPU's
clock where there is one) of steps that alternate, loading included, and medians of rounds. Of the
build what a further view costs (start, hashing and index left out), less what the view itself
takes, is set against a plain forward pass of the teacher.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import torch
from many_students import photographs
from measure import machine, parser, seconds, show, untrained_teacher

from ssld.data.config import AugmentConfig, DataConfig
from ssld.data.loading import ViewBatches
from ssld.data.transforms import TrainView
from ssld.distill.build_labels import build_labels
from ssld.distill.config import BuildLabelsConfig, DistillConfig
from ssld.distill.setup import open_data
from ssld.models.config import StudentConfig, TeacherConfig
from ssld.models.teacher import open_teacher
from ssld.plan.measure import HardLabels, open_bench, quietly

IMAGES = 64
"""That `photographs` makes."""


def arguments() -> argparse.Namespace:
    words = parser(__doc__)
    words.add_argument("--teacher", default="resnet18")
    words.add_argument("--student", default="resnet10t")
    words.add_argument("--batch", type=int, default=32)
    words.add_argument("--size", type=int, default=96)
    words.add_argument("--views", type=int, default=4, help="of each image, of the smaller build")
    words.add_argument("--steps", type=int, default=4, help="steps of one timed round")
    words.add_argument("--rounds", type=int, default=5)
    return words.parse_args()


def settings(given: argparse.Namespace, folder: Path) -> DistillConfig:
    return DistillConfig(
        out=str(folder / "run"),
        steps=10**6,
        batch_size=given.batch,
        trackers=[],
        student=StudentConfig(arch=given.student),
        teacher=untrained_teacher(given.teacher, given.size, folder),
        data=DataConfig(unlabeled=str(folder / "images"), workers=0, holdout=0),
        augment=AugmentConfig(size=given.size),
    )


def build(config: DistillConfig, views: int, out: Path) -> float:
    """Seconds of it."""
    own = {x.name: getattr(config, x.name) for x in fields(config)}
    asked = BuildLabelsConfig(**{**own, "out": str(out)}, views=views)
    with contextlib.redirect_stdout(io.StringIO()):
        return seconds(lambda: build_labels(asked))


def building(config: DistillConfig, given: argparse.Namespace, folder: Path) -> list[str]:
    """The row of the build: rates in views per second."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = open_data(quietly(config, str(folder / "unused"))).unlabeled[0]
    teacher = open_teacher([config.teacher], "fp32")[0].to(device)  # type: ignore[list-item]
    maker = ViewBatches([source], TrainView(config.augment, given.size, 0))
    rows = torch.tensor([[0, i, 0, 0] for i in range(IMAGES)]).numpy()
    more, rounds = given.views * IMAGES, []

    def decode() -> None:
        for _ in range(given.views):
            for part in range(0, IMAGES, given.batch):
                maker(rows[part : part + given.batch])

    images = maker(rows[: given.batch]).images.to(device)

    def teach() -> None:
        for _ in range(more // given.batch):
            teacher(images)

    teach()
    for i in range(given.rounds):
        few = build(config, given.views, folder / f"few-{i}")
        many = build(config, 2 * given.views, folder / f"many-{i}")
        times = (seconds(teach), many - few - seconds(decode))
        rounds.append((*(more / x for x in times), times[0] / times[1]))
    rates = [statistics.median(x) for x in zip(*rounds, strict=True)]
    return ["teacher alone", f"{rates[0]:.1f}", "build", f"{rates[1]:.1f}", f"{rates[2]:.2f}"]


def training(config: DistillConfig, given: argparse.Namespace, folder: Path) -> list[str]:
    """The row of the steps: rates in images per second."""
    stored = replace(config, labels=str(folder / "few-0"), teacher=TeacherConfig())
    data = open_data(quietly(stored, str(folder / "run")))
    bench, _ = open_bench(stored, data)
    labels = HardLabels(bench.num_classes)
    endless = 10**9
    steps = [
        bench.step(labels, labels.train_batches(bench.run, 0, endless)),
        bench.step(bench.distillation, bench.distillation.train_batches(bench.run, 0, endless)),
    ]
    rounds = []
    for number in range(given.rounds + 1):
        times = [seconds(lambda step=step: [step() for _ in range(given.steps)]) for step in steps]
        if number:  # the first one warms up
            rounds.append((*(given.steps * given.batch / x for x in times), times[0] / times[1]))
    rates = [statistics.median(x) for x in zip(*rounds, strict=True)]
    return [
        "supervised step", f"{rates[0]:.1f}", "step from stored labels", f"{rates[1]:.1f}",
        f"{rates[2]:.2f}",
    ]  # fmt: skip


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder / "images")
        with contextlib.redirect_stdout(io.StringIO()):
            config = settings(given, folder)
            rows = [building(config, given, folder), training(config, given, folder)]
    cuda = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if cuda else machine(1)
    print(f"{given.student} under {given.teacher}, batch {given.batch}, {given.size} px; {where}; "
          f"torch {torch.__version__}; {given.rounds} rounds")  # fmt: skip
    show(["against", "img/s", "what", "img/s", "what : against"], rows)


if __name__ == "__main__":
    main()
