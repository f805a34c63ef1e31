"""From a file to the runs of all methods, checked before the first of them starts.

OUT/SHARE/SEED/METHOD    a run folder; of data_distillation and rethinking one of `ssld selftrain`
OUT/all/SEED/oracle      trained on all labels

This file imports neither torch nor timm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from downstream.dense.config import DownstreamConfig
from downstream.methods.config import LEARNED, METHODS, ORACLE, SUPERVISED, MethodsConfig
from downstream.selftrain.config import SelftrainConfig
from downstream.selftrain.recipe import TASKS, Selftrain, recipe_of
from ssld.cli.commands import stage_of
from ssld.cli.parse import parse_section
from ssld.common.errors import InputError, did_you_mean
from ssld.common.paths import check_inputs
from ssld.common.settings import flat
from ssld.common.settings_file import merged, parsed, read_settings, shortened
from ssld.recipe.config import blamed, refuse_misspelt

KEYS = ("out", "task", "unlabeled", SUPERVISED, *LEARNED)
SECTIONS = (SUPERVISED, *LEARNED)
DECIDED = ("out", "seed", "init", "resume", "overwrite", "data.labeled_share", "data.generated")
"""What no run says itself."""
SHARED = ("data.train", "data.val", "data.classes", "data.unlabeled")
"""What no method says itself: all learn from the same images and are judged on the same."""
SCALES = {
    ("data_distillation", "detection"): (0.75, 1.0, 1.25),
    ("data_distillation", "segmentation"): (0.75, 1.0, 1.25),
    ("rethinking", "segmentation"): (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
}
"""Factors of the size at which held-out images are seen, at which the teacher sees images: fewer
than the nine of arXiv:1712.04440, section 4; those of arXiv:2006.06882, section 3.2."""
RECIPES = {
    "data_distillation": {"labels": {"test.flip": True}},
    "rethinking": {
        # arXiv:2006.06882, section 3 and appendix B: hard labels of a score of .5, from the
        # teacher on, a minibatch of each kind, losses normalised.
        "labels": {"threshold": 0.5},
        "student": {
            "start": "teacher",
            "data.minibatch": "apart",
            "data.generated_share": 0.5,
            "balance.alpha": 1.0,
        },
    },
}
"""Of the methods that are recipes of `ssld selftrain`: what differs from its defaults."""


MANY_EPOCHS = 1_000_000
"""More than any run has."""


@dataclass(frozen=True)
class Trial:
    """One method with a share of the labels and a seed."""

    method: str
    share: float
    """1 of the oracle."""
    seed: int

    def folder(self, out: Path) -> Path:
        share = "all" if self.method == ORACLE else str(self.share)
        return out / share / str(self.seed) / self.method

    @property
    def name(self) -> str:
        share = "all labels" if self.method == ORACLE else f"{self.share:g} of the labels"
        return f"{self.method}, {share}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """All runs, as they are to be made."""

    file: str
    out: Path
    task: str
    shares: tuple[float, ...]
    seeds: int
    methods: tuple[str, ...]
    """In the order of METHODS."""
    tree: dict[str, Any]
    """What the file and the command line say."""
    unlabeled: list[str]
    overwrite: bool

    def trials(self) -> Iterator[Trial]:
        """In the order in which they run: a seed is complete before the next one begins, and the
        supervised run, a teacher, comes first."""
        for seed in range(self.seeds):
            for share in self.shares:
                yield from (Trial(x, share, seed) for x in self.methods if x != ORACLE)
            if ORACLE in self.methods:
                yield Trial(ORACLE, 1.0, seed)

    def command(self, trial: Trial) -> str:
        """That makes a run of a method that is no recipe."""
        return "sed" if trial.method == "sed" else self.task

    def run(self, trial: Trial) -> Any:
        """The settings of such a run.

        Raises:
            InputError: a setting that is not allowed.
        """
        tree = self._own(trial)
        if trial.method == "sed":
            tree = _with(tree, self.tree.get("sed") or {})
            tree = _with(tree, {"data.unlabeled": self.unlabeled})
        return self._parse(self.command(trial), tree, trial)

    def recipe(self, trial: Trial, *, trained: bool) -> Selftrain:
        """Of a method that is one of `ssld selftrain`.

        Args:
            trained: whether there is a teacher yet; else its settings stand for it.

        Raises:
            InputError: a setting that is not allowed.
        """
        own = self._own(trial)
        given = self.tree.get(trial.method) or {}
        supervised = self.run(replace(trial, method=SUPERVISED))
        views = _views(trial.method, self.task, supervised.test.scales)
        labels = _with(RECIPES[trial.method]["labels"], views)
        labels = _with(labels, given.get("labels") or {})
        student = RECIPES[trial.method].get("student", {})
        if trial.method == "rethinking":
            student = _with(student, _two_minibatches(supervised))
        student = _with(student, given.get("student") or {})
        teacher = replace(trial, method=SUPERVISED).folder(self.out)
        tree = {
            "task": self.task,
            "unlabeled": self.unlabeled,
            "teacher": {"run": str(teacher)} if trained else own,
            "labels": labels,
            "student": student,
        }
        where = f"{self.file}, {trial.method}"
        config = SelftrainConfig(
            file=where, out=str(trial.folder(self.out)), overwrite=self.overwrite
        )
        return recipe_of(tree, config)

    def _own(self, trial: Trial) -> dict[str, Any]:
        """Settings of the task, nested."""
        own = {"seed": trial.seed, "data.labeled_share": trial.share}
        return _with(self.tree[SUPERVISED], own)

    def _parse(self, command: str, tree: dict[str, Any], trial: Trial) -> Any:
        where = f"{self.file}, {trial.method}"
        out = trial.folder(self.out)
        config: Any = parse_section(
            f"ssld {command}", stage_of(command)[0], [f"--out={out}"], settings=(where, tree)
        )
        check_inputs(config, where)
        return config


def _views(method: str, task: str, own: list[float]) -> dict[str, Any]:
    """Scales at which the teacher sees images that it annotates.

    Args:
        own: those at which held-out images are seen.
    """
    factors = SCALES.get((method, task), ())
    middle = sorted(own)[len(own) // 2]
    return {"test.scales": [round(x * middle, 4) for x in factors]} if factors else {}


def _two_minibatches(supervised: DownstreamConfig) -> dict[str, Any]:
    """A minibatch of generated annotations beside the human one, at the same learning rate: rates
    are of 256 images."""
    return {
        "batch_size": 2 * supervised.batch_size,
        "accumulate": 2 * supervised.accumulate,
        "schedule.lr": supervised.schedule.lr / 2,
    }


def _with(tree: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Settings, nested, with others on top; both may have dots in their names."""
    return merged(_nested(tree), _nested(more))


