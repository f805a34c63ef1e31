"""What a step of `ssld sed` sees: two views of one geometry, and which images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import boxes, make_scenes

from downstream.detection.config import BoxAugmentConfig
from downstream.detection.data.boxes import open_boxes
from downstream.detection.data.geometry import MEAN_COLOUR
from downstream.detection.data.transforms import TrainBoxView
from downstream.sed.batches import LabeledAndUnlabeled, SedBatches
from downstream.sed.config import StrongConfig
from downstream.sed.views import UnlabeledView
from ssld.data.source import Source
from ssld.data.sources import open_source

AUGMENT = BoxAugmentConfig(sizes=[48, 64, 80], test_size=64, longest=None)
OFF = StrongConfig(jitter=0, grey=0, blur=0, erasings=0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes"), train=6, val=1)


@pytest.fixture(scope="module")
def source(scenes) -> Source:
    return open_source(str(scenes / "images/train"))


def views(source, strong: StrongConfig, numbers: Iterable[int] = range(12), seed: int = 0):
    make = UnlabeledView(AUGMENT, strong, seed)
    return [make(source, i % len(source), i, 0) for i in numbers]


def test_a_strong_view_without_anything_is_the_weak_one_and_that_is_a_labeled_image_s(
    scenes, source
) -> None:
    labeled = open_boxes(boxes(scenes, "train"))
    for i, (weak, strong) in enumerate(views(source, OFF)):
        assert torch.equal(weak, strong)
        view, _ = TrainBoxView(AUGMENT, 0)(labeled, i % 6, i, 0)
        assert torch.equal(weak, view)


def test_views_follow_from_seed_image_and_number_alone(source) -> None:
    known = views(source, StrongConfig())
    again = views(source, StrongConfig(), reversed(range(12)))[::-1]
    other = views(source, StrongConfig(), seed=1)
    for one, two in zip(known, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(known, other, strict=True))
    sizes = {tuple(weak.shape) for weak, _ in known}
    assert len(sizes) > 2 and all(weak.shape == strong.shape for weak, strong in known)


def red_corner(folder: Path) -> Source:
    """A black image whose left upper quarter is red."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32, :32, 0] = 200
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "one.png")
    return open_source(str(folder))


@pytest.mark.parametrize("name", ["jitter", "grey", "blur"])
def test_colour_moves_nothing(name, tmp_path) -> None:
    """Where the weak view is lighter, the strong one is; of jitter, whatever hue it has."""
    source = red_corner(tmp_path / name)
    for weak, strong in views(source, replace(OFF, **{name: 1.0}), range(4)):
        assert not torch.equal(weak, strong)
        lit, now = (x.float().amax(2) for x in (weak, strong))
        inside = now[lit > 150].mean()
        assert inside > 1.5 * now[lit < 50].mean() + 10
        if name == "grey":
            assert (strong[..., :1] == strong).all()


@pytest.mark.parametrize("erasings", [1, 2, 3])
def test_an_erasing_is_a_rectangle_of_noise_of_its_area_and_shape(erasings, source) -> None:
    seen = 0
    for weak, strong in views(source, replace(OFF, erasings=erasings), range(40)):
        changed = (weak != strong).any(2)
        rows, columns = changed.any(1), changed.any(0)
        if erasings == 1 and changed.any():
            height, width = int(rows.sum()), int(columns.sum())
            area = height * width / changed.numel()
            assert 0.03 < area < 0.24 and 0.25 < height / width < 4
            top, left = int(rows.nonzero()[0]), int(columns.nonzero()[0])
            assert changed[top : top + height, left : left + width].float().mean() > 0.97
        seen += bool(changed.any())
    # 1 - (1 - .7), and with the others 1 - .3 * .5 and 1 - .3 * .5 * .7.
    assert seen / 40 == pytest.approx([0.7, 0.85, 0.895][erasings - 1], abs=0.2)


ORDER = {"pass_size": 4, "per_labeled": 3, "seed": 0}


