"""What the fork server of `sabotage` does once, so that no run of a test does it again: imports and
the parsers of commands, a fifth of a second each."""

from __future__ import annotations

import importlib

from PIL import Image

from ssld.cli import _parser
from ssld.config import DistillConfig, SupervisedConfig
from ssld.curate.config import CurateConfig

MODULES = [
    *("ssld.__main__", "ssld.distill", "ssld.run.loop", "ssld.run.verify", "ssld.divergence"),
    *("ssld.diagnosis", "ssld.probe", "ssld.tally", "ssld.recipe", "ssld.supervised"),
    *("ssld.report.run", "ssld.report.training", "ssld.report.views", "ssld.report.recipe"),
    *("ssld.curate.score", "ssld.curate.inside", "ssld.curate.select", "ssld.curate.projection"),
    *("ssld.report.curation", "faiss", "torch._dynamo", "torch.utils.tensorboard"),
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
