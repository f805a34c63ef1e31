"""What timm lacks or builds differently, made of timm's own blocks.

A function in these modules is named like the architecture that it builds. Where an architecture is
plain timm, the model says so (`pretrained_cfg["architecture"]`), and what is exported from it
loads without this package.
"""

from __future__ import annotations

from collections.abc import Callable

import timm
from torch import nn

from zoo.architectures import hgnet, hrnet, lcnet, mobilenet, resnet
from zoo.catalog import Entry

Create = Callable[..., nn.Module]

_OURS = (hgnet, hrnet, lcnet, mobilenet, resnet)


def architecture(entry: Entry) -> Create:
    """timm's function of the entry's architecture, or ours where timm lacks it."""
    # Not by timm's registry, in which two of its own names are taken over.
    name = entry.architecture
    return next(vars(place)[name] for place in (*_OURS, timm.models) if hasattr(place, name))


def is_plain(entry: Entry) -> bool:
    """Whether timm alone knows the architecture."""
    return not architecture(entry).__module__.startswith("zoo.")
