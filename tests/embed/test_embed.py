"""Features in a table: those of timm's own network, once for each image that can be read."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

from ssld.cli.run import main
from ssld.engine.checkpoint import export
from ssld.models.opening import open_network


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """An exported classifier, and timm's own reading of it, without its classifier."""
    folder = tmp_path_factory.mktemp("student") / "student"
    export(open_network("student", arch="test_resnet", num_classes=3, input_size=40), folder, 1)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    return folder, model


def embed(student, out, *words: str) -> int:
    return main(["embed", f"--model={student[0]}", f"--out={out}", "--workers=0", *words])


def test_features_are_timms_in_the_order_of_the_sources(student, colours, tmp_path, capsys):
    out, folders = tmp_path / "f.parquet", [colours / "val", colours / "train"]
    data = f"--data=[{folders[0]}, {folders[1]}]"
    assert embed(student, out, data, "--batch_size=7") == 0
    assert "of 60 images" in capsys.readouterr().out
    rows = pq.read_table(out).to_pylist()
    assert [row["source"] for row in rows] == [str(folders[0])] * 24 + [str(folders[1])] * 36
    view = timm.data.create_transform(**timm.data.resolve_data_config(student[1].pretrained_cfg))
    for row in rows[::13]:
        image = Image.open(f"{row['source']}/{row['sample_id']}")
        with torch.inference_mode():
            wanted = student[1](view(image)[None])[0].numpy()  # type: ignore[operator]
        assert row["features"] == pytest.approx(wanted.tolist(), abs=0.02)
    assert embed(student, out, data) == 0  # an earlier result is replaced


def test_what_cannot_be_read_is_left_out(student, colours, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, path in enumerate(sorted((colours / "unlabeled").iterdir())[:12]):
        (folder / f"{i:02d}.png").write_bytes(path.read_bytes() if i != 5 else b"no image")
    assert embed(student, tmp_path / "f.parquet", f"--data={folder}", "--batch_size=4") == 0
    said = capsys.readouterr()
    assert "of 11 images, 1 could not be read" in said.out and "05.png" in said.err
    names = pq.read_table(tmp_path / "f.parquet")["sample_id"].to_pylist()
    assert names == [f"{i:02d}.png" for i in range(12) if i != 5]


def test_nothing_is_written_where_something_is_wrong(student, colours, tmp_path, capsys):
    other, unlabeled = tmp_path / "mine.parquet", f"--data={colours / 'unlabeled'}"
    other.write_bytes(b"mine")
    assert embed(student, other, unlabeled) == 2
    assert "no earlier result of this command" in capsys.readouterr().err
    assert other.read_bytes() == b"mine"
    network = open_network("student", arch="test_resnet", num_classes=3, input_size=32)
    with torch.no_grad():
        next(network.parameters()).fill_(np.nan)
    folder = tmp_path / "damaged"
    export(network, folder, 1)
    assert embed((folder, None), tmp_path / "f.parquet", unlabeled) == 2
    assert "not finite" in capsys.readouterr().err
    assert sorted(x.name for x in tmp_path.iterdir()) == ["damaged", "mine.parquet"]
