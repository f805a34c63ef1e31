"""What an evaluation of masks counts, against scikit-learn and over two processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, jaccard_score

import downstream.segmentation.confusion
from downstream.segmentation.confusion import Confusion, class_iou, scores
from ssld.common.errors import InputError


def draw(count=7, classes=6, seed=0, absent=()) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Masks with pixels that do not count, and predictions that are right on half of them."""
    rng = np.random.default_rng(seed)
    present = [c for c in range(classes) if c not in absent]
    masks, found = [], []
    for i in range(count):
        size = (11 + i, 23 - i)
        mask = rng.choice(present, size).astype(np.uint8)
        prediction = np.where(rng.random(size) < 0.5, mask, rng.choice(present, size))
        mask[rng.random(size) < 0.2] = 255
        masks.append(torch.tensor(mask))
        found.append(torch.tensor(prediction, dtype=torch.int64))
    return masks, found


def counted(masks, found, classes=6, numbers=None) -> Confusion:
    confusion = Confusion(classes)
    for number, mask, prediction in zip(numbers or range(len(masks)), masks, found, strict=True):
        confusion.add(number, mask, prediction)
    return confusion


def pixels(masks, found) -> tuple[np.ndarray, np.ndarray]:
    valid = [mask != 255 for mask in masks]
    return (
        torch.cat([m[v] for m, v in zip(masks, valid, strict=True)]).numpy(),
        torch.cat([p[v] for p, v in zip(found, valid, strict=True)]).numpy(),
    )


@pytest.mark.parametrize("absent", [(), (2,), (0, 5)])
def test_every_metric_is_scikit_learns(absent):
    masks, found = draw(absent=absent)
    confusion = counted(masks, found)
    truth, guess = pixels(masks, found)
    present = [c for c in range(6) if c not in absent]
    iou = jaccard_score(truth, guess, labels=present, average=None)
    assert confusion.metrics() == pytest.approx(
        {
            "miou": iou.mean(),
            "pixel_accuracy": accuracy_score(truth, guess),
            "mean_accuracy": balanced_accuracy_score(truth, guess),
            "images": 7,
        },
        rel=1e-12,
    )
    by_class = class_iou(confusion.total)
    np.testing.assert_allclose(by_class[present], iou)
    assert np.isnan(by_class[list(absent)]).all()
    assert np.array_equal(confusion.total, confusion_matrix(truth, guess, labels=range(6)))


def test_per_image_matrices_are_scikit_learns():
    masks, found = draw()
    confusion = counted(masks, found)
    assert confusion.images.tolist() == list(range(7))
    assert confusion.per_image.dtype == np.int64
    for matrix, mask, prediction in zip(confusion.per_image, masks, found, strict=True):
        wanted = confusion_matrix(*pixels([mask], [prediction]), labels=range(6))
        assert np.array_equal(matrix, wanted)
    resampled = confusion.per_image[[1, 1, 4]].sum(0)
    wanted = jaccard_score(*pixels(*([x[i] for i in (1, 1, 4)] for x in (masks, found))),
                           average="macro")  # fmt: skip
    assert scores(resampled)["miou"] == pytest.approx(wanted, rel=1e-12)


def test_a_class_that_is_only_predicted_counts_with_zero():
    mask = torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8)
    guess = torch.tensor([[0, 2, 1, 1]])
    found = counted([mask], [guess], classes=5).metrics()
    assert found["miou"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found["mean_accuracy"] == pytest.approx((1 / 2 + 1) / 2)  # class 2 has no truth


def test_what_is_predicted_where_nothing_counts_changes_nothing():
    masks, found = draw()
    before = counted(masks, found)
    changed = [
        torch.where(mask == 255, (p + 1) % 6, p) for mask, p in zip(masks, found, strict=True)
    ]
    assert any(not torch.equal(a, b) for a, b in zip(changed, found, strict=True))
    assert np.array_equal(counted(masks, changed).per_image, before.per_image)


def test_without_a_pixel_there_is_no_metric():
    assert Confusion(3).metrics() == {}
    empty = torch.full((2, 2), 255, dtype=torch.uint8)
    confusion = counted([empty], [torch.zeros(2, 2, dtype=torch.int64)], classes=3)
    assert confusion.metrics() == {} and confusion.per_image.shape == (1, 3, 3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_masks_of_both_types_count_alike(dtype):
    masks, found = draw(2)
    other = counted([m.to(dtype) for m in masks], [p.to(dtype) for p in found])
    assert np.array_equal(other.total, counted(masks, found).total)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(InputError, match=r"mask of image 3 has \(4, 5\).*image \(5, 4\)"):
        Confusion(2).add(3, torch.zeros(4, 5).byte(), torch.zeros(5, 4).long())


@pytest.mark.parametrize(("what", "number"), [("mask", 6), ("mask", 254), ("prediction", 6)])
def test_a_class_that_is_none_is_refused(what, number):
    masks, found = draw(1)
    masks[0][0, 0] = 0
    (masks if what == "mask" else found)[0][0, 0] = number
    with pytest.raises(InputError, match=f"{what} of image 0 has the class {number}, .* 0 to 5"):
        counted(masks, found)


def test_no_image_is_counted_twice():
    masks, found = draw(2)
    with pytest.raises(AssertionError, match="image 1 is counted twice"):
        counted(masks, found, numbers=[1, 1])


class Pair:
    """As an Accelerator of two processes."""

    num_processes = 2


@pytest.mark.parametrize("short", [False, True])
def test_two_processes_are_one_to_the_last_digit(monkeypatch, short):
    masks, found = draw()
    whole = counted(masks, found)
    assert whole.reduce(Accelerator(cpu=True), short) == (not short)
    sent = []

    def gather(parts):
        sent.extend(parts)
        return list(sent)

    monkeypatch.setattr(downstream.segmentation.confusion, "gather_object", gather)
    numbers = [[0, 2, 4, 6], [1, 3, 5]]
    first, second = (
        counted([masks[i] for i in part], [found[i] for i in part], numbers=part)
        for part in numbers
    )
    second.reduce(Pair(), short)  # only this process was cut short, or none was
    assert first.reduce(Pair(), False) == (not short)
    assert first.metrics() == whole.metrics()
    assert first.images.tolist() == whole.images.tolist()
    assert np.array_equal(first.per_image, whole.per_image)
    assert np.array_equal(first.total, whole.total)


def test_an_image_of_two_processes_is_refused(monkeypatch):
    masks, found = draw(1)
    confusion = counted(masks, found)
    monkeypatch.setattr(
        downstream.segmentation.confusion, "gather_object", lambda parts: parts + parts
    )
    with pytest.raises(AssertionError, match="counted twice"):
        confusion.reduce(Pair(), False)
