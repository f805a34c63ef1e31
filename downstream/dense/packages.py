"""Packages that a command needs and that only an extra installs: asked for at its start, not at
its first evaluation after hours."""

from __future__ import annotations

import importlib.util

from ssld.common.errors import InputError

EXTRAS = {
    "faster_coco_eval": "downstream",
    "transformers": "downstream",
    "segmentation_models_pytorch": "downstream",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
}
"""The extra that installs a package, by the name that Python imports."""


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
