"""A teacher with a planted fault: the fault is named, and nothing else is when there is none.

The teacher knows a colour per class and calls an image what its mean colour is nearest to. That is
right only under the normalisation, channel order and class order that it was made with.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from ssld.data.loading import Batch
from ssld.health.teacher_check import GIVEN, NORMALISATIONS, SWAPPED, check_teacher
from ssld.models.classifier import Classifier

CLASSES = 120
COLOURS = torch.rand(CLASSES, 3, generator=torch.Generator().manual_seed(0))
"""In [0, 1]: a colour per class, so many that a slight shift already confuses some."""
TRUE = "ImageNet's"
FAR = {  # a normalisation that is often confused with each
    "ImageNet's": "0 to 1",
    "Inception's": "ImageNet's",
    "CLIP's": "Inception's",
    "0 to 1": "ImageNet's",
    "0 to 255": "ImageNet's",
}


class Nearest(nn.Module):
    """Logits: how near an image's mean colour is to each class's, both as the network sees them.

    Args:
        right: the normalisation that it was made with, a key of `NORMALISATIONS`.
        order: output i stands for class order[i].
    """

    def __init__(self, right=TRUE, order=None, bgr=False) -> None:
        super().__init__()
        mean, std = (torch.tensor(x) for x in NORMALISATIONS[right])
        colours = COLOURS if order is None else COLOURS[torch.tensor(order)]
        self.known = nn.Parameter(((colours.flip(-1) if bgr else colours) - mean) / std)
        self.sharpness = 1000 * float(std.mean()) ** 2
        self.num_classes = CLASSES
        self.pretrained_cfg: dict = {}

    def forward(self, x):  # [b, 3, h, w]
        return -self.sharpness * torch.cdist(x.mean((2, 3)), self.known) ** 2


def network(given=TRUE, **faults) -> Classifier:
    mean, std = NORMALISATIONS[given]
    return Classifier(Nearest(**faults).eval(), input_size=4, mean=mean, std=std)


def batches(per_class=4, labeled=True, size=50) -> list[Batch]:
    """Every class `per_class` times in mixed order, slightly noisy."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), per_class))
    pixels = 255 * COLOURS.numpy()[labels][:, None, None] + rng.normal(0, 3, (len(labels), 4, 4, 3))
    images = torch.tensor(np.clip(pixels.round(), 0, 255), dtype=torch.uint8)
    targets = torch.tensor(labels if labeled else np.full(len(labels), -1))
    ids = [str(i) for i in range(len(labels))]
    parts = [slice(i, i + size) for i in range(0, len(labels), size)]
    return [Batch(images[p], torch.ones(len(ids[p])), targets[p], ids[p], []) for p in parts]


def top1(net: Classifier, swap=False) -> float:
    with torch.no_grad():
        hits = [
            net(b.images.flip(-1) if swap else b.images).argmax(-1) == b.labels for b in batches()
        ]
    return float(torch.cat(hits).float().mean())


@pytest.mark.parametrize("right", NORMALISATIONS)
@pytest.mark.parametrize("labeled", [True, False])
def test_a_teacher_used_as_it_was_trained_is_cleared(right, labeled):
    found = check_teacher(network(right, right=right), batches(labeled=labeled))
    assert found.findings == []
    assert (found.images, found.labeled) == (480, 480 if labeled else 0)
    if labeled:
        assert found.top1[GIVEN] > 0.95 and GIVEN in found.information
    else:
        assert found.top1 == {}


@pytest.mark.parametrize("right", NORMALISATIONS)
def test_a_wrong_normalisation_is_named_with_its_cure(right):
    wrong = network(FAR[right], right=right)
    found = check_teacher(wrong, batches())
    assert found.findings[0].startswith(f"normalisation {right}: ")
    assert f"instead of {top1(wrong):.1%}" in found.findings[0]
    for values in NORMALISATIONS[right]:
        assert str([round(x, 4) for x in values]) in found.findings[0]
    assert found.top1[GIVEN] == pytest.approx(top1(wrong))
    cured = network(right, right=right)
    assert found.top1[f"normalisation {right}"] == pytest.approx(top1(cured))


