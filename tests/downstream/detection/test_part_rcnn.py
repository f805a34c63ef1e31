"""Keypoint and Mask R-CNN against torchvision's own complete models, hand-made cases and loops."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from overfit import PlainBackbone, masks_iou, oks, overfit, triangles, whole
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import roi_heads
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision_models import SMALL_ANCHORS, Pyramid, padded_batch, spread

from downstream.dense.outlines import decode
from downstream.detection.heads.part_rcnn import KeypointRCNN, MaskRCNN, PartRCNN, masks_in_boxes
from downstream.detection.pasting import paste

KINDS = ["keypoints", "masks"]
BOX_TERMS = {"classification": "loss_classifier", "boxes": "loss_box_reg",
             "objectness": "loss_objectness", "proposals": "loss_rpn_box_reg"}  # fmt: skip


def make(kind: str, **args) -> PartRCNN:
    torch.manual_seed(0)
    common = {"channels": 64, "head_channels": 128, "rois_per_image": 32, **args}
    backbone = PlainBackbone((4, 8, 16, 32))
    if kind == "keypoints":
        return KeypointRCNN(backbone, 3, 3, keypoint_channels=[32, 24], **common)
    return MaskRCNN(backbone, 3, mask_channels=[32, 24], **common)


def batch() -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """`padded_batch` with three keypoints, one of them invisible, and round masks in each box."""
    images, sizes, targets = padded_batch()
    for target, (height, width) in zip(targets, sizes.tolist(), strict=True):
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        share = torch.tensor([0.2, 0.5, 0.9])
        x, y = x1[:, None] + share * (x2 - x1)[:, None], y1[:, None] + share * (y2 - y1)[:, None]
        seen = torch.tensor([2.0, 0.0, 1.0]).expand_as(x)
        target["keypoints"] = torch.stack([x, y, seen], dim=2)
        rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
        target["masks"] = torch.stack(
            [
                ((2 * columns - a - c) / (c - a)) ** 2 + ((2 * rows - b - d) / (d - b)) ** 2 <= 1
                for a, b, c, d in target["boxes"].tolist()
            ]
        ).to(torch.uint8)
    return images, sizes, targets


def torchvision_model(kind: str, ours: PartRCNN) -> nn.Module:
    """torchvision's own model with its own defaults, the weights of `ours`, nothing resized."""
    common = {"box_head": TwoMLPHead(64 * 49, 128), "box_predictor": FastRCNNPredictor(128, 4),
              "box_batch_size_per_image": 32, "image_mean": [0.0] * 3, "image_std": [1.0] * 3,
              "_skip_resize": True}  # fmt: skip
    if kind == "keypoints":
        head, predictor = KeypointRCNNHeads(64, (32, 24)), "keypoint"
        common["keypoint_predictor"] = detection.keypoint_rcnn.KeypointRCNNPredictor(24, 3)
        model = detection.KeypointRCNN(Pyramid(ours), keypoint_head=head, **common)
    else:
        head, predictor = MaskRCNNHeads(64, (32, 24), 1), "mask"
        common["mask_predictor"] = MaskRCNNPredictor(24, 24, 4)
        model = detection.MaskRCNN(Pyramid(ours), mask_head=head, **common)
    weights = {}
    for name, weight in ours.state_dict().items():
        if not name.startswith(("backbone", "pyramid")):
            if "mask_fcn_logits" in name:  # a mask of the background, which nothing learns
                weight = torch.cat([torch.zeros_like(weight[:1]), weight])
            weights[name.replace("part_", f"roi_heads.{predictor}_")] = weight
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_losses_gradients_and_what_is_found_are_torchvisions(kind: str, monkeypatch) -> None:
    """With masks that are sampled where their cells are, which is the difference to torchvision."""
    aligned = functools.partial(roi_heads.roi_align, aligned=True)
    monkeypatch.setattr(roi_heads, "roi_align", aligned)
    ours = spread(make(kind))
    theirs = torchvision_model(kind, ours)
    images, sizes, targets = batch()
    cut = [x[:, :h, :w] for x, (h, w) in zip(images, sizes.tolist(), strict=True)]
    ours.eval()  # the statistics stay
    theirs.train()
    torch.manual_seed(1)
    expected = theirs(cut, [{**t, "labels": t["labels"] + 1} for t in targets])
    torch.manual_seed(1)
    losses = ours(images, sizes, targets)
    terms = {**BOX_TERMS, kind: f"loss_{kind.removesuffix('s')}"}
    assert losses.keys() == terms.keys()
    for name, theirs_name in terms.items():
        assert losses[name].shape == (2,) and losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name].mean(), expected[theirs_name])
    learned = list(ours.pyramid.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(sum(x.mean() for x in losses.values()), learned),
        torch.autograd.grad(sum(expected.values()), learned),
    )

    theirs.eval().transform.train()  # in which it does not resize
    with torch.no_grad():
        for found, wanted in zip(ours(images, sizes), theirs(cut), strict=True):
            assert len(wanted["labels"]) > 20
            torch.testing.assert_close(found["boxes"], wanted["boxes"])
            if kind == "masks":
                torch.testing.assert_close(found["masks"], wanted["masks"][:, 0])
                continue
            torch.testing.assert_close(found["keypoints"][..., :2], wanted["keypoints"][..., :2])
            assert ((found["keypoints"][..., 2] > 0) & (found["keypoints"][..., 2] <= 1)).all()


