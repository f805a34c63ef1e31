"""`ssld selftrain F.yaml`: Data Distillation (arXiv:1712.04440, section 3) as one command.

OUT/teacher    trained on human annotations, unless a run is given
OUT/labels     its annotations of unlabeled images, as `ssld pseudo-label` writes them
OUT/baseline   where asked: as the student, on human annotations alone; the teacher where that was
OUT/oracle     where asked: the baseline with all human annotations
OUT/student    trained on both kinds
OUT/selftrain.json, report.html    all of them side by side

Complete stages are skipped, incomplete ones go on. Nothing is trained or labeled here: the stages
are `ssld detection`, `ssld segmentation` and `ssld pseudo-label`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from downstream.dense.generated import MANIFEST
from downstream.pseudo_label.command import check_images
from downstream.pseudo_label.config import check
from downstream.selftrain.outcome import compare, teacher_warning
from downstream.selftrain.recipe import LABELS, TRAINED, Selftrain, stages_of
from downstream.selftrain.report import as_json, summary, write_report
from ssld.cli.commands import COMMANDS, work_of
from ssld.common.errors import InputError, attempt
from ssld.common.files import read_object, write_atomically
from ssld.common.settings import plain
from ssld.engine.loop import lost_processes
from ssld.engine.processes import Processes, on_main, open_processes
from ssld.engine.run_folder import deciding
from ssld.recipe.command import one_command, run_stage
from zoo.release import sha256_of

MOVED = ("data.generated", "init")
"""Settings of the student that change when the whole folder is moved; digests decide."""


@lost_processes("command")
def selftrain(recipe: Selftrain) -> None:
    """Run what is not complete, then write one report over all stages.

    Raises:
        InputError: a stage whose settings changed, or that refuses them; another command at work in
            the same folder.
        Interrupted: see `ssld.engine.loop.train`; the same command goes on.
    """
    processes = open_processes()
    main = processes.is_main_process
    with one_command(recipe.out, processes):
        if main and recipe.teacher_is_baseline:
            print("baseline: the teacher, as it has the same settings", flush=True)
        if recipe.given_teacher is None:
            check_unlabeled(recipe, main)
        for stage in stages_of(recipe):
            if stage == LABELS:
                _label(recipe, main)
            else:
                _train(recipe, stage, processes)
        if main:
            _finish(recipe)


def _train(recipe: Selftrain, stage: str, processes: Processes) -> None:
    config, place = recipe.configs[stage], recipe.place(stage)
    state = on_main(processes, _prepare, recipe, stage)
    changes = list(MOVED) if stage == "student" else []
    config = replace(config, allow_changes=changes)
    run_stage(place, config, state, processes.is_main_process)


def _prepare(recipe: Selftrain, stage: str) -> str:
    """See `StagePlace.prepare`; the student depends on the teacher and its labels, too."""
    config = recipe.configs[stage]
    asked = deciding(plain(config))
    if stage == "student":
        asked = {key: value for key, value in asked.items() if key not in MOVED}
        asked["labels_sha256"] = labels_sha256(recipe.out / LABELS)
        asked["start_sha256"] = _start_sha256(config.init) if config.init else None
    later = TRAINED[TRAINED.index(stage) + 1 :] if stage == "teacher" else ()
    following = [recipe.place(name) for name in later if name == "student"]
    return recipe.place(stage).prepare(
        asked, plain(config), overwrite=recipe.overwrite, following=following
    )  # fmt: skip


def labels_sha256(folder: Path) -> str:
    """Of the files of a set of pseudo-labels."""
    files = read_object(folder / MANIFEST, "the same command makes it again").get("files")
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _start_sha256(run: str) -> str:
    for file in (Path(run) / "model/model.safetensors", Path(run) / "model.safetensors"):
        if file.is_file():
            return sha256_of(file)
    raise InputError(f"{run} has no model.safetensors to start from")


def check_unlabeled(recipe: Selftrain, main: bool) -> None:
    """A teacher is not trained for hours where held-out images are to be annotated."""
    config = replace(recipe.labels, overwrite=recipe.overwrite)
    check(config)
    if main:
        print("unlabeled: looking for held-out images among them", flush=True)
    check_images(config, recipe.task, recipe.configs["teacher"])
    open_processes().wait_for_everyone()


def _label(recipe: Selftrain, main: bool) -> None:
    if main:
        print(f"labels: in {recipe.out / LABELS}", flush=True)
        warning = teacher_warning(recipe)
        if warning:
            print(f"warning: {warning}", flush=True)
    config = replace(recipe.labels, overwrite=recipe.overwrite)
    work_of(COMMANDS["pseudo-label"], config)
    open_processes().wait_for_everyone()


def _finish(recipe: Selftrain) -> None:
    outcome = compare(recipe)
    write_atomically(recipe.out / "selftrain.json", json.dumps(as_json(outcome), indent=1) + "\n")
    attempt("report.html over all stages", lambda: write_report(outcome, recipe))
    print(f"\n{summary(outcome)}\nnumbers: {recipe.out / 'selftrain.json'}\n"
          f"report:  {recipe.out / 'report.html'}")  # fmt: skip
