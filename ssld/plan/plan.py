"""`ssld plan`: before a GPU-week is spent, what is wrong, what it will take, and what it will cost.

Everything is measured with the run's own loader, step and networks; nothing is written into `out`.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ssld.common.errors import InputError
from ssld.common.metrics import near_chance, too_few, wilson
from ssld.common.settings_file import read_settings
from ssld.data.labels import has_labels, known_index, misfit, table_of, unknown_labels
from ssld.data.loading import ViewBatches, eval_batches
from ssld.data.source import Source
from ssld.data.transforms import EvalView, eval_view
from ssld.data.unreadable import Unreadables
from ssld.distill.setup import Data, open_data
from ssld.distill.verify_teacher import VERIFY_IMAGES
from ssld.engine.optimizer import warmup_steps
from ssld.engine.run_folder import check_out
from ssld.health.teacher_check import GIVEN, TeacherCheck, check_teacher
from ssld.models.teacher import Teacher
from ssld.plan.batch_size import Steps, largest_batch, require_memory
from ssld.plan.bench import write_json
from ssld.plan.config import PlanConfig
from ssld.plan.cost import cost, stored_labels
from ssld.plan.measure import Bench, open_bench, quietly
from ssld.plan.text import describe
from ssld.recipe.classes import check_classes
from ssld.recipe.recipe import open_recipe

IMAGES_READ = 200
"""Images of each source that are read, to see how many cannot be."""
TEACHER_SECONDS = 60.0
"""About how long the teacher is tried under other preprocessings, on fewer images if need be."""
VARIANTS = 7
"""Forward passes per image of `ssld.health.teacher_check.check_teacher`."""


def plan(config: PlanConfig) -> int:
    """Print the plan, and write it to `config.json`; returns 1 when something is wrong, else 0 (a
    hint is nothing wrong).

    Raises:
        InputError: what keeps it from measuring at all: a missing source, weights that do not fit.
    """
    problems = list(_of_settings(config))
    everything = dataclasses.replace(config.data, max_unreadable=1.0)  # counted, not refused
    any_count = dataclasses.replace(config.student, num_classes=None)
    with tempfile.TemporaryDirectory() as folder:
        settings = dataclasses.replace(quietly(config, folder), data=everything, student=any_count)
        data = open_data(settings)
        bench, facts = open_bench(settings, data)
        teacher = None if config.labels else bench.teacher  # of few fresh views it is not tried
        problems += _of_classes(data, config.student.num_classes, bench.num_classes, teacher)
        data.accelerator.print("measuring ...")
        require_memory(bench)
        rates = bench.measure(config.seconds)
        result: dict[str, Any] = {"problems": problems, "rates": rates}
        result["schedule"] = _schedule(bench)
        result["memory"] = {"peak_mib": rates["peak_mib"], **largest_batch(bench)}
        result["disk"] = disk(bench, Path(config.out))
        groups = {"labeled": data.labeled, "unlabeled": data.unlabeled, "val": data.val}
        result["sources"] = [_source(data, role, s) for role, x in groups.items() for s in x]
        checks, without = {}, None
        if teacher:
            checks, without = _check_teachers(data, teacher, config.images, rates["teacher"])
    result["teacher"] = [
        {"name": name, "not_on_labels": without, "classes": bench.num_classes}
        | {"architecture": facts[name]["architecture"], **dataclasses.asdict(check)}
        | {"interval": _interval(check)}
        for name, check in checks.items()
    ]
    result["labels"] = stored_labels(config, bench, result["schedule"])
    result["cost"] = cost(result, config.price_per_hour)
    for name, check in checks.items():
        problems += _of_teacher(name, check, bench.num_classes)
    problems += _of_measurements(result, config)
    result["hints"] = [f"the {name}, {hint}" for name, x in checks.items() for hint in x.hints]
    if data.accelerator.is_main_process:
        print(describe(result))
    write_json(config.json, result, data.accelerator)
    return 1 if problems else 0


def _of_settings(config: PlanConfig) -> Iterator[str]:
    """What `out`, and `ssld recipe` before its first step, would refuse."""
    try:
        check_out(dataclasses.replace(config, resume=False))
    except InputError as error:
        yield str(error)
    try:
        if config.recipe:
            tree = read_settings(Path(config.recipe))
            yield from check_classes(
                open_recipe(config.recipe, tree, None, config.overrides).configs()
            )
    except InputError as error:
        yield str(error)


def _of_classes(
    data: Data, given: int | None, known: int, teacher: Teacher | None
) -> Iterator[str]:
    """Class counts that do not go together; the plan goes on with the teacher's.

    Args:
        given: as `student.num_classes`.
        known: of the teacher.
        teacher: None where it was asked before, and verified then.
    """
    if given not in (None, known):
        yield (
            f"student.num_classes is {given} but the teacher has {known} classes: leave "
            "student.num_classes out or take another teacher"
        )
    if not teacher or not known or not all(config.verify for config in teacher.configs):
        return
    for setting, sources in (("data.labeled", data.labeled), ("data.val", data.val)):
        problem = misfit(table_of("the teacher", teacher), sources, setting)
        if problem:
            yield (
                f"{problem}: rename the folders, take a teacher of these classes, or set "
                "teacher.verify to false if it is meant so"
            )


def _of_teacher(name: str, check: TeacherCheck, num_classes: int) -> Iterator[str]:
    problem, interval = check.problem(name), _interval(check)
    if problem:
        yield problem
    elif interval and not too_few(check.labeled, num_classes):  # else the table has its interval
        if near_chance(interval[0], num_classes):
            yield (
                f"the {name} is near chance and no other preprocessing or class order helps: check "
                "teacher.checkpoint"
            )


def _of_measurements(result: dict[str, Any], config: PlanConfig) -> Iterator[str]:
    for source in result["sources"]:
        share = source["unreadable"] / max(1, source["looked_at"])
        if share > config.data.max_unreadable:
            yield (
                f"{source['path']}: {source['unreadable']} of {source['looked_at']} images cannot "
                f"be read, more than data.max_unreadable allows; {source['examples'][0]}"
            )
    room, most = result["disk"], result["memory"]["largest_batch"]
    if room["needed_mib"] > room["free_mib"]:
        yield (
            f"{room['needed_mib']:,.0f} MiB are needed for checkpoints but {room['free_mib']:,.0f} "
            "are free where `out` is: give another folder or lower checkpoint.keep"
        )
    if most is not None and most < config.batch_size:
        yield (
            f"batch_size is {config.batch_size} but about {most} is the most that fits: lower it, "
            "or raise accumulate"
        )


def _schedule(bench: Bench) -> dict[str, Any]:
    run, schedule = bench.run, bench.run.config.schedule
    warmup = warmup_steps(schedule, run.total_steps, run.steps_per_epoch)
    return {
        "images": sum(map(len, run.sources)),
        "held_out_images": sum(map(len, run.val)),
        "samples_per_epoch": run.sampler.samples_per_epoch,
        "steps": run.total_steps,
        "epochs": run.total_steps / run.steps_per_epoch,
        "batch_size": run.config.batch_size,
        "processes": run.world_size,
        "device": run.accelerator.device.type,
        "workers": run.config.data.workers,
        "cores": len(os.sched_getaffinity(0)),
        "lr": schedule.lr,
        "peak_lr": run.facts["peak_lr"],
        "warmup_steps": round(warmup),
        "evaluations": run.total_steps
        / max(1.0, run.config.evaluate_every_epochs * run.steps_per_epoch),
    }


def disk(bench: Steps, out: Path) -> dict[str, Any]:
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


def _source(data: Data, role: str, source: Source) -> dict[str, Any]:
    unreadables = Unreadables([source], 1.0)
    batches = eval_batches(
        ViewBatches([source], EvalView(32, 1.0, "bilinear")),
        batch_size=32,
        workers=data.config.data.workers,
        device=data.accelerator.device,
        unreadables=unreadables,
        limit=IMAGES_READ,
    )
    images_read = sum(len(batch.ids) for batch in batches)
    entries = list(unreadables.entries.values())
    return {
        "role": role,
        "path": source.path,
        "images": len(source),
        "classes": len(source.class_names) if source.class_names else None,
        "looked_at": images_read,
        "unreadable": unreadables.count,
        "examples": [f"{location} ({reason})" for _, _, location, reason in entries[:3]],
    }


def _check_teachers(
    data: Data, teacher: Teacher, images: int, rate: float
) -> tuple[dict[str, TeacherCheck], str | None]:
    """What each network of the teacher makes of labeled images, or of others where it knows no
    label; and why it knows none."""
    sources: Sequence[Source] = data.val if has_labels(data.val) else data.labeled
    without = unknown_labels(sources, teacher, VERIFY_IMAGES)
    if without:
        sources = data.val or data.labeled or data.unlabeled
    labels = None if without else known_index(sources, teacher)
    in_time = round(rate / data.accelerator.num_processes * TEACHER_SECONDS / VARIANTS)
    checks = {}
    for name, network, config in zip(teacher.names, teacher.networks, teacher.configs, strict=True):
        if not network.num_classes:  # no predictions that other preprocessing could better
            checks[name] = TeacherCheck(0, 0, {}, {}, [])
            continue
        batches = eval_batches(
            ViewBatches(sources, eval_view(network), labels),
            batch_size=min(data.config.batch_size, 64),
            workers=data.config.data.workers,
            device=data.accelerator.device,
            unreadables=Unreadables(sources, 1.0),
            limit=min(images, max(64, in_time)),
            mixed=teacher.needs_mixed_batches,
            description="teacher",
        )
        checks[name] = check_teacher(network, batches, config.dtype or "fp32")
    return checks, without


def _interval(check: TeacherCheck) -> tuple[float, float] | None:
    """Of its top-1 as it is given."""
    top1 = check.top1.get(GIVEN)
    return None if top1 is None else wilson(top1 * check.labeled, check.labeled)
