"""Self-training on real images, for docs/self-training.md: each share of the labels, seed, variant.

    python benchmarks/prepare.py downstream --packs PACKS     # once, writes runs/downstream
    python benchmarks/self_training.py run                    # hours on two cores; goes on
    python benchmarks/self_training.py collect                # tables and figures, from the runs
    python benchmarks/self_training.py collect --runs ""      # the same from the committed CSVs

`run` writes RUNS/SET/SHARE/SEED/VARIANT, each a folder of `ssld selftrain`. All variants of a
share and seed have the same labeled images and the same teacher; `one view`, `fixed threshold` and
those of the views have labels of their own.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure
from measure import Rows, draw_intervals, parser, plain, read, show, spread, write
from PIL import Image

from downstream.ab.records import Result, read_result
from downstream.ab.statistics import compare
from downstream.dense.drawing import draw_boxes, draw_keypoints, draw_mask, image_grid
from downstream.detection.data.boxes import BoxSource, open_boxes
from downstream.segmentation.data.masks import MaskSource, open_masks
from ssld.report.plots import COLOURS

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "self-training"
SEEDS = (0, 1, 2)
ONE_VIEW = ("--labels.test.scales=[{scale}]", "--labels.test.flip=false")
VARIANTS: dict[str, tuple[str, ...]] = {
    "distilled": (),
    "one view": ONE_VIEW,
    "from the teacher": ("--student.start=teacher",),
    "fixed threshold": ("--labels.threshold=0.5",),
    "flip alone": (ONE_VIEW[0],),
    "ratio 4:6": ("--student.data.generated_share=0.6",),
    "half as long": ("--student.steps={half}",),
    "scales alone": (ONE_VIEW[1],),
    "ratio 8:2": ("--student.data.generated_share=0.2",),
    "twice as long": ("--student.steps={twice}",),
    "surer keypoints": ("--labels.keypoint_threshold=0.2",),
}
"""Words of `ssld selftrain` beside those of `distilled`, which also trains the teacher and the
oracle. The teacher has as many steps as the student: it is the supervised baseline."""
ABLATIONS = tuple(VARIANTS)[2:-1]
"""Of the paper's: where images go, how long, from where, what is kept, which views."""
METHODS = ("baseline", "one view", "distilled", "oracle")
"""Of which the scores are drawn."""
DRAWN = ("bccd", "mouse")
"""Sets of which pictures are shown: CamVid's licence does not allow all uses."""
TABLE_2 = ("half as long", "twice as long")
"""Their baselines are as long as they."""


@dataclass(frozen=True)
class Set:
    """Images with labels, of which a share is used."""

    task: str
    shares: tuple[float, ...]
    steps: int
    """Of teacher, oracle and student."""
    scale: float = 1.0
    """Of the one view."""
    ablated: float = 0.1
    """The share with which variants are tried."""
    variants: tuple[str, ...] = ()
    """Those that are."""


SETS = {
    "bccd": Set("detection", (0.1, 0.3), 600, variants=ABLATIONS),
    "camvid": Set("segmentation", (0.1, 0.3), 500, scale=0.4),
    "mouse": Set("detection", (1 / 6, 0.5), 300, ablated=0.5, variants=("surer keypoints",)),
}


@dataclass(frozen=True)
class Trial:
    """One call of `ssld selftrain`."""

    name: str
    share: float
    seed: int
    variant: str

    def folder(self, runs: Path) -> Path:
        words = self.variant.replace(" ", "-").replace(":", "-")
        return runs / self.name / f"{self.share:.2f}" / str(self.seed) / words

    def words(self, runs: Path) -> list[str]:
        given, first = SETS[self.name], self.folder(runs).parent / "distilled"
        values = {"scale": given.scale, "half": given.steps // 2, "twice": 2 * given.steps}
        words = [str(HERE / "selftrain" / f"{self.name}.yaml"), f"--out={self.folder(runs)}"]
        if self.variant == "distilled":
            words += [f"--seed={self.seed}", f"--data.labeled_share={self.share}"]
            words += ["--oracle=true"] if self.share == given.shares[0] else []
        else:
            words += [f"--teacher.run={first / 'teacher'}"]
            words += ["--baseline=true"] if self.variant in TABLE_2 else []
        return words + [word.format(**values) for word in VARIANTS[self.variant]]


def trials(names: list[str]) -> Iterator[Trial]:
    """All sets first, then the ablations; `distilled` comes before its variants."""
    for name in names:
        for seed in SEEDS:
            for share in SETS[name].shares:
                yield Trial(name, share, seed, "distilled")
                yield Trial(name, share, seed, "one view")
    for name in names:
        for variant in SETS[name].variants:
            for seed in SEEDS:
                yield Trial(name, SETS[name].ablated, seed, variant)


def run(names: list[str], runs: Path, jobs: int) -> None:
    """All trials, so many cells (a set, share and seed, or an ablation) at a time, a core each."""
    cells: dict[tuple[str, int, float, str], list[Trial]] = {}
    for trial in trials(names):
        ablation = trial.variant if trial.variant in SETS[trial.name].variants else ""
        cells.setdefault((trial.name, trial.seed, trial.share, ablation), []).append(trial)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda cell: [_run(trial, runs) for trial in cell], cells.values()))


