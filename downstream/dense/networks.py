"""Networks on a backbone by name, for `detection/networks.py` and `segmentation/networks.py`: a new
one is a class and a line there.

This file imports neither torch nor a network, so that `--help` is fast.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from downstream.dense.packages import require_packages
from ssld.common.errors import InputError, did_you_mean

STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class NetworkEntry:
    """Where a network is, and what it is built on."""

    path: str
    """`module:Class`; the class takes (backbone, number of classes, *, its own options)."""
    strides: tuple[int, ...] = STRIDES
    """Of the backbone's maps, without dilation."""
    output_stride: int = 32
    """Stride from which on the backbone is dilated, see `open_backbone`."""
    undilated: bool = False
    """Whether maps of all `STRIDES` do where a backbone cannot be dilated."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the class that make this network."""
    packages: tuple[str, ...] = ()
    """That it needs and only an extra installs."""
    pools_image: bool = False
    """Whether a batch norm sees one value per image, which takes two images a forward pass."""

    def load(self, name: str) -> Any:
        """The class.

        Raises:
            InputError: a package is not installed.
        """
        require_packages(name, *self.packages)
        return pkgutil.resolve_name(self.path)


def find(known: Mapping[str, NetworkEntry], kind: str, name: str) -> NetworkEntry:
    """The entry of that name.

    Raises:
        InputError: there is none; with all names and the nearest.
    """
    if name not in known:
        hint = did_you_mean(name, known)
        raise InputError(f"unknown {kind} {name!r}, there are {', '.join(known)}{hint}")
    return known[name]