def test_each_images_keypoint_loss_against_a_loop() -> None:
    network = make("keypoints").eval()
    images, sizes, targets = batch()
    targets[1]["keypoints"][0, :, 2] = 0
    seen = []
    network.part_predictor.register_forward_hook(lambda module, inputs, out: seen.append(out))
    find = network.roi_heads.losses
    network.roi_heads.losses = lambda *args: seen.append(find(*args)) or seen[-1]  # type: ignore
    losses = network(images, sizes, targets)["keypoints"].tolist()
    (_, learned), logits = seen
    rows, sums, count = iter(logits.double()), [0.0, 0.0], 0
    for i, target in enumerate(targets):
        for box, number in zip(learned.boxes[i].tolist(), learned.objects[i].tolist(), strict=True):
            maps = next(rows)
            for k, (x, y, visible) in enumerate(target["keypoints"][number].tolist()):
                column = math.floor((x - box[0]) / (box[2] - box[0]) * 56)
                row = math.floor((y - box[1]) / (box[3] - box[1]) * 56)
                if visible and 0 <= row < 56 and 0 <= column < 56:
                    sums[i] -= maps[k].flatten().log_softmax(0)[row * 56 + column].item()
                    count += 1
    assert count > 10 and next(rows, None) is None
    assert losses == pytest.approx([2 * x / count for x in sums], rel=1e-5)


def test_masks_are_learned_at_the_places_of_their_cells() -> None:
    """In a box of 56 px a cell is the mean of 2 x 2 of them."""
    masks = (torch.rand(3, 70, 80, generator=torch.Generator().manual_seed(0)) > 0.5).byte()
    boxes = torch.tensor([[5.0, 9, 61, 65], [0, 0, 56, 56]])
    wanted = masks_in_boxes(masks, torch.tensor([2, 0]), boxes, 28)
    for found, (x, y), number in zip(wanted, ((5, 9), (0, 0)), (2, 0), strict=True):
        inside = masks[number, y : y + 56, x : x + 56].double()
        expected = inside.view(28, 2, 28, 2).mean((1, 3))
        torch.testing.assert_close(found.double(), expected)


