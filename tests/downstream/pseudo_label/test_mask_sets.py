"""A set of generated masks: unsure pixels are ignored, and what is written is read again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import labeling
import mask_sets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from labeling import contents, images, label, read, segmenter
from PIL import Image

from downstream.segmentation.data.masks import open_masks
from downstream.segmentation.data.preflight import inspect
from downstream.segmentation.model import SegmentationModel

NAMES = ["sky", "road", "car"]
LEAST = 0.6


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter")
    masks = {f"{i}": mask_sets.ids(i, (12, 16)) for i in range(3)}
    train = mask_sets.folder(folder / "train", masks)
    return segmenter(folder / "run", train, None, NAMES)


def probabilities(number: int, size: tuple[int, int]) -> np.ndarray:
    """float32 [3, h, w] of image `number`; some pixels are at the threshold exactly."""
    draw = np.random.default_rng(number)
    p = draw.dirichlet([0.5, 0.5, 0.5], size).transpose(2, 0, 1).astype(np.float32)
    p[:, 0, :5] = np.array([[0.6], [0.25], [0.15]], np.float32)
    return p


@pytest.fixture
def certain(monkeypatch):
    def found(self, image, **test):
        size = (image.shape[0], image.shape[1])
        return torch.from_numpy(probabilities(int(image[0, 0, 0]), size))

    monkeypatch.setattr(SegmentationModel, "probabilities", found)


def naive(p: np.ndarray) -> np.ndarray:
    """Pixel by pixel, in float64."""
    mask = np.empty(p.shape[1:], np.uint8)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            best = max(range(len(p)), key=lambda k: float(p[k, y, x]))
            sure = float(p[best, y, x]) >= float(np.float32(LEAST))
            mask[y, x] = best if sure else 255
    return mask


def test_pixels_below_the_threshold_are_ignored(run, certain, tmp_path):
    source, out = images(tmp_path / "u", 4, (14, 20)), tmp_path / "out"
    assert label(run, source, out, f"--pixel_threshold={LEAST}", "--shard_size=3") == 0
    masks = [naive(probabilities(i, (14, 20))) for i in range(4)]
    for i, expected in enumerate(masks):
        with Image.open(out / "masks" / f"{i:02d}.png.png") as mask:
            assert np.array_equal(np.asarray(mask), expected)
    assert all((mask == 255).any() and (mask[0, :5] == 0).all() for mask in masks)
    counts = [int(sum((mask == k).sum() for mask in masks)) for k in (0, 1, 2, 255)]
    assert list(read(out)["pixels"].values()) == counts
    generated = open_masks(str(out), ["car", "sky", "road"])
    order = np.array([1, 2, 0] + [255] * 253)
    for i, expected in enumerate(masks):
        assert generated.sample_id(i) == f"{i:02d}.png"
        assert np.array_equal(generated.mask(i), order[expected])
        assert generated.read(i) == (source / f"{i:02d}.png").read_bytes()
    inspect(generated).check()
    assert read(out)["finds"] == "pixels" and "Most doubtful" in (out / "report.html").read_text()


def test_masks_of_images_in_other_files_and_of_any_name(run, certain, tmp_path):
    rows = [path.read_bytes() for path in sorted(images(tmp_path / "u", 3, (9, 11)).iterdir())]
    names = ["../evil", "a/b", "./a/b"]
    pq.write_table(pa.table({"sample_id": names, "bytes": rows}), tmp_path / "rows.parquet")
    out = tmp_path / "deep" / "out"
    assert label(run, tmp_path / "rows.parquet", out) == 0
    assert sorted(str(x.relative_to(out / "masks")) for x in out.rglob("*.png")) == [
        "a/b.png", "a/b~2.png", "evil.png"
    ]  # fmt: skip
    generated = open_masks(str(out))
    for i in range(3):
        assert generated.mask(i).shape == (9, 11) and generated.read(i) == rows[i]
        assert (generated.mask(i) < 3).any()
    inspect(generated).check()


def test_a_real_network_sees_several_views(run, tmp_path):
    source, out = images(tmp_path / "u", 2), tmp_path / "out"
    words = ("--pixel_threshold=0.35", "--test.scales=[0.5, 1]", "--test.flip=true")
    assert label(run, source, out, *words) == 0
    assert read(out)["settings"]["test"]["scales"] == [0.5, 1.0]
    model = labeling.build_of(run)
    for i in range(2):
        image = torch.from_numpy(np.asarray(Image.open(source / f"{i:02d}.png")).copy())
        with torch.inference_mode():
            best, numbers = model.probabilities(image, scales=[0.5, 1.0], flip=True).max(0)
        expected = torch.where(best >= 0.35, numbers, 255)
        mask = Image.open(io.BytesIO((out / "masks" / f"{i:02d}.png.png").read_bytes()))
        assert np.array_equal(np.asarray(mask), expected.numpy())
    before = contents(out)
    for damage in (lambda path: path.write_bytes(before["classes.json"]), Path.unlink):
        assert label(run, source, out, *words) == 0 and contents(out) == before
        damage(out / "masks/01.png.png")
    assert label(run, source, out, *words) == 0 and contents(out) == before


def test_what_a_segmenter_must_not_say(run, tmp_path, monkeypatch, capsys):
    source = images(tmp_path / "u", 3, (14, 20))

    def say(p):
        shape = np.array(p, np.float32)[:, None, None]
        monkeypatch.setattr(
            SegmentationModel, "probabilities",
            lambda self, image, **test: torch.from_numpy(shape * np.ones((1, 14, 20), np.float32)),
        )  # fmt: skip

    say([0.4, 0.3, 0.3])
    assert label(run, source, tmp_path / "unsure") == 2
    assert "no pixel of any image has a class" in capsys.readouterr().err
    say([0.8, 0.1, 0.1])
    assert label(run, source, tmp_path / "one") == 2
    assert "all pseudo-labels are of one class, 'sky'" in capsys.readouterr().err
    say([np.nan, 0.1, 0.1])
    assert label(run, source, tmp_path / "nan") == 2
    assert "not finite" in capsys.readouterr().err
    assert not any((tmp_path / x / "pseudo_labels.json").exists() for x in ("unsure", "one", "nan"))


def test_a_class_that_vanished_is_named(run, tmp_path, monkeypatch, capsys):
    halves = np.zeros((3, 14, 20), np.float32)
    halves[0, :7], halves[1, 7:] = 1, 1
    halves[:, 0, 0] = 0, 0, 1
    for share, words in ((0, "class 'car' has vanished"), (1, "class 'car' has nearly vanished")):
        p = halves.copy()
        p[:, 0, 0] = (0, 0, 1) if share else (1, 0, 0)
        monkeypatch.setattr(
            SegmentationModel, "probabilities", lambda *_, p=p, **__: torch.from_numpy(p)
        )
        out = tmp_path / str(share)
        assert label(run, images(tmp_path / "u", 3, (14, 20)), out) == 0
        assert words in capsys.readouterr().out
        assert any(words in line for line in read(out)["warnings"])
        assert words.replace("'", "&#39;") in (out / "report.html").read_text()


def test_a_table_of_other_classes_is_refused(run, tmp_path, capsys):
    table = {"classes": ["sky", "road", "bus"]}
    masks = {"0": mask_sets.ids(0, (12, 16), (0, 1, 2))}
    other = mask_sets.folder(tmp_path / "other", masks, table)
    source = images(tmp_path / "u", 2, (14, 20))
    assert label(run, source, tmp_path / "out", f"--labeled={other}") == 2
    said = capsys.readouterr().err
    assert "bus" in said and "labeled" in said
    assert not (tmp_path / "out").exists()


def test_a_set_of_the_other_task_is_refused(run, certain, tmp_path, capsys):
    from downstream.detection.data.boxes import open_boxes
    from ssld.common.errors import InputError

    out = tmp_path / "out"
    assert label(run, images(tmp_path / "u", 2, (14, 20)), out) == 0
    with pytest.raises(InputError, match="of segmentation, not of detection"):
        open_boxes(str(out))
    (out / "classes.json").write_text(json.dumps(["sky", "car", "road"]))
    with pytest.raises(InputError, match="damaged or was changed"):
        open_masks(str(out))
