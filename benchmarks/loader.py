"""How fast images become views, against torchvision's ImageFolder and DataLoader.

    python benchmarks/loader.py                           # synthetic photographs, 256 and 500 px
    python benchmarks/loader.py --images folder-of-jpegs  # real ones, resized to both sizes

Both sides: one worker process with one thread, 224 px random resized crops of the same JPEGs
(quality 90), a flip, uint8 batches. The other side reads with Pillow and crops with
v2.RandomResizedCrop(224, antialias=True). Ours runs as configured by default (antialias off) and
with antialias on. Variants alternate within each repeat; medians are reported, and the ratio is the
median over repeats of the quotient within a repeat, so that a load that drifts cancels out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import PIL
import simplejpeg
import torch
import torchvision
from measure import machine, parser, show
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ssld.data.config import AugmentConfig
from ssld.data.loading import ViewBatches, train_batches
from ssld.data.sampling import Sampler
from ssld.data.sources import open_source
from ssld.data.transforms import TrainView

SIZE = 224
BATCH = 64


def synthetic(number: int) -> Image.Image:
    """Noise with the 1/f spectrum of photographs, 750 x 1000 px."""
    rng = np.random.default_rng(number)
    pixels = np.full((750, 1000, 3), 127, np.float32)
    for octave in range(2, 9):
        noise = rng.normal(0, 90 / 1.7**octave, (3 * 2**octave // 4, 2**octave, 3))
        pixels += cv2.resize(noise.astype(np.float32), (1000, 750), interpolation=cv2.INTER_CUBIC)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_images(source: str | None, count: int, shorter: int, folder: Path) -> float:
    """JPEGs whose shorter side is `shorter` px into folder/class; returns their mean size in kB."""
    target = folder / "class"
    target.mkdir(parents=True)
    files = sorted(p for p in Path(source).rglob("*") if _is_jpeg(p))[:count] if source else []
    for i in range(len(files) or count):
        image = Image.open(files[i]).convert("RGB") if files else synthetic(i)
        scale = shorter / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        resized = image.resize(size, Image.Resampling.LANCZOS)
        resized.save(target / f"{i:05d}.jpg", quality=90)
    sizes = [path.stat().st_size for path in target.iterdir()]
    return sum(sizes) / len(sizes) / 1000


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg")


def ours(folder: Path, workers: int, antialias: bool) -> Callable[[], float]:
    source = open_source(str(folder))
    steps = len(source) // BATCH

    def run() -> float:
        batches = train_batches(
            ViewBatches([source], TrainView(AugmentConfig(antialias=antialias), SIZE, 0)),
            Sampler([len(source)], None, 0),
            batch_size=BATCH,
            first_step=0,
            last_step=steps,
            workers=workers,
        )
        return rate(batches, lambda batch: batch.images.shape[0])

    return run


def theirs(folder: Path, workers: int) -> Callable[[], float]:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )
    dataset = ImageFolder(str(folder), transform)

    def run() -> float:
        loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, drop_last=True)
        return rate(loader, lambda batch: batch[0].shape[0])

    return run


def rate(batches, count: Callable) -> float:
    """Images per second after the first batch, so that start-up is not counted."""
    iterator = iter(batches)
    next(iterator)
    start, images = time.perf_counter(), 0
    for batch in iterator:
        images += count(batch)
    return images / (time.perf_counter() - start)


def measure(folder: Path, workers: int, repeats: int) -> dict[str, list[float]]:
    variants = {
        "torchvision": theirs(folder, workers),
        "ssld": ours(folder, workers, antialias=False),
        "ssld, antialias": ours(folder, workers, antialias=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, run in variants.items():
            result = run()
            if repeat:  # the first round warms file cache and imports
                rates[name].append(result)
    return rates


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--images", help="folder of JPEGs; by default synthetic ones")
    words.add_argument("--count", type=int, default=640)
    words.add_argument("--repeats", type=int, default=5)
    words.add_argument("--sizes", type=int, nargs="+", default=[256, 500], help="shorter side, px")
    words.add_argument("--workers", type=int, nargs="+", default=[1])
    args = words.parse_args()
    torch.set_num_threads(1)
    print(
        f"{machine()}; torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow "
        f"{PIL.__version__}, simplejpeg {simplejpeg.__version__}; "
        f"{args.images or 'synthetic images'}\n"
    )
    head = ("shorter side", "kB", "workers", "variant", "img/s", "range", "ratio")
    with tempfile.TemporaryDirectory() as root:
        show(head, rows(args, Path(root)))


def rows(args: argparse.Namespace, root: Path) -> Iterator[list[str]]:
    """Cells of each size, number of workers and variant, as soon as they are measured."""
    for shorter in args.sizes:
        kilobytes = write_images(args.images, args.count, shorter, root / str(shorter))
        for workers in args.workers:
            rates = measure(root / str(shorter), workers, args.repeats)
            for name, result in rates.items():
                pairs = zip(result, rates["torchvision"], strict=True)
                cells = [str(shorter), f"{kilobytes:.0f}", str(workers), name]
                cells += [
                    f"{statistics.median(result):.0f}",
                    f"{min(result):.0f}-{max(result):.0f}",
                ]
                yield [*cells, f"{statistics.median(a / b for a, b in pairs):.2f}"]


if __name__ == "__main__":
    main()
