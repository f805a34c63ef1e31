"""`ssld plan`: before a GPU-week is spent, what is wrong, what it will take, and what it will cost.

Everything is measured with the run's own loader, step and networks; nothing is written into `out`.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssld.common.errors import InputError
from ssld.common.settings_file import read_settings
from ssld.plan.bench import Bench, quietly, write_json
from ssld.plan.config import PlanConfig

if TYPE_CHECKING:
    from ssld.data.source import Source
    from ssld.distill.setup import Setup
    from ssld.models.teacher import Teacher

LOOKED_AT = 200
"""Images of each source that are read, to see how many cannot be."""
TEACHER_SECONDS = 60.0
"""About how long the teacher is tried under other preprocessings, on fewer images if need be."""
VARIANTS = 7
"""Forward passes per image of `ssld.health.teacher_check.check_teacher`."""
"""Stages of a recipe that follow the one that is planned."""
LABEL_BYTES = 40
"""A stored label: ten classes and their probabilities, four bytes each pair."""


def plan(config: PlanConfig) -> int:
    """Print the plan, and write it to `config.json`; returns 1 when something is wrong, else 0 (a
    hint is nothing wrong).

    Raises:
        InputError: what keeps it from measuring at all: a missing source, weights that do not fit.
    """
    from ssld.distill.distill import named
    from ssld.distill.setup import Setup
    from ssld.engine.run_folder import check_out
    from ssld.models.teacher import open_teacher
    from ssld.plan.text import describe

    problems: list[str] = []
    try:
        check_out(dataclasses.replace(config, resume=False))
    except InputError as error:
        problems.append(str(error))
    problems += _later_stages(config.recipe, config.overrides) if config.recipe else []
    with tempfile.TemporaryDirectory() as folder:
        everything = dataclasses.replace(config.data, max_unreadable=1.0)  # counted, not refused
        setup = Setup(dataclasses.replace(quietly(config, folder), data=everything))
        teacher, digest = open_teacher(config.teachers or [config.teacher], config.precision)
        problems += _class_counts(setup, teacher)
        student = setup.open_student(teacher.num_classes, teacher.label_names)
        setup.describe({"student": student, **named(teacher)})
        bench = Bench(setup, teacher, student, digest)
        setup.accelerator.print("measuring ...")
        result: dict[str, Any] = {"problems": problems, "rates": bench.measure(config.seconds)}
        result["schedule"] = _schedule(bench)
        result["memory"] = _memory(bench, result["rates"])
        result["disk"] = _disk(bench, Path(config.out))
        result["sources"] = _sources(setup)
        result["teacher"] = _teachers(setup, teacher, config, result["rates"]["teacher"])
    result["cost"] = _cost(result, config.price_per_hour)
    problems += _found(result, config)
    result["hints"] = [f"the {t['name']}, {hint}" for t in result["teacher"] for hint in t["hints"]]
    if setup.accelerator.is_main_process:
        print(describe(result))
    write_json(config.json, result, setup)
    return 1 if problems else 0


def _later_stages(file: str, words: Sequence[str]) -> list[str]:
    """What `ssld recipe` would refuse before its first step."""
    from ssld.recipe.recipe import class_problems, open_recipe

    try:
        return list(class_problems(open_recipe(file, read_settings(Path(file)), None, words)))
    except InputError as error:
        return [str(error)]


def _class_counts(setup: Setup, teacher: Teacher) -> list[str]:
    """Class counts that do not go together; the plan goes on with the teacher's."""
    from ssld.data.labels import misfit, table_of

    found, student = [], setup.config.student
    if student.num_classes not in (None, teacher.num_classes):
        found.append(
            f"student.num_classes is {student.num_classes} but the teacher has "
            f"{teacher.num_classes} classes: leave student.num_classes out or take another teacher"
        )
        without = dataclasses.replace(student, num_classes=None)
        setup.config = dataclasses.replace(setup.config, student=without)
    for setting, sources in (("data.labeled", setup.labeled), ("data.val", setup.val)):
        problem = misfit(table_of("the teacher", teacher), sources, setting)
        if problem and _checked(teacher):
            found.append(
                f"{problem}: rename the folders, take a teacher of these classes, or set "
                "teacher.verify to false if it is meant so"
            )
    return found


