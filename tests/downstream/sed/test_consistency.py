"""The losses on unlabeled images of whole detectors."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from naive_losses import Said, naive_pair
from small_detectors import ARGS, SETTINGS, SIZES, TERMS, losses, make, views
from torch import Tensor
from torch.nn import functional as F

from downstream.detection.heads.torchvision_heads import Raw
from downstream.sed.config import ConsistencyConfig
from downstream.sed.consistency import unlabeled_losses

NAMES = pytest.mark.parametrize("name", ARGS)


@NAMES
def test_every_part_learns_from_four_losses_of_each_image(name: str) -> None:
    student, teacher = make(name).train(), make(name)
    found = losses(student, teacher=teacher)
    assert tuple(found) == TERMS
    assert all(x.shape == (2,) and x.dtype == torch.float32 for x in found.values())
    assert all((x > 0).all() and x.isfinite().all() for x in found.values())
    torch.stack(list(found.values())).mean(1).sum().backward()
    idle = [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle and all(p.grad is None for p in teacher.parameters())


@NAMES
def test_views_that_are_the_same_distill_nothing(name: str) -> None:
    student = make(name)
    found = losses(student, replace(SETTINGS, scale_weight=0.0), deepcopy(student), views())
    assert tuple(found) == TERMS[2:]
    assert not torch.stack(list(found.values())).detach().any()
    sum(x.sum() for x in found.values()).backward()
    gradients = [p.grad.abs().max() for p in student.parameters() if p.grad is not None]
    assert gradients and not any(gradients)


@NAMES
def test_a_loss_of_no_weight_takes_no_pass(name: str) -> None:
    student, teacher, calls = make(name), make(name), []
    for network in (student, teacher):
        network.backbone.register_forward_hook(lambda *_, n=network: calls.append(n))
    both = losses(student, teacher=teacher)
    assert [x is teacher for x in calls] == [False, False, True]
    calls.clear()
    alone = losses(student, replace(SETTINGS, distill_weight=0.0, scale_weight=3.0), teacher)
    assert tuple(alone) == TERMS[:2] and len(calls) == 2 and teacher not in calls
    if name != "faster_rcnn":  # whose second stage then looks at the proposals of fewer views
        for key, loss in alone.items():
            torch.testing.assert_close(loss, 3 * both[key])


@NAMES
def test_two_processes_have_the_losses_of_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = make(name), make(name)
    student.training = True  # its parts do not draw, and normalise each image by itself
    for p in teacher.parameters():
        p.data.mul_(1.01)

    @torch.no_grad()
    def of(part: slice) -> dict[str, Tensor]:
        seen = views(1)[part], views()[part], SIZES[part]
        return unlabeled_losses(student, teacher, *seen, s=1, settings=SETTINGS)

    expected, counts, found = of(slice(None)), [], []
    halves = (slice(0, 1), slice(1, 2))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for mine, other in (halves, halves[::-1]):
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: counts.append(x.clone()))
        of(other)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.add_(counts.pop(0)))
        found.append(of(mine))
        assert not counts
    for key, loss in expected.items():
        torch.testing.assert_close(torch.cat([x[key] for x in found]), loss, rtol=1e-3, atol=1e-6)


@NAMES
def test_losses_are_of_full_precision_under_autocast(name: str) -> None:
    student = make(name)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(student, teacher=make(name))
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in found.values())


def asked(bins: int | None, squared: bool) -> dict[str, Any]:
    bins_or_default = {"reweight": bins is not None, "bins": bins or ConsistencyConfig.bins}
    return {**bins_or_default, "box_distance": "squared" if squared else "norm"}


def said(raw: Raw, image: int, level: int, row: int, column: int, anchor: int, width: int) -> Said:
    at = sum(raw.levels[:level]) + (row * width + column) * 9 + anchor
    return raw.logits[image, at].tolist(), [raw.offsets[image, at].tolist()]


@pytest.mark.parametrize(("bins", "squared"), [(None, False), (10, True)])
def test_one_stage_is_what_a_loop_over_levels_cells_and_anchors_finds(
    bins: int | None, squared: bool
) -> None:
    student, teacher, weak, strong = make("retinanet"), make("retinanet"), views(1), views()
    for p in teacher.parameters():
        p.data.mul_(1.01)
    weights = {"scale_weight": 2.0, "distill_weight": 0.5}
    settings = replace(SETTINGS, **weights, **asked(bins, squared))
    found = losses(student, settings, teacher)
    with torch.no_grad():
        large, small, taught = (
            net.raw(x, SIZES)
            for net, x in ((student, strong), (student, F.avg_pool2d(strong, 2)), (teacher, weak))
        )
    scale, distilled = [], []
    for image, (h, w) in enumerate(SIZES.tolist()):
        for level, stride in enumerate((8, 16, 32, 64, 128)):
            for row in range(-(-h // stride)):  # cells that begin in the picture
                for column in range(-(-w // stride)):
                    for anchor in range(9):
                        place = (row, column, anchor, -(-64 // stride))
                        here = said(large, image, level, *place)
                        distilled.append((said(taught, image, level, *place), here))
                        if level:
                            scale.append((here, said(small, image, level - 1, *place)))
    expected = naive_pair(scale, None, both_ways=True, bins=bins, squared=squared)
    expected += naive_pair(distilled, None, both_ways=False, bins=bins, squared=squared)
    for name, value, weight in zip(TERMS, expected, (2, 2, 0.5, 0.5), strict=True):
        assert found[name].mean().item() == pytest.approx(weight * value, rel=2e-3), name


@pytest.mark.parametrize(("bins", "squared"), [(None, True), (10, False)])
def test_the_second_stage_is_what_a_loop_over_proposals_finds(
    bins: int | None, squared: bool
) -> None:
    student, teacher = make("faster_rcnn"), make("faster_rcnn")
    for p in teacher.parameters():
        p.data.mul_(1.01)
    settings = replace(SETTINGS, **asked(bins, squared))
    with torch.no_grad():
        found = losses(student, settings, teacher)
        large, taught = student.raw(views(), SIZES), teacher.raw(views(1), SIZES)
        small = student.raw(F.avg_pool2d(views(), 2), SIZES / 2)
        own, theirs = student.propose(large, SIZES), teacher.propose(taught, SIZES)
        shrunk = student.propose(small, SIZES / 2)
        first, second = (
            dict(zip(TERMS, _first_stage(large, small, taught, bins, squared), strict=True)),
            dict.fromkeys(TERMS, 0.0),
        )
        scale, distilled = [], []
        for image in range(2):
            one = lambda raw, i=image: {k: x[i : i + 1] for k, x in raw.maps.items()}  # noqa: E731
            for box in [*own[image][:40], *(shrunk[image][:40] * 2)]:
                pair = _say(student, one(large), box), _say(student, one(small), box / 2)
                scale.append(pair)
            for box in [*own[image][:40], *theirs[image][:40]]:
                distilled.append((_say(teacher, one(taught), box), _say(student, one(large), box)))
    assert len(scale) > 100 and len(distilled) > 100
    values = naive_pair(scale, 0, both_ways=True, bins=bins, squared=squared)
    values += naive_pair(distilled, 0, both_ways=False, bins=bins, squared=squared)
    second = dict(zip(TERMS, values, strict=True))
    for name in TERMS:
        expected = first[name] + second[name]
        assert found[name].mean().item() == pytest.approx(expected, rel=2e-3), name


def _say(network: Any, maps: Any, box: Tensor) -> Said:
    logits, offsets = network.refine(maps, [box.unsqueeze(0)])
    return logits[0].tolist(), offsets[0].tolist()


def _first_stage(
    large: Raw, small: Raw, taught: Raw, bins: int | None, squared: bool
) -> list[float]:
    """Of the RPN, whose anchors and levels are tested above."""
    start, end = large.levels[0], sum(large.levels[1:])
    x, y = large.anchors[:, 0::2].mean(1), large.anchors[:, 1::2].mean(1)
    scale, distilled = [], []
    for i, (h, w) in enumerate(SIZES.tolist()):
        for at in torch.where((x < w) & (y < h))[0].tolist():
            one = lambda raw, k, i=i: (raw.logits[i, k].tolist(), [raw.offsets[i, k].tolist()])  # noqa: E731
            distilled.append((one(taught, at), one(large, at)))
            if start <= at < start + end:
                scale.append((one(large, at), one(small, at - start)))
    return [
        *naive_pair(scale, None, both_ways=True, bins=bins, squared=squared),
        *naive_pair(distilled, None, both_ways=False, bins=bins, squared=squared),
    ]


def without_proposals(network: Any, images: list[int]) -> Any:
    propose: Callable[..., list[Tensor]] = network.propose
    network.propose = lambda raw, sizes: [
        x[:0] if i in images else x for i, x in enumerate(propose(raw, sizes))
    ]
    return network


def test_images_without_proposals_stop_nothing() -> None:
    for images in ([1], [0, 1]):
        student, teacher = (without_proposals(make("faster_rcnn"), images) for _ in range(2))
        found = losses(student.train(), teacher=teacher)
        assert all(x.isfinite().all() for x in found.values())
        sum(x.sum() for x in found.values()).backward()
        # Else the processes would wait for each other's gradients.
        gradients = [p.grad for p in student.roi_heads.parameters()]
        assert all(x is not None and x.isfinite().all() for x in gradients)
        assert all(x is None or not x.any() for x in gradients) == (len(images) == 2)


def test_no_more_proposals_are_looked_at_than_asked() -> None:
    network, asked = make("faster_rcnn"), []
    refine = network.refine
    network.refine = lambda maps, boxes: (
        asked.append([len(x) for x in boxes]) or refine(maps, boxes)
    )
    losses(network, replace(SETTINGS, proposals=3))
    # Of all three views, of the strong and the small one, of the strong and the weak one.
    assert asked == [[9, 9], [6, 6], [6, 6]]


def test_hard_labels_are_another_loss_of_the_classes_alone() -> None:
    student, teacher = make("retinanet"), make("retinanet")
    soft, hard = (losses(student, replace(SETTINGS, soft=x), teacher) for x in (True, False))
    assert (hard["distill_classes"] > soft["distill_classes"]).all()
    assert all(torch.equal(soft[key], hard[key]) for key in TERMS if key != "distill_classes")
