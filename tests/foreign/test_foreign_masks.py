"""Masks as drawing tools save them, and class tables of other kinds and types."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from downstream.dense.task import verdict
from downstream.segmentation.data.class_table import read_table
from downstream.segmentation.data.masks import open_masks
from downstream.segmentation.data.preflight import inspect
from downstream.segmentation.task import SegmentationScore
from ssld.common.errors import InputError

LESION = np.zeros((24, 24), np.uint8)
LESION[5:15, 6:16] = 1


def pairs(root: Path, mask: Image.Image, table: object, split: str = "train", n: int = 2) -> str:
    for i in range(n):
        for part in ("images", "masks"):
            (root / part / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((24, 24, 3), 90, np.uint8)).save(root / f"images/{split}/{i}.png")
        mask.save(root / f"masks/{split}/{i}.png")
    (root / "classes.json").write_text(json.dumps(table))
    return f"{root}::{split}"


def check(path: str) -> None:
    inspect(open_masks(path)).check()


TABLE = ["background", "lesion"]
GREY = Image.fromarray(255 * LESION)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16"])
def test_a_class_that_is_ignored_by_default(tmp_path, mode):
    """Lesion is 255: mean IoU 1.0000 on background alone."""
    sixteen = Image.fromarray(255 * LESION.astype(np.uint16))
    path = pairs(tmp_path, sixteen if mode == "I;16" else GREY.convert(mode), TABLE)
    said = r"no pixel is of class 'lesion', id 1, but 2 masks have 200 pixels \(17.4%\) of id 255"
    with pytest.raises(InputError, match=said):
        check(path)


@pytest.mark.parametrize("ids", [(0, 1), (0, 255)])
def test_two_shades_with_a_row_each_are_right(tmp_path, ids):
    table = [{"id": ids[0], "name": "background"}, {"id": ids[1], "name": "lesion"}]
    for mode in ("L", "RGB"):
        shades = Image.fromarray(LESION * np.uint8(ids[1])).convert(mode)
        source = open_masks(pairs(tmp_path, shades, table))
        inspect(source).check()
        assert [c.pixels for c in inspect(source).classes] == [952, 200]


def test_masks_of_one_bit_are_two_classes(tmp_path):
    check(pairs(tmp_path, Image.fromarray(LESION.astype(bool)), TABLE))


def test_the_largest_shade_of_16_bits_is_no_class(tmp_path):
    mask = Image.fromarray(LESION.astype(np.uint16) * 65535)
    with pytest.raises(InputError, match="id 65535 has no class"):
        check(pairs(tmp_path, mask, TABLE))


def test_one_class_alone_is_nothing_to_learn(tmp_path):
    empty = Image.fromarray(0 * LESION)
    with pytest.raises(InputError, match="all pixels that count are of class 'background'"):
        check(pairs(tmp_path, empty, TABLE))
    with pytest.raises(InputError, match="all pixels that count are of class 'background'"):
        check(pairs(tmp_path, GREY, {"classes": TABLE, "ignore": 255}))


def test_a_border_of_255_and_a_rare_class_are_innocent(tmp_path):
    """All classes occur; or the one that lacks here occurs in training; or 255 is listed."""
    border = LESION.copy()
    border[0] = 255
    check(pairs(tmp_path / "a", Image.fromarray(border), TABLE))
    three = [*TABLE, "rare"]
    other = border.copy()
    other[20, 20] = 2
    train = open_masks(pairs(tmp_path / "b", Image.fromarray(other), three))
    val = open_masks(pairs(tmp_path / "b", Image.fromarray(border), three, "val"))
    inspect(val).check([inspect(train)])
    with pytest.raises(InputError, match="no pixel is of class 'rare'"):
        inspect(val).check()
    check(pairs(tmp_path / "c", Image.fromarray(border), {"classes": three, "ignore": 255}))
    check(pairs(tmp_path / "d", Image.fromarray(LESION), three))


def voc_set(root: Path, masks: list[np.ndarray], stem: str = "im") -> str:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = [f"{stem}_{i:06}" for i in range(len(masks))]
    for name, mask in zip(names, masks, strict=True):
        Image.fromarray(np.zeros((*mask.shape, 3), np.uint8)).save(root / f"JPEGImages/{name}.jpg")
        Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names))
    return f"{root}::train"


def test_own_classes_in_the_folders_of_voc(tmp_path):
    """Sky is not to become an aeroplane."""
    own = [LESION, 2 * LESION]
    path = voc_set(tmp_path, own)
    with pytest.raises(InputError, match="pixels of 3 of its 21 classes, .* write class_names.txt"):
        check(path)
    (tmp_path / "class_names.txt").write_text("_background_\nsky\nsea\n")
    source = open_masks(path)
    inspect(source).check()
    assert source.class_names == ["_background_", "sky", "sea"]


def test_voc_itself_needs_no_table(tmp_path):
    check(voc_set(tmp_path / "names", [LESION], "2007"))
    every = np.arange(24, dtype=np.uint8).repeat(24).reshape(24, 24)
    every[every > 20] = 255
    check(voc_set(tmp_path / "ids", [every]))


def test_the_names_of_labelme(tmp_path):
    path = tmp_path / "class_names.txt"
    path.write_text("__ignore__\n_background_\n鱼\n", encoding="utf-8")
    table = read_table(path)
    assert table.names == ["_background_", "鱼"] and [row.id for row in table.classes] == [0, 1]
    assert table.ignored == [255] and not table.silent
    path.write_bytes("a\n鱼\n".encode("gbk"))
    assert read_table(path).names == ["a", "鱼"] and read_table(path).silent


LABELMAP = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:0,0,128::\nred car: 128, 0, 0 ::\n"
)


@pytest.mark.parametrize("kind", ["colours", "palette", "numbers"])
def test_the_labelmap_of_cvat(tmp_path, kind):
    """The palette's order is another one than the map's."""
    path = voc_set(tmp_path, [LESION])
    (tmp_path / "labelmap.txt").write_text(LABELMAP)
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 0, 128], [224, 224, 192]], np.uint8)
    indices = LESION.copy()
    indices[20] = 2
    indices[22] = 3
    wanted = {0: 0, 1: 2, 2: 1, 3: 255}
    file = tmp_path / "SegmentationClass/im_000000.png"
    if kind == "colours":
        Image.fromarray(colours[indices]).save(file)
    elif kind == "palette":
        image = Image.fromarray(indices).convert("P")
        image.putdata(indices.ravel().tolist())
        image.putpalette(colours.ravel().tolist())
        image.save(file)
    else:
        Image.fromarray(np.vectorize(wanted.get)(indices).astype(np.uint8)).save(file)
    source = open_masks(path)
    assert source.class_names == ["background", "cat", "red car"]
    assert np.array_equal(source.mask(0), np.vectorize(wanted.get)(indices))
    inspect(source).check()


@pytest.mark.parametrize("line", ["cat", "cat:1,2::", "cat:1,2,3,4::", "cat:999,0,0::", ":1,2,3::"])
def test_a_labelmap_that_is_none(tmp_path, line):
    (tmp_path / "labelmap.txt").write_text(f"background:0,0,0::\n{line}\n")
    with pytest.raises(InputError, match=r"labelmap.txt: (line 2|classes\[1\])"):
        read_table(tmp_path / "labelmap.txt")


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.json", '["a", null]', r"classes\[1\]: is None"),
        ("a.json", '[{"id": 0, "name": null}, "b"]', r"classes\[0\]: name is None; give a name"),
        ("a.json", '[{"id": 0, "name": [1]}, "b"]', r"classes\[0\]: name is \[1\]"),
        ("a.json", '[{"id": 0.0, "name": "a"}, "b"]', r"classes\[0\]: id is 0.0"),
        ("a.json", '[{"id": [0], "name": "a"}, "b"]', r"classes\[0\]: id is \[0\]"),
        ("a.json", '[{"id": "²", "name": "a"}, "b"]', r"classes\[0\]: id is"),
        ("a.json", '[{"id": 0, "name": "a", "colour": {"r": 1}}, "b"]', "colour is"),
        ("a.json", '[{"id": 0, "name": "a", "colour": [1, 2, NaN]}, "b"]', "colour is"),
        ("a.json", '[{"id": 0, "name": "a", "colour": [true, 2, 3]}, "b"]', "colour is"),
        ("a.json", '[{"id": 0, "name": "a", "ignore": []}, "b"]', r"ignore is \[\]"),
        ("a.json", '{"classes": ["a", "b"], "ignore": [[1]]}', r"ignore is \[1\]"),
        ("a.json", '["a", "\\ud800"]', r"classes\[1\].* no text"),
        ("a.yaml", "? [a, b]\n: 1", "not YAML"),
        ("a.yaml", "- &a [*a]\n- b", "not YAML"),
        ("a.yaml", "a: " + "[" * 3000, "not YAML"),
        ("a.csv", "id,name\n0,a\x00\n", "no text|not CSV"),
        ("a.csv", "id,name\n0,a,b\n", r"classes\[0\]: has more columns"),
        ("a.csv", 'id,name\n0,"' + "a" * 200_000, "not CSV"),
    ],
)
def test_tables_of_other_types(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_table(tmp_path / name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_names_in_yaml_are_text(tmp_path):
    (tmp_path / "a.yaml").write_text("classes: [yes, no, 1.0, null, 2024-01-01]\nignore: null\n")
    table = read_table(tmp_path / "a.yaml")
    assert table.names == ["yes", "no", "1.0", "null", "2024-01-01"] and table.ignored == []
    (tmp_path / "a.yaml").write_text(
        "- {id: 0, name: off, colour: [1, 2, 3]}\n- {id: 0x1, name: on, ignore: yes}\n"
    )
    with pytest.raises(InputError, match="id is '0x1'"):
        read_table(tmp_path / "a.yaml")


def test_a_mean_over_one_class_is_no_success():
    import torch

    score = SegmentationScore([("a", (0, 0, 0)), ("b", (0, 0, 0))], 1)
    truth = torch.zeros(4, 4, dtype=torch.uint8)
    score.add(0, torch.zeros(4, 4, 3, dtype=torch.uint8), truth, truth, truth)
    assert score.metrics()["miou"] == 1 and score.metrics()["classes"] == 1
    said = verdict("miou", score.metrics(), [], 1.0)
    assert said.startswith("no verdict: held-out pixels are of one class alone")
    assert "the first evaluation" in verdict("miou", {"miou": 1.0, "classes": 2}, [], 0.5)


PANOPTIC = {
    "images": [{"id": 4, "file_name": "a.jpg"}],
    "annotations": [
        {"image_id": 4, "file_name": "a.png", "segments_info": [{"id": 5, "category_id": 1},
                                                               {"id": 6, "category_id": 2}]}
    ],
    "categories": [{"id": 1, "name": "sky", "color": [1, 2, 3]}, {"id": 2, "name": "sea"}],
}  # fmt: skip


@pytest.mark.parametrize(
    "part, change, said",
    [
        ("categories", {"color": ["a", 1, 2]}, r"categories\[0\].color is"),
        ("categories", {"color": [1, 2, 300]}, r"categories\[0\].color is"),
        ("categories", {"color": [1, float("nan"), 3]}, r"categories\[0\].color is"),
        ("categories", {"color": "#010203"}, None),
        ("categories", {"color": None}, None),
        ("categories", {"id": True}, r"categories\[0\].id is True"),
        ("categories", {"id": "1"}, r"categories\[0\].id is '1'"),
        ("categories", {"id": [1]}, r"categories\[0\].id is \[1\]"),
        ("categories", {"name": None}, r"categories\[0\].name is None"),
        ("images", {"id": [4]}, r"images\[0\].id is \[4\]"),
        ("images", {"id": 4.0}, r"images\[0\].id is 4.0"),
        ("images", {"file_name": 7}, r"images\[0\].file_name is 7"),
        ("images", {"file_name": "a\0"}, r"images\[0\].file_name is"),
        ("annotations", {"image_id": {}}, r"annotations\[0\] has image_id \{\}"),
        ("annotations", {"image_id": None}, r"annotations\[0\] has image_id None"),
        ("annotations", {"file_name": None}, r"annotations\[0\].file_name is None"),
        ("annotations", {"segments_info": None}, r"annotations\[0\].segments_info is None"),
        ("annotations", {"segments_info": [5]}, r"segments_info\[0\] has no field 'id'"),
        ("annotations", {"segments_info": [{"id": True, "category_id": 1}]}, "id is True"),
        ("annotations", {"segments_info": [{"id": 10**30, "category_id": 1}]}, "id is 1000"),
        ("annotations", {"segments_info": [{"id": 5, "category_id": [1]}]}, "category_id is"),
        ("annotations", {"segments_info": [{"id": 5, "category_id": 1.0}]}, "category_id is 1.0"),
    ],
)
def test_panoptic_values_of_other_types(tmp_path, part, change, said):
    tree = json.loads(json.dumps(PANOPTIC))
    tree[part][0].update(change)
    file = tmp_path / "set.json"
    file.write_text(json.dumps(tree))
    (tmp_path / "set").mkdir()
    ids = np.full((4, 4, 3), (5, 0, 0), np.uint8)
    ids[0] = (6, 0, 0)
    Image.fromarray(ids).save(tmp_path / "set/a.png")
    Image.fromarray(ids).save(tmp_path / "a.jpg")
    if said is None:
        check(str(file))
        return
    with pytest.raises(InputError, match=f"set.json: .*{said}") as caught:
        open_masks(str(file))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"images": 1}', "1" * 5000, "\xff"])
def test_json_that_is_not_panoptic(tmp_path, text):
    (tmp_path / "set.json").write_text(text, encoding="latin-1")
    with pytest.raises(
        InputError, match="set.json: (cannot be read as JSON|has no list of objects 'images')"
    ):
        open_masks(str(tmp_path / "set.json"))
