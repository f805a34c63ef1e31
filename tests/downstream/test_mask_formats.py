"""Every layout of docs/formats.md, written as its tool writes it and read back: masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import formats_written as written
import numpy as np
import pytest
from formats_written import SCENE, SIZE, pictures, shape, text
from PIL import Image

from downstream.segmentation.data.masks import MaskSource, open_masks
from downstream.segmentation.data.preflight import inspect
from ssld.common.errors import InputError

CLASSES = ["background", "cat", "dog"]
COLOURS = [(0, 0, 0), (64, 128, 64), (192, 0, 128)]


def truth(stem: str) -> np.ndarray:
    """Class numbers of CLASSES, uint8 [h, w]."""
    mask = np.zeros(SIZE, np.uint8)
    for name, (x1, y1, x2, y2) in SCENE[stem]:
        mask[y1:y2, x1:x2] = CLASSES.index(name)
    return mask


def found(source: MaskSource) -> dict[str, np.ndarray]:
    """The same, by the picture's stem."""
    order = np.full(256, 255, np.uint8)
    for number, name in enumerate(source.class_names):
        order[number] = CLASSES.index({"_background_": "background"}.get(name, name))
    return {Path(source.sample_id(i)).stem: order[source.mask(i)] for i in range(len(source))}


def save(path: Path, mask: np.ndarray, *, colours: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.array(COLOURS, np.uint8)[mask] if colours else mask
    Image.fromarray(pixels).save(path)


def images_and_masks(
    images: Path, masks: Path, image: str = "{}.jpg", mask: str = "{}.png", colours: bool = False
) -> None:
    images.mkdir(parents=True, exist_ok=True)
    for stem in SCENE:
        Image.new("RGB", (SIZE[1], SIZE[0]), (90, 120, 150)).save(images / image.format(stem))
        save(masks / mask.format(stem), truth(stem), colours=colours)


def plain(root: Path) -> str:
    images_and_masks(root / "images/train", root / "masks/train")
    text(root / "classes.csv", "id,name\n0,background\n1,cat\n2,dog\n")
    return f"{root}::train"


def mmseg(root: Path) -> str:
    """`customize_dataset.md`: img_suffix and seg_map_suffix may be any."""
    images_and_masks(root / "img_dir/train", root / "ann_dir/train")
    text(root / "classes.json", json.dumps(CLASSES))
    return f"{root}::train"


def mmseg_train_ids(root: Path) -> str:
    images_and_masks(root / "img_dir/train", root / "ann_dir/train", "{}_leftImg8bit.png",
                     "{}_gtFine_labelTrainIds.png")  # fmt: skip
    text(root / "class_names.txt", "background\ncat\ndog\n")
    return f"{root}::train"


def ade(root: Path) -> str:
    images_and_masks(root / "images/training", root / "annotations/training")
    text(root / "classes.yaml", "- background\n- cat\n- dog\n")
    return f"{root}::training"


def class_dict() -> str:
    rows = [f"{name},{','.join(map(str, c))}" for name, c in zip(CLASSES, COLOURS, strict=True)]
    return "\n".join(["name,r,g,b", *rows]) + "\n"


def camvid_kaggle(root: Path) -> str:
    """`train/0001TP_006690.png`, `train_labels/0001TP_006690_L.png`, class_dict.csv."""
    images_and_masks(root / "train", root / "train_labels", "{}.png", "{}_L.png", colours=True)
    images_and_masks(root / "val", root / "val_labels", "{}.png", "{}_L.png", colours=True)
    text(root / "class_dict.csv", class_dict() + "Void,9,9,9\n")
    return f"{root}::train"


def camvid_original(root: Path) -> str:
    """LabeledApproved_full's `_L.png` and label_colors.txt, in folders that somebody named."""
    images_and_masks(root / "images", root / "masks", "{}.png", "{}_L.png", colours=True)
    rows = [f"{r} {g} {b}\t\t{name}" for name, (r, g, b) in zip(CLASSES, COLOURS, strict=True)]
    text(root / "label_colors.txt", "\r\n".join([*rows, "9 9 9\tVoid"]))
    return str(root)


def camvid_segnet(root: Path) -> str:
    images_and_masks(root / "train", root / "trainannot", "{}.png")
    text(root / "class_names.txt", "background\ncat\ndog\n")
    return f"{root}::train"


def deepglobe(root: Path) -> str:
    """`119_sat.jpg` and `119_mask.png` in one folder."""
    images_and_masks(root / "train", root / "train", "{}_sat.jpg", "{}_mask.png", colours=True)
    text(root / "class_dict.csv", class_dict())
    return f"{root}::train"


def roboflow_masks(root: Path) -> str:
    images_and_masks(root / "train", root / "train", "{}.jpg", "{}_mask.png")
    text(root / "train/_classes.csv", "Pixel Value, Class\n0, background\n1, cat\n2, dog\n")
    text(root / "README.roboflow.txt", "x\n")
    return f"{root}::train"


def cvat_masks(root: Path) -> str:
    """ "Segmentation mask 1.1"."""
    images_and_masks(root / "JPEGImages", root / "SegmentationClass", colours=True)
    text(root / "ImageSets/Segmentation/default.txt", "a\nb\n")
    rows = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(CLASSES, COLOURS, strict=True)]
    text(root / "labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *rows]) + "\n")
    return f"{root}::default"


def labelme_listed(root: Path) -> str:
    """`labelme --labels labels.txt`."""
    path = written.labelme_3(root)
    text(root / "json/labels.txt", "__ignore__\n_background_\ncat\ndog\n")
    return path


def labelme_table(root: Path) -> str:
    path = written.labelme_3(root)
    text(root / "json/class_names.txt", "_background_\ncat\ndog\n")
    return path


WRITERS = [
    plain, mmseg, mmseg_train_ids, ade, camvid_kaggle, camvid_original, camvid_segnet, deepglobe,
    roboflow_masks, cvat_masks, labelme_listed, labelme_table, written.labelme_3,
    written.x_anylabeling, written.cvat_polygons, written.cvat, written.coco,
    written.coco_without_bbox, written.coco_runs, written.coco_compressed, written.coco_text_ids,
    written.coco_windows, written.roboflow_coco,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_layout_of_masks_is_read_back(tmp_path: Path, write: Callable[[Path], str]):
    source = open_masks(write(tmp_path))
    masks = found(source)
    assert sorted(x.removesuffix("_leftImg8bit").removesuffix("_sat") for x in masks) == ["a", "b"]
    for stem, mask in masks.items():
        assert np.array_equal(mask, truth(stem[0])), stem
    inspect(source).check()


def test_cityscapes_with_train_ids_alone(tmp_path):
    folder = tmp_path / "leftImg8bit/train/x"
    images_and_masks(folder, tmp_path / "gtFine/train/x", "{}_leftImg8bit.png",
                     "{}_gtFine_labelTrainIds.png")  # fmt: skip
    source = open_masks(f"{tmp_path}::train")
    assert source.class_names[:3] == ["road", "sidewalk", "building"]
    assert np.array_equal(source.mask(1), truth("b"))


def test_masks_of_several_kinds_want_a_choice(tmp_path):
    path = mmseg_train_ids(tmp_path)
    save(tmp_path / "ann_dir/train/a_gtFine_color.png", truth("a"))
    with pytest.raises(InputError, match="and then _gtFine_color, _gtFine_labelTrainIds; keep"):
        open_masks(path)
    plain(tmp_path)
    with pytest.raises(InputError, match="has the layouts of mmsegmentation and of images and"):
        open_masks(path)


def test_shapes_that_lie_on_each_other(tmp_path):
    """The later one of labelme, the smaller one of COCO."""
    pictures(tmp_path / "labelme", "a")
    large, small = [[0, 0], [40, 0], [40, 40], [0, 40]], [[10, 10], [20, 10], [20, 20], [10, 20]]
    written.labelme_file(tmp_path / "labelme", "a", [shape("cat", small), shape("dog", large)])
    mask = open_masks(str(tmp_path / "labelme")).mask(0)
    assert set(mask[:40, :40].ravel().tolist()) <= {2} and mask[50, 50] == 0
    path = Path(written.coco(tmp_path / "coco"))
    content = json.loads(path.read_text())
    for entry, points in zip(content["annotations"][1:], (small, large), strict=True):
        entry["segmentation"] = [sum(points, [])]
    path.write_text(json.dumps(content))
    masks = found(open_masks(str(path)))
    assert masks["b"][15, 15] == CLASSES.index("dog") and masks["b"][5, 5] == CLASSES.index("cat")


def test_ids_of_the_set_and_names_of_another_split(tmp_path):
    source = open_masks(written.coco(tmp_path / "coco"))
    assert [row.id for row in source.labels.table.classes] == [0, 12, 3]
    train = open_masks(written.labelme_3(tmp_path / "train"))
    pictures(tmp_path / "val", "a")
    written.labelme_file(tmp_path / "val", "a", [shape("dog", [[0, 0], [9, 0], [9, 9]])])
    val = open_masks(str(tmp_path / "val"), train.class_names)
    assert val.class_names == train.class_names == CLASSES
    assert val.mask(0).max() == CLASSES.index("dog")
    written.labelme_file(tmp_path / "val", "a", [shape("cow", [[0, 0], [9, 0], [9, 9]])])
    with pytest.raises(InputError, match=r"shapes\[0\]: is of the class 'cow', which .* not have"):
        open_masks(str(tmp_path / "val"), train.class_names)


def test_what_is_ignored_or_left_out_is_said(tmp_path):
    path = Path(written.coco(tmp_path / "coco"))
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = []
    path.write_text(json.dumps(content))
    report = inspect(open_masks(str(path)))
    assert "objects without an outline, ignored within their box: 1" in "\n".join(report.lines())
    assert report.ignored_pixels == 30 * 32
    for entry in content["annotations"]:
        entry["segmentation"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="3 of 3 objects have no outline"):
        open_masks(str(path))
    pictures(tmp_path / "labelme", "a")
    shapes = [shape("cat", [[0, 0], [9, 0], [9, 9]]), shape("cat", [[3, 3]], "point"),
              shape("__ignore__", [[20, 20], [30, 20], [30, 30], [20, 30]])]  # fmt: skip
    written.labelme_file(tmp_path / "labelme", "a", shapes)
    report = inspect(open_masks(str(tmp_path / "labelme")))
    assert "shapes that have no area, left out: 1 point" in report.facts()
    assert report.ignored_pixels == 100


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("class_dict.csv", "name,red\ncat,1\n", "the first line is 'name,red'; give name,r,g,b"),
        ("class_dict.csv", "name,r,g,b\ncat,1\ndog,1,2,3\n", "class 1 is .*; give name,r,g,b"),
        ("class_dict.csv", "name,r,g,b\ncat,1,2,300\ndog,1,2,3\n", r"classes\[0\]: colour is"),
        ("label_colors.txt", "1 2\tcat\n", "is no class; give red green blue name"),
        ("_classes.csv", "id, name\n0, cat\n", "give Pixel Value, Class"),
        ("_classes.csv", "Pixel Value, Class\nx, cat\n", r"classes\[0\]: id is 'x'"),
        ("_classes.csv", "", "is empty"),
    ],
)
def test_tables_of_other_tools_that_are_none(tmp_path, name, content, said):
    path = plain(tmp_path)
    (tmp_path / "classes.csv").unlink()
    text(tmp_path / name, content)
    with pytest.raises(InputError, match=f"{name}: .*{said}"):
        open_masks(path)
