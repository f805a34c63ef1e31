"""What a joint run sees, and when: the labeled share, generated sets, the order of both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import annotated
import numpy as np
import pytest
from scenes import boxes, make_scenes

from downstream.dense.sources import Sources, list_of, open_sources, sample_order
from downstream.detection.batches import BoxBatches
from downstream.detection.config import BoxDataConfig, DetectionConfig
from downstream.detection.data.boxes import open_boxes
from downstream.detection.data.transforms import EvalBoxView
from downstream.segmentation.data.masks import open_masks
from ssld.common.errors import InputError
from ssld.data.sampling import ApartSampler, Sampler
from ssld.data.workers import Rows
from ssld.engine.config import ScheduleConfig
from ssld.engine.optimizer import learning_rate


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes"), train=20, val=3)


def opened(scenes: Path, seed: int = 0, **changes) -> Sources:
    val = boxes(scenes, "val")
    data = BoxDataConfig(**{"train": boxes(scenes, "train"), "val": val, **changes})
    return open_sources(data, open_boxes, seed)


def ids(source) -> list[str]:
    return [source.sample_id(i) for i in range(len(source))]


def test_images_are_held_out_where_none_are_named(scenes) -> None:
    found, whole = opened(scenes, val=[]), ids(opened(scenes).train[0])
    (train,), (val,) = found.train, found.val
    assert ids(val) == [whole[5], whole[15]] and len(train) == 18
    assert not set(ids(train)) & set(ids(val)) and {*ids(train), *ids(val)} == set(whole)
    assert ids(opened(scenes, seed=7, val=[]).val[0]) == ids(val)  # all seeds are judged alike
    half = opened(scenes, val=[], labeled_share=0.5)
    assert ids(half.val[0]) == ids(val) and len(half.train[0]) == 9
    assert len(opened(scenes, val=[], holdout=1).val[0]) == 1
    few = boxes(scenes, "val")  # of several sources each gives by its size
    both = opened(scenes, train=[boxes(scenes, "train"), few], val=[])
    assert [len(x) for x in both.train] == [18, 3] and len(both.val) == 1
    with pytest.raises(InputError, match="data.val is empty, .* the largest has 3"):
        opened(scenes, train=few, val=[])


def test_a_share_is_drawn_by_the_seed_and_is_part_of_a_larger_one(scenes) -> None:
    (small,), (large,) = (opened(scenes, labeled_share=x).train for x in (0.25, 0.5))
    assert (len(small), len(large)) == (5, 10) and set(ids(small)) < set(ids(large))
    assert ids(small) == ids(opened(scenes, labeled_share=0.25).train[0])
    assert ids(small) != ids(opened(scenes, seed=1, labeled_share=0.25).train[0])
    assert opened(scenes).train[0].report.images == 20
    assert list_of([small], several=False) == "".join(f"{name}\n" for name in ids(small))
    both = list_of([small, large], several=True).splitlines()
    assert both[0] == f"{small.path}\t{ids(small)[0]}" and len(both) == 15


@pytest.mark.parametrize("keep", [[0], [1, 4, 7], [0, 2, 19]])
def test_a_subset_of_boxes_is_the_boxes_of_its_images(scenes, keep) -> None:
    whole = open_boxes(boxes(scenes, "train"))
    part = whole.subset(np.array(keep))
    assert ids(part) == [whole.sample_id(i) for i in keep] and part.class_names == whole.class_names
    assert part.image_ids == [whole.image_ids[i] for i in keep]
    counted = np.zeros(3, int)
    for k, i in enumerate(keep):
        assert part.image_size(k) == whole.image_size(i) and part.read(k) == whole.read(i)
        for name in ("xyxy", "labels", "crowd", "areas"):
            one, other = (getattr(x, name) for x in (part.boxes(k), whole.boxes(i)))
            assert np.array_equal(one, other), name
        counted += np.bincount(whole.boxes(i).labels, minlength=3)
    report = part.report
    assert (report.images, report.boxes) == (len(keep), counted.sum())
    assert [x.boxes for x in report.classes] == counted.tolist()
    assert report.boxes_sha256 != whole.report.boxes_sha256
    assert part.image.tolist() == sorted(part.image.tolist()) and part.image.max() < len(keep)


def test_a_subset_of_masks_is_the_masks_of_its_images(scenes) -> None:
    whole = open_masks(f"{scenes}::train")
    part = whole.subset(np.array([2, 5, 11]))
    assert len(part) == 3 and part.class_names == whole.class_names
    twice = part.subset(np.array([1, 2]))
    for k, i in enumerate((2, 5, 11)):
        assert part.sample_id(k) == whole.sample_id(i)
        assert np.array_equal(part.mask(k), whole.mask(i))
    assert [twice.mask_name(i) for i in range(2)] == [whole.mask_name(i) for i in (5, 11)]
    assert np.array_equal(twice.mask(0), whole.mask(5))


def test_a_subset_has_the_keypoints_and_masks_of_its_objects(tmp_path) -> None:
    path = annotated.coco(tmp_path, [(10 * (i % 3 + 1), 3, [5, 5, 20 + i, 20]) for i in range(7)])
    for i in range(7):
        corners = [5, 5, 25 + i, 5, 25 + i, 25]
        points = [6, 6, 1 + i % 2, 9, 9, 2 if i % 3 == 0 else 0]
        annotated.edit(path, "annotations", i, keypoints=points, segmentation=[corners])
    annotated.edit(path, "categories", 0, keypoints=["nose", "tail"], skeleton=[[1, 2]])
    whole = open_boxes(str(path), masks=True)
    part = whole.subset(np.array([1, 2]))
    for k, i in enumerate((1, 2)):
        one, other = part.boxes(k), whole.boxes(i)
        assert np.array_equal(one.keypoints, other.keypoints) and one.masks == other.masks
        assert one.masks and len(one.masks) == 2
    assert part.keypoints == whole.keypoints and part.report.masks
    tail = part.report.keypoints[1]
    assert (tail.name, tail.visible, tail.unlabeled) == ("tail", 0, 4)
    assert [x.examples for x in part.report.noticed if "labeled in none" in x.what] == [("tail",)]
    assert not [x for x in whole.subset(np.arange(3)).report.noticed if "none of" in x.what]


def test_an_empty_share_is_refused(scenes) -> None:
    with pytest.raises(InputError, match=r"share is 0.02: of the 20 images .* none; give at l"):
        opened(scenes, labeled_share=0.02)


def test_a_share_without_a_box_is_refused_and_one_without_a_class_is_noticed(tmp_path) -> None:
    sizes = [(20, 20)] * 8
    objects = [(80, 3, [2, 2, 9, 9]), (80, 7, [2, 2, 9, 9])]
    path = str(annotated.coco(tmp_path, objects, sizes=sizes))
    with pytest.raises(InputError, match=r"share is 0.25: .* none of the 2 images .* a box"):
        for seed in range(9):  # one of them draws no annotated image
            open_sources(BoxDataConfig(train=path, val=path, labeled_share=0.25), open_boxes, seed)
    rows = [(10 * (i + 1), 7 if i == 5 else 3, [2, 2, 9, 9]) for i in range(8)]
    whole = open_boxes(str(annotated.coco(tmp_path, rows, sizes=sizes)))
    (found,) = [x for x in whole.subset(np.arange(4)).report.noticed if "chosen" in x.what]
    assert found.examples == ("dog",)  # bird has no object at all
    assert not [x for x in whole.subset(np.arange(8)).report.noticed if "chosen" in x.what]


def test_generated_sets_without_an_object_are_refused(scenes, tmp_path) -> None:
    content = json.loads((scenes / "train.json").read_text())
    (tmp_path / "none.json").write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(InputError, match="data.generated: .*none of the 20 images has a box"):
        opened(scenes, generated=f"{tmp_path / 'none.json'}::{scenes / 'images/train'}")


def renamed(scenes: Path, place: Path, names: list[str]) -> str:
    content = json.loads((scenes / "train.json").read_text())
    content["categories"] = [{"id": 2 * i + 7, "name": name} for i, name in enumerate(names)]
    place.write_text(json.dumps(content))
    return f"{place}::{scenes / 'images/train'}"


def test_generated_sets_have_the_classes_of_the_human_ones(scenes, tmp_path) -> None:
    other = renamed(scenes, tmp_path / "other.json", ["red", "green", "violet"])
    with pytest.raises(InputError, match=r"data.generated: .*other.json.* 'violet'.*has 'blue'"):
        opened(scenes, generated=other)
    more = renamed(scenes, tmp_path / "more.json", ["red", "green", "blue", "violet"])
    with pytest.raises(InputError, match=r"more.json.* only one of them has 'violet'"):
        opened(scenes, generated=more)
    turned = renamed(scenes, tmp_path / "turned.json", ["blue", "green", "red"])
    both = opened(scenes, generated=turned)
    (source,), (human,) = both.generated, both.train
    assert source.class_names == human.class_names == ["red", "green", "blue"]
    assert (source.boxes(0).labels == 2 - human.boxes(0).labels).all()


def order_of(sizes: tuple[list[int], list[int]], share: float, **changes):
    data = {"train": "a", "val": "b", "generated": "c", "generated_share": share,
            "minibatch": changes.pop("minibatch", "mixed")}  # fmt: skip
    from downstream.backbone.config import BackboneConfig

    config = DetectionConfig(out="x", steps=9, backbone=BackboneConfig(name="y"),
                             data=BoxDataConfig(**data), **changes)  # fmt: skip

    class Sized:
        def __init__(self, size: int) -> None:
            self.path, self.size = f"of {size}", size

        def __len__(self) -> int:
            return self.size

    human, generated = ([Sized(x) for x in part] for part in sizes)
    return sample_order(config, Sources(human, generated, []))


def test_the_ratio_holds_in_expectation_and_sources_of_a_kind_share_by_size() -> None:
    order = order_of(([10, 30], [200]), 0.4, batch_size=16)
    assert isinstance(order, Sampler) and order.samples_per_epoch == 240
    rows = order.draw(0, 5 * 240)
    assert np.bincount(rows[:, 0]).tolist() == [5 * 36, 5 * 108, 5 * 96]
    shares = [(order.draw(16 * t, 16 * t + 16)[:, 0] == 2).mean() for t in range(900)]
    deviation = (0.4 * 0.6 / 16) ** 0.5
    assert np.mean(shares) == pytest.approx(0.4, abs=1e-9)
    assert 0.8 * deviation < np.std(shares) < 1.1 * deviation  # mixed: neither blocks nor fixed
    views = [rows[rows[:, 0] == 0, 1:].tolist()]
    assert len({tuple(x) for x in views[0]}) == 180  # no view of an image twice


def test_a_source_that_would_never_be_seen_is_refused() -> None:
    with pytest.raises(InputError, match="of 1 no image would be seen in an epoch of 4 samples"):
        order_of(([3], [1]), 0.1)
    order_of(([3], [1]), 0.2)


@pytest.mark.parametrize("world", [1, 2])
def test_passes_of_one_kind(world) -> None:
    from ssld.data.loading import train_batches

    order = order_of(([7, 5], [9]), 0.4, minibatch="apart", batch_size=20, accumulate=5)
    assert isinstance(order, ApartSampler) and order.samples_per_epoch == 21

    class Kept:
        sources: list = []

        def __call__(self, rows: Rows) -> Rows:
            return rows

    def seen(first: int, last: int, rank: int = 0, world: int = 1) -> np.ndarray:
        batches = train_batches(Kept(), order, batch_size=20, accumulate=5, first_step=first,  # type: ignore[arg-type]
                                last_step=last, rank=rank, world_size=world)  # fmt: skip
        return np.stack(list(batches))  # [passes, b, 4]

    whole = seen(0, 6)
    kinds = whole[:, :, 0] >= 2
    assert (kinds == kinds[:, :1]).all()
    assert kinds[:, 0].reshape(6, 5).tolist() == [[True, True, False, False, False]] * 6
    for kind, sizes in ((False, [7, 5]), (True, [9])):
        stream = whole[kinds[:, 0] == kind][..., :3].reshape(-1, 3)
        plain = Sampler(sizes, None, 0).draw(0, len(stream))
        assert np.array_equal(stream - [2 * kind, 0, 0], plain)
    assert np.array_equal(seen(4, 6), whole[20:])  # on resume
    parts = [seen(0, 6, rank, world) for rank in range(world)]
    assert np.array_equal(np.stack(parts, 2).reshape(whole.shape), whole)


@pytest.mark.parametrize(("share", "accumulate"), [(0.4, 4), (0.4, 1), (0.3, 5), (0.5, 1)])
def test_apart_needs_whole_passes(share, accumulate) -> None:
    with pytest.raises(ValueError, match="data.minibatch is apart.* product is whole"):
        order_of(([7], [9]), share, minibatch="apart", batch_size=20, accumulate=accumulate)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="generated_share is 0"):
        BoxDataConfig(generated=["a"], generated_share=0)
    with pytest.raises(ValueError, match="data.generated is empty"):
        BoxDataConfig(minibatch="apart")
    BoxDataConfig(generated_share=0)


def test_a_batch_says_which_of_its_images_are_generated(scenes) -> None:
    human, generated = (open_boxes(boxes(scenes, x)) for x in ("train", "val"))
    make = BoxBatches([human, generated], EvalBoxView(), human=1)
    rows = np.array([[1, 0, 0, 0], [0, 3, 0, 0], [1, 1, 0, 0]])
    assert make(rows).generated.tolist() == [True, False, True]
    alone = BoxBatches([human, generated], EvalBoxView())
    assert not alone(rows).generated.any()


@pytest.mark.parametrize("total", [10, 7, 130_000, 360_000])
def test_drops_at_shares_of_a_run(total) -> None:
    schedule = ScheduleConfig(lr=1, warmup_epochs=0, decay="step", milestone_shares=[0.7, 0.9])
    for tenths, below, above in ((7, 1.0, 0.1), (9, 0.1, 0.01)):
        first = -(-tenths * total // 10)  # whole numbers only
        rates = [
            learning_rate(schedule, step, total_steps=total, steps_per_epoch=3, batch_size=256)
            for step in (first - 1, first)
        ]
        assert rates == pytest.approx([below, above])


def test_milestones_are_epochs_or_shares() -> None:
    with pytest.raises(ValueError, match="give epochs or shares, not both"):
        ScheduleConfig(decay="step", milestones=[1], milestone_shares=[0.5])
    with pytest.raises(ValueError, match="with `decay: step`"):
        ScheduleConfig(milestone_shares=[0.5])


def test_held_out_images_are_found_by_place_and_to_the_byte(scenes, tmp_path) -> None:
    from downstream.dense.preflight import same_bytes

    val, train = (open_boxes(boxes(scenes, x)) for x in ("val", "train"))
    assert same_bytes([val], [train]) == []
    copies = shutil.copytree(scenes / "images/train", tmp_path / "copies")
    shutil.copy(scenes / "images/val/val1.png", copies / "train7.png")
    content = json.loads((scenes / "train.json").read_text())
    content["images"][7] |= {"height": 48, "width": 80}
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] != 38]
    (tmp_path / "copies.json").write_text(json.dumps(content))
    copied = open_boxes(f"{tmp_path / 'copies.json'}::{copies}")
    assert same_bytes([val], [copied]) == [str(copies / "train7.png")]
