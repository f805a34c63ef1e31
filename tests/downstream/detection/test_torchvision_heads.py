"""Faster R-CNN, RetinaNet and FCOS against torchvision's own complete models."""

from __future__ import annotations

import copy
import math
from operator import attrgetter

import pytest
import torch
from overfit import PlainBackbone, overfit, pictures, whole
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision_models import SMALL_ANCHORS, Pyramid, padded_batch, spread

from downstream.detection.heads import torchvision_heads as heads
from downstream.detection.heads.faster_rcnn import FasterRCNN
from downstream.detection.merging import LEAST_SCORE
from ssld.common.errors import InputError

KEYS = ("scores", "labels", "boxes")
KINDS = ["faster_rcnn", "retinanet", "fcos"]
TERMS = {
    "faster_rcnn": {
        "classification": "loss_classifier",
        "boxes": "loss_box_reg",
        "objectness": "loss_objectness",
        "proposals": "loss_rpn_box_reg",
    },
    "retinanet": {"classification": "classification", "boxes": "bbox_regression"},
    "fcos": {
        "classification": "classification",
        "boxes": "bbox_regression",
        "centerness": "bbox_ctrness",
    },
}


def make(kind: str, seed: int = 0, **args) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "faster_rcnn":
        args = {"channels": 64, "head_channels": 128, "rois_per_image": 32, **args}
        return FasterRCNN(PlainBackbone((4, 8, 16, 32)), 3, **args)
    network = heads.RetinaNet if kind == "retinanet" else heads.FCOS
    return network(PlainBackbone((8, 16, 32)), 3, channels=64, **args)


