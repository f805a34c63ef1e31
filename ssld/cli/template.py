"""`ssld init TASK SOURCE > my.yaml`: a settings file for one's own images, to begin with.

It has the settings that `--help` shows, each under its docstring, so that it cannot differ from the
command; what a first run should not leave at its default is in `STARTS`.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Literal, get_args

from ssld.cli.commands import COMMANDS
from ssld.cli.help import short_settings
from ssld.cli.parse import build_parser, parse
from ssld.common.paths import check_inputs
from ssld.common.settings import Settings, default_settings

Task = Literal["distill", "supervised", "transfer", "detection", "segmentation"]
SOURCES = dict.fromkeys(get_args(Task), "labeled")
SOURCES |= {"distill": "unlabeled", "detection": "train", "segmentation": "train"}
"""Under which name of `data` a task trains on a source."""
OPENERS = dict.fromkeys(SOURCES, "ssld.data.sources:open_source")
OPENERS |= {
    "detection": "downstream.detection.data.boxes:open_boxes",
    "segmentation": "downstream.segmentation.data.masks:open_masks",
}
"""What reads it. Named, not imported, as commands are."""
# A backbone of timm whose weights everybody may use, in sizes that 8 GB of memory hold. Learning
# rates of detectors and segmenters as in configs/detection/faster-rcnn.yaml and
# configs/segmentation/deeplabv3plus.yaml: 0.01 for 8 images.
STARTS: dict[str, dict[str, Any]] = {
    "distill": {
        "epochs": 100,
        "batch_size": 64,
        "student.arch": "resnet18d",
        "student.pretrained": True,
        "teacher.arch": "resnet50d",
    },
    "supervised": {
        "epochs": 100,
        "batch_size": 64,
        "student.arch": "resnet18d",
        "student.pretrained": True,
    },
    "transfer": {"epochs": 30, "batch_size": 64, "backbone.name": "resnet50d"},
    "detection": {
        "epochs": 30,
        "batch_size": 4,
        "schedule.lr": 0.32,
        "backbone.name": "resnet50d",
        "augment.sizes": [480, 512, 544, 576, 608, 640],
        "augment.test_size": 640,
    },
    "segmentation": {
        "epochs": 30,
        "batch_size": 4,
        "schedule.lr": 0.32,
        "backbone.name": "resnet50d",
        "augment.crop": [512, 512],
    },
}
WIDTH = 100


@dataclass(frozen=True)
class InitConfig(Settings):
    """`ssld init TASK SOURCE > my.yaml`: a settings file for your own images, to begin with.

    Then `ssld TASK --config my.yaml` runs.
    """

    task: Task
    """What is trained; the first word."""
    source: str
    """The images to train on: what `data` of that command takes, a folder for example; the second
    word. A part of them is held out."""


def init(config: InitConfig) -> None:
    """Print the file.

    Raises:
        InputError: there is nothing where the source should be, or nothing that the task can read.
    """
    config_class = resolve_name(COMMANDS[config.task].config)
    given = {
        "out": f"runs/{config.task}",
        f"data.{SOURCES[config.task]}": [config.source],
        **STARTS[config.task],
    }
    words = [f"--{name}={json.dumps(value)}" for name, value in given.items()]
    check_inputs(parse(f"ssld {config.task}", config_class, words))
    resolve_name(OPENERS[config.task])(config.source)
    print("\n".join(_lines(config.task, config_class, given)))


def _lines(task: str, config_class: Any, given: dict[str, Any]) -> Iterator[str]:
    """Of the file; settings that are not given stand there as comments."""
    yield f"# ssld {task} --config THIS_FILE       (ssld {task} --help all: every setting)"
    if task in ("detection", "segmentation"):
        yield f"# Another network wants the rate and schedule of its own file in configs/{task}."
    yield ""
    said = {x.dest: x.help for x in build_parser(task, config_class)._actions}
    defaults, shown = default_settings(config_class), short_settings(config_class)
    group = ""
    for name in sorted(shown, key=_place):
        before, _, key = name.rpartition(".")
        if name == "resume" or (name == "data.unlabeled" and SOURCES[task] != "unlabeled"):
            continue  # no setting of a file; only a distillation reads unlabeled images
        if before != group:
            group = before
            yield f"\n{group}:"
        indent = "  " if group else ""
        yield from textwrap.wrap(
            str(said[name]), WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        value = json.dumps(given.get(name, defaults.get(name)), ensure_ascii=False)
        yield f"{indent}{'' if name in given else '# '}{key}: {value}"


def _place(name: str) -> tuple[bool, bool, str]:
    """What has no group comes first, or it would belong to the one before it; then the images."""
    group = name.rpartition(".")[0]
    return bool(group), group != "data", group
