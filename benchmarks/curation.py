"""Recall, false drops and cost of ways to find near-duplicates, on near_duplicates.py's benchmark.

    OMP_NUM_THREADS=1 python benchmarks/curation.py --benchmark BENCHMARK --out curation.csv \\
        --teacher.arch mobilenetv2_100 --teacher.args '{"pad_type": "same"}' \\
        --teacher.checkpoint mobilenetv2_100.imagenet1k.fp16.safetensors \\
        --teacher.mean 0.5 0.5 0.5 --teacher.std 0.5 0.5 0.5

Prints markdown and writes the same numbers as CSV. `taskset` decides on how many cores it runs. The
methods that have a threshold to choose (embedding, VLAD) are given the best one there is, which
nobody could know beforehand: the lowest at which no clean image is dropped. Edits called
`stress_...` are in no total. 19,000 images take some 20 minutes on 2 cores, half for the teacher.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from measure import markdown, parser, peak_kib

from ssld.curate.near_duplicates.hamming_embedding import evenly
from ssld.curate.near_duplicates.matching import mirrored_descriptors, verdicts
from ssld.curate.near_duplicates.reference_set import Pair, ReferenceSet
from ssld.curate.near_duplicates.shortlist import Shortlist, views
from ssld.curate.near_duplicates.sift import Features, features
from ssld.data.decode import decode

BATCH = 64
PHASH_BITS = 10
"""Of 64: the usual limit (imagededup's default)."""
VLAD_CENTRES = 32
TIMED_IMAGES = 2000
TEACHER, ALONE = "ours, with the teacher", "ours, without"
CORES = len(os.sched_getaffinity(0))


@dataclass
class Truth:
    """What there is to find."""

    folder: Path
    protected: list[Path]
    gallery: list[Path]
    copy_of: np.ndarray
    """int [n]: number of the protected image, -1 for a clean one."""
    edit: np.ndarray
    """str [n]."""

    @staticmethod
    def read(folder: Path) -> Truth:
        with (folder / "truth.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        protected = sorted((folder / "protected").iterdir())
        number = {path.name: i for i, path in enumerate(protected)}
        gallery = [folder / "gallery" / row["gallery"] for row in rows]
        copy_of = np.array([number.get(row["protected"], -1) for row in rows])
        return Truth(folder, protected, gallery, copy_of, np.array([row["edit"] for row in rows]))

    @property
    def clean(self) -> np.ndarray:
        return self.copy_of < 0

    @property
    def counted(self) -> np.ndarray:
        return ~self.clean & ~np.char.startswith(self.edit, "stress")


Embed = Callable[[np.ndarray], np.ndarray]
"""uint8 [n, size, size, 3] -> the teacher's penultimate features, float16 [n, d]."""


def teacher(given: argparse.Namespace) -> Embed:
    import torch  # here only: workers import this file, and their memory is measured

    from ssld.models.opening import open_network

    names = ("arch", "args", "checkpoint", "mean", "std")
    settings = {name: getattr(given, f"teacher_{name}") for name in names}
    network = open_network("teacher", **settings, input_size=given.size).eval()
    torch.set_num_threads(CORES)

    @torch.inference_mode()
    def embed(pixels: np.ndarray) -> np.ndarray:
        return network.features(torch.from_numpy(pixels)).half().numpy()

    return embed


def gallery_embeddings(paths: Sequence[Path], size: int, embed: Embed) -> np.ndarray:
    """float16 [n, d] of whole frames, resized like `ssld curate score` does."""
    from ssld.data.transforms import SquashView  # torch, as above

    whole = SquashView(size)
    pieces = (paths[i : i + BATCH] for i in range(0, len(paths), BATCH))
    batches = (np.stack([whole(path.read_bytes()).numpy() for path in some]) for some in pieces)
    return np.concatenate([embed(batch) for batch in batches])


def phash(grey: np.ndarray) -> np.uint64:
    """64 bits: which of the 8 x 8 lowest cosine coefficients are above their median."""
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].ravel()
    return np.packbits(low > np.median(low[1:])).view(np.uint64)[0]


def vlad_centres(protected: Sequence[Features]) -> np.ndarray:
    """float32 [VLAD_CENTRES, 128]; Jegou et al. 2010, "Aggregating local descriptors" (CVPR)."""
    descriptors = np.concatenate([image.descriptors for image in protected])
    sample = descriptors[evenly(len(descriptors), 50_000)].astype(np.float32)
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_MAX_ITER, 30, 0.0)
    return cv2.kmeans(sample, VLAD_CENTRES, None, criteria, 1, cv2.KMEANS_PP_CENTERS)[2]  # type: ignore[call-overload]


