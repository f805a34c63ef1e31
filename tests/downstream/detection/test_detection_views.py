"""What is found in a scaled or mirrored view returns to its place in the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as tv

from downstream.backbone.config import BackboneConfig
from downstream.detection import inference
from downstream.detection.config import BoxAugmentConfig, BoxTestConfig
from downstream.detection.data.keypoints import Keypoints
from downstream.detection.data.transforms import view_size
from downstream.detection.inference import predict, predict_both, views
from downstream.detection.model import DetectionModel, build
from ssld.common.errors import InputError

OBJECTS = {0: (8, 12, 24, 20), 1: (40, 4, 52, 28)}  # class: x1, y1, x2, y2 in an image of 64 x 40
PLAIN = BoxAugmentConfig(sizes=[40], test_size=40, longest=None)


class Finder(nn.Module):
    """Finds what is red as class 0 and what is green as class 1, and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = []

    def find(self, images, sizes):
        return self(images, sizes)[0], None

    def forward(self, images, sizes):
        assert len(images) == len(sizes) == 1 and images.dtype == torch.uint8
        (height, width), image = sizes[0].tolist(), images[0]
        assert image.shape == (height, width, 3)
        self.shown.append(image)
        boxes = []
        for channel in OBJECTS:
            there = image[..., channel] > 127
            rows, columns = there.any(1).nonzero()[:, 0], there.any(0).nonzero()[:, 0]
            if len(rows):
                boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, channel])
        found = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)
        scores = torch.tensor([0.9, 0.8])[: len(found)]
        return [{"boxes": found[:, :4], "scores": scores, "labels": found[:, 4].long()}]


def picture(height=40, width=64, objects=OBJECTS):
    image = torch.zeros(height, width, 3, dtype=torch.uint8)
    for channel, (x1, y1, x2, y2) in objects.items():
        image[y1:y2, x1:x2, channel] = 255
    return image


def finder():
    return Finder().eval()


@pytest.mark.parametrize("way", ["vote", "nms", "soft_nms"])
@pytest.mark.parametrize(
    "scales, flip", [([1.0], True), ([0.5, 1.0, 2.0], True), ([2.0, 0.5], False), ([0.25], True)]
)
def test_all_views_find_the_objects_in_their_places(scales, flip, way):
    test = BoxTestConfig(scales=scales, flip=flip, merge=way)
    model = finder()
    found = predict(model, picture(), PLAIN, test)
    assert len(model.shown) == test.views
    assert found["boxes"][:2].tolist() == [list(box) for box in OBJECTS.values()]
    assert found["labels"].tolist()[:2] == [0, 1] and (way == "soft_nms") == (
        len(found["boxes"]) > 2
    )


def test_axes_have_scales_of_their_own():
    """A square view of 64 x 40 px is stretched."""
    square = BoxAugmentConfig(resize="square", sizes=[80], test_size=80)
    model = finder()
    found = predict(model, picture(), square, BoxTestConfig(scales=[1.0, 2.0], flip=True))
    assert [tuple(x.shape) for x in model.shown] == [(80, 80, 3)] * 2 + [(160, 160, 3)] * 2
    expected = np.array(list(OBJECTS.values()))
    np.testing.assert_allclose(found["boxes"], expected, atol=0.5)  # px of a view are .8 of these


def test_one_object_off_by_a_pixel_in_the_mirror():
    """A mirror that maps x to width - 1 - x, as pixels' numbers, would move boxes by a pixel."""
    model = finder()
    only = BoxTestConfig(flip=True, merge="nms")
    image = picture(objects={0: (0, 0, 1, 1)})
    seen = list(views(image, PLAIN, only))
    assert torch.equal(seen[1].pixels, image.flip(1))
    found = model(seen[1].images, seen[1].sizes)[0]
    assert found["boxes"].tolist() == [[63, 0, 64, 1]]
    assert seen[1].leave(found)["boxes"].tolist() == [[0, 0, 1, 1]]
    assert seen[1].enter(torch.tensor([[0.0, 0, 1, 1]])).tolist() == [[63, 0, 64, 1]]