def test_masks_come_back_to_their_place() -> None:
    """What a perfect network would say, pasted: as large, and not half a pixel off, which is what
    torchvision's sampling and ours differ by."""
    _, (target, *_) = triangles(160)
    boxes, masks = target["boxes"] + torch.tensor([-3.3, -1.8, 2.4, 4.1]), target["masks"]
    wanted = masks_in_boxes(masks, torch.arange(len(masks)), boxes, 28)
    for run, mask in zip(paste(wanted, boxes, (160, 160)), masks, strict=True):
        pasted = torch.from_numpy(decode([run])[0]).bool()
        assert (pasted & mask.bool()).sum() / (pasted | mask.bool()).sum() > 0.95
        centres = [x.nonzero().double().mean(0) for x in (pasted, mask)]
        assert (centres[0] - centres[1]).abs().max() < 0.2


def test_masks_take_a_byte_per_pixel_but_for_those_that_are_learned() -> None:
    masks = torch.zeros(200, 64, 64, dtype=torch.uint8)
    asked = []
    real = torch.Tensor.to
    try:
        torch.Tensor.to = lambda self, *a, **k: asked.append(self.shape) or real(self, *a, **k)  # type: ignore
        masks_in_boxes(masks, torch.tensor([7, 7, 3]), torch.tensor([[0.0, 0, 9, 9]] * 3), 28)
    finally:
        torch.Tensor.to = real
    assert max(shape.numel() for shape in asked) == 2 * 64 * 64


def one(box: list[float]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor([box]), "scores": torch.ones(1), "labels": torch.tensor([0])}


@pytest.mark.parametrize("side", [56, 40, 91.5, 0.5])
def test_a_keypoint_comes_back_to_its_place(side: float) -> None:
    """To the pixel where a cell is one, else to its cell; and in a mirror to the mirrored place."""
    network, generator = make("keypoints"), torch.Generator().manual_seed(0)
    x1, y1 = 12.0, 7.0
    box = [x1, y1, x1 + side, y1 + side]
    places = torch.rand(1, 3, 2, generator=generator) * side + torch.tensor([x1, y1])
    if side == 56:
        places = places.floor() + 0.5
    cells, valid = roi_heads.keypoints_to_heatmap(
        torch.cat([places, torch.full((1, 3, 1), 2.0)], dim=2), torch.tensor([box]), 56
    )
    assert valid.all()
    maps = torch.zeros(1, 3, 56 * 56).scatter(2, cells[..., None], 8.0).view(1, 3, 56, 56)
    found = network.finish(one(box), maps)["keypoints"]
    off = (found[..., :2] - places).abs().max()
    assert off == 0 if side == 56 else off <= 0.5 * max(side / 56, 1) + 0.5
    score = math.exp(8) / (math.exp(8) + 56 * 56 - 1)
    torch.testing.assert_close(found[..., 2], torch.full((1, 3), score))
    width = 200.0
    mirrored = network.finish(one([width - box[2], y1, width - x1, box[3]]), maps.flip(3))
    if side >= 1:
        torch.testing.assert_close(width - mirrored["keypoints"][..., 0], found[..., 0])


def test_finishing_depends_on_probabilities_alone() -> None:
    """Of logits, of log-probabilities, of those with a probability of 0."""
    network = make("keypoints")
    logits = 5 * torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    found = {"boxes": torch.tensor([[3.0, 4, 50, 90], [10, 10, 20, 20]])}
    expected = network.finish(found, logits)["keypoints"]
    log = logits.flatten(2).log_softmax(2).view_as(logits)
    torch.testing.assert_close(network.finish(found, log)["keypoints"], expected)
    torch.testing.assert_close(network.finish(found, logits + 30)["keypoints"], expected)
    best = logits.flatten(2).softmax(2).amax(2)
    torch.testing.assert_close(expected[..., 2], best)
    never = log.clone()
    never[log < -12] = -torch.inf
    finished = network.finish(found, never)["keypoints"]
    assert finished.isfinite().all() and (finished[..., 2] - best).abs().max() < 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_boxes_that_are_given_are_those_of_the_boxes_that_are_found(kind: str) -> None:
    network = spread(make(kind)).eval()
    images, sizes, _ = batch()
    with torch.no_grad():
        found = network(images, sizes)
        bare = [{key: x for key, x in one.items() if key != kind} for one in found]
        parts = network.parts(images, sizes, bare)
        assert len(found[0]["labels"]) != len(found[1]["labels"]) or len(found[0]["labels"]) == 100
        for given, logits, whole_one in zip(bare, parts, found, strict=True):
            shape = (3, 56, 56) if kind == "keypoints" else (28, 28)
            assert logits.shape == (len(given["boxes"]), *shape) and logits.dtype == torch.float32
            finished = network.finish(given, logits)
            assert finished.keys() == whole_one.keys() and kind not in given
            torch.testing.assert_close(finished[kind], whole_one[kind])
        none = [{key: x[:0] for key, x in one.items()} for one in bare]
        for given, logits in zip(none, network.parts(images, sizes, none), strict=True):
            assert len(network.finish(given, logits)[kind]) == 0


