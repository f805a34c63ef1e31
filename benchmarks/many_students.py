"""Three students in one run against a run for each, under a large and a smaller teacher.

    python benchmarks/many_students.py                                      # CPU, small
    python benchmarks/many_students.py --teachers resnext101_32x16d --batch 256 --size 224 \\
        --students resnet50d resnet34d resnet18d --precision bf16           # GPU

In one process, from JPEGs that are read in it, alternating: (a) a step of each single run, with its
own batch and its own pass of the teacher; (b) a step of the run of all; (c) the teacher's pass
alone; (d) the reading of a batch alone. Log lines are in (a) and (b). Reported, medians of rounds:
seconds of all four, the teacher's share of (a), (b) : (a), images that (a) and (b) read a second.
Without a GPU a second is one of CPU time, into which other processes do not enter. Weights are
random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measure import machine, parser, seconds, show, untrained_teacher
from PIL import Image

from ssld.data.config import AugmentConfig, DataConfig
from ssld.data.labels import table_of
from ssld.data.loading import ViewBatches, train_batches
from ssld.data.sampling import Sampler
from ssld.data.transforms import TrainView
from ssld.distill.config import ClassifierCheckpointConfig, DistillConfig
from ssld.distill.distill import distillation, named
from ssld.distill.many import open_members, start_members
from ssld.distill.setup import Data, describe, open_data
from ssld.distill.students import students_of
from ssld.engine.loop import open_training, steps
from ssld.engine.preemption import Preemption
from ssld.engine.together import SharedBatches
from ssld.models.shared_teacher import SharedTeacher
from ssld.models.teacher import Teacher, open_teacher

STUDENTS = ("mobilenetv3_small_100", "mobilenetv3_small_050", "lcnet_100")
WITHOUT_END = 10**6


def arguments() -> argparse.Namespace:
    words = parser(__doc__)
    words.add_argument("--teachers", nargs="+", default=["resnet50", "resnet18"])
    words.add_argument("--students", nargs="+", default=STUDENTS)
    words.add_argument("--batch", type=int, default=32)
    words.add_argument("--size", type=int, default=96)
    words.add_argument("--precision", default="fp32")
    words.add_argument("--steps", type=int, default=4, help="steps of one timed round")
    words.add_argument("--rounds", type=int, default=5)
    return words.parse_args()


def settings(teacher: str, given: argparse.Namespace, folder: Path) -> DistillConfig:
    return DistillConfig(
        out="",
        steps=WITHOUT_END,
        batch_size=given.batch,
        precision=given.precision,
        trackers=[],
        students=[{"name": name, "student": {"arch": name}} for name in given.students],
        teacher=untrained_teacher(teacher, given.size, folder),
        data=DataConfig(unlabeled=str(folder / "images"), workers=0, holdout=0),
        augment=AugmentConfig(size=given.size),
        checkpoint=ClassifierCheckpointConfig(every_steps=WITHOUT_END, every_minutes=1e6),
    )


def photographs(folder: Path) -> None:
    """JPEGs of 341 x 256 px with something on them."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(64):
        coarse = Image.fromarray(draw.integers(0, 256, (16, 22, 3), dtype=np.uint8))
        coarse.resize((341, 256), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)


def opened(
    config: DistillConfig, data: Data, teacher: Teacher, *, shared: bool
) -> list[Iterator[None]]:
    """The steps of each student: of runs of their own, or of the one run of all."""
    members = open_members(data, students_of(config), lambda _: table_of("the teacher", teacher))
    facts = {**describe(data.accelerator, named(teacher)), "teacher_sha256": ""}
    runs = start_members(members, facts, teacher=teacher)
    asked = SharedTeacher(teacher, kept=1, with_features=False) if shared else teacher
    trainings = [
        open_training(run, distillation(one.config, asked, one.student), one.student)
        for run, one in zip(runs, members, strict=True)
    ]
    streams = [x.task.train_batches(x.run, 0, WITHOUT_END) for x, _ in trainings]
    if shared:
        device = data.accelerator.device
        batches = SharedBatches(streams[0], 0, kept=1, device=device)
        streams = [batches.since(0) for _ in trainings]
    return [steps(*x, y, Preemption()) for x, y in zip(trainings, streams, strict=True)]


def works(config: DistillConfig, folder: Path) -> list[Callable[[], object]]:
    """(a), (b), (c) and (d)."""
    data = open_data(replace(config, out=str(folder)))
    teacher, _ = open_teacher(config.taught_by, config.precision)
    alone, together = (
        opened(replace(config, out=str(folder / name)), data, teacher, shared=shared)
        for name, shared in (("alone", False), ("together", True))
    )
    view = TrainView(config.augment, config.augment.size or 0, config.seed)
    order = Sampler([len(source) for source in data.trained], None, config.seed)
    reading = train_batches(
        ViewBatches(data.trained, view),
        order,
        batch_size=config.batch_size,
        first_step=0,
        last_step=WITHOUT_END,
    )
    images = next(reading).images.to(data.accelerator.device)
    return [
        lambda: [next(x) for x in alone],
        lambda: [next(x) for x in together],
        lambda: teacher(images),
        lambda: next(reading),
    ]


def row(name: str, given: argparse.Namespace) -> list[str]:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        photographs(Path(folder) / "images")
        with contextlib.redirect_stdout(io.StringIO()):
            kinds = works(settings(name, given, Path(folder)), Path(folder))
            for _ in range(2):
                for work in kinds:
                    work()
        rounds = []
        for _ in range(given.rounds):
            times = [0.0 for _ in kinds]
            for _ in range(given.steps):
                times = [t + seconds(x) / given.steps for t, x in zip(times, kinds, strict=True)]
            rounds.append(times)
    alone, together, teacher, reading = (statistics.median(x) for x in zip(*rounds, strict=True))
    ratio = statistics.median(b / a for a, b, *_ in rounds)
    share = statistics.median(len(given.students) * c / a for a, _, c, _ in rounds)
    read = [given.batch * n / t for n, t in ((len(given.students), alone), (1, together))]
    return [
        name,
        f"{share:.0%}",
        *(f"{x:.3f}" for x in (alone, together, teacher, reading)),
        f"**{ratio:.2f}**",
        *(f"{x:.0f}" for x in read),
    ]


def main() -> None:
    given = arguments()
    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if cuda else machine(1)
    what = f"batch {given.batch}, {given.size} px, {given.precision}"
    print(f"{', '.join(given.students)}; {what}; {where}; torch {torch.__version__}")
    head = ["teacher", "its share of single steps", "a step of each run, s", "of one run, s",
            "teacher alone, s", "reading alone, s", "one run : each",
            "images read a second by each", "by one"]  # fmt: skip
    show(head, (row(name, given) for name in given.teachers))


if __name__ == "__main__":
    main()
