"""A run with a planted cause: the cause is named, and none is made up for a healthy one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from ssld.data.loading import Batch
from ssld.health import causes as diagnosis
from ssld.health.causes import causes
from ssld.health.teacher_check import NORMALISATIONS, check_teacher
from ssld.models.classifier import Classifier
from ssld.models.config import TeacherConfig
from ssld.models.teacher import Teacher

CLASSES = 12
COLOURS = torch.rand(CLASSES, 3, generator=torch.Generator().manual_seed(3))
HEALTHY = "no cause found"


class Nearest(nn.Module):
    """Says which of its colours an image's mean colour is nearest to."""

    def __init__(self, right: str, order: list[int], sharpness: float) -> None:
        super().__init__()
        mean, std = (torch.tensor(x) for x in NORMALISATIONS[right])
        self.known = nn.Parameter((COLOURS[torch.tensor(order)] - mean) / std)
        self.sharpness = sharpness * float(std.mean()) ** 2
        self.num_classes = CLASSES
        self.pretrained_cfg: dict = {}

    def forward(self, x):  # [b, 3, h, w]
        return -self.sharpness * torch.cdist(x.mean((2, 3)), self.known) ** 2


def teacher(given="ImageNet's", right="ImageNet's", order=None, sharpness=300.0) -> Teacher:
    model = Nearest(right, order or list(range(CLASSES)), sharpness)
    mean, std = NORMALISATIONS[given]
    return Teacher([Classifier(model, input_size=32, mean=mean, std=std)], [TeacherConfig()])


