"""Packages that only a part of the work needs: whether one is here, and what to say if it is not.

A distillation from folders needs torch, timm, accelerate, safetensors, jsonargparse and Pillow with
what these need themselves. All others are imported where they are used.
"""

from __future__ import annotations

import functools
import importlib.util
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

DISTRIBUTIONS = {
    "cv2": "opencv-python",
    "faiss": "faiss-gpu",
    "matplotlib": "matplotlib",
    "pyarrow": "pyarrow",
    "scipy": "scipy",
    "simplejpeg": "simplejpeg",
    "sklearn": "scikit-learn",
    "tensorboard": "tensorboard",
}
"""What pip calls each, by the name under which it is imported."""


@functools.cache
def is_installed(module: str) -> bool:
    """Whether a package can be found, which does not import it."""
    return importlib.util.find_spec(module) is not None


def what_is_missing(error: ModuleNotFoundError) -> str | None:
    """`pyarrow is not installed: pip install pyarrow`; None where it is none of these packages."""
    name = DISTRIBUTIONS.get((error.name or "").partition(".")[0])
    return name and f"{name} is not installed: pip install {name}"


def unfit_pair(error: RuntimeError) -> str | None:
    """What to install where torchvision was made for another torch, which its import meets so; None
    of any other error. Judged by what happens: builds of one's own have versions of their own."""
    if "operator torchvision::" not in str(error):
        return None
    return (
        f"torch {_version('torch')} and torchvision {_version('torchvision')} do not fit together: "
        "they are released in pairs, torch 2.N with torchvision 0.(N + 15), 2.11 with 0.26 say; "
        "install the other's"
    )


@functools.cache
def say_left_out(module: str, effect: str) -> None:
    """Tell once, on stderr, what is done without a package that is not installed."""
    name = DISTRIBUTIONS[module]
    print(f"note: without {name} {effect}; pip install {name}", file=sys.stderr)


def versions() -> dict[str, str]:
    """Versions of what decides a result; `none` of what is not installed."""
    names = ("ssld", "torch", "torchvision", "timm", "accelerate", "numpy", "simplejpeg", "pillow")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
