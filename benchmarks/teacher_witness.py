"""What predictions tell about a teacher's preprocessing, on images that it was not trained for.

    python benchmarks/teacher_witness.py FOLDER [--images 100] [--cache runs/teacher-witness]

FOLDER holds photographs of six domains (imagenet-sample-256, clothing-small-160, camvid, bccd,
mouse-keypoints .tar, cifar100-test.npz) and an ImageNet classifier of mean = std = 0.5 as
mobilenetv2_100.imagenet1k.fp16.safetensors. Each domain is taken
as it is, in grey and as the central quarter; pairs of domains are mixed. The classifier is judged
by `ssld.health.teacher_check` as it is right, and with each fault planted. Prints the tables of
docs/teacher-check.md.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import timm
import torch
from measure import CLASSIFIER, parser, sheets, show
from PIL import Image
from safetensors.torch import load_file

from ssld.data.transforms import EvalView
from ssld.health.teacher_check import (
    GIVEN,
    NORMALISATIONS,
    SWAPPED,
    TeacherCheck,
    answers_of,
    compare,
)
from ssld.models.classifier import Classifier

TARS = {
    "imagenet-sample": "imagenet-sample-256",
    "clothing": "clothing-small-160",
    "camvid": "camvid",
    "bccd": "bccd",
    "mouse": "mouse-keypoints",
}
RIGHT = "Inception's"
"""Mean and deviation 0.5."""
FORMS = ("as it is", "grey", "centre")
ALL = list(itertools.product(NORMALISATIONS, (False, True)))
DIM = (64.25,) * 3, (63.75,) * 3
"""What the classifier would see if it took 0..255 for itself and were given -1..1."""
HALVES = 20
"""Random halves of each domain that are judged, too."""


def of_tar(path: Path, count: int) -> tuple[list[Image.Image], list[int]]:
    """Images spread evenly over a tar's photographs, with labels where its index has timm's."""
    with tarfile.open(path) as tar:
        names = sorted(m.name for m in tar if m.name.endswith(".jpg") and "masks/" not in m.name)
        names = [names[i * len(names) // count] for i in range(min(count, len(names)))]
        images = [Image.open(io.BytesIO(tar.extractfile(n).read())).convert("RGB") for n in names]  # type: ignore[union-attr]
        index = json.load(tar.extractfile("index.json")) if "imagenet" in path.name else None  # type: ignore[arg-type]
    labels = {x["file"]: x["label"] for x in index["images"]} if index else {}
    return images, [labels.get(name, -1) for name in names]


def shown(image: Image.Image, form: str) -> torch.Tensor:
    """A form of the image as an evaluation at 224 px sees it, uint8 [224, 224, 3]."""
    if form == "grey":
        image = image.convert("L").convert("RGB")
    if form == "centre":
        w, h = image.size
        image = image.crop((w // 4, h // 4, w - w // 4, h - h // 4))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return EvalView(224, 0.875, "bicubic")(buffer.getvalue())


@torch.inference_mode()
def logits(model: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    """float16 [len(ALL) + 1, n, classes], the last under `DIM`."""
    results = []
    for (mean, std), swapped in [*((NORMALISATIONS[n], s) for n, s in ALL), (DIM, False)]:
        network = Classifier(model, input_size=224, mean=mean, std=std).eval()
        seen = images.flip(-1) if swapped else images
        results.append(torch.cat([network(part) for part in seen.split(50)]).numpy())
    return np.stack(results).clip(-6e4, 6e4).astype(np.float16)


def classifier(folder: Path) -> torch.nn.Module:
    model = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    weights = load_file(folder / CLASSIFIER)
    model.load_state_dict({name: x.float() for name, x in weights.items()})
    return model


def measured(folder: Path, count: int, cache: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """{"domain, form": probabilities [len(ALL) + 1, n, classes]}, labels of imagenet-sample; one
    file for each domain in `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    model, result, known = classifier(folder), {}, np.empty(0)
    for domain in (*TARS, "cifar100"):
        if domain == "cifar100":
            pixels = sheets(folder / "cifar100-test.npz")[0][:count]
            images, labels = list(map(Image.fromarray, pixels)), [-1] * len(pixels)
        else:
            images, labels = of_tar(folder / f"{TARS[domain]}.tar", count)
        known = np.array(labels) if domain == "imagenet-sample" else known
        for form in FORMS:
            file = cache / f"{domain}, {form}.npy"
            if not file.is_file():
                np.save(file, logits(model, torch.stack([shown(x, form) for x in images])))
                print(f"{file.stem}: {len(images)} images", flush=True)
            raw = torch.from_numpy(np.load(file)).float()
            result[file.stem] = raw.softmax(-1).numpy()
    for one, other in itertools.combinations([name for name in result if FORMS[0] in name], 2):
        name = f"{one.split(',')[0]} + {other.split(',')[0]}"
        result[name] = np.concatenate([result[one][:, ::2], result[other][:, ::2]], axis=1)
    return result, known


def judged(
    probabilities: np.ndarray, labels: np.ndarray, name: str = RIGHT, swapped: bool = False
) -> TeacherCheck:
    """As `ssld.health.teacher_check.check_teacher` judges the classifier with a normalisation and
    an order of channels given, those of `DIM` with the name "dim"."""
    given = ("0 to 255", False) if name == "dim" else (name, swapped)
    mean, std = NORMALISATIONS[RIGHT if name == "dim" else name]
    network = Classifier(timm.create_model("test_vit"), input_size=224, mean=mean, std=std)
    answers = {}
    for place, (other, order) in enumerate(ALL):
        if (other, order) == given:
            answers[GIVEN] = answers_of(probabilities[-1 if name == "dim" else place])
        elif other == given[0] and name != "dim":
            answers[SWAPPED] = answers_of(probabilities[place])
        elif order == swapped and name != "dim":
            answers[f"normalisation {other}"] = answers_of(probabilities[place])
    if name == "dim":  # it would be right as 0..255, and hardly less dim under the others
        right = probabilities[ALL.index((RIGHT, False))]
        answers["normalisation 0 to 255"] = answers_of(right)
    return compare(network, answers, labels)


FAULTS = {
    "pixels 127 times too large": ("0 to 255", False),
    "pixels 127 times too small": ("dim", False),
    "ImageNet's normalisation": ("ImageNet's", False),
    "CLIP's normalisation": ("CLIP's", False),
    "0 to 1": ("0 to 1", False),
    "channels swapped": (RIGHT, True),
}


def word(check: TeacherCheck) -> str:
    return "found" if check.findings else "hint" if check.hints else "-"


def without_labels(result: dict[str, np.ndarray]) -> None:
    """What is said of each domain, right and with every fault."""
    rng = np.random.default_rng(0)
    rows = []
    for name, p in result.items():
        unknown = np.full(p.shape[1], -1)
        right = judged(p, unknown)
        halves = [rng.permutation(p.shape[1])[: p.shape[1] // 2] for _ in range(HALVES)]
        words = [word(judged(p[:, half], unknown[half])) for half in halves]
        faults = [word(judged(p, unknown, *fault)) for fault in FAULTS.values()]
        alarms = f"{words.count('found')} found, {words.count('hint')} hints"
        told = f"{right.information[GIVEN]:.2f}"
        rows.append([name, told, word(right), alarms, *faults])
    show(["images", "told, nats", "as it is right", "of 20 halves", *FAULTS], rows)


def with_labels(p: np.ndarray, labels: np.ndarray) -> None:
    """What is said of photographs of the classifier's own classes."""
    orders = {"labels shifted by one": np.roll(np.arange(1000), 1)}
    orders["labels permuted"] = np.random.default_rng(0).permutation(1000)
    rows = {"as it is right": judged(p, labels)}
    rows |= {
        name: judged(p, labels, *fault) for name, fault in FAULTS.items() if "dim" not in fault
    }
    rows |= {name: judged(p, order[labels]) for name, order in orders.items()}
    show(["given", "top-1", "said first"], (
        [name, f"{check.top1[GIVEN]:.1%}", (*check.findings, "-")[0].partition(" (")[0]]
        for name, check in rows.items()
    ))  # fmt: skip


def main() -> None:
    words = parser(__doc__)
    words.add_argument("folder", type=Path)
    words.add_argument("--images", type=int, default=100)
    words.add_argument("--cache", type=Path, default=Path("runs/teacher-witness"))
    given = words.parse_args()
    result, labels = measured(given.folder, given.images, given.cache)
    with_labels(result[f"imagenet-sample, {FORMS[0]}"], labels)
    print()
    without_labels(result)


if __name__ == "__main__":
    main()
