"""Commands as functions, for scripts and notebooks: `ssld.distill(out=..., teacher=..., ...)`.

`ssld.distill` is a package as well: `python -m ssld.distill` runs it, `import ssld.distill.config`
finds its settings. So the module itself is what is called (`callable_module`).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ssld.cli.commands import COMMANDS, work_of
from ssld.cli.parse import parse
from ssld.common.errors import InputError, Interrupted

if TYPE_CHECKING:  # only where a result is asked for its network
    from torch import nn

Network = str | Path | Mapping[str, Any]
"""A timm name, a run folder, exported folder or file of weights; or settings by name:
`{"arch": "resnet18", "num_classes": 10}`."""
Data = str | Path | Sequence[str | Path] | Mapping[str, Any]
"""Sources; or settings by name: `{"unlabeled": "photos", "val": "held_out"}`."""


@dataclass(frozen=True)
class Run:
    """What a training command leaves, of a detector or segmenter for one."""

    folder: Path
    """The run folder: report.html, metrics.jsonl, checkpoints, model/ or student/."""

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The evaluation of the exported network, as metrics.jsonl has it; empty without one."""
        facts = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return resolve_name("ssld.compare.seen_run:exported_metrics")(facts, self.history)

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: `kind` (train or eval), `step`, `epoch`, and the numbers."""
        return resolve_name("ssld.engine.run_folder:read_lines")(self.folder / "metrics.jsonl")


@dataclass(frozen=True)
class TrainedRun(Run):
    """What the training of a classifier leaves."""

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


def detection(*, out: str | Path, backbone: Network, data: Data, **settings: Any) -> Run:
    """Train a detector on a backbone, with human boxes: `ssld detection`.

    Args:
        out: see `distill`.
        backbone: a timm or `_ssld` name or a run folder; or settings by name:
            `{"name": "resnet50d", "pretrained": False}`.
        data: plain sources are those to train on, a tenth of which is held out.
        settings: any other of `ssld detection --help all`: `detector={"name": "fcos"}`.

    Raises:
        InputError, Interrupted: see `distill`.
    """
    return _dense("detection", out, backbone, data, settings)


def segmentation(*, out: str | Path, backbone: Network, data: Data, **settings: Any) -> Run:
    """Train a segmenter on a backbone, with human masks: `ssld segmentation`. As `detection`."""
    return _dense("segmentation", out, backbone, data, settings)


def predict(*, run: str | Path, images: str | Path, **settings: Any) -> Iterator[Any]:
    """What a trained detector, segmenter or classifier says of images, one by one: `ssld predict`
    without its files.

    Args:
        run: run folder, or its `model` or `student` folder.
        images: a folder or another source.
        settings: any other of `ssld predict --help all` but `out`: `score=0.5`.

    Returns:
        of each image `drawn`, uint8 [h, w, 3], and `line`, what predictions.jsonl has of it:
        `image`, and `boxes`, `shares` or `classes`; of a segmenter `mask`, [h, w], too.

    Raises:
        InputError: what the command would say in one sentence.
    """
    work = "downstream.deploy.predict:predictions"
    return _do("predict", work, run=run, images=images, **settings)


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


_SWITCH = re.compile(r"--(resume|overwrite)\b")
"""As a command's sentences name it."""


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


def _dense(
    name: str, out: str | Path, backbone: Network, data: Data, settings: dict[str, Any]
) -> Run:
    own = backbone if isinstance(backbone, Mapping) else {"name": backbone}
    _do(name, out=out, backbone=own, data=_data(data, "train"), **settings)
    return Run(Path(out))


def _do(name: str, work: str | None = None, /, **settings: Any) -> Any:
    """A command's work, or `work` in its place, with settings as a YAML file would say them."""
    command, where = COMMANDS[name], f"ssld.{name}(...)"
    command = replace(command, work=work or command.work)
    config = parse(where, resolve_name(command.config), [], settings=(where, _plain(settings)))
    try:
        return work_of(command, config)
    except (InputError, Interrupted) as error:
        error.args = (_SWITCH.sub(r"\1=True", str(error)),)
        raise
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
