"""Distil, finetune and fix in one command: `ssld recipe F.yaml [--a.b value ...]`.

F.yaml has one section per stage, in the order in which they run, and `out`:

    out: runs/resnet50d
    distill: {epochs: 360, ...}     # or supervised, for a baseline; settings of that command
    finetune: {}                    # optional; what is not said is as in the stage before
    fix: {}                         # optional

An override goes to the first stage, and from there on to the others; `--finetune.epochs 10` to one
of these. Every stage has its own run folder under `out`, complete ones are skipped, incomplete ones
go on. Also `accelerate launch -m ssld.recipe F.yaml ...`. The four commands are modules of their
own; nothing is trained here.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ssld import cli
from ssld.config import DistillConfig, RunConfig, SupervisedConfig, require
from ssld.distill import distill
from ssld.errors import InputError
from ssld.finetune import finetune
from ssld.fix import fix
from ssld.run.folder import HARMLESS, flat, plain, under, write_atomically
from ssld.stage import open_start, settings_after
from ssld.stage_config import FinetuneConfig, FixConfig
from ssld.supervised import supervised

STAGES: dict[str, tuple[type[RunConfig], Callable[[Any], None]]] = {
    "distill": (DistillConfig, distill),
    "supervised": (SupervisedConfig, supervised),
    "finetune": (FinetuneConfig, finetune),
    "fix": (FixConfig, fix),
}
FIRST = ("distill", "supervised")
ORDERS = (["finetune"], ["fix"], ["finetune", "fix"], [])
STATE = "recipe.json"
"""What every stage was last started with, before anything was resolved, and from which student."""


@dataclass(frozen=True)
class RecipeConfig:
    """`ssld recipe F.yaml`: the stages of a recipe, one after the other."""

    file: str = ""
    """The recipe; the first word of the command."""
    out: str | None = None
    """Parent of the stages' run folders; by default what the recipe says."""
    overwrite: bool = False
    """Redo the stages whose settings changed, and those after them."""
    overrides: list[str] = field(default_factory=list)
    """All further words: settings of the first stage, or of one that is named."""

    def __post_init__(self) -> None:
        require(bool(self.file), "no recipe is given: ssld recipe F.yaml")


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

    def folder(self, stage: str) -> Path:
        return self.out / stage

    def config(self, stage: str, before: dict[str, Any] | None, taught: bool) -> RunConfig:
        """The settings of a stage.

        Args:
            before: those of the stage before, None for the first.
            taught: whether that one has a teacher.

        Raises:
            InputError: an unknown key or a value that is not allowed.
        """
        folder = self.folder(stage)
        words = [*self.overrides[stage], "--out", str(folder)]
        run = None
        if before is not None:
            run = str(self.folder(self.stages[self.stages.index(stage) - 1]))
            words += ["--run", run]

        def defaults(given: dict[str, Any]) -> dict[str, Any]:
            if before is None or run is None:
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
            return cli.parse(
                f"ssld {stage}", STAGES[stage][0], words, settings=settings, defaults=defaults
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
    if unknown:
        raise InputError(
            f"{file}: {unknown[0]!r} is no stage; give sections {', '.join(STAGES)}, and `out`"
        )
    if not stages or stages[0] not in FIRST or stages[1:] not in ORDERS:
        raise InputError(
            f"{file}: the stages are {', '.join(stages) or 'none'}; give distill or supervised, "
            "then finetune, fix or both"
        )
    where = out or tree.get("out")
    if not where:
        raise InputError(f"{file}: out is missing; name a folder in it or with --out")
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
    """Parse every stage as far as it is known before the stages before it have run."""
    before, taught = None, False
    for stage in recipe.stages:
        config = recipe.config(stage, before, taught)
        before = plain(config)
        taught = isinstance(config, DistillConfig) and before.get("targets") != "human"


def recipe(config: RecipeConfig) -> None:
    """Run what is not complete, then write one report over all stages.

    Raises:
        InputError: a setting that is not allowed; a complete stage whose settings changed.
        Interrupted: see `ssld.run.loop.train`; the same command goes on.
    """
    from accelerate.state import AcceleratorState

    from ssld.report.recipe import write_report
    from ssld.run.topology import open_processes

    found = open_recipe(
        config.file, cli.read_settings(Path(config.file)), config.out, config.overrides
    )
    main = open_processes().is_main_process
    before: tuple[dict[str, Any], bool] | None = None
    for stage in found.stages:
        settings = found.config(stage, *(before or (None, False)))
        state = _decide(found, stage, settings, config.overwrite)
        if main:
            skipped = state == "complete"
            said = "complete and unchanged, skipped" if skipped else f"{state} in"
            print(f"{stage}: {said} {'' if skipped else found.folder(stage)}".rstrip(), flush=True)
        if state != "complete":
            STAGES[stage][1](replace(settings, resume=True))
            AcceleratorState._reset_state()  # the next stage may have another precision
        start = open_start(str(found.folder(stage)))
        before = start.settings, start.taught
    if main:
        write_report(found.out, found.stages)
        print(f"report over all stages: {found.out / 'report.html'}")


def _decide(recipe: Recipe, stage: str, config: RunConfig, overwrite: bool) -> str:
    """complete, going on, from the start, or anew: the main process looks, all hear of it."""
    from accelerate.utils import broadcast_object_list

    from ssld.run.topology import open_processes

    found: list[Any] = [None, None]
    if open_processes().is_main_process:
        try:
            found[0] = _look(recipe, stage, config, overwrite)
        except InputError as error:
            found[1] = str(error)
    broadcast_object_list(found)
    if found[1]:
        raise InputError(found[1])
    return found[0]


def _look(recipe: Recipe, stage: str, config: RunConfig, overwrite: bool) -> str:
    folder, path = recipe.folder(stage), recipe.out / STATE
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    asked = {k: v for k, v in flat(plain(config)).items() if not under(k, HARMLESS)}
    if isinstance(config, FinetuneConfig):
        asked["start_sha256"] = open_start(config.run).student_sha256()
    last, state = known.get(stage), "from the start"
    if (folder / "config.yaml").is_file():
        changed = [
            f"{key} was {(last or {}).get(key)!r} and is {asked.get(key)!r}"
            for key in sorted(asked.keys() | (last or {}).keys())
            if (last or {}).get(key) != asked.get(key)
        ]
        if changed and not overwrite:
            raise InputError(
                f"{folder} was made with other settings: {'; '.join(changed[:4])}; set them back, "
                "use another `out`, or redo it and what follows with --overwrite"
            )
        if changed:  # gone before its new settings are noted, or a kill would pass it for them
            old = folder.with_name(f".{stage}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.replace(old)
            shutil.rmtree(old, ignore_errors=True)
        state = "anew" if changed else "complete" if _is_complete(folder, stage) else "going on"
    if state != "complete":
        recipe.out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({**known, stage: asked}, indent=2) + "\n")
    return state


def _is_complete(folder: Path, stage: str) -> bool:
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return bool(facts.get("resolution" if stage == "fix" else "exported"))


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    file = words.pop(0) if words and not words[0].startswith("-") else ""
    own, rest = [], []
    for i, word in enumerate(words):
        name = word.partition("=")[0]
        follows = i > 0 and words[i - 1] == "--out"
        (own if follows or name in ("--out", "--overwrite", "--help", "-h") else rest).append(word)
    settings = ["--file", file, *own, "--overrides", json.dumps(rest)]
    return cli.command("ssld recipe", RecipeConfig, recipe, settings, launched=argv is None)


if __name__ == "__main__":
    raise SystemExit(main())