def torchvision_model(kind: str, ours: nn.Module) -> nn.Module:
    """torchvision's own model with its own defaults, the weights of `ours`, nothing resized."""
    common = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "_skip_resize": True}
    if kind == "faster_rcnn":
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

        model = detection.FasterRCNN(
            Pyramid(ours),
            box_head=TwoMLPHead(64 * 49, 128),
            box_predictor=FastRCNNPredictor(128, 4),
            box_batch_size_per_image=32,
            **common,
        )
    elif kind == "retinanet":
        model = detection.RetinaNet(Pyramid(ours), 3, detections_per_img=100, **common)
    else:
        model = detection.FCOS(Pyramid(ours), 3, **common)
    own = {k: v for k, v in ours.state_dict().items() if not k.startswith(("backbone", "pyramid"))}
    model.load_state_dict(own)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_detections_are_torchvisions(kind: str) -> None:
    ours = spread(make(kind))
    theirs = torchvision_model(kind, ours)
    images, sizes, targets = padded_batch()
    cut = [x[:, :h, :w] for x, (h, w) in zip(images, sizes.tolist(), strict=True)]
    shift = int(kind == "faster_rcnn")  # 0 is their background there
    shifted = [{"boxes": t["boxes"], "labels": t["labels"] + shift} for t in targets]

    ours.eval()  # the statistics stay
    theirs.train()
    torch.manual_seed(1)
    expected = theirs(cut, shifted)
    torch.manual_seed(1)
    losses = ours(images, sizes, targets)
    assert losses.keys() == TERMS[kind].keys()
    shared = [p for p in ours.pyramid.parameters()]
    gradients = [
        torch.autograd.grad(sum(terms.values()), shared)
        for terms in ({k: v.mean() for k, v in losses.items()}, expected)
    ]
    torch.testing.assert_close(*gradients)
    for name, theirs_name in TERMS[kind].items():
        assert losses[name].shape == (2,)
        torch.testing.assert_close(losses[name].mean(), expected[theirs_name])

    for name in ("score_thresh", "nms_thresh", "detections_per_img"):
        part = "roi_heads." if kind == "faster_rcnn" else ""
        assert attrgetter(part + name)(ours) == attrgetter(part + name)(theirs)
    theirs.eval().transform.train()  # in which it does not resize
    with torch.no_grad():
        for found, wanted in zip(ours(images, sizes), theirs(cut), strict=True):
            assert len(wanted["labels"]) > 20
            torch.testing.assert_close(found["boxes"], wanted["boxes"])
            torch.testing.assert_close(found["scores"], wanted["scores"])
            assert torch.equal(found["labels"], wanted["labels"] - shift)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_is_sorted_within_the_picture_and_at_most_100(kind: str) -> None:
    network = spread(make(kind, score_threshold=0.0)).train()
    images, sizes, _ = padded_batch()
    for found, (h, w) in zip(network(images, sizes), sizes.tolist(), strict=True):
        assert len(found["labels"]) == len(found["scores"]) == len(found["boxes"]) == 100
        assert (found["scores"].diff() <= 0).all()
        assert found["boxes"].min() >= 0 and found["boxes"].dtype == torch.float32
        assert (found["boxes"] <= torch.tensor([w, h, w, h])).all()
        assert set(found["labels"].tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_without_any_box_losses_and_gradients_are_finite(kind: str, training: bool) -> None:
    network = make(kind).train(training)
    images, sizes, _ = padded_batch()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = network(images, sizes, [empty, empty])
    assert losses.keys() == TERMS[kind].keys()
    torch.stack(list(losses.values())).sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
    assert (losses["boxes"] == 0).all()
    assert ((losses["classification"] > 0) & (losses["classification"] < 100)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_leaves_anchors_losses_and_boxes_in_float32(kind: str) -> None:
    """In bfloat16, anchors beyond 256 px would be multiples of 2 and differ between the two."""
    network = spread(make(kind, anchor_sizes=SMALL_ANCHORS) if kind != "fcos" else make(kind))
    network.eval()
    images, targets = pictures(288, count=1)
    asked = []
    network_anchors = network.rpn if kind == "faster_rcnn" else network
    hook = lambda module, inputs, out: asked.append(out[0])  # noqa: E731
    network_anchors.anchor_generator.register_forward_hook(hook)
    scores = []
    if kind == "faster_rcnn":
        network.rpn.head.register_forward_hook(lambda module, inputs, out: scores.extend(out[0]))
        predictor = network.roi_heads.box_predictor
        predictor.register_forward_hook(lambda module, inputs, out: scores.extend(out))
    torch.manual_seed(0)
    exact = network(images, whole(images), targets)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        losses = network(images, whole(images), targets)
        found = network(images, whole(images))[0]
    assert all(x.dtype == torch.float32 for x in asked)
    assert all(x.dtype == torch.float32 for x in scores)
    assert torch.equal(asked[0], asked[1])
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.isfinite().all() and exact[name].isfinite().all()
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_anchors_lie_on_the_strides_whatever_the_padding() -> None:
    network = make("retinanet")
    images = torch.zeros(1, 3, 96, 160)
    maps = list(heads.pyramid_maps(network, images).values())
    (anchors,) = network.anchor_generator(ImageList(images, [(96, 160)]), maps)
    per_level = anchors.split([9 * x.shape[2] * x.shape[3] for x in maps])
    for level, stride, x in zip(per_level, (8, 16, 32, 64, 128), maps, strict=True):
        centres = (level[:, :2] + level[:, 2:]) / 2
        grid = centres.view(*x.shape[2:], 9, 2)
        assert torch.equal(
            grid[..., 0],
            (torch.arange(x.shape[3]) * stride).expand(x.shape[2], 9, -1).transpose(1, 2),
        )  # noqa: E501
        assert torch.equal(grid[:, 0, 0, 1], torch.arange(x.shape[2]) * float(stride))
    torchvisions = AnchorGenerator(network.anchor_generator.sizes, ((0.5, 1, 2),) * 5)
    (drifted,) = torchvisions(ImageList(images, [(96, 160)]), maps)
    assert not torch.equal(anchors, drifted)  # else torchvision was mended, and Anchors can go


def test_the_first_batch_does_not_decide_the_scales_of_roi_align() -> None:
    """torchvision takes map / picture of the first batch: 40 / 100 is 1/2 to it, and not 1/4."""
    fresh = spread(make("faster_rcnn")).eval()
    used = copy.deepcopy(fresh)
    images, targets = pictures(160, count=1)
    with torch.no_grad():
        used(images, torch.tensor([[100, 100]]))
        for network in (fresh, used):
            network.found = network(images, whole(images))[0]
    assert len(fresh.found["labels"])
    assert torch.equal(fresh.found["boxes"], used.found["boxes"])
    sides = torch.tensor([20.0, 111, 113, 223, 225, 447, 449, 2000])  # px; 224 belongs to stride 16
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    levels = fresh.roi_heads.box_roi_pool.map_levels([boxes])
    assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]  # FPN, equation 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_of_other_strides_is_refused(kind: str) -> None:
    network = {"faster_rcnn": FasterRCNN, "retinanet": heads.RetinaNet, "fcos": heads.FCOS}
    with pytest.raises(InputError, match=r"the backbone has \(16, 32\); open it with"):
        network[kind](PlainBackbone((16, 32)), 3)


def test_anchor_sizes_that_are_not_five_are_refused() -> None:
    with pytest.raises(InputError, match=r"anchor_sizes is \[16, 32\]: give five"):
        make("retinanet", anchor_sizes=(16, 32))


def test_fcos_of_a_width_that_its_norms_cannot_have_is_refused() -> None:
    with pytest.raises(InputError, match="channels of FCOS is 32: give 64"):
        heads.FCOS(PlainBackbone((8, 16, 32)), 3, channels=32)


def test_faster_rcnn_overfits_four_images() -> None:
    network = make("faster_rcnn", anchor_sizes=SMALL_ANCHORS)
    assert overfit(network, size=96, steps=100)[0] > 0.95


def test_retinanet_overfits_four_images() -> None:
    network = make("retinanet", anchor_sizes=SMALL_ANCHORS)
    assert overfit(network, size=128, steps=200, lr=1e-3)[0] > 0.95


def test_fcos_overfits_four_images() -> None:
    assert overfit(make("fcos"), size=96, steps=100)[0] > 0.95


def naive_soft_nms(rows: list[tuple[float, int, list[float]]], sigma: float) -> list[tuple]:
    """Bodla et al. 2017, equation 4 and figure 2, of (score, label, x1 y1 x2 y2)."""

    def overlap(a: list[float], b: list[float]) -> float:
        width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
        both = max(0.0, width) * max(0.0, height)
        areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
        return both / (sum(areas) - both) if both else 0.0

    left, kept = list(rows), []
    while left and len(kept) < heads.MAX_DETECTIONS:
        best = left.pop(max(range(len(left)), key=lambda i: left[i][0]))
        kept.append(best)
        _, label, box = best
        left = [
            (s * (math.exp(-(overlap(box, x) ** 2) / sigma) if k == label else 1), k, x)
            for s, k, x in left
        ]
    return kept


def test_soft_nms_takes_the_place_of_nms() -> None:
    ours = spread(make("retinanet", soft_nms_sigma=0.3)).eval()
    images, sizes, _ = padded_batch()
    every = copy.deepcopy(ours)
    every.soft_nms_sigma = None  # of which nothing is suppressed
    with torch.no_grad():
        scores = torch.stack([x["scores"][150] for x in every(images, sizes)])
        ours.score_threshold = every.score_threshold = float(scores.min())
        soft, boxes = ours(images, sizes), every(images, sizes)
    for found, plain in zip(soft, boxes, strict=True):
        rows = list(zip(*(plain[key].double().tolist() for key in KEYS), strict=True))
        expected = [row for row in naive_soft_nms(rows, 0.3) if row[0] >= LEAST_SCORE]
        assert len(rows) > 100 >= len(expected) == len(found["scores"]) > 50
        for key, values in zip(KEYS, zip(*expected, strict=True), strict=True):
            assert torch.allclose(found[key].double(), torch.tensor(values).double()), key
            assert found[key].dtype == plain[key].dtype
    with pytest.raises(InputError, match="soft_nms_sigma is 0"):
        make("retinanet", soft_nms_sigma=0)
