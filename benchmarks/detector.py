"""What a detector's step costs beside a bare torchvision loop on the same network, and what a run
takes to its first steps beside a script that does no more than that.

    python benchmarks/detector.py                                             # CPU, small
    python benchmarks/detector.py --width 256 --head 1024 --proposals 512     # torchvision's widths
    python benchmarks/detector.py --start 5                                   # command to step 5

In one process, on the same images in memory, alternating: (a) ssld's own step
(`ssld.engine.trainer.Trainer.train_step`, with its log line every 10 steps); (b) a bare loop:
torchvision's `FasterRCNN` with its `GeneralizedRCNNTransform`, and what `references/detection` does
in a step, SGD and the look at the loss included. Backbone, pyramid, weights, frozen batch norm,
trained layers, sizes and padding are the same, so that the losses of the anchors must be, where
the same ones are drawn. Reported: the median of a : b over rounds. With `--start N` both begin as
processes of their own, on JPEGs: (a) `ssld detection` until its line of step N, (b)
`benchmarks/bare_detector.py` of N steps. Seconds are of CPU time, into which other processes do not
enter; of steps on a GPU, of its clock.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import timm
import torch
import torchvision
from bare_detector import ANCHORS, LABELS, LR, bare_network, bare_step
from measure import machine, parser, seconds, show
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from downstream.dense.start import open_processes
from downstream.detection.command import model_for, run_of, sources_of
from downstream.detection.config import DetectionConfig
from downstream.detection.model import DetectionModel
from downstream.detection.task import DetectionTask
from ssld.cli.parse import parse
from ssld.engine.progress import Progress
from ssld.engine.trainer import Trainer

IMAGES, BOXES = 6, 12


def arguments() -> argparse.Namespace:
    words = parser(__doc__)
    words.add_argument("--backbone", default="mobilenetv2_100")
    words.add_argument("--batch", type=int, default=2)
    words.add_argument("--size", type=int, default=320, help="shorter side, px")
    words.add_argument("--width", type=int, default=64, help="channels of pyramid and RPN")
    words.add_argument("--head", type=int, default=256, help="channels of the box head")
    words.add_argument("--proposals", type=int, default=128, help="of each image that are learned")
    words.add_argument("--train_batch_norm", action="store_true", help="as from random weights")
    words.add_argument("--channels_last", action="store_true", help="of our weights")
    words.add_argument("--steps", type=int, default=2, help="steps of one timed round")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--start", type=int, default=0, metavar="N", help="command to step N")
    return words.parse_args()


def write_set(folder: Path, given: argparse.Namespace) -> None:
    """Images of noise with boxes as COCO has them, and the weights of a backbone."""
    noise, width = np.random.default_rng(0), given.size * 4 // 3
    (folder / "images").mkdir()
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    for i in range(1, IMAGES + 1):
        pixels = noise.integers(0, 256, (given.size, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.jpg")
        size = {"width": width, "height": given.size}
        content["images"].append({"id": i, "file_name": f"{i}.jpg", **size})
        for k in range(BOXES):
            w, h = noise.uniform(15, given.size / 3, 2)
            x, y = noise.uniform(0, width - w), noise.uniform(0, given.size - h)
            content["annotations"].append(
                {"id": i * BOXES + k, "image_id": i, "category_id": 1 + k % LABELS,
                 "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            )  # fmt: skip
    content["categories"] = [{"id": i, "name": f"class {i}"} for i in range(1, LABELS + 1)]
    (folder / "boxes.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    weights = timm.create_model(given.backbone).state_dict()
    save_file(weights, folder / "backbone.safetensors")


def settings(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Of `ssld detection`, as its words would have them."""
    boxes = f"{folder / 'boxes.json'}::{folder / 'images'}"
    return {
        "out": str(folder / "run"),
        "batch_size": given.batch,
        "channels_last": given.channels_last,
        "trackers": [],
        "backbone": {
            "name": given.backbone,
            "checkpoint": str(folder / "backbone.safetensors"),
            "freeze_batch_norm": not given.train_batch_norm,
        },
        "detector": {
            "name": "faster_rcnn",
            "args": {"anchor_sizes": ANCHORS, "channels": given.width, "head_channels": given.head,
                     "rois_per_image": given.proposals},
        },
        "data": {"train": boxes, "val": boxes, "workers": 0},
        "augment": {"sizes": [given.size], "test_size": given.size},
        "schedule": {"lr": 256 * LR / given.batch, "warmup_epochs": 0},
        "optimizer": {"weight_decay": 1e-4, "no_decay": "none"},
    }  # fmt: skip


def floats(image: Tensor) -> Tensor:
    """uint8 [h, w, 3] -> float32 [3, h, w] in 0..1, as `references/detection/presets.py` does."""
    return image.permute(2, 0, 1).contiguous().float() / 255


def our_step(given: argparse.Namespace, folder: Path) -> tuple[Callable[[], None], Trainer, Any]:
    """(a), set up as the command sets it up; with batches in memory."""
    config = parse("ssld detection", DetectionConfig, ["--config", str(folder / "run.json")])
    accelerator = open_processes(config)
    sources = sources_of(config)
    config, model = model_for(config, sources, DetectionModel)
    run = run_of(config, accelerator, sources, model)
    task = DetectionTask(sources, config.augment, config.test, config.detector, config.seed)
    batches = list(task.train_batches(run, 0, 3))
    trainer = Trainer(run, task, model)
    progress = Progress(run, trainer.clock, 0, trainer.unreadables)
    progress.__enter__()
    endless = itertools.cycle(batches)

    def step() -> None:
        trainer.train_step(endless, progress)
        if trainer.step % config.log_every_steps == 0:
            progress.log(trainer.step, trainer.lr(), False)

    return step, trainer, batches


