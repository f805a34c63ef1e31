"""What the fork server of `sabotage` does once, so that no run of a test does it again: imports,
the parsers of commands and the templates of pages."""

from __future__ import annotations

import gc
import importlib
from pathlib import Path

from PIL import Image

from ssld.cli.parse import _parser
from ssld.curate.config import CurateConfig
from ssld.distill.config import DistillConfig, SupervisedConfig
from ssld.report.page import ENVIRONMENT

MODULES = [
    *("ssld.__main__", "ssld.engine.loop", "ssld.recipe.command", "ssld.curate.command"),
    *("ssld.distill.distill", "ssld.distill.divergence", "ssld.distill.probe"),
    *("ssld.distill.report", "ssld.distill.supervised"),
    *("ssld.distill.verify_teacher", "ssld.health.causes", "ssld.health.classification_metrics"),
    *("ssld.recipe.report", "ssld.report.training"),
    *("faiss", "torch._dynamo", "torch.utils.tensorboard"),
    *("torch.utils.flop_counter", "torch.utils.serialization", "matplotlib.backends.backend_agg"),
    *("sklearn.linear_model", "sklearn.neighbors", "sklearn.pipeline", "sklearn.preprocessing"),
    *("docstring_parser", "pytest"),
]
for name in MODULES:
    importlib.import_module(name)
Image.init()
_parser("ssld distill", DistillConfig)
_parser("ssld supervised", SupervisedConfig)
_parser("ssld curate", CurateConfig)
ROOT = Path(__file__).parents[2]
for file in ROOT.glob("ssld/**/*.html"):
    ENVIRONMENT.get_template(file.relative_to(ROOT).as_posix())
gc.freeze()  # what all runs share is looked through, and copied, by none
