"""Paddle's weights and bundles of strangers: no hang, no crash, no memory that the file does not
have, and what PaddleClas writes around its weights."""

from __future__ import annotations

import io
import pickle
import random
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from ssld.cli.run import main
from zoo.paddle import pickle_file
from zoo.paddle.pickle_file import read_pdparams
from zoo.publish.bundle import unbundle

TWO = b"\x80\x02"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
FLOAT32 = (
    b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)


def doubled(times: int) -> bytes:
    """((), ()) of itself, and so on: 2^times parts in a few bytes each."""
    parts = b"".join(b"q%ch%ch%c\x86" % (i, i, i) for i in range(times))
    return b")" + parts


def nested(levels: int) -> bytes:
    return b")" + b"\x85" * levels


def array(content: bytes, shape: bytes = b"K\x04\x85") -> bytes:
    """Fills the array on the stack with memo 1, float32, and memo 0, its content."""
    return RECONSTRUCT + b"(K\x01" + shape + b"h\x01\x89" + content + b"tb"


HOSTILE = {
    "a key that takes for ever": TWO + b"}" + doubled(60) + b"K\x01s.",
    "keys that take for ever": TWO + b"}(" + doubled(60) + b"K\x01u.",
    "a dict of them": TWO + b"(" + doubled(60) + b"K\x01d.",
    "pairs of them": TWO + b"ccollections\nOrderedDict\n](" + doubled(60) + b"K\x01\x86e\x85R.",
    "a set of them": TWO + b"cbuiltins\nset\n](" + doubled(60) + b"e\x85R.",
    "protocol 4's sets": b"\x80\x04\x8f(" + doubled(60) + b"\x90.",
    "a frozen set": b"\x80\x04(" + doubled(60) + b"\x91.",
    "a key of 100,000 levels": TWO + b"}" + nested(10**5) + b"K\x01s.",
    "a value of 100,000 levels": TWO + b"}U\x01w" + nested(10**5) + b"s.",
    "the whole of 100,000 levels": TWO + nested(10**5) + b".",
    "a million lists": TWO + b"}U\x01w" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"s.",
    "a dtype of 100,000 levels": TWO + b"cnumpy\ndtype\n" + nested(10**5) + b"\x85R.",
    "an endless dtype": TWO + b"cnumpy\ndtype\n" + doubled(60) + b"\x85R.",
    "an endless encoding": TWO + b"c_codecs\nencode\nU\x01x" + doubled(60) + b"\x86R.",
    "an endless shape": TWO + b"}U\x01w" + RECONSTRUCT + b"(K\x01" + doubled(60) + FLOAT32
    + b"\x89U\x04aaaatbs.",
    "an endless text": TWO + b"}U\x01wc_codecs\nencode\nX" + struct.pack("<I", 10**5)
    + b"y" * 10**5 + b"X" + struct.pack("<I", 10**5) + b"\xc3\xa9" * 50000 + b"\x86Rs.",
    "a huge shape": TWO + b"}U\x01w" + FLOAT32 + b"q\x010U\x04aaaaq\x000"
    + array(b"h\x00", b"(" + b"\x8a\x08" + b"\xff" * 7 + b"\x7f" + b"t") + b"s.",
    "a thousand dimensions": TWO + b"}U\x01w" + FLOAT32 + b"q\x010U\x04aaaaq\x000"
    + array(b"h\x00", b"(" + b"K\x01" * 1000 + b"t") + b"s.",
    "a memo of 16 GB": TWO + b"}r" + struct.pack("<I", 2**31 - 1) + b".",
    "a text of 4 GB": TWO + b"X" + struct.pack("<I", 2**32 - 1) + b"x.",
    "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "a frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
    "a state for our own classes": TWO + b"cnumpy\nndarray\nN}U\x01x}s\x86b.",
    "attributes for a dictionary": TWO + b"}}U\x01xK\x01sb.",
    "a number of 5,000 digits": TWO + b"}U\x01wI" + b"9" * 5000 + b"\ns.",
    "a long number as name": TWO + b"}\x8b" + struct.pack("<I", 4000) + b"\x7f" * 4000 + b"K\x01s.",
    "an escape": TWO + b"}U\x05\x1b[2J\nK\x01s.",
    "a name of 100,000 letters": TWO + b"}X" + struct.pack("<I", 10**5) + b"n" * 10**5 + b"K\x01s.",
    "a new object": TWO + b"cnumpy\ndtype\n)\x81.",
    "an extension": TWO + b"\x82\x01.",
    "itself": TWO + b"}q\x00U\x01wh\x00s.",
    "a stack that is empty": TWO + b"0.",
    "a mark that is missing": TWO + b"}u.",
    "an odd number of items": TWO + b"}(U\x01wu.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_one_sentence(name: str, tmp_path: Path):
    file = tmp_path / "evil.pdparams"
    file.write_bytes(HOSTILE[name])
    with pytest.raises(zoo.InputError, match=r"evil.pdparams") as error:
        read_pdparams(file)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_small_files_take_little_memory(tmp_path: Path):
    """A thousand arrays share the content of one: refused before they are half a gigabyte."""
    content = bytes(400_000)
    start = (
        TWO + b"}" + FLOAT32 + b"q\x010T" + struct.pack("<I", len(content)) + content + b"q\x000"
    )
    shape = b"J" + struct.pack("<i", len(content) // 4) + b"\x85"
    many = b"".join(b"U\x04%04d" % i + array(b"h\x00", shape) + b"s" for i in range(1000))
    (tmp_path / "many.pdparams").write_bytes(start + many + b".")
    with pytest.raises(zoo.InputError, match="more bytes than the file"):
        read_pdparams(tmp_path / "many.pdparams")


def test_one_array_under_many_names_is_one_tensor(tmp_path: Path):
    array = np.arange(4, dtype=np.uint16)  # bfloat16, which would be converted each time
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps({f"w{i}": array for i in range(100)}, 2))
    found = read_pdparams(tmp_path / "a.pdparams")
    assert len(found) == 100 and len({tensor.data_ptr() for tensor in found.values()}) == 1


def test_nothing_of_ours_was_changed_by_what_was_read():
    assert not hasattr(pickle_file._Ndarray, "x") and set(pickle_file._Ndarray.__slots__) == set()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {f"Student.{k}": v for k, v in w.items()},
        lambda w: {f"module.Student.{k}": v for k, v in w.items()},
        lambda w: {"state_dict": w},
        lambda w: {"model": OrderedDict(w), "StructuredToParameterName@@": {"a": "b"}},
        lambda w: OrderedDict(state_dict={"Student": w}),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_what_paddleclas_puts_around_weights_is_taken_off(tmp_path, wrap, protocol):
    weights = {"conv.weight": np.ones((2, 3), np.float32), "conv.bias": np.zeros(2, np.float32)}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(wrap(weights), protocol=protocol))
    found = read_pdparams(tmp_path / "a.pdparams")
    assert {k: tuple(v.shape) for k, v in found.items()} == {
        "conv.weight": (2, 3),
        "conv.bias": (2,),
    }
    assert torch.equal(found["conv.weight"], torch.ones(2, 3))


