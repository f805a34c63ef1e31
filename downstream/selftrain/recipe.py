"""A recipe of self-training: the settings of its stages, checked before the first of them runs.

This file imports neither torch nor timm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from downstream.dense.config import BalanceConfig, DownstreamConfig
from downstream.detection import config as detection
from downstream.pseudo_label.config import PseudoLabelConfig
from downstream.segmentation import config as segmentation
from downstream.selftrain.config import SelftrainConfig
from downstream.selftrain.inherited import (
    DECIDED,
    check_teacher,
    inherited,
    pruned,
    without_effect,
    without_others,
)
from ssld.cli.commands import stage_of
from ssld.cli.parse import parse_section
from ssld.common.errors import InputError, did_you_mean
from ssld.common.files import read_object
from ssld.common.paths import check_inputs, check_path
from ssld.common.settings import plain
from ssld.common.settings_file import parsed, read_settings, shortened
from ssld.recipe.config import blamed, refuse_misspelt
from ssld.recipe.stage_folder import StagePlace

TASKS = {"detection": ("detector", "backbone"), "segmentation": ("segmenter", "backbone")}
"""And the sections that say what the network is."""
INSTALLED: dict[str, Any] = {
    "detection": detection.require_installed,
    "segmentation": segmentation.require_installed,
}
"""Refuse settings of a network for which a package is missing."""
LABELS = "labels"
TRAINED = ("teacher", "baseline", "oracle", "student")
"""Stages of the task, in the order in which they run; the teacher's labels come after it."""
KEYS = ("out", "task", "unlabeled", LABELS, *TRAINED)
START = ("initial", "teacher")
OF_SED = ("consistency", "strong", "data.unlabeled", "data.unlabeled_per_labeled")
"""Settings of a teacher of `ssld sed` that no stage has."""


@dataclass(frozen=True)
class Selftrain:
    """A recipe as it is to be run."""

    file: str
    out: Path
    task: str
    given_teacher: str | None
    """A run that is the teacher; None where one is trained."""
    configs: dict[str, Any]
    """Of the stages of TRAINED that there are, in their order: DownstreamConfig."""
    labels: PseudoLabelConfig
    overwrite: bool = False
    teacher_is_baseline: bool = False
    """The baseline that is asked for has the teacher's settings: it is not trained again."""

    @property
    def teacher(self) -> str:
        """The teacher's run folder."""
        return self.given_teacher or str(self.out / "teacher")

    def place(self, stage: str) -> StagePlace:
        return StagePlace(self.out, stage, self.task)


def as_asked(config: SelftrainConfig) -> Selftrain:
    """The recipe that a command line names; nothing is written.

    Raises:
        InputError: an unknown section, a setting that is not allowed, a source that is not there.
    """
    tree = read_settings(Path(config.file))

    def read(overrides: list[str]) -> Selftrain:
        return recipe_of(tree, replace(config, overrides=overrides))

    return blamed(config.file, config.overrides, read)


def recipe_of(tree: dict[str, Any], config: SelftrainConfig) -> Selftrain:
    """The same of what a file would hold; `config.file` is its name.

    Raises:
        InputError: see `as_asked`.
    """
    recipe = _Reading(config, tree).recipe()
    for stage, settings in recipe.configs.items():
        where = f"{config.file}, {stage}"
        there = settings
        if stage == "student":  # its labels are not there yet
            data = replace(settings.data, generated=[], minibatch="mixed")
            there = replace(settings, data=data, balance=BalanceConfig())
        init = None if settings.init == recipe.teacher else settings.init
        check_inputs(replace(there, init=init), where)
        INSTALLED[recipe.task](settings)
        recipe.place(stage).check()
    for path in recipe.labels.images:
        check_path(f"{config.file}: unlabeled", path)
    return recipe


