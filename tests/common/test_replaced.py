"""What commands may replace at --out and --json: their own earlier results, and no other file."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from ssld.__main__ import main
from ssld.common.errors import InputError
from ssld.common.paths import KINDS, check_file
from ssld.curate.folder import unfinished
from ssld.engine.checkpoint import export
from ssld.models.opening import open_network

PRECIOUS = ["a thesis", "", '{"architecture": "resnet18"}', "[1, 2]", "[" * 100_000, "\0\xff"]


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("student") / "net"
    network = open_network("student", arch="test_resnet", num_classes=3, input_size=32)
    export(network, folder, 1)
    return folder


def said(capsys) -> str:
    found = capsys.readouterr().err
    assert found.startswith("error: ") and found.count("\n") == 1
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", PRECIOUS)
def test_another_file_is_not_replaced(tmp_path, kind, content):
    file = tmp_path / "mine"
    file.write_text(content)
    with pytest.raises(InputError, match="out is .*mine, which exists and is no earlier result"):
        check_file("out", str(file), kind)
    assert file.read_text() == content


def test_places_that_cannot_be_written_to(tmp_path, monkeypatch):
    for path, words in ((tmp_path, "name a file"), (tmp_path / "no/x.json", "folder that exists")):
        with pytest.raises(InputError, match=words):
            check_file("json", path, "plan")
    check_file("out", tmp_path / "no/x.onnx", "onnx")  # makes its folder
    check_file("out", None, "plan")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="is not writable"):
        check_file("json", tmp_path / "x.json", "plan")


def test_evaluate_replaces_its_own_result_alone(student, colours, tmp_path, capsys):
    out = tmp_path / "result.json"
    given = ["evaluate", f"--model={student}", f"--data={colours / 'val'}", "--workers=0"]
    for _ in range(2):
        assert main([*given, f"--out={out}"]) == 0
    capsys.readouterr()
    weights = student / "model.safetensors"
    before = weights.read_bytes()
    for path in (weights, student / "config.json", tmp_path / "nowhere/result.json"):
        assert main([*given, f"--out={path}"]) == 2
        assert f"out is {path}" in said(capsys)
    assert weights.read_bytes() == before


def test_exports_replace_exports_alone(student, tmp_path, capsys):
    (tmp_path / "mine.pt").write_bytes(b"weights of a year")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/model.safetensors").write_bytes(b"weights of a year")
    given = ["zoo", "export", str(student)]
    for format, name in (
        ("torchscript", "mine.pt"),
        ("onnx", "mine.pt"),
        ("torchvision", "photos"),
    ):
        assert main([*given, f"--format={format}", f"--out={tmp_path / name}"]) == 2
        said(capsys)
    assert (tmp_path / "mine.pt").read_bytes() == b"weights of a year"
    assert (tmp_path / "photos/model.safetensors").read_bytes() == b"weights of a year"
    for _ in range(2):
        assert main([*given, "--format=torchscript", f"--out={tmp_path / 'net.pt'}"]) == 0
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("other/code/model.py", "")  # of somebody else's TorchScript
    with pytest.raises(InputError, match="no earlier result"):
        check_file("out", tmp_path / "other.pt", "torchscript")


def test_an_onnx_file_is_known_by_its_metadata(tmp_path):
    import onnx

    graph = onnx.helper.make_graph([], "g", [], [])
    for facts, fits in (({}, False), ({"mean": "0", "std": "1", "input_size": "3"}, True)):
        model = onnx.helper.make_model(graph)
        onnx.helper.set_model_props(model, facts)
        onnx.save(model, str(tmp_path / "net.onnx"))
        if fits:
            check_file("out", tmp_path / "net.onnx", "onnx")
        else:
            with pytest.raises(InputError, match="no earlier result"):
                check_file("out", tmp_path / "net.onnx", "onnx")


def test_a_bundle_replaces_bundles_alone(tmp_path, capsys):
    import io
    import tarfile

    for name, members, fits in (
        ("photos.tar", ["a/1.jpg", "a/b/ssld.json"], False),
        ("zoo.tar", ["net/config.json", "net/ssld.json"], True),
    ):
        with tarfile.open(tmp_path / name, "w") as archive:
            for member in members:
                archive.addfile(tarfile.TarInfo(member), io.BytesIO())
        before = (tmp_path / name).read_bytes()
        # what is wrong with the release is seen only if the file may be replaced
        assert main(["zoo", "bundle", str(tmp_path), f"--out={tmp_path / name}"]) == 2
        assert ("no earlier result" in said(capsys)) is not fits
        assert (tmp_path / name).read_bytes() == before


CURATE = ["curate", "index", "--workers=0"]


def test_settings_of_a_user_do_not_make_a_curation(colours, tmp_path, capsys):
    mine = tmp_path / "curation"
    mine.mkdir()
    text = f"# mine\ngallery: {colours / 'unlabeled'}\nprotected: {colours / 'val'}\nout: {mine}\n"
    (mine / "config.yaml").write_text(text)
    assert main([*CURATE, f"--config={mine / 'config.yaml'}"]) == 2
    assert "not the folder of a curation" in said(capsys)
    assert (mine / "config.yaml").read_text() == text
    for content in ("", "5", "gallery", "[gallery]", "{", "\0"):
        (mine / "config.yaml").write_text(content)
        assert main([*CURATE, f"--gallery={mine}", f"--protected={mine}", f"--out={mine}"]) == 2
        said(capsys)


def test_a_curation_goes_on_and_keeps_what_is_not_its_own(colours, tmp_path, capsys):
    out = tmp_path / "out"
    given = [*CURATE, f"--gallery={colours / 'unlabeled'}", f"--protected={colours / 'val'}"]
    assert main([*given, f"--out={out}"]) == 0
    mine = [out / "images/.hidden.parquet.bak", out / "mine/.x.npy.1", out / "work/notes.txt"]
    mine += [out / "index/.x.parquet.old"]
    left = [
        out / "index/.gallery.parquet.123",
        out / ".selected.parquet.9",
        out / "work/a/.b.npy.1",
    ]
    for path in (*mine, *left):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert set(unfinished(out)) == set(left)
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["gallery"] == [str(colours / "unlabeled")]
    assert main([*given, f"--out={out}"]) == 0
    assert all(path.exists() for path in mine) and not any(path.exists() for path in left)
    capsys.readouterr()
    (tmp_path / "linked").symlink_to(out / "images")
    for words in (
        [f"--gallery={out}/index/gallery.parquet"],
        [f"--protected={tmp_path / 'linked'}"],
        [f'--gallery=["{colours / "unlabeled"}", "{out}/selected.parquet"]'],
    ):
        (out / "selected.parquet").touch()
        (out / "index/gallery.parquet").touch()
        assert main([*given, f"--out={out}", *words]) == 2
        assert "lies inside of it" in said(capsys)
    assert json.loads((out / "manifest.json").read_text())["sets"]
