"""A trained network as a function of an image, for notebooks: what `ssld predict` writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from downstream.deploy.predict import load
from ssld.cli.run import main
from ssld.common.errors import InputError
from ssld.engine.checkpoint import export
from ssld.models.opening import open_network


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """An exported classifier."""
    folder = tmp_path_factory.mktemp("student") / "student"
    export(open_network("student", arch="test_resnet", num_classes=5, input_size=32), folder, 1)
    return folder


def test_it_says_what_predict_writes(student, colours, tmp_path):
    image = sorted((colours / "unlabeled").iterdir())[0]
    out = tmp_path / "out"
    assert main(["predict", str(student), str(image.parent), f"--out={out}"]) == 0
    lines = map(json.loads, (out / "predictions.jsonl").read_text().splitlines())
    written = next(line for line in lines if line["image"] == image.name)
    assert load(student)(image) == {"classes": pytest.approx(written["classes"])}


def test_what_is_no_image_is_named(student, tmp_path):
    predict = load(student)
    (tmp_path / "a.jpg").write_bytes(b"no image")
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            predict(tmp_path / name)
    with pytest.raises(InputError, match="nowhere"):
        load(tmp_path / "nowhere")
