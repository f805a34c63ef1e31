"""What would silently ruin a set of pseudo-labels is refused or named; what only looks like it is
neither."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import labeling
import numpy as np
import pytest
from labeling import contents, detector, finds, images, label, read
from PIL import Image
from test_box_sets import COUNTS, NAMES, coco, some

from downstream.detection.data.boxes import open_boxes
from ssld.common.errors import InputError


@pytest.fixture
def run(tmp_path) -> Path:
    train = coco(tmp_path / "train", COUNTS)
    val = coco(tmp_path / "val", COUNTS)
    for path in (tmp_path / "val").iterdir():
        pixels = np.zeros((40, 60, 3), np.uint8) + int(path.stem)
        Image.fromarray(pixels).save(path)
    return detector(tmp_path / "run", train, val, NAMES)


@pytest.fixture
def source(tmp_path) -> Path:
    return images(tmp_path / "u", 4)


def refused(capsys, *args, **kwargs) -> str:
    capsys.readouterr()
    assert label(*args, **kwargs) == 2
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    return said


def classes(*labels: int):
    """An instance of each in every image, all at one place."""
    return lambda i: [{"label": k, "score": 0.9, "box": [2, 2, 20, 20]} for k in labels]


def test_nothing_above_the_threshold(run, source, tmp_path, monkeypatch, capsys):
    finds(monkeypatch, classes(0, 1, 2))
    out = tmp_path / "out"
    said = refused(capsys, run, source, out, "--threshold=0.95")
    assert "no pseudo-label in 4 images reaches its threshold (the best score is 0.9" in said
    assert not (out / "pseudo_labels.json").exists() and not (out / "annotations.json").exists()
    seen = finds(monkeypatch, some)
    capsys.readouterr()
    assert label(run, source, out, "--threshold=0.1", "--overwrite=true") == 0
    assert not seen  # what was predicted is still right
    assert "img" not in capsys.readouterr().err
    finds(monkeypatch, lambda i: [])
    assert "nothing was found at all" in refused(capsys, run, source, tmp_path / "other")


def test_a_log_says_that_images_are_seen(run, source, tmp_path, monkeypatch, capsys):
    finds(monkeypatch, some)
    assert label(run, source, tmp_path / "out") == 0
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("annotate: ")]
    assert [" 0/4 " in lines[0], " 4/4 " in lines[-1], len(lines)] == [True, True, 2]


def test_an_image_in_which_nothing_is_found_is_a_negative(
    run, source, tmp_path, monkeypatch, capsys
):
    finds(monkeypatch, lambda i: classes(0, 1, 2)(i) if i == 2 else [])
    out = tmp_path / "out"
    assert label(run, source, out, "--threshold=.5") == 0
    generated = open_boxes(str(out))
    assert len(generated) == 4 and generated.report.without_boxes == 3
    assert read(out)["warnings"] == [] and read(out)["images_without"] == 3
    said, lead = capsys.readouterr().out, (out / "report.html").read_text()
    line = "3 annotations of 4 images, threshold of scores 0.500; none in 3 of them"
    assert line in said and line in lead and "note: each image is seen in one view" in said


def test_a_class_that_vanished(run, source, tmp_path, monkeypatch, capsys):
    finds(monkeypatch, classes(0, 1))
    assert label(run, source, tmp_path / "a", "--threshold=.5") == 0
    said = capsys.readouterr().out
    assert "warning: class 'bird' has vanished: the labeled set has 1" in said
    assert "'cat' has" not in said and "'dog' has" not in said
    many = images(tmp_path / "many", 40)
    finds(monkeypatch, lambda i: classes(0, 1, 2)(i) if i == 0 else classes(1, 2)(i))
    assert label(run, many, tmp_path / "b", "--threshold=.5") == 0
    said = capsys.readouterr().out
    assert "class 'cat' has nearly vanished: 1 pseudo-labels, of 50 that" in said
    assert "'dog'" not in said


def test_a_count_that_is_only_reached_by_guesses(run, source, tmp_path, monkeypatch, capsys):
    def unsure(i):
        scores = {0: 0.02, 1: 0.3, 2: 0.9}
        return [{"label": k, "score": x, "box": [2, 2, 20, 20]} for k, x in scores.items()]

    finds(monkeypatch, unsure)
    assert label(run, source, tmp_path / "a") == 0
    said = capsys.readouterr().out
    assert "class 'cat': as many as the labeled set has are only there from a score of 0.02" in said
    assert "class 'dog': as many" not in said and "class 'bird': as many" not in said
    assert label(run, source, tmp_path / "b", "--threshold=.01") == 0  # who asks for it gets it
    assert "as many as" not in capsys.readouterr().out


def test_all_of_one_class(run, source, tmp_path, monkeypatch, capsys):
    finds(monkeypatch, classes(1))
    assert label(run, source, tmp_path / "a", "--threshold=.5") == 0
    assert "all pseudo-labels are of one class, 'dog'" in capsys.readouterr().out
    only = coco(tmp_path / "only", [0, 3, 0])  # its labeled set has none of the others, either
    assert label(run, source, tmp_path / "b", "--threshold=.5", f"--labeled={only}") == 0
    assert "one class" not in capsys.readouterr().out and read(tmp_path / "b")["warnings"] == []


@pytest.mark.parametrize("how", ["bytes", "pixels"])
def test_held_out_images_are_refused_with_the_list(run, source, tmp_path, monkeypatch, capsys, how):
    seen = finds(monkeypatch, some)
    for i in (201, 203):
        name = source / f"copy of {i}.png"
        shutil.copy(tmp_path / "val" / f"{i}.png", name)
        if how == "pixels":
            Image.open(name).save(name, compress_level=0)
            assert name.read_bytes() != (tmp_path / "val" / f"{i}.png").read_bytes()
    out = tmp_path / "out"
    said = refused(capsys, run, source, out)
    assert "2 of 6 are held out" in said
    assert "copy of 201.png (is 201.png), copy of 203.png (is 203.png)" in said
    listed = [x.split("\t") for x in (out / "held_out.txt").read_text().splitlines()]
    pairs = [(source / f"copy of {i}.png", tmp_path / "val" / f"{i}.png") for i in (201, 203)]
    assert listed == [[str(x) for x in pair] for pair in pairs] and not seen
    for path in source.glob("copy*"):
        pixels = np.array(Image.open(path))
        pixels[1, 1] ^= 1
        Image.fromarray(pixels).save(path)  # nearly the same is not the same
    assert label(run, source, out) == 0  # as nothing was labeled yet, nothing is overwritten
    assert not (out / "held_out.txt").exists()


def test_labeled_images_are_left_out_and_counted(run, source, tmp_path, monkeypatch, capsys):
    seen = finds(monkeypatch, some)
    shutil.copy(tmp_path / "train" / "202.png", source / "again.png")
    shutil.copy(source / "00.png", source / "twin.png")
    assert label(run, source, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "left out: 1 of 6 images have human annotations" in said and "again.png" in said
    assert "1 of 6 images are the same picture as another one (twin.png" in said
    assert sorted(seen) == [0, 1, 2, 3]
    counts = read(tmp_path / "out")["images"]
    assert list(counts.values()) == [4, 0, 1, 1]
    assert "again.png" not in (tmp_path / "out" / "annotations.json").read_text()


def test_other_classes_and_keypoints(run, source, tmp_path, capsys):
    folder, out = tmp_path / "other", tmp_path / "out"
    path, _, where = coco(folder, COUNTS).partition("::")
    content = json.loads(Path(path).read_text())
    for change, words in (
        ({"name": "fish"}, "is of class 'fish'"),
        ({"name": "bird", "drop": True}, "has no class 'bird'"),
    ):
        altered = json.loads(json.dumps(content))
        if "drop" in change:
            altered["categories"].pop()
            altered["annotations"] = [x for x in altered["annotations"] if x["category_id"] != 90]
        else:
            altered["categories"][-1]["name"] = change["name"]
        Path(path).write_text(json.dumps(altered))
        assert words in refused(capsys, run, source, out, f"--labeled={path}::{where}")
    more = json.loads(json.dumps(content))
    more["categories"].append({"id": 4, "name": "never there"})
    Path(path).write_text(json.dumps(more))
    posed = detector(tmp_path / "posed", f"{path}::{where}", None, NAMES, "keypoint_rcnn")
    said = refused(capsys, posed, source, out)
    assert "has the keypoints none" in said and "finds top, left, right" in said
    assert not out.exists()


def test_a_class_of_the_file_without_boxes_is_none_of_the_networks(
    run, source, tmp_path, monkeypatch
):
    finds(monkeypatch, some)
    path, _, where = coco(tmp_path / "other", COUNTS).partition("::")
    content = json.loads(Path(path).read_text())
    content["categories"].append({"id": 4, "name": "never there"})
    Path(path).write_text(json.dumps(content))
    assert label(run, source, tmp_path / "out", f"--labeled={path}::{where}") == 0


def test_sources(run, source, tmp_path, monkeypatch, capsys):
    finds(monkeypatch, some)
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capsys, run, tmp_path / "empty", out)
    assert "no such" in refused(capsys, run, tmp_path / "nowhere", out)
    assert not out.exists()
    (source / "broken.png").write_bytes(b"no image")
    said = refused(capsys, run, source, out)
    assert "1 of 5 images cannot be read" in said and "broken.png" in said
    assert label(run, source, out, "--max_unreadable=.2") == 0
    assert "1 of 5 cannot be read" in capsys.readouterr().out
    twice = json.dumps([str(source), str(source)])
    both = tmp_path / "both"
    assert label(run, twice, both, "--max_unreadable=.2") == 0
    assert "4 of 10 images are the same picture" in capsys.readouterr().out
    assert len(open_boxes(str(both))) == 4
    train = json.dumps([str(tmp_path / "train")])
    assert "none is left to annotate" in refused(capsys, run, train, tmp_path / "none")


def test_a_copy_of_the_model_needs_to_be_told(run, source, tmp_path, monkeypatch, capsys):
    finds(monkeypatch, some)
    model = tmp_path / "copy"
    shutil.copytree(run / "model", model)
    said = refused(capsys, model, source, tmp_path / "a")
    assert "no labeled set is known" in said and "--labeled" in said
    words = ("--threshold=0.2", "--keypoint_threshold=0.2")
    assert label(model, source, tmp_path / "b", *words) == 0
    assert "no held-out set is known" in capsys.readouterr().out
    ids = [x["id"] for x in read(tmp_path / "b", "annotations.json")["categories"]]
    assert ids == [1, 2, 3]
    assert label(run / "model", source, tmp_path / "c") == 0  # it lies in its run folder


def test_a_folder_of_other_labels(run, source, tmp_path, monkeypatch, capsys):
    finds(monkeypatch, some)
    out = tmp_path / "out"
    assert label(run, source, out) == 0
    before = contents(out)
    said = refused(capsys, run, source, out, "--threshold=.3")
    assert "other settings (threshold: count, now 0.3)" in said and "--overwrite" in said
    assert "other views" in refused(capsys, run, source, out, "--test.flip=true")
    Image.new("RGB", (60, 40)).save(source / "more.png")
    assert "of other images" in refused(capsys, run, source, out)
    (source / "more.png").unlink()
    other = detector(tmp_path / "r2", *(f"{tmp_path / x}.json::{tmp_path / x}"
                                        for x in ("train", "val")), NAMES[::-1])  # fmt: skip
    assert "another network" in refused(capsys, other, source, out)
    annotations = (tmp_path / "train.json").read_text()
    (tmp_path / "train.json").write_text(annotations.replace('"iscrowd": 1', '"iscrowd": 0'))
    assert "another labeled set" in refused(capsys, run, source, out)
    (tmp_path / "train.json").write_text(annotations)
    assert contents(out) == before
    assert label(run, source, out) == 0 and "nothing to do" in capsys.readouterr().out
    (out / "thesis.tex").write_text("precious")
    said = refused(capsys, run, source, out, "--threshold=.3", "--overwrite=true")
    assert "thesis.tex" in said and contents(out) == before
    (out / "thesis.tex").unlink()
    assert label(run, source, out, "--threshold=.3", "--overwrite=true") == 0
    assert read(out)["settings"]["threshold"] == 0.3


def test_folders_that_cannot_be_used(run, source, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("precious")
    for out, words in ((tmp_path / "file", "is a file"), (tmp_path / "full", "is not empty"),
                       (tmp_path, "lies inside of it")):  # fmt: skip
        assert words in refused(capsys, run, source, out)
    assert (tmp_path / "full/thesis.tex").read_text() == "precious"


def test_damage_is_noticed(run, source, tmp_path, monkeypatch):
    finds(monkeypatch, some)
    out = tmp_path / "out"
    assert label(run, source, out, "--shard_size=2") == 0
    before = contents(out)
    for name in ("annotations.json", "images.parquet"):
        data = bytearray((out / name).read_bytes())
        data[len(data) // 2] ^= 1
        (out / name).write_bytes(data)
        with pytest.raises(InputError, match="damaged or was changed"):
            open_boxes(str(out))
        assert label(run, source, out, "--shard_size=2") == 0
        assert contents(out) == before
    seen = finds(monkeypatch, some)
    pieces = sorted((out / "predictions").iterdir())
    data = bytearray(pieces[1].read_bytes())
    data[-100] ^= 4
    pieces[1].write_bytes(data)
    pieces[0].write_bytes(pieces[0].read_bytes()[:-1])
    (out / "pseudo_labels.json").unlink()
    assert label(run, source, out, "--shard_size=2") == 0
    assert sorted(seen) == [0, 1, 2, 3] and contents(out) == before


def test_a_network_that_has_diverged(run, source, tmp_path, monkeypatch, capsys):
    finds(monkeypatch, lambda i: [{"label": 0, "score": float("nan"), "box": [1, 1, 9, 9]}])
    assert "not finite" in refused(capsys, run, source, tmp_path / "out")


def test_an_image_that_is_lost_on_the_way(run, source, tmp_path, monkeypatch, capsys):
    gone = labeling.finds(monkeypatch, lambda i: (source / "03.png").unlink(missing_ok=True) or [])
    said = refused(capsys, run, source, tmp_path / "out")
    assert "03.png could be read before, and now cannot" in said and gone == [0, 1, 2]


def test_what_is_missing_is_said_whole(capsys):
    from ssld.cli.run import main

    for words in ([], ["run"], ["run", "--images=x"], ["--images=x", "--out=y"]):
        assert main(["pseudo-label", *words]) == 2
        assert "ssld pseudo-label RUN --images SOURCES --out DIR" in capsys.readouterr().err
    words = ["run", "--images=x", "--out=y", "--threshold=1.5"]
    assert main(["pseudo-label", *words]) == 2
    assert "threshold is 1.5: give count, or a score from 0 to 1" in capsys.readouterr().err
