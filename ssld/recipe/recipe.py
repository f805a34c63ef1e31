"""Distil, finetune and fix in one command: `ssld recipe F.yaml [--a.b value ...]`.

F.yaml has one section per stage, in the order in which they run, and `out`:

    out: runs/resnet50d
    distill: {epochs: 360, ...}     # or supervised, for a baseline; settings of that command
    finetune: {}                    # optional; what is not said is as in the stage before
    fix: {}                         # optional

An override goes to the first stage, and from there on to the others; `--finetune.epochs 10` to one
of these. Every stage has its own run folder under `out`, complete ones are skipped, incomplete ones
go on. Also `accelerate launch -m ssld.recipe F.yaml ...`. The commands are modules of their own;
nothing is trained here. One section `transfer`, `detection` or `segmentation` is a recipe, too: so
`ssld ablate` has grids of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssld.cli.commands import DOWNSTREAM, STAGES, stage_of
from ssld.cli.parse import parse
from ssld.common.errors import InputError, Interrupted
from ssld.common.files import locked
from ssld.common.local_paths import check_inputs
from ssld.common.settings import flat, plain, under
from ssld.common.settings_file import read_settings
from ssld.distill.config import DistillConfig
from ssld.distill.parent_run import open_start, settings_after
from ssld.distill.stage_config import FinetuneConfig
from ssld.engine.config import LoopConfig
from ssld.engine.run_folder import HARMLESS
from ssld.recipe.config import RecipeConfig
from ssld.recipe.stage_folder import StagePlace

FIRST = ("distill", "supervised")
ORDERS = (["finetune"], ["fix"], ["finetune", "fix"], [])


@dataclass(frozen=True)
class Recipe:
    """A recipe as it is to be run."""

    file: str
    out: Path
    stages: list[str]
    settings: dict[str, dict[str, Any]]
    """Of each stage, as the file says them."""
    overrides: dict[str, list[str]]
    """Of each stage, as words of a command line."""

    def config(self, stage: str, before: dict[str, Any], taught: bool) -> LoopConfig:
        """The settings of a stage.

        Args:
            before: those of the stage before, empty for the first.
            taught: whether that one has a teacher.

        Raises:
            InputError: an unknown key or a value that is not allowed.
        """
        words = [*self.overrides[stage], "--out", str(self.out / stage)]
        run = str(self.out / self.stages[self.stages.index(stage) - 1])
        words += ["--run", run] if before else []

        def defaults(given: dict[str, Any]) -> dict[str, Any]:
            if not before:
                return {}
            return settings_after(stage, before, taught, run, given)  # type: ignore[arg-type]

        where = f"{self.file}, {stage}"
        given = {word.partition("=")[0] for word in words}
        # A length on the command line takes the place of the file's.
        longer = {"--steps": "epochs", "--epochs": "steps"}
        dropped = {other for name, other in longer.items() if name in given}
        tree = {key: x for key, x in self.settings[stage].items() if key not in dropped}
        settings = (where, tree)
        try:
            return parse(
                f"ssld {stage}", stage_of(stage)[0], words, settings=settings, defaults=defaults
            )
        except InputError as error:
            said = str(error)
            raise InputError(said if said.startswith(where) else f"{where}: {said}") from error


def open_recipe(
    file: str, tree: dict[str, Any], out: str | None, overrides: Sequence[str]
) -> Recipe:
    """Read a recipe and check the settings of all its stages; nothing is written.

    Args:
        tree: what `file` holds.
        out: instead of the one in the file.

    Raises:
        InputError: an unknown stage, a wrong order, a setting that is not allowed.
    """
    stages = [name for name in tree if name != "out"]
    unknown = [name for name in stages if name not in STAGES]
    if unknown == ["grid"]:
        raise InputError(f"{file} has a grid: it is for `ssld ablate`")
    if unknown:
        raise InputError(
            f"{file}: {unknown[0]!r} is no stage; give sections {', '.join(STAGES)}, and `out`"
        )
    alone = len(stages) == 1 and stages[0] in DOWNSTREAM
    if not alone and (not stages or stages[0] not in FIRST or stages[1:] not in ORDERS):
        raise InputError(
            f"{file}: the stages are {', '.join(stages) or 'none'}; give distill or supervised, "
            f"then finetune, fix or both; or one of {', '.join(DOWNSTREAM)} alone"
        )
    where = out or tree.get("out")
    if not where:
        raise InputError(f"{file}: out is missing; name a folder in it or with --out")
    if not isinstance(where, str):
        raise InputError(f"{file}: out is {where!r}; name a folder")
    settings = {name: tree[name] or {} for name in stages}
    for name, content in settings.items():
        if not isinstance(content, dict):
            raise InputError(f"{file}: {name} is {content!r}; give `name: value` lines, or {{}}")
        for key in ("out", "run", "resume", "overwrite"):
            if key in content:
                raise InputError(f"{file}, {name}: {key} is the recipe's to decide; leave it out")
    found = Recipe(file, Path(where), stages, settings, _overrides(stages, overrides))
    check(found)
    return found


def _overrides(stages: list[str], words: Sequence[str]) -> dict[str, list[str]]:
    """Each word to the stage that it names, else to the first."""
    found: dict[str, list[str]] = {stage: [] for stage in stages}
    stage = stages[0]
    for word in words:
        if word.startswith("--"):
            name, _, rest = word.removeprefix("--").partition(".")
            stage = name if rest and name in found else stages[0]
            if rest and name in STAGES and name not in found:
                raise InputError(f"{word}: the recipe has no stage {name}")
            word = f"--{rest}" if rest and name in found else word
        found[stage].append(word)
    return found


def check(recipe: Recipe) -> None:
    """Parse every stage, and look for its files, as far as that can be done before the stages
    before it have run.

    Raises:
        InputError: what would be found days later.
    """
    for stage, config in _configs(recipe):
        check_inputs(config, f"{recipe.file}, {stage}")
        StagePlace(recipe.out, stage).check()


def _configs(recipe: Recipe) -> Iterator[tuple[str, LoopConfig]]:
    """The settings of each stage, with what those before will have resolved still open."""
    before: dict[str, Any] = {}
    taught = False
    for stage in recipe.stages:
        config = recipe.config(stage, before, taught)
        yield stage, config
        before = plain(config)
        taught = isinstance(config, DistillConfig) and before.get("targets") != "human"


def recipe(config: RecipeConfig) -> None:
    """Run what is not complete, then write one report over all stages.

    Raises:
        InputError: a setting that is not allowed; a stage whose settings changed; another recipe at
            work in the same folder.
        Interrupted: see `ssld.engine.loop.train`; the same command goes on.
    """
    tree = read_settings(Path(config.file))
    found = open_recipe(config.file, tree, config.out, config.overrides)
    from ssld.engine.processes import open_processes  # not before: it imports torch

    main = open_processes().is_main_process
    _require_classes(found)
    with locked(found.out) if main else contextlib.nullcontext():
        try:
            _run(found, config.overwrite, main)
        except Interrupted as error:
            said = str(error).replace("go on with --resume", "the same command goes on")
            raise Interrupted(said) from error


def class_problems(recipe: Recipe) -> Iterator[str]:
    """A sentence for each later stage whose classes are not its student's.

    Raises:
        InputError: a source or a network that cannot be opened.
    """
    from ssld.recipe.classes import check_classes

    if len(recipe.stages) > 1:
        yield from check_classes(list(_configs(recipe)))


def _require_classes(recipe: Recipe) -> None:
    """
    Raises:
        InputError: classes of a later stage that are not its student's, on all processes.
    """
    problem = _on_main(lambda: next(class_problems(recipe), None))
    if problem:
        raise InputError(f"{recipe.file}, {problem}")


def _run(recipe: Recipe, overwrite: bool, main: bool) -> None:
    from accelerate.state import AcceleratorState

    from ssld.common.attempt import attempt
    from ssld.recipe.report import write_report

    before: tuple[dict[str, Any], bool] = ({}, False)
    for stage in recipe.stages:
        settings = recipe.config(stage, *before)
        state = _decide(recipe, stage, settings, overwrite)
        place = StagePlace(recipe.out, stage)
        if main:
            skipped = state == "complete"
            said = "complete and unchanged, skipped" if skipped else f"{state} in {place.folder}"
            print(f"{stage}: {said}", flush=True)
        if state != "complete":
            moved = ["run", "student.checkpoint"] if before[0] else []  # the start's sha256 decides
            try:
                stage_of(stage)[1](replace(settings, resume=True, allow_changes=moved))
            except InputError:
                if main and not place.begun:  # refused: nothing of the old is lost
                    place.put_back()
                raise
            AcceleratorState._reset_state()  # the next stage may have another precision
        if main:
            place.forget_asides()
        if len(recipe.stages) > 1:
            start = open_start(str(place.folder))
            before = start.settings, start.taught
    if main and recipe.stages[0] not in DOWNSTREAM:  # that stage's own report says it all
        attempt("report.html over all stages", lambda: write_report(recipe.out, recipe.stages))
        print(f"report over all stages: {recipe.out / 'report.html'}")


def _decide(recipe: Recipe, stage: str, config: LoopConfig, overwrite: bool) -> str:
    """complete, going on, from the start, or anew."""
    return _on_main(lambda: _look(recipe, stage, config, overwrite))


def _on_main(look: Callable[[], Any]) -> Any:
    """The main process looks, all hear of it."""
    from accelerate.utils import broadcast_object_list

    from ssld.engine.processes import open_processes

    found: list[Any] = [None, None]
    if open_processes().is_main_process:
        try:
            found[0] = look()
        except InputError as error:
            found[1] = str(error)
    broadcast_object_list(found)
    if found[1]:
        raise InputError(found[1])
    return found[0]


def _look(recipe: Recipe, stage: str, config: LoopConfig, overwrite: bool) -> str:
    place = StagePlace(recipe.out, stage)
    asked = {k: v for k, v in flat(plain(config)).items() if not under(k, HARMLESS)}
    if isinstance(config, FinetuneConfig):
        asked = {k: v for k, v in asked.items() if k not in ("run", "student.checkpoint")}
        asked["start_sha256"] = open_start(config.run).student_sha256()
    if not place.begun:  # killed before the new one began
        place.put_back()
    state = "from the start"
    if place.begun:
        changed = place.changes(asked)
        if changed and not overwrite:
            raise InputError(
                f"{place.folder} was made with other settings: {changed}; set them back, use "
                "another `out`, or redo it and what follows with --overwrite"
            )
        if changed and place.put_back(asked):  # it is the one that was asked for before
            changed = ""
        if changed:
            for follows in recipe.stages[recipe.stages.index(stage) :]:  # they are redone, too
                StagePlace(recipe.out, follows).check_overwrite(plain(config))
            place.put_aside()
        state = "anew" if changed else "complete" if place.complete else "going on"
    if state != "complete":
        place.note(asked)
    return state
