"""ssld: label-free distillation of vision backbones (Cui et al. 2021).

    import ssld

    run = ssld.distill(
        out="runs/mine", teacher="resnet50d", student="resnet18d", data="photos", epochs=30
    )
    run.student  # a timm model
    run.metrics  # its evaluation
    run.folder   # report.html, metrics.jsonl, checkpoints

Every command is `ssld COMMAND` in a shell; these four are functions, too. Nothing heavy is imported
before one is called.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssld.cli.python import curate, distill, evaluate, supervised

__version__ = "0.1.0"
__all__ = ["curate", "distill", "evaluate", "supervised"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"ssld.{name}")
    raise AttributeError(f"module 'ssld' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
