"""How learning from unlabeled images fails silently: each planted, beside an innocent."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scenes import make_scenes
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from downstream.detection.config import BoxAugmentConfig
from downstream.sed.config import ConsistencyConfig
from downstream.sed.health import LOOKED_AT, Look, look_at, symptoms
from ssld.data.sources import open_source
from ssld.engine.run_folder import History

SETTINGS = ConsistencyConfig()
WELL = Look(8, [0.9, 0.4, 0.3], [0, 2, 0], [40] * 8)
TERMS = {"scale_classes": 0.1, "scale_boxes": 0.01, "distill_classes": 0.2, "distill_boxes": 0.02}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def trained(decay: float = 0.9, steps: int = 4) -> dict[str, Any]:
    """A student after some steps, its average, and what both began with."""
    torch.manual_seed(0)
    student = Network()
    ema = ModelEmaV3(student, decay)
    initial = {name: x.detach().clone() for name, x in student.named_parameters()}
    buffers = {name: x.clone() for name, x in student.named_buffers()}
    for _ in range(steps):
        student.layers(torch.randn(8, 3) + 1)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        ema.update(student)
    return {"student": student, "teacher": ema.module, "initial": initial, "buffers": buffers}


def history(folder: Path, *lines: dict[str, Any]) -> History:
    file = folder / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": 1, **line}) + "\n" for line in lines))
    return History(file)


def found(folder: Path, networks: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    before = changes.pop("before", [{"kind": "train", "step": 5, **TERMS}])
    given = {"metric": "ap", "metrics": {"ap": 0.3}, "look": WELL, "classes": 3, "share": 0.5}
    settings = changes.pop("settings", SETTINGS)
    known: Any = {**(networks or trained()), **given, **changes}
    return symptoms(settings, history(folder, *before), **known)


def test_a_run_that_learns_has_no_symptom(tmp_path) -> None:
    assert found(tmp_path) == []
    for decay in (0.99, 0.0):
        assert found(tmp_path, trained(decay)) == []


def test_losses_that_are_stuck_at_0(tmp_path) -> None:
    zero = {**TERMS, "distill_classes": 0.0, "distill_boxes": 0.0}
    lines = [{"kind": "train", "step": s, **zero} for s in (5, 6)]
    (said,) = found(tmp_path, before=lines)
    assert "distill_classes and distill_boxes are stuck at 0" in said and "strong view" in said
    # Once; or before the last evaluation; or where that loss is not asked for.
    assert not found(tmp_path, before=[lines[0], {"kind": "train", "step": 6, **TERMS}])
    evaluation = {"kind": "eval", "step": 6, "ap": 0.3}
    assert not found(tmp_path, before=[*lines, evaluation, {"kind": "train", "step": 7, **TERMS}])
    no = replace(SETTINGS, distill_weight=0.0)
    assert not found(tmp_path, before=lines, settings=no)
    scale = {**TERMS, "scale_classes": 1e-9, "scale_boxes": -1e-9}
    (said,) = found(tmp_path, before=[{"kind": "train", "step": 5, **scale}])
    assert "scale_classes and scale_boxes are stuck at 0" in said


def test_a_frozen_teacher(tmp_path) -> None:
    still = trained()
    still["teacher"] = deepcopy(still["teacher"])
    with torch.no_grad():
        for name, x in still["teacher"].named_parameters():
            x.copy_(still["initial"][name])
    for networks in (trained(decay=0.9999), still):
        (said,) = found(tmp_path, networks)
        assert "the teacher is frozen" in said and "ema.decay too near to 1" in said
    begun = trained(steps=0)  # neither has moved
    assert found(tmp_path, begun) == []


def test_statistics_of_batch_norm_that_were_left_out_of_the_average(tmp_path) -> None:
    networks = trained()
    for name, x in networks["teacher"].named_buffers():
        x.copy_(networks["buffers"][name])
    (said,) = found(tmp_path, networks)
    assert "(2 buffers, layers.1.running_mean for one)" in said and "parameters alone" in said
    frozen = trained()  # frozen in both
    for network in (frozen["student"], frozen["teacher"]):
        for name, x in network.named_buffers():
            x.copy_(frozen["buffers"][name])
    assert found(tmp_path, frozen) == []


@pytest.mark.parametrize(
    ("look", "word"),
    [
        (Look(8, [], [], [40] * 8), "finds nothing in 8 of them"),
        (Look(8, [0.9, 0.8, 0.3], [1, 1, 1], [40] * 8), "are of one class, the labeled ones of 3"),
        (Look(8, [0.9, 0.3], [1, 0], [0] * 8), "the first stage proposes nothing in 8"),
    ],
    ids=["nothing", "one class", "no proposals"],
)
def test_what_the_teacher_says_of_unlabeled_images(look, word, tmp_path) -> None:
    (said,) = found(tmp_path, look=look)
    assert word in said and "likely causes" in said
    assert found(tmp_path, look=look, share=0.1) == []  # too early to say


def test_one_class_is_innocent_where_there_is_no_other(tmp_path) -> None:
    assert found(tmp_path, look=Look(8, [0.9] * 3, [0] * 3, None), classes=1) == []
    assert found(tmp_path, look=Look(0, [], [], None)) == []  # none could be read


def test_a_teacher_that_collapses(tmp_path) -> None:
    lines = [{"kind": "eval", "step": 1, "ap": 0.32}, {"kind": "train", "step": 5, **TERMS}]
    (said,) = found(tmp_path, before=lines, metrics={"ap": 0.1})
    assert "the teacher collapses: it had 0.3200 and has 0.1000" in said
    assert found(tmp_path, before=lines, metrics={"ap": 0.25}) == []
    early = [{"kind": "eval", "step": 1, "ap": 0.01}, lines[1]]
    assert found(tmp_path, before=early, metrics={"ap": 0.001}) == []


def test_a_look_at_evenly_spread_unlabeled_images(tmp_path) -> None:
    scenes = make_scenes(tmp_path, train=20, val=1)
    (scenes / "images/train/train0.png").write_bytes(b"no image")
    source = open_source(str(scenes / "images/train"))

    class RPN(nn.Module):
        def forward(self) -> Any:
            return [torch.zeros(7, 4)], {}

    class Model(nn.Module):
        """Finds one box of class 1 and one that does not count."""

        def __init__(self) -> None:
            super().__init__()
            self.model = SimpleNamespace(rpn=RPN())

        def find(self, images: torch.Tensor, sizes: torch.Tensor) -> Any:
            self.model.rpn()
            boxes = torch.tensor([[1.0, 1, 5, 5], [2, 2, 6, 6]])
            scores, labels = torch.tensor([0.6, 0.01]), torch.tensor([1, 0])
            return {"boxes": boxes, "scores": scores, "labels": labels}, None

    augment = BoxAugmentConfig(sizes=[64], test_size=64, longest=None)
    look = look_at(Model().eval(), [source], augment, torch.device("cpu"))  # type: ignore[arg-type]
    assert look.images == LOOKED_AT - 1
    assert look.metrics() == pytest.approx(
        {"unlabeled_boxes": 1, "unlabeled_score": 0.6, "unlabeled_classes": 1,
         "unlabeled_proposals": 7}
    )  # fmt: skip
