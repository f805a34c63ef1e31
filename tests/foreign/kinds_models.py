"""Exported folders, safetensors files, `.pdparams` pickles, trained segmenters and releases, up to
a network that has seen an image."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import random
import tempfile
from pathlib import Path
from typing import Any

from mutations import MARK, NASTY, as_json, changed, damaged, nested
from sandbox import Kind

ARCH = "test_efficientnet"
CONFIG: dict[str, Any] = {
    "architecture": ARCH,
    "num_classes": 3,
    "num_features": 64,
    "global_pool": "avg",
    "model_args": {"num_classes": 3},
    "label_names": ["cat", "dog", "bird"],
    "pretrained_cfg": {
        "tag": "in1k",
        "custom_load": False,
        "input_size": [3, 32, 32],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "num_classes": 3,
        "pool_size": [1, 1],
        "first_conv": "conv_stem",
        "classifier": "classifier",
    },
}
HEADER = {
    "architecture": ARCH,
    "model_args": '{"num_classes": 3}',
    "mean": "0.5,0.5,0.5",
    "std": "[0.2, 0.2, 0.2]",
    "input_size": "3,32,32",
    "interpolation": "bilinear",
    "step": "3",
}
ARGUMENTS: tuple[Any, ...] = (
    {"checkpoint_path": "FOLDER/evil.pth"},
    {"pretrained": True},
    {"pretrained_cfg": {"file": "FOLDER/evil.pth"}, "pretrained": True},
    {"pretrained_cfg_overlay": {"url": "http://192.0.2.1/x.pth"}, "pretrained": True},
    {"cache_dir": "../../escaped"},
    {"num_classes": 10**9},
    {"num_classes": -3},
    {"num_classes": 0},
    {"num_classes": "3"},
    {"in_chans": 1},
    {"in_chans": 10**9},
    {"features_only": True},
    {"exportable": True, "scriptable": True},
    {"no_jit": None},
    {"drop_rate": "a"},
    {"global_pool": ""},
    {"global_pool": "fast"},
    {"act_layer": "os.system"},
    {"depth_multiplier": 1e9},
    {"fix_stem": [], "round_chs_fn": "print"},
    {"**": 1},
    {"self": 1},
    {"model_name": "x"},
    {"stem_size": 2**40},
    {"block_args": "ds_r1_k3"},
)
NAMES = ("test_resnet", "resnet50", ARCH + ".r160_in1k", "hf-hub:a/b", "local-dir:.", "os.system")


@functools.cache
def weights() -> dict[str, Any]:
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model(ARCH, num_classes=3).state_dict()


@functools.cache
def weights_file(header: tuple[tuple[str, str], ...] = ()) -> bytes:
    from safetensors.torch import save

    return save(weights(), dict(header) or None)


def changed_weights(rng: random.Random) -> bytes:
    """Tensors that are missing, of other names, shapes and types, or not finite."""
    import torch
    from safetensors.torch import save

    found: dict[str, Any] = dict(weights())
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(sorted(found))
        tensor, what = found.pop(name), rng.randrange(7)
        if what == 1:
            found[rng.choice((f"module.{name}", f"_orig_mod.{name}", "", "é", f"{name}."))] = tensor
        elif what == 2:
            found[name] = tensor.reshape(-1)[:1].clone()
        elif what == 3:
            kinds = (torch.float16, torch.int8, torch.bool, torch.float64, torch.bfloat16)
            found[name] = tensor.to(rng.choice(kinds))
        elif what == 4:
            found[name] = torch.full(tensor.shape, float(rng.choice(("nan", "inf", "0"))))
        elif what == 5:
            found[name] = tensor[None]
        elif what == 6:
            found |= {f"module.{key}": x for key, x in {**found, name: tensor}.items()}
            found = {key: x for key, x in found.items() if key.startswith("module.")}
    return save({key: x.clone() for key, x in found.items()})


def resized(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file with another header, often of the right length."""
    size = int.from_bytes(data[:8], "little")
    tree = changed(rng, json.loads(data[8 : 8 + size]), rng.choice((1, 2, 40)))
    head = as_json(rng, tree)
    length = len(head) if rng.random() < 0.8 else rng.choice((0, 1, 2**31, 2**63, len(head) + 9))
    return length.to_bytes(8, "little") + head + data[8 + size :]


