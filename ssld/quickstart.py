"""`ssld quickstart`: the whole method on handwritten digits, with the commands a user would type.

scikit-learn's digits (Alpaydin & Kaynak 1998) are written out as image folders: `teacher/`, the
labeled images on which an off-the-shelf teacher was trained elsewhere; `labeled/`, the user's few;
`unlabeled/`, the user's many; `val/`, held out. The four do not overlap.
"""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssld.cli.run import main
from ssld.common.errors import InputError
from ssld.common.settings import NonNegativeInt, Settings

CLASSES = 10
PER_CLASS = {"teacher": 60, "labeled": 3, "unlabeled": 76}
"""Images of each digit; the rest is held out."""
SIDE = 32
TEACHER = {"channels": [32, 64, 128, 256], "stem_width": 16}
"""Of timm's resnet10t: half as wide as it comes, which is enough for ten digits."""
RECIPES = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class QuickstartConfig(Settings):
    """`ssld quickstart`: the whole method on handwritten digits, with the commands a user would
    type."""

    out: str = "runs/quickstart"
    """Folder to use."""
    seed: NonNegativeInt = 0
    """Of splits, weights, order and views."""


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
            "--student.args", json.dumps(TEACHER), "--data.labeled", str(data / "teacher")),
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


def quickstart(config: QuickstartConfig) -> int:
    """Run everything into `config.out`, in this process, as starting six takes half a minute of a
    slow processor; returns the first exit code that is not 0.

    Raises:
        InputError: the folder holds something else.
    """
    out, started = Path(config.out), time.monotonic()
    marker = out / "data" / ".ssld-quickstart"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not marker.is_file())):
        raise InputError(f"{out} is not empty: give another --out")
    (out / "data").mkdir(parents=True, exist_ok=True)
    marker.touch()  # first: what is killed while it writes is started anew
    counts = write_digits(out / "data", config.seed)
    for arguments in commands(out, config.seed):
        print(f"\n$ ssld {shlex.join(arguments)}", flush=True)
        if code := main(arguments):
            return code
    print(f"\n{counts['val']} held-out images, {time.monotonic() - started:.0f} seconds in all\n")
    print(table(out, counts))
    print(f"\nrun folder: {out / 'distilled'}")
    print(f"report:     {out / 'distilled' / 'report.html'}")
    return 0


if __name__ == "__main__":
    from ssld.cli.run import launch

    raise SystemExit(launch("quickstart"))