@pytest.mark.parametrize("right", ["0 to 255", "ImageNet's"])
def test_a_wrong_normalisation_is_named_without_labels(right):
    given = "0 to 255" if right == "ImageNet's" else "ImageNet's"
    found = check_teacher(network(given, right=right), batches(labeled=False))
    assert found.labeled == 0 and found.top1 == {}
    said = next(f for f in found.findings if f.startswith(f"normalisation {right}: "))
    assert "times too large" in said if right == "ImageNet's" else "times too small" in said
    assert str([round(x, 4) for x in NORMALISATIONS[right][0]]) in said
    assert all("judged without labels" in f for f in found.findings)


@pytest.mark.parametrize("given", ["Inception's", "CLIP's", "0 to 1"])
def test_what_tells_more_without_labels_is_no_more_than_a_hint(given):
    """Two narrow domains that look alike as they are given, and not in another way."""
    net = network(given, right=given)
    two = [[0.5, 0.5, 0.1], [0.5, 0.5, 0.8]]
    mean, std = (torch.tensor(x) for x in NORMALISATIONS[given])
    with torch.no_grad():  # sure that both are the first; swapped, one is the second
        net.model.known[:] = 50
        net.model.known[0] = (torch.tensor([0.1, 0.5, 0.5]) - mean) / std
        net.model.known[1] = (torch.tensor([0.95, 0.5, 0.48]) - mean) / std
    pixels = (255 * torch.tensor(two)).round().to(torch.uint8)[torch.arange(40) % 2]
    images = pixels[:, None, None].expand(40, 4, 4, 3).contiguous()
    batch = Batch(images, torch.ones(40), torch.full((40,), -1), ["x"] * 40, [])
    found = check_teacher(net, [batch])
    assert found.information[SWAPPED] > 1.2 * found.information[GIVEN] + 0.1
    assert found.findings == [] and found.fault is None
    assert found.hints[0].startswith(f"{SWAPPED}: ") and "proves nothing" in found.hints[0]


@pytest.mark.parametrize("labeled", [True, False])
def test_a_teacher_of_no_numbers_is_at_fault_and_nothing_else_is_said(labeled):
    net = network()
    with torch.no_grad():
        net.model.known[7] = torch.nan
    found = check_teacher(net, batches(labeled=labeled))
    assert found.fault and "480 of 480 images (0, 1, 2, 3, 4, 5, 6, 7 and 472 more)" in found.fault
    assert found.findings == found.hints == [] and found.information == found.top1 == {}


def test_a_constant_teacher_is_at_fault_unless_its_preprocessing_is():
    net = network()
    net.model.sharpness = 0.0
    assert check_teacher(net, batches()).fault == (
        "it predicts exactly the same for 480 different images"
    )
    alike = [dataclasses.replace(b, images=torch.full_like(b.images, 90)) for b in batches()]
    assert check_teacher(net, alike).fault is None


def test_information_is_what_predictions_tell_about_an_image():
    net = network("Inception's")
    with torch.no_grad():
        p = torch.cat([net(b.images) for b in batches()]).double().softmax(-1).numpy()
    joint = p / len(p)  # of image and class: mutual information by its definition
    wanted = (joint * np.log(np.maximum(p, 1e-300) / p.mean(0))).sum()
    found = check_teacher(net, batches(labeled=False)).information[GIVEN]
    assert found == pytest.approx(wanted, abs=1e-3) and 0.5 < wanted < np.log(CLASSES)


@pytest.mark.parametrize("labeled", [True, False])
def test_a_custom_normalisation_is_not_doubted(labeled):
    net = network()
    near = Classifier(net.model, input_size=4, mean=(0.49, 0.45, 0.41), std=(0.228, 0.223, 0.226))
    found = check_teacher(near, batches(labeled=labeled))
    assert found.findings == [] and "normalisation ImageNet's" not in found.information
    assert len(found.information) == 2 + len(NORMALISATIONS) - 1


def test_swapped_channels_are_named():
    wrong = network(bgr=True)
    found = check_teacher(wrong, batches())
    assert found.findings[0].startswith(f"{SWAPPED}: ") and "BGR" in found.findings[0]
    assert found.top1[SWAPPED] == pytest.approx(top1(wrong, swap=True))
    assert found.top1[GIVEN] < 0.3 < 0.9 < found.top1[SWAPPED]