def batches(labeled=True) -> list[Batch]:
    """Each class ten times, in three batches."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat(10)[torch.randperm(120, generator=generator)]
    noise = torch.randn(120, 32, 32, 3, generator=generator)
    pixels = 255 * COLOURS[labels][:, None, None] + 20 * noise
    images = pixels.clamp(0, 255).to(torch.uint8)
    labels = labels if labeled else torch.full_like(labels, -1)
    return [
        Batch(images[i : i + 40], torch.ones(40), labels[i : i + 40], ["x"] * 40, [])
        for i in (0, 40, 80)
    ]


def plain() -> nn.Module:
    """A network in a row, without a path around any layer."""
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    model.num_classes, model.pretrained_cfg = CLASSES, {}
    return model


def student(name="test_resnet") -> tuple[Classifier, dict[str, Tensor]]:
    """A network in eval mode and a copy of its parameters; it is still to be moved."""
    torch.manual_seed(0)
    model = plain() if name == "plain" else timm.create_model(name, num_classes=CLASSES)
    initial = {n: p.detach().clone() for n, p in model.named_parameters()}
    return Classifier(model.eval(), input_size=32), initial


@torch.no_grad()
def move(network: Classifier, share=0.05, names: Callable[[str], bool] = lambda _: True) -> None:
    """Each tensor by `share` of its norm; one that is zero a little."""
    generator = torch.Generator().manual_seed(1)
    for name, p in network.model.named_parameters():
        if names(name):
            step = torch.randn(p.shape, generator=generator)
            p += step * (share * p.norm() / step.norm()) if p.any() else 1e-3 * share * step


def moved(name="test_resnet", share=0.05) -> tuple[Classifier, dict[str, Tensor]]:
    network, initial = student(name)
    move(network, share)
    return network, initial


def diagnose(network, initial, taught_by=None, labeled=True) -> list[str]:
    return causes(network, initial, batches(labeled), taught_by)


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "plain"])
@pytest.mark.parametrize("labeled", [True, False])
def test_a_healthy_run_has_no_cause(name, labeled):
    assert only(diagnose(*moved(name), teacher(), labeled)).startswith(HEALTHY)
    assert only(diagnose(*moved(name), None, labeled)).startswith(HEALTHY)  # supervised


def test_a_learning_rate_too_low_is_named_with_how_little_it_moved():
    said = only(diagnose(*moved(share=1e-5), teacher()))
    assert said.startswith("learning rate too low") and "1.0e-05" in said and "schedule.lr" in said


def test_steps_below_rounding_mean_a_learning_rate_too_low():
    # Gains of 1 swallow such a step in float32, biases of 0 do not.
    assert only(diagnose(*moved(share=1e-8), teacher())).startswith("learning rate too low")


def test_weights_that_never_moved_mean_a_learning_rate_too_low():
    assert only(diagnose(*student(), teacher())).startswith("learning rate too low")


@pytest.mark.parametrize("taught", [True, False])
def test_a_learning_rate_too_high_is_named_by_the_growth(taught):
    network, initial = moved()
    with torch.no_grad():
        for p in network.model.parameters():
            p *= 5
    said = only(diagnose(network, initial, teacher() if taught else None))
    assert said.startswith("learning rate too high") and "grown 5.0 times" in said


def test_a_student_that_is_surely_wrong_means_a_learning_rate_too_high():
    network, initial = moved()
    with torch.no_grad():
        network.model.get_classifier().bias[0] += 20
    said = only(diagnose(network, initial, teacher()))
    assert said.startswith("learning rate too high") and "further from the teacher" in said
    assert "grown" not in said


def test_layers_that_are_switched_off_are_frozen():
    network, initial = moved()
    off = [n for n, p in network.model.named_parameters() if n.startswith("layer1")]
    network.model.layer1.requires_grad_(False)
    said = only(diagnose(network, initial, teacher()))
    total = len(initial)
    assert said.startswith(f"frozen layers: {len(off)} of {total} ") and off[0] in said


def test_what_a_fix_freezes_is_no_cause():
    network, initial = student()
    network.freeze_but(["fc"])
    move(network, names=lambda n: n.startswith("fc"))
    found = diagnose(network, initial, teacher())
    assert not any(said.startswith("frozen layers") for said in found)


def test_layers_that_did_not_move_are_frozen():
    network, initial = student()
    move(network, names=lambda n: not n.startswith("layer2"))
    still = [n for n in initial if n.startswith("layer2")]
    said = only(diagnose(network, initial, teacher()))
    assert said.startswith(f"frozen layers: {len(still)} of {len(initial)} ") and still[0] in said


def test_one_tensor_of_many_that_does_not_move_is_no_cause():
    network, initial = student()
    move(network, names=lambda n: n != "conv1.0.weight")
    assert only(diagnose(network, initial, teacher())).startswith(HEALTHY)


def test_a_student_that_is_frozen_as_a_whole_has_no_learning_rate():
    network, initial = student()
    network.model.requires_grad_(False)
    assert only(diagnose(network, initial, teacher())).startswith("frozen layers: 47 of 47 ")


DEAD = [
    ("plain", "0"),
    ("plain", "2"),
    ("plain", "6"),
    ("test_resnet", "conv1.3"),
    ("test_resnet", "fc"),
    ("test_convnext", "head.fc"),
]


@pytest.mark.parametrize(("name", "layer"), DEAD)
def test_a_dead_layer_is_named(name, layer):
    network, initial = moved(name)
    nn.init.zeros_(network.model.get_submodule(layer).weight)
    said = only(diagnose(network, initial, teacher()))
    assert said.startswith(f"dead layers: from {layer} on,")


def test_an_activation_that_lets_nothing_through_is_dead():
    network, initial = moved("plain")
    with torch.no_grad():
        network.model[2].bias -= 5
    found = diagnose(network, initial)
    assert found[0].startswith("dead layers: from 3 on,")


def test_a_dead_branch_beside_a_living_one_is_no_cause():
    network, initial = moved()
    nn.init.zeros_(network.model.layer1[0].conv2.weight)  # the block's input goes around it
    assert only(diagnose(network, initial, teacher())).startswith(HEALTHY)


def test_a_teacher_with_another_normalisation_is_named():
    wrong = teacher("ImageNet's", "0 to 255")
    for labeled in (True, False):
        said = only(diagnose(*moved(), wrong, labeled))
        assert said.startswith("the teacher is better with normalisation 0 to 255: ")


def test_a_teacher_with_another_class_order_is_named():
    reverse = teacher(order=list(range(CLASSES))[::-1])
    said = only(diagnose(*moved(), reverse))
    assert said.startswith("the teacher is better with class order reversed: ")
    assert only(diagnose(*moved(), reverse, labeled=False)).startswith(HEALTHY)


def test_each_teacher_of_an_ensemble_is_looked_at():
    parts = [teacher(), teacher(order=list(range(CLASSES))[::-1])]
    both = Teacher([t.networks[0] for t in parts], [TeacherConfig(), TeacherConfig()])
    assert "class order reversed" in only(diagnose(*moved(), both))


@pytest.mark.parametrize("labeled", [True, False])
def test_a_teacher_that_says_nothing_is_named(labeled):
    said = only(diagnose(*moved(), teacher(sharpness=1e-3), labeled))
    assert said.startswith("the teacher says nearly the same about every image")


def test_three_causes_at_most_and_the_students_own_first():
    network, initial = moved()
    with torch.no_grad():
        for p in network.model.parameters():
            p *= 5
    nn.init.zeros_(network.model.get_classifier().weight)
    network.model.layer1.requires_grad_(False)
    found = diagnose(network, initial, teacher("ImageNet's", "0 to 255"))
    starts = ["frozen layers", "dead layers", "the teacher is better with"]
    assert [f[: len(s)] for f, s in zip(found, starts, strict=True)] == starts


def test_looking_for_causes_changes_nothing():
    network, initial = moved()
    network.model.layer1.requires_grad_(False)
    before = network.sha256()
    kept = copy.deepcopy(initial)
    diagnose(network, initial, teacher())
    assert network.sha256() == before and not network.model.training
    assert all(torch.equal(kept[n], initial[n]) for n in kept)
    assert not any(m._forward_hooks for m in network.modules())
    assert [p.requires_grad for p in network.model.layer1.parameters()].count(True) == 0


def test_unreadable_images_do_not_hide_that_all_look_the_same():
    network, initial = moved("plain")
    parts = batches()
    first = parts[0]
    first.images[1:] = first.images[0]
    first.images[5:] = 127
    first.weight[5:] = 0
    found = causes(network, initial, parts, None)
    assert found[0].startswith("dead layers: from 0 on,")
    first.weight[5:] = 1  # the grey ones do look different
    assert only(causes(network, initial, parts, None)).startswith(HEALTHY)


def test_without_labels_a_seemingly_better_preprocessing_is_no_cause(monkeypatch):
    """On another domain a right teacher may well tell more with its channels swapped."""
    check = check_teacher(teacher().networks[0], batches(labeled=False))  # type: ignore[arg-type]
    assert check.findings == check.hints == []
    hinted = dataclasses.replace(check, hints=["colour channels swapped: predictions tell more"])
    monkeypatch.setattr(diagnosis, "check_teacher", lambda *_: hinted)
    healthy, hint = diagnose(*moved(), teacher(), labeled=False)
    assert healthy.startswith(HEALTHY) and hint.startswith("hint on the teacher, colour channels")
    said = only(diagnose(*moved(share=1e-5), teacher(), labeled=False))
    assert said.startswith("learning rate too low")  # where there is a cause, no hint is needed


def test_a_teacher_of_no_numbers_is_the_cause():
    broken = teacher()
    with torch.no_grad():
        broken.networks[0].model.known[2] = torch.inf  # type: ignore[union-attr, index]
    said = diagnose(*moved(), broken)[0]
    assert said.startswith("the teacher cannot teach, its predictions are not finite")
    assert "learning rate" not in said and "nan%" not in said.lower()
