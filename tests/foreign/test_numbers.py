"""Class folders that are numbers: 10 is ten, wherever the network names no classes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from given import table
from PIL import Image

from ssld.cli.run import main
from ssld.common.errors import InputError
from ssld.data.labels import (
    LabelIndex,
    class_names,
    class_names_for,
    index_for,
    kept_order,
    known_index,
    unknown_labels,
)
from ssld.data.sources import open_source

CLASSES = 12


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> tuple[Path, list[Image.Image]]:
    """Weights of a network of 12 unnamed classes, and an image of each that it knows."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    shades = draw.integers(0, 256, (CLASSES, 1, 1, 3), np.uint8)  # no view changes them
    pixels = np.broadcast_to(shades, (CLASSES, 32, 32, 3)).copy()
    model = timm.create_model("test_resnet", num_classes=CLASSES).eval()
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        x = (images - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.25
        found = model.forward_head(model.forward_features(x), pre_logits=True)  # [12, d]
        # The nearest image's number: |f - f_k|^2 is least where d . (f - (f_k + m) / 2) is largest.
        head, middle = model.get_classifier(), found.double().mean(0)
        apart = found.double() - middle
        head.weight.copy_(apart)
        head.bias.copy_(-(apart * (found + middle)).sum(1) / 2)
    path = tmp_path_factory.mktemp("numbered") / "model.safetensors"
    said = {"architecture": "test_resnet", "mean": "0.4,0.5,0.6", "std": "0.25,0.25,0.25"}
    save_file(model.state_dict(), path, {**said, "input_size": "3,32,32"})
    return path, [Image.fromarray(x) for x in pixels]


def folders(root: Path, images: list[Image.Image], names: list[str]) -> str:
    for name, image in zip(names, images, strict=True):
        (root / name).mkdir(parents=True)
        image.save(root / name / "x.png")
    return str(root)


def run(model: Path, data: str, out: Path) -> tuple[int, float]:
    words = ["--model", "test_resnet", "--checkpoint", str(model), "--data", json.dumps([data])]
    code = main(["evaluate", *words, "--out", str(out), "--workers", "0"])
    return code, json.loads(out.read_text())["top1"] if out.exists() else -1.0


@pytest.mark.parametrize("form", ["{}", "{:02d}", "{:08d}"])
def test_evaluate_takes_folders_for_numbers(tmp_path, numbered, capsys, form):
    model, images = numbered
    data = folders(tmp_path / "data", images, [form.format(k) for k in range(CLASSES)])
    assert run(model, data, tmp_path / "out.json") == (0, 1.0)
    shown = capsys.readouterr()
    assert "near chance" not in shown.out + shown.err
    assert f"{data}: 12 images, 12 classes" in shown.err


def test_some_of_the_numbers_and_a_table_of_texts(tmp_path, numbered):
    model, images = numbered
    data = folders(tmp_path / "data", [images[k] for k in (2, 10, 11)], ["2", "10", "11"])
    assert run(model, data, tmp_path / "out.json") == (0, 1.0)
    content = [Path(f"{data}/{k}/x.png").read_bytes() for k in ("2", "10", "11")]
    rows = {"sample_id": ["a", "b", "c"], "label": ["2", "10", "11"]}
    path = table(tmp_path / "t.parquet", bytes=content, **rows)
    assert run(model, path, tmp_path / "again.json") == (0, 1.0)


def test_a_number_beyond_the_classes_is_refused(tmp_path, numbered, capsys):
    model, images = numbered
    data = folders(tmp_path / "data", images, [str(k) for k in range(1, 13)])
    assert run(model, data, tmp_path / "out.json") == (2, -1.0)
    said = capsys.readouterr().err
    assert "the class '12', a number, and the model has the classes 0 to 11 without names" in said


def test_numbers_in_another_order_are_no_better_than_chance(tmp_path, numbered, capsys):
    model, images = numbered
    data = folders(tmp_path / "data", images, [str((k + 3) % 12) for k in range(CLASSES)])
    assert run(model, data, tmp_path / "out.json") == (0, 0.0)
    assert "warning: top-1 is no better than chance (8.33%)" in capsys.readouterr().err


def source(root: Path, names: list[str]):
    image = Image.new("RGB", (4, 4))
    return open_source(folders(root, [image] * len(names), names))


def test_whoever_names_classes_is_asked_first(tmp_path):
    numbers = source(tmp_path / "a", ["0", "1", "2", "10", "11"])
    assert class_names([numbers]) == ["0", "1", "2", "10", "11"]
    by_text = ["0", "1", "10", "11", "2"]  # a network that was trained on folders sorted as text
    assert [
        index_for([numbers], SimpleNamespace(num_classes=5, label_names=by_text), "model")(x)
        for x in ("2", "10")
    ] == [4, 2]
    assert class_names_for([numbers], by_text) == by_text
    with pytest.raises(InputError, match="class '0', which is not among"):
        index_for([numbers], SimpleNamespace(num_classes=2, label_names=["ape", "bee"]), "model")
    words = source(tmp_path / "b", ["1", "ten"])
    assert class_names_for([words], None) == ["1", "ten"]
    assert class_names_for([numbers, words], None) == ["0", "1", "10", "11", "2", "ten"]
    with pytest.raises(InputError, match="class '01' is there in two spellings"):
        class_names_for([source(tmp_path / "c", ["1", "01"])], None)


def test_a_teacher_without_names_knows_numbers(tmp_path, numbered):
    from ssld.models.opening import open_network

    teacher = open_network("teacher", arch="test_resnet", checkpoint=str(numbered[0]))
    numbers = source(tmp_path / "a", ["2", "10"])
    assert unknown_labels([numbers], teacher) is None
    index = known_index([numbers], teacher)
    assert [index(x) for x in ("2", "10", "12")] == [2, 10, -1]
    beyond = source(tmp_path / "b", ["1", "12"])
    said = unknown_labels([beyond], teacher)
    assert said and "the class '12', a number, and the teacher has the classes 0 to 11" in said


def test_other_texts_are_no_numbers():
    index = LabelIndex(None, 12)
    assert [index(x) for x in ("3", "011", 5, None)] == [3, 11, 5, -1]
    for label in ("12", "-1", "1.0", "x", "²", "１", ""):
        with pytest.raises(InputError, match="is not one of the 12 classes"):
            index(label)


def test_a_run_that_was_begun_with_another_order_keeps_it(tmp_path):
    now, then = ["1", "2", "10"], ["1", "10", "2"]
    assert kept_order(now, str(tmp_path), True) == now  # nothing was exported yet
    exported = tmp_path / "student" / "config.json"
    exported.parent.mkdir()
    for content, order in (
        ({"label_names": then}, then),
        ({"label_names": ["1", "2"]}, now),  # other classes are others' to refuse
        ({}, now),
        ([], now),
    ):
        exported.write_text(json.dumps(content))
        assert kept_order(now, str(tmp_path), True) == order
        assert kept_order(now, str(tmp_path), False) == now
    exported.write_text(json.dumps({"label_names": ["b", "a"]}))
    assert kept_order(["a", "b"], str(tmp_path), True) == ["a", "b"]
