"""The table of commands: what `ssld COMMAND` runs, and which of them are stages of a recipe.

A new command is a row here. Modules are named, not imported, and this is the only place where that
is so: help must answer at once, and `downstream` builds on `ssld`, not the other way round. Modules
of settings import neither torch nor timm, those of the work import what they need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from ssld.common.errors import InputError
from ssld.common.packages import unfit_pair, what_is_missing

if TYPE_CHECKING:
    from ssld.engine.config import LoopConfig

CHECK_OUT = "ssld.engine.run_folder:check_out"


@dataclass(frozen=True)
class Command:
    """All names are `module:name`."""

    summary: str
    config: str
    """The class of its settings."""
    work: str
    """Takes the settings; returns an exit code, a result for Python, or None."""
    check: str | None = None
    """Takes the settings, and is asked before the module of the work, and torch with it, is
    imported; may return what the work takes in their place."""
    positional: tuple[str, ...] = ()
    """Settings that the words before the first option are taken for; a last one with `*` takes
    all that are left."""
    words: str | None = None
    """Makes the words that are parsed of those that were given."""
    section: str | None = None
    """The first word may be a recipe, of which this section is meant."""
    defaults: str | None = None
    """See `ssld.cli.parse.parse`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the check and the work."""
    exported: str | None = None
    """Of a stage: the folder in its run folder that has the network when it is complete."""


def _curate(stage: str | None, summary: str, words: str | None = None) -> Command:
    return Command(
        summary,
        "ssld.curate.config:CurateConfig",
        "ssld.curate.command:curate",
        "ssld.curate.folder:check",
        words=words,
        options={"stage": stage},
    )


def _zoo(name: str, summary: str, *positional: str, words: str | None = None) -> Command:
    module = "catalogue" if name in ("list", "show", "verify") else "command"
    return Command(
        summary,
        f"ssld.zoo.config:{name.capitalize()}Config",
        f"ssld.zoo.{module}:{'list_' if name == 'list' else name}",
        positional=positional,
        words=words,
    )


def _plan(task: str, summary: str) -> Command:
    return Command(
        summary,
        f"downstream.plan.config:Plan{task.capitalize()}Config",
        f"downstream.plan.plan:plan_{task}",
        "downstream.plan.config:check",
        words=WITH_BACKBONE,
        section="transfer" if task == "transfer" else None,
    )


WITH_BACKBONE = "downstream.backbone.config:with_backbone_name"
COMMANDS = {
    "quickstart": Command(
        "the whole method on handwritten digits, in a minute",
        "ssld.quickstart:QuickstartConfig",
        "ssld.quickstart:quickstart",
    ),
    "init": Command(
        "a commented settings file for your own images: `ssld init detection FOLDER > my.yaml`",
        "ssld.cli.template:InitConfig",
        "ssld.cli.template:init",
        positional=("task", "source"),
    ),
    "distill": Command(
        "train a student from a frozen teacher, without labels",
        "ssld.distill.config:DistillConfig",
        "ssld.distill.distill:distill",
        "ssld.distill.students:check",
        exported="student",
    ),
    "labels build": Command(
        "what a distillation's teacher says of its views, stored",
        "ssld.distill.config:BuildLabelsConfig",
        "ssld.distill.build_labels:build_labels",
        "ssld.labels.format:check",
    ),
    "labels verify": Command(
        "every shard of stored labels against its sha256",
        "ssld.labels.config:VerifyConfig",
        "ssld.labels.command:verify",
        positional=("labels",),
    ),
    "labels stats": Command(
        "how many labels there are, how large, and what the teacher says",
        "ssld.labels.config:StatsConfig",
        "ssld.labels.command:stats",
        positional=("labels",),
    ),
    "labels push": Command(
        "a copy of stored labels on a hub or at any address of fsspec",
        "ssld.labels.config:PushConfig",
        "ssld.labels.command:push",
        positional=("labels", "to"),
    ),
    "labels pull": Command(
        "stored labels from there, every sha256 compared",
        "ssld.labels.config:PullConfig",
        "ssld.labels.command:pull",
        positional=("source",),
    ),
    "supervised": Command(
        "train with human labels: teachers and honest baselines",
        "ssld.distill.config:SupervisedConfig",
        "ssld.distill.supervised:supervised",
        CHECK_OUT,
        exported="student",
    ),
    "finetune": Command(
        "the second stage: a run's student on the labeled set, more slowly",
        "ssld.distill.config:FinetuneConfig",
        "ssld.distill.finetune:finetune",
        CHECK_OUT,
        defaults="ssld.distill.parent_run:finetune_defaults",
        exported="student",
    ),
    "fix": Command(
        "the resolution fix: the classifier at a larger test size",
        "ssld.distill.config:FixResConfig",
        "ssld.distill.fixres:fix",
        CHECK_OUT,
        defaults="ssld.distill.parent_run:fix_defaults",
        exported="student",
    ),
    "recipe": Command(
        "distill, finetune and fix in one command, resumable",
        "ssld.recipe.config:RecipeConfig",
        "ssld.recipe.command:recipe",
        "ssld.recipe.recipe:as_asked",
        words="ssld.recipe.config:words",
    ),
    "ablate": Command(
        "a recipe for each combination of a grid's settings: tables and plots",
        "ssld.ablate.config:AblateConfig",
        "ssld.ablate.command:ablate",
        words="ssld.ablate.config:words",
    ),
    "plan": Command(
        "before a long run: what is wrong, what it will take and cost",
        "ssld.plan.config:PlanConfig",
        "ssld.plan.plan:plan",
        "ssld.plan.config:check",
        words="ssld.plan.config:with_recipe",
        section="distill",
    ),
    "plan detection": _plan("detection", "memory and time of a detector's run, before it begins"),
    "plan segmentation": _plan("segmentation", "memory and time of a segmenter's"),
    "plan transfer": _plan("transfer", "memory and time of a transfer"),
    "bench": Command(
        "speed of teacher, student and loader, alone and together",
        "ssld.plan.config:BenchConfig",
        "ssld.plan.bench:bench",
        "ssld.plan.config:check",
    ),
    "compare": Command(
        "several runs in one table and one set of curves",
        "ssld.compare.config:CompareConfig",
        "ssld.compare.compare:compare",
        positional=("runs*",),
    ),
    "curate": _curate(
        None, "choose unlabeled images: near-duplicates out, the teacher's surest in"
    ),
    "curate index": _curate("index", "hashes, size, mode and readability of every file"),
    "curate score": _curate("score", "classes, probabilities and features by the teacher"),
    "curate duplicates": _curate(
        "duplicates", "near-duplicates of protected images in all of the gallery"
    ),
    "curate select": _curate("select", "the manifest of selected images"),
    "curate report": _curate(
        "report",
        "draw what the tables in OUT say (`ssld curate report --out OUT`)",
        "ssld.curate.config:with_own_settings",
    ),
    "curate explain": Command(
        "why an image was kept or dropped (`ssld curate explain PATH --out OUT`)",
        "ssld.curate.config:ExplainConfig",
        "ssld.curate.explain:explain",
        positional=("path",),
    ),
    "zoo list": _zoo("list", "the catalogue, or what a filter leaves of it"),
    "zoo show": _zoo("show", "all that is known of one backbone", "name"),
    "zoo convert": _zoo(
        "convert",
        "Paddle's weights as a folder for timm",
        "file",
        words="ssld.zoo.config:with_class",
    ),
    "zoo publish": _zoo(
        "publish", "a release of a run or a folder, onto a hub or into a local folder", "source"
    ),
    "zoo pull": _zoo("pull", "a release from a hub, every sha256 verified", "repo"),
    "zoo verify": _zoo("verify", "every file of a release against its sha256", "folder"),
    "zoo bundle": _zoo(
        "bundle", "backbones of the catalogue, or release folders, in one tar", "names*"
    ),
    "zoo unbundle": _zoo(
        "unbundle", "the releases of such a tar, every path and sha256 checked", "tar"
    ),
    "zoo export": _zoo(
        "export", "a network in another format, compared with what it is now", "source"
    ),
    "evaluate": Command(
        "any classifier on labeled images: top-1 and top-5; a detector or segmenter: AP, mIoU",
        "ssld.health.config:EvaluateConfig",
        "downstream.deploy.evaluate:evaluate",
        "ssld.health.config:check",
    ),
    "embed": Command(
        "the pooled features of every image, as a table",
        "ssld.embed.config:EmbedConfig",
        "ssld.embed.embed:embed",
        "ssld.embed.config:check",
    ),
    "transfer": Command(
        "a backbone, fine-tuned as a classifier",
        "downstream.transfer.config:TransferConfig",
        "downstream.transfer.transfer:transfer",
        "downstream.transfer.known_datasets:resolve_and_check",
        words=WITH_BACKBONE,
        section="transfer",
        exported="student",
    ),
    "detection": Command(
        "a backbone, fine-tuned in a detector",
        "downstream.detection.config:DetectionConfig",
        "downstream.detection.command:detection",
        "downstream.detection.config:check",
        words=WITH_BACKBONE,
        exported="model",
    ),
    "segmentation": Command(
        "a backbone, fine-tuned in a segmenter",
        "downstream.segmentation.config:SegmentationConfig",
        "downstream.segmentation.command:segmentation",
        "downstream.segmentation.config:check",
        words=WITH_BACKBONE,
        exported="model",
    ),
    "ab": Command(
        "which of two backbones is better downstream: difference and interval",
        "downstream.ab.grid:ABConfig",
        "downstream.ab.command:ab",
        words="downstream.ab.grid:words",
    ),
    "predict": Command(
        "draw what a detector or segmenter finds in images",
        "downstream.deploy.config:PredictConfig",
        "downstream.deploy.predict:predict",
        positional=("run", "images"),
    ),
    "pseudo-label": Command(
        "annotations by a trained detector or segmenter, for images without any",
        "downstream.pseudo_label.config:PseudoLabelConfig",
        "downstream.pseudo_label.command:pseudo_label",
        "downstream.pseudo_label.config:check",
        positional=("run",),
    ),
    "selftrain": Command(
        "teacher, labels for unlabeled images, student: self-training in one command, resumable",
        "downstream.selftrain.config:SelftrainConfig",
        "downstream.selftrain.command:selftrain",
        "downstream.selftrain.recipe:as_asked",
        words="downstream.selftrain.config:words",
    ),
    "methods": Command(
        "which way to learn from unlabeled images is the best: differences, intervals, costs",
        "downstream.methods.config:MethodsConfig",
        "downstream.methods.command:methods",
        "downstream.methods.plan:as_asked",
        words="downstream.methods.config:words",
    ),
    "sed": Command(
        "a detector from labeled and unlabeled images at once, its average as the teacher",
        "downstream.sed.config:SedConfig",
        "downstream.sed.command:sed",
        "downstream.detection.config:check",
        words=WITH_BACKBONE,
        exported="model",
    ),
    "export": Command(
        "a detector or segmenter as ONNX, checked against torch",
        "downstream.deploy.config:ExportConfig",
        "downstream.deploy.export:export",
        "downstream.deploy.config:check_export",
        positional=("run",),
    ),
}
GROUPS = {
    "labels": "a teacher's predictions, stored for many students: build, verify, stats, push, pull",
    "zoo": "distilled backbones: list, show, convert, publish, pull, verify, bundle, export",
}
"""What is no command of its own, only the first word of some."""
STAGES = tuple(name for name, command in COMMANDS.items() if command.exported)
LATER_STAGES = tuple(name for name in STAGES if COMMANDS[name].defaults)
"""Stages that go on from the one before."""
DOWNSTREAM = tuple(name for name in STAGES if COMMANDS[name].config.startswith("downstream."))
"""Stages that are a recipe of their own."""
FIRST_STAGES = tuple(name for name in STAGES if name not in (*LATER_STAGES, *DOWNSTREAM))


def stage_of(name: str) -> tuple[type[LoopConfig], Callable[[Any], object]]:
    """The class of a stage's settings, and the function that checks them and trains."""
    command = COMMANDS[name]
    return resolve_name(command.config), lambda config: work_of(command, config)


def work_of(command: Command, config: Any) -> Any:
    """Check the settings, then import the command's work and do it.

    Raises:
        InputError: a package that it needs is not installed, or of another version than its pair.
    """
    try:
        if command.check:
            config = resolve_name(command.check)(config, **command.options) or config
        return resolve_name(command.work)(config, **command.options)
    except ModuleNotFoundError as error:
        missing = what_is_missing(error)
        if missing is None:
            raise
        raise InputError(f"a package that this needs is missing: {missing}") from error
    except RuntimeError as error:
        unfit = unfit_pair(error)
        if unfit is None:
            raise
        raise InputError(unfit) from error
