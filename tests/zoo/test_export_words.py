"""What a network says of itself gets into no program that the export runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm

from zoo.errors import InputError
from zoo.export.classifier import export

INJECTION = 'x""" + str(open("ran", "w"))  # '


@pytest.mark.parametrize(
    "said",
    [
        {"architecture": INJECTION},
        {"architecture": "a\n"},
        {"architecture": "\\N{DIGIT ONE}"},
        {"interpolation": INJECTION},
        {"crop_mode": INJECTION},
        {"crop_pct": INJECTION},
        {"mean": (INJECTION, 0, 0)},
        {"std": ("1", "2", "3\n")},
        {"mean": (float("nan"), 0, 0)},
    ],
)
def test_foreign_words_get_into_no_program(tmp_path: Path, monkeypatch, said: dict[str, Any]):
    monkeypatch.chdir(tmp_path)
    model = timm.create_model("resnet10t", num_classes=3)
    model.pretrained_cfg.update({"input_size": (3, 32, 32), **said})
    with pytest.raises(InputError, match="pretrained_cfg|torchvision") as error:
        export(model, "torchvision", tmp_path / "out")
    assert str(error.value).isprintable()
    assert list(tmp_path.iterdir()) == []
