"""What it costs a training step that malloc gives freed memory back to the system, for
`keep_freed_memory` of ssld/common/memory.py.

    OMP_NUM_THREADS=1 python benchmarks/kept_memory.py

Bare steps of SGD on noise with random weights, one process before and after: CPU seconds and page
faults of a step, medians. On a CPU with glibc.
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable, Iterator

import timm
import torch
from measure import machine, parser, seconds, show
from torch.nn.functional import cross_entropy

from ssld.common.memory import keep_freed_memory

NETWORKS = {"mobilenetv3_small_100": (96, 32), "resnet18": (96, 32), "resnet50": (224, 8)}
"""Size of the images in px, and how many."""


def step_of(name: str, size: int, images: int) -> Callable[[], None]:
    model = timm.create_model(name).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    x, labels = torch.randn(images, 3, size, size), torch.arange(images)

    def step() -> None:
        cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measured(step: Callable[[], None], steps: int) -> tuple[float, float]:
    """CPU seconds and page faults of a step."""
    rounds = []
    for _ in range(steps + 1):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        took = seconds(step)
        rounds.append((took, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
    own = list(zip(*rounds[1:], strict=True))  # the first one warms up
    return statistics.median(own[0]), statistics.median(own[1])


def rows(steps: int) -> Iterator[list[str]]:
    made = {name: step_of(name, *size) for name, size in NETWORKS.items()}
    before = {name: measured(step, steps) for name, step in made.items()}
    keep_freed_memory()
    for name, step in made.items():
        after = measured(step, steps)
        times, faults = zip(before[name], after, strict=True)
        size, images = NETWORKS[name]
        costs = (f"{times[0]:.3f}", f"{times[1]:.3f}", f"{times[1] / times[0]:.2f}")
        yield [f"{name}, {images} of {size} px", *costs, *(f"{x:,.0f}" for x in faults)]


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--steps", type=int, default=5)
    given = words.parse_args()
    torch.set_num_threads(1)
    print(f"{machine(1)}; torch {torch.__version__}")
    head = ["step", "before, s", "kept, s", "kept : before", "faults before", "kept"]
    show(head, rows(given.steps))


if __name__ == "__main__":
    main()