def vlad(descriptors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """float32 [k * 128] of length 1, each centre's part of equal length (Arandjelovic and
    Zisserman 2013, "All about VLAD", section 3)."""
    vectors = descriptors.astype(np.float32)
    member = ((centres**2).sum(axis=1) - 2 * vectors @ centres.T).argmin(axis=1)
    chosen = (member == np.arange(len(centres))[:, None]).astype(np.float32)
    rest = chosen @ vectors - chosen.sum(axis=1, keepdims=True) * centres
    rest /= np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-9)
    return rest.ravel() / max(float(np.linalg.norm(rest)), 1e-9)


@dataclass
class Baselines:
    """What workers need for pHash and VLAD."""

    hashes: np.ndarray
    """uint64 [2 n]: protected images and their mirrored selves."""
    centres: np.ndarray
    vectors: np.ndarray
    """float32 [2 n, d]."""

    @staticmethod
    def of(paths: Sequence[Path], protected: Sequence[Features]) -> Baselines:
        pictures = [cv2.cvtColor(decode(p.read_bytes()), cv2.COLOR_RGB2GRAY) for p in paths]
        hashes = [phash(side) for grey in pictures for side in (grey, grey[:, ::-1])]
        centres = vlad_centres(protected)
        sides = [(f.descriptors, mirrored_descriptors(f.descriptors)) for f in protected]
        vectors = np.stack([vlad(side, centres) for both in sides for side in both])
        return Baselines(np.array(hashes), centres, vectors)


@dataclass
class Found:
    """What one batch gave."""

    bits: list[int]
    """Per image: pHash bits that differ from the nearest protected image."""
    vlad: list[float]
    """Per image: largest cosine."""
    pairs: dict[str, list[Pair]]
    """Of ours, with the teacher and without."""
    seconds: dict[str, float]
    """CPU time."""
    peak_mib: float


@dataclass
class Worker:
    """What every process has."""

    sets: dict[str, ReferenceSet]
    baselines: Baselines | None


_WORKER: Worker


def begin(folders: dict[str, Path], baselines: Baselines | None) -> None:
    global _WORKER
    _WORKER = Worker({name: ReferenceSet(folder) for name, folder in folders.items()}, baselines)


def examine(job: tuple[list[Path], Shortlist | None]) -> Found:
    """All methods on a batch."""
    paths, shortlist = job
    result, clock = Found([], [], {}, {}, 0), time.process_time()
    images = [features(path.read_bytes()) for path in paths]
    result.seconds["features"] = time.process_time() - clock
    for name, protected in _WORKER.sets.items():
        clock = time.process_time()
        result.pairs[name] = protected.examine(images, shortlist if name == TEACHER else None)
        result.seconds[name] = time.process_time() - clock
    result.peak_mib = peak_kib() / 1024
    if _WORKER.baselines:
        compare_baselines(paths, images, _WORKER.baselines, result)
    return result


def compare_baselines(
    paths: Sequence[Path], images: Sequence[Features], baselines: Baselines, result: Found
) -> None:
    for path, image in zip(paths, images, strict=True):
        grey = cv2.cvtColor(decode(path.read_bytes()), cv2.COLOR_RGB2GRAY)
        result.bits.append(int(np.bitwise_count(baselines.hashes ^ phash(grey)).min()))
        cosines = baselines.vectors @ vlad(image.descriptors, baselines.centres)
        result.vlad.append(float(cosines.max()))


def work(
    truth: Truth,
    numbers: np.ndarray,
    shortlist: Shortlist,
    folders: dict[str, Path],
    baselines: Baselines | None = None,
) -> tuple[list[Found], float]:
    """`examine` in one process per core; and images per second, without the processes' start."""
    batches = [numbers[i : i + BATCH] for i in range(0, len(numbers), BATCH)]
    jobs = [([truth.gallery[i] for i in batch], shortlist[batch]) for batch in batches]
    context = multiprocessing.get_context("spawn")
    with context.Pool(CORES, initializer=begin, initargs=(folders, baselines)) as pool:
        pool.map(examine, [([], None)] * CORES)
        started = time.monotonic()
        result = pool.map(examine, jobs, chunksize=1)
        return result, len(numbers) / (time.monotonic() - started)


def dropped_by_rule(
    truth: Truth, result: Sequence[Found], name: str, structureless: np.ndarray
) -> np.ndarray:
    """bool [n]: gallery images that our rule drops."""
    dropped = np.zeros(len(truth.gallery), bool)
    for number, batch in enumerate(result):
        pairs = batch.pairs[name]
        image, protected = (
            np.array([getattr(pair, key) for pair in pairs], int) for key in ("image", "number")
        )
        inliers, ncc, cosine = (
            np.array([getattr(pair, key) for pair in pairs], float)
            for key in ("inliers", "ncc", "cosine")
        )
        verdict = verdicts(inliers, ncc, cosine, structureless[protected], "copy")
        dropped[number * BATCH + image[verdict]] = True
    return dropped


def above_all_clean(truth: Truth, score: np.ndarray) -> np.ndarray:
    return score > score[truth.clean].max()


