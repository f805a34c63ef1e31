"""The checks of benchmarks/on_gpu.sh: what a GPU computes against a CPU, or against itself.

Each yields `Finding`s. On a CPU every line runs as well, and compares the CPU with itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import timm
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import distributed, nn

from downstream.detection.heads.deformable import DeformableConv
from ssld.cli.run import main as ssld
from ssld.curate.near_duplicates.shortlist import nearest
from ssld.engine.trainer import Trainer
from ssld.models.config import TeacherConfig
from ssld.models.opening import open_network
from ssld.models.sync_batch_norm import synchronise
from ssld.models.teacher import Teacher

STEPS, STOPPED_AT = 12, 5
STOPPED = 75
"""Exit code of a run that a signal has stopped."""


class Finding(NamedTuple):
    """One line of the table: what was compared, the number, and the most that it may be."""

    what: str
    found: float
    allowed: float

    @property
    def right(self) -> bool:
        return self.found <= self.allowed  # not a number is not right


class Sizes(NamedTuple):
    """Of what is checked."""

    student: str
    teacher: str
    side: int
    batch: int
    rows: int
    """Vectors that faiss searches, 512 numbers each."""


LARGE = Sizes("mobilenetv3_small_100", "resnet50", 224, 64, 200_000)
SMALL = Sizes("test_resnet", "test_resnet", 32, 8, 2_000)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Inside, kernels repeat themselves bit by bit, or raise."""
    before = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = before


