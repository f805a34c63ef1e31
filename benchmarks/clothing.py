"""Label-free distillation against training on 10 % of the labels, on photographs of clothing.

    python benchmarks/clothing.py --photos clothing-small-160.tar \\
        --classifier mobilenetv2_100.imagenet1k.fp16.safetensors --out runs/clothing

Photographs: alexeygrigorev/clothing-dataset-small (CC0), shorter side 160, with an `index.json` of
file, label and split. The classifier (ImageNet-1k, 71 %) is fine-tuned on all labels and teaches a
student several times smaller, from scratch. Only `ssld` commands are run, each echoed; the table
is written to `OUT/table.md` and every number comes from `ssld evaluate` on test + validation.
"""

from __future__ import annotations

import json
from pathlib import Path

from measure import markdown, parser, spread, ssld
from prepare import split_clothing

STUDENT = "mobilenetv3_small_050"


def evaluate(model: Path, val: Path) -> dict:
    result = model / "evaluation.json"
    ssld("evaluate", "--model", model, "--data", val, "--workers", 2, "--out", result)
    return json.loads(result.read_text())


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--photos", type=Path, required=True)
    words.add_argument("--classifier", type=Path, required=True)
    words.add_argument("--out", type=Path, default=Path("runs/clothing"))
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--steps", type=int, default=1000)
    words.add_argument("--size", type=int, default=112)
    given = words.parse_args()
    out, data = given.out, given.out / "data"
    split_clothing(given.photos, data, 0, 0.1)
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
    head = ("network", "parameters (M)", "top-1, mean ± deviation", "each seed")
    table = "\n".join(markdown(head, (_row(name, results) for name, results in rows.items())))
    (out / "table.md").write_text(table + "\n")
    (out / "results.json").write_text(json.dumps(rows, indent=2))
    print(table)


def _row(name: str, results: list[dict]) -> list[str]:
    top1 = [100 * result["top1"] for result in results]
    size = f"{results[0]['parameters'] / 1e6:.2f}"
    return [name, size, f"{spread(top1)} %", ", ".join(f"{x:.1f}" for x in top1)]


if __name__ == "__main__":
    main()
