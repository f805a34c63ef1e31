"""Sources, sets and folders that are unusual, changed, moved or a stranger's."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import labeling
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labeling import contents, detector, finds, images, label, read
from PIL import Image
from scenes import make_scenes
from test_box_sets import COUNTS, NAMES, coco, some

from downstream.dense.preflight import same_pixels
from downstream.detection.data.boxes import BoxSource, open_boxes
from downstream.segmentation.data.masks import MaskSource, open_masks
from ssld.common.errors import InputError

TASKS = ("detection", "segmentation")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """One of each task; what the detector finds is `some`."""
    root = make_scenes(tmp_path_factory.mktemp("scenes"), train=3, val=1)
    names = ["ground", "red", "green", "blue"]
    segmenter = labeling.segmenter(root / "s", f"{root}::train", f"{root}::val", names)
    return {
        "detection": detector(root / "d", coco(root / "labeled", COUNTS), None, NAMES),
        "segmentation": segmenter,
    }


@pytest.fixture(autouse=True)
def found(monkeypatch) -> None:
    finds(monkeypatch, some)


def give(run: Path, source: Path, out: Path, *words: str) -> int:
    return label(run, source, out, "--pixel_threshold=.2", *words)


def read_all(task: str, out: Path) -> BoxSource | MaskSource:
    """The set, each image and mask of which is read."""
    source = open_boxes(str(out)) if task == "detection" else open_masks(str(out))
    for i in range(len(source)):
        source.read(i)
        if isinstance(source, MaskSource):
            source.mask(i)
    return source


def png(i: int) -> bytes:
    pixels = np.random.default_rng(i).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    pixels[0, 0, 0] = i
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("task", TASKS)
def test_ids_that_are_no_paths(runs, tmp_path, task):
    """A file and a folder of one name, in a tar; ids of a manifest may be anything."""
    with tarfile.open(tmp_path / "u.tar", "w") as tar:
        for i, name in enumerate(("a.png", "a.png/b.png", "a/b.png", "A.PNG")):
            info, data = tarfile.TarInfo(name), png(i)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    ids = ["a", "a.png/b", "/abs", "../x", "x" * 400, "x" * 401, "A", "a\0b", " ", ".", "a\nb"]
    rows = {"sample_id": ids, "bytes": [png(i) for i in range(len(ids))]}
    pq.write_table(pa.table(rows), tmp_path / "u.parquet")
    for name, count in (("u.tar", 4), ("u.parquet", 11)):
        out = tmp_path / f"of {name}"
        assert give(runs[task], tmp_path / name, out) == 0
        assert len(read_all(task, out)) == count
        files = [path for path in out.rglob("*.png") if path.is_file()]
        assert len({str(path).casefold() for path in files}) == (count if files else 0)
        if name == "u.parquet":
            assert [read_all(task, out).sample_id(i) for i in range(count)] == ids


@pytest.mark.parametrize("task", TASKS)
def test_thin_images_and_odd_modes(runs, tmp_path, task):
    """At a tenth of their size some have less than a pixel."""
    source = images(tmp_path / "u", 2)
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 65535, (40, 60)).astype(np.uint16)).save(source / "16.png")
    Image.fromarray(draw.integers(0, 255, (40, 60, 4)).astype(np.uint8), "CMYK").save(
        source / "cmyk.jpg"
    )
    Image.fromarray(draw.integers(0, 2, (40, 60)).astype(bool)).save(source / "1 bit.png")
    Image.fromarray(draw.integers(0, 255, (40, 60)).astype(np.uint8)).save(source / "grey.png")
    for width, height in ((1, 1), (1, 99), (99, 1)):
        Image.new("RGB", (width, height), (9, 9, 9)).save(source / f"{width} {height}.png")
    words = ("--threshold=0", "--test.scales=[2, .1, 1]", "--test.flip=true")
    assert give(runs[task], source, tmp_path / "out", *words) == 0
    assert len(read_all(task, tmp_path / "out")) == 9


@pytest.mark.parametrize("task", TASKS)
def test_settings_that_cannot_be_meant(runs, tmp_path, capsys, task):
    source = images(tmp_path / "u", 2)
    assert give(runs[task], source, source / "out") == 2
    assert "lies inside of images" in capsys.readouterr().err and not (source / "out").exists()
    assert give(runs[task], source, tmp_path / "u2") == 0  # beside it
    capsys.readouterr()
    for scales, said in (("[1, .5, 1]", "each factor once"), ("[99]", "factors up to 16")):
        assert give(runs[task], source, tmp_path / "out", f"--test.scales={scales}") == 2
        assert said in capsys.readouterr().err


def test_a_view_that_is_too_large_is_refused_before_any_work(runs, tmp_path, capsys):
    source = images(tmp_path / "u", 2)
    Image.new("RGB", (4000, 1)).save(source / "wide.png")
    file = runs["detection"] / "model/config.json"
    run = shutil.copytree(runs["detection"], tmp_path / "run")
    content = json.loads(file.read_text())
    content["view"]["longest"] = None
    (run / "model/config.json").write_text(json.dumps(content))
    assert give(run, source, tmp_path / "out") == 0  # at one scale whatever it makes is allowed
    capsys.readouterr()
    assert give(run, source, tmp_path / "two", "--test.scales=[1, 2]") == 2
    said = capsys.readouterr().err
    assert "wide.png: test.scales: 2 makes a view of" in said
    assert not list((tmp_path / "two").glob("predictions/*"))


def test_an_image_that_changes_on_the_way(runs, tmp_path, monkeypatch, capsys):
    source = images(tmp_path / "u", 4)
    finds(monkeypatch, lambda i: some(i) if i else images(source, 1, (44, 62), first=3) and [])
    assert give(runs["detection"], source, tmp_path / "out") == 2
    assert "03.png could be read before, and now cannot (it was changed)" in capsys.readouterr().err
    finds(monkeypatch, some)
    assert give(runs["detection"], source, tmp_path / "out", "--overwrite=true") == 0
    sizes = [
        (x["width"], x["height"]) for x in read(tmp_path / "out", "annotations.json")["images"]
    ]
    assert sizes == [(60, 40)] * 3 + [(62, 44)]


@pytest.mark.parametrize("task", TASKS)
def test_a_set_without_its_images(runs, tmp_path, task):
    source = images(tmp_path / "u", 3)
    assert give(runs[task], source, tmp_path / "out") == 0
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert len(read_all(task, moved)) == 3
    (source / "01.png").unlink()
    with pytest.raises(InputError, match="1 of its 3 images are not where they were, .*01.png"):
        read_all(task, moved)


@pytest.mark.parametrize(
    "files", [[1], {"../x": "0"}, {"/dev/zero": "0"}, {}, None,
              {"annotations.json": 5, "images.parquet": None}],
)  # fmt: skip
def test_a_manifest_of_a_stranger(runs, tmp_path, files):
    out = tmp_path / "out"
    source = images(tmp_path / "u", 2)
    assert give(runs["detection"], source, out) == 0
    before = contents(out)
    (out / "pseudo_labels.json").write_text(json.dumps({**read(out), "files": files}))
    with pytest.raises(InputError, match="not the sha256 of annotations.json|damaged"):
        open_boxes(str(out))
    assert give(runs["detection"], source, out) == 0 and contents(out) == before


def test_what_a_folder_is_made_of_is_damaged(runs, tmp_path, capsys):
    out, source = tmp_path / "out", images(tmp_path / "u", 2)
    assert give(runs["detection"], source, out) == 0
    before = contents(out)
    for damage in ("", "[1]", (out / "labeling.json").read_text()[:99]):
        (out / "labeling.json").write_text(damage)
        assert give(runs["detection"], source, out) == 2
        assert "labeling.json is damaged" in capsys.readouterr().err
        assert give(runs["detection"], source, out, "--overwrite=true") == 0
        assert contents(out) == before


def test_a_list_of_labeled_images_with_odd_names(tmp_path, capsys):
    place = coco(tmp_path / "train", COUNTS)
    path, _, folder = place.partition("::")
    content = json.loads(Path(path).read_text())
    names = ("a\u2028b.png", "c\x85d.png", "e\x0cf.png", " g.png")
    for name, entry in zip(names, content["images"], strict=True):
        (Path(folder) / entry["file_name"]).rename(Path(folder) / name)
        entry["file_name"] = name
    Path(path).write_text(json.dumps(content))
    run, source = detector(tmp_path / "run", place, None, NAMES), images(tmp_path / "u", 2)
    (run / "labeled.txt").write_text("".join(f"{name}\n" for name in names[:3]))
    assert give(run, source, tmp_path / "out") == 0
    assert read(tmp_path / "out")["labeled"]["images"] == 3
    (run / "labeled.txt").write_text(f"{names[0]}\ngone.png\n")
    capsys.readouterr()
    assert give(run, source, tmp_path / "other") == 2
    assert "lists 2 images of" in capsys.readouterr().err


@pytest.mark.parametrize("task", TASKS)
def test_held_out_images_that_were_stored_anew(runs, tmp_path, task):
    """In joint training, of which the labels may have been made without the held-out set."""
    source = images(tmp_path / "u", 3)
    assert give(runs[task], source, tmp_path / "out") == 0
    held_out = images(tmp_path / "v", 4)
    for path in held_out.iterdir():
        image = Image.open(path)
        image.load()
        image.putpixel((1, 1), (1, 2, 3)) if path.name != "02.png" else None
        image.save(path, compress_level=0)
    assert give(runs[task], held_out, tmp_path / "val") == 0
    val, generated = (read_all(task, tmp_path / name) for name in ("val", "out"))
    assert same_pixels([val], [generated]) == [str(source / "02.png")]
    (held_out / "02.png").write_bytes(b"no image")  # like no other
    assert same_pixels([val], [generated]) == []


def test_a_turned_image_is_labeled_as_the_upright_one(tmp_path):
    outline = [[[2, 3, 22, 3, 22, 13, 2, 13]]]
    run = detector(
        tmp_path / "run", coco(tmp_path / "t", COUNTS, segmentation=outline), None, NAMES,
        "mask_rcnn",
    )  # fmt: skip
    sets = []
    with pytest.MonkeyPatch.context() as patch:
        from downstream.detection.inference import predict
        from downstream.pseudo_label import teacher

        patch.setattr(teacher, "predict", predict)
        for name in ("upright", "turned"):
            source = images(tmp_path / name, 2)
            for path in source.iterdir() if name == "turned" else ():
                exif = Image.Exif()
                exif[0x0112] = 6  # shown turned by 90 degrees clockwise
                Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
            out = tmp_path / f"labels {name}"
            assert label(run, source, out, "--threshold=0") == 0
            sets.append(read(out, "annotations.json"))
    assert sets[0]["annotations"] == sets[1]["annotations"] and sets[0]["annotations"]
    assert sets[0]["images"] == sets[1]["images"]
