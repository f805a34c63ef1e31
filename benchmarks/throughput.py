"""What the loop costs on top of the networks, and how close a run comes to the hardware's ceiling.

    python benchmarks/throughput.py                                        # CPU, small networks
    python benchmarks/throughput.py --teacher resnext101_32x16d --student resnet50d \\
        --batch 256 --size 224 --precision bf16 --channels_last --compile  # GPU

In one process, on the same in-memory uint8 images, alternating: (a) ssld's own step
(`ssld.engine.trainer.Trainer.train_step`, with its log line every 10 steps), (b) a bare
hand-written loop of the same two networks, (c) the teacher's forward pass alone, (d) the student's
step alone.
Reported: a / b (the loop's overhead), a / (1 / (1/c + 1/d)) (share of the ceiling), peak memory.
Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from measure import machine, parser, show, untrained_teacher
from PIL import Image
from torch.nn import functional as F

from ssld.data.config import AugmentConfig, DataConfig
from ssld.data.loading import Batch
from ssld.distill.config import DistillConfig, LossConfig
from ssld.distill.distill import distillation, open_networks
from ssld.distill.setup import open_data, start_run
from ssld.engine.progress import Progress
from ssld.engine.trainer import Trainer
from ssld.models.classifier import Classifier
from ssld.models.config import StudentConfig
from ssld.models.opening import open_network
from ssld.models.teacher import autocast
from ssld.plan.measure import peak_mib


def arguments() -> argparse.Namespace:
    words = parser(__doc__)
    words.add_argument("--teacher", default="resnet18")
    words.add_argument("--student", default="mobilenetv3_small_100")
    words.add_argument("--batch", type=int, default=32)
    words.add_argument("--size", type=int, default=96)
    words.add_argument("--steps", type=int, default=20, help="steps of one timed round")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--precision", default="fp32")
    words.add_argument("--channels_last", action="store_true")
    words.add_argument("--compile", action="store_true")
    return words.parse_args()


def in_memory(given: argparse.Namespace, device: torch.device) -> Iterator[Batch]:
    """The same few batches for ever, on the device."""
    generator = torch.Generator().manual_seed(0)
    shape = (given.batch, given.size, given.size, 3)
    batches = [
        Batch(
            images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device),
            weight=torch.ones(given.batch, device=device),
            labels=torch.full((given.batch,), -1, device=device),
            ids=[str(i) for i in range(given.batch)],
            unreadable=[],
        )
        for _ in range(2)
    ]
    return itertools.cycle(batches)


def our_step(given: argparse.Namespace, folder: Path) -> tuple[Callable[[], None], Trainer]:
    """ssld's step, set up as the command sets it up."""
    (folder / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (given.size, given.size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / "noise.png")
    config = DistillConfig(
        out=str(folder / "run"),
        steps=10**6,
        batch_size=given.batch,
        precision=given.precision,
        channels_last=given.channels_last,
        compile=given.compile,
        trackers=[],
        student=StudentConfig(arch=given.student),
        teacher=untrained_teacher(given.teacher, given.size, folder),
        data=DataConfig(unlabeled=str(folder / "images"), workers=0),
        augment=AugmentConfig(size=given.size),
        loss=LossConfig(),
    )
    data = open_data(config)
    student, teacher, facts = open_networks(data, config)
    run = start_run(data, student, facts, teacher=teacher)
    trainer = Trainer(run, distillation(config, teacher, student), student)
    progress = Progress(run, trainer.clock, 0, trainer.unreadables)
    batches = in_memory(given, run.accelerator.device)
    progress.__enter__()

    def step() -> None:
        trainer.train_step(batches, progress)
        if trainer.step % config.log_every_steps == 0:
            progress.log(trainer.step, trainer.lr(), False)

    return step, trainer


def bare_steps(
    given: argparse.Namespace, device: torch.device
) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """What one would write by hand: both networks, the teacher alone, the student alone."""
    teacher, student = (_network(name, given, device) for name in (given.teacher, given.student))
    teacher.eval().requires_grad_(False)
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), 0.01, momentum=0.9, weight_decay=4e-5)
    batches = in_memory(given, device)
    low = autocast(device, given.precision) if given.precision != "fp32" else None
    context = low or contextlib.nullcontext()
    constant = torch.log_softmax(torch.randn(given.batch, student.num_classes, device=device), -1)

    def teach(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), context:
            return F.log_softmax(teacher(images).float(), -1)

    def learn(images: torch.Tensor, targets: torch.Tensor) -> None:
        with context:
            logits = student(images)
        predicted = F.log_softmax(logits.float(), -1)
        F.kl_div(predicted, targets, reduction="batchmean", log_target=True).backward()
        optimizer.step()
        optimizer.zero_grad()

    def both() -> None:
        images = next(batches).images
        learn(images, teach(images))

    def teacher_alone() -> None:
        teach(next(batches).images)

    def student_alone() -> None:
        learn(next(batches).images, constant)

    return both, teacher_alone, student_alone


def _network(name: str, given: argparse.Namespace, device: torch.device) -> Classifier:
    network = open_network("model", arch=name, input_size=given.size).to(device)
    if given.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if given.compile:
        network.compile()
    return network


def rate(step: Callable[[], None], given: argparse.Namespace, device: torch.device) -> float:
    """Images per second of one round."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    start = time.perf_counter()
    for _ in range(given.steps):
        step()
    synchronise()
    return given.batch * given.steps / (time.perf_counter() - start)


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory() as folder:
        ours, trainer = our_step(given, Path(folder))
        device = trainer.run.accelerator.device
        bare, teacher, student = bare_steps(given, device)
        steps = {"ssld": ours, "bare loop": bare, "teacher": teacher, "student": student}
        for step in steps.values():
            for _ in range(5):
                step()
        rates = [
            {name: rate(step, given, device) for name, step in steps.items()}
            for _ in range(given.rounds)
        ]
    median = {name: statistics.median(r[name] for r in rates) for name in steps}
    overhead = statistics.median(r["ssld"] / r["bare loop"] for r in rates)
    ceilings = [1 / (1 / r["teacher"] + 1 / r["student"]) for r in rates]
    share = statistics.median(r["ssld"] / c for r, c in zip(rates, ceilings, strict=True))
    print(
        f"{given.student} under {given.teacher}, batch {given.batch}, {given.size} px, "
        f"{given.precision}, compile {given.compile}, channels last {given.channels_last}"
    )
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else machine(torch.get_num_threads())
    print(f"{name}; torch {torch.__version__}; {given.rounds} rounds, medians")
    rows = [[what, f"{value:.1f}"] for what, value in median.items()]
    rows += [["ssld : bare loop", f"{overhead:.3f}"], ["ssld : ceiling", f"{share:.3f}"]]
    show(["what", "img/s"], [*rows, ["peak memory, MiB", f"{peak_mib(device):.0f}"]])


if __name__ == "__main__":
    main()
