"""Masks of every encoding mean what a naive reading of them means; what is wrong with
them is said in one sentence, before a run and while it reads."""

from __future__ import annotations

import json
import pickle
import struct
import zlib

import numpy as np
import pytest
from mask_sets import COLOUR, TABLE, as_palette, folder, ids, numbers_of, picture, save
from PIL import Image

from downstream.segmentation.data.masks import open_masks
from downstream.segmentation.data.preflight import inspect
from ssld.common.errors import InputError
from ssld.data.decode import Unreadable


def few_bits(array: np.ndarray, depth: int) -> bytes:
    """A grey PNG of `depth` bits a pixel, written by hand (PNG specification, 5 and 11.2.1)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    bits = [
        "".join(f"{x:0{depth}b}" for x in row) + "0" * (-len(row) * depth % 8)
        for row in array.tolist()
    ]
    rows = b"".join(b"\0" + int(b, 2).to_bytes(len(b) // 8, "big") for b in bits)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], depth, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_every_encoding_of_ids_and_colours_gives_the_same_class_numbers(tmp_path):
    array = ids()
    path = folder(tmp_path, {"a": array})
    file = tmp_path / "masks/train/a.png"
    colours = np.array([[COLOUR[x] for x in row] for row in array.tolist()], np.uint8)
    alpha = np.random.default_rng(0).integers(0, 255, (6, 9, 1)).astype(np.uint8)
    encodings = {
        "grey": lambda: Image.fromarray(array).save(file),
        "palette": lambda: as_palette(array).save(file),
        "2 bits": lambda: file.write_bytes(few_bits(array, 2)),
        "4 bits": lambda: file.write_bytes(few_bits(array, 4)),
        "2 bits of palette": lambda: as_palette(array).save(file, bits=2),
        "16 bits": lambda: Image.fromarray(array.astype(np.uint16)).save(file),
        "grey and alpha": lambda: Image.fromarray(np.dstack([array, alpha]), "LA").save(file),
        "colours": lambda: Image.fromarray(colours).save(file),
        "colours and alpha": lambda: Image.fromarray(np.dstack([colours, alpha])).save(file),
    }
    table = json.loads(json.dumps(TABLE))
    table["classes"].append({"id": 2, "name": "void", "colour": "#000000", "ignore": True})
    (tmp_path / "classes.json").write_text(json.dumps(table))
    for name, write in encodings.items():
        write()
        mask = open_masks(path).mask(0)
        assert mask.dtype == np.uint8 and np.array_equal(mask, numbers_of(array)), name


def test_one_bit_masks_are_two_classes(tmp_path):
    array = ids(values=(0, 1))
    path = folder(tmp_path, {"a": array}, ["ground", "building"])
    Image.fromarray(array.astype(bool)).save(tmp_path / "masks/train/a.png")
    assert np.array_equal(open_masks(path).mask(0), array)


def test_ids_above_255_are_known_in_16_bit_masks(tmp_path):
    array = ids(values=(0, 255)).astype(np.uint16) * 2 + 7
    table = [{"id": 7, "name": "a"}, {"id": 517, "name": "b"}]
    source = open_masks(folder(tmp_path, {"a": array}, table))
    assert np.array_equal(source.mask(0), array == 517)


def test_an_id_without_class_is_named_with_its_file_and_pixel(tmp_path):
    array = ids()
    array[4, 7], array[5, 0] = 77, 78
    source = open_masks(folder(tmp_path, {"a": ids(), "b": array, "c": array}))
    with pytest.raises(Unreadable, match=r"mask .*b\.png: pixel \[4, 7\]: id 77 has no class in"):
        source.mask(1)
    assert np.array_equal(source.mask(0), numbers_of(ids()))
    assert {key: x.count for key, x in inspect(source).unknown.items()} == {"id 77": 2, "id 78": 2}
    with pytest.raises(InputError, match=r"b\.png: 1 px: id 7[78] has no class.*classes\.json"):
        inspect(source).check()


def test_a_colour_without_class_is_named(tmp_path):
    colours = np.full((6, 9, 3), (255, 0, 0), np.uint8)
    colours[1, 2] = (1, 2, 3)
    path = folder(tmp_path, {"a": ids()})
    save(tmp_path / "masks/train/a.png", colours)
    source = open_masks(path)
    with pytest.raises(Unreadable, match=r"pixel \[1, 2\]: colour #010203 has no class"):
        source.mask(0)
    assert list(inspect(source).unknown) == ["colour #010203"]
    (tmp_path / "classes.json").write_text('["a", "b"]')
    with pytest.raises(Unreadable, match="does not give each class a colour"):
        open_masks(path).mask(0)


def test_a_mask_of_another_size_is_named_with_both_sizes(tmp_path):
    source = open_masks(folder(tmp_path, {"a": ids(), "b": ids()}))
    save(tmp_path / "masks/train/b.png", ids(shape=(9, 6)))
    said = r"mask .*b\.png: size is 9 x 6 px .*upright image is 6 x 9: turn it with the image"
    with pytest.raises(Unreadable, match=said):
        source.mask(1)
    with pytest.raises(InputError, match=said):
        inspect(source).check()
    with pytest.raises(Unreadable, match="that of the upright image is 7 x 9: save it at"):
        source.mask(0, (7, 9))


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_mask_belongs_to_the_upright_image(tmp_path, orientation):
    shape = (6, 9) if orientation == 3 else (9, 6)
    path = folder(tmp_path, {"a": ids()})
    picture(tmp_path / "images/train/a.jpg", shape, orientation)
    source = open_masks(path)
    assert np.array_equal(source.mask(0), numbers_of(ids()))
    assert inspect(source).turned == 1 and inspect(source).wrong_size.count == 0
    assert any("1 images are turned upright" in line for line in inspect(source).lines())


def test_images_without_mask_are_left_out_and_counted(tmp_path):
    path = folder(tmp_path, {"x/a": ids(), "b": ids()})
    picture(tmp_path / "images/train/c.jpg")
    source = open_masks(path)
    assert [source.sample_id(i) for i in range(2)] == ["b.jpg", "x/a.jpg"] and len(source) == 2
    assert inspect(source).without_mask.places == ["c.jpg"]
    assert "1 images without a mask, left out:" in inspect(source).lines()
    inspect(source).check()


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "jpeg", "bits"])
def test_a_damaged_mask_is_unreadable_and_the_others_are_counted(tmp_path, damage):
    array = ids(shape=(60, 90))
    source = open_masks(folder(tmp_path, {"a": array, "b": array}))
    file = tmp_path / "masks/train/a.png"
    data = file.read_bytes()
    if damage == "jpeg":
        Image.fromarray(array).save(file, "JPEG")
    else:
        middle = len(data) // 2
        flipped = bytes(x ^ 255 for x in data[middle : middle + 8])
        bits = data[:middle] + flipped + data[middle + 8 :]
        file.write_bytes({"cut": data[:middle], "empty": b"", "text": b"no", "bits": bits}[damage])
    with pytest.raises(Unreadable, match=r"^mask .*a\.png: "):
        source.mask(0)
    report = inspect(source)
    assert report.unreadable.count == 1 and "a.png" in report.unreadable.places[0]
    assert sum(c.pixels for c in report.classes) == (array != 2).sum()
    report.check()


def test_what_is_gone_since_the_start_is_unreadable(tmp_path):
    source = open_masks(folder(tmp_path, {"a": ids(), "b": ids()}))
    (tmp_path / "masks/train/a.png").unlink()
    (tmp_path / "images/train/b.jpg").write_bytes(b"no")
    with pytest.raises(Unreadable, match=r"mask .*a\.png: "):
        source.mask(0)
    assert inspect(source).unreadable.count == 2
    with pytest.raises(InputError, match="none of the 2 masks has a pixel of any class"):
        inspect(source).check()


def test_the_report_counts_as_a_naive_loop_does(tmp_path):
    arrays = {"a": ids(0, (5, 7)), "b": ids(1, (8, 3), (0, 2)), "c": np.full((2, 2), 2, np.uint8)}
    report = inspect(open_masks(folder(tmp_path, arrays)))
    pixels, images, ignored = {3: 0, 0: 0, 1: 0}, {3: 0, 0: 0, 1: 0}, 0
    for array in arrays.values():
        for x in array.ravel().tolist():
            if x == 2:
                ignored += 1
            else:
                pixels[x] += 1
        for x in pixels:
            images[x] += int((array == x).any())
    assert [c.pixels for c in report.classes] == list(pixels.values())
    assert [c.images for c in report.classes] == list(images.values())
    assert report.ignored_pixels == ignored
    assert report.shares() == [x / sum(pixels.values()) for x in pixels.values()]
    assert report.smallest == (2, 2) and report.largest == (5, 7)
    tree = json.loads(json.dumps(report.as_dict()))
    assert tree["classes"][0]["share"] == report.shares()[0]
    assert any("2 x 2 to 5 x 7 px" in line for line in report.lines())


def test_hashes_tell_a_change_of_masks_list_or_table(tmp_path):
    path = folder(tmp_path, {"a": ids(), "b": ids()})
    before = inspect(open_masks(path)).hashes
    assert before == inspect(open_masks(path)).hashes
    changed = ids()
    changed[0, 0] = (changed[0, 0] + 1) % 4
    save(tmp_path / "masks/train/b.png", changed)
    after = inspect(open_masks(path)).hashes
    assert after["masks"] != before["masks"] and after["list"] == before["list"]
    folder(tmp_path, {"c": ids()}, {**TABLE, "ignore": [2, 9]})
    last = inspect(open_masks(path)).hashes
    assert last["list"] != before["list"]
    table = str(tmp_path / "classes.json")
    assert last[table] != before[table]


def test_a_set_without_any_labelled_pixel_is_refused(tmp_path):
    source = open_masks(folder(tmp_path, {"a": np.full((4, 4), 2, np.uint8)}))
    assert "warning: no pixel of sky, road, car" in inspect(source).lines()
    with pytest.raises(InputError, match="none of the 1 masks has a pixel of any class"):
        inspect(source).check()


def test_classes_are_numbered_as_the_network_has_them(tmp_path):
    path = folder(tmp_path, {"a": ids()})
    source = open_masks(path, ["car", "sky", "road"])
    moved = {0: 1, 1: 2, 2: 0, 255: 255}
    expected = [[moved[x] for x in row] for row in numbers_of(ids()).tolist()]
    assert source.class_names == ["car", "sky", "road"]
    assert source.mask(0).tolist() == expected
    assert source.palette.tolist() == [[255, 0, 0], [0, 0, 255], [128, 64, 128]]
    with pytest.raises(InputError, match=r"classes\.json: .*lacks bus and has road besides"):
        open_masks(path, ["car", "sky", "bus"])


def test_a_source_pickles_small_and_reads_its_images(tmp_path):
    source = open_masks(folder(tmp_path, {f"{i:04}": ids(shape=(2, 2)) for i in range(50)}))
    data = pickle.dumps(source)
    again = pickle.loads(data)
    assert np.array_equal(again.mask(7), source.mask(7)) and again.read(7) == source.read(7)
    assert again.location(7) == str(tmp_path / "images/train/0007.jpg")
    assert again.size(7) == len(source.read(7))
    assert len(data) < 20_000
