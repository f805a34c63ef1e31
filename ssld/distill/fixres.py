"""The resolution fix: `accelerate launch -m ssld.fix --run RUN --out OUT [--a.b value ...]`.

Touvron et al. 2019, "Fixing the train-test resolution discrepancy" (FixRes), section 4: random
crops show a network larger objects in training than the centre crop does in a test, so it is better
at a larger test size, and better still once its classifier (and the norm before it) has seen the
statistics of that size. Nothing else is trained, on images as they are tested. SSLD table 1:
ResNet50-D 83.0 -> 84.0 %; the reference trains the classifier only, at 320 px.

One half of the held-out images chooses: the step whose classifier is taken, the size, and whether
the fix brought anything. The other half reports what that is worth,
because the best of many numbers on the same images is too good on these. Neither half depends on
anything but names, so that runs over the same images have the same halves.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ssld.common.errors import InputError
from ssld.common.files import write_atomically
from ssld.common.metrics import rank
from ssld.common.text_table import ABSENT, text_table
from ssld.data.source import Source, Subset
from ssld.data.transforms import eval_view
from ssld.distill import report
from ssld.distill.config import FixResConfig
from ssld.distill.finetune import prepare
from ssld.distill.parent_run import open_parent_run, resolutions_from
from ssld.distill.setup import ClassifierRun, start_run
from ssld.distill.task import Classification
from ssld.engine.checkpoint import export
from ssld.engine.loop import train
from ssld.engine.processes import on_main
from ssld.health.classification_metrics import ClassificationMetrics
from ssld.health.resolution import describe_choice
from ssld.health.verdict import noted
from ssld.models.classifier import Classifier
from ssld.models.opening import open_network

TABLE = "resolutions.json"


def fix(config: FixResConfig) -> None:
    """Train the classifier at a test size; evaluate at several before and after, export the best
    by one half of the held-out images.

    Raises:
        InputError: a run that has not finished, no held-out image, bad settings or sources; nothing
            was written then.
    """
    parent = open_parent_run(config.run)
    stage = prepare(config, parent)
    student, task = stage.student, stage.task
    if not stage.data.val:
        raise InputError(
            "data.val is empty and data.holdout is 0: held-out images choose the resolution"
        )
    student.freeze_but(trained_parts(student, config.train))
    # Backward, twice a forward pass, goes no further than the classifier.
    flops = stage.facts["flops_per_image"] - 2 * 2e6 * stage.facts["student"]["macs_m"]
    facts = {**stage.facts, "flops_per_image": flops}
    run = start_run(stage.data, student, facts, teacher=stage.teacher, view=eval_view(student))
    choosing, reporting = halves(run.val)
    run = dataclasses.replace(run, val=choosing)
    trained_at = int(parent.settings["augment"]["size"])
    wanted = config.resolutions or resolutions_from(trained_at)
    sizes = sorted({*wanted, student.input_size, trained_at})
    before = on_main(run.accelerator, _known, run, sizes)
    before = before or sweep(run, task, copy.deepcopy(student), sizes, reporting)
    counts = {"chosen_on": sum(map(len, choosing)), "reported_on": sum(map(len, reporting))}
    table = {"trained_at": trained_at, "fixed_at": student.input_size, "before": before}
    table |= {"metric": deciding(before[0], task.monitor(run))}
    table |= {"images": {**counts, "same": choosing == reporting}}
    _write(run, table)
    measured = train(run, task, student)
    fixed = open_network("student", arch=None, checkpoint=config.out)
    after = sweep(run, task, fixed, sizes, reporting)
    _export(run, config.run, fixed, measured, {**table, "after": after})


def trained_parts(network: Classifier, train: str) -> list[str]:
    """Names of the modules of `network.model` that a fix trains."""
    names = {module: name for name, module in network.model.named_modules()}
    classifier = names[network.model.get_classifier()]  # type: ignore[operator]
    if train == "classifier":
        return [classifier]
    called: list[str] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: called.append(names[module]))
        for module in names
        if "Norm" in type(module).__name__
    ]
    size = network.input_size
    device = next(network.parameters()).device
    training = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device))
    network.train(training)
    for hook in hooks:
        hook.remove()
    if not called:
        raise InputError("train is classifier_and_norm but the student has no norm layer")
    return [classifier, called[-1]]


def sweep(
    run: ClassifierRun,
    task: Classification,
    network: Classifier,
    sizes: Sequence[int],
    reporting: Sequence[Source],
) -> list[dict[str, Any]]:
    """A row for each size: the metrics on the images that report, and under `choose` those on
    `run.val`; changes `network.input_size`."""
    network.to(run.accelerator.device).eval()
    reports = dataclasses.replace(run, val=list(reporting))
    rows = []
    for network.input_size in sizes:
        reported, choosing = (_measured(x, task, network) for x in (reports, run))
        rows.append({"size": network.input_size, **reported, CHOOSE: choosing})
    return rows


def _measured(run: ClassifierRun, task: Classification, network: Classifier) -> dict[str, float]:
    from ssld.data.transforms import eval_view

    size = network.input_size
    view = eval_view(network, size)
    batches = task.held_out(run, view, f"evaluate at {size} px")
    try:
        with torch.inference_mode(), run.accelerator.autocast():
            measured = task.evaluate(network, batches)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"resolutions: the student does not run on images of {size} px "
            f"({' '.join(str(error).split())[:200]}); leave that size out"
        ) from error
    measured.reduce(run.accelerator, cut_short=False)
    return measured.metrics()


def _known(run: ClassifierRun, sizes: Sequence[int]) -> list[dict[str, Any]] | None:
    """What a stopped run had evaluated before its first step."""
    path = run.folder.path / TABLE
    if not run.config.resume or not path.is_file():
        return None
    rows = json.loads(path.read_text(encoding="utf-8"))["before"]
    same = [row["size"] for row in rows] == list(sizes)
    return rows if same and all(CHOOSE in row for row in rows) else None


def _write(run: ClassifierRun, table: dict[str, Any]) -> None:
    if run.accelerator.is_main_process:
        write_atomically(run.folder.path / TABLE, json.dumps(table, indent=2) + "\n")
    run.accelerator.wait_for_everyone()


def _export(
    run: ClassifierRun,
    parent: str,
    fixed: Classifier,
    measured: ClassificationMetrics | None,
    table: dict[str, Any],
) -> None:
    """Write table, exported configuration and report. Where the fix was for nothing, the student is
    exported as it came from the run `parent`."""
    before, after, metric = table["before"], table["after"], table["metric"]
    moment, best = chosen(before, after, metric, fixed.num_classes)
    was = next(row for row in before if row["size"] == table["trained_at"])
    _write(run, {**table, "chosen": best["size"], "classifier": moment})
    if not run.accelerator.is_main_process:
        return
    facts = json.loads((run.folder.path / "run.json").read_text(encoding="utf-8"))
    network, step = fixed, facts["exported"]["step"]
    if moment == "before":
        network, step = open_network("student", arch=None, checkpoint=parent), 0
    network.input_size = best["size"]
    digest = export(network, run.folder.path / "student", step)
    exported = {"step": step, "metric": metric, "value": best.get(metric), "sha256": digest}
    run.folder.record("exported", exported)
    resolution = {
        "chosen": best["size"],
        "classifier": moment,
        "metric": metric,
        "before": was,
        "metrics": best,
        "images": table["images"],
    }
    run.folder.record("resolution", resolution)
    report.write_report(run, network.to(run.accelerator.device), measured)
    rows = [
        [f"{a['size']} px", *(f"{_percent(x, metric)}{' *' * (x is best)}" for x in (b, a))]
        for b, a in zip(before, after, strict=True)
    ]
    print(text_table(["at", f"{metric} before", "after"], rows))
    print(f"* {describe_choice(resolution)}")


def _percent(row: dict[str, Any], metric: str) -> str:
    return f"{row[metric]:.2%}" if metric in row else ABSENT


CHOOSE = "choose"
"""Key of a row's metrics on the images that choose; its own are those of the images that report."""
SHARES = ("agreement1", "agreement5", "top1")