AS_TEXT = sorted(range(CLASSES), key=str)
ORDERS = {
    "shifted up by one": [(i + 1) % CLASSES for i in range(CLASSES)],
    "shifted down by one": [(i - 1) % CLASSES for i in range(CLASSES)],
    "reversed": [CLASSES - 1 - i for i in range(CLASSES)],
    "sorted as text": AS_TEXT,
    "sorted as text, inverted": [AS_TEXT.index(i) for i in range(CLASSES)],
    "permuted": np.random.default_rng(1).permutation(CLASSES).tolist(),
}


@pytest.mark.parametrize("name", ORDERS)
def test_another_order_of_classes_is_named(name):
    net = network(order=ORDERS[name])
    found = check_teacher(net, batches())
    assert found.findings[0].startswith(f"class order {name}: ")
    assert "in another order" in found.findings[0]
    assert len(found.findings) == 1
    assert found.top1[f"class order {name}"] > 0.85 and found.top1[GIVEN] < 0.2  # half teach half
    assert f"instead of {found.top1[GIVEN]:.1%}" in found.findings[0]


def relabeled(labels) -> list[Batch]:
    parts = torch.as_tensor(labels).split([len(b.ids) for b in batches()])
    pairs = zip(batches(), parts, strict=True)
    return [Batch(b.images, b.weight, part, b.ids, []) for b, part in pairs]


@pytest.mark.parametrize("seed", range(10))
def test_an_order_cannot_be_read_into_chance(seed):
    guessed = relabeled(np.random.default_rng(seed).integers(0, CLASSES, 480))
    found = check_teacher(network(), guessed)
    assert not any(f.startswith("class order") for f in found.findings)
    # An assignment fitted to the very images that it is tried on would reach far more.
    assert found.top1[GIVEN] < 0.05 and found.top1.get("class order permuted", 0) < 0.05
    unsure = network()
    unsure.model.sharpness = 1e-3
    assert check_teacher(unsure, guessed).findings == []


def test_an_order_that_few_images_cannot_tell_is_still_suspected():
    shifted = [(i + 7) % CLASSES for i in range(CLASSES)]  # an order that has no name
    found = check_teacher(network(order=shifted), batches(per_class=1))
    assert len(found.findings) == 1 and found.findings[0].startswith("another class order: ")
    assert f"{found.top1[GIVEN]:.1%} of them are right" in found.findings[0]
    reverse = check_teacher(network(order=ORDERS["reversed"]), batches(per_class=1, size=6)[:1])
    assert not any(f.startswith("class order") for f in reverse.findings)


def test_two_wrong_labels_prove_nothing():
    labels = torch.cat([b.labels for b in batches()])
    few = torch.full_like(labels, -1)
    few[:2] = (labels[:2] + 9) % CLASSES
    assert check_teacher(network(), relabeled(few)).findings == []


def test_only_readable_images_count_and_only_labeled_are_judged():
    parts = batches()
    spoiled = []
    for b in parts:
        weight, labels, images = b.weight.clone(), b.labels.clone(), b.images.clone()
        weight[:5], labels[:5], images[:5] = 0, 7, 127
        labels[5:10] = -1
        spoiled.append(Batch(images, weight, labels, b.ids, []))
    spoiled.append(Batch(images[:5], weight[:5], labels[:5], b.ids[:5], []))  # none readable
    found = check_teacher(network(), spoiled)
    assert (found.images, found.labeled) == (480 - 5 * len(parts), 480 - 10 * len(parts))
    assert found.findings == [] and found.top1[GIVEN] > 0.95


def test_no_image_gives_no_finding():
    found = check_teacher(network(), [])
    assert (found.images, found.labeled, found.findings) == (0, 0, [])


def test_the_network_is_left_as_it_was():
    net = network("Inception's", bgr=True)
    before, weights = (net.mean, net.std, net.model.training), net.sha256()
    check_teacher(net, batches(), "bf16")
    assert (net.mean, net.std, net.model.training) == before and net.sha256() == weights
