"""Images and teachers for the experiments of docs/evidence.md, as folders on disk.

    python benchmarks/evidence/prepare.py --shared DIR --out runs/evidence

DIR holds `data/` with the packs: CIFAR-100 (13,000 + 5,000 images of the official splits),
photographs of clothing (alexeygrigorev/clothing-dataset-small, CC0) and an ImageNet-1k MobileNetV2.
Written below OUT, each time the same for a seed:

    cifar/teacher      5,000 images, 50 per class: what the teachers learn from, and nobody else
    cifar/labeled      1,000 images, 10 per class (T); labeled-noise-20 and -40: the same images,
                       exactly that share of them with the label of another class
    cifar/unlabeled    7,000 images without class folders (U)
    cifar/val          5,000 images, the official test split's
    clothing/          teacher, labeled (20 % of teacher), unlabeled (the other 80 %), val
    teachers/          runs of `ssld supervised`, each echoed; one that is complete is skipped

On one CPU core the teachers take about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSIFIER = "mobilenetv2_100.imagenet1k.fp16.safetensors"
TEACHER_PER_CLASS, LABELED_PER_CLASS = 50, 10
NOISE_PERCENT = (20, 40)
CLOTHING_LABELED = 0.2


@dataclass(frozen=True)
class Teacher:
    """How `ssld supervised` trains one teacher."""

    name: str
    data: str
    """Folder below OUT that holds its `teacher/` and `val/`."""
    size: int
    """Side of its views in px."""
    steps: int


TEACHERS = (
    Teacher("clothing", "clothing", size=64, steps=450),
    # The same network on fewer pixels and after fewer steps: what a better teacher is worth.
    Teacher("cifar-100-steps", "cifar", size=48, steps=100),
    Teacher("cifar-200-steps", "cifar", size=48, steps=200),
    Teacher("cifar-400-steps", "cifar", size=48, steps=400),
    Teacher("cifar", "cifar", size=48, steps=900),
    Teacher("cifar-64px", "cifar", size=64, steps=450),
)


def pixels(path: Path) -> tuple[np.ndarray, list[str]]:
    """uint8 [n, 32, 32, 3] and each image's class name, out of lossless sheets."""
    pack = np.load(path)
    tiles = []
    for name in sorted(k for k in pack.files if k.startswith("sheet_")):
        sheet = np.asarray(Image.open(io.BytesIO(pack[name].tobytes())).convert("RGB"))
        rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
        cut = sheet.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 1, 3, 4)
        tiles.append(cut.reshape(-1, 32, 32, 3))
    names = [str(pack["classes"][label]) for label in pack["labels"]]
    return np.concatenate(tiles)[: len(names)], names


def split(names: list[str], seed: int) -> dict[str, list[int]]:
    """Positions of the teacher's, the labeled and the unlabeled images; no two parts share one."""
    by_class: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        by_class.setdefault(name, []).append(position)
    parts: dict[str, list[int]] = {"teacher": [], "labeled": [], "unlabeled": []}
    end = TEACHER_PER_CLASS + LABELED_PER_CLASS
    for name, positions in by_class.items():
        random.Random(f"{seed}/{name}").shuffle(positions)
        parts["teacher"] += positions[:TEACHER_PER_CLASS]
        parts["labeled"] += positions[TEACHER_PER_CLASS:end]
        parts["unlabeled"] += positions[end:]
    return parts


