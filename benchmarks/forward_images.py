"""What an image costs a teacher on a CPU in forward passes of several sizes, for `CPU_IMAGES` of
ssld/models/teacher.py.

    OMP_NUM_THREADS=1 python benchmarks/forward_images.py

Random weights, noise, CPU seconds, the best of three rounds of at least 32 images.
"""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch
from measure import machine, parser, seconds, show

NETWORKS = {"resnet18": 96, "mobilenetv2_100": 160, "resnet50": 224, "vit_tiny_patch16_224": 224}
"""And the size of their images in px."""
IMAGES = (1, 4, 8, 16, 32, 64, 256)
ROUNDS, AT_LEAST = 3, 32


def milliseconds(model: torch.nn.Module, images: int, size: int) -> float:
    """Of an image."""
    x, passes = torch.randn(images, 3, size, size), max(1, AT_LEAST // images)
    with torch.inference_mode():
        model(x[:1])
        rounds = [seconds(lambda: [model(x) for _ in range(passes)]) for _ in range(ROUNDS)]
    return 1000 * min(rounds) / passes / images


def rows(most: int) -> Iterator[list[str]]:
    for name, size in NETWORKS.items():
        model = timm.create_model(name).eval()
        found = [milliseconds(model, n, size) for n in IMAGES if n <= most]
        yield [f"{name}, {size} px", *(f"{x:.1f}" for x in found)]


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--most", type=int, default=64, help="images of a forward pass")
    given = words.parse_args()
    torch.set_num_threads(1)
    print(f"ms an image; {machine(1)}; torch {torch.__version__}")
    show(["network", *(str(n) for n in IMAGES if n <= given.most)], rows(given.most))


if __name__ == "__main__":
    main()
