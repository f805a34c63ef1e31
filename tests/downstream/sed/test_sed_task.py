"""The step of `ssld sed` against equation 1, and what is unlabeled."""

from __future__ import annotations

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import boxes, make_scenes
from torch import Tensor, nn

from downstream.dense import sources as dense_sources
from downstream.dense.sources import require_same_images
from downstream.detection.command import model_for, sources_of
from downstream.sed.batches import SedBatch
from downstream.sed.config import ConsistencyConfig, SedConfig
from downstream.sed.model import SedModel, Unlabeled
from downstream.sed.task import SedTask
from downstream.sed.unlabeled import held_out_sums, open_unlabeled
from downstream.sed.views import UnlabeledView
from ssld.cli.parse import parse
from ssld.common.errors import InputError
from ssld.data.decode import Unreadable
from ssld.data.sources import open_source
from ssld.engine.trainer import _mean

ALONE: Any = SimpleNamespace(num_processes=1, is_main_process=True)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes"), train=4, val=1)


def settings(scenes: Path, *words: str) -> SedConfig:
    given = [f"--data.{split}={boxes(scenes, split)}" for split in ("train", "val")]
    return parse("ssld sed", SedConfig, [
        "--out=run", "--steps=9", "--backbone.name=test_resnet", *given,
        f"--data.unlabeled={scenes / 'images/train'}", "--augment.longest=null",
        "--data.labeled_share=0.5", *words,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def task(scenes) -> SedTask:
    config = settings(scenes, "--data.unlabeled_per_labeled=3")
    made = SedTask(sources_of(config), [open_source(config.data.unlabeled[0])], config)
    made.averaged(SimpleNamespace(model=nn.Linear(1, 1)))  # type: ignore[arg-type]
    return made


class Detector:
    """Gives each image a loss that is its first pixel."""

    def __init__(self) -> None:
        self.seen: Any = None

    def __call__(self, images: Tensor, sizes: Tensor, targets: list, unlabeled: Any = None) -> Any:
        human = {"boxes": images[:, 0, 0, 0].float()}
        self.seen = unlabeled
        if unlabeled is None:
            return human
        return human, {"distill_boxes": unlabeled.strong[:, 0, 0, 0].float()}


def batch(labeled: list[int], unlabeled: list[int], weight: list[float] | None = None) -> SedBatch:
    def images(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 8, 8, 3)

    count = len(labeled) + len(unlabeled)
    return SedBatch(
        images(labeled), torch.full((len(labeled), 2), 8), [{} for _ in labeled],
        images(unlabeled), images(unlabeled), torch.full((len(unlabeled), 2), 8), 1,
        torch.tensor(weight or [1.0] * count), [str(i) for i in range(count)], [],
    )  # fmt: skip


def test_the_loss_of_a_step_is_equation_1(task) -> None:
    labeled, unlabeled = [3, 8], [1, 2, 3, 4, 5, 9]
    given, detector = batch(labeled, unlabeled), Detector()
    terms = task.losses(detector, given)
    loss = _mean(terms, given.weight)  # what the trainer makes of it
    supervised, soft = sum(labeled) / 2, sum(unlabeled) / 6
    assert loss.item() == pytest.approx(supervised + 6 / 2 * soft)
    assert detector.seen.teacher is task.teacher.model
    # Logged, each term by itself.
    assert {name: x.mean().item() for name, x in terms.items()} == pytest.approx(
        {"boxes": supervised, "distill_boxes": 3 * soft}
    )


def test_unlabeled_images_leave_running_statistics_alone(scenes) -> None:
    """Which the teacher, and whoever loads the detector, sees whole images of full size with."""
    words = ["--detector.name=retinanet_bn", "--detector.args={channels: 16}"]
    config = settings(scenes, *words, "--backbone.pretrained=false")
    config, model = model_for(config, sources_of(config), SedModel)
    alone = deepcopy(model)
    pixels = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    sizes = torch.full((2, 2), 64)
    targets = [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([0])}] * 2
    teacher = deepcopy(model).eval().model
    other = Unlabeled(255 - pixels, 255 - pixels, sizes, 1, teacher, config.consistency)
    before = {name: x.clone() for name, x in model.named_buffers()}
    terms, soft = model.train()(pixels, sizes, targets, unlabeled=other)
    expected = alone.train()(pixels, sizes, targets)
    assert len(soft) == 4 and all(torch.equal(terms[name], x) for name, x in expected.items())
    theirs = dict(alone.named_buffers())
    moved = [name for name, x in theirs.items() if not torch.equal(x, before[name])]
    assert any(".head." in name for name in moved) and any("backbone" in name for name in moved)
    own = {name: x for name, x in model.named_buffers() if "num_batches" not in name}
    assert all(torch.equal(x, theirs[name]) for name, x in own.items())


def test_what_cannot_be_read_weighs_nothing_and_changes_no_other_share(task) -> None:
    weight = [1.0, 0, 1, 0, 1, 1, 1, 1]
    given, detector = batch([3, 8], [1, 2, 3, 4, 5, 9], weight), Detector()
    loss = _mean(task.losses(detector, given), given.weight)
    assert loss.item() == pytest.approx(3 / 2 + (1 + 3 + 4 + 5 + 9) / 2)
    assert detector.seen.strong[:, 0, 0, 0].tolist() == [1, 3, 4, 5, 9]
    nothing = batch([3, 8], [1, 2, 3, 4, 5, 9], [0.0] * 8)
    assert _mean(task.losses(detector, nothing), nothing.weight).item() == 0


def test_without_both_losses_a_step_is_that_of_labeled_images(task, scenes) -> None:
    none = replace(ConsistencyConfig(), scale_weight=0.0, distill_weight=0.0)
    config = replace(settings(scenes), consistency=none)
    alone = SedTask(sources_of(config), [open_source(config.data.unlabeled[0])], config)
    alone.averaged(task.teacher)
    given, detector = batch([3, 8], [1] * 8), Detector()
    assert _mean(alone.losses(detector, given), given.weight).item() == pytest.approx(5.5)
    assert detector.seen is None


def test_labeled_images_among_the_unlabeled_are_left_out_and_counted(scenes, tmp_path) -> None:
    config = settings(scenes)
    sources = sources_of(config)
    labeled = {sources.train[0].sample_id(i) for i in range(2)}
    copied = shutil.copytree(scenes / "images/train", tmp_path / "copied")  # the same to the byte
    for folder in (scenes / "images/train", copied):
        (left,), (report,) = open_unlabeled(ALONE, [str(folder)], sources)
        ids = {left.sample_id(i) for i in range(len(left))}
        assert len(ids) == 2 and labeled.isdisjoint(ids)
        assert report.images == 2 and report.noticed[0].count == 2
    with pytest.raises(InputError, match="data.unlabeled: 1 of its images are held out"):
        open_unlabeled(ALONE, [str(scenes / "images/val")], sources)


def test_a_held_out_image_that_is_stored_anew_is_not_seen(scenes, tmp_path) -> None:
    config = settings(scenes)
    sources = sources_of(config)
    for split in ("val", "train"):
        with Image.open(scenes / f"images/{split}/{split}0.png") as image:
            image.save(tmp_path / f"{split}.webp", lossless=True)
    (source,), _ = open_unlabeled(ALONE, [str(tmp_path)], sources)
    assert len(source) == 2  # neither its place nor its bytes tell
    known = held_out_sums(sources.val)
    view = UnlabeledView(config.augment, config.strong, 0, known)
    names = [source.sample_id(i) for i in range(2)]
    view(source, names.index("train.webp"), 0, 0)
    with pytest.raises(Unreadable, match=r"the pixels of the held-out image .*val0\.png"):
        view(source, names.index("val.webp"), 0, 0)


def test_a_process_that_drew_another_labeled_subset_is_named(scenes, monkeypatch) -> None:
    """Of two processes, the second with a seed of its own; and with the same one."""

    def seen_by(seed: int) -> list[Any]:
        config = replace(settings(scenes), seed=seed)
        kept: list[Any] = []
        monkeypatch.setattr(dense_sources, "gather_object", lambda x: kept.extend(x) or x)
        other: Any = SimpleNamespace(num_processes=2, process_index=seed)
        require_same_images(other, sources_of(config).train)
        return kept

    seeds = [0, next(s for s in range(1, 9) if seen_by(s)[0][0] != seen_by(0)[0][0])]
    first, other = (seen_by(seed) for seed in seeds)
    for gathered, wrong in (([*first, *first], False), ([*first, *other], True)):
        monkeypatch.setattr(dense_sources, "gather_object", lambda _, x=gathered: x)
        two: Any = SimpleNamespace(num_processes=2, process_index=0)
        train = sources_of(settings(scenes)).train
        if wrong:
            with pytest.raises(
                InputError, match=f"process {seeds[1]} on .* would train on 2 other"
            ):
                require_same_images(two, train)
        else:
            require_same_images(two, train)


def test_defaults_are_those_that_the_docstrings_name(scenes) -> None:
    config = settings(scenes)
    assert (config.ema.decay, config.ema.end_decay, config.ema.schedule) == (0.99, 0.9, "auto")
    assert config.data.unlabeled_per_labeled == 4 and config.consistency.scales == 1
    # Strong view, small one of a quarter of the pixels, the teacher's forward pass.
    assert config.consistency.work == pytest.approx(1 + 1 / 4 + 1 / 3)
    assert np.isclose(replace(config.consistency, scales=2).work, 1 + (1 / 4 + 1 / 16) / 2 + 1 / 3)
