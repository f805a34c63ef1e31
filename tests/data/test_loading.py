"""Order and batches: every image once, the same bytes whoever loads them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from multiprocessing.process import BaseProcess

import numpy as np
import pytest
import torch

from ssld.common.errors import InputError
from ssld.data.config import AugmentConfig
from ssld.data.labels import LabelIndex
from ssld.data.loading import ViewBatches, eval_batches, train_batches
from ssld.data.sampling import Sampler
from ssld.data.sources import open_source
from ssld.data.transforms import EvalView, TrainView


def test_an_epoch_has_every_image_once_and_a_new_view():
    order = Sampler([5, 8], None, seed=3)
    for epoch in range(3):
        rows = order.draw(epoch * 13, (epoch + 1) * 13)
        assert sorted(map(tuple, rows[:, :2].tolist())) == [
            *((0, i) for i in range(5)),
            *((1, i) for i in range(8)),
        ]
        assert (rows[:, 2] == epoch).all()


def test_order_is_a_pure_function_of_seed_and_position():
    whole = Sampler([50, 70], [0.7, 0.3], seed=3).draw(0, 500)
    fresh = Sampler([50, 70], [0.7, 0.3], seed=3)
    parts = [fresh.draw(a, b) for a, b in ((333, 500), (100, 333), (0, 100))]
    assert np.array_equal(whole, np.concatenate(parts[::-1]))
    assert not np.array_equal(whole, Sampler([50, 70], [0.7, 0.3], seed=4).draw(0, 500))
    assert not np.array_equal(whole[:120, 1], whole[120:240, 1])


def test_fractions_share_an_epoch_and_no_image_is_forgotten():
    order = Sampler([10, 990], [0.5, 0.5], seed=0)
    rows = order.draw(0, 4000)
    assert [(rows[:1000, 0] == s).sum() for s in (0, 1)] == [500, 500]
    few, many = (rows[rows[:, 0] == s] for s in (0, 1))
    assert (np.bincount(few[:, 1]) == 200).all()
    assert len(np.unique(few[:, 1:], axis=0)) == len(few)  # never the same view twice
    assert set(np.bincount(many[:, 1], minlength=990)) <= {2, 3}


def stream(colours, *, workers=0, world=1, accumulate=1, first=0, last=3, batch=12):
    """Global order of (id, bytes), put together from all processes."""
    sources = [open_source(str(colours / name)) for name in ("train", "unlabeled")]
    order, view = Sampler([len(s) for s in sources], None, 0), TrainView(AugmentConfig(), 16, 0)
    iterators = [
        train_batches(
            ViewBatches(sources, view), order, batch_size=batch, rank=rank, world_size=world,
            first_step=first, last_step=last, accumulate=accumulate, workers=workers,
        )
        for rank in range(world)
    ]  # fmt: skip
    found = []
    for parts in zip(*iterators, strict=True):
        for i in range(len(parts[0].ids)):
            found += [(part.ids[i], part.images[i].numpy().tobytes()) for part in parts]
    return found


def test_workers_processes_and_accumulation_give_the_same_bytes(colours):
    expected = stream(colours)
    assert len(expected) == 36 and len({name for name, _ in expected}) > 20
    for changes in (
        dict(workers=1), dict(workers=4), dict(world=2), dict(world=3, workers=1),
        dict(accumulate=3), dict(world=2, accumulate=2),
    ):  # fmt: skip
        assert stream(colours, **changes) == expected


def test_another_view_of_each_image_changes_nothing_about_the_first(colours):
    sources = [open_source(str(colours / "train"))]
    order, view = Sampler([len(sources[0])], None, 0), TrainView(AugmentConfig(), 16, 0)

    def batches(*, workers=0, **changes):
        make = ViewBatches(sources, view, **changes)
        return list(
            train_batches(make, order, batch_size=12, first_step=0, last_step=6, workers=workers)
        )

    plain, both = batches(), batches(other_view=True)
    assert all(batch.other_images is None for batch in plain)
    for a, b, c in zip(plain, both, batches(other_view=True, workers=2), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(b.images, c.images)
        assert torch.equal(b.other_images, c.other_images)
    # Six epochs of views: none of the student's is ever shown to the teacher.
    seen = {image.numpy().tobytes() for batch in both for image in batch.images}
    others = {image.numpy().tobytes() for batch in both for image in batch.other_images}
    assert len(seen) == len(others) == 72 and not seen & others


def test_resuming_is_an_index(colours):
    assert stream(colours, first=1, last=3) == stream(colours)[12:]


def test_evaluation_sees_every_image_once(colours):
    sources = [open_source(str(colours / name)) for name in ("train", "unlabeled")]
    index = LabelIndex(["blue", "green", "red"], 3)
    for world, limit in ((1, None), (3, None), (2, 7)):
        seen = []
        for rank in range(world):
            for batch in eval_batches(
                ViewBatches(sources, EvalView(16, 0.9, "bilinear"), index), batch_size=5,
                rank=rank, world_size=world, limit=limit,
            ):  # fmt: skip
                seen += zip(batch.ids, batch.labels.tolist(), strict=True)
        assert len(seen) == len(set(seen)) == (limit or 96)
        assert all(label == (index(n.split("/")[0]) if "/" in n else -1) for n, label in seen)


def test_mixed_evaluation_sees_the_same_images_not_by_class(colours):
    source = [open_source(str(colours / "train"))]
    index, view = LabelIndex(["blue", "green", "red"], 3), EvalView(16, 0.9, "bilinear")

    def labels(world: int, **changes) -> list[list[tuple[str, int]]]:
        return [
            list(zip(batch.ids, batch.labels.tolist(), strict=True))
            for rank in range(world)
            for batch in eval_batches(ViewBatches(source, view, index), batch_size=12 // world,
                                      rank=rank, world_size=world, **changes)
        ]  # fmt: skip

    plain, mixed = labels(1), labels(1, mixed=True)
    assert (
        sorted(sum(plain, [])) == sorted(sum(mixed, [])) == sorted(sum(labels(2, mixed=True), []))
    )
    assert [len({label for _, label in batch}) for batch in plain] == [1, 1, 1]
    assert all(len({label for _, label in batch}) == 3 for batch in mixed)


def test_unreadable_weighs_nothing_and_is_named(tmp_path, colours):
    good = next((colours / "unlabeled").iterdir())
    (tmp_path / "a.png").write_bytes(good.read_bytes())
    (tmp_path / "b.png").touch()
    source = open_source(str(tmp_path))
    (tmp_path / "c.png").write_bytes(good.read_bytes())
    source = open_source(str(tmp_path))
    (tmp_path / "c.png").unlink()  # gone since it was listed
    batch = next(eval_batches(ViewBatches([source], EvalView(8, 1, "bilinear")), batch_size=9))
    assert batch.weight.tolist() == [1, 0, 0]
    assert (batch.images[1:] == 127).all()
    assert [(s, name) for s, name, _, _ in batch.unreadable] == [(0, "b.png"), (0, "c.png")]
    assert "empty" in batch.unreadable[0][3] and str(tmp_path) in batch.unreadable[0][2]


def test_labels_become_numbers():
    names = LabelIndex(["b", "a"], 2)
    assert [names(x) for x in ("a", "b", None)] == [1, 0, -1]
    assert [LabelIndex(None, 3)(x) for x in (2, None)] == [2, -1]
    for index, label in ((names, "c"), (LabelIndex(None, 3), 3), (LabelIndex(None, 3), -1)):
        with pytest.raises(InputError, match=repr(label)):
            index(label)
    assert LabelIndex(["a"], 1, strict=False)("c") == -1


def test_an_epoch_of_millions_is_drawn_at_once():
    rows = Sampler([300_000, 700_000], None, 0).draw(999_000, 1_001_000)
    assert rows.shape == (2000, 3) and set(rows[:, 2]) == {0, 1}


def test_loading_without_workers_leaves_the_random_state_alone(colours):
    before = torch.get_rng_state()
    stream(colours, last=1)
    assert torch.equal(before, torch.get_rng_state())


class Stuck(EvalView):
    """A view that no later image comes out of."""

    def __call__(self, data, sample_id, view):
        if sample_id.startswith("red"):
            time.sleep(1000)
        return super().__call__(data, sample_id, view)


@pytest.mark.parametrize("kind", [EvalView, Stuck])
def test_a_loader_that_is_left_alone_ends_at_once(colours, kind, monkeypatch):
    def kill(process: BaseProcess) -> None:
        os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.1)  # the signal of its end is here before anything waits for it

    monkeypatch.setattr(BaseProcess, "kill", kill)
    before, began = set(multiprocessing.active_children()), time.monotonic()
    # In a cycle, as an error with its traceback is: the collector ends the queues' threads first.
    make = ViewBatches([open_source(str(colours / "train"))], kind(8, 1, "bilinear"))
    left = [eval_batches(make, batch_size=4, workers=2)]
    left.append(left)
    next(left[0])
    processes = set(multiprocessing.active_children()) - before
    del left
    gc.collect()  # torch's word that a process was killed would be a warning here
    assert len(processes) == 2 and not any(process.is_alive() for process in processes)
    assert time.monotonic() - began < 10  # torch alone needs 20 s
