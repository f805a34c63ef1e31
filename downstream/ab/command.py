"""`ssld ab`: which of two backbones is better downstream, by how much, and how sure is that?

A grid of backbone x learning rate x seed is run as `ssld ablate` runs it; then pairs of runs that
differ in the backbone alone are compared (`ab_statistics.py`). Besides what `ssld ablate` writes:

OUT/ab.json       all numbers           OUT/ab.md   scores, differences, times
OUT/report.html   the same, with learning curves and a plot of the differences
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from downstream.ab import statistics as ab_statistics
from downstream.ab.grid import RATE, RATES, ABConfig, build
from downstream.ab.records import MEASURES, Result, read_result
from downstream.ab.statistics import Difference, Point
from downstream.backbone.config import BackboneConfig
from downstream.dense.packages import require_packages
from ssld.ablate import command, state
from ssld.ablate.command import Ledger
from ssld.ablate.config import AblateConfig
from ssld.ablate.grid import SEED, Ablation
from ssld.common.errors import InputError
from ssld.common.files import write_atomically
from ssld.common.metrics import METRICS

Results = Mapping[tuple[int, str], Mapping[int, Result]]
"""{(0 for A or 1 for B, learning rate): {seed: result}} of what is finished."""


@dataclass(frozen=True)
class Reached:
    """How long the mean learning curves of A and B take to the last score of A's."""

    score: float
    a: Point | None
    b: Point | None
    """None: not reached."""


@dataclass(frozen=True)
class Comparison:
    """A at one learning rate against B at one."""

    rates: tuple[str, str]
    seeds: tuple[int, ...]
    images: int | None
    """On which each run was evaluated, where it kept a record."""
    difference: Difference
    reached: Reached | None


@dataclass(frozen=True)
class Analysis:
    """All that is said of an A/B."""

    task: str
    file: str
    backbones: tuple[str, str]
    results: Results
    same: Comparison | None
    """Both at the same learning rate in all layers."""
    tuned: Comparison | None
    """Both at the preset of distilled backbones."""
    best: Comparison | None
    """Each at the rate of its best mean score, which the held-out images themselves chose."""

    @property
    def label(self) -> str:
        return METRICS[MEASURES[self.task].key].label

    @property
    def comparisons(self) -> dict[str, Comparison | None]:
        return {"same": self.same, "tuned": self.tuned, "best": self.best}


def ab(config: ABConfig) -> int:
    """Run what is not finished, then compare.

    Returns:
        0, or 1 if a run failed.

    Raises:
        InputError: an unknown backbone; see `ssld.ablate.command.ablate`; a run folder is damaged.
        Interrupted: by a signal; the same command goes on.
    """
    if config.task == "detection":
        require_packages("ssld ab --task detection", "faster_coco_eval")
    ablation, note = build(config)
    _check_backbones(ablation)
    settings = AblateConfig(
        file=config.file,
        out=config.out,
        devices=config.devices,
        overwrite=config.overwrite,
        overrides=config.overrides,
    )
    return command.run(ablation, settings, note, lambda ledger: finish(config, ledger))


def _check_backbones(ablation: Ablation) -> None:
    """Build those that are still to be trained, or B's name would be found wrong after A's runs.

    Raises:
        InputError: an unknown name, a folder that holds no network.
    """
    waiting = {}
    for cell in ablation.cells:
        if state.done_rows(ablation.folder(cell), cell) is None:
            settings = next(iter(cell.recipe.values()))["backbone"]
            waiting[settings["name"]] = settings.get("args") or {}
    if waiting:
        from downstream.backbone.weights import open_classifier

        for name, args in waiting.items():
            open_classifier(BackboneConfig(name=name, args=args, pretrained=False))


def finish(config: ABConfig, ledger: Ledger) -> None:
    """Write ab.json, ab.md and report.html of the runs that are finished."""
    from downstream.ab.report import markdown, write_report
    from ssld.common.attempt import attempt

    ledger.write()
    found, out = analyse(config, read_results(config, ledger)), ledger.ablation.out
    write_atomically(out / "ab.json", json.dumps(as_json(found), indent=1) + "\n")
    said = markdown(found)
    write_atomically(out / "ab.md", said)
    attempt("report.html", lambda: write_report(found, out / "report.html"))
    print(f"\n{said}\nnumbers: {out / 'ab.json'}\nreport:  {out / 'report.html'}")


