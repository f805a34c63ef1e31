"""Weights as the tools of others write them with `torch.save`, read as a teacher's."""

from __future__ import annotations

import argparse
import collections
import copy
import pathlib
import pickle
import socket
import sys
import types
from pathlib import Path
from typing import Any

import hub_server
import numpy as np
import pytest
import timm
import torch
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from downstream.backbone.config import BackboneConfig
from downstream.backbone.weights import open_classifier
from ssld.common.errors import InputError
from ssld.models.classifier import Classifier
from ssld.models.config import TeacherConfig
from ssld.models.opening import open_network
from ssld.models.teacher import open_one


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=3).eval()


@pytest.fixture(scope="module")
def average(model: Any) -> Any:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    return other


def opened(path: Path, arch: str | None = None, **given: Any) -> Classifier:
    return open_one(TeacherConfig(arch=arch, checkpoint=str(path), **given))


def same(network: Classifier, model: nn.Module) -> bool:
    mine, wanted = network.model.state_dict(), model.state_dict()
    return mine.keys() == wanted.keys() and all(torch.equal(mine[k], wanted[k]) for k in wanted)


def under(prefix: str, model: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": x for name, x in model.state_dict().items()}


def timm_train(folder: Path, net: Any, **said: Any) -> Path:
    """As timm's own train.py saves, with its parser's names."""
    args = argparse.Namespace(
        model="test_resnet", num_classes=3, img_size=None, input_size=None, crop_pct=None,
        mean=None, std=None, interpolation="", model_kwargs={}, gp=None, opt_eps=None,
        lr_base=0.1, opt_betas=None, data_dir=folder / "imagenet",
    )  # fmt: skip
    vars(args).update(said)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    ema = ModelEmaV3(net, decay=0.0)
    saver = CheckpointSaver(
        net, optimizer, args, model_ema=ema, checkpoint_dir=str(folder), recovery_dir=str(folder)
    )
    saver.save_checkpoint(1, 71.25)
    return folder / "last.pth.tar"


def test_timm_train_says_all_of_its_network(tmp_path, model):
    said = {"img_size": 48, "mean": [0.5, 0.4, 0.3], "crop_pct": 0.9, "interpolation": "bicubic"}
    network = opened(timm_train(tmp_path, model, **said))
    assert same(network, model) and network.architecture == "test_resnet"
    assert (network.input_size, network.crop_pct, network.interpolation) == (48, 0.9, "bicubic")
    assert network.mean == (0.5, 0.4, 0.3)
    assert network.std == tuple(timm.create_model("test_resnet").pretrained_cfg["std"])


def test_timm_arguments_of_the_model(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3, global_pool="catavgmax", stem_width=16)
    said = {
        "gp": "catavgmax",
        "model_kwargs": {"stem_width": 16},
        "model": "hf-hub:timm/test_resnet.r160_in1k",
    }
    assert same(opened(timm_train(tmp_path, model, **said)), model)


def test_the_average_is_taken_and_said(tmp_path, model, average, capsys):
    averaged = AveragedModel(average)
    for name, content in {
        "timm.pth.tar": {"state_dict": model.state_dict(), "state_dict_ema": average.state_dict()},
        "torchvision.pth": {
            "model": model.state_dict(),
            "model_ema": averaged.state_dict(),
            "epoch": 9,
            "args": argparse.Namespace(model="test_resnet", val_resize_size=64, val_crop_size=48),
        },
    }.items():
        torch.save(content, tmp_path / name)
        network = opened(tmp_path / name, "test_resnet")
        assert same(network, average)
        key = "state_dict_ema" if "timm" in name else "model_ema"
        told = capsys.readouterr().err
        assert f"teacher.checkpoint {tmp_path / name}: the average of the weights, {key}" in told
    assert network.input_size == 48 and network.crop_pct == 0.75


class Hydra:
    """Stands for settings of a library that the reader does not have."""

    def __init__(self) -> None:
        self.content = [1, "x"]


@pytest.mark.parametrize(
    "layout", ["plain", "module", "compiled", "imagenet", "lightning", "backbone", "deit", "legacy",
               "parameters"]
)  # fmt: skip
def test_layouts(tmp_path, model, layout):
    kind = {"legacy": ".pt", "lightning": ".ckpt"}.get(layout, ".pth")
    path, arch, options = tmp_path / f"net{kind}", "test_resnet", {}
    content: Any = model.state_dict()  # lightly-train's exported_last.pt is this, too
    if layout == "module":
        content = under("module.", model)
    elif layout == "compiled":
        content = {"model_state_dict": under("_orig_mod.module.", model)}
    elif layout == "imagenet":
        content = {"epoch": 1, "arch": "test_resnet", "state_dict": under("module.", model),
                   "best_acc1": torch.tensor(71.0), "optimizer": {}}  # fmt: skip
        arch = None
    elif layout in ("lightning", "backbone"):
        below = "model." if layout == "lightning" else "net.backbone."
        weights = under(below, model) | {"criterion.weight": torch.ones(3)}
        module = types.ModuleType("hydra_like")
        module.Hydra = Hydra  # type: ignore[attr-defined]
        content = {
            "state_dict": collections.OrderedDict(weights), "pytorch-lightning_version": "2.4.0",
            "hyper_parameters": {"model_name": "timm/test_resnet", "cfg": Hydra()},
            "callbacks": {"x": {"best": np.float64(0.5), "path": pathlib.PurePosixPath("/a")}},
        }  # fmt: skip
        arch = None
    elif layout == "deit":
        content = {"model": model.state_dict()}
    elif layout == "legacy":
        options = {"_use_new_zipfile_serialization": False}
    elif layout == "parameters":
        content = dict(model.named_parameters()) | dict(model.named_buffers())
    torch.save(content, path, **options)
    assert same(opened(path, arch), model)


def test_without_a_classifier_it_teaches_features_alone(tmp_path):
    bare = timm.create_model("test_resnet", num_classes=0)
    torch.save({"state_dict": under("backbone.", bare) | {"head.weight": torch.ones(3, 9)}},
               tmp_path / "n.ckpt")  # fmt: skip
    with pytest.raises(InputError, match="teacher has no classifier .*features alone"):
        opened(tmp_path / "n.ckpt", "test_resnet")
    config = TeacherConfig(arch="test_resnet", checkpoint=str(tmp_path / "n.ckpt"))
    assert same(open_one(config, features_alone=True), bare)
    student = open_network(
        "student", arch="test_resnet", checkpoint=config.checkpoint, num_classes=7
    )
    assert student.num_classes == 7


def test_names_of_the_authors_become_timms(tmp_path):
    """As Meta's ConvNeXt repository saves it."""
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=5)
    names = {
        "stem.": "downsample_layers.0.", ".downsample.": None, "head.norm.": "norm.",
        "head.fc.": "head.", ".conv_dw.": ".dwconv.", ".mlp.fc1.": ".pwconv1.",
        ".mlp.fc2.": ".pwconv2.",
    }  # fmt: skip
    theirs = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "stages" and parts[2] == "downsample":
            name = ".".join(["downsample_layers", parts[1], *parts[3:]])
        elif parts[0] == "stages":
            name = ".".join(["stages", parts[1], *parts[3:]])
        for mine, other in names.items():
            name = name.replace(mine, other) if other else name
        theirs[name] = value
    torch.save({"model": theirs}, tmp_path / "convnext.pth")
    assert same(opened(tmp_path / "convnext.pth", "test_convnext"), model)