def write_folder(rng: random.Random, folder: Path) -> None:
    tree = copy.deepcopy(CONFIG)
    what = rng.random()
    if what < 0.2:
        said = json.dumps(rng.choice(ARGUMENTS)).replace("FOLDER", str(folder))
        tree["model_args"] |= json.loads(said)
    elif what < 0.25:
        tree["architecture"] = rng.choice(NAMES)
    elif what < 0.35:
        key = rng.choice(("mean", "std", "input_size", "crop_pct", "interpolation", "crop_mode"))
        values = ([3, 0, 0], [3, -1, 32], [3, 10**6, 10**6], [1, 32, 32], [0, 0, 0], [0.2], 0, 1e-9)
        tree["pretrained_cfg"][key] = rng.choice((*values, *NASTY))
    elif what < 0.85:
        tree = changed(rng, tree, rng.choice((1, 1, 3)))
    data = weights_file()
    if what > 0.88:
        data = rng.choice((damaged, resized, lambda r, _: changed_weights(r)))(rng, data)
    (folder / "config.json").write_bytes(as_json(rng, tree))
    (folder / "model.safetensors").write_bytes(data)
    (folder / "evil.pth").write_bytes(evil_pickle())


@functools.cache
def evil_pickle() -> bytes:
    """As torch once saved: a pickle that runs a program."""

    class Evil:
        def __reduce__(self):
            return exec, (f"{MARK} = 1",)

    return pickle.dumps({"state_dict": Evil()}, protocol=2)


def use_folder(folder: Path, out: Path) -> None:
    """As a teacher or student by its checkpoint, as a model to be evaluated, as a backbone."""
    from downstream.backbone.config import BackboneConfig
    from downstream.backbone.weights import open_classifier
    from ssld.models.opening import open_network

    way = (folder / "config.json").stat().st_size % 3
    if way == 0:
        network = open_network("teacher", arch=None, checkpoint=str(folder))
    elif way == 1:
        network = open_network("model", arch=f"local-dir:{folder}", pretrained=True)
    else:
        network = open_classifier(BackboneConfig(name=str(folder)))
    see(network)


def see(network: Any) -> None:
    """One picture, as evaluation shows it."""
    import torch
    from kinds_annotations import png

    from ssld.data.transforms import EvalView

    if network.input_size > 512:  # a user's own wish; its cost is not this input's
        return
    view = EvalView(network.input_size, network.crop_pct, network.interpolation)
    images = view(png("RGB", 200))[None]
    assert images.shape == (1, network.input_size, network.input_size, 3), images.shape
    with torch.no_grad():
        logits = network.eval()(images)
    assert logits.shape == (1, network.num_classes), logits.shape
    assert torch.isfinite(network.preprocess(images)).all(), (network.mean, network.std)


def write_file(rng: random.Random, folder: Path) -> None:
    """A safetensors file whose header says what it is."""
    header = dict(HEADER)
    for _ in range(rng.choice((0, 1, 1, 2))):
        key = rng.choice(list(header))
        value = rng.choice((*NASTY, *ARGUMENTS, "0,0,0", "1,1", "a,b,c", "3,0,0", "()", "[[]]"))
        header[key] = value if isinstance(value, str) else json.dumps(value)
        if rng.random() < 0.1:
            del header[key]
    try:
        data = weights_file(tuple(header.items()))
    except (UnicodeEncodeError, ValueError):
        data = weights_file()
    if rng.random() < 0.3:
        data = rng.choice((damaged, resized, lambda r, _: changed_weights(r)))(rng, data)
    (folder / "a.safetensors").write_bytes(data)


def use_file(folder: Path, out: Path) -> None:
    from ssld.models.opening import open_network

    see(open_network("teacher", arch=None, checkpoint=str(folder / "a.safetensors")))


