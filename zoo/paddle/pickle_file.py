"""A `.pdparams` file without Paddle and without trusting it.

Such a file is a pickle of `{name: array}`, and a pickle is a program: Paddle's own loader runs
whatever it asks for. This reader knows the five names that arrays need and refuses all others
before anything happens. Behind the names are stand-ins, not numpy: the state that a file gives to
a numpy array or dtype is not checked by numpy, and could make it read foreign memory.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from zoo.errors import InputError

_NAMES = "StructuredToParameterName@@"  # Paddle's internal names of the same tensors
_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_ORDERS = ("<", ">", "|", "=")


def read_pdparams(path: Path) -> dict[str, Tensor]:
    """All tensors of the file by name, floats as float32; bfloat16, which Paddle writes as uint16
    since numpy has no such type, as float32 too.

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
    if not isinstance(value, _Array) or value.numbers is None:
        kind = "array without content" if isinstance(value, _Array) else type(value).__name__
        raise InputError(f"{path}: {name!r} is a {kind}, not an array of numbers")
    array = value.numbers
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
    tensor = torch.from_numpy(array)
    return tensor.float() if tensor.is_floating_point() else tensor


class _Refused(pickle.UnpicklingError):
    """The file is well-formed and asks for what weights do not need."""


class _Ndarray:
    """Stands for the name `numpy.ndarray`, which arrays give to `_reconstruct`; nobody calls it."""

    __slots__ = ()

    def __new__(cls) -> _Ndarray:
        raise _Refused("it calls numpy.ndarray, which could take any amount of memory")


class _Dtype:
    """Stands for `numpy.dtype`: one type of number and its byte order, and no other state."""

    def __init__(self, spec: Any, *_: Any) -> None:
        if not isinstance(spec, str) or spec not in _NUMBERS:
            raise _Refused(f"it holds an array of {spec!r}, not of numbers")
        self.spec = spec
        self.order: Literal["<", ">", "|", "="] = "="

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) == 8 else None
        if order not in _ORDERS or state != (3, order, None, None, None, -1, -1, 0):
            raise _Refused("it gives a type of number another state than numpy does")
        self.order = order


class _Array:
    """Stands for what `_reconstruct` returns; its numbers come with its state."""

    numbers: np.ndarray | None = None

    def __init__(self, kind: Any, shape: Any, dtype: Any) -> None:
        if kind is not _Ndarray or shape != (0,) or dtype not in (b"b", "b"):
            raise _Refused("it builds arrays in another way than numpy does")

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or state[0] != 1:
            raise _Refused("it gives an array another state than numpy does")
        _, shape, dtype, is_fortran, content = state
        content = content.encode("latin1") if isinstance(content, str) else content
        sizes = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if not isinstance(dtype, _Dtype) or not sizes or not isinstance(content, bytes):
            raise _Refused("it gives an array another state than numpy does")
        if math.prod(shape) * int(dtype.spec[1:]) != len(content):
            raise _Refused(f"an array of shape {shape} has {len(content)} bytes")
        kind = np.dtype(dtype.spec).newbyteorder(dtype.order)
        array = np.frombuffer(content, kind).reshape(shape, order="F" if is_fortran else "C")
        # its own memory, in the machine's byte order
        self.numbers = np.array(array, dtype=dtype.spec, order="C")


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes; another codec could import code."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # since numpy 2
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): OrderedDict,
}


class _ArraysOnly(pickle.Unpickler):
    """Finds these names and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise _Refused(
                f"it asks for {module}.{name}, which weights do not need and which could run any "
                "program; use a file from a source that you trust"
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to objects outside of the file")