@pytest.mark.parametrize("case", ["no object", "one without", "no proposal", "unseen"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_count_has_no_loss_and_no_gradient(kind: str, case: str) -> None:
    network = make(kind).train()
    images, sizes, targets = batch()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    if case == "unseen":
        for target in targets:
            target["keypoints"][..., 2] = 0
    elif case == "one without":
        targets[1] = empty
    else:
        targets = [empty, empty]
    if case == "no proposal":
        network.rpn.post_nms_top_n = lambda: 0  # type: ignore[method-assign]
        assert {len(x) for x in network.eval()(images, sizes)[0].values()} == {0}
    losses = network.train()(images, sizes, targets)
    torch.stack(list(losses.values())).sum().backward()
    assert all(x.isfinite().all() for x in losses.values())
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert all(x is not None and x.isfinite().all() for x in gradients.values())
    learned = any(x.any() for name, x in gradients.items() if name.startswith("part_"))
    assert losses[kind][1] == 0 or case == "unseen"
    if case == "one without":
        assert losses["boxes"][1] == losses["proposals"][1] == 0 < losses["classification"][1]
        assert losses[kind][0] > 0 and learned
    elif case == "unseen":
        assert learned == (losses[kind] > 0).all() == (kind == "masks")
    else:
        assert not learned and not losses[kind].any() and not losses["boxes"].any()
        assert losses["classification"].any() == (case == "no object")


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_leaves_losses_and_what_is_found_in_float32(kind: str) -> None:
    network = spread(make(kind)).eval()
    images, sizes, targets = batch()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        losses, found = network(images, sizes, targets), network(images, sizes)
        parts = network.parts(images, sizes, found)
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in losses.values())
    assert {x.dtype for x in (*parts, found[0][kind])} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_four_images_are_overfitted(kind: str) -> None:
    network = make(
        kind, anchor_sizes=SMALL_ANCHORS, channels=32, head_channels=64, rois_per_image=16
    )
    similarity = oks if kind == "keypoints" else masks_iou
    assert overfit(network, size=64, steps=100, similarity=similarity)[0] > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_worth_one_with_twice_the_batch(kind: str, monkeypatch) -> None:
    """What counts in the other one divides, too, in training."""
    network = make(kind).eval()
    images, targets = triangles(96, count=2)
    network.roi_heads.fg_bg_sampler = Alternating()  # the same ones, whatever was drawn before
    alone = network(images, whole(images), targets)[kind]
    counts = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    sum_up = lambda x: counts.append(x.item()) or x.add_(10)  # noqa: E731
    monkeypatch.setattr(torch.distributed, "all_reduce", sum_up)
    assert torch.equal(network(images, whole(images), targets)[kind], alone)
    network.training = True  # that of its layers, and so their statistics, stay
    shared = network(images, whole(images), targets)[kind]
    (own,) = counts
    torch.testing.assert_close(shared, alone * own / ((own + 10) / 2))


class Alternating:
    """In place of torchvision's sampler: every other proposal, and no draw."""

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        taken = [torch.arange(len(x)) % 2 == 0 for x in labels]
        pairs = list(zip(labels, taken, strict=True))
        return [(x > 0) & t for x, t in pairs], [(x == 0) & t for x, t in pairs]
