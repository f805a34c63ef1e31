"""Hours, money and gigabytes of a whole schedule, from the rates that were measured."""

from __future__ import annotations

import math
from typing import Any

from ssld.distill.stored import StoredDistillation
from ssld.labels.format import KINDS, bytes_per_view
from ssld.plan.config import PlanConfig
from ssld.plan.measure import Bench


def stored_labels(
    config: PlanConfig, bench: Bench, schedule: dict[str, Any]
) -> dict[str, Any] | None:
    """The label set that the run reads, or that `ssld labels build` would make of its views.

    Returns:
        views, top_k, classes, bytes, and `asked`: views that the teacher sees, of all images and of
        held-out ones. None where labels cannot hold what is learned, the features.
    """
    if isinstance(bench.distillation, StoredDistillation):
        stored = bench.distillation.stored
        known = {key: stored.manifest[key] for key in ("views", "top_k", "classes")}
        size = sum(shard.size for kind in KINDS for shard in stored.index[kind])
    elif config.features.weight:
        return None
    else:
        views, classes = config.views or math.ceil(schedule["epochs"]), bench.num_classes
        known = {"views": views, "top_k": min(config.top_k, classes), "classes": classes}
        size = None
    asked = known["views"] * schedule["images"] + schedule["held_out_images"]
    if size is None:
        size = asked * bytes_per_view(known["top_k"], known["classes"])
    return {**known, "asked": asked, "bytes": size}


def cost(result: dict[str, Any], price: float | None) -> dict[str, Any]:
    """Hours and money of the whole schedule: with the teacher asked online, and with stored labels.

    For those the teacher sees every stored view once, before training, and the student alone is
    trained after it, as often as one likes.

    Args:
        result: `rates`, `schedule` and `labels` of a plan.
        price: of an hour.
    """
    rates, schedule, labels = result["rates"], result["schedule"], result["labels"]
    samples = schedule["steps"] * schedule["batch_size"]
    online = "teacher" in rates
    # A student's forward pass is a third of its step (`ssld/distill/setup.py`, describe).
    judging = 1 / (3 * rates["student"]) + (1 / rates["teacher"] if online else 0)
    judged = min(rates["loader"], 1 / judging)
    evaluations = schedule["evaluations"] * schedule["held_out_images"] / judged / 3600
    training = samples / rates["together"] / 3600
    hours = {"online" if online else "stored_labels_each_run": training + evaluations}
    if online and labels:
        once = labels["asked"] / min(rates["loader"], rates["teacher"]) / 3600
        hours["stored_labels_writing_once"] = once
        each = samples / rates["supervised_together"] / 3600
        hours["stored_labels_each_run"] = each + evaluations
    return {
        "hours": hours,
        "of_which_evaluations": evaluations,
        "price_per_hour": price,
        "cost": None if price is None else {name: price * x for name, x in hours.items()},
        "stored_labels_gb": labels["bytes"] / 1e9 if labels else None,
        "wall": "decode" if rates["loader"] < rates["both"] else "compute",
    }
