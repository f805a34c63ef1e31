"""The table of commands: what `ssld COMMAND` runs, and which of them are stages of a recipe.

Modules are named, not imported: `downstream` builds on `ssld` and not the other way round, and help
must answer at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssld.loop_config import LoopConfig


@dataclass(frozen=True)
class Command:
    module: str
    """Has `main(argv) -> exit code`."""
    summary: str
    config: str | None = None
    """Of a stage: the class of its settings, in `module` as the function named like the command,
    which takes them and trains."""
    exported: str = "student"
    """Of a stage: the folder in its run folder that has the network when it is complete."""


COMMANDS = {
    "quickstart": Command(
        "ssld.quickstart", "the whole method on handwritten digits, in under three minutes"
    ),
    "distill": Command(
        "ssld.distill", "train a student from a frozen teacher, without labels", "DistillConfig"
    ),
    "supervised": Command(
        "ssld.supervised",
        "train with human labels: teachers and honest baselines",
        "SupervisedConfig",
    ),
    "finetune": Command(
        "ssld.finetune",
        "the second stage: a run's student on the labeled set, more slowly",
        "FinetuneConfig",
    ),
    "fix": Command(
        "ssld.fix", "the resolution fix: the classifier at a larger test size", "FixConfig"
    ),
    "recipe": Command("ssld.recipe", "distill, finetune and fix in one command, resumable"),
    "ablate": Command(
        "ssld.ablate", "a recipe for each combination of a grid's settings: tables and plots"
    ),
    "plan": Command("ssld.plan", "before a long run: what is wrong, what it will take and cost"),
    "bench": Command("ssld.bench", "speed of teacher, student and loader, alone and together"),
    "compare": Command("ssld.compare", "several runs in one table and one set of curves"),
    "curate": Command(
        "ssld.curate", "choose unlabeled images: near-duplicates out, the teacher's surest in"
    ),
    "zoo": Command(
        "ssld.zoo",
        "distilled backbones: list, show, convert, publish, pull, verify, bundle, export",
    ),
    "evaluate": Command(
        "ssld.evaluate", "top-1 and top-5 with 95 % intervals of any classifier on labeled images"
    ),
    "transfer": Command(
        "downstream.transfer", "a backbone, fine-tuned as a classifier", "TransferConfig"
    ),
    "detection": Command(
        "downstream.detection.command",
        "a backbone, fine-tuned in a detector",
        "DetectionConfig",
        "model",
    ),
    "segmentation": Command(
        "downstream.segmentation.command",
        "a backbone, fine-tuned in a segmenter",
        "SegmentationConfig",
        "model",
    ),
    "ab": Command(
        "downstream.ab", "which of two backbones is better downstream: difference and interval"
    ),
    "predict": Command("downstream.predict", "draw what a detector or segmenter finds in images"),
    "export": Command(
        "downstream.export", "a detector or segmenter as ONNX, checked against torch"
    ),
}
DOWNSTREAM = ("transfer", "detection", "segmentation")
"""Stages that are a recipe of their own."""


def stage_of(name: str) -> tuple[type[LoopConfig], Callable[[Any], None]]:
    """The class of a stage's settings, and the function that takes them and trains."""
    command = COMMANDS[name]
    assert command.config is not None, name
    module = importlib.import_module(command.module)
    return getattr(module, command.config), getattr(module, name)
