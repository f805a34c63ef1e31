"""A `.pdparams` file without Paddle and without trusting it.

Such a file is a pickle of `{name: array}`, and a pickle is a program: Paddle's own loader runs
whatever it asks for. This reader knows the five names that arrays need and refuses all others
before anything happens. Behind the names are stand-ins, not numpy: the state that a file gives to
a numpy array or dtype is not checked by numpy, and could make it read foreign memory.

Nor is it Python's own reader in C: 200 bytes make it hash a tuple for hours, a tuple of a million
levels overflows its stack, one number takes 16 GB for its memo. Here keys are text, operations that
weights do not need are refused, and all arrays together have no more bytes than the file.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from zoo.described import unwrapped
from zoo.errors import InputError, printable

_NAMES = "StructuredToParameterName@@"  # Paddle's internal names of the same tensors
_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
_ORDERS = ("<", ">", "|", "=")
_DIMENSIONS = 16
_LEVELS = 4
"""Dictionaries inside of each other."""
_NAME_CHARACTERS = 1000


def read_pdparams(path: Path) -> dict[str, Tensor]:
    """All tensors of the file by name, floats as float32; bfloat16, which Paddle writes as uint16
    since numpy has no such type, as float32 too. Names of nested dictionaries are joined by dots;
    what wrappers put before all names (`Student.`, `state_dict.`) is taken off.

    Raises:
        InputError: the file asks for more than arrays (naming it), or is no such file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a .pdparams file") from error
    try:
        weights = _ArraysOnly(content).load()
    except _Refused as error:
        raise InputError(f"{path} is refused: {printable(str(error))}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        reason = f"{type(error).__name__}: {_short(error)}"
        raise InputError(
            f"{path} is no readable .pdparams file ({reason}); fetch it anew"
        ) from error
    if not isinstance(weights, dict) or not weights:
        raise InputError(f"{path} holds no {{name: tensor}}; give a .pdparams file of weights")
    weights.pop(_NAMES, None)
    done: dict[int, Tensor] = {}  # one array under many names is one tensor
    tensors = {}
    for name, value in _flat(path, weights, "", _LEVELS):
        if id(value) not in done:
            done[id(value)] = _tensor(path, name, value)
        tensors[name] = done[id(value)]
    return unwrapped(tensors, str(path))


def _flat(path: Path, tree: dict[str, Any], prefix: str, levels: int) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if not isinstance(value, dict):
            yield f"{prefix}{name}", value
        elif levels:
            yield from _flat(path, value, f"{prefix}{name}.", levels - 1)
        else:
            raise InputError(f"{path}: {prefix}{name} is a dictionary too deep inside of others")


def _short(value: object) -> str:
    """At most a line of what a stranger wrote, and never what is inside of a container."""
    if not isinstance(value, str | int | bytes | Exception):
        return f"a {type(value).__name__.strip('_').lower()}"
    if isinstance(value, int):
        text = str(value) if abs(value) < 1 << 64 else "a long number"
    else:
        text = str(value)[:200] if isinstance(value, Exception) else repr(value[:80])
    return printable(text)


def _tensor(path: Path, name: str, value: Any) -> Tensor:
    if not isinstance(value, _Array) or value.numbers is None:
        kind = "array without content" if isinstance(value, _Array) else type(value).__name__
        raise InputError(
            f"{path}: {_short(name)} is a {kind}, not an array of numbers; give the weights alone"
        )
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
            raise _Refused(f"it holds an array of {_short(spec)}, not of numbers")
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
        sizes = isinstance(shape, tuple) and len(shape) <= _DIMENSIONS
        sizes = sizes and all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
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
        raise _Refused(f"it encodes text as {_short(encoding)}")
    return text.encode("latin1")


def _ordered(pairs: Any = ()) -> dict[str, Any]:
    """Stands for `OrderedDict`, which Python 2 gives a list of pairs."""
    lists = (list, tuple)
    are_pairs = isinstance(pairs, lists) and all(isinstance(x, lists) for x in pairs)
    if not are_pairs or any(len(pair) != 2 for pair in pairs):
        raise _Refused("it makes a dictionary of something else than pairs")
    return {_key(key): value for key, value in pairs}


def _key(key: Any) -> str:
    """Only text: the hash of a container can take for ever, or crash Python."""
    if not isinstance(key, str) or len(key) > _NAME_CHARACTERS:
        raise _Refused(f"it names something by {_short(key)}, not by a short text")
    return key


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # since numpy 2
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): _ordered,
}

_OPERATIONS = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG "
    "LONG1 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS GET BINGET LONG_BINGET PUT "
    "BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD PERSID BINPERSID"
).split()


_InPython: Any = vars(pickle)["_Unpickler"]  # the reader whose operations can be replaced


class _ArraysOnly(_InPython):
    """Knows these names and operations and no others."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self.left = len(content)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise _Refused(
                f"it asks for {module[:80]}.{name[:80]}, which weights do not need and which could "
                "run any program; use a file from a source that you trust"
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to objects outside of the file")

    def load_build(self) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if not isinstance(made, _Array | _Dtype):
            raise _Refused("it gives a state to something that is no array")
        made.__setstate__(state)
        if isinstance(made, _Array) and made.numbers is not None:
            self.left -= made.numbers.nbytes
            if self.left < 0:
                raise _Refused("its arrays have more bytes than the file")

    def load_setitem(self) -> None:
        value = self.stack.pop()
        self._fill([self.stack.pop(), value])

    def load_setitems(self) -> None:
        self._fill(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._fill(items)

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise _Refused("it gives items to something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def refuse(self) -> None:
        raise _Refused("it uses an operation that weights do not need")


def _handlers() -> dict[int, Any]:
    """What is done at each operation of a pickle, by its byte."""
    codes = [getattr(pickle, name)[0] for name in _OPERATIONS]
    return {
        **dict.fromkeys(range(256), _ArraysOnly.refuse),
        **{code: _InPython.dispatch[code] for code in codes},
        pickle.BUILD[0]: _ArraysOnly.load_build,
        pickle.SETITEM[0]: _ArraysOnly.load_setitem,
        pickle.SETITEMS[0]: _ArraysOnly.load_setitems,
        pickle.DICT[0]: _ArraysOnly.load_dict,
    }


_ArraysOnly.dispatch = _handlers()
