"""What timm lacks or builds differently, made of timm's own blocks.

Each module has `CREATE`, functions as timm's by the name of the architecture. Where an architecture
is plain timm, the model says so (`pretrained_cfg["architecture"]`), and what is exported from it
loads without this package.
"""

from __future__ import annotations

from collections.abc import Callable

import timm
from torch import nn

from zoo.architectures import hgnet, hrnet, lcnet, mobilenet, resnet, spinenet
from zoo.catalog import Entry

_MODULES = (hgnet, hrnet, lcnet, mobilenet, resnet, spinenet)
CREATE: dict[str, Callable[..., nn.Module]] = {
    name: create for module in _MODULES for name, create in module.CREATE.items()
}


def architecture(entry: Entry) -> Callable[..., nn.Module]:
    """timm's function of the entry's architecture, or ours where timm lacks it."""
    # Not by timm's registry, in which two of its own names are taken over.
    return CREATE.get(entry.architecture) or getattr(timm.models, entry.architecture)


def is_plain(entry: Entry) -> bool:
    """Whether timm alone knows the architecture."""
    return entry.architecture not in CREATE