def test_student_and_teacher_in_one_file_are_named(tmp_path: Path, capsys):
    both = {f"{x}.conv.weight": np.ones(2, np.float32) for x in ("Student", "Teacher")}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(both, 2))
    argv = ["convert", str(tmp_path / "a.pdparams"), "--class", "ResNet50_vd"]
    assert main(["zoo", *argv, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "holds 2 networks (Student, Teacher)" in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_training_checkpoint_says_what_is_too_much(tmp_path: Path):
    content = {"model": {"w": np.ones(2, np.float32)}, "epoch": 3}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(zoo.InputError, match="'epoch' is a int, not an array.*weights alone"):
        read_pdparams(tmp_path / "a.pdparams")


@pytest.mark.parametrize("shape", [(3, 3, 3), (0, 10**9), (1,), ()])
def test_weights_of_any_shape_do_not_fit_in_one_sentence(tmp_path, shape, capsys, monkeypatch):
    from zoo.paddle import convert

    known = convert.paddle_classes()
    few = {name: known[name] for name in ("MobileNetV3_small_x0_35", "PPLCNet_x0_25")}
    monkeypatch.setattr(convert, "paddle_classes", lambda: few)  # building all takes 4 s
    size = int(np.prod(shape))
    odd = {"fc.weight": np.zeros(size, np.float32).reshape(shape), "conv.weight": np.ones(1)}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(odd, 2))
    argv = ["convert", str(tmp_path / "a.pdparams"), "--class", "MobileNetV3_small_x0_35"]
    assert main(["zoo", *argv, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_damaged_pickles_are_read_or_refused(tmp_path: Path):
    draw = random.Random(0)
    weights = {f"w{i}": np.ones((2, i), np.float32) for i in range(4)}
    whole = {protocol: pickle.dumps(weights, protocol) for protocol in (0, 2, 4)}
    file = tmp_path / "a.pdparams"
    for i in range(600):
        content = bytearray(whole[(0, 2, 4)[i % 3]])
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(content))
            content[at : at + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 4))
        file.write_bytes(content)
        try:
            found = read_pdparams(file)
        except zoo.InputError as error:
            assert str(error).isprintable()
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


# bundles


def member(name: str, content: bytes = b"x", **changes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


EVIL = {
    "empty": b"",
    "no tar": b"x" * 5000,
    "a link to the tar": member("net/a", b"", type=tarfile.SYMTYPE, linkname="zoo.tar"),
    "a thousand long names": member("././@LongLink", b"x", type=b"L") * 1500 + member("net/a"),
    "a terabyte that is not there": member("net/a", b"", size=10**12),
    "less than nothing": member("net/a", b"", size=-512) * 3,
    "a header that goes back": member("a", b"16 size=-1024\n", type=b"x") + member("net/a"),
    "a header of a terabyte": member("a", b"", type=b"x", size=10**12) + member("net/a"),
    "a header of no numbers": member("a", b"99 size=abc\n", type=b"x") + member("net/a"),
    "twice in other words": member("net/a") + member("net/./a"),
    "no text": member("net/\udcff"),
    "too long": member("net/" + "a" * 300),
}


@pytest.mark.parametrize("what", EVIL)
def test_a_hostile_bundle_writes_nothing(what: str, tmp_path: Path):
    tar = tmp_path / "zoo.tar"
    tar.write_bytes(EVIL[what] + bytes(1024))
    with pytest.raises(zoo.InputError) as error:
        unbundle(tar, tmp_path / "out")
    assert str(error.value).isprintable() and len(str(error.value)) < 900
    assert [path.name for path in tmp_path.rglob("*")] == ["zoo.tar"]


def test_what_is_no_file_is_no_bundle(tmp_path: Path):
    import os

    os.mkfifo(tmp_path / "pipe")  # to open one waits for ever
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(zoo.InputError, match="is no file"):
            unbundle(path, tmp_path / "out")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("net/a"), io.BytesIO())
    (tmp_path / "zoo.tar").write_bytes(packed.getvalue())
    with pytest.raises(zoo.InputError, match="not an uncompressed tar"):
        unbundle(tmp_path / "zoo.tar", tmp_path / "out")