def write_torch(rng: random.Random, folder: Path) -> None:
    """What training scripts save with torch.save."""
    import argparse
    import io

    import torch

    prefix = rng.choice(("", "", "module.", "model.", "net.backbone."))
    state: dict[str, Any] = {f"{prefix}{name}": x for name, x in weights().items()}
    said: dict[str, Any] = {"model": rng.choice((ARCH, *NAMES)), "num_classes": 3}
    key = rng.choice(("mean", "std", "input_size", "img_size", "crop_pct", "model_kwargs", "gp"))
    said[key] = rng.choice((*NASTY, *ARGUMENTS, [0.5, 0.5, 0.5], 32, 0.9))
    if rng.random() < 0.5:
        state[rng.choice((*state, "extra"))] = rng.choice((*NASTY, torch.ones(2)))
    args = argparse.Namespace(**said) if rng.random() < 0.5 else said
    whole = {rng.choice(("state_dict", "model", "state_dict_ema")): state, "args": args}
    content: Any = rng.choice((whole, whole, {**whole, "epoch": rng.choice(NASTY)}, state, [state]))
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=rng.random() < 0.8)
    data = rng.choice((file.getvalue(), evil_pickle())) if rng.random() < 0.1 else file.getvalue()
    (folder / "a.pth").write_bytes(damaged(rng, data) if rng.random() < 0.3 else data)


def use_torch(folder: Path, out: Path) -> None:
    from ssld.models.opening import open_network

    arch = ARCH if (folder / "a.pth").stat().st_size % 2 else None
    see(open_network("teacher", arch=arch, checkpoint=str(folder / "a.pth")))


def write_pickle(rng: random.Random, folder: Path) -> None:
    """What Paddle saves, damaged, and pickles that no Paddle writes."""
    import numpy as np

    arrays: dict[Any, Any] = {
        "conv.weight": np.ones((2, 3), np.float32),
        "conv.bias": np.arange(4, dtype=np.int64),
        "bn._mean": np.zeros(2, np.float16),
        "StructuredToParameterName@@": {"conv.weight": "p0"},
    }
    what = rng.random()
    if what < 0.15:
        arrays[rng.choice(("x", "é", "", 3, None, (1, 2), "Student.conv"))] = rng.choice(
            (nested(rng), "text", [np.ones(2)], {"a": np.ones(2)}, np.ones((0, 2**20)), 1j, b"x")
        )
    elif what < 0.2:
        arrays = {"state_dict": arrays, "epoch": 3}
    data = pickle.dumps(arrays, protocol=rng.choice((0, 1, 2, 2, 2, 3, 4)))
    if what > 0.9:
        data = hostile(rng)
    elif what > 0.6:
        data = respliced(rng, data)
    data = damaged(rng, data) if rng.random() < 0.6 else data
    (folder / "a.pdparams").write_bytes(data)


OPCODES = b"(.0212FIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c"
OPCODES += b"\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98BC"


def respliced(rng: random.Random, data: bytes) -> bytes:
    """Some opcodes become others."""
    for _ in range(rng.choice((1, 1, 3, 10))):
        place = rng.randrange(len(data))
        data = data[:place] + bytes([rng.choice(OPCODES)]) + data[place + rng.choice((0, 1)) :]
    return data


def hostile(rng: random.Random) -> bytes:
    """Few bytes that ask for much: of time, depth, memory or rights."""
    deep = rng.choice((100, 5000, 300_000))
    twice = b"\x80\x02]q\x00" + b"".join(
        b"]q" + bytes([i]) + b"(h" + bytes([i - 1]) + b"h" + bytes([i - 1]) + b"e"
        for i in range(1, rng.choice((20, 40, 100)))
    )
    return rng.choice(
        (
            b"\x80\x02N" + b"\x85" * deep + b".",
            b"\x80\x02" + b"(" * deep + b".",
            b"\x80\x02" + b"]" * deep + b"a" * (deep - 1) + b".",
            b"\x80\x02}(K\x01" + b"N\x85" + b"\x85" * deep + b"u.",
            b"\x80\x02}" + b"N" + b"\x85" * deep + b"K\x01s.",
            twice + b".",
            b"\x80\x02}(" + twice[2:] + b"\x85K\x01u.",
            _tuples(rng.choice((20, 40, 90))),
            b"\x80\x02}q\x00h\x00h\x00s.",
            b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
            b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"\x01.",
            b"\x80\x02X" + (2**32 - 1).to_bytes(4, "little") + b".",
            b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b".",
            b"\x80\x04\x96" + (2**40).to_bytes(8, "little") + b".",
            b"\x80\x05\x95" + (2**62).to_bytes(8, "little") + b".",
            b"\x80\x02r" + (2**31).to_bytes(4, "little") + b".",
            b"\x80\x02Nr" + (2**28).to_bytes(4, "little") + b".",
            b"I" + b"9" * 5000 + b"\n.",
            b"L" + b"9" * 5000 + b"L\n.",
            b"cos\nsystem\n(V" + MARK.encode() + b"\ntR.",
            b"cbuiltins\nexec\n(V" + MARK.encode() + b"=1\ntR.",
            b"ccollections\nOrderedDict\n((lp0\nI1\nag0\ntR.",
            b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
            b"(dVw\ncnumpy\ndtype\n(Vf4\nI0\nI1\ntRs.",
        )
    )


