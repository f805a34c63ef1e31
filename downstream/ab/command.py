"""`ssld ab`: which of two backbones is better downstream, by how much, and how sure is that?

A grid of backbone x learning rate x seed is run as `ssld ablate` runs it; then pairs of runs that
differ in the backbone alone are compared (`statistics.py`). Besides what `ssld ablate` writes:

OUT/ab.json       all numbers           OUT/ab.md   scores, differences, times
OUT/report.html   the same, with learning curves and a plot of the differences
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from downstream.ab.analysis import Results, analyse, as_json
from downstream.ab.grid import RATE, RATES, ABConfig, build
from downstream.ab.records import Result, read_result
from downstream.ab.report import markdown, write_report
from downstream.backbone.config import BackboneConfig
from downstream.backbone.weights import open_classifier
from downstream.dense.networks import require_packages
from ssld.ablate import command, state
from ssld.ablate.command import SweepState
from ssld.ablate.grid import SEED, Ablation
from ssld.common.errors import attempt
from ssld.common.files import write_atomically
from ssld.common.settings_file import read_settings
from ssld.recipe.config import blamed


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
    tree = read_settings(Path(config.file))

    def made(overrides: list[str]) -> tuple[Ablation, str]:
        ablation, note = build(replace(config, overrides=overrides), tree)
        command.check_recipes(ablation)
        return ablation, note

    ablation, note = blamed(config.file, config.overrides, made)
    _check_backbones(ablation)
    return command.run(ablation, config, note, lambda sweep: finish(config, sweep))


def _check_backbones(ablation: Ablation) -> None:
    """Build those that are still to be trained, or B's name would be found wrong after A's runs.

    Raises:
        InputError: an unknown name, a folder that holds no network.
    """
    waiting = {}
    for trial in ablation.trials:
        if state.done_rows(ablation.folder(trial), trial) is None:
            settings = next(iter(trial.recipe.values()))["backbone"]
            waiting[settings["name"]] = settings.get("args") or {}
    for name, args in waiting.items():
        open_classifier(BackboneConfig(name=name, args=args, pretrained=False))


def finish(config: ABConfig, sweep: SweepState) -> None:
    """Write ab.json, ab.md and report.html of the runs that are finished."""
    sweep.write()
    analysis, out = analyse(config, read_results(config, sweep)), sweep.ablation.out
    write_atomically(out / "ab.json", json.dumps(as_json(analysis), indent=1) + "\n")
    text = markdown(analysis)
    write_atomically(out / "ab.md", text)
    attempt("report.html", lambda: write_report(analysis, out / "report.html"))
    print(f"\n{text}\nnumbers: {out / 'ab.json'}\nreport:  {out / 'report.html'}")


def read_results(config: ABConfig, sweep: SweepState) -> Results:
    """Of the trials that did not fail."""
    ablation = sweep.ablation
    results: dict[tuple[int, str], dict[int, Result]] = {
        (side, rate): {} for side in (0, 1) for rate in RATES
    }
    for trial in ablation.trials:
        if trial.name not in sweep.failed:
            backbone, rate, seed = (trial.values[axis].value for axis in ("backbone", RATE, SEED))
            run = ablation.folder(trial) / config.task
            results[config.backbones.index(backbone), rate][seed] = read_result(run, config.task)
    return results
