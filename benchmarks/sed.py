"""What a step of `ssld sed` costs beside its passes through the network, and its memory beside
plain training.

    python benchmarks/sed.py                                        # CPU, small
    python benchmarks/sed.py --backbone resnet50d --size 800 --labeled 2 --width 256    # GPU

In one process, on tensors: (a) a plain step on the labeled images; (b) every pass of a step alone:
labeled images forward with their losses and backward, the strong and the small view forward and
backward, the teacher's forward, with even gradients in place of the losses, and for a detector of
two stages its proposals and what it says of as many as in the step; (c) the step, with views padded
and all losses. Reported, medians of rounds: seconds of all three, (b) : (c), and what autograd
keeps for the backward pass of (c) beside (a). Without a GPU a second is one of CPU time, into which
other processes do not enter.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from measure import machine, parser, seconds, show
from torch import Tensor

from downstream.backbone.config import BackboneConfig
from downstream.detection.model import build
from downstream.sed.config import ConsistencyConfig
from downstream.sed.model import SedModel, Unlabeled

S = 1
DETECTORS = ("retinanet", "faster_rcnn")


def arguments() -> argparse.Namespace:
    words = parser(__doc__)
    words.add_argument("--backbone", default="mobilenetv3_small_100")
    words.add_argument("--size", type=int, default=256, help="shorter side, px")
    words.add_argument("--labeled", type=int, default=1, help="labeled images of a step")
    words.add_argument("--ratio", type=int, default=4, help="unlabeled images for each of them")
    words.add_argument("--width", type=int, default=64, help="channels of pyramid and heads")
    words.add_argument("--proposals", type=int, default=200, help="of each view")
    words.add_argument("--rounds", type=int, default=3)
    return words.parse_args()


class Step:
    """A student, its average, and a batch."""

    def __init__(self, name: str, given: argparse.Namespace, device: torch.device) -> None:
        torch.manual_seed(0)
        args: dict[str, Any] = {"channels": given.width}
        if name == "faster_rcnn":
            args["head_channels"] = 4 * given.width
        backbone = BackboneConfig(name=given.backbone, pretrained=False)
        self.student = SedModel(build(name, backbone, 3, args), list("abc")).to(device).train()
        self.teacher = copy.deepcopy(self.student.model).eval()
        self.settings = ConsistencyConfig(reweight=True, proposals=given.proposals)
        size = (given.size, given.size * 4 // 3)
        self.labeled = images(given.labeled, size, device)
        self.weak, self.strong = (images(given.labeled * given.ratio, size, device) for _ in "ws")
        boxes = torch.tensor([[5.0, 5, 60, 50], [80, 30, 200, 150]], device=device)
        target = {"boxes": boxes, "labels": torch.tensor([0, 1], device=device)}
        self.targets = [{**target, "weights": torch.ones(2, device=device)}] * given.labeled

    def plain(self) -> None:
        """(a)."""
        _backward(self.student(self.labeled, sizes_of(self.labeled), self.targets))

    def passes(self) -> None:
        """(b)."""
        self.plain()
        sizes = sizes_of(self.strong)
        multiple = self.student.stride * 2**S
        strong, weak = (self.student._padded(x, sizes, multiple) for x in (self.strong, self.weak))
        small = torch.nn.functional.avg_pool2d(strong, 2**S)
        student = self.student.model
        _learn([*_said(student, strong, sizes, 3, self.settings.proposals),
                *_said(student, small, sizes / 2**S, 2, self.settings.proposals)])  # fmt: skip
        with torch.no_grad():
            _said(self.teacher, weak, sizes, 2, self.settings.proposals)

    def whole(self) -> None:
        """(c)."""
        sizes = sizes_of(self.strong)
        unlabeled = Unlabeled(self.weak, self.strong, sizes, S, self.teacher, self.settings)
        labeled = self.labeled, sizes_of(self.labeled), self.targets
        human, soft = self.student(*labeled, unlabeled=unlabeled)
        ratio = len(self.strong) / len(self.labeled)
        _backward({**human, **{name: ratio * x for name, x in soft.items()}})


def images(count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, device=device)


def sizes_of(batch: Tensor) -> Tensor:
    return torch.tensor([batch.shape[1:3]] * len(batch), device=batch.device)


def _said(network: Any, view: Tensor, sizes: Tensor, sets: int, most: int) -> list[Tensor]:
    """What a view's pass says: of all anchors, and of `sets` times the proposals."""
    raw = network.raw(view, sizes)
    said = [raw.logits, raw.offsets]
    if hasattr(network, "refine"):
        proposals = [torch.cat([x[:most]] * sets) for x in network.propose(raw, sizes)]
        said += network.refine(raw.maps, proposals)
    return said


def _learn(said: list[Tensor]) -> None:
    torch.autograd.backward(said, [torch.full_like(x, 1e-3) for x in said])


def _backward(terms: dict[str, Tensor]) -> None:
    torch.stack([x.mean() for x in terms.values()]).sum().backward()


def kept(work: Callable[[], object]) -> int:
    """Bytes that autograd keeps at once for the backward pass: each storage counts once."""
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        work()
    return sum(storages.values())


def row(name: str, given: argparse.Namespace, device: torch.device) -> list[str]:
    step = Step(name, given, device)
    works = (step.plain, step.passes, step.whole)
    for work in works:
        work()
    rounds = []
    for _ in range(given.rounds):
        times = [seconds(work) for work in works]
        rounds.append((*times, times[1] / times[2]))
    numbers = [f"{statistics.median(x):.2f}" for x in zip(*rounds, strict=True)]
    memory = [kept(step.plain), kept(step.whole)]
    return [name, *numbers, *(f"{x / 2**20:,.0f}" for x in memory), f"{memory[1] / memory[0]:.1f}"]


def main() -> None:
    given = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else machine(1)
    print(f"{given.backbone}, {given.labeled} + {given.labeled * given.ratio} images of "
          f"{given.size * 4 // 3} x {given.size} px; {where}; {given.rounds} rounds")  # fmt: skip
    head = ["detector", "plain step, s", "passes, s", "step, s", "passes : step",
            "kept plain, MiB", "kept, MiB", "kept : plain"]  # fmt: skip
    show(head, (row(name, given, device) for name in DETECTORS))


if __name__ == "__main__":
    main()