def halves(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """The images that choose, and those that report: by a bit of a digest of each sample's id, so
    that an image that is there twice is in one half. Where one would be empty, both are all images.
    """
    parts: tuple[list[Source], list[Source]] = ([], [])
    for source in sources:
        reports = np.array([_reports(source.sample_id(i)) for i in range(len(source))], bool)
        for half, rows in zip(parts, (~reports, reports), strict=True):
            if rows.any():
                half.append(Subset(source, np.flatnonzero(rows), keep=True))
    return parts if all(parts) else (list(sources), list(sources))  # equal, and known by that


def _reports(sample_id: str) -> bool:
    return bool(hashlib.blake2b(f"half/{sample_id}".encode(), digest_size=1).digest()[0] & 1)


def deciding(row: Mapping[str, Any], best_by: str) -> str:
    """The metric that chooses.

    Args:
        row: of a table of resolutions.
        best_by: `checkpoint.best`; a share, or else agreement, or where there is no teacher top-1.

    Raises:
        InputError: neither a teacher nor a label that the student knows.
    """
    metric = best_by if best_by in SHARES else "agreement1"
    metric = metric if metric in row[CHOOSE] else "top1"
    if metric not in row[CHOOSE]:
        raise InputError(
            "data.val: no held-out image has a label that the student knows, and there is no "
            "teacher, so nothing chooses the resolution: give labeled images"
        )
    return metric


def chosen(
    before: Sequence[dict[str, Any]],
    after: Sequence[dict[str, Any]],
    metric: str,
    num_classes: int,
) -> tuple[str, dict[str, Any]]:
    """Whether the best row is one `before` or `after` the fix, and that row, by the images that
    choose; of equal ones the one after, at the smallest size."""

    def worth(row: dict[str, Any]) -> tuple[bool, float]:
        return rank(noted(row[CHOOSE], metric, num_classes))

    rows = [("before", row) for row in before] + [("after", row) for row in after]
    return max(rows, key=lambda x: (worth(x[1]), x[0] == "after", -x[1]["size"]))
