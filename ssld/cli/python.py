"""Commands as functions, for scripts and notebooks: `ssld.distill(out=..., teacher=..., ...)`.

`ssld.distill` is a package as well: `python -m ssld.distill` runs it, `import ssld.distill.config`
finds its settings. So the module itself is what is called (`callable_module`).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ssld.cli.commands import COMMANDS, work_of
from ssld.cli.parse import parse
from ssld.common.errors import InputError

if TYPE_CHECKING:  # only where a result is asked for its network
    from torch import nn

Network = str | Path | Mapping[str, Any]
"""A timm name, a run folder, exported folder or file of weights; or settings by name:
`{"arch": "resnet18", "num_classes": 10}`."""
Data = str | Path | Sequence[str | Path] | Mapping[str, Any]
"""Sources; or settings by name: `{"unlabeled": "photos", "val": "held_out"}`."""


@dataclass(frozen=True)
class TrainedRun:
    """What a training command leaves."""

    folder: Path
    """The run folder: report.html, metrics.jsonl, checkpoints, student/."""

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The evaluation of the exported student, as metrics.jsonl has it; empty without one."""
        facts = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        lines = resolve_name("ssld.engine.run_folder:read_lines")(self.folder / "metrics.jsonl")
        return resolve_name("ssld.compare.seen_run:exported_metrics")(facts, lines)

    @cached_property
    def student(self) -> nn.Module:
        """The exported student: a timm model in eval mode, on the CPU. It takes normalised images,
        float32 [b, 3, h, w] (`timm.data.create_transform(**model.pretrained_cfg)`), and returns
        logits [b, classes]."""
        return resolve_name("ssld.models.opening:open_network")(
            "student", arch=None, checkpoint=str(self.folder)
        ).model.eval()

    @cached_property
    def students(self) -> dict[str, TrainedRun]:
        """Where there were several `students`, the run of each by its name."""
        return {x.parent.name: TrainedRun(x.parent) for x in self.folder.glob("*/run.json")}


@dataclass(frozen=True)
class Curation:
    """What a curation leaves."""

    folder: Path
    """Tables, manifest.json and report.html."""

    @property
    def selected(self) -> Path:
        """The manifest of the selected images: a source for `ssld.distill`."""
        return self.folder / "selected.parquet"

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """manifest.json: counts, leakage, settings, versions."""
        return json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))


def distill(
    *, out: str | Path, teacher: Network | Sequence[Network] | None = None,
    student: Network | None = None, data: Data, **settings: Any,
) -> TrainedRun:  # fmt: skip
    """Train a student from a frozen teacher, without labels: `ssld distill`.

    Args:
        out: run folder, new or empty, or with `resume=True` one to go on in.
        teacher: several are averaged in probability space; none with stored `labels`.
        student: none, or what they have in common, with `students`: a list of dicts, each with a
            `name`; their runs are `TrainedRun.students` of what is returned.
        data: plain sources are unlabeled ones; held out of them is what evaluations need.
        settings: any other of `ssld distill --help all`, groups as dicts: `epochs=30`,
            `schedule={"lr": 0.2}`.

    Raises:
        InputError: what the command would say in one sentence.
        Interrupted: a signal; the same call with `resume=True` goes on.
    """
    teachers: dict[str, Any] = {}
    if isinstance(teacher, list | tuple):
        teachers = {"teachers": [_network("teacher", one) for one in teacher]}
    elif teacher is not None or "labels" not in settings:
        teachers = {"teacher": _network("teacher", teacher)}
    given = {**teachers, "data": _data(data, "unlabeled")}
    if student is not None or not settings.get("students"):
        given["student"] = _network("student", student)
    _do("distill", out=out, **given, **settings)
    return TrainedRun(Path(out))


def supervised(
    *, out: str | Path, student: Network, data: Data, **settings: Any
) -> TrainedRun:  # fmt: skip
    """Train with human labels: `ssld supervised`.

    Args:
        out: see `distill`.
        data: plain sources are labeled ones.
        settings: any other of `ssld supervised --help all`.

    Raises:
        InputError, Interrupted: see `distill`.
    """
    own = _network("student", student)
    _do("supervised", out=out, student=own, data=_data(data, "labeled"), **settings)
    return TrainedRun(Path(out))


def evaluate(*, model: str | Path, data: Data, **settings: Any) -> dict[str, Any]:
    """Top-1 and top-5 of any classifier on labeled images, shares with 95 % intervals:
    `ssld evaluate`.

    Args:
        model: timm name, run folder or exported folder.
        settings: any other of `ssld evaluate --help all`.

    Returns:
        `images`, `unreadable`, `top1`, `top1_low`, `top1_high`, `top5` and its interval, `chance`,
        `parameters`.

    Raises:
        InputError: what the command would say in one sentence.
    """
    return _do("evaluate", model=model, data=data, **settings)


def curate(*, out: str | Path, gallery: Data, protected: Data, **settings: Any) -> Curation:
    """Choose unlabeled images, near-duplicates of protected ones out: `ssld curate`.

    Args:
        out: folder; the same call goes on where it was stopped.
        gallery: sources to choose from.
        protected: sources of evaluation images that nothing may leak from.
        settings: any other of `ssld curate --help all`: `teacher={"arch": "resnet50d"}`.

    Raises:
        InputError, Interrupted: see `distill`.
    """
    if isinstance(settings.get("teacher"), str | Path):
        settings["teacher"] = _network("teacher", settings["teacher"])
    _do("curate", out=out, gallery=gallery, protected=protected, **settings)
    return Curation(Path(out))


FUNCTIONS = {"distill": distill, "supervised": supervised, "evaluate": evaluate, "curate": curate}


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        return FUNCTIONS[self.__name__.removeprefix("ssld.")](*args, **settings)


def callable_module(name: str) -> None:
    """Let `ssld.COMMAND(...)` call the function of that name, whatever was imported before."""
    module, function = sys.modules[name], FUNCTIONS[name.removeprefix("ssld.")]
    module.__class__ = _CallableModule
    module.__doc__ = function.__doc__
    vars(module)["__signature__"] = inspect.signature(function)  # what a notebook shows


def _network(role: str, given: object) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, str | Path):
        raise InputError(
            f"{role} is {type(given).__name__}: give a timm name, a run folder, an exported "
            "folder, a file of weights or a dict of settings"
        )
    return {"checkpoint" if Path(given).exists() else "arch": str(given)}


def _data(given: Data, kind: str) -> dict[str, Any]:
    return dict(given) if isinstance(given, Mapping) else {kind: given}


def _do(name: str, **settings: Any) -> Any:
    """A command's work, with settings as a YAML file would say them."""
    command, where = COMMANDS[name], f"ssld.{name}(...)"
    config = parse(where, resolve_name(command.config), [], settings=(where, _plain(settings)))
    try:
        return work_of(command, config)
    finally:  # the next run of this process may have another precision
        state = sys.modules.get("accelerate.state")
        if state is not None:
            state.AcceleratorState._reset_state()


def _plain(value: Any) -> Any:
    """As YAML knows it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return str(value) if isinstance(value, Path) else value