def _checked(teacher: Teacher) -> bool:
    return all(config.verify for config in teacher.configs)


def _schedule(bench: Bench) -> dict[str, Any]:
    from ssld.engine.optimizer import warmup_steps

    run, schedule = bench.run, bench.run.config.schedule
    warmup = warmup_steps(schedule, run.total_steps, run.steps_per_epoch)
    return {
        "images": sum(map(len, run.sources)),
        "held_out_images": sum(map(len, run.val)),
        "samples_per_epoch": run.order.samples_per_epoch,
        "steps": run.total_steps,
        "epochs": run.total_steps / run.steps_per_epoch,
        "batch_size": run.config.batch_size,
        "processes": run.world,
        "device": run.accelerator.device.type,
        "workers": run.config.data.workers,
        "cores": len(os.sched_getaffinity(0)),
        "lr": schedule.lr,
        "peak_lr": run.facts["peak_lr"],
        "warmup_steps": round(warmup),
        "evaluations": run.total_steps
        / max(1.0, run.config.evaluate_every_epochs * run.steps_per_epoch),
    }


def _memory(bench: Bench, rates: dict[str, Any]) -> dict[str, Any]:
    from ssld.plan.batch_size import largest_batch

    return {"peak_mib": rates["peak_mib"], **largest_batch(bench)}


def _disk(bench: Bench, out: Path) -> dict[str, Any]:
    """By a checkpoint that is really written: networks, average, optimizer."""
    run, keep = bench.run, bench.run.config.checkpoint.keep
    bench.trainer.save()
    files = [path for path in run.folder.path.rglob("*") if path.is_file()]
    one = sum(path.stat().st_size for path in files if "checkpoints" in path.parts) / 2**20
    while not out.exists():
        out = out.parent
    return {
        "checkpoint_mib": one,
        "checkpoints": keep + 2,  # the best, and the one that is being written
        "needed_mib": one * (keep + 2),
        "free_mib": shutil.disk_usage(out).free / 2**20,
    }


def _sources(setup: Setup) -> list[dict[str, Any]]:
    groups = {"labeled": setup.labeled, "unlabeled": setup.unlabeled, "val": setup.val}
    return [_source(setup, role, s) for role, sources in groups.items() for s in sources]


def _source(setup: Setup, role: str, source: Source) -> dict[str, Any]:
    from ssld.data.transforms import EvalView
    from ssld.data.unreadable import Unreadables, eval_batches

    bad = Unreadables([source], 1.0)
    batches = eval_batches(
        [source],
        EvalView(32, 1.0, "bilinear"),
        batch_size=32,
        workers=setup.config.data.workers,
        device=setup.device,
        unreadables=bad,
        label_index=None,
        limit=LOOKED_AT,
    )
    looked = sum(len(batch.ids) for batch in batches)
    return {
        "role": role,
        "path": source.path,
        "images": len(source),
        "classes": len(source.class_names) if source.class_names else None,
        "looked_at": looked,
        "unreadable": bad.count,
        "examples": [f"{entry[2]} ({entry[3]})" for entry in list(bad.entries.values())[:3]],
    }


def _teachers(
    setup: Setup, teacher: Teacher, config: PlanConfig, rate: float
) -> list[dict[str, Any]]:
    """What each teacher makes of labeled images, or of held-out ones where it knows no labels."""
    from ssld.data.labels import has_labels, unknown_labels
    from ssld.distill.distill import named
    from ssld.distill.verify_teacher import VERIFY_IMAGES

    sources = setup.val if has_labels(setup.val) else setup.labeled
    without = unknown_labels(sources, teacher, VERIFY_IMAGES)
    limit = min(config.images, max(64, round(rate / setup.world * TEACHER_SECONDS / VARIANTS)))
    found = []
    if without:
        sources = setup.val or setup.labeled or setup.unlabeled
    for number, (name, network) in enumerate(named(teacher).items()):
        check = _check(setup, teacher, number, sources, limit, bool(without))
        architecture = network.model.pretrained_cfg.get("architecture")  # type: ignore[union-attr]
        found.append({"name": name, "architecture": architecture, "not_on_labels": without})
        found[-1] |= {"classes": teacher.num_classes, **check}
    return found