def _run(trial: Trial, runs: Path) -> None:
    folder = trial.folder(runs)
    if (folder / "selftrain.json").is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    words = trial.words(runs)
    print("$ ssld selftrain", *words, flush=True)
    with folder.with_suffix(".log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "ssld", "selftrain", *words]
        code = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
    if code:
        print(f"ended with {code}: {folder.with_suffix('.log')}", flush=True)


def stages(trial: Trial, runs: Path) -> dict[str, Result]:
    """What the networks of a trial reached, by stage."""
    folder, task = trial.folder(runs), SETS[trial.name].task
    names = [x for x in ("teacher", "baseline", "oracle", "student") if (folder / x).is_dir()]
    return {name: read_result(folder / name, task) for name in names}


def collect(names: list[str], runs: Path, out: Path) -> None:
    """CSVs of what there is."""
    scores: list[dict[str, Any]] = []
    results: dict[tuple[str, str, str], dict[int, Result]] = {}
    for trial in trials(names):
        if not (trial.folder(runs) / "selftrain.json").is_file():
            continue
        for stage, result in stages(trial, runs).items():
            method = trial.variant if stage == "student" else stage
            method = "baseline" if stage == "teacher" else method
            if trial.variant in TABLE_2 and stage == "baseline":
                method = f"baseline, {trial.variant}"
            place = {"set": trial.name, "share": f"{trial.share:.2f}", "method": method}
            line = {**place, "seed": trial.seed, "metric": result.key, "score": result.score}
            scores.append({**line, "labels": _labels(trial, runs) if stage == "student" else ""})
            results.setdefault(tuple(place.values()), {})[trial.seed] = result
    write(out / "runs.csv", scores)
    write(out / "differences.csv", list(_differences(results)))


def _labels(trial: Trial, runs: Path) -> int:
    manifest = json.loads((trial.folder(runs) / "labels" / "pseudo_labels.json").read_text())
    return manifest["instances"] if manifest.get("instances") is not None else ""


def _differences(results: dict[Any, dict[int, Result]]) -> Iterator[dict[str, Any]]:
    """Of each method less supervised training of as many steps, and less what it departs from."""
    for (name, share, method), runs in results.items():
        against = [f"baseline, {method}" if method in TABLE_2 else "baseline"]
        against += ["one view"] if method == "distilled" else []
        against += ["distilled"] if method in SETS[name].variants else []
        if method not in (*VARIANTS, "oracle"):
            continue
        for other in against:
            others = results.get((name, share, other), {})
            seeds = sorted(set(runs) & set(others))
            if not seeds:
                continue
            pairs = [(others[seed], runs[seed]) for seed in seeds]
            records = [(a.record.statistic, b.record.statistic) for a, b in pairs]
            found = compare(
                [a.score for a, _ in pairs], [b.score for _, b in pairs], records,
                images=len(pairs[0][0].record.ids),
            )  # fmt: skip
            limits = {}
            for what in ("over_seeds", "over_images", "over_both"):
                interval = getattr(found, what)
                for side in ("low", "high"):
                    limits[f"{what}_{side}"] = getattr(interval, side) if interval else ""
            yield {
                "set": name, "share": share, "method": method, "less": other,
                "seeds": len(seeds), "mean": found.mean, **limits,
            }  # fmt: skip


def tables(out: Path) -> None:
    """Print both tables of each set."""
    runs, differences = read(out / "runs.csv"), read(out / "differences.csv")
    for name in dict.fromkeys(row["set"] for row in runs):
        own = [row for row in runs if row["set"] == name]
        shares = list(dict.fromkeys(row["share"] for row in own))
        methods = list(dict.fromkeys(row["method"] for row in own))
        print(f"\n{name}, {own[0]['metric']}, %\n")
        rows = [[m, *(spread(_scores(own, share, m)) for share in shares)] for m in methods]
        show(["method", *(f"{share} of the labels" for share in shares)], rows)
        print()
        rows = [
            [f"{x['method']} less {x['less']}", x["share"], _points(x), _verdict(x)]
            for x in differences
            if x["set"] == name
        ]
        show(["difference", "share", "points, 95 % interval", "verdict"], rows)


def _scores(rows: Rows, share: str, method: str) -> list[float]:
    chosen = {x["seed"]: x for x in rows if x["share"] == share and x["method"] == method}
    return [100 * float(x["score"]) for x in chosen.values()]


def _interval(row: dict[str, str]) -> tuple[float, float] | None:
    low, high = row["over_both_low"], row["over_both_high"]
    return (100 * float(low), 100 * float(high)) if low else None


def _points(row: dict[str, str]) -> str:
    interval = _interval(row)
    limits = f" [{interval[0]:+.1f} to {interval[1]:+.1f}]" if interval else ""
    return f"{100 * float(row['mean']):+.1f}{limits}"


def _verdict(row: dict[str, str]) -> str:
    interval = _interval(row)
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "no difference shown"
    return "better" if interval[0] > 0 else "worse"


def draw(out: Path) -> None:
    """The differences with their intervals, each set on a scale of its own."""
    rows = [x for x in read(out / "differences.csv") if _interval(x)]
    sets = {
        name: [x for x in rows if x["set"] == name]
        for name in dict.fromkeys(x["set"] for x in rows)
    }
    heights = [len(own) + 1 for own in sets.values()]
    figure = Figure(figsize=(9, 0.27 * sum(heights) + 0.5), layout="constrained")
    parts = figure.subplots(len(sets), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (name, own) in zip(parts, sets.items(), strict=True):
        axes = plain(part, "x")
        names = [f"{name} {x['share']}: {x['method']} less {x['less']}" for x in own]
        means = [100 * float(row["mean"]) for row in own]
        limits = [_interval(row) or (0, 0) for row in own]
        draw_intervals(axes, list(zip(names, means, limits, strict=True)))
    parts[-1].set_xlabel("points, 95 % interval over seeds and images")
    figure.savefig(out / "differences.png", dpi=110)


def draw_scores(out: Path) -> None:
    """The score of each set over the share of the labels: mean and standard deviation of seeds."""
    rows = read(out / "runs.csv")
    names = list(dict.fromkeys(row["set"] for row in rows))
    figure = Figure(figsize=(3.2 * len(names), 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        own = [row for row in rows if row["set"] == name]
        shares = sorted({row["share"] for row in own})
        for colour, method in zip(COLOURS, METHODS, strict=False):
            found = [(100 * float(x), _scores(own, x, method)) for x in shares]
            if method == "oracle":
                axes.axhline(np.mean(found[0][1]), color="#888888", ls="--", label="all labels")
                continue
            places = [place for place, scores in found if scores]
            means = [np.mean(scores) for _, scores in found if scores]
            spreads = [np.std(x, ddof=1) if len(x) > 1 else 0 for _, x in found if x]
            axes.errorbar(places, means, spreads, fmt="o-", color=colour, capsize=3, label=method)
        plain(axes, "y").set_title(name, fontsize=10)
        axes.set_xlabel("share of the labels, %")
        axes.set_ylabel(f"{own[0]['metric']}, %")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.savefig(out / "scores.png", dpi=110)


def draw_labels(runs: Path, out: Path) -> None:
    """Human annotations, or the mere image where there are none, beside the teacher's: of the first
    seed and share of DRAWN."""
    rows = []
    for name in DRAWN:
        trial = Trial(name, SETS[name].shares[0], SEEDS[0], "distilled")
        labels = trial.folder(runs) / "labels"
        if (labels / "pseudo_labels.json").is_file():
            rows.append(_sheet(SETS[name].task, _train(name), str(labels)))
    width = max(row.shape[1] for row in rows)
    wide = [
        np.pad(row, ((0, 16), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    Image.fromarray(np.concatenate(wide)).save(out / "labels.jpg", quality=85)


def _train(name: str) -> str:
    recipe = yaml.safe_load((HERE / "selftrain" / f"{name}.yaml").read_text())
    return recipe["teacher"]["data"]["train"]


def _sheet(task: str, human: str, generated: str) -> np.ndarray:
    """Of two images, evenly spread."""
    open_source, draw = (
        (open_boxes, _with_boxes) if task == "detection" else (open_masks, _with_masks)
    )
    theirs = open_source(human)
    own = open_source(generated, theirs.class_names)
    known = {Path(theirs.sample_id(i)).name: i for i in range(len(theirs))}
    pairs = []
    for i in (len(own) // 3, 2 * len(own) // 3):
        pixels = np.asarray(Image.open(io.BytesIO(own.read(i))).convert("RGB"))
        j = known.get(Path(own.sample_id(i)).name)
        pairs.append((pixels if j is None else draw(theirs, j, pixels), draw(own, i, pixels)))
    return image_grid(pairs)


def _with_boxes(source: BoxSource, i: int, pixels: np.ndarray) -> np.ndarray:
    found = source.boxes(i)
    drawn = draw_boxes(pixels, found.xyxy, found.labels.tolist(), source.class_names)
    if found.keypoints is not None and source.keypoints is not None:
        drawn = draw_keypoints(drawn, found.keypoints, source.keypoints)
    return drawn


def _with_masks(source: MaskSource, i: int, pixels: np.ndarray) -> np.ndarray:
    return draw_mask(pixels, source.mask(i), source.palette)


def main() -> None:
    words = parser(__doc__)
    words.add_argument("what", choices=("run", "collect"))
    words.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    words.add_argument("--runs", default="runs/selftrain", help="empty: from the CSVs alone")
    words.add_argument("--jobs", type=int, default=2, help="trials at a time")
    words.add_argument("--out", type=Path, default=OUT)
    given = words.parse_args()
    if given.what == "run":
        run(given.sets, Path(given.runs), given.jobs)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    if given.runs:
        collect(given.sets, Path(given.runs), given.out)
        draw_labels(Path(given.runs), given.out)
    tables(given.out)
    draw(given.out)
    draw_scores(given.out)


if __name__ == "__main__":
    main()