def write_inputs(folder: Path, sizes: Sizes) -> None:
    """Pictures of noise, and a teacher that knows nothing: what is compared does not depend on
    them."""
    draw = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(4 * sizes.batch):
        noise = draw.integers(0, 256, (sizes.side, sizes.side + 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{i:04d}.png")
    save_file(timm.create_model(sizes.teacher).state_dict(), folder / "teacher.safetensors")


def distil(folder: Path, sizes: Sizes, name: str, **changes: object) -> Path:
    """A run of `STEPS` steps; returns its folder."""
    settings = {
        "out": folder / name,
        "steps": STEPS,
        "batch_size": sizes.batch,
        "log_every_steps": 1,
        "evaluate_every_epochs": 1000,
        "student.arch": sizes.student,
        "augment.size": sizes.side,
        "teacher.arch": sizes.teacher,
        "teacher.checkpoint": folder / "teacher.safetensors",
        "teacher.input_size": sizes.side,
        "teacher.verify": "false",
        "data.unlabeled": folder / "images",
        "data.workers": 0,
        "probe.every_epochs": 0,
        "trackers": "[]",
        **changes,
    }
    words = [f"--{key}={value}" for key, value in settings.items()]
    code = ssld(["distill", *words])
    AcceleratorState._reset_state(reset_partial_state=True)
    if code not in (0, STOPPED):
        raise RuntimeError(f"ssld distill ended with exit code {code}")
    return folder / name


def losses(run: Path) -> np.ndarray:
    """Of each step, float64 [steps]."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines if line["kind"] == "train"])


def stop_at(step: int) -> contextlib.AbstractContextManager[Any]:
    """Inside, a run gets the signal with which clusters take a machine away."""
    train_step = Trainer.train_step

    def stopped(trainer: Trainer, *arguments: Any) -> Any:
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(trainer, *arguments)

    return mock.patch.object(Trainer, "train_step", stopped)


def resume(sizes: Sizes) -> Iterator[Finding]:
    """A run that was stopped and went on against one that was not, bit by bit; with fp16 that needs
    the scale of the loss, too, which a CPU does not have."""
    precisions = ["fp32", "bf16", *(["fp16"] if torch.cuda.is_available() else [])]
    with tempfile.TemporaryDirectory() as name, deterministic():
        folder = Path(name)
        write_inputs(folder, sizes)
        for precision in precisions:
            whole = distil(folder, sizes, f"whole-{precision}", precision=precision)
            with stop_at(STOPPED_AT):
                distil(folder, sizes, f"stopped-{precision}", precision=precision)
            stopped = distil(
                folder, sizes, f"stopped-{precision}", precision=precision, resume="true"
            )
            ours, theirs = losses(whole), losses(stopped)
            unlike = np.inf if len(ours) != len(theirs) else float((ours != theirs).sum())
            yield Finding(f"resume, {precision}: steps whose loss differs", unlike, 0)
            networks = [load_file(x / "student/model.safetensors") for x in (whole, stopped)]
            unlike = sum(not torch.equal(x, networks[1][key]) for key, x in networks[0].items())
            yield Finding(f"resume, {precision}: tensors that differ", unlike, 0)


def layouts(sizes: Sizes) -> Iterator[Finding]:
    """Compiled, and channels last, against neither: the losses of a short run in float32."""
    compile_module = nn.Module.compile

    def compiled(module: nn.Module) -> None:
        # Inductor wants a C++ compiler and a minute on a CPU; the graphs are the same.
        compile_module(module, **({} if torch.cuda.is_available() else {"backend": "eager"}))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, sizes)
        steps = {"steps": 4, "schedule.lr": 1e-3}
        plain = losses(distil(folder, sizes, "plain", **steps))
        last = losses(distil(folder, sizes, "last", channels_last="true", **steps))
        yield Finding("channels last: relative difference of losses", far(plain, last), 1e-3)
        with mock.patch.object(nn.Module, "compile", compiled):
            both = losses(distil(folder, sizes, "both", compile="true", channels_last="true",
                                 **steps))  # fmt: skip
        yield Finding("compiled, too: relative difference of losses", far(plain, both), 1e-3)


def far(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.abs(found / expected - 1).max())


def sync_batch_norm(sizes: Sizes) -> Iterator[Finding]:
    """Two processes on one device, half of a batch each, against torch's batch norm of the whole
    one in float64 on the CPU: outputs, gradients, running statistics."""
    # A process that has used a GPU cannot be forked; where none has, that saves importing torch.
    start = "spawn" if torch.cuda.is_available() else "fork"
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _half_of_a_batch, (folder, sizes), nprocs=2, start_method=start
        )
        halves = [load_file(f"{folder}/{rank}.safetensors") for rank in range(2)]
    x, weight = _whole_batch(sizes)
    norm = nn.BatchNorm2d(x.shape[1]).double()
    output = norm(x.requires_grad_())
    (output * weight).sum().backward()
    assert x.grad is not None
    expected = {"output": output.detach(), "gradient": x.grad}
    for key, value in expected.items():
        found = torch.cat([half[key] for half in halves])
        yield Finding(f"synchronised batch norm: {key}", _most(found, value), 1e-4)
    for key in ("running_mean", "running_var"):
        found = halves[0][key]
        yield Finding(f"synchronised batch norm: {key}", _most(found, getattr(norm, key)), 1e-5)


def _whole_batch(sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps far from zero, where sums of squares lose digits, and the weights of their sum; float64
    [b, 16, h, w]."""
    draw = torch.Generator().manual_seed(0)
    shape = (sizes.batch, 16, sizes.side // 4, sizes.side // 4)
    return tuple(
        torch.randn(shape, generator=draw, dtype=torch.float64) + shift for shift in (3, 0)
    )  # type: ignore[return-value]


def _half_of_a_batch(rank: int, folder: str, sizes: Sizes) -> None:
    """In a process of its own. gloo, as nccl wants a GPU for each process."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    norm = synchronise(nn.Sequential(nn.BatchNorm2d(16)).to(device()), device())
    x, weight = (part.float().chunk(2)[rank].to(device()) for part in _whole_batch(sizes))
    x.requires_grad_()
    output = norm(x)
    (output * weight).sum().backward()
    assert x.grad is not None
    found = {"output": output.detach(), "gradient": x.grad}
    found |= {key: x for key, x in norm.state_dict().items() if "running" in key}
    save_file(
        {key.removeprefix("0."): value.cpu().contiguous() for key, value in found.items()},
        f"{folder}/{rank}.safetensors",
    )
    distributed.destroy_process_group()


def _most(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double().cpu() - expected).abs().max())


def teacher(sizes: Sizes) -> Iterator[Finding]:
    """A teacher on the statistics of its batches, in bf16: it answers as in float32 on the CPU, and
    keeps no second copy of its maps in float64."""
    torch.manual_seed(0)
    network = open_network("teacher", arch=sizes.teacher, input_size=sizes.side)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    shape = (sizes.batch, sizes.side, sizes.side, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    answers, peaks = {}, {}
    for statistics in ("running", "batch"):
        for where, dtype in (("cpu", "fp32"), (device().type, "bf16")):
            network = open_network("teacher", arch=sizes.teacher, input_size=sizes.side)
            network.load_state_dict(state)
            config = TeacherConfig(arch=sizes.teacher, dtype=dtype, batch_norm=statistics)
            one = Teacher([network], [config]).to(where)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            answers[statistics, dtype] = one(images.to(where)).exp().cpu()
            if torch.cuda.is_available():
                peaks[statistics, dtype] = torch.cuda.max_memory_allocated()
    for statistics in ("running", "batch"):
        differ = (answers[statistics, "bf16"] - answers[statistics, "fp32"]).abs().sum(-1) / 2
        what = f"teacher in bf16, {statistics} statistics: total variation from float32"
        yield Finding(what, float(differ.max()), 0.05)
    if peaks:
        ratio = peaks["batch", "bf16"] / peaks["running", "bf16"]
        yield Finding("teacher in bf16: memory, batch : running statistics", ratio, 1.5)


def deformable(sizes: Sizes) -> Iterator[Finding]:
    """Values and gradients against the CPU's in float64."""
    torch.manual_seed(0)
    reference = DeformableConv(8, 12).double()
    nn.init.normal_(reference.motion.weight, std=0.1)
    layer = DeformableConv(8, 12)
    layer.load_state_dict(reference.state_dict())
    layer.to(device())
    x = torch.randn(2, 8, sizes.side // 4, sizes.side // 4, dtype=torch.float64)
    outputs = []
    for module, given in ((reference, x), (layer, x.float().to(device()))):
        outputs.append(module(given))
        outputs[-1].square().sum().backward()
    yield Finding("deformable convolution: output", _most(outputs[1].detach(), outputs[0]), 1e-3)
    for (name, ours), theirs in zip(layer.named_parameters(), reference.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        relative = _most(ours.grad, theirs.grad) / float(theirs.grad.abs().max())
        yield Finding(f"deformable convolution: gradient of {name}", relative, 1e-3)


def faiss(sizes: Sizes) -> Iterator[Finding]:
    """The shortlist of curation: cosines against float64, and neighbours that are not the nearest
    (two of one cosine may change places)."""
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((sizes.rows, 512), np.float32)
    vectors[1::2] = vectors[::2] + 0.3 * vectors[1::2]  # pairs that are alike, as duplicates are
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries, count = vectors[: min(256, sizes.rows // 4)], 10
    cosines, rows = nearest(queries, vectors, count)
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T  # [queries, rows]
    found = np.take_along_axis(exact, rows, axis=1)
    best = -np.partition(-exact, count - 1, axis=1)[:, :count]
    best.sort(axis=1)
    yield Finding("faiss: cosines", float(np.abs(cosines - found).max()), 1e-5)
    missed = best[:, ::-1] - found
    yield Finding("faiss: cosine of a neighbour that was missed", float(missed.max()), 1e-5)


CHECKS: list[Callable[[Sizes], Iterator[Finding]]] = [
    sync_batch_norm, resume, layouts, teacher, deformable, faiss,
]  # fmt: skip
