"""Joint training with labeled images: which are seen when, what is learned from them, what is
refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scenes import boxes, make_scenes
from torch import Tensor, nn

from downstream.backbone.config import BackboneConfig
from downstream.dense.classification import TERM, Classes, JointBatches, open_classes
from downstream.dense.config import ClassificationConfig
from downstream.dense.sources import Sources, open_sources
from downstream.detection.config import (
    BoxAugmentConfig,
    BoxDataConfig,
    DetectionConfig,
    DetectorConfig,
)
from downstream.detection.data.boxes import open_boxes
from downstream.detection.model import DetectionModel, build
from downstream.detection.task import DetectionTask
from downstream.segmentation.model import SegmentationModel
from downstream.segmentation.model import build as build_segmenter
from ssld.cli.run import main
from ssld.common.errors import InputError
from ssld.data.loading import ViewBatches, train_batches
from ssld.data.sampling import Beside, Sampler
from ssld.data.workers import Rows

NAMES, SIDE = ("even", "odd"), 32


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes"), train=6, val=1)


@pytest.fixture(scope="module")
def labeled(scenes) -> Path:
    """Six images in two classes, the last of which cannot be read."""
    root = scenes / "labeled"
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3)).astype(np.uint8)
        path = root / NAMES[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    path.write_bytes(b"no image")
    return root


def settings(scenes: Path, labeled: Path, **changes: Any) -> DetectionConfig:
    section = {"train": str(labeled), "size": SIDE, "batch_size": 6, "weight": 0.5}
    return DetectionConfig(
        out="x",
        steps=9,
        batch_size=4,
        accumulate=changes.pop("accumulate", 1),
        backbone=BackboneConfig("test_resnet", pretrained=False),
        detector=DetectorConfig("ttfnet"),
        augment=BoxAugmentConfig(resize="square", sizes=[64], test_size=64, longest=None),
        data=BoxDataConfig(train=boxes(scenes, "train"), val=boxes(scenes, "val")),
        classification=ClassificationConfig(**{**section, **changes}),
    )


def model(config: DetectionConfig) -> DetectionModel:
    torch.manual_seed(0)
    return DetectionModel(build("ttfnet", config.backbone, 3), ["red", "green", "blue"])


@pytest.fixture(scope="module")
def config(scenes, labeled) -> DetectionConfig:
    return settings(scenes, labeled)


@pytest.fixture(scope="module")
def sources(config) -> Sources:
    return open_sources(config.data, open_boxes, 0)


def with_task(config: DetectionConfig, sources: Sources) -> tuple[DetectionModel, DetectionTask]:
    network = model(config)
    task = DetectionTask(sources, config.augment, config.test, config.detector, config.seed)
    return network, task.also(config, open_classes(config, network))


class Kept:
    sources: list = []

    def __call__(self, rows: Rows) -> Rows:
        return rows


@pytest.mark.parametrize("world", [1, 2])
def test_passes_have_both_kinds_and_annotated_images_are_those_of_a_plain_run(world) -> None:
    dense, others = Sampler([7, 5], None, 0), Sampler([9, 4], None, 0)
    order = Beside(dense, others, sources=2, sizes=(4, 6))

    def seen(first: int, last: int, rank: int = 0, world: int = 1) -> np.ndarray:
        batches = train_batches(Kept(), order, batch_size=20, accumulate=2, first_step=first,  # type: ignore[arg-type]
                                last_step=last, rank=rank, world_size=world)  # fmt: skip
        return np.stack(list(batches))  # [passes, b, 4]

    whole = seen(0, 5)
    kinds = whole[:, :, 0] >= 2
    assert (kinds == ([False] * 4 + [True] * 6)).all()
    for kind, plain in ((False, dense), (True, others)):
        stream = whole[kinds == kind][:, :3] - [2 * kind, 0, 0]
        assert np.array_equal(stream, plain.draw(0, len(stream)))
    assert np.array_equal(seen(3, 5), whole[6:])  # on resume
    parts = [seen(0, 5, rank, world) for rank in range(world)]
    assert np.array_equal(np.stack(parts, 2).reshape(whole.shape), whole)
    assert all((x[:, :, 0] >= 2).sum(1).tolist() == [6 // world] * 10 for x in parts)


@pytest.fixture(scope="module")
def batch(config, sources) -> Any:
    """Four annotated images and all six labeled ones."""
    network, task = with_task(config, sources)
    classes = task.classes
    assert classes is not None
    make = JointBatches(task.make_train, ViewBatches(classes.sources, classes.view, classes.index))
    rows = [[0, i, 0, 0] for i in range(4)] + [[1, i, 0, 0] for i in range(6)]
    return make(np.array(rows))


def test_a_batch_has_both_kinds_with_their_labels_and_what_cannot_be_read(batch, labeled) -> None:
    assert batch.ids[:4] == [f"train{i}.png" for i in range(4)] and len(batch.ids) == 10
    expected = [0 if "even" in name else 1 for name in batch.classified.ids]
    assert batch.classified.labels.tolist() == expected and sum(expected) == 3
    assert batch.labeled.tolist() == [False] * 4 + [True] * 6
    assert batch.classified.images.shape == (6, SIDE, SIDE, 3)
    (failed,) = batch.unreadable  # with the number of its source among those of the run
    assert (failed.source, failed.location) == (1, str(labeled / "odd/5.png"))
    assert batch.weight.tolist() == [float(name != "odd/5.png") for name in batch.ids]
    twice = batch.map(lambda x: x * 2 if x.dtype == torch.float32 else x)
    assert twice.classified.weight.sum() == 10 and twice.dense.weight.sum() == 8


def running(network: nn.Module) -> dict[str, Tensor]:
    return {key: x.clone() for key, x in network.named_buffers() if "running" in key}


def test_what_is_minimised_is_the_dense_loss_and_a_share_of_cross_entropy(
    config, sources, batch
) -> None:
    network, task = with_task(config, sources)
    plain = model(config).train()
    calls = []

    def once(*inputs: Any, **more: Any) -> Any:
        calls.append(more.keys())
        return network(*inputs, **more)

    network.train()
    losses = task.losses(once, batch)
    weights = task.weights(batch, losses)
    assert calls == [{"labeled"}]  # in one call, for DistributedDataParallel
    dense = {name: loss.mean() for name, loss in task.dense_losses(plain, batch.dense).items()}
    assert losses.keys() == {*dense, TERM}
    assert task.classes is not None
    pooled = network.pooled(batch.classified.images)
    head = task.classes.head
    scores = (pooled @ head.weight.T + head.bias).log_softmax(1).detach()
    entropy = [-float(scores[i, label]) for i, label in enumerate(batch.classified.labels)]
    assert torch.allclose(losses[TERM][4:], torch.tensor(entropy), atol=1e-5)
    readable = batch.classified.weight.tolist()
    classes = sum(x * y for x, y in zip(entropy, readable, strict=True)) / 6
    total = (sum(losses.values()) * weights).sum() / len(weights)
    expected = float(torch.stack(list(dense.values())).sum().detach()) + 0.5 * classes
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)
    groups = task.groups(batch)
    assert groups.keys() == {TERM} and torch.equal(groups[TERM], batch.labeled)
    # Statistics of batch norm are as if there were no labeled images.
    total.backward()
    for key, x in running(plain).items():
        assert torch.equal(x, network.get_buffer(key)), key
    assert all(x.grad is not None for x in [*network.parameters(), *head.parameters()])
    assert {x.momentum for x in network.modules() if isinstance(x, nn.BatchNorm2d)} == {0.1}


def test_a_segmenter_gives_the_same_pair(batch) -> None:
    torch.manual_seed(0)
    backbone = BackboneConfig("test_resnet", pretrained=False)
    network = SegmentationModel(build_segmenter("fcn", backbone, 3), ["a", "b", "c"]).eval()
    images = batch.classified.images
    logits, pooled = network(images, labeled=images[:2])
    assert torch.equal(logits, network(images)) and pooled.shape == (
        2,
        network.backbone.channels[-1],
    )
    maps: list[Tensor] = network.backbone(network.normalise(images[:2].permute(0, 3, 1, 2).float()))
    assert torch.equal(pooled, maps[-1].mean((2, 3)))


def opened(scenes: Path, *paths: Path) -> Classes:
    config = settings(scenes, paths[0])
    several = ClassificationConfig(train=[str(x) for x in paths])
    backbone = SimpleNamespace(input_size=96, channels=(8, 24))
    network: Any = SimpleNamespace(backbone=backbone)
    classes = open_classes(replace(config, classification=several), network)
    assert classes is not None
    return classes


def table(path: Path, labels: list[Any], labeled: Path) -> Path:
    files = sorted(str(x) for x in (labeled / "even").iterdir())
    pq.write_table(pa.table({"sample_id": files, "path": files, "label": labels}), path)
    return path


def test_labels_are_names_or_numbers(scenes, labeled, tmp_path) -> None:
    classes = opened(scenes, labeled)
    assert (classes.num_classes, classes.label_names) == (2, ["even", "odd"])
    assert (classes.batch_size, classes.view.size) == (4, 96)
    assert classes.head.weight.shape == (2, 24)
    numbers = opened(scenes, table(tmp_path / "a.parquet", [0, 6, 2], labeled))
    assert (numbers.num_classes, numbers.label_names) == (7, None) and numbers.index(6) == 6
    named = table(tmp_path / "b.parquet", ["odd", "odd", "odd"], labeled)
    both = opened(scenes, labeled, named)
    assert both.label_names == ["even", "odd"] and both.index("odd") == 1


def test_images_without_labels_and_labels_of_no_class_are_refused(
    scenes, labeled, tmp_path
) -> None:
    with pytest.raises(InputError, match=r"classification.train: 1 of the 3 images .* no label"):
        opened(scenes, table(tmp_path / "a.parquet", [0, None, 1], labeled))
    with pytest.raises(InputError, match=r"classification.train: 6 of the 6 images .* no label"):
        opened(scenes, scenes / "images/train")
    numbers = table(tmp_path / "b.parquet", [0, 5, 1], labeled)
    with pytest.raises(InputError, match="label 5 .* is none of the 2 classes of the classifier"):
        opened(scenes, labeled, numbers)


def test_batches_that_cannot_be_shared_are_refused(scenes, labeled, tmp_path, capsys) -> None:
    with pytest.raises(ValueError, match="classification.batch_size is 5: .* multiple of accumul"):
        settings(scenes, labeled, batch_size=5, accumulate=2)
    assert settings(scenes, labeled, batch_size=None).labeled_batch_size == 4
    places = [f"--data.{split}={boxes(scenes, split)}" for split in ("train", "val")]
    run = tmp_path / "run"
    words = ["detection", "--steps=1", "--backbone=test_resnet", f"--out={run}", *places]
    for more, said in (
        ("--classification.train=nowhere", "classification.train: nowhere: no such file"),
        ("--balance.alpha=1", "balance.alpha is 1.0, but data.generated is empty"),
        ("--balance.alpha=0", "balance.alpha is 0.0: give a number above 0"),
        ("--classification.weight=0", "classification.weight is 0.0: give a number above 0"),
        ("--classification.weight=.2", "classification.weight is 0.2, but classification.train is"),
        ("--classification.size=64", "classification.size is 64, but classification.train is emp"),
        ("--classification.batch_size=4", "classification.batch_size is 4, but classification.tr"),
        ("--balance.decay=.9", "balance.decay is 0.9, but balance.alpha is null"),
        ("--augment.mixup_epochs=9", "augment.mixup_epochs is 9, but augment.mixup is 0"),
        ("--ema.end_decay=.5", "ema.end_decay is 0.5, but ema.schedule is constant"),
    ):
        assert main([*words, more]) == 2
        assert said in capsys.readouterr().err
    copies = tmp_path / "held out"
    shutil.copytree(scenes / "images/val", copies / "even")
    held_out = [f"--classification.train={copies}", "--trackers=[]", "--backbone.pretrained=false"]
    assert main([*words, *held_out]) == 2
    assert "classification.train: 1 of its images are held out" in capsys.readouterr().err
    assert not run.exists()