def nearest_cosine(gallery: np.ndarray, protected: np.ndarray) -> np.ndarray:
    """float [n]: largest cosine of embeddings [n, d] with any of [m, d]."""
    first, second = (x.astype(np.float32) for x in (gallery, protected))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    return (first @ second.T).max(axis=1)


def recalls(truth: Truth, methods: dict[str, np.ndarray]) -> list[list[str]]:
    """Recall in percent by method: of all edits, the worst, and each; clean images dropped."""

    def line(name: str, rows: np.ndarray) -> list[str]:
        return [name, *(f"{100 * dropped[rows].mean():.2f}" for dropped in methods.values())]

    edits = sorted(set(truth.edit[truth.counted]))
    lines = [line(edit, truth.counted & (truth.edit == edit)) for edit in edits]
    worst = [f"{min(map(float, column)):.2f}" for column in list(zip(*lines, strict=True))[1:]]
    beyond = sorted(set(truth.edit[~truth.clean]) - set(edits))
    clean = [str(dropped[truth.clean].sum()) for dropped in methods.values()]
    return [
        ["recall, %", *methods],
        line(f"all {truth.counted.sum():,} edited images", truth.counted),
        ["the worst edit", *worst],
        [f"dropped of {truth.clean.sum():,} clean images", *clean],
        *lines,
        *(line(edit, truth.edit == edit) for edit in beyond),
    ]


def costs(result: Sequence[Found], images: int, shortlist_ms: float) -> list[list[str]]:
    def ms(name: str) -> str:
        return f"{1000 * sum(batch.seconds[name] for batch in result) / images:.1f}"

    return [
        ["CPU per gallery image", "ms"],
        ["decode and SIFT", ms("features")],
        ["shortlist by the teacher's embedding", f"{shortlist_ms:.2f}"],
        ["votes and verification, with the teacher", ms(TEACHER)],
        ["votes and verification, without", ms(ALONE)],
    ]


def run(given: argparse.Namespace, folder: Path) -> list[list[list[str]]]:
    """The tables; the first line of each is its head."""
    truth = Truth.read(given.benchmark)
    images = [features(path.read_bytes()) for path in truth.protected]
    embed = teacher(given)
    of_gallery = gallery_embeddings(truth.gallery, given.size, embed)  # [n, d]
    whole_and_parts = (views(decode(p.read_bytes()), given.size) for p in truth.protected)
    of_protected = np.stack([embed(pixels) for pixels in whole_and_parts])  # [n, views, d]
    folders = {TEACHER: folder / "teacher", ALONE: folder / "alone"}
    protected = ReferenceSet.build(folders[TEACHER], images, of_protected)
    ReferenceSet.build(folders[ALONE], images, None)
    clock = time.process_time()
    shortlist = protected.shortlist(of_gallery)
    shortlist_ms = 1000 * (time.process_time() - clock) / len(truth.gallery)
    everything = np.arange(len(truth.gallery))
    baselines = Baselines.of(truth.protected, images)
    result, _ = work(truth, everything, shortlist, folders, baselines)
    cosine = nearest_cosine(of_gallery, of_protected[:, 0])
    bits = np.concatenate([batch.bits for batch in result])
    by_vlad = np.concatenate([batch.vlad for batch in result])
    methods = {
        f"pHash, {PHASH_BITS} bits": bits <= PHASH_BITS,
        "embedding": above_all_clean(truth, cosine),
        f"VLAD {VLAD_CENTRES} x 128": above_all_clean(truth, by_vlad),
        TEACHER: dropped_by_rule(truth, result, TEACHER, protected.structureless),
        ALONE: dropped_by_rule(truth, result, ALONE, protected.structureless),
    }
    whole = [[f"all of it on {CORES} cores", "images per second", "peak MiB of a worker"]]
    some = everything[:: max(1, len(everything) // TIMED_IMAGES)]
    for name, place in folders.items():
        timed, rate = work(truth, some, shortlist, {name: place})
        whole.append([name, f"{rate:.0f}", f"{max(batch.peak_mib for batch in timed):.0f}"])
    return [recalls(truth, methods), costs(result, len(everything), shortlist_ms), whole]


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--benchmark", type=Path, required=True)
    words.add_argument("--out", type=Path, required=True)
    words.add_argument("--size", type=int, default=224)
    words.add_argument("--teacher.arch", dest="teacher_arch", required=True)
    words.add_argument("--teacher.args", dest="teacher_args", type=json.loads, default={})
    words.add_argument("--teacher.checkpoint", dest="teacher_checkpoint", required=True)
    for name in ("mean", "std"):
        words.add_argument(
            f"--teacher.{name}", dest=f"teacher_{name}", type=float, nargs=3, required=True
        )
    given = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tables = run(given, Path(folder))
    with given.out.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(
            line for lines in tables for line in lines
        )
    print("\n\n".join("\n".join(markdown(lines[0], lines[1:])) for lines in tables))


if __name__ == "__main__":
    main()