class _Reading:
    """From a file and a command line to settings.

    Args:
        tree: what the file holds.
    """

    def __init__(self, config: SelftrainConfig, tree: dict[str, Any]) -> None:
        self.config, self.file, self.tree = config, config.file, dict(tree)
        for key in self.tree:
            if key not in KEYS:
                hint = did_you_mean(key, KEYS, cutoff=0.5) or f"; give {', '.join(KEYS)}"
                raise InputError(f"{self.file}: {key!r} is no section{hint}")
        self.words = self._overrides(config.overrides)
        self.out = Path(self._text("out", config.out))
        self.task = self._text("task", None)
        if self.task not in TASKS:
            raise InputError(f"{self.file}: task is {shortened(self.task)}: give detection or "
                             "segmentation")  # fmt: skip

    def recipe(self) -> Selftrain:
        """All stages, checked."""
        self.given_teacher = self._given_teacher()
        self.teacher = self.given_teacher or str(self.out / "teacher")
        configs: dict[str, DownstreamConfig] = {}
        if self.given_teacher is None:
            configs["teacher"] = self._parse("teacher", self._section("teacher"), {})
        before = self._taught_with(configs)
        student = self._student(before)
        configs |= self._baselines(student, before.get("init"))
        same = _same_run(configs.get("baseline"), configs.get("teacher"))
        if same:
            del configs["baseline"]
        configs["student"] = student
        self._check_shares(before, configs)
        labels = self._labels(student, known=bool(before))
        return Selftrain(self.file, self.out, self.task, self.given_teacher, configs, labels,
                         self.config.overwrite, same)  # fmt: skip

    def _text(self, key: str, given: str | None) -> str:
        value = given or self.tree.get(key)
        if not value:
            raise InputError(f"{self.file}: {key} is missing; give it in the file or with --{key}")
        if not isinstance(value, str):
            raise InputError(f"{self.file}: {key} is {shortened(value)}: give one word")
        return value

    def _overrides(self, overrides: Sequence[str]) -> dict[str, list[str]]:
        """Each `name=value` as an option of the stage that it names, else of the first that is
        trained; `baseline=true` goes into the file's place."""
        options: dict[str, list[str]] = {stage: [] for stage in (LABELS, *TRAINED)}
        unnamed = []
        for override in overrides:
            name, _, value = override.partition("=")
            stage, dot, rest = override.partition(".")
            if name in KEYS:
                self.tree[name] = parsed(value)
            elif dot and stage in options and name == "teacher.run":
                self.tree["teacher"] = {"run": value}
            elif dot and stage in options:
                options[stage].append(f"--{rest}")
            else:
                if dot:
                    refuse_misspelt(stage, list(options))
                unnamed.append(f"--{override}")
        first = "student" if self._has_run() else "teacher"
        options[first] = [*unnamed, *options[first]]
        return options

    def _has_run(self) -> bool:
        section = self.tree.get("teacher")
        return isinstance(section, dict) and "run" in section

    def _section(self, stage: str) -> dict[str, Any]:
        value = self.tree.get(stage)
        if value is True and stage in ("baseline", "oracle"):
            return {}
        if not isinstance(value, dict | None):
            raise InputError(
                f"{self.file}: {stage} is {shortened(value)}: give `name: value` lines, or {{}}"
            )
        section = dict(value or {})
        decided = {"labels": ("run", "images"), "teacher": ()}.get(stage, ("init",))
        given = [key for key in (*DECIDED, *decided) if key in section]
        given += [f"--{stage}.{key}" for key in (*DECIDED, *decided)
                  if any(word.startswith(f"--{key}=") for word in self.words[stage])]  # fmt: skip
        if given:
            raise InputError(
                f"{self.file}, {stage}: {given[0]} is the recipe's to decide; leave it out"
            )
        return section

    def _given_teacher(self) -> str | None:
        if not self._has_run():
            if "teacher" not in self.tree:
                raise InputError(f"{self.file}: teacher is missing: give settings of {self.task}, "
                                 "or {run: RUN}")  # fmt: skip
            return None
        section = self.tree["teacher"]
        others = [key for key in section if key != "run"]
        others += [word.partition("=")[0] for word in self.words["teacher"]]
        if others:
            raise InputError(
                f"{self.file}, teacher: {others[0]} beside run, which is trained already; give "
                "settings to the student, or leave run out"
            )
        run = section["run"]
        if not isinstance(run, str) or not run:
            raise InputError(f"{self.file}, teacher: run is {shortened(run)}: give one run folder")
        check_path(f"{self.file}: teacher.run", run)
        check_teacher(self.file, run, self.task)
        return run

    def _taught_with(self, configs: dict[str, DownstreamConfig]) -> dict[str, Any]:
        """The teacher's settings, nested; empty of a network without them."""
        if self.given_teacher is None:
            return inherited(plain(configs["teacher"]))
        file = Path(self.given_teacher) / "config.yaml"
        if not file.is_file():
            return {}
        settings = inherited(read_object(file, "give another run as the teacher"))
        return pruned(settings, OF_SED)

    def _student(self, before: dict[str, Any]) -> DownstreamConfig:
        section = self._section("student")
        start = section.pop("start", "initial")
        for word in [x for x in self.words["student"] if x.startswith("--start=")]:
            self.words["student"].remove(word)
            start = word.partition("=")[2]
        if start not in START:
            raise InputError(f"{self.file}, student: start is {shortened(start)}: give initial or "
                             "teacher")  # fmt: skip
        decided = [f"--data.generated={self.out / LABELS}"]
        decided += [f"--init={self.teacher}"] if start == "teacher" else []
        if "generated" in (section.get("data") or {}):
            raise InputError(f"{self.file}, student: data.generated is the recipe's to decide; "
                             "leave it out")  # fmt: skip
        student = self._parse("student", section, before, decided)
        now = plain(student)
        if start == "teacher" and before:
            other = [name for name in TASKS[self.task] if before.get(name) != now[name]]
            other += ["data.classes"] * (_classes(before) != _classes(now))
            if other:
                raise InputError(
                    f"{self.file}, student: start is teacher, but {other[0]} is another one than "
                    f"the teacher's ({_shown(now, other[0])}, there {_shown(before, other[0])}): "
                    "leave it out, or give start: initial"
                )
        return student

    def _check_shares(self, before: dict[str, Any], configs: dict[str, DownstreamConfig]) -> None:
        """Another seed draws other labeled images: then more than the share would be learned from,
        by way of the teacher.

        Args:
            before: settings of the teacher, nested.
        """
        for stage, config in configs.items():
            seed = before.get("seed", config.seed)
            if config.data.labeled_share < 1 and config.seed != seed:
                raise InputError(
                    f"{self.file}, {stage}: seed is {config.seed} and the teacher's {seed}, which "
                    "draws another labeled share (data.labeled_share); give all stages one seed"
                )

    def _baselines(
        self, student: DownstreamConfig, init: str | None
    ) -> dict[str, DownstreamConfig]:
        """What the student is held against, as long as it is.

        Args:
            init: what the teacher started from.
        """
        configs: dict[str, DownstreamConfig] = {}
        before = {**inherited(plain(student)), "init": init}
        del before["balance"]  # of generated annotations
        usual = type(student.data)()
        before["data"] |= {
            "generated": [], "minibatch": "mixed", "generated_share": usual.generated_share
        }  # fmt: skip
        for stage in ("baseline", "oracle"):
            if self.tree.get(stage) in (None, False):
                if self.words[stage]:
                    raise InputError(f"--{stage}.{self.words[stage][0][2:]}: the recipe has no "
                                     f"{stage}; give --{stage} true")  # fmt: skip
                continue
            if stage == "oracle":
                before["data"] = {**before["data"], "labeled_share": 1.0}
            configs[stage] = self._parse(stage, self._section(stage), before)
            if configs[stage].steps is None:
                raise InputError(
                    f"{self.file}, {stage}: epochs of the student count the images of both kinds, "
                    "so that as many are not as long here; give student.steps instead"
                )
        if "oracle" not in configs:
            return configs
        human = {**before, "data": {**before["data"], "labeled_share": student.data.labeled_share}}
        baseline = configs.get("baseline") or self._parse("baseline", {}, human)
        if _same_run(configs["oracle"], baseline):
            raise InputError(
                f"{self.file}, oracle: it would be the baseline, as that has all annotations; give "
                "the teacher a data.labeled_share, or the oracle another data.train"
            )
        return configs

    def _labels(self, student: DownstreamConfig, *, known: bool) -> PseudoLabelConfig:
        """
        Args:
            known: whether the teacher's settings are, and with them its labeled set.
        """
        section, unlabeled = self._section(LABELS), self.config.unlabeled
        unlabeled = unlabeled or self.tree.get("unlabeled") or []
        if not unlabeled:
            raise InputError(f"{self.file}: unlabeled is missing: name sources of images in the "
                             "file or with --unlabeled")  # fmt: skip
        words = [*self.words[LABELS], f"--run={self.teacher}",
                 f"--out={self.out / LABELS}"]  # fmt: skip
        labeled = {} if known else {"labeled": list(student.data.train)}
        tree = {"images": unlabeled, "val": list(student.data.val), **labeled, **section}
        return self._parsed(LABELS, "ssld pseudo-label", PseudoLabelConfig, words, tree, {})

    def _parse(
        self,
        stage: str,
        section: dict[str, Any],
        before: dict[str, Any],
        decided: Sequence[str] = (),
    ) -> Any:
        """The settings of a stage of the task.

        Args:
            before: what holds where it says nothing, nested.
            decided: by the recipe, as words of a command line.
        """
        words = [*self.words[stage], *decided, f"--out={self.out / stage}"]
        config_class = stage_of(self.task)[0]
        return self._parsed(stage, f"ssld {self.task}", config_class, words, section, before)

    def _parsed(
        self,
        stage: str,
        prog: str,
        config_class: type,
        words: list[str],
        section: dict[str, Any],
        before: dict[str, Any],
    ) -> Any:
        given = [word.partition("=")[0].removeprefix("--") for word in words]
        return parse_section(
            prog,
            config_class,
            words,
            settings=(f"{self.file}, {stage}", without_others(section, given)),
            defaults=lambda given: without_effect(without_others(before, list(given)), given),
        )


def _same_run(one: DownstreamConfig | None, other: DownstreamConfig | None) -> bool:
    """Whether both are there, and train the same network."""
    return one is not None and other is not None and replace(one, out=other.out) == other


def _classes(settings: dict[str, Any]) -> Any:
    return settings.get("data", {}).get("classes")


def _shown(settings: dict[str, Any], name: str) -> str:
    value: Any = settings
    for key in name.split("."):
        value = value.get(key, {})
    return shortened(value)


def stages_of(recipe: Selftrain) -> Iterator[str]:
    """In the order in which they run."""
    for stage in TRAINED:
        if stage in recipe.configs:
            yield stage
        if stage == "teacher":
            yield LABELS