def test_each_pass_has_its_share_of_unlabeled_images_and_each_stream_its_order() -> None:
    order = LabeledAndUnlabeled([6, 5], [40], **ORDER)
    assert order.samples_per_epoch == 11
    rows = order.draw(0, 16 * 20).reshape(20, 16, 3)
    assert (rows[:, :4, 0] < 2).all() and (rows[:, 4:, 0] == 2).all()
    labeled, unlabeled = rows[:, :4].reshape(-1, 3), rows[:, 4:].reshape(-1, 3)
    assert len({tuple(x) for x in labeled[:11, :2].tolist()}) == 11  # an epoch sees each once
    assert sorted(unlabeled[:40, 1].tolist()) == list(range(40))
    assert (unlabeled[:40, 2] == 0).all() and (unlabeled[40:80, 2] == 1).all()
    for start, stop in ((0, 0), (3, 5), (15, 17), (47, 130)):
        assert np.array_equal(order.draw(start, stop), rows.reshape(-1, 3)[start:stop])


def test_two_processes_share_both_kinds() -> None:
    rows = LabeledAndUnlabeled([11], [40], **ORDER).draw(0, 16)
    for rank in (0, 1):
        assert (rows[rank::2, 0] == [0] * 2 + [1] * 6).all()


def test_a_batch_has_labeled_then_unlabeled_images_and_s_of_its_number(scenes, tmp_path) -> None:
    folder = tmp_path / "unlabeled"
    folder.mkdir()
    Image.fromarray(np.full((50, 70, 3), 90, np.uint8)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    views = TrainBoxView(AUGMENT, 0), UnlabeledView(AUGMENT, StrongConfig(), 0)
    labeled, unlabeled = open_boxes(boxes(scenes, "train")), open_source(str(folder))
    make = SedBatches([labeled], [unlabeled], *views, scales=3)
    rows = np.array([[0, 2, 0, 5], [1, 1, 0, 5], [1, 0, 0, 5]])
    batch = make(rows)
    assert len(batch.images) == 1 and batch.weak.shape == batch.strong.shape
    assert batch.weight.tolist() == [1, 0, 1] and batch.ids == ["train2.png", "b.png", "a.png"]
    assert [(x.source, x.sample_id) for x in batch.unreadable] == [(1, "b.png")]
    height, width = batch.unlabeled_sizes[1].tolist()
    assert batch.weak.shape[1] >= height and not batch.weak[1, height:].any()
    scales = [make(np.concatenate([rows[:, :3], np.full((3, 1), n)], 1)).scale for n in range(20)]
    assert set(scales) == {1, 2, 3} and scales[5] == batch.scale


def test_what_fills_a_square_up_is_no_picture(scenes, source) -> None:
    """With `resize: longer` a labeled view is a square; of an unlabeled one the losses are told
    what of it is picture, and nothing is erased beyond."""
    augment = BoxAugmentConfig(resize="longer", sizes=[64], scale=(0.5, 0.5), test_size=64)
    views = TrainBoxView(augment, 0), UnlabeledView(augment, StrongConfig(), 0)
    labeled = open_boxes(boxes(scenes, "train"))
    make = SedBatches([labeled], [source], *views, scales=1)
    batch = make(np.array([[0, 0, 0, 0], *([1, i, 0, 0] for i in range(6))]))
    assert batch.images.shape[1:3] == (64, 64) and batch.sizes.tolist() == [[64, 64]]
    assert (batch.images[0, 32:] == torch.tensor(MEAN_COLOUR)).all()
    expected = []
    for i in range(6):
        height, width = labeled.image_size(i)
        scale = 32 / max(height, width)
        expected.append([int(height * scale + 0.5), int(width * scale + 0.5)])
    assert batch.unlabeled_sizes.tolist() == expected and len(set(map(tuple, expected))) == 3
    for view in (batch.weak, batch.strong):
        for image, (height, width) in zip(view, expected, strict=True):
            assert not image[height:].any() and not image[:, width:].any()
            assert image[:height, :width].any()


def test_a_part_of_a_larger_image_fills_the_square(source) -> None:
    augment = BoxAugmentConfig(resize="longer", sizes=[64], scale=(2, 2), test_size=64)
    weak, strong = UnlabeledView(augment, OFF, 0)(source, 0, 0, 0)
    assert weak.shape == strong.shape == (64, 64, 3)