def with_noise(names: list[str], percent: int, seed: int) -> list[str]:
    """`names` with exactly `percent` of them permuted, so that each of these is wrong.

    A permutation keeps the number of images per class.
    """
    draw = random.Random(f"{seed}/noise/{percent}")
    chosen = draw.sample(range(len(names)), len(names) * percent // 100)
    given = [names[i] for i in chosen]
    draw.shuffle(given)
    for here, i in enumerate(chosen):
        while given[here] == names[i]:
            there = draw.randrange(len(chosen))
            if given[there] != names[i] and given[here] != names[chosen[there]]:
                given[here], given[there] = given[there], given[here]
    noisy = list(names)
    for i, name in zip(chosen, given, strict=True):
        noisy[i] = name
    assert sum(a != b for a, b in zip(names, noisy, strict=True)) == len(chosen)
    assert Counter(noisy) == Counter(names)
    return noisy


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def link(file: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(file, path)


def unpack_cifar(packs: Path, out: Path, seed: int) -> None:
    images, names = pixels(packs / "cifar100-train.npz")
    parts = split(names, seed)
    for i in parts["teacher"]:
        write(out / "teacher" / names[i] / f"train-{i:05d}.png", png(images[i]))
    for i in parts["unlabeled"]:
        write(out / "unlabeled" / f"train-{i:05d}.png", png(images[i]))
    few = parts["labeled"]
    files = [write(out / "labeled" / names[i] / f"train-{i:05d}.png", png(images[i])) for i in few]
    for percent in NOISE_PERCENT:
        noisy = with_noise([names[i] for i in few], percent, seed)
        for file, name in zip(files, noisy, strict=True):
            link(file, out / f"labeled-noise-{percent}" / name / file.name)
    images, names = pixels(packs / "cifar100-test.npz")
    for i, name in enumerate(names):
        write(out / "val" / name / f"test-{i:05d}.png", png(images[i]))


def unpack_clothing(packs: Path, out: Path, seed: int) -> None:
    with tarfile.open(packs / "clothing-small-160.tar") as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}  # type: ignore[union-attr]
    index = json.loads(files["index.json"])
    train: dict[str, list[str]] = {}
    for image in index["images"]:
        name, file = index["names"][image["label"]], image["file"]
        if image["split"] == "train":
            train.setdefault(name, []).append(file)
        else:
            write(out / "val" / name / Path(file).name, files[file])
    for name, members in train.items():
        random.Random(f"{seed}/{name}").shuffle(members)
        few = round(CLOTHING_LABELED * len(members))
        for i, member in enumerate(members):
            base = Path(member).name
            file = write(out / "teacher" / name / base, files[member])
            link(file, out / "labeled" / name / base if i < few else out / "unlabeled" / base)


def unpack(packs: Path, out: Path, seed: int) -> None:
    """Both data sets; what an interrupted call left behind is written anew."""
    for name, write_into in (("cifar", unpack_cifar), ("clothing", unpack_clothing)):
        if (out / name).exists():
            continue
        partial = out / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write_into(packs, partial, seed)
        partial.rename(out / name)
    for folder in sorted(f for name in ("cifar", "clothing") for f in (out / name).iterdir()):
        print(f"{folder}: {sum(1 for f in folder.rglob('*') if f.is_file()):,} images")


def complete(run: Path) -> bool:
    """Whether a run of ssld went to its end and exported its student."""
    description = run / "run.json"
    return description.exists() and "exported" in json.loads(description.read_text())


def train(teacher: Teacher, packs: Path, out: Path) -> None:
    run, data = out / "teachers" / teacher.name, out / teacher.data
    if complete(run):
        print(f"{run}: complete, skipped")
        return
    words: list[object] = ["supervised", "--out", run, "--overwrite"]
    words += ["--data.labeled", data / "teacher", "--data.val", data / "val"]
    words += ["--student.arch", "mobilenetv2_100", "--student.checkpoint", packs / CLASSIFIER]
    words += ["--augment.size", teacher.size, "--augment.scale", "[0.5, 1.0]"]
    words += ["--steps", teacher.steps, "--batch_size", 64, "--schedule.warmup_epochs", 0.5]
    # SGD at 0.1 was at step 560 where AdamW is at step 100; at 0.3 it was no faster.
    words += ["--optimizer.name", "adamw", "--schedule.lr", 0.004]
    words += ["--channels_last", "true", "--data.workers", 0, "--log_every_steps", 20]
    ssld(*words, "--evaluate_every_epochs", 1000, "--probe.every_epochs", 0)


def ssld(*words: object) -> None:
    arguments = [str(word) for word in words]
    print("$ ssld", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "ssld", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="teachers to train; by default all of them")
    given = parser.parse_args()
    packs = given.shared / "data"
    unpack(packs, given.out, given.seed)
    for teacher in TEACHERS:
        if given.only is None or teacher.name in given.only:
            train(teacher, packs, given.out)


if __name__ == "__main__":
    main()