def read_results(config: ABConfig, ledger: Ledger) -> Results:
    """Of the cells that did not fail."""
    ablation = ledger.ablation
    found: dict[tuple[int, str], dict[int, Result]] = {
        (side, rate): {} for side in (0, 1) for rate in RATES
    }
    for cell in ablation.cells:
        if cell.name in ledger.failed:
            continue
        place = config.backbones.index(cell.values["backbone"].value), cell.values[RATE].value
        result = read_result(ablation.folder(cell) / config.task, config.task)
        found[place][cell.values[SEED].value] = result
    return found


def analyse(config: ABConfig, results: Results) -> Analysis:
    """
    Raises:
        InputError: runs of a pair were evaluated on different images.
    """
    same, tuned = (_compare(results, (rate, rate)) for rate in RATES)
    of_a, of_b = _best(results, 0), _best(results, 1)
    best = _compare(results, (of_a, of_b)) if of_a and of_b else None
    a, b = config.backbones
    return Analysis(config.task, config.file, (a, b), results, same, tuned, best)


def _best(results: Results, side: int) -> str | None:
    """The learning rate with the best mean score."""
    means = {
        rate: statistics.fmean(x.score for x in results[side, rate].values())
        for rate in RATES
        if results[side, rate]
    }
    return max(means, key=lambda rate: means[rate]) if means else None


def _compare(results: Results, rates: tuple[str, str]) -> Comparison | None:
    """None where no seed has both runs."""
    a, b = (results[side, rate] for side, rate in enumerate(rates))
    seeds = tuple(sorted(a.keys() & b.keys()))
    if not seeds:
        return None
    pairs = [(a[seed], b[seed]) for seed in seeds]
    images = _images(pairs, seeds)
    records = [(x.record.statistic, y.record.statistic) for x, y in pairs if x.record and y.record]
    difference = ab_statistics.compare(
        [x.score for x, _ in pairs],
        [y.score for _, y in pairs],
        records if images else (),
        images=images or 0,
    )
    curves = [ab_statistics.mean_curve([pair[i].curve for pair in pairs]) for i in (0, 1)]
    reached = None if difference.flaw else _reached(curves[0], curves[1])
    return Comparison(rates, seeds, images, difference, reached)


def _images(pairs: Sequence[tuple[Result, Result]], seeds: Sequence[int]) -> int | None:
    """How many all runs were evaluated on; None where one of them kept no record."""
    records = [x.record for pair in pairs for x in pair]
    known = [record.ids for record in records if record is not None]
    if len(known) < len(records):
        return None
    other = next((i for i, ids in enumerate(known) if ids != known[0]), None)
    if other is not None:
        raise InputError(
            f"the runs of seed {seeds[0]} and seed {seeds[other // 2]} were not evaluated on the "
            f"same images ({len(known[0])} and {len(known[other])}): has data.val changed, or can "
            "an image not be read any more? Start anew with another --out"
        )
    return len(known[0])


def _reached(a: Sequence[Point], b: Sequence[Point]) -> Reached | None:
    if not a or not b:
        return None
    score = a[-1].score
    return Reached(score, ab_statistics.reach(a, score), ab_statistics.reach(b, score))


def as_json(found: Analysis) -> dict[str, Any]:
    """ab.json"""
    scores = [
        {"backbone": found.backbones[side], "lr": rate, "seed": seed}
        | {"score": result.score if math.isfinite(result.score) else None}
        | {f"{key}_{when}": x for when, known in result.probe.items() for key, x in known.items()}
        for (side, rate), runs in found.results.items()
        for seed, result in sorted(runs.items())
    ]
    compared = {}
    for name, one in found.comparisons.items():
        if one is not None:
            said = {"lr": one.rates, "seeds": one.seeds, "images": one.images}
            mean = None if one.difference.flaw else one.difference.mean
            said |= {**asdict(one.difference), "mean": mean}
            said["by_seed"] = [x if math.isfinite(x) else None for x in said["by_seed"]]
            said |= {"verdict": one.difference.verdict}
            compared[name] = said | {"to_last_score_of_a": one.reached and asdict(one.reached)}
    return {
        "task": found.task,
        "metric": MEASURES[found.task].key,
        "file": found.file,
        "backbones": dict(zip("AB", found.backbones, strict=True)),
        "runs": scores,
        "differences_b_less_a": compared,
    }
