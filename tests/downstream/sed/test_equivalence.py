"""Which anchor of an image is compared with which of the image at half the size: networks that are
equivariant by construction, and ones that say what they are told."""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_detectors import SETTINGS, SIZES, losses, make
from torch import Tensor, nn
from torch.nn import functional as F

from downstream.detection.heads.torchvision_heads import Raw
from downstream.sed.anchors import scale_pair
from downstream.sed.consistency import require_equivalent_levels, unlabeled_losses
from ssld.common.errors import InputError


class Averages(nn.Module):
    """A pyramid whose levels are means of the image's pixels: those of level f of an image are by
    construction those of level f - 1 of the mean of its 2 x 2 pixels."""

    def __init__(self, strides: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.strides = strides
        self.register_buffer("mixing", torch.randn(channels, 3, 1, 1))

    def forward(self, maps: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        image, means = maps["0"], OrderedDict()
        for stride in self.strides:
            beyond = (0, -image.shape[3] % stride, 0, -image.shape[2] % stride)
            mean = F.avg_pool2d(F.pad(image, beyond), stride)
            means[str(len(means))] = F.conv2d(mean, self.mixing)
        return means


def equivariant(name: str, **args: Any) -> Any:
    network: Any = make(name, **args)
    network.backbone = nn.Module()
    network.backbone.forward = lambda images: [images]
    network.pyramid = Averages(
        {"retinanet": (8, 16, 32, 64, 128)}.get(name, (4, 8, 16, 32, 64)), 16
    )
    return network


def whole_numbers(size: int = 128) -> Tensor:
    """Images of which means are exact."""
    return torch.randint(
        -8, 9, (2, 3, size, size), generator=torch.Generator().manual_seed(0)
    ).float()


@pytest.mark.parametrize("s", [1, 2])
def test_a_network_that_is_equivariant_loses_nothing(s: int) -> None:
    network, images = equivariant("retinanet"), whole_numbers()
    sizes = torch.tensor([[128, 128], [90, 101]])
    settings = replace(SETTINGS, distill_weight=0.0)
    exact = unlabeled_losses(network, None, images, images, sizes, s=s, settings=settings)
    assert not torch.stack(list(exact.values())).detach().any()
    # An innocent is told from one that is not: by the pyramid, and by anchors of one place more.
    network.pyramid.strides = (8, 16, 32, 64, 64)
    with pytest.raises(ValueError, match="pad the images to a multiple of"):
        unlabeled_losses(network, None, images, images, sizes, s=s, settings=settings)
    other = make("retinanet")
    found = unlabeled_losses(other, None, images, images, sizes, s=s, settings=settings)
    assert all((x > 0.01).all() for x in found.values())


def test_a_network_of_two_stages_that_is_equivariant_loses_nothing() -> None:
    """Its proposals are the whole picture, which lies on a level in both views."""
    network, images = equivariant("faster_rcnn"), whole_numbers()
    head = network.rpn.head.bbox_pred
    head.weight.data.zero_()
    head.bias.data.copy_(torch.tensor([0.0, 0, 4, 4]).repeat(3))
    sizes = torch.tensor([[128, 128], [120, 127]])
    one = {"s": 1, "settings": replace(SETTINGS, distill_weight=0.0)}
    exact = unlabeled_losses(network, None, images, images, sizes, **one)
    assert not torch.stack(list(exact.values())).detach().any()
    # Pictures of at most 111 px would be pooled from the finest level in both.
    smaller = unlabeled_losses(network, None, images, images, sizes // 2, **one)
    assert all((x > 1e-5).all() for x in smaller.values())


class Told:
    """A detector that says what it is told, on levels of stride 8, 16 and 32, an anchor a cell."""

    stride, training = 32, True

    def __init__(self, sides: int = 64) -> None:
        self.said: dict[int, Raw] = {}
        for side in (sides, sides // 2, sides // 4, sides // 8):
            cells = [max(1, side // s) for s in (8, 16, 32)]
            anchors = [
                torch.tensor([[x - 1.0, y - 1, x + 1, y + 1]])
                for n, s in zip(cells, (8, 16, 32), strict=True)
                for y in range(0, n * s, s)
                for x in range(0, n * s, s)
            ]
            generator = torch.Generator().manual_seed(side)
            n = len(anchors)
            raw = torch.randn(2, n, 6, generator=generator)
            logits, offsets = (x.clone().requires_grad_() for x in raw.split([2, 4], 2))
            levels = [k**2 for k in cells]
            self.said[side] = Raw(logits, offsets, torch.cat(anchors), levels, OrderedDict())

    def raw(self, images: Tensor, sizes: Tensor) -> Raw:
        return self.said[images.shape[-1]]


def told(student: Told) -> dict[str, Tensor]:
    return losses(student, replace(SETTINGS, distill_weight=0.0))


def moved(student: Told, side: int, first: int, last: int) -> Tensor:
    """The gradient of the logits and offsets of some anchors of a view."""
    raw = student.said[side]
    assert raw.logits.grad is not None and raw.offsets.grad is not None
    return torch.cat([raw.logits.grad, raw.offsets.grad], 2)[:, first:last]


def test_levels_without_a_partner_give_nothing() -> None:
    student = Told()
    sum(x.sum() for x in told(student).values()).backward()
    assert not moved(student, 64, 0, 64).any()  # the finest one of the image
    assert moved(student, 64, 64, 84)[0].ne(0).all()
    assert moved(student, 32, 0, 20)[0].ne(0).all()
    assert not moved(student, 32, 20, 21).any()  # the coarsest one of the small view


def test_where_no_level_has_a_partner_there_is_nothing() -> None:
    raw = Told().said[64]
    pair = scale_pair(raw, Told().said[32], SIZES, 3)
    assert pair.counted.shape == (2, 0) and pair.second.logits.shape == (2, 0, 2)


def test_padding_does_not_count() -> None:
    """Of the second picture, 50 px high and 37 wide."""
    student, again = Told(), Told()
    expected = told(student)
    for side in (64, 32):
        raw = again.said[side]
        middles = raw.anchors[:, :2] + 1
        beyond = (middles[:, 0] >= 37 * side / 64) | (middles[:, 1] >= 50 * side / 64)
        assert beyond.any()
        raw.logits.data[1, beyond] = 9.0
        raw.offsets.data[1, beyond] = -9.0
    for key, loss in told(again).items():
        assert torch.equal(loss, expected[key])
    again.said[64].logits.data[1, 64] = 9.0  # the first cell of a level with a partner
    assert not torch.equal(told(again)["scale_classes"], expected["scale_classes"])


def test_more_padding_does_not_matter() -> None:
    """With heads that see no neighbours."""
    network, images = equivariant("retinanet"), whole_numbers()
    for module in network.head.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.data
            weight[:] = 3 * weight * (torch.arange(9).view(3, 3) == 4)
    sizes = torch.tensor([[64, 64], [37, 50]])
    settings = replace(SETTINGS, scale_weight=0.0)
    teacher = deepcopy(network)
    for p in teacher.head.parameters():
        p.data.mul_(1.2)

    def found(side: int) -> dict[str, Tensor]:
        part = images[..., :side, :side]
        return unlabeled_losses(network, teacher, part, part, sizes, s=1, settings=settings)

    # Cells of 128 px would see more of the padding.
    network.pyramid.strides = teacher.pyramid.strides = (8, 16, 32, 64, 64)
    for key, loss in found(128).items():
        assert (loss > 1e-3).all()
        torch.testing.assert_close(loss, found(64)[key], msg=key)


def test_padding_that_does_not_halve_is_refused() -> None:
    student, images = make("retinanet"), torch.zeros(2, 3, 64, 96)
    with pytest.raises(ValueError, match=r"images of \(64, 96\) px are not padded to x 64 px"):
        unlabeled_losses(student, student, images, images, SIZES, s=1, settings=SETTINGS)


def test_anchors_that_do_not_double_are_refused() -> None:
    for fine in ((32, 64, 128, 256, 512), (13, 26, 51, 102, 205)):
        require_equivalent_levels(make("faster_rcnn", anchor_sizes=fine))
    require_equivalent_levels(make("detr"))
    with pytest.raises(InputError, match=r"anchor_sizes is \[16, 24, 36, 54, 81\]: .* that double"):
        require_equivalent_levels(make("retinanet", anchor_sizes=(16, 24, 36, 54, 81)))
