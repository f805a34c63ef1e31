"""Every segmentation network as ONNX, run by onnxruntime."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from segmenting import dilated, narrow_nas_fpn, narrow_ocrnet, random, small
from torch import nn

from downstream.backbone.backbone import open_backbone
from downstream.deploy.export import export_segmenter
from downstream.segmentation.heads.deeplab import DeepLabV3Plus
from downstream.segmentation.heads.fcn import FCN
from downstream.segmentation.heads.segformer import SegFormer
from downstream.segmentation.heads.unet import UNet
from ssld.common.errors import InputError
from zoo.export.classifier import TOLERANCE

NETWORKS = {
    "fcn on several maps": lambda: FCN(open_backbone(random("test_resnet")), 3),
    "fcn on resnet-d": lambda: FCN(dilated(32), 3),
    "deeplabv3plus": lambda: DeepLabV3Plus(dilated(4, 32), 3),
    "ocrnet": lambda: narrow_ocrnet(open_backbone(random("test_resnet")), 3),
    "nas_fpn": lambda: narrow_nas_fpn(3),
    "unet": lambda: UNet(small(), 3),
    "segformer": lambda: SegFormer(small(), 3),
}


def alive(network: nn.Module) -> nn.Module:
    """Batch norms as after training, so that the logits are not all the same."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        elif isinstance(module, nn.Conv2d) and module.weight.std() < 0.011:
            nn.init.kaiming_normal_(module.weight)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_computes_what_pytorch_does(name, tmp_path):
    network = alive(NETWORKS[name]()).train()
    path = tmp_path / "network.onnx"
    exported = export_segmenter(network, path, (40, 72), ["sky", "road", "car"])
    assert network.training and exported.paths == (path,)
    assert exported.relative <= TOLERANCE and exported.batch_sizes == (1, 2, 5)
    assert exported.sizes == ((40, 72),) and not exported.any_size
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 40, 72, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        wanted = network.eval()(images).numpy()
    (found,) = session.run(None, {"images": images.numpy()})
    assert found.shape == (3, 3, 40, 72) and wanted.std() > 0.01
    assert np.abs(found - wanted).max() <= TOLERANCE * wanted.std()
    said = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert said["input_size"] == "3,40,72" and said["num_classes"] == "3"
    assert said["architecture"].startswith(type(network).__name__)
    for key in ("mean", "std"):
        assert tuple(map(float, said[key].split(","))) == getattr(network.backbone, key)
    assert json.loads(said["label_names"]) == ["sky", "road", "car"]


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="is a folder, and onnx is a file"):
        export_segmenter(FCN(dilated(32), 3), tmp_path, (32, 32))
