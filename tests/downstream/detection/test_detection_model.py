"""A detector with its preprocessing, the folder that holds it, and its losses as a task's."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from overfit import triangles
from torch import Tensor
from torchvision_models import spread

from downstream.backbone.config import BackboneConfig
from downstream.dense.model import read_description, save
from downstream.detection.batches import BoxBatch, _placeholder
from downstream.detection.config import BoxAugmentConfig
from downstream.detection.data.keypoints import Keypoints
from downstream.detection.model import DetectionModel, build, open_detector
from downstream.detection.networks import DETECTORS
from downstream.detection.task import DetectionTask
from ssld.common.errors import InputError

ARGS = {
    "channels": 16,
    "head_channels": 16,
    "rois_per_image": 16,
    "anchor_sizes": [9, 18, 36, 72, 144],
}
HEADS = {
    "faster_rcnn": ARGS,
    "keypoint_rcnn": {**ARGS, "keypoint_channels": [16]},
    "mask_rcnn": {**ARGS, "mask_channels": [16]},
}
KEYPOINTS = Keypoints(("top", "left", "right"), ((1, 2),), ((0, 1), (0, 2)))


def make(name: str) -> DetectionModel:
    torch.manual_seed(0)
    finds = DETECTORS[name].finds == "keypoints"
    config = BackboneConfig("test_resnet", pretrained=False)
    network = build(name, config, 3, HEADS[name], KEYPOINTS)
    spread(network)
    return DetectionModel(network, ["a", "b", "c"], KEYPOINTS if finds else None)


def uint8(images: Tensor) -> Tensor:
    return (
        ((images * 0.25 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    )


@pytest.mark.parametrize("name", ["keypoint_rcnn", "mask_rcnn"])
def test_parts_see_what_the_network_saw(name: str) -> None:
    """Also where sides are no multiples of the stride, and images are of two sizes."""
    model, key = make(name).eval(), DETECTORS[name].finds
    images = uint8(triangles(96, count=2)[0])[:, :90, :70]
    sizes = torch.tensor([[90, 70], [50, 61]])
    with torch.no_grad():
        found = model(images, sizes)
        for i, logits in enumerate(model.parts(images, sizes, found)):
            finished = model.finish(found[i], logits)
            torch.testing.assert_close(finished[key], found[i][key])
            alone = images[i : i + 1, : sizes[i, 0], : sizes[i, 1]]
            one, parts = model.find(alone, sizes[i : i + 1])
            assert parts is not None and len(one["boxes"]) == len(parts) > 0
            torch.testing.assert_close(model.finish(one, parts)[key], one[key])
    assert model.keypoints == (KEYPOINTS if key == "keypoints" else None)


@pytest.mark.parametrize("name", HEADS)
def test_an_exported_folder_finds_the_same(name: str, tmp_path: Path) -> None:
    model = make(name).eval()
    images, sizes = uint8(triangles(96, count=1)[0]), torch.tensor([[96, 96]])
    folder = write(model, name, tmp_path)
    opened = open_detector(*read_description(str(folder)))
    assert opened.keypoints == model.keypoints and not opened.training
    with torch.no_grad():
        (one,), (other,) = model(images, sizes), opened(images, sizes)
    assert len(one["boxes"]) and one.keys() == other.keys()
    torch.testing.assert_close(one, other)  # other kernels: it lies as images do


def write(model: DetectionModel, name: str, root: Path) -> Path:
    known = model.keypoints and asdict(model.keypoints)
    head, view = {"name": name, "args": HEADS[name]}, asdict(BoxAugmentConfig())
    save(model, root / "model", 1, task="detection", head=head, view=view, keypoints=known)
    return root / "model"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(make("keypoint_rcnn"), "keypoint_rcnn", tmp_path_factory.mktemp("keypoints"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"names": []}, "damaged"),
        ({"names": "abc"}, "damaged"),
        ({"names": ["a", "b", 3]}, "damaged"),
        ({"names": ["a", "b"]}, "damaged|fit|size"),  # the weights are of three
        ({"flip_pairs": [[1, 3]]}, "damaged"),
        ({"flip_pairs": [[1, -1]]}, "damaged"),
        ({"flip_pairs": [[0, 1], [1, 2]]}, "damaged"),
        ({"flip_pairs": [[1, 1]]}, "damaged"),
        ({"flip_pairs": [[1, 2, 0]]}, "damaged"),
        ({"flip_pairs": [[True, 2]]}, "damaged"),
        ({"skeleton": 3}, "damaged"),
        ({"skeleton": ...}, "damaged"),
        (..., "keypoint_rcnn finds keypoints and the data has none"),
        (3, "damaged"),
    ],
)
def test_damaged_keypoints_are_refused(exported: Path, tmp_path: Path, changes: Any, said: str):
    folder, content = read_description(str(exported))
    known = {**content["keypoints"], **changes} if isinstance(changes, dict) else changes
    if isinstance(known, dict):
        known = {key: value for key, value in known.items() if value is not ...}
    content["keypoints"] = known
    if known is ...:
        del content["keypoints"]
    with pytest.raises(InputError, match=said):
        open_detector(folder, json.loads(json.dumps(content)))


def of_images(images: Tensor, targets: list[dict], readable: list[bool]) -> BoxBatch:
    count = len(images)
    targets = [t if ok else _placeholder()[1] for t, ok in zip(targets, readable, strict=True)]
    return BoxBatch(
        images=images,
        sizes=torch.tensor([images.shape[1:3]] * count),
        targets=targets,
        numbers=torch.full((count,), -1),
        generated=torch.zeros(count, dtype=torch.bool),
        weight=torch.tensor(readable).float(),
        ids=[str(i) for i in range(count)],
        unreadable=[],
    )


@pytest.mark.parametrize("name", HEADS)
def test_losses_are_those_of_the_readable_images(name: str) -> None:
    model = make(name).eval()
    pixels, targets = triangles(96, count=3)
    images = uint8(pixels)
    task = cast(DetectionTask, SimpleNamespace(augment=BoxAugmentConfig(resize="square")))

    def losses(readable: list[bool]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return DetectionTask.dense_losses(task, model, of_images(images, targets, readable))

    some = losses([True, False, True])
    torch.manual_seed(0)
    kept = [0, 2]
    expected = model(images[kept], torch.tensor([[96, 96]] * 2), [targets[i] for i in kept])
    for key, loss in some.items():
        assert loss.dtype == torch.float32 and loss[1] == 0
        assert torch.equal(loss[kept], expected[key])
    none = losses([False] * 3)  # a forward pass all the same, for the other processes
    assert all(x.shape == (3,) and x.isfinite().all() for x in none.values())
    assert not any(none[key].any() for key in none.keys() & {"boxes", "keypoints", "masks"})


def test_a_detector_whose_loss_is_of_the_batch_is_told_from_one_of_each_image() -> None:
    images, targets = uint8(triangles(96, count=2)[0]), triangles(96, count=2)[1]
    task = cast(DetectionTask, SimpleNamespace(augment=BoxAugmentConfig(resize="square")))
    with pytest.raises(AssertionError, match="a loss per image is wanted"):
        DetectionTask.dense_losses(
            task, lambda *args: {"boxes": torch.ones(())}, of_images(images, targets, [True] * 2)
        )
