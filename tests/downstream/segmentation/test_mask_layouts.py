"""Which mask belongs to which image: plain folders, Cityscapes and VOC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mask_sets import as_palette, folder, ids, picture, save

from downstream.segmentation.data.layouts import CITYSCAPES, VOC
from downstream.segmentation.data.masks import open_masks
from downstream.segmentation.data.preflight import inspect
from ssld.common.errors import InputError


def test_a_path_that_is_no_set_is_refused(tmp_path):
    root = tmp_path / "set"
    path = folder(root, {"a": ids()})
    assert len(open_masks(path)) == 1
    folder(root, {"a": ids()}, split="val")
    with pytest.raises(InputError, match=r"which split\? give .*set::train or .*set::val"):
        open_masks(str(root))
    with pytest.raises(InputError, match=r"no split 'test'; give .*set::train"):
        open_masks(f"{root}::test")
    save(root / "masks/train/z.png", ids())
    with pytest.raises(InputError, match=r"z\.png: this mask has no image 'z'"):
        open_masks(path)
    (root / "masks/train/z.png").rename(root / "masks/train/a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg: masks are read from PNG only"):
        open_masks(path)
    (root / "masks/train/a.jpg").unlink()
    picture(root / "images/train/a.png")
    with pytest.raises(InputError, match=r"a\.jpg and a\.png would have the same mask"):
        open_masks(path)
    (root / "classes.json").unlink()
    with pytest.raises(InputError, match="no class table; write classes.json"):
        open_masks(path)
    with pytest.raises(InputError, match="none of the layouts of masks"):
        open_masks(str(root / "images"))
    with pytest.raises(InputError, match="no such file or folder"):
        open_masks(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="local folders only"):
        open_masks("s3://bucket/set::train")


def test_folders_without_splits_need_none(tmp_path):
    folder(tmp_path, {"a": ids(), "b": ids()}, split=".")
    assert len(open_masks(str(tmp_path))) == 2


@pytest.mark.parametrize("table", ["classes.json", "train/classes.json"])
def test_splits_that_have_images_and_masks(tmp_path, table):
    for split, names in (("train", "ab"), ("val", "c")):
        for name in names:
            picture(tmp_path / split / "images" / f"{name}.jpg")
            save(tmp_path / split / "masks" / f"{name}.png", ids())
    (tmp_path / table).write_text('["sky", "road", "tree"]')
    masks = open_masks(f"{tmp_path}::train")
    assert (len(masks), masks.class_names) == (2, ["sky", "road", "tree"])
    with pytest.raises(InputError, match=r"which split\? give .*::train or .*::val"):
        open_masks(str(tmp_path))
    with pytest.raises(InputError, match=r"no split 'test'; give .*::train or .*::val"):
        open_masks(f"{tmp_path}::test")


CITYSCAPES_TRAIN_IDS = dict(
    zip(range(34), [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9]
        + [10, 11, 12, 13, 14, 15, 255, 255, 16, 17, 18], strict=True)
)  # fmt: skip
"""id -> trainId, typed off cityscapesScripts' labels.py."""


def test_cityscapes_ids_become_its_train_ids(tmp_path):
    array = np.arange(36, dtype=np.uint8).reshape(4, 9)
    array[array > 33] = 255
    stem = "aachen/aachen_000000_000019"
    picture(tmp_path / f"leftImg8bit/train/{stem}_leftImg8bit.png", (4, 9))
    for kind in ("labelIds", "instanceIds", "color"):
        wrong = np.zeros_like(array)
        save(
            tmp_path / f"gtFine/train/{stem}_gtFine_{kind}.png",
            array if kind == "labelIds" else wrong,
        )
    source = open_masks(f"{tmp_path}::train")
    expected = [CITYSCAPES_TRAIN_IDS.get(x, 255) for x in array.ravel().tolist()]
    assert source.mask(0).ravel().tolist() == expected
    assert source.class_names[0] == "road" and source.class_names[18] == "bicycle"
    assert source.palette[13].tolist() == [0, 0, 142] and len(source.class_names) == 19
    assert source.sample_id(0) == f"{stem}_leftImg8bit.png" and source.layout == "Cityscapes"
    assert inspect(source).ignored_pixels == expected.count(255)
    assert len(CITYSCAPES.ignored) == 16


def voc_set(root: Path, names: list[str], listed: str) -> str:
    array = ids(values=(0, 15, 20, 255))
    for name in names:
        picture(root / f"JPEGImages/{name}.jpg")
        (root / "SegmentationClass").mkdir(exist_ok=True)
        as_palette(array).save(root / f"SegmentationClass/{name}.png")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "train.txt").write_text(listed)
    return f"{root}::train"


def test_voc_masks_are_the_indices_of_their_palette(tmp_path):
    path = voc_set(tmp_path, ["2007_000033", "2007_000032", "extra"], "2007_000033\n2007_000032\n")
    source = open_masks(path)
    assert [source.sample_id(i) for i in range(2)] == ["2007_000033.jpg", "2007_000032.jpg"]
    assert len(source) == 2 and np.array_equal(source.mask(0), ids(values=(0, 15, 20, 255)))
    assert source.class_names[15] == "person" and len(source.class_names) == 21
    # The first colours that the VOC devkit shows: black, maroon, green, olive, navy.
    assert VOC.palette[:5].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]
    ]  # fmt: skip
    assert VOC.palette[20].tolist() == [0, 64, 128]


@pytest.mark.parametrize(
    "listed, said",
    [
        ("a\nb\n", r"train\.txt: line 2: 'b' is not in .*JPEGImages"),
        ("a\n\na\n", r"train\.txt: line 3: 'a' is on line 1, too"),
        ("\n", r"train\.txt: the list is empty"),
    ],
)
def test_a_voc_list_that_promises_what_is_not_there_is_refused(tmp_path, listed, said):
    path = voc_set(tmp_path, ["a"], listed)
    with pytest.raises(InputError, match=said):
        open_masks(path)
    with pytest.raises(InputError, match=r"no split 'val'\? give .*::train"):
        open_masks(f"{tmp_path}::val")
    with pytest.raises(InputError, match=r"which split\? give .*::train"):
        open_masks(str(tmp_path))


def test_a_listed_image_without_mask_is_refused(tmp_path):
    path = voc_set(tmp_path, ["a", "b"], "a\nb\n")
    (tmp_path / "SegmentationClass/b.png").unlink()
    with pytest.raises(InputError, match=r"line 2: 'b' is not in .*SegmentationClass"):
        open_masks(path)
