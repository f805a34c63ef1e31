"""A bare torchvision loop: what `benchmarks/detector.py` holds ssld against. It imports nothing of
ours, as its start is measured, too.

    python benchmarks/bare_detector.py FOLDER BACKBONE BATCH SIZE WIDTH HEAD PROPOSALS STEPS

reads FOLDER/boxes.json, FOLDER/images and FOLDER/backbone.safetensors, as that script writes them.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.transforms.functional import to_tensor

LABELS, LR = 3, 1e-5
ANCHORS = [13, 26, 51, 102, 205]
"""Sides in px of the five levels, for images of 320 px."""


class Pyramid(nn.Module):
    """A backbone with its pyramid, as torchvision wants one."""

    def __init__(self, backbone: nn.Module, pyramid: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.backbone, self.pyramid, self.out_channels = backbone, pyramid, out_channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.backbone(images)
        return self.pyramid(OrderedDict((str(i), x) for i, x in enumerate(maps)))

    def train(self, mode: bool = True) -> Pyramid:
        """Batch norm that is not trained keeps its statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self


def bare_network(
    backbone: Any, pyramid: nn.Module, size: int, width: int, head: int, proposals: int
) -> FasterRCNN:
    """torchvision's own detector, with random weights but for the backbone and the pyramid."""
    return FasterRCNN(
        Pyramid(backbone, pyramid, width),
        min_size=size, max_size=1333, image_mean=backbone.mean, image_std=backbone.std,
        rpn_anchor_generator=AnchorGenerator(tuple((x,) for x in ANCHORS), ((0.5, 1.0, 2.0),) * 5),
        box_head=TwoMLPHead(width * 49, head),
        box_predictor=FastRCNNPredictor(head, LABELS + 1),
        box_batch_size_per_image=proposals,
    )  # fmt: skip


def bare_step(network: FasterRCNN) -> Callable[[list[Tensor], list[dict[str, Tensor]]], None]:
    """What `references/detection/engine.py` does with a batch."""
    trained = [x for x in network.parameters() if x.requires_grad]
    optimizer = torch.optim.SGD(trained, LR, momentum=0.9, weight_decay=1e-4)

    def step(images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
        network.train()
        loss = sum(network(images, targets).values())
        assert math.isfinite(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def train(folder: Path, name: str, numbers: list[int]) -> None:
    """What one would write by hand: boxes by json, JPEGs by Pillow, some steps."""
    batch, size, width, head, proposals, steps = numbers
    backbone = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
    weights = load_file(folder / "backbone.safetensors")
    backbone.load_state_dict({k: weights[k] for k in backbone.state_dict()})
    for norm in (x for x in backbone.modules() if isinstance(x, nn.BatchNorm2d)):
        norm.requires_grad_(False)
    backbone.mean, backbone.std = (backbone.default_cfg[key] for key in ("mean", "std"))
    channels = backbone.feature_info.channels()
    pyramid = FeaturePyramidNetwork(channels, width, LastLevelMaxPool())
    step = bare_step(bare_network(backbone, pyramid, size, width, head, proposals))
    content = json.loads((folder / "boxes.json").read_text())
    of_image: dict[int, list[dict[str, Any]]] = {}
    for box in content["annotations"]:
        of_image.setdefault(box["image_id"], []).append(box)
    images = itertools.cycle(content["images"])
    for _ in range(steps):
        chosen = list(itertools.islice(images, batch))
        pixels = [to_tensor(Image.open(folder / "images" / x["file_name"])) for x in chosen]
        step(pixels, [target_of(of_image[x["id"]]) for x in chosen])


def target_of(boxes: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Of one image, as torchvision wants them."""
    corners = torch.tensor([x["bbox"] for x in boxes])
    corners[:, 2:] += corners[:, :2]
    return {"boxes": corners, "labels": torch.tensor([x["category_id"] for x in boxes])}


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2], [int(x) for x in sys.argv[3:]])
