"""Distil, finetune and fix in one command: `ssld recipe F.yaml [--a.b value ...]`.

F.yaml has one section per stage, in the order in which they run, and `out`:

    out: runs/resnet50d
    distill: {epochs: 360, ...}     # or supervised, for a baseline; settings of that command
    finetune: {}                    # optional; what is not said is as in the stage before
    fix: {}                         # optional

An override goes to the first stage, and from there on to the others; `--finetune.epochs 10` to one
of these. Every stage has its own run folder under `out`, complete ones are skipped, incomplete ones
go on. Also `accelerate launch -m ssld.recipe F.yaml ...`. The commands are modules of their own;
nothing is trained here. One section `transfer`, `detection` or `segmentation` is a recipe, too: so
`ssld ablate` has grids of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from ssld.cli.commands import DOWNSTREAM, stage_of
from ssld.common.errors import InputError, attempt
from ssld.common.files import locked
from ssld.common.settings import plain
from ssld.distill.config import FinetuneConfig
from ssld.distill.parent_run import open_parent_run
from ssld.engine.config import LoopConfig
from ssld.engine.loop import lost_processes
from ssld.engine.processes import Processes, on_main, open_processes
from ssld.engine.run_folder import deciding
from ssld.recipe.classes import check_classes
from ssld.recipe.recipe import Recipe
from ssld.recipe.report import write_report
from ssld.recipe.stage_folder import StagePlace


@lost_processes("command")
def recipe(recipe: Recipe) -> None:
    """Run what is not complete, then write one report over all stages.

    Raises:
        InputError: a setting that is not allowed; a stage whose settings changed; another recipe at
            work in the same folder.
        Interrupted: see `ssld.engine.loop.train`; the same command goes on.
    """
    processes = open_processes()
    problem = on_main(processes, next, check_classes(recipe.configs()), None)
    if problem:
        raise InputError(f"{recipe.file}, {problem}")
    with one_command(recipe.out, processes):
        _run(recipe, processes)


@contextlib.contextmanager
def one_command(out: Path, processes: Processes) -> Iterator[None]:
    """While a command runs its stages below `out`, no other one does.

    Raises:
        InputError: another command is at work there.
    """
    with locked(out) if processes.is_main_process else contextlib.nullcontext():
        yield


def _run(recipe: Recipe, processes: Processes) -> None:
    main = processes.is_main_process
    before: tuple[dict[str, Any], bool] = ({}, False)
    for stage in recipe.stages:
        settings = recipe.config(stage, *before)
        state = on_main(processes, _look, recipe, stage, settings, recipe.overwrite)
        place = StagePlace(recipe.out, stage)
        moved = ["run", "student.checkpoint"] if before[0] else []  # the start's sha256 decides
        run_stage(place, replace(settings, allow_changes=moved), state, main)
        if len(recipe.stages) > 1:
            finished = open_parent_run(str(place.folder))
            before = finished.settings, finished.taught
    if main and recipe.stages[0] not in DOWNSTREAM:  # that stage's own report says it all
        attempt("report.html over all stages", lambda: write_report(recipe.out, recipe.stages))
        print(f"report over all stages: {recipe.out / 'report.html'}")


def run_stage(place: StagePlace, config: LoopConfig, state: str, main: bool) -> None:
    """Go on with a stage, or begin it, unless it is complete.

    Args:
        state: of `StagePlace.prepare`.
        main: whether this is the main process.

    Raises:
        InputError: the stage's command refuses it; what was put aside for it is back.
    """
    if main:
        skipped = state == "complete"
        words = "complete and unchanged, skipped" if skipped else f"{state} in {place.folder}"
        print(f"{place.stage}: {words}", flush=True)
    if state != "complete":
        try:
            begun = state == "going on"
            stage_of(place.command or place.stage)[1](replace(config, resume=begun))
        except InputError:
            if main and not place.begun:  # refused: nothing of the old is lost
                place.put_back()
            raise
        AcceleratorState._reset_state()  # the next stage may have another precision
    if main:
        place.forget_asides()


def _look(recipe: Recipe, stage: str, config: LoopConfig, overwrite: bool) -> str:
    """See `StagePlace.prepare`."""
    asked = deciding(plain(config))
    if isinstance(config, FinetuneConfig):
        asked = {k: v for k, v in asked.items() if k not in ("run", "student.checkpoint")}
        asked["start_sha256"] = open_parent_run(config.run).student_sha256()
    places = [StagePlace(recipe.out, x) for x in recipe.stages]
    place, *following = places[recipe.stages.index(stage) :]
    return place.prepare(asked, plain(config), overwrite=overwrite, following=following)