def same_network(trainer: Trainer, given: argparse.Namespace) -> FasterRCNN:
    """torchvision's detector with the weights of ours."""
    ours: Any = copy.deepcopy(trainer.student.model).to(memory_format=torch.contiguous_format)
    widths = (given.size, given.width, given.head, given.proposals)
    network = bare_network(ours.backbone, ours.pyramid, *widths)
    network.rpn.head.load_state_dict(ours.rpn.head.state_dict())
    for part in ("box_head", "box_predictor"):
        own = getattr(network.roi_heads, part)
        own.load_state_dict(getattr(ours.roi_heads, part).state_dict())
    return network


def as_torchvision(batch: Any) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The images without padding, and classes from 1 on."""
    images = [
        floats(image[:h, :w]) for image, (h, w) in zip(batch.images, batch.sizes, strict=True)
    ]
    return images, [{"boxes": x["boxes"], "labels": x["labels"] + 1} for x in batch.targets]


def compare_steps(given: argparse.Namespace, folder: Path) -> None:
    """Print the seconds of (a) and (b)."""
    ours, trainer, batches = our_step(given, folder)
    device = trainer.run.accelerator.device
    network = same_network(trainer, given).to(device)
    step = bare_step(network)
    made = [as_torchvision(x.to(device)) for x in batches]
    require_same(trainer, network, batches[0], made[0])
    endless = itertools.cycle(made)
    rounds = []
    for _ in range(given.rounds + 1):
        a = seconds(lambda: [ours() for _ in range(given.steps)]) / given.steps
        b = seconds(lambda: [step(*next(endless)) for _ in range(given.steps)]) / given.steps
        rounds.append((a, b, a / b))
    for model in (trainer.student, network):  # untrained networks with frozen batch norm diverge
        assert all(x.isfinite().all() for x in model.parameters()), "lower LR"
    medians = [statistics.median(x) for x in zip(*rounds[1:], strict=True)]
    head = ["batch", "ssld, s a step", "bare loop, s a step", "ssld : bare"]
    show(head, [[str(given.batch), *(f"{x:.3f}" for x in medians)]])


def require_same(trainer: Trainer, network: FasterRCNN, ours: Any, theirs: Any) -> None:
    """Both have the same losses of anchors. Those of the box head depend on which of nearly equal
    proposals are first, and so on the last bit."""
    both = []
    for model, call in (
        (trainer.model, lambda: trainer.task.losses(trainer.model, ours)),
        (network, lambda: network(*theirs)),
    ):
        torch.manual_seed(0)  # of the anchors that are drawn
        with torch.no_grad():
            model.train()
            network.transform.eval()  # it would draw a size, too, of one
            both.append({key: float(x.mean()) for key, x in call().items()})
    for name, its in (("objectness", "loss_objectness"), ("proposals", "loss_rpn_box_reg")):
        pair = both[0][name], both[1][its]
        assert math.isclose(*pair, rel_tol=1e-4), f"{name}: {pair}"
    print("losses:", *both, sep="\n  ")


def until(done: Callable[[], bool], words: list[str], log: Path) -> float:
    """CPU seconds that a command took until it was done, and is stopped, or until its end.

    Raises:
        SystemExit: it failed, with what it said.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, *words], stdout=output, stderr=output)
    while process.poll() is None:
        if done():
            spent = psutil.Process(process.pid).cpu_times()
            process.kill()
            process.wait()
            return spent.user + spent.system
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(log.read_text())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare_starts(given: argparse.Namespace, folder: Path) -> None:
    """Print the seconds that both take from their beginning to a step."""
    lines = folder / "run" / "metrics.jsonl"
    command = ["-m", "ssld", "detection", "--config", str(folder / "run.json"), "--overwrite"]
    numbers = (given.batch, given.size, given.width, given.head, given.proposals, given.start)
    file = str(Path(__file__).with_name("bare_detector.py"))
    script = [file, str(folder), given.backbone, *map(str, numbers)]
    rounds = []
    for _ in range(given.rounds):
        shutil.rmtree(folder / "run", ignore_errors=True)
        a = until(lambda: lines.is_file() and lines.stat().st_size > 0, command, folder / "log")
        b = until(lambda: False, script, folder / "log")
        rounds.append((a, b, a / b))
    medians = [statistics.median(x) for x in zip(*rounds, strict=True)]
    head = ["to step", "ssld, s", "bare script, s", "ssld : bare"]
    show(head, [[str(given.start), *(f"{x:.2f}" for x in medians)]])


def main() -> None:
    given = arguments()
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder, given)
        lines = {"log_every_steps": given.start or 10, "steps": 10**6}
        (folder / "run.json").write_text(json.dumps({**settings(folder, given), **lines}))
        print(torch.cuda.get_device_name() if cuda else machine(torch.get_num_threads()))
        print(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
        compare_starts(given, folder) if given.start else compare_steps(given, folder)


if __name__ == "__main__":
    main()
