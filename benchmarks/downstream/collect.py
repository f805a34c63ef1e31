"""Tables and the figure of docs/downstream.md from finished A/Bs.

    python benchmarks/downstream/collect.py --runs runs/downstream --out docs/downstream
    python benchmarks/downstream/collect.py --out docs/downstream     # from the committed CSVs

Writes OUT/runs.csv (the score of every run) and OUT/differences.csv from RUNS/NAME/ab.json, draws
OUT/differences.png and prints the tables.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from ssld.report.page import COLOURS

NAMES = {
    "bccd-imagenet": ("BCCD, FCOS on MobileNetV2", "random", "ImageNet"),
    "camvid-imagenet": ("CamVid, FCN on MobileNetV2", "random", "ImageNet"),
    "bccd-students": ("BCCD, FCOS on MobileNetV3-small x0.5", "labels", "distilled"),
    "camvid-students": ("CamVid, FCN on MobileNetV3-small x0.5", "labels", "distilled"),
    "camvid-students-400": ("the same, 400 steps", "labels", "distilled"),
}
"""Folder of an A/B: what was trained, A and B in a word each."""
Rows = list[dict[str, str]]


def collect(runs: Path, out: Path) -> None:
    """Write the CSVs of the A/Bs that are finished."""
    scores, differences = [], []
    for name in NAMES:
        file = runs / name / "ab.json"
        if not file.is_file():
            print(f"{name}: not run yet")
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        sides = {backbone: side for side, backbone in found["backbones"].items()}
        for run in found["runs"]:
            side = sides[run["backbone"]]
            row = {"ab": name, "metric": found["metric"], "side": side}
            scores.append({**row, "lr": run["lr"], "seed": run["seed"], "score": run["score"]})
        for comparison, x in found["differences_b_less_a"].items():
            if x is None:
                continue
            ends = {
                f"{kind}_{end}": x[f"over_{kind}"][end]
                for kind in ("seeds", "images", "both")
                for end in ("low", "high")
            }
            reached = x["to_last_score_of_a"] or {}
            steps = [(reached.get(side) or {}).get("step") for side in ("a", "b")]
            differences.append(
                {"ab": name, "comparison": comparison, "a_lr": x["lr"][0], "b_lr": x["lr"][1],
                 "seeds": len(x["seeds"]), "images": x["images"], "mean": x["mean"], **ends,
                 "verdict": x["verdict"], "a_steps": steps[0], "b_steps": steps[1]}
            )  # fmt: skip
    for name, rows in (("runs", scores), ("differences", differences)):
        with (out / f"{name}.csv").open("w", newline="") as target:
            writer = csv.DictWriter(target, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def read(path: Path) -> Rows:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tables(scores: Rows, differences: Rows) -> str:
    """Markdown: scores by backbone and rate, then differences."""
    lines = ["| | A: | same | tuned | B: | same | tuned |", "|---|---|---|---|---|---|---|"]
    done = [name for name in NAMES if any(row["ab"] == name for row in scores)]
    for name in done:
        title, a, b = NAMES[name]
        cells = []
        for side, word in (("A", a), ("B", b)):
            cells.append(word)
            for rate in ("same", "tuned"):
                found = [
                    100 * float(row["score"])
                    for row in scores
                    if (row["ab"], row["side"], row["lr"]) == (name, side, rate)
                ]
                spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
                cells.append(f"{statistics.fmean(found):.1f}{spread}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", "| | at | B less A, points | verdict | B's steps to A's last score |",
              "|---|---|---|---|---|"]  # fmt: skip
    for row in differences:
        mean, low, high = (100 * float(row[key]) for key in ("mean", "both_low", "both_high"))
        share = "not reached"
        if row["b_steps"]:
            share = f"{float(row['b_steps']) / float(row['a_steps']):.0%}"
        rates = row["comparison"]
        if rates == "best":
            rates = f"best ({row['a_lr']}, {row['b_lr']})"
        said = f"{mean:+.1f} [{low:+.1f} to {high:+.1f}]"
        lines.append(
            f"| {NAMES[row['ab']][0]} | {rates} | {said} | {row['verdict']} | {share} |"
        )  # fmt: skip
    return "\n".join(lines)


def draw(differences: Rows, path: Path) -> None:
    """Differences with their intervals, at both rates."""
    figure = Figure(figsize=(8.2, 0.32 * len(differences) + 1), layout="constrained")
    plot = figure.subplots()
    shown = [row for row in differences if row["comparison"] in ("same", "tuned")]
    for place, row in enumerate(reversed(shown)):
        colour = COLOURS[0] if row["comparison"] == "same" else COLOURS[1]
        mean, low, high = (100 * float(row[key]) for key in ("mean", "both_low", "both_high"))
        plot.plot([low, high], [place, place], color=colour, lw=2.5)
        plot.plot(mean, place, "o", color=colour, ms=7)
    labels = [
        f"{NAMES[row['ab']][0]}\n{NAMES[row['ab']][2]} less {NAMES[row['ab']][1]}, "
        f"{'same rate' if row['comparison'] == 'same' else 'tuned'}"
        for row in reversed(shown)
    ]
    plot.set_yticks(range(len(shown)), labels, fontsize=8)
    plot.axvline(0, color="#57606a", lw=1)
    plot.grid(axis="x", color="#e6e8eb")
    plot.set_axisbelow(True)
    plot.spines[["top", "right"]].set_visible(False)
    plot.set_xlabel("points of AP or mean IoU, 95 % interval over seeds and images")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, help="folder of the A/Bs")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.runs:
        collect(given.runs, given.out)
    scores, differences = read(given.out / "runs.csv"), read(given.out / "differences.csv")
    draw(differences, given.out / "differences.png")
    print(tables(scores, differences))


if __name__ == "__main__":
    main()
