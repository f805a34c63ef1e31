"""Exports compute what the network computes, say what they are, and are refused when they do not.

Fresh batch norms are nearly the identity, so that a wrong stride or epsilon would hardly show:
their statistics and weights are random here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from zoo.architectures.resnet import ResNetWithFirstShortcut
from zoo.errors import InputError
from zoo.export import classifier as exporting
from zoo.export import torchvision_resnet
from zoo.export.checked import facts
from zoo.export.classifier import TOLERANCE, export

NAMES = ["Löwe", "chat, noir", "犬"]
SIZE = {"pretrained_cfg_overlay": {"input_size": (3, 64, 64), "label_names": NAMES}}


def shaken(model: nn.Module) -> nn.Module:
    """Random statistics and weights in every batch norm."""
    source = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=source))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=source))
    return model


def create(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return shaken(timm.create_model(name, **{"num_classes": 3, **SIZE, **options}))


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Toy(nn.Module):
    """A classifier of 8 x 8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
        torch.manual_seed(0)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class SizeDependent(Toy):
    """Cannot be scripted, and a trace keeps the width that it has seen, silently."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3))) * float(np.sqrt(int(x.shape[3])))


# ONNX


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    model = create("test_efficientnet").train()
    out = tmp_path_factory.mktemp("onnx") / "new" / "lion.onnx"
    return model, export(model, "onnx", out)


def test_onnx_is_right_at_other_batch_sizes_and_sizes(onnx_file):
    model, exported = onnx_file
    assert 0 < exported.relative < 1e-5 and exported.max_abs > 0
    assert exported.batch_sizes == (1, 2, 5) and exported.inputs == 12 and exported.any_size
    assert exported.sizes == ((64, 64), (96, 128), (81, 65))
    assert exported.method.startswith("dynamo, opset ")
    session = onnxruntime.InferenceSession(exported.paths[0])
    images = torch.randn(7, 3, 40, 100)
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = model.eval()(images).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4 * expected.std())


def test_onnx_says_what_it_is_and_nothing_about_this_machine(onnx_file):
    _, exported = onnx_file
    (path,) = exported.paths
    assert left(path.parent) == ["lion.onnx"]
    said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert said["architecture"] == "test_efficientnet" and said["input_size"] == "3,64,64"
    assert said["std"] == "0.229,0.224,0.225"
    assert said["crop_pct"] == "0.95" and said["interpolation"] == "bicubic"
    assert json.loads(said["label_names"]) == NAMES and said["num_classes"] == "3"
    assert b"site-packages" not in path.read_bytes()


def test_onnx_of_one_size_refuses_others(tmp_path):
    network = SizeDependent()
    images = torch.randn(2, 3, 8, 8)
    exported = export(network, "onnx", tmp_path / "model.onnx")
    assert not exported.any_size and exported.sizes == ((8, 8),)
    session = onnxruntime.InferenceSession(exported.paths[0])
    assert session.run(None, {"images": images.numpy()})[0].shape == (2, 4)
    with pytest.raises(Exception, match="(?i)invalid dimensions"):
        session.run(None, {"images": torch.randn(2, 3, 8, 16).numpy()})


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_onnx_packages_are_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs {package}: pip install 'ssld\[onnx\]'"):
        export(Toy(), "onnx", tmp_path / "model.onnx")
    assert left(tmp_path) == []


# TorchScript

CNNS = ("test_resnet", "lcnet_050", "mobilenetv3_small_050", "test_efficientnet")


@pytest.mark.parametrize("name", CNNS)
def test_torchscript(tmp_path, name):
    exported = export(create(name), "torchscript", tmp_path / "model.pt")
    assert exported.relative < 1e-5 and exported.any_size and exported.inputs == 12
    assert exported.method == "script" and left(tmp_path) == ["model.pt"]


def test_torchscript_is_traced_where_it_cannot_be_scripted(tmp_path):
    exported = export(create("hrnet_w18_small"), "torchscript", tmp_path / "model.pt")
    assert exported.method == "trace" and exported.relative < 1e-5
    assert exported.any_size and exported.sizes == ((64, 64), (96, 128))  # HRNet takes no odd ones


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_torchscript_says_what_it_is(tmp_path):
    model = create("test_resnet")
    extra = {"facts.json": ""}
    exported = export(model, "torchscript", tmp_path / "model.pt")
    loaded = torch.jit.load(exported.paths[0], _extra_files=extra)
    assert json.loads(extra["facts.json"]) == facts(model)
    assert not loaded.training


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_trace_that_keeps_a_size_refuses_others(tmp_path):
    exported = export(SizeDependent(), "torchscript", tmp_path / "model.pt")
    assert exported.method == "trace" and not exported.any_size and exported.sizes == ((8, 8),)
    loaded = torch.jit.load(exported.paths[0])
    assert loaded(torch.randn(3, 3, 8, 8)).shape == (3, 4)
    with pytest.raises(torch.jit.Error, match="8 x 8 pixels only"):
        loaded(torch.randn(3, 3, 8, 16))


def test_a_network_of_one_size(tmp_path):
    model = timm.create_model("test_vit", num_classes=3, dynamic_img_size=False, img_size=32)
    model.pretrained_cfg = model.pretrained_cfg | {"input_size": (3, 32, 32)}
    exported = export(model, "torchscript", tmp_path / "model.pt")
    assert not exported.any_size and exported.sizes == ((32, 32),) and exported.inputs == 9


# torchvision


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet18d", {}),
        ("resnet18", {"in_chans": 1, "pretrained_cfg_overlay": {"input_size": (1, 64, 64)}}),
        ("resnet50d", {"layers": (1, 2, 1, 1)}),
        ("resnet50", {"layers": (1, 1, 1, 1)}),
        ("resnext50_32x4d", {"layers": (1, 1, 1, 1)}),
        ("resnetrs50", {"layers": (1, 1, 1, 1), "block_args": {}}),
    ],
)
def test_torchvision(tmp_path, name, options):
    exported = export(create(name, **options), "torchvision", tmp_path / "net")
    assert exported.relative < 1e-6 and exported.any_size and len(exported.sizes) == 3
    assert left(tmp_path) == ["net"] and left(tmp_path / "net") == ["model.py", "model.safetensors"]
    source = (tmp_path / "net" / "model.py").read_text()
    assert max(map(len, source.splitlines())) <= 100


def test_torchvision_of_a_shortcut_that_timm_has_not(tmp_path):
    torch.manual_seed(0)
    deep = {"stem_width": 32, "stem_type": "deep", "avg_down": True}
    model = ResNetWithFirstShortcut(BasicBlock, (2, 1, 1, 1), num_classes=3, **deep)
    model.pretrained_cfg = create("resnet18d").pretrained_cfg
    assert export(shaken(model), "torchvision", tmp_path / "net").relative < 1e-6
    assert "network.layer1[0].downsample" in (tmp_path / "net" / "model.py").read_text()


STRANGER = """
import sys
import torch
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import ResNet
from torchvision.ops import FrozenBatchNorm2d
from model import build

