"""Networks on a backbone by name, for `detection/networks.py` and `segmentation/networks.py`: a new
one is a class and a line there.

This file imports neither torch nor a network, so that `--help` is fast.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ssld.common.errors import InputError, did_you_mean

STRIDES = (4, 8, 16, 32)
EXTRAS = {
    "faster_coco_eval": "downstream",
    "transformers": "downstream",
    "segmentation_models_pytorch": "downstream",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
}
"""The extra that installs a package, by the name that Python imports."""


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
    finds: Literal["boxes", "keypoints", "masks"] = "boxes"
    """Of a detector: what it finds; keypoints and masks are in boxes, which it finds, too."""
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


def require_packages(what: str, *modules: str) -> None:
    """
    Args:
        what: needs them, for the message.
        modules: of `EXTRAS`.

    Raises:
        InputError: one is not installed; with what to type.
    """
    missing = [name for name in modules if not _is_there(name)]
    if missing:
        names = " and ".join(name.replace("_", "-") for name in missing)
        plural = "s" * (len(missing) > 1)
        raise InputError(
            f"{what} needs the package{plural} {names}, not installed here: "
            f"pip install 'ssld[{EXTRAS[missing[0]]}]'"
        )


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
