"""`ssld methods F.yaml`: ways to learn from unlabeled images on the same labels, seeds and steps.

All runs are made one after the other, complete ones are skipped; nothing is trained here: they are
runs of `ssld detection`, `ssld segmentation`, `ssld sed` and `ssld selftrain` (`plan.py`). Then

OUT/methods.json   all numbers      OUT/methods.md   scores, differences, costs
OUT/report.html    the same, with the scores over the share of the labels
"""

from __future__ import annotations

import json
from typing import Any

from downstream.methods.analysis import analyse, as_json
from downstream.methods.plan import RECIPES, Plan, Trial, unequal
from downstream.methods.report import markdown, write_report
from downstream.sed.command import check_unlabeled as check_unlabeled_of_sed
from downstream.selftrain.command import check_unlabeled, selftrain
from ssld.common.errors import attempt
from ssld.common.files import write_atomically
from ssld.common.settings import plain
from ssld.engine.loop import lost_processes
from ssld.engine.processes import Processes, on_main, open_processes
from ssld.engine.run_folder import deciding
from ssld.recipe.command import one_command, run_stage
from ssld.recipe.stage_folder import StagePlace


@lost_processes("command")
def methods(plan: Plan) -> None:
    """Run what is not complete, then compare.

    Raises:
        InputError: a run whose settings changed, or that refuses them; another command at work in
            the same folder.
        Interrupted: see `ssld.engine.loop.train`; the same command goes on.
    """
    processes = open_processes()
    main = processes.is_main_process
    with one_command(plan.out, processes):
        trials = list(plan.trials())
        if main:
            print("".join(f"warning: {x}\n" for x in unequal(plan)), end="", flush=True)
        _check_unlabeled(plan, trials, processes)
        for number, trial in enumerate(trials):
            if main:
                print(f"\n{number + 1} of {len(trials)}: {trial.name}", flush=True)
            if trial.method in RECIPES:
                selftrain(plan.recipe(trial, trained=True))
            else:
                _run(plan, trial, processes)
        if main:
            _finish(plan)


def _check_unlabeled(plan: Plan, trials: list[Trial], processes: Processes) -> None:
    """Before hours of the supervised run."""
    labeling = next((x for x in trials if x.method in RECIPES), None)
    if labeling:
        check_unlabeled(plan.recipe(labeling, trained=False), processes.is_main_process)
    of_sed = [x for x in trials if x.method == "sed"]
    if of_sed:  # of the largest share, which leaves the fewest images unlabeled
        check_unlabeled_of_sed(processes, plan.run(max(of_sed, key=lambda x: x.share)))


def _run(plan: Plan, trial: Trial, processes: Processes) -> None:
    folder, config = trial.folder(plan.out), plan.run(trial)
    place = StagePlace(folder.parent, folder.name, plan.command(trial))
    state = on_main(processes, _prepare, plan, place, config)
    run_stage(place, config, state, processes.is_main_process)


def _prepare(plan: Plan, place: StagePlace, config: Any) -> str:
    """See `StagePlace.prepare`."""
    place.out.mkdir(parents=True, exist_ok=True)
    place.check()
    settings = plain(config)
    return place.prepare(deciding(settings), settings, overwrite=plan.overwrite)


def _finish(plan: Plan) -> None:
    analysis = analyse(plan)
    write_atomically(plan.out / "methods.json", json.dumps(as_json(analysis), indent=1) + "\n")
    text = markdown(analysis)
    write_atomically(plan.out / "methods.md", text)
    attempt("report.html", lambda: write_report(analysis, plan.out / "report.html"))
    print(f"\n{text}\nnumbers: {plan.out / 'methods.json'}\nreport:  {plan.out / 'report.html'}")