images = torch.load("images.pt")
network = build()
assert isinstance(network, ResNet) and not network.training
with torch.no_grad():
    torch.save(network(images), "logits.pt")
    torch.save(build(FrozenBatchNorm2d)(images), "frozen.pt")
levels = {f"layer{i}": str(i) for i in (1, 2, 3, 4)}
pyramid = BackboneWithFPN(build(FrozenBatchNorm2d), levels, [64, 128, 256, 512], 16)
assert [x.shape[2] for x in pyramid(images).values()] == [16, 8, 4, 2, 1]
assert not {"timm", "zoo", "ssld"} & set(sys.modules), sys.modules.keys()
"""


def test_torchvision_folder_needs_nothing_of_ours(tmp_path):
    model = create("resnet18d", layers=(1, 1, 1, 1))
    (folder,) = export(model, "torchvision", tmp_path / "net").paths
    images = torch.randn(2, 3, 64, 64)
    torch.save(images, folder / "images.pt")
    subprocess.run([sys.executable, "-c", STRANGER], cwd=folder, check=True)
    with torch.no_grad():
        expected = model.eval()(images)
    for name in ("logits.pt", "frozen.pt"):
        torch.testing.assert_close(torch.load(folder / name), expected)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["label_names"]) == NAMES
        assert set(file.keys()) == set(model.state_dict())  # the keys are timm's, too
    source = (folder / "model.py").read_text()
    assert "mean (0.485, 0.456, 0.406)" in source and "crop 64 x 64" in source


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("test_vit", {"img_size": 64}, "VisionTransformer is no ResNet"),
        ("seresnet18", {}, "layer1.0.se, a SEModule"),
        ("resnet18", {"output_stride": 8}, "layer3.0.conv1 = "),
        ("resnet18", {"act_layer": nn.SiLU}, "SiLU activations"),
        ("resnet18", {"global_pool": "max"}, "average pooling"),
        ("resnet18", {"num_classes": 0}, "without a linear classifier"),
        ("resnetblur18", {}, "BlurPool2d"),
        ("res2net50_26w_4s", {"layers": (1, 1, 1, 1)}, "Bottle2neck blocks"),
        ("test_resnet", {}, r"layer1.0.conv1 = nn.Conv2d\(32"),
    ],
)
def test_torchvision_refuses_what_it_cannot_have(tmp_path, name, options, why):
    torch.manual_seed(0)
    model = timm.create_model(name, **{"num_classes": 3, **SIZE, **options})
    with pytest.raises(InputError, match=why):
        export(model, "torchvision", tmp_path / "net")
    assert left(tmp_path) == []


# The check, and what is left behind


@pytest.mark.parametrize("change", [2 * TOLERANCE, float("nan"), None])
def test_a_wrong_export_is_refused_and_leaves_what_was_there(tmp_path, monkeypatch, change):
    (tmp_path / "model.pt").write_text("earlier")

    def wrong(network, path, header, size):
        path.write_text("wrong")
        trials = exporting._trials(network, (3, 8, 8))
        unit = torch.cat([logits for _, logits in trials]).std()

        def run(images: Tensor) -> Tensor:
            logits = network(images).detach()
            if change is None:
                return logits[:1]
            logits[-1, 0] += change * unit if len(images) == 5 else 0
            return logits

        return "wrong", run

    monkeypatch.setitem(exporting.WRITERS, "torchscript", wrong)
    with pytest.raises(InputError, match=r"of toy differs from PyTorch by (\d\.\de-04|nan|inf)"):
        export(Toy(), "torchscript", tmp_path / "model.pt")
    assert left(tmp_path) == ["model.pt"] and (tmp_path / "model.pt").read_text() == "earlier"


def test_a_wrong_stride_in_the_torchvision_folder_is_refused(tmp_path, monkeypatch):
    wrong = torchvision_resnet.TEMPLATE.replace(
        "    return network.eval()",
        "    network.layer2[0].conv1.stride, network.layer2[0].conv2.stride = (2, 2), (1, 1)\n"
        "    return network.eval()",
    )
    monkeypatch.setattr(torchvision_resnet, "TEMPLATE", wrong)
    model = create("resnet50", layers=(1, 1, 1, 1))
    with pytest.raises(InputError, match="differs from PyTorch"):
        export(model, "torchvision", tmp_path / "net")
    assert left(tmp_path) == []


def test_the_model_stays_as_it_is(tmp_path):
    model = create("test_resnet").half()
    model.fc.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export(model, "torchscript", tmp_path / "model.pt")
    assert model.training and not model.fc.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path):
    for name in ("resnet18", "resnet18d"):
        model = create(name, layers=(1, 1, 1, 1))
        export(model, "torchvision", tmp_path / "net")
    assert left(tmp_path) == ["net"] and "resnet18d" in (tmp_path / "net" / "model.py").read_text()
    (tmp_path / "net" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        export(model, "torchvision", tmp_path / "net")
    assert (tmp_path / "net" / "notes.txt").read_text() == "mine"


def test_requests_that_cannot_be_met(tmp_path):
    (tmp_path / "file").write_text("mine")
    for format, out, why in (
        ("onxx", tmp_path / "model", "did you mean 'onnx'"),
        ("onnx", tmp_path, "is a folder"),
        ("torchvision", tmp_path / "file", "is a file"),
        ("torchscript", tmp_path / "file" / "model.pt", "cannot be written"),
        ("torchvision", Path("."), "no name"),
    ):
        with pytest.raises(InputError, match=why):
            export(Toy(), format, out)
    assert left(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_networks_that_cannot_be_checked(tmp_path):
    model = Toy()
    nn.init.zeros_(model.fc.weight), nn.init.zeros_(model.fc.bias)
    with pytest.raises(InputError, match="all the same"):
        export(model, "torchscript", tmp_path / "model.pt")
    model.fc.weight.data[0, 0] = torch.inf
    with pytest.raises(InputError, match="not finite"):
        export(model, "torchscript", tmp_path / "model.pt")
    model = create("test_resnet", in_chans=1)
    with pytest.raises(InputError, match="takes no images of 64 x 64, mend its pretrained_cfg"):
        export(model, "torchscript", tmp_path / "model.pt")
    model.pretrained_cfg = {"input_size": (3, 8, 8)}
    with pytest.raises(InputError, match="has no mean, std"):
        export(model, "torchscript", tmp_path / "model.pt")
