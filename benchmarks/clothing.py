"""Label-free distillation against training on 10 % of the labels, on photographs of clothing.

    python benchmarks/clothing.py --photos clothing-small-160.tar \\
        --classifier mobilenetv2_100.imagenet1k.fp16.safetensors --out runs/clothing

Photographs: alexeygrigorev/clothing-dataset-small (CC0), shorter side 160, with an `index.json` of
file, label and split. The classifier (ImageNet-1k, 71 %) is fine-tuned on all labels and teaches a
student several times smaller, from scratch. Only `ssld` commands are run, each echoed; the table
is written to `OUT/table.md` and every number comes from `ssld evaluate` on test + validation.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

STUDENT = "mobilenetv3_small_050"


def unpack(tar: Path, out: Path, seed: int) -> None:
    """Write teacher/ (all training labels), labeled/ (10 % per class), unlabeled/ (the rest,
    no class folders) and val/ (test and validation)."""
    with tarfile.open(tar) as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}  # type: ignore[union-attr]
    index = json.loads(files["index.json"])
    train: dict[str, list[dict]] = {}
    for image in index["images"]:
        name = index["names"][image["label"]]
        if image["split"] == "train":
            train.setdefault(name, []).append(image)
        else:
            write(out / "val" / name, image, files)
    for name, images in train.items():
        random.Random(f"{seed}/{name}").shuffle(images)
        few = max(1, round(0.1 * len(images)))
        for i, image in enumerate(images):
            write(out / "teacher" / name, image, files)
            write(out / "labeled" / name if i < few else out / "unlabeled", image, files)


def write(folder: Path, image: dict, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / Path(image["file"]).name).write_bytes(files[image["file"]])


def ssld(*arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    print("$ ssld", *words, flush=True)
    subprocess.run([sys.executable, "-m", "ssld", *words], check=True)


def evaluate(model: Path, val: Path) -> dict:
    result = model / "evaluation.json"
    ssld("evaluate", "--model", model, "--data", val, "--workers", 2, "--out", result)
    return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/clothing"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=112)
    given = parser.parse_args()
    out, data = given.out, given.out / "data"
    unpack(given.photos, data, seed=0)
    shared = ["--batch_size", 64, "--augment.size", given.size, "--data.workers", 2]
    shared += ["--data.val", data / "val", "--evaluate_every_epochs", 10, "--overwrite"]
    ssld(
        "supervised", "--out", out / "teacher", "--data.labeled", data / "teacher", *shared,
        "--student.arch", "mobilenetv2_100", "--student.checkpoint", given.classifier,
        "--epochs", 6, "--schedule.lr", 0.1, "--augment.scale", "[0.3, 1.0]",
    )  # fmt: skip
    rows = {"teacher": [evaluate(out / "teacher", data / "val")], "baseline": [], "distilled": []}
    student = ["--student.arch", STUDENT, "--steps", given.steps, "--schedule.lr", 0.4]
    student += ["--augment.scale", "[0.3, 1.0]", *shared]
    for seed in range(given.seeds):
        for name, command, extra in (
            ("baseline", "supervised", ["--label_smoothing", 0.1]),
            ("distilled", "distill", ["--teacher.checkpoint", out / "teacher",
                                      "--data.unlabeled", data / "unlabeled"]),
        ):  # fmt: skip
            folder = out / f"{name}-{seed}"
            ssld(command, "--out", folder, "--seed", seed, "--data.labeled", data / "labeled",
                 *student, *extra)  # fmt: skip
            rows[name].append(evaluate(folder, data / "val"))
    table = "\n".join(lines(rows))
    (out / "table.md").write_text(table + "\n")
    (out / "results.json").write_text(json.dumps(rows, indent=2))
    print(table)


def lines(rows: dict[str, list[dict]]) -> list[str]:
    table = [
        "| network | parameters (M) | top-1, mean ± deviation | each seed |",
        "|---|---|---|---|",
    ]
    for name, results in rows.items():
        top1 = [100 * r["top1"] for r in results]
        spread = f" ± {statistics.stdev(top1):.1f}" if len(top1) > 1 else ""
        each = ", ".join(f"{x:.1f}" for x in top1)
        size = results[0]["parameters"] / 1e6
        table.append(f"| {name} | {size:.2f} | {statistics.mean(top1):.1f}{spread} % | {each} |")
    return table


if __name__ == "__main__":
    main()