def test_position_embeddings_are_not_made_anew(tmp_path):
    model = timm.create_model("test_vit", num_classes=3, img_size=96)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(InputError, match=r"pos_embed \(1, 37, .* instead of"):
        opened(tmp_path / "vit.pth", "test_vit")
    assert same(opened(tmp_path / "vit.pth", "test_vit", args={"img_size": 96}), model)


class Evil:
    def __reduce__(self):
        return exec, ("import sys; sys.was_run = True",)


@pytest.mark.parametrize("where", ["whole", "weights", "beside", "blocked"])
@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_file_is_run(tmp_path, model, where, legacy):
    import os

    class Shell:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    content: Any = {"state_dict": model.state_dict(), "x": Evil()}
    content = {"whole": Evil(), "weights": {"state_dict": Evil()}, "beside": content,
               "blocked": {"state_dict": model.state_dict(), "x": Shell()}}[where]  # fmt: skip
    path = tmp_path / "evil.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    if where == "beside" and not legacy:
        assert same(opened(path, "test_resnet"), model)
    else:
        with pytest.raises(InputError, match=r"torch.save\(model.state_dict\(\), FILE\)") as error:
            opened(path, "test_resnet")
        assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert not hasattr(sys, "was_run") and not (tmp_path / "ran").exists()


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def damaged(path: Path, model: nn.Module) -> Path:
    data = bytearray(write(path, model.state_dict()).read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)
    return path


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_is_no_weights_says_so(tmp_path, model, average):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    half = write(tmp_path / "half.pth", model.state_dict()).read_bytes()[:9000]
    (tmp_path / "half.pth").write_bytes(half)
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "page.pth").write_bytes(b"<!doctype html>")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    nan = {name: x / 0 if x.is_floating_point() else x for name, x in model.state_dict().items()}
    both = {"state_dict": under("student.", model) | under("teacher.", average)}
    cases = [
        (write(tmp_path / "whole.pth", nn.Sequential(model)), "a whole network, whose code"),
        (tmp_path / "script.pt", "a program of TorchScript"),
        (tmp_path / "half.pth", "empty or ends too early"),
        (tmp_path / "empty.pth", "is empty"),
        (tmp_path / "page.pth", "no whole file of torch.save"),
        (tmp_path / "plain.pth", "no whole file of torch.save"),
        (damaged(tmp_path / "bits.pth", model), "bits.pth is damaged, in "),
        (write(tmp_path / "none.pth", {"epoch": 3, "optimizer": {}}), "no weights .it has epoch"),
        (write(tmp_path / "list.pth", [torch.ones(2)]), "no named tensors"),
        (write(tmp_path / "nan.pth", nan), "not finite"),
        (write(tmp_path / "both.pth", both), r"holds 2 networks .* \(student, teacher\)"),
        (write(tmp_path / "x.pth", {"student": model.state_dict(), "teacher": model.state_dict()}),
         "holds the weights student, teacher;"),
        (write(tmp_path / "few.pth", {**model.state_dict(), "fc.weight": torch.ones(4, 9)}),
         r"fc.weight \(4, 9\) instead of"),
        (write(tmp_path / "more.pth", {**model.state_dict(), "aux.weight": torch.ones(4, 9)}),
         r"1 unexpected \(aux.weight\)"),
    ]  # fmt: skip
    for path, said in cases:
        with pytest.raises(InputError, match=said) as error:
            opened(path, "test_resnet")
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_which_architecture(tmp_path, model):
    plain = write(tmp_path / "plain.pth", model.state_dict())
    with pytest.raises(InputError, match="teacher.arch is missing: .*does not name its arch"):
        opened(plain)
    args = argparse.Namespace(model="mobilenet_v3_large")
    theirs = write(tmp_path / "tv.pth", {"model": model.state_dict(), "args": args})
    with pytest.raises(InputError, match="'mobilenet_v3_large', which is not .*did you mean"):
        opened(theirs)
    assert same(opened(theirs, "test_resnet"), model)
    named = write(tmp_path / "named.pth", {"state_dict": model.state_dict(), "arch": "resnet50"})
    with pytest.raises(InputError, match="teacher.arch is 'test_resnet' but .* holds a 'resnet50'"):
        opened(named, "test_resnet")
    with pytest.raises(InputError, match=r"num_classes|instead of"):
        opened(plain, "test_resnet", args={"num_classes": 10})