def test_boxes_enter_a_view_within_it():
    seen = list(views(picture(41, 63), PLAIN, BoxTestConfig(scales=[1.5], flip=True)))
    whole = torch.tensor([[-1.0, -1, 64, 42], [0, 0, 63, 41]])
    for view in seen:
        height, width = view.pixels.shape[:2]
        assert view.enter(whole).tolist() == [[0, 0, width, height]] * 2


def test_one_view_is_what_the_network_says(monkeypatch):
    monkeypatch.setattr(inference, "merge", None)
    image, augment = picture(), BoxAugmentConfig(sizes=[97], test_size=97, longest=None)
    for test, factor in ((BoxTestConfig(), 1.0), (BoxTestConfig(scales=[0.7]), 0.7)):
        found, one = predict_both(finder(), image, augment, test)
        size = view_size((40, 64), 97, augment, factor)
        view = tv.resize(image.permute(2, 0, 1), list(size), antialias=True).permute(1, 2, 0)
        expected = finder()(view[None], torch.tensor([size]))[0]
        scale = torch.tensor([size[1] / 64, size[0] / 40] * 2)
        assert found is one and torch.equal(found["boxes"], expected["boxes"] / scale)
        assert torch.equal(found["scores"], expected["scores"])


@pytest.mark.parametrize("scales", [[2.0, 1.0, 0.5], [1.2, 3.0, 0.5]])
def test_the_one_view_is_that_nearest_to_the_size_itself(scales):
    nearest = min(scales, key=lambda x: abs(np.log(x)))
    alone = predict(finder(), picture(), PLAIN, BoxTestConfig(scales=[nearest]))
    model = finder()
    _, one = predict_both(model, picture(), PLAIN, BoxTestConfig(scales=scales, flip=True))
    assert all(torch.equal(alone[key], one[key]) for key in alone)
    assert len(model.shown) == 6  # seen once for both


def test_views_without_anything():
    """The small object is nothing at a tenth of the size; an empty image is empty everywhere."""
    test = BoxTestConfig(scales=[1.0, 0.02], flip=True)
    found = predict(finder(), picture(objects={1: (8, 12, 24, 20)}), PLAIN, test)
    assert found["boxes"].tolist() == [[8, 12, 24, 20]]
    empty = predict(finder(), picture(objects={}), PLAIN, test)
    assert {key: len(x) for key, x in empty.items()} == {"boxes": 0, "scores": 0, "labels": 0}
    assert empty["boxes"].shape == (0, 4) and empty["labels"].dtype == torch.int64


def test_what_cannot_be_seen_is_said():
    large = BoxAugmentConfig(sizes=[800], test_size=800, longest=None)
    with pytest.raises(InputError, match=r"test.scales: 4 makes a view of 3200 x 32000 px"):
        predict(finder(), picture(8, 80), large, BoxTestConfig(scales=[1.0, 4.0]))

    class Diverged(Finder):
        def forward(self, images, sizes):
            found = super().forward(images, sizes)
            found[0]["boxes"][0, 0] = torch.nan if len(self.shown) == 2 else 0
            return found

    with pytest.raises(InputError, match="not finite; the network has diverged"):
        predict(Diverged().eval(), picture(), PLAIN, BoxTestConfig(scales=[1.0, 2.0]))
    for values in ({"scales": []}, {"scales": [17.0]}, {"scales": [0.0]}, {"scales": [1.0] * 33}):
        with pytest.raises(ValueError, match="test.scales is"):
            BoxTestConfig(**values)


M = 8
"""Cells in a row of a box."""
SQUARE = (8, 12, 24, 28)


