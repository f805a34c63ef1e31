"""Image and mask stay one picture through every view; against naive loops and Pillow."""

from __future__ import annotations

import collections
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms.v2 import functional as tv
from torchvision.tv_tensors import Image as Image_
from torchvision.tv_tensors import Mask

from downstream.dense.operations import COLOURS, GEOMETRIC
from downstream.dense.policies import Operation
from downstream.segmentation.config import MaskAugmentConfig
from downstream.segmentation.data import transforms as mask_views
from downstream.segmentation.data.masks import MaskSource, open_masks
from downstream.segmentation.data.transforms import EvalMaskView, TrainMaskView, change_colours
from ssld.data.decode import Unreadable

NAMES = ["a", "b", "c", "d"]
PALETTE = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [220, 220, 60]], np.uint8)
UNLABELLED = (0, 0, 0)
MEAN = (0.3, 0.5, 0.9)
FILL = [76, 128, 230]


def blocks(shape=(66, 90), side=11, seed=0) -> np.ndarray:
    """Squares of class numbers 0 to 3, or 255."""
    coarse = np.random.default_rng(seed).choice([0, 1, 2, 3, 255], (shape[0], shape[1]))
    return np.kron(coarse, np.ones((side, side), np.uint8))[: shape[0], : shape[1]].astype(np.uint8)