def test_it_is_a_backbone_too(tmp_path, model):
    path = write(tmp_path / "plain.pth", model.state_dict())
    config = BackboneConfig(name="test_resnet", checkpoint=str(path))
    assert open_classifier(config).num_classes == 3


def test_a_hub_that_is_not_reached_is_given_up_soon(monkeypatch, tmp_path):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        hub_server.talk_to(url, tmp_path, monkeypatch)
        with pytest.raises(InputError) as error:
            open_network("teacher", arch="hf-hub:nobody/nothing", pretrained=True)
    assert slept[:2] == [1, 2] and sum(slept) <= 7  # one of the tries may not wait
    assert str(error.value) == (
        f"teacher.arch 'hf-hub:nobody/nothing' cannot be built ({url} gives no answer, no "
        "connection in 4 tries: [Errno 111] Connection refused, and it is not in the cache "
        f"{tmp_path / 'hub'}); give weights on disk as teacher.checkpoint, or check the name and "
        "the network"
    )


def test_without_a_network_one_short_sentence(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as error:
        open_network("teacher", arch="hf-hub:nobody/nothing", pretrained=True)
    assert str(error.value) == (
        "teacher.arch 'hf-hub:nobody/nothing' cannot be built (HF_HUB_OFFLINE is set, and it is "
        f"not in the cache {constants.HF_HUB_CACHE}); give weights on disk as teacher.checkpoint, "
        "or check the name and the network"
    )
