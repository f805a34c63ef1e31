"""What the feature term is worth beside the divergence and alone, for docs/features.md.

    python benchmarks/prepare.py evidence --packs PACKS --only clothing cifar   # once
    python benchmarks/features_study.py run [NAME ...]      # 35 minutes; goes on
    python benchmarks/features_study.py collect             # table and figure, from the runs
    python benchmarks/features_study.py collect --runs ""   # the same from the committed CSV

What is run is `ssld ablate` of benchmarks/features/NAME.yaml, in RUNS/NAME. Nearest neighbours and
linear classifier are those of the runs' own probe: they learn from the labeled images T and are
tested on held-out ones. The same of networks that learned nothing, one for each seed, and of the
teacher stand beside them.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from measure import Rows, less, places, plain, read, show, spread, ssld, study, values, write

from ssld.data.labels import LabelIndex, class_names
from ssld.data.loading import ViewBatches, eval_batches
from ssld.data.sources import open_source
from ssld.data.transforms import eval_view
from ssld.distill.config import ProbeConfig
from ssld.distill.probe import MANY, features, scores
from ssld.models.classifier import Classifier
from ssld.models.opening import open_network
from ssld.report.plots import COLOURS

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "features"
SETS = ("clothing", "cifar")
NONE, UNTRAINED, TEACHER = "none", "untrained student", "teacher"
METRICS = {
    "agreement1": "agreement@1",
    "feature_agreement": "feature agreement",
    "knn": "kNN",
    "linear": "linear",
}


def recipe(name: str) -> dict[str, Any]:
    """Of a set, as the file has it."""
    return yaml.safe_load((HERE / "features" / f"{name}.yaml").read_text())


def run(names: list[str], runs: Path) -> None:
    """One set after the other, on one core; what is complete is skipped."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    for name in names or SETS:
        ssld("ablate", HERE / "features" / f"{name}.yaml", f"--out={runs / name}")
        file = runs / name / "beside.json"
        if not file.is_file():
            file.write_text(json.dumps(list(beside(name))))


def beside(name: str) -> Iterator[dict[str, Any]]:
    """What the probe makes of the students before their first step, and of the teacher."""
    settings = recipe(name)["distill"]
    for seed in recipe(name)["grid"]["seed"]:
        torch.manual_seed(seed)
        student = open_network(
            "student",
            arch=settings["student"]["arch"],
            num_classes=1,
            input_size=settings["augment"]["size"],
        )
        yield {"term": UNTRAINED, "seed": seed, **probed(student, settings["data"])}
    teacher = open_network("teacher", arch=None, checkpoint=settings["teacher"]["checkpoint"])
    yield {"term": TEACHER, "seed": 0, **probed(teacher, settings["data"])}


def probed(network: Classifier, data: dict[str, str]) -> dict[str, float]:
    """As a run's probe at its defaults."""
    sources = {key: [open_source(data[key])] for key in ("labeled", "val")}
    config = ProbeConfig()
    index = LabelIndex(class_names([*sources["labeled"], *sources["val"]]), MANY, strict=False)
    train, test = (
        features(
            network.eval(),
            eval_batches(
                ViewBatches(own, eval_view(network), index), batch_size=64, limit=config.images
            ),
        )
        for own in sources.values()
    )
    return scores(train, test, config.neighbours)


def collect(runs: Path, out: Path) -> None:
    """A CSV of what there is."""
    rows = []
    for name in SETS:
        cells = [x for x in read(runs / name / "results.csv") if x["status"] == "done"]
        file = runs / name / "beside.json"
        others = json.loads(file.read_text()) if file.is_file() else []
        for row in (*cells, *others):
            place = {"set": name, "term": row["term"], "seed": row["seed"]}
            rows.append({**place, **{key: row.get(key, "") for key in METRICS}})
    if not rows:
        raise SystemExit(f"{runs} has no finished run; `run` makes them")
    write(out / "runs.csv", rows)


def tables(out: Path) -> None:
    """Each set's scores, and what they are less those without the term, with a 95 % interval over
    seeds."""
    rows = read(out / "runs.csv")
    for name in places(rows, "set"):
        own = [row for row in rows if row["set"] == name]
        print(f"\n{name}, %, {len(places(own, 'seed'))} seeds\n")
        show(
            ["term", *(x for title in METRICS.values() for x in (title, "less none"))],
            [[term, *_cells(own, term)] for term in places(own, "term")],
        )


def _cells(rows: Rows, term: str) -> Iterator[str]:
    for column in METRICS:
        yield spread(values(rows, column, term=term))
        yield "" if term == TEACHER else less(rows, column, {"term": term}, {"term": NONE})


def draw(out: Path) -> None:
    """Mean and standard deviation of each term, and across what the untrained student has."""
    rows = read(out / "runs.csv")
    names = places(rows, "set")
    figure = Figure(figsize=(2.8 * len(METRICS), 2.6 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), len(METRICS), squeeze=False)
    for name, line in zip(names, grid, strict=True):
        own = [row for row in rows if row["set"] == name]
        terms = [x for x in places(own, "term") if x not in (UNTRAINED, TEACHER)]
        for column, axes in zip(METRICS, line, strict=True):
            found = [(term, values(own, column, term=term)) for term in terms]
            found = [(term, scores) for term, scores in found if scores]
            means = [statistics.mean(scores) for _, scores in found]
            errors = [statistics.stdev(scores) if scores[1:] else 0 for _, scores in found]
            ticks = range(len(found))
            plain(axes).errorbar(ticks, means, errors, fmt="o", color=COLOURS[0], capsize=3)
            axes.set_xticks(ticks, [term.replace(" ", "\n") for term, _ in found], fontsize=8)
            axes.set_xlim(-0.5, len(found) - 0.5)
            axes.set_title(f"{name}: {METRICS[column]}, %", fontsize=9)
            for other, colour in ((UNTRAINED, "#888888"), (TEACHER, COLOURS[1])):
                beside = values(own, column, term=other)
                if beside:
                    axes.axhline(statistics.mean(beside), color=colour, ls="--", lw=1, label=other)
    grid[0, -1].legend(frameon=False, fontsize=7)
    figure.savefig(out / "terms.png", dpi=110)


if __name__ == "__main__":
    study(__doc__, "runs/features", OUT, run=run, collect=collect, shown=(tables, draw))
