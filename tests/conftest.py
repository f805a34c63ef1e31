"""Small real networks and images that several tests share.

xdist's own process reads this file too and runs no test: torch is imported where it is needed.
"""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import shared_bytecode  # noqa: F401  # before torch is imported
from PIL import Image

PROCESSES = {"multiprocessing", "sabotage", "subprocess"}
"""A test that names one of these starts processes."""
SLOW = {
    *("test_box_sets", "test_mask_sets", "test_pseudo_label_faults", "test_pseudo_label_resumed"),
    *("test_cache", "test_gradient_layout", "test_loading", "test_memory_of_two", "test_terminals"),
    *("test_ab", "test_best", "test_overwrite", "test_python", "test_recorded", "test_trials"),
    *("test_detr", "test_downstream_recipes", "test_segmenters", "test_torchvision_heads"),
    *("test_ttfnet", "test_yolov3", "test_backbone", "test_detector_onnx", "test_segmenter_onnx"),
    *("test_part_rcnn", "test_detection_model", "test_sed_recipes"),
    *("test_build", "test_many_students", "test_stored_distillation", "test_transport"),
    *("test_convert", "test_export", "test_hub", "test_parity", "test_published_run"),
    *("test_registration", "test_release_run", "test_zoo_command"),
}
"""Modules that take more than three seconds, or start processes in a function of their own."""


def in_fast_module(item: pytest.Function) -> bool:
    return item.path.stem not in SLOW and not {"e2e", "foreign"} & set(item.path.parts)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark the fast tests, and let them come last: they fill the time in which some workers
    have no long module left."""
    for item in items:
        if in_fast_module(item) and not PROCESSES & set(item.function.__code__.co_names):
            item.add_marker("fast")
    items.sort(key=in_fast_module)


def pytest_collection_finish() -> None:
    """All that is imported by now stays: the garbage collector need not look at it again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The tests run in three processes, as many wait for others, and small nets are faster so."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    """train/ and val/ with three classes of noisy colour, unlabeled/ with the same mixed up."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    shades = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 50)}
    for split, count in (("train", 12), ("val", 8), ("unlabeled", 20)):
        for name, shade in shades.items():
            folder = root / split / ("" if split == "unlabeled" else name)
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                noise = rng.normal(0, 40, (40, 48, 3))
                pixels = np.clip(np.array(shade) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{name} {i:02d} é.png")
    return root


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory) -> Path:
    """Weights of a small teacher of three classes whose header names all that is needed."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = timm.create_model("test_resnet", num_classes=3)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    metadata = {
        "architecture": "test_resnet",
        "mean": "0.4,0.5,0.6",
        "std": "0.2,0.3,0.25",
        "input_size": "3,32,32",
    }
    save_file(model.state_dict(), path, metadata)
    return path


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps the process topology in a singleton; each test starts its own run."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