def _nested(tree: dict[str, Any]) -> dict[str, Any]:
    """`a.b: 1` is `a: {b: 1}`."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        first, dot, rest = key.partition(".")
        inner = {rest: value} if dot else value
        inner = _nested(inner) if isinstance(inner, dict) else inner
        result = merged(result, {first: inner})
    return result


def as_asked(config: MethodsConfig) -> Plan:
    """All runs that a command line names; nothing is written.

    Raises:
        InputError: an unknown section, a setting that is not allowed, a source that is not there.
    """
    given = read_settings(Path(config.file))

    def made(overrides: list[str]) -> Plan:
        return _plan(replace(config, overrides=overrides), given)

    return blamed(config.file, config.overrides, made)


def _plan(config: MethodsConfig, given: dict[str, Any]) -> Plan:
    """
    Args:
        given: what the file holds.
    """
    tree = _overridden(config, given)
    out, task = config.out or tree.get("out"), tree.get("task")
    if not isinstance(out, str) or not out:
        raise InputError(f"{config.file}: out is missing; name a folder in it or with --out")
    if task not in TASKS:
        raise InputError(
            f"{config.file}: task is {shortened(task)}: give detection or segmentation"
        )
    unlabeled = config.unlabeled or tree.get("unlabeled") or []
    unlabeled = [unlabeled] if isinstance(unlabeled, str) else unlabeled
    if not isinstance(unlabeled, list) or not all(isinstance(x, str) for x in unlabeled):
        raise InputError(f"{config.file}: unlabeled is {shortened(unlabeled)}: give paths")
    if not unlabeled:
        raise InputError(
            f"{config.file}: unlabeled is missing: name sources of images in the file or with "
            "--unlabeled"
        )
    if task == "segmentation" and "sed" in config.methods:
        raise InputError(
            f"{config.file}: methods has sed, which is for detectors alone: leave it out with "
            "--methods supervised data_distillation rethinking oracle"
        )
    chosen = {*config.methods, SUPERVISED}  # a teacher, and what all are held against
    methods = tuple(name for name in METHODS if name in chosen)
    plan = Plan(config.file, Path(out), str(task), tuple(config.shares), config.seeds, methods,
                tree, unlabeled, config.overwrite)  # fmt: skip
    _check(plan)
    return plan


def _overridden(config: MethodsConfig, tree: dict[str, Any]) -> dict[str, Any]:
    """What the file holds, with the overrides of the command line."""
    for key in tree:
        if key not in KEYS:
            hint = did_you_mean(key, KEYS, cutoff=0.5) or f"; give {', '.join(KEYS)}"
            raise InputError(f"{config.file}: {key!r} is no section{hint}")
    for override in config.overrides:
        name, _, text = override.partition("=")
        first, dot, _ = name.partition(".")
        if dot and first not in SECTIONS:
            refuse_misspelt(first, SECTIONS)
        full = name if first in SECTIONS else f"{SUPERVISED}.{name}"
        tree = _with(tree, {full: parsed(text)})
    for section in SECTIONS:
        value = tree.get(section) or {}
        if not isinstance(value, dict):
            raise InputError(
                f"{config.file}: {section} is {shortened(value)}: give `name: value` lines"
            )
        _refuse_decided(config.file, section, value)
    if not tree.get(SUPERVISED):
        raise InputError(
            f"{config.file}: supervised is missing: give the settings that all runs share"
        )
    return tree


def _refuse_decided(file: str, section: str, tree: dict[str, Any]) -> None:
    parts = {section: tree}
    if section in RECIPES:
        known = ("labels", "student")
        wrong = [key for key in tree if key not in known or not isinstance(tree[key], dict)]
        if wrong:
            raise InputError(
                f"{file}, {section}: {wrong[0]} is {shortened(tree[wrong[0]])}: give labels: and "
                "student: with `name: value` lines"
            )
        parts = {f"{section}.{key}": value for key, value in tree.items()}
    decided = DECIDED if section == SUPERVISED else (*DECIDED, *SHARED)
    for place, settings in parts.items():
        given = [key for key in flat(_with({}, settings)) if key in decided]
        if given:
            raise InputError(f"{file}, {place}: {given[0]} is decided for all runs; leave it out")


def _settings(plan: Plan) -> Iterator[tuple[Trial, Any]]:
    """Those of each method that is to be judged; other seeds differ in the seed alone."""
    for trial in plan.trials():
        if trial.seed == 0 and trial.method in RECIPES:
            yield trial, plan.recipe(trial, trained=False).configs["student"]
        elif trial.seed == 0:
            yield trial, plan.run(trial)


def unequal(plan: Plan) -> list[str]:
    """Sentences about what may be unequal though its setting is the same: epochs are of each
    method's own images, and of how many is not known before."""
    said: dict[str, str] = {}
    for _, config in _settings(plan):
        longest = config.steps * config.batch_size  # epochs of the run, with one image
        warmup, every = config.schedule.warmup_epochs, config.evaluate_every_epochs
        if 0 < warmup < longest / 10:
            said.setdefault(
                "warmup",
                f"Warm-up is {warmup:g} epochs of each method's own images, at most a tenth of its "
                "steps, so that its steps are other ones in each method; schedule.warmup_epochs 0 "
                f"gives none to all, {MANY_EPOCHS} a tenth to all.",
            )
        if config.checkpoint.best != "last" and every < longest:
            said.setdefault(
                "evaluations",
                f"Evaluations are {every:g} epochs of each method's own images apart, so that some "
                "methods choose their best among more of them; checkpoint.best last chooses none.",
            )
    return list(said.values())


def _check(plan: Plan) -> None:
    """
    Raises:
        InputError: a setting of any run that is not allowed; epochs in the place of steps, or as
            milestones.
    """
    lengths: dict[str, int | None] = {}
    for trial, config in _settings(plan):
        lengths[trial.method] = config.steps
        if config.patience is not None:
            raise InputError(
                f"{plan.file}, {trial.method}: patience is {config.patience}, which would end the "
                "methods after other steps: leave it out"
            )
        if config.schedule.milestones:
            raise InputError(
                f"{plan.file}, {trial.method}: schedule.milestones is {config.schedule.milestones} "
                "epochs, of which each method has other ones: of its own images. Give "
                "schedule.milestone_shares, which all methods reach at the same step"
            )
    other = next((x for x in lengths if lengths[x] != lengths[SUPERVISED]), None)
    if lengths[SUPERVISED] is None or other:
        what = f"{other} has {lengths[other]} steps" if other else "there are no steps"
        raise InputError(
            f"{plan.file}: {what}, supervised {lengths[SUPERVISED] or 'none'}: give "
            "supervised.steps, which all methods have"
        )
