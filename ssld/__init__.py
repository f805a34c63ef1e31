"""ssld: label-free distillation of vision backbones (Cui et al. 2021).

    import ssld

    run = ssld.distill(
        out="runs/mine", teacher="resnet50d", student="resnet18d", data="photos", epochs=30
    )
    run.student  # a timm model
    run.metrics  # its evaluation
    run.folder   # report.html, metrics.jsonl, checkpoints

Every command is `ssld COMMAND` in a shell; these are functions, too. Nothing heavy is imported
before one is called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssld.cli.python import (
        curate,
        detection,
        distill,
        evaluate,
        predict,
        segmentation,
        supervised,
    )

__version__ = "0.1.0"
__all__ = [
    "curate",
    "detection",
    "distill",
    "evaluate",
    "predict",
    "segmentation",
    "supervised",
]
MODULES = ("curate", "distill", "evaluate", "supervised")
"""Functions that are modules, too: `python -m ssld.distill`, `import ssld.distill.config`."""


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return importlib.import_module(f"ssld.{name}")
    if name in __all__:
        return getattr(importlib.import_module("ssld.cli.python"), name)
    raise AttributeError(f"module 'ssld' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
