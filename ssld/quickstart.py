"""`ssld quickstart`: the whole method on handwritten digits, with the commands a user would type.

scikit-learn's digits (Alpaydin & Kaynak 1998) are written out as image folders: `teacher/`, the
labeled images on which an off-the-shelf teacher was trained elsewhere; `labeled/`, the user's few;
`unlabeled/`, the user's many; `val/`, held out. The four do not overlap.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLASSES = 10
PER_CLASS = {"teacher": 60, "labeled": 3, "unlabeled": 76}
"""Images of each digit; the rest is held out."""
SIDE = 32
RECIPES = Path(__file__).resolve().parent.parent / "configs"


def write_digits(folder: Path, seed: int) -> dict[str, int]:
    """Write the four splits as PNG files of 32 px; returns how many images each has."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    counts: dict[str, int] = {}
    generator = np.random.default_rng(seed)
    for digit in range(CLASSES):
        chosen = generator.permutation(np.flatnonzero(digits.target == digit))
        ends = np.cumsum(list(PER_CLASS.values()))
        splits = dict(zip([*PER_CLASS, "val"], np.split(chosen, ends), strict=True))
        for split, indices in splits.items():
            target = folder / split / ("" if split == "unlabeled" else str(digit))
            target.mkdir(parents=True, exist_ok=True)
            for i in indices:
                pixels = (digits.images[i] * 255 / 16).astype(np.uint8)
                picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                picture.save(target / f"digit-{i:04d}.png")
            counts[split] = counts.get(split, 0) + len(indices)
    return counts


def commands(out: Path, seed: int) -> list[list[str]]:
    """What a user would type, without the leading `ssld`."""
    data = out / "data"
    supervised = ["supervised", "--config", _shown(RECIPES / "quickstart-supervised.yaml")]
    distill = ["distill", "--config", _shown(RECIPES / "quickstart.yaml")]
    shared = ["--data.val", str(data / "val"), "--seed", str(seed), "--overwrite"]

    def run(command: list[str], name: str, *rest: str) -> list[str]:
        return [*command, "--out", str(out / name), *rest, *shared]

    few = ["--data.labeled", str(data / "labeled")]
    return [
        run(supervised, "teacher", "--student.arch", "resnet10t",
            "--data.labeled", str(data / "teacher")),
        run(supervised, "baseline", "--student.arch", "test_resnet", *few),
        run(distill, "distilled", "--teacher.checkpoint", str(out / "teacher"), *few,
            "--data.unlabeled", str(data / "unlabeled")),
        *(
            ["evaluate", "--model", str(out / name), "--data", str(data / "val"),
             "--workers", "0", "--out", str(out / f"{name}.json")]
            for name in ("teacher", "baseline", "distilled")
        ),
    ]  # fmt: skip


def _shown(path: Path) -> str:
    """As short as it can be typed from here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def table(out: Path, counts: dict[str, int]) -> str:
    """The three results as a markdown table, read from what `ssld evaluate` wrote."""
    trained_on = {
        "teacher": f"{counts['teacher']} labels of its own",
        "baseline": f"{counts['labeled']} labels",
        "distilled": f"no label, {counts['labeled'] + counts['unlabeled']} images",
    }
    rows = ["| network | parameters | trained on | top-1 [95 % interval] |", "|---|---|---|---|"]
    for name, what in trained_on.items():
        result = json.loads((out / f"{name}.json").read_text())
        low, high = result["top1_low"], result["top1_high"]
        top1 = f"{result['top1']:.1%} [{low:.1%} to {high:.1%}]"
        rows.append(f"| {name} | {result['parameters'] / 1e6:.2f} M | {what} | {top1} |")
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything into `--out`; returns the first exit code that is not 0."""
    parser = argparse.ArgumentParser(
        prog="ssld quickstart", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder to use")
    parser.add_argument("--seed", type=int, default=0, help="of splits, weights, order and views")
    given = parser.parse_args(argv)
    started = time.monotonic()
    marker = given.out / "data" / ".ssld-quickstart"
    if given.out.exists() and any(given.out.iterdir()) and not marker.is_file():
        print(f"error: {given.out} is not empty: give another --out", file=sys.stderr)
        return 2
    counts = write_digits(given.out / "data", given.seed)
    marker.touch()
    for arguments in commands(given.out, given.seed):
        print(f"\n$ ssld {shlex.join(arguments)}", flush=True)
        code = subprocess.run([sys.executable, "-m", "ssld", *arguments]).returncode
        if code:
            return code
    print(f"\n{counts['val']} held-out images, {time.monotonic() - started:.0f} seconds in all\n")
    print(table(given.out, counts))
    print(f"\nrun folder: {given.out / 'distilled'}")
    print(f"report:     {given.out / 'distilled' / 'report.html'}")
    return 0
