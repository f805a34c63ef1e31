"""A `.pdparams` file is read without trusting it."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from zoo.paddle.pickle_file import read_pdparams


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def opcodes(module: str, name: str, *arguments: bytes) -> bytes:
    """A protocol 0 pickle that calls module.name with text arguments."""
    pushed = b"".join(b"V" + argument + b"\n" for argument in arguments)
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n(" + pushed + b"tR."


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_of_every_number_type_come_back(tmp_path: Path, protocol: int) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "double": rng.standard_normal((3, 4)),
        "single": rng.standard_normal((2, 3, 1, 1)).astype(np.float32),
        "half": rng.standard_normal(5).astype(np.float16),
        "big endian": rng.standard_normal(5).astype(">f4"),
        "fortran": np.asfortranarray(rng.standard_normal((3, 5)).astype(np.float32)),
        "integer": np.arange(6, dtype=np.int64).reshape(2, 3),
        "scalar": np.array(2.5, np.float32),
    }
    file = tmp_path / "a.pdparams"
    names = {"StructuredToParameterName@@": {"a": "b"}}
    file.write_bytes(pickle.dumps(OrderedDict(**arrays, **names), protocol=protocol))
    found = read_pdparams(file)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        assert torch.equal(found[name].float(), torch.from_numpy(array.astype(np.float32)))
        assert found[name].dtype == (torch.int64 if name == "integer" else torch.float32)


def test_bfloat16_arrives_as_uint16(tmp_path: Path) -> None:
    values = torch.tensor([1.0, -2.5, 3.140625, 65280.0])
    bits = values.bfloat16().view(torch.int16).numpy().view(np.uint16)
    file = tmp_path / "a.pdparams"
    file.write_bytes(pickle.dumps({"w": bits}, protocol=2))
    assert torch.equal(read_pdparams(file)["w"], values)


MALICIOUS = {
    "os.system": opcodes("os", "system", b"touch ran"),
    "posix.system": opcodes("posix", "system", b"touch ran"),
    "builtins.eval": opcodes("builtins", "eval", b"open('ran', 'w')"),
    "__builtin__.exec": opcodes("__builtin__", "exec", b"open('ran', 'w')"),
    "subprocess.Popen": opcodes("subprocess", "Popen", b"touch"),
    "builtins.getattr": opcodes("builtins", "getattr", b"a", b"b"),
    "numpy.load": opcodes("numpy", "load", b"ran"),
    "numpy.core.multiarray.fromfile": opcodes("numpy.core.multiarray", "fromfile", b"ran"),
    "numpy.f2py.crackfortran.myeval": opcodes("numpy.f2py.crackfortran", "myeval", b"1"),
    "torch.load": opcodes("torch", "load", b"ran"),
    "collections.namedtuple": opcodes("collections", "namedtuple", b"a", b"b"),
    "_codecs.lookup": opcodes("_codecs", "lookup", b"latin1"),
    "pickle.loads": opcodes("pickle", "loads", b"x"),
    # a dotted name reaches through an allowed module
    "numpy.ndarray.tofile": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_pickle_that_asks_for_more_is_refused_by_name(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.pdparams"
    file.write_bytes(MALICIOUS[name])
    with pytest.raises(zoo.InputError, match=f"asks for {name},"):
        read_pdparams(file)
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pdparams"]


def test_nested_behind_honest_arrays_it_is_refused_too(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.pdparams"
    content = {"w": np.ones(3, np.float32), "v": [Calls(exec, "open('ran', 'w')")]}
    file.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(zoo.InputError, match=r"asks for __builtin__.exec,"):
        read_pdparams(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (pickle.dumps({"w": np.array([{}, []], dtype=object)}, 2), "not of numbers"),
        (pickle.dumps({"w": np.zeros(2, [("a", "f4")])}, 2), "not of numbers"),
        (pickle.dumps({"w": np.array(["text"])}, 2), "not of numbers"),
        # a huge array that no data follows
        (b"cnumpy\nndarray\n((I1000000000000\nttR.", "no readable"),
        (b"cnumpy\nndarray\n(tR.", "calls numpy.ndarray"),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntVb\ntR.",
            "another way",
        ),
        (opcodes("_codecs", "encode", b"x", b"idna"), "encodes text as 'idna'"),
        (b"Pexternal\n.", "outside of the file"),
        (pickle.dumps({"w": "text"}, 2), "is a str, not an array"),
        (pickle.dumps({"w": {"x": [np.ones(2)]}}, 2), "'w.x' is a list, not an array"),
        (pickle.dumps([1, 2]), "holds no"),
        (pickle.dumps({}), "holds no"),
        (b"", "no readable"),
        (b"not a pickle at all", "no readable|refused"),
        (pickle.dumps({"w": np.ones(1000, np.float32)}, 2)[:-700], "no readable|refused"),
        (b"\x80\x02" + b"r" + struct.pack("<I", 2**31) + b".", "no readable|refused"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(content, sentence, tmp_path) -> None:
    file = tmp_path / "bad.pdparams"
    file.write_bytes(content)
    with pytest.raises(zoo.InputError, match=sentence) as refused:
        read_pdparams(file)
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


def array_with(dtype_state: object, shape: tuple[int, ...] = (2,), content: bytes = b"12345678"):
    """A pickle of one float32 array whose dtype, shape and content are as given."""

    class Type:
        def __reduce__(self):
            return np.dtype, ("f4", False, True), dtype_state

    class Array:
        def __reduce__(self):
            make, arguments, _ = np.zeros(1, np.float32).__reduce__()
            return make, arguments, (1, shape, Type(), False, content)

    return pickle.dumps({"w": Array()}, protocol=2)


HONEST = (3, "<", None, None, None, -1, -1, 0)


@pytest.mark.parametrize(
    "state",
    [
        (3, "<", (np.dtype("f4"), (2**28,)), None, None, -1, -1, 0),  # crashed numpy
        (3, "<", (np.dtype("f8"), (1,)), None, None, -1, -1, 0),  # read beyond the buffer
        (3, "<", None, ("a",), {"a": (np.dtype("f8"), 0)}, 8, 1, 0),
        (3, "<", None, None, None, 1000, -1, 0),
        (3, "<", None, None, None, -1, -1, 63),
        (4, "<", None, None, None, -1, -1, 0, {"metadata": 1}),
        (3, "x", None, None, None, -1, -1, 0),
        "state",
    ],
)
def test_a_dtype_with_hostile_state_is_refused(state, tmp_path) -> None:
    file = tmp_path / "bad.pdparams"
    file.write_bytes(array_with(HONEST))
    assert read_pdparams(file)["w"].shape == (2,)
    file.write_bytes(array_with(state))
    with pytest.raises(zoo.InputError, match="another state|not of numbers"):
        read_pdparams(file)


@pytest.mark.parametrize(
    ("shape", "content"),
    [((3,), b"12345678"), ((2**40,), b"12345678"), ((-2,), b""), ((True, 2), b"12345678")],
)
def test_an_array_larger_or_smaller_than_its_content_is_refused(shape, content, tmp_path) -> None:
    file = tmp_path / "bad.pdparams"
    file.write_bytes(array_with(HONEST, shape, content))
    with pytest.raises(zoo.InputError, match="bytes|another state"):
        read_pdparams(file)


def test_an_array_without_content_is_refused(tmp_path) -> None:
    file = tmp_path / "bad.pdparams"
    file.write_bytes(
        b"(dVw\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntRs."
    )
    with pytest.raises(zoo.InputError, match="array without content"):
        read_pdparams(file)


def test_a_hostile_byte_order_does_not_reach_numpys_own_types(tmp_path) -> None:
    """The state of a type is set after it is found: on a copy, or all of numpy would change."""
    file = tmp_path / "swapped.pdparams"
    file.write_bytes(pickle.dumps({"w": np.array([1, 2], dtype=">f4")}, protocol=2))
    read_pdparams(file)
    assert np.dtype("f4").byteorder == "=" and np.float32(1).tobytes() == struct.pack("=f", 1)


def test_a_missing_file_is_said(tmp_path) -> None:
    with pytest.raises(zoo.InputError, match="No such file"):
        read_pdparams(tmp_path / "nowhere.pdparams")