def painted(root: Path, masks: list[np.ndarray]) -> MaskSource:
    """Each image shows its own mask, in the colours of the classes."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i, mask in enumerate(masks):
        colours = np.full((*mask.shape, 3), UNLABELLED, np.uint8)
        for number, colour in enumerate(PALETTE):
            colours[mask == number] = colour
        Image.fromarray(colours).save(root / f"images/{i}.png")
        Image.fromarray(mask).save(root / f"masks/{i}.png")
    (root / "classes.json").write_text(json.dumps(NAMES))
    return open_masks(str(root))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> MaskSource:
    return painted(tmp_path_factory.mktemp("painted"), [blocks(seed=i) for i in range(3)])


def still(**changes) -> MaskAugmentConfig:
    """Neither scaled, flipped nor coloured."""
    plain = {"crop": (66, 90), "scale": (1.0, 1.0), "flip": 0.0, "colour": 0.0}
    return MaskAugmentConfig(**{**plain, **changes})


def nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixel whose square holds the centre of the new one."""
    (h, w), out = mask.shape, np.zeros(size, np.uint8)
    for r in range(size[0]):
        for c in range(size[1]):
            out[r, c] = mask[
                math.floor((r + 0.5) * h / size[0]), math.floor((c + 0.5) * w / size[1])
            ]
    return out


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Centres of pixels aligned, edges repeated, no low-pass filter; float64."""

    def weights(new: int, old: int) -> np.ndarray:
        matrix = np.zeros((new, old))
        for i in range(new):
            at = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
            low = math.floor(at)
            matrix[i, low] += 1 - (at - low)
            matrix[i, min(low + 1, old - 1)] += at - low
        return matrix

    rows, columns = weights(size[0], image.shape[0]), weights(size[1], image.shape[1])
    return np.einsum("ri,ijk,cj->rck", rows, image.astype(float), columns)


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.25, 2.0])
def test_scaling_is_what_naive_loops_give(source, factor):
    size = (round(66 * factor), round(90 * factor))
    view = TrainMaskView(still(crop=size, scale=(factor, factor)), seed=0)
    image, mask = view(source, 0, 0)
    whole, labels = EvalMaskView()(source, 0)
    assert np.array_equal(mask.numpy(), nearest(labels.numpy(), size))
    assert np.abs(image.numpy() - bilinear(whole.numpy(), size)).max() <= 1


def away_from_borders(mask: np.ndarray, margin: int) -> np.ndarray:
    """Pixels whose surroundings are all of one value, within the view."""
    inside = np.zeros(mask.shape, bool)
    for r in range(margin, mask.shape[0] - margin):
        for c in range(margin, mask.shape[1] - margin):
            around = mask[r - margin : r + margin + 1, c - margin : c + margin + 1]
            inside[r, c] = (around == mask[r, c]).all()
    return inside


def test_a_painted_image_agrees_with_its_mask_in_every_view(source):
    augment = MaskAugmentConfig(crop=(48, 56), colour=0.0)
    make = TrainMaskView(augment, seed=3, mean=MEAN)
    looked, padded = 0, 0
    for view in range(24):
        image, mask = (x.numpy() for x in make(source, view % 3, view))
        assert image.shape == (48, 56, 3) and mask.shape == (48, 56)
        assert image.dtype == mask.dtype == np.uint8
        filled = (image == FILL).all(axis=2)
        assert (mask[filled] == 255).all()
        padded += filled.any()
        # Bilinear pixels reach one source pixel far, which at factor 2 is two of the view.
        inner = away_from_borders(np.where(filled, 254, mask), 2)
        for number, colour in [*enumerate(PALETTE), (255, UNLABELLED)]:
            here = inner & (mask == number) & ~filled
            assert (image[here] == colour).all()
            looked += here.sum()
    assert looked > 10_000 and padded > 0


@pytest.mark.parametrize("name", GEOMETRIC)
def test_a_mask_moves_with_its_image(name):
    """At every level, in both directions; what comes in from outside is grey, and ignored."""
    labels = blocks((44, 60), side=15) % 4
    colours = PALETTE[labels]
    image, mask = Image_(torch.from_numpy(colours).permute(2, 0, 1)), Mask(torch.from_numpy(labels))
    looked = outside = 0
    for strength in [sign * level / 10 for level in (1, 4, 7, 10) for sign in (-1, 1)]:
        parts = mask_views.operate(image, mask, Operation(name, strength), random.Random(0))
        pixels, moved = parts[0].permute(1, 2, 0).numpy(), parts[1].numpy()
        inner = away_from_borders(moved, 1)  # bilinear pixels are blends at borders
        for number, colour in enumerate(PALETTE):
            here = inner & (moved == number)
            assert (pixels[here] == colour).all()
            looked += here.sum()
        assert (pixels[inner & (moved == 255)] == 128).all()
        outside += (inner & (moved == 255)).sum()
    assert looked > 3_000 and outside > 300


def test_colours_and_cutouts_leave_the_mask(source):
    image, mask = mask_views._read(source, 0)
    for name in (*COLOURS, "cutout"):
        changed, same = mask_views.operate(image, mask, Operation(name, 1.0), random.Random(0))
        assert same is mask and type(changed) is Image_ and not torch.equal(changed, image)


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment"])
def test_a_policy_changes_some_views_and_no_number_of_a_class(source, policy):
    plain, augment = still(), still(policy=policy)
    make, changed = TrainMaskView(augment, seed=0, mean=MEAN), 0
    for view in range(16):
        image, mask = make(source, 0, view)
        assert set(mask.unique().tolist()) <= {0, 1, 2, 3, 255} and image.shape == (66, 90, 3)
        assert torch.equal(image, TrainMaskView(augment, seed=0)(source, 0, view)[0])
        changed += not torch.equal(image, TrainMaskView(plain, seed=0)(source, 0, view)[0])
    assert changed > 8


def test_a_scale_of_the_crop_is_that_with_which_the_image_just_fits(source):
    """66 x 90 px into 33 x 60: at half of its size."""
    fits = TrainMaskView(still(crop=(33, 60), scale_of="crop"), seed=0)(source, 0, 0)
    half = TrainMaskView(still(crop=(33, 60), scale=(0.5, 0.5)), seed=0)(source, 0, 0)
    assert all(torch.equal(a, b) for a, b in zip(fits, half, strict=True))
    assert (fits[1][:, 45:] == 255).all()
    draw, jitter = random.Random(0), still(scale=(0.8, 1.2), scale_step=None)
    factors = [jitter.factor(draw) for _ in range(500)]
    assert 0.8 <= min(factors) < 0.81 and 1.19 < max(factors) <= 1.2 and len(set(factors)) == 500


def test_a_view_depends_on_seed_id_and_number_only(source):
    augment = MaskAugmentConfig(crop=(40, 40))
    make = TrainMaskView(augment, seed=1)
    first = make(source, 0, 0)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    state = torch.get_rng_state(), random.getstate()
    again = make(source, 0, 0, 77)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate()
    others = [make(source, 1, 0), make(source, 0, 1), TrainMaskView(augment, 2)(source, 0, 0)]
    assert all(not torch.equal(first[0], other[0]) for other in others)
    assert all(type(x) is torch.Tensor and x.is_contiguous() for x in first)


def test_factors_places_and_flips_are_drawn_evenly(tmp_path, monkeypatch):
    """Rows and columns of the mask tell where a view was cut and whether it was turned round."""
    ramp = np.repeat(np.arange(3, dtype=np.uint8)[None].repeat(4, 0), 2, axis=1)  # 0 0 1 1 2 2
    source = painted(tmp_path / "x", [ramp])
    make = TrainMaskView(still(crop=(4, 4), flip=0.5), seed=0)
    seen = collections.Counter(tuple(make(source, 0, view)[1][0].tolist()) for view in range(1200))
    cuts = [(0, 0, 1, 1), (0, 1, 1, 2), (1, 1, 2, 2)]
    assert set(seen) == {*cuts, *(x[::-1] for x in cuts)}
    assert all(150 < count < 250 for count in seen.values())  # 200 ± 13
    upright = painted(tmp_path / "y", [ramp.T.copy()])
    tops = collections.Counter(
        tuple(make(upright, 0, view)[1][:, 0].tolist()) for view in range(600)
    )
    assert set(tops) == set(cuts) and all(150 < count < 250 for count in tops.values())
    factors = collections.Counter()
    resize = mask_views._resize

    def counted(image, mask, factor):
        factors[factor] += 1
        return resize(image, mask, factor)

    monkeypatch.setattr(mask_views, "_resize", counted)
    make = TrainMaskView(MaskAugmentConfig(crop=(4, 4), colour=0.0), seed=0)
    for view in range(700):
        make(source, 0, view)
    assert sorted(factors) == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert all(60 < count < 140 for count in factors.values())


def test_padding_is_ignored_below_and_to_the_right(tmp_path):
    source = painted(tmp_path / "x", [np.full((5, 7), 2, np.uint8)])
    image, mask = TrainMaskView(still(crop=(9, 8)), seed=0, mean=MEAN)(source, 0, 0)
    expected = np.full((9, 8), 255)
    expected[:5, :7] = 2
    assert np.array_equal(mask.numpy(), expected)
    assert (image[:5, :7] == torch.from_numpy(PALETTE[2])).all()
    assert (image[5:] == torch.tensor(FILL)).all() and (image[:, 7:] == torch.tensor(FILL)).all()


def test_ignored_pixels_stay_ignored_and_no_other_number_appears(source):
    make = TrainMaskView(MaskAugmentConfig(crop=(80, 100)), seed=0)
    for view in range(10):
        assert set(make(source, 0, view)[1].unique().tolist()) <= {0, 1, 2, 3, 255}
    image, mask = EvalMaskView()(source, 0)
    assert torch.equal(mask == 255, (image == 0).all(dim=2))


def test_an_evaluation_view_is_the_upright_image_and_its_mask(tmp_path):
    source = painted(tmp_path / "x", [blocks((30, 40))])
    stored = Image.open(tmp_path / "x/images/0.png").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    (tmp_path / "x/images/0.png").unlink()
    stored.save(tmp_path / "x/images/0.png", exif=exif)
    source = open_masks(str(tmp_path / "x"))
    image, mask = EvalMaskView()(source, 0)
    assert image.shape == (30, 40, 3) and np.array_equal(mask.numpy(), blocks((30, 40)))
    for number, colour in enumerate(PALETTE):
        assert (image[mask == number] == torch.from_numpy(colour)).all()
    assert torch.equal(mask, TrainMaskView(still(crop=(30, 40)), seed=0)(source, 0, 0)[1])


def test_a_pair_that_does_not_fit_is_unreadable(tmp_path):
    source = painted(tmp_path / "x", [blocks((30, 40))])
    Image.fromarray(blocks((30, 41))).save(tmp_path / "x/masks/0.png")
    for view in (TrainMaskView(still(crop=(8, 8)), seed=0), EvalMaskView()):
        with pytest.raises(Unreadable, match=r"mask .*0\.png: size is 30 x 41 px"):
            view(source, 0, 0)


class Scripted(random.Random):
    """Draws what it is told, and keeps the order of what is shuffled."""

    def __init__(self, chances: list[float], share: float) -> None:
        super().__init__(0)
        self.chances, self.share = list(chances), share

    def random(self) -> float:
        return self.chances.pop(0)

    def uniform(self, a: float, b: float) -> float:
        return a + self.share * (b - a)

    def shuffle(self, x) -> None:
        pass


@pytest.mark.parametrize("share", [0.0, 0.8])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_colours_change_as_pillows_do(which, share):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
    expected = np.asarray(kind(Image.fromarray(pixels)).enhance(1 - 0.4 + share * 0.8))
    draw = Scripted([0.4 if i == which else 0.6 for i in range(4)], share)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    got = change_colours(image, 0.4, draw).permute(1, 2, 0).numpy()
    assert np.abs(got.astype(int) - expected).max() <= 2
    assert np.abs(got.astype(int) - pixels).max() > 10


def test_the_hue_turns_by_at_most_18_of_255():
    image = torch.tensor([[[200]], [[40]], [[40]]], dtype=torch.uint8)  # red: hue 0
    turned = change_colours(image, 0.4, Scripted([0.6, 0.6, 0.6, 0.4], 1.0))
    # Between hue 0 and 1/6, green rises from 40 to 200 in proportion.
    assert turned.flatten().tolist() == pytest.approx([200, 40 + 160 * 6 * 18 / 255, 40], abs=1)


def test_each_change_is_made_half_of_the_time_in_random_order(monkeypatch):
    made = []
    for name in ("brightness", "contrast", "saturation", "hue"):
        change = lambda image, by, name=name: made[-1].append((name, by)) or image  # noqa: E731
        monkeypatch.setattr(tv, f"adjust_{name}", change)
    draw = random.Random(0)
    for _ in range(2000):
        made.append([])
        change_colours(torch.zeros(3, 1, 1), 0.3, draw)
    counts = collections.Counter(name for changes in made for name, _ in changes)
    assert set(counts) == {"brightness", "contrast", "saturation", "hue"}
    assert all(900 < count < 1100 for count in counts.values())
    firsts = collections.Counter(changes[0][0] for changes in made if len(changes) == 4)
    assert len(firsts) == 4
    for name, around, by in [("contrast", 1, 0.3), ("saturation", 1, 0.3), ("hue", 0, 18 / 255)]:
        drawn = [x for changes in made for n, x in changes if n == name]
        assert min(drawn) == pytest.approx(around - by, abs=0.01)
        assert max(drawn) == pytest.approx(around + by, abs=0.01)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"crop": (0, 5)}, r"augment\.crop is \(0, 5\)"),
        ({"scale": (0, 1)}, r"augment\.scale is \(0, 1\)"),
        ({"scale": (2.0, 1.0)}, r"augment\.scale is"),
        ({"scale_step": 0.4}, r"augment\.scale_step is 0\.4: .* divides 1\.5"),
        ({"scale_step": 0.0}, r"augment\.scale_step is 0\.0: give a number above 0 .* or null"),
        ({"randaugment_ops": 3}, r"augment\.policy is none: set it to randaugment"),
        ({"flip": 1.5}, r"augment\.flip is 1\.5"),
        ({"colour": 1.0}, r"augment\.colour is 1\.0"),
    ],
)
def test_wrong_settings_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        MaskAugmentConfig(**changes)