def _tuples(count: int) -> bytes:
    """A key whose hash takes 2**count steps: each tuple has the one before it twice."""
    found = b"\x80\x02}K\x00\x85q\x00"
    for i in range(1, count):
        found += b"h" + bytes([i - 1]) + b"h" + bytes([i - 1]) + b"\x86q" + bytes([i])
    return found + b"K\x01s."


def use_pickle(folder: Path, out: Path) -> None:
    from zoo.paddle.convert import convert
    from zoo.paddle.pickle_file import read_pdparams

    file = folder / "a.pdparams"
    found = read_pdparams(file)
    if file.stat().st_size % 4 == 0:
        convert(found, "MobileNetV1_x0_25", str(file))


@functools.cache
def segmenter() -> tuple[dict[str, Any], bytes]:
    """The description and weights of a trained FCN."""
    import torch

    from downstream.backbone.config import BackboneConfig
    from downstream.dense.model import save
    from downstream.segmentation.model import SegmentationModel, build

    torch.manual_seed(0)
    config = BackboneConfig(name="test_resnet", pretrained=False)
    model = build("fcn", config, 2)
    network = SegmentationModel(model, ["a", "b"])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        save(network, place, 3, task="segmentation", head={"name": "fcn"}, view=VIEW)
        said = json.loads((place / "config.json").read_text())
        return said, (place / "model.safetensors").read_bytes()


VIEW: dict[str, Any] = {
    **{"crop": None, "stride": None, "scales": [1.0], "flip": False},
    **{"palette": [[0, 0, 0], [9, 9, 9]], "trained_on": [16, 16]},
}


def write_segmenter(rng: random.Random, folder: Path) -> None:
    content, data = segmenter()
    tree = changed(rng, content, rng.choice((1, 1, 3))) if rng.random() < 0.9 else content
    place = folder / "model"
    place.mkdir()
    (place / "config.json").write_bytes(as_json(rng, tree))
    data = damaged(rng, data) if rng.random() < 0.1 else data
    (place / "model.safetensors").write_bytes(data)


def use_segmenter(folder: Path, out: Path) -> None:
    """As `ssld predict` opens it."""
    from downstream.deploy.predict import PredictConfig, _open

    config = PredictConfig(run=str(folder), images="x", out=str(out / "p"))
    predictor, _ = _open(config)
    import numpy as np
    from kinds_annotations import png

    predictor(np.zeros((16, 24, 3), np.uint8), png("RGB", 200))


NETWORKS = ("ssld.models.classifier", "ssld.data.transforms", "downstream.backbone.weights", "zoo")
KINDS = {
    "models.folder": Kind(write_folder, use_folder, NETWORKS),
    "models.file": Kind(write_file, use_file, NETWORKS),
    "models.torch": Kind(write_torch, use_torch, NETWORKS),
    "models.pickle": Kind(write_pickle, use_pickle, ("zoo.paddle.convert",)),
    "models.segmenter": Kind(
        write_segmenter,
        use_segmenter,
        (*NETWORKS, "downstream.segmentation.model", "downstream.deploy.predict"),
    ),
}