class PartFinder(Finder):
    """Sees, in what is red, what is blue in M x M cells: as a mask, or as the keypoints left eye,
    nose and right eye, each of which it looks for in its third of the box as it is shown.

    Args:
        kind: keypoints or masks.
        noise: of the logits.
    """

    keypoints = Keypoints(("left eye", "nose", "right eye"), flip_pairs=((0, 2),))

    def __init__(self, kind, noise=0.0):
        super().__init__()
        self.kind, self.noise, self.told = kind, noise, []
        self.chance = torch.Generator().manual_seed(0)

    def find(self, images, sizes):
        found = self(images, sizes)
        parts = self.parts(images, sizes, found)[0]
        self.shown.pop()
        return self.finish(found[0], parts), parts

    def parts(self, images, sizes, found):
        self.shown.append(images[0])
        boxes = found[0]["boxes"].tolist()
        assert boxes == Finder()(images, sizes)[0]["boxes"].tolist()  # in px of this view
        blue = torch.zeros(0, M, M)
        for x1, y1, x2, y2 in torch.tensor(boxes, dtype=torch.int64).tolist():
            inside = images[:, y1:y2, x1:x2, 2].float() / 255
            blue = torch.cat([blue, nn.functional.adaptive_avg_pool2d(inside, M)])  # [k, M, M]
        if self.kind == "keypoints":
            thirds = torch.arange(M) * 3 // M == torch.arange(3)[:, None]  # [3, M]
            blue = blue[:, None] * thirds[:, None]  # [k, 3, M, M]
        logits = 20 * blue - 10 + self.noise * torch.randn(blue.shape, generator=self.chance)
        self.told.append(logits)
        return [logits]

    def finish(self, found, parts):
        if self.kind == "masks":
            return {**found, "masks": parts.sigmoid()}
        score, cell = parts.flatten(2).softmax(2).max(2)
        x1, y1, x2, y2 = found["boxes"][:, :, None].unbind(1)
        x = x1 + (cell % M + 0.5) / M * (x2 - x1)
        y = y1 + (cell // M + 0.5) / M * (y2 - y1)
        return {**found, "keypoints": torch.stack([x, y, score], dim=2)}


def face():
    """Red, with blue cells of 2 x 2 px: eyes at other heights, and a nose off the middle."""
    image = picture(objects={0: SQUARE})
    for x, y in ((8, 14), (14, 18), (22, 12)):
        image[y : y + 2, x : x + 2, 2] = 255
    return image


VIEWS = BoxTestConfig(scales=[1.0, 2.0, 3.0], flip=True)


def test_keypoints_return_to_their_pixel():
    model = PartFinder("keypoints").eval()
    found, one = predict_both(model, face(), PLAIN, VIEWS)
    assert len(model.shown) == len(model.told) == 6
    for result in (found, one):
        assert result["boxes"].tolist() == [list(SQUARE)]
        assert result["keypoints"][0, :, :2].tolist() == [[9, 15], [15, 19], [23, 13]]
        assert (result["keypoints"][0, :, 2] > 0.99).all()


def test_keypoints_that_are_not_exchanged_are_somewhere_else():
    """The test above would see it."""
    model = PartFinder("keypoints").eval()
    model.keypoints = Keypoints(model.keypoints.names)
    found = predict(model, face(), PLAIN, VIEWS)
    assert not (found["keypoints"][0, :, 2] > 0.9).all()


def test_masks_return_to_their_pixel():
    found, one = predict_both(PartFinder("masks").eval(), face(), PLAIN, VIEWS)
    cells = torch.zeros(M, M)
    for column, row in ((0, 1), (3, 3), (7, 0)):
        cells[row, column] = 1
    for result in (found, one):
        assert torch.equal((result["masks"][0] > 0.5).float(), cells)
        assert result["boxes"].tolist() == [list(SQUARE)]


@pytest.mark.parametrize("kind", ["keypoints", "masks"])
def test_probabilities_are_averaged_as_in_a_loop(kind):
    model = PartFinder(kind, noise=5).eval()
    found = predict(model, face(), PLAIN, VIEWS)
    told = [x[0].double().numpy() for x in model.told]  # [3, M, M] or [M, M], mirrored if odd
    mean = np.zeros((3, M, M))
    for i, logits in enumerate(told):
        for k in range(3):
            mirrored = i % 2 == 1
            channel = logits if kind == "masks" else logits[2 - k if mirrored else k]
            odds = np.exp(channel)
            p = odds / (1 + odds) if kind == "masks" else odds / odds.sum()
            for row in range(M):
                for column in range(M):
                    mean[k, row, column] += p[row, M - 1 - column if mirrored else column] / 6
    if kind == "masks":
        np.testing.assert_allclose(found["masks"][0], mean[0], rtol=1e-5)
        return
    for k, (x, y, score) in enumerate(found["keypoints"][0].tolist()):
        row, column = divmod(int(mean[k].argmax()), M)
        assert (x, y) == (8 + 2 * column + 1, 12 + 2 * row + 1)
        assert score == pytest.approx(mean[k].max(), rel=1e-5)


@pytest.mark.parametrize("kind", ["keypoints", "masks"])
def test_parts_of_nothing_need_no_second_view(kind):
    model = PartFinder(kind).eval()
    found, one = predict_both(model, picture(objects={}), PLAIN, VIEWS)
    assert len(model.shown) == 1 and found is one and len(found[kind]) == 0


def test_parts_that_are_no_numbers_are_said():
    for kind in ("keypoints", "masks"):
        model = PartFinder(kind, noise=torch.nan).eval()
        with pytest.raises(InputError, match="not finite"):
            predict(model, face(), PLAIN, VIEWS)


SMALL = {"channels": 32, "head_channels": 32, "score_threshold": 0.0, "nms_iou": 0.9}


@pytest.fixture(scope="module", params=["faster_rcnn", "keypoint_rcnn", "mask_rcnn"])
def detector(request) -> DetectionModel:
    """Random weights, which find what they find."""
    torch.manual_seed(0)
    further = {
        "faster_rcnn": {},
        "keypoint_rcnn": {"keypoint_channels": [16]},
        "mask_rcnn": {"mask_channels": [16]},
    }[request.param]
    config = BackboneConfig(name="test_resnet", pretrained=False)
    points = Keypoints(("a", "b", "c"), flip_pairs=((0, 1),))
    built = build(request.param, config, 3, {**SMALL, **further}, points)
    finds = request.param == "keypoint_rcnn"
    return DetectionModel(built, list("xyz"), points if finds else None).eval()


def test_the_networks_themselves(detector):
    """One view is what forward says, to the bit, and a second costs one more pass."""
    torch.manual_seed(1)
    image = torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8)
    augment = BoxAugmentConfig(sizes=[64], test_size=64, longest=None)
    plain = predict(detector, image, augment, BoxTestConfig())
    view = next(views(image, augment, BoxTestConfig()))
    with torch.no_grad():
        expected = view.leave(detector(view.images, view.sizes)[0])
    assert plain.keys() == expected.keys() and len(plain["boxes"]) > 20
    assert all(torch.equal(plain[key], expected[key]) for key in plain)
    passes = []
    hook = detector.backbone.register_forward_hook(lambda *_: passes.append(1))
    found, one = predict_both(detector, image, augment, BoxTestConfig(scales=[1, 1.5], flip=True))
    hook.remove()
    assert len(passes) == 4 and all(torch.equal(one[key], plain[key]) for key in one)
    assert found.keys() == one.keys()
    part = {"keypoints", "masks"} & found.keys()
    assert all(torch.equal(found["boxes"], one["boxes"]) for _ in part)
    assert all(found[key].shape == one[key].shape and found[key].isfinite().all() for key in part)
    assert not any(torch.equal(found[key], one[key]) for key in part or ["boxes"])


def test_views_smaller_than_the_stride(detector):
    """Of 2 x 2 px, and an image of 1 px."""
    augment = BoxAugmentConfig(sizes=[64], test_size=64, longest=None)
    for size in ((50, 70), (1, 1), (1, 90)):
        image = torch.full((*size, 3), 128, dtype=torch.uint8)
        found = predict(detector, image, augment, BoxTestConfig(scales=[1, 0.03], flip=True))
        boxes = found["boxes"]
        edges = torch.tensor([size[1], size[0]] * 2)
        assert (boxes >= -1e-3).all() and (boxes <= edges + 1e-3).all()


def test_the_same_in_half_precision(detector):
    """As an evaluation with `precision: bf16` runs it."""
    image = torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8)
    augment = BoxAugmentConfig(sizes=[64], test_size=64, longest=None)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = predict(detector, image, augment, BoxTestConfig(scales=[1, 0.5], flip=True))
    assert all(x.dtype == torch.float32 for key, x in found.items() if key != "labels")