def _check(
    setup: Setup, teacher: Teacher, number: int, sources: list[Source], limit: int, unlabeled: bool
) -> dict[str, Any]:
    from ssld.data.eval_view import eval_view
    from ssld.data.labels import known_index
    from ssld.data.unreadable import Unreadables, eval_batches
    from ssld.health.intervals import wilson
    from ssld.health.teacher_check import GIVEN, check_teacher

    network = teacher.networks[number]
    batches = eval_batches(
        sources,
        eval_view(network),
        batch_size=min(setup.config.batch_size, 64),
        workers=setup.config.data.workers,
        device=setup.device,
        unreadables=Unreadables(sources, 1.0),
        label_index=None if unlabeled else known_index(sources, teacher),
        limit=limit,
        mixed=teacher.needs_mixed_batches,
        description="teacher",
    )
    check = check_teacher(network, batches, teacher.configs[number].dtype or "fp32")
    given = check.top1.get(GIVEN)
    interval = wilson(given * check.labeled, check.labeled) if given is not None else None
    return {**dataclasses.asdict(check), "interval": interval}


def _cost(result: dict[str, Any], price: float | None) -> dict[str, Any]:
    """Hours and money of the whole schedule.

    With stored labels the teacher sees every view once, before training, and the student alone is
    trained after it, as often as one likes; ssld does not store labels yet.
    """
    rates, schedule = result["rates"], result["schedule"]
    samples = schedule["steps"] * schedule["batch_size"]
    # A student's forward pass is a third of its step (`ssld/distill/setup.py`, describe).
    judged = min(rates["loader"], 1 / (1 / rates["teacher"] + 1 / (3 * rates["student"])))
    evaluations = schedule["evaluations"] * schedule["held_out_images"] / judged / 3600
    once = samples / min(rates["loader"], rates["teacher"]) / 3600
    hours = {
        "online": samples / rates["together"] / 3600 + evaluations,
        "stored_labels_writing_once": once,
        "stored_labels_each_run": samples / rates["supervised_together"] / 3600 + evaluations,
    }
    return {
        "hours": hours,
        "of_which_evaluations": evaluations,
        "price_per_hour": price,
        "cost": None if price is None else {name: price * x for name, x in hours.items()},
        "stored_labels_gb": samples * LABEL_BYTES / 1e9,
        "wall": "decode" if rates["loader"] < rates["both"] else "compute",
    }


def _found(result: dict[str, Any], config: PlanConfig) -> list[str]:
    """What the measurements say is wrong."""
    from ssld.health.intervals import near_chance, too_few

    problems = []
    for teacher in result["teacher"]:
        if teacher["fault"]:
            problems.append(
                f"the {teacher['name']} cannot teach, {teacher['fault']}: check teacher.checkpoint"
            )
        elif teacher["findings"]:
            problems.append(f"the {teacher['name']} is better with {teacher['findings'][0]}")
        elif too_few(teacher["labeled"], teacher["classes"]):
            pass  # the table has its interval
        elif near_chance(teacher["interval"][0], teacher["classes"]):
            problems.append(
                f"the {teacher['name']} is near chance and no other preprocessing or class order "
                "helps: check teacher.checkpoint"
            )
    for source in result["sources"]:
        share = source["unreadable"] / max(1, source["looked_at"])
        if share > config.data.max_unreadable:
            problems.append(
                f"{source['path']}: {source['unreadable']} of {source['looked_at']} images cannot "
                f"be read, more than data.max_unreadable allows; {source['examples'][0]}"
            )
    disk, memory = result["disk"], result["memory"]
    if disk["needed_mib"] > disk["free_mib"]:
        problems.append(
            f"{disk['needed_mib']:,.0f} MiB are needed for checkpoints but {disk['free_mib']:,.0f} "
            "are free where `out` is: give another folder or lower checkpoint.keep"
        )
    if memory["largest_batch"] is not None and memory["largest_batch"] < config.batch_size:
        problems.append(
            f"batch_size is {config.batch_size} but about {memory['largest_batch']} is the most "
            "that fits: lower it, or raise accumulate"
        )
    return problems
