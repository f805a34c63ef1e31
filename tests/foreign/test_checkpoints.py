"""Weights named in the wrong place, or without a classifier, and maps that there are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf

import zoo
from downstream.backbone.config import BackboneConfig
from downstream.backbone.weights import open_classifier
from ssld.cli.run import main
from ssld.common.errors import InputError
from ssld.models.config import StudentConfig, TeacherConfig
from ssld.models.opening import open_network
from ssld.models.teacher import open_one


@pytest.mark.parametrize("value", ["local-dir:X", "hf-hub:org/net@v1", "hf_hub:org/net"])
def test_an_id_where_a_path_belongs_is_refused_with_where_it_belongs(value: str):
    for config, name in (
        (TeacherConfig, "teacher.arch"),
        (StudentConfig, "student.arch"),
        (BackboneConfig, "backbone.name"),
    ):
        with pytest.raises(ValueError, match=f"checkpoint is {value!r}.*give this as {name}"):
            config(checkpoint=value)
    assert TeacherConfig(arch=value).arch == value
    assert TeacherConfig(checkpoint="/runs/local-dir:X").checkpoint  # a path may have any name


def test_it_is_refused_before_torch_is_imported(tmp_path: Path):
    code = (
        "import sys; from ssld.__main__ import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules; raise SystemExit(code)"
    )
    argv = ["distill", "--teacher.checkpoint", "local-dir:X", "--student.arch", "test_resnet"]
    argv += ["--data.unlabeled", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 2 and "give this as teacher.arch" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def headless(tmp_path_factory) -> Path:
    """Features alone, as timm exports DINO's."""
    folder = tmp_path_factory.mktemp("headless") / "net"
    folder.mkdir()
    model = timm.create_model("test_resnet", num_classes=0)
    data = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    save_config_for_hf(model, str(folder / "config.json"), data_config=data)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def test_a_network_without_a_classifier_is_no_teacher(headless: Path, colours: Path, capsys):
    for config in (
        TeacherConfig(checkpoint=str(headless)),
        TeacherConfig(arch=f"local-dir:{headless}"),
    ):
        with pytest.raises(InputError, match="teacher has no classifier"):
            open_one(config)
    for model in (str(headless), f"local-dir:{headless}"):
        assert main(["evaluate", "--model", model, "--data", str(colours / "val")]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: model has no classifier") and told.count("\n") == 1


def test_it_is_a_start_for_students_and_a_backbone(headless: Path):
    student = open_network("student", arch=None, checkpoint=str(headless), num_classes=5)
    assert student.num_classes == 5
    assert open_classifier(BackboneConfig(checkpoint=str(headless))).num_classes == 0


NAME = "mobilenetv3_small_035_ssld"


@pytest.mark.parametrize(
    "indices", [(1, 2, 3, 9), (4, 1), (1, 1), (), (-1, 1), 3, (1.0,), (True,), ("1",), "12", None]
)
def test_maps_that_there_are_not_are_refused(indices):
    if indices is None:
        assert len(zoo.backbone(NAME, pretrained=False).feature_info.channels()) == 5
        return
    with pytest.raises(zoo.InputError, match=f"{NAME} has the maps 0 to 4.*each once"):
        zoo.backbone(NAME, pretrained=False, out_indices=indices)


@pytest.mark.parametrize("indices", [(0,), (1, 2, 3), [2, 4]])
def test_maps_come_as_they_are_asked_for(indices):
    torch.manual_seed(0)
    pyramid = zoo.backbone(NAME, pretrained=False, out_indices=indices)
    whole = zoo.backbone(NAME, pretrained=False)
    assert pyramid.feature_info.reduction() == [whole.feature_info.reduction()[i] for i in indices]
    assert len(pyramid(torch.zeros(1, 3, 64, 64))) == len(indices)
