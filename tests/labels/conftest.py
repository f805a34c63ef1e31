"""A distillation with a teacher of 12 classes, and the labels of three views of its images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import short_runs

VIEWS, TOP_K, CLASSES = 3, 5, 12


@pytest.fixture(scope="session")
def teacher12(tmp_path_factory) -> Path:
    """Weights of a teacher that says different things of different images."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = timm.create_model("test_resnet", num_classes=CLASSES)
    weights = model.state_dict()
    weights["fc.weight"] *= 40
    path = tmp_path_factory.mktemp("teacher12") / "teacher.safetensors"
    metadata = {"architecture": "test_resnet", "input_size": "3,32,32"}
    save_file(weights, path, {**metadata, "mean": "0.4,0.5,0.6", "std": "0.2,0.3,0.25"})
    return path


@pytest.fixture
def words(colours, teacher12) -> Callable[..., list[str]]:
    """The command line of that distillation; a change to None leaves a setting out."""

    def make(out: Path, **changes: Any) -> list[str]:
        usual = {"steps": 12, "log_every_steps": 4, "checkpoint.every_steps": 4}
        return short_runs.words(colours, teacher12, out, **{**usual, **changes})

    return make


@pytest.fixture
def ssld(capsys, monkeypatch) -> Callable[..., tuple[int, str]]:
    """Runs a command here; its exit code and all that it said."""
    import pictures
    from matplotlib.figure import Figure

    from ssld.cli.run import main

    monkeypatch.setattr(Figure, "savefig", pictures.one_pixel)
    monkeypatch.setattr(Figure, "subplots", pictures.NoAxes())

    def run(*argv: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.fixture
def small_shards(monkeypatch) -> None:
    """Of 48 views, in forward passes of 16: four of 16 images, and one of held-out ones."""
    from ssld.labels import build, format

    monkeypatch.setattr(format, "SHARD_VIEWS", 48)
    monkeypatch.setattr(build, "FORWARD_IMAGES", 16)


@pytest.fixture(scope="session")
def built_once(tmp_path_factory) -> dict[str, Path]:
    return {}


@pytest.fixture
def labels(built_once, tmp_path_factory, words, ssld, small_shards) -> Path:
    """A finished label set; not to be changed."""
    if "labels" not in built_once:
        out = tmp_path_factory.mktemp("labels") / "labels"
        code, said = ssld("labels", "build", *words(out), f"--views={VIEWS}", f"--top_k={TOP_K}")
        assert code == 0, said
        built_once["labels"] = out
    return built_once["labels"]


@pytest.fixture
def copied(labels, tmp_path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(labels, tmp_path / "copied"))
