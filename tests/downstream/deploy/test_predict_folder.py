"""A prediction that dies late has written what it had, and nothing outside of its folder."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import ssld
from downstream.deploy import predict
from ssld.cli.run import main
from ssld.common.errors import InputError
from ssld.engine.checkpoint import export
from ssld.models.opening import open_network


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """An exported classifier."""
    folder = tmp_path_factory.mktemp("student") / "student"
    export(open_network("student", arch="test_resnet", num_classes=3, input_size=32), folder, 1)
    return folder


@pytest.fixture
def images(colours, tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, path in enumerate(sorted((colours / "unlabeled").iterdir())[:4]):
        shutil.copy(path, folder / f"{i}.png")
    return folder


def run(student: Path, images: Path, out: Path) -> int:
    return main(["predict", str(student), str(images), f"--out={out}"])


def written(out: Path) -> tuple[list[str], list[str]]:
    """Images with a line, and images with a picture."""
    file = out / "predictions.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    pictures = sorted(path.name for path in (out / "images").iterdir())
    return [json.loads(line)["file"] for line in lines], pictures


class Killed(BaseException):
    pass


@pytest.mark.parametrize("error", [Killed(), RuntimeError("out of memory"), KeyboardInterrupt()])
def test_what_was_drawn_has_a_line(student, images, tmp_path, monkeypatch, error):
    whole = predict._Writer.write

    def dying(self, i, found):
        if i == 2:
            raise error
        whole(self, i, found)

    monkeypatch.setattr(predict._Writer, "write", dying)
    if isinstance(error, KeyboardInterrupt):
        assert run(student, images, tmp_path / "out") == 130
    else:
        with pytest.raises(type(error)):
            run(student, images, tmp_path / "out")
    assert written(tmp_path / "out") == (["0.jpg", "1.jpg"],) * 2


@pytest.mark.parametrize("what", ["write_bytes", "open"])
def test_a_full_disk_is_one_sentence(student, images, tmp_path, monkeypatch, capsys, what):
    whole, calls = getattr(Path, what), []

    def full(path, *args, **kwargs):
        if path.suffix in (".jpg", ".jsonl"):
            calls.append(path)
            if len(calls) == 3:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return whole(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, what, full)
        assert run(student, images, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "No space left on device) after" in said and "another --out" in said
    lines, _ = written(tmp_path / "out")
    assert lines and all((tmp_path / f"out/images/{file}").is_file() for file in lines)


def test_folders_that_cannot_be_used(student, images, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("precious")
    for out, words in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "full", "is not empty"),
        (tmp_path / "file/below", "cannot be written"),
    ):
        assert run(student, images, out) == 2
        *_, said = capsys.readouterr().err.splitlines()
        assert words in said and said.startswith("error: ")
    assert (tmp_path / "full/thesis.tex").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert run(student, images, tmp_path / "empty") == 0


def test_no_sample_id_leads_out_of_the_folder(student, images, tmp_path):
    data = (images / "0.png").read_bytes()
    names = [
        "../../../evil",
        f"{tmp_path}/absolute",
        "/".join(["a"] * 3),
        "./a/../a/a/a",  # the same place as the one before, after all
        "..",
        "x" * 300,
        "名" * 100 + ".png",
        "a\\b: *?",
    ]
    table = pa.table({"sample_id": names, "bytes": [data] * len(names)})
    pq.write_table(table, tmp_path / "images.parquet")
    before = set(tmp_path.iterdir())
    out = tmp_path / "out"
    assert run(student, tmp_path / "images.parquet", out) == 0
    assert set(tmp_path.iterdir()) == {*before, out}
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == names
    files = [line["file"] for line in lines]
    assert len(set(files)) == len(names)
    assert all((out / "images" / file).is_file() for file in files)
    assert (files[2], files[-1]) == ("a/a/a.jpg", "a\\b: *?.jpg")  # plain names stay as they are


def test_pictures_have_the_names_of_their_images(student, images, tmp_path):
    """Without the old ending, as long as no other image has that name."""
    expected = {
        "x/a.png": "x/a.jpg",
        "y/a.png": "y/a.jpg",
        "y/a.jpg": "y/a.jpg.jpg",
        "y/a.jpg.png": "y/a.jpg.png.jpg",
        "B.JPEG": "B.jpg",
        "v1.5": "v1.5.jpg",
    }
    data = [(images / f"{i % 4}.png").read_bytes() for i in range(len(expected))]
    table = pa.table({"sample_id": list(expected), "bytes": data})
    pq.write_table(table, tmp_path / "images.parquet")
    out = tmp_path / "out"
    assert run(student, tmp_path / "images.parquet", out) == 0
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert {line["image"]: line["file"] for line in lines} == expected
    drawn = {str(path.relative_to(out / "images")) for path in out.rglob("*.jpg")}
    assert drawn == set(expected.values())


def test_a_picture_that_no_jpeg_can_hold(student, images, tmp_path):
    Image.new("L", (65_501, 1)).save(images / "wide.png")
    out = tmp_path / "out"
    assert run(student, images, out) == 0
    names = {f"{i}.jpg" for i in range(4)} | {"wide.png"}
    assert {path.name for path in (out / "images").iterdir()} == names
    with Image.open(out / "images/wide.png") as drawn:
        assert drawn.size == (65_501, 1)


def test_what_is_missing_is_said_whole(capsys):
    for words in ([], ["run"], ["run", "images"], ["run", "images", "--out="]):
        assert main(["predict", *words]) == 2
        assert "ssld predict RUN IMAGES --out DIR" in capsys.readouterr().err


def test_one_by_one_in_python(student, images, tmp_path, capsys):
    (images / "1.png").write_bytes(b"no image")
    found = ssld.predict(run=student, images=images, max_unreadable=0.25)
    first = next(found)
    assert first.line["image"] == "0.png" and len(first.line["classes"]) == 3
    assert [x.line["image"] for x in found] == ["2.png", "3.png"]
    assert "1.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="1 of 4 images cannot be read, more than max_unreadable"):
        list(ssld.predict(run=student, images=images))
