"""A `.pdparams` file without Paddle and without trusting it.

Such a file is a pickle of `{name: array}`, and a pickle is a program: Paddle's own loader runs
whatever it asks for. This reader knows the five names that arrays need and refuses all others
before anything happens. bfloat16 arrives as uint16, for numpy has no such type.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import InputError

_NAMES = "StructuredToParameterName@@"  # Paddle's internal names of the same tensors
_KINDS = "fiub"  # floats, integers, booleans: never Python objects
_NDARRAY = object()  # stands for numpy's class, which could be called to take any amount of memory


def read_pdparams(path: Path) -> dict[str, Tensor]:
    """All tensors of the file by name, floats as float32.

    Raises:
        InputError: the file asks for more than arrays (naming it), or is no such file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a .pdparams file") from error
    try:
        found = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except _Refused as error:
        raise InputError(f"{path} is refused: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(
            f"{path} is no readable .pdparams file ({type(error).__name__}: {error}); fetch it anew"
        ) from error
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path} holds no {{name: tensor}}; give a .pdparams file of weights")
    found.pop(_NAMES, None)
    return {str(name): _tensor(path, str(name), value) for name, value in found.items()}


def _tensor(path: Path, name: str, value: Any) -> Tensor:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in _KINDS:
        raise InputError(f"{path}: {name!r} is a {type(value).__name__}, not an array of numbers")
    if value.dtype == np.uint16:
        return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16).float()
    array = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
    tensor = torch.from_numpy(array.copy()).reshape(value.shape)
    return tensor.float() if tensor.is_floating_point() else tensor


class _Refused(pickle.UnpicklingError):
    """The file is well-formed and asks for what weights do not need."""


class _ArraysOnly(pickle.Unpickler):
    """Finds these names and no others; each is narrower than the original."""

    def find_class(self, module: str, name: str) -> Any:
        numpy_core = module in ("numpy.core.multiarray", "numpy._core.multiarray")
        if numpy_core and name == "_reconstruct":
            return _empty_array
        if module == "numpy" and name == "ndarray":
            return _NDARRAY
        if module == "numpy" and name == "dtype":
            return _number_type
        if module == "_codecs" and name == "encode":
            return _latin1
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        raise _Refused(
            f"it asks for {module}.{name}, which weights do not need and which could run any "
            "program; use a file from a source that you trust"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to objects outside of the file")


def _empty_array(kind: Any, shape: Any, dtype: Any) -> np.ndarray:
    """What numpy's `_reconstruct` is for: an empty array whose state follows."""
    if kind is not _NDARRAY or tuple(shape) != (0,) or dtype not in (b"b", "b"):
        raise _Refused("it builds arrays in another way than numpy does")
    return np.ndarray((0,), np.int8)


def _number_type(spec: Any, *flags: Any) -> np.dtype:
    """numpy's `dtype`, for numbers alone: an array of objects would hide a pickle in a pickle."""
    # a copy: the state that follows would else change numpy's own type for the whole process
    dtype = np.dtype(spec, copy=True) if isinstance(spec, str) and len(spec) < 8 else None
    if dtype is None or dtype.kind not in _KINDS:
        raise _Refused(f"it holds an array of {spec!r}, not of numbers")
    return dtype


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes; another codec could import code."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"it encodes text as {encoding!r}")
    return text.encode("latin1")
