"""ImageNet's folders, n01440764 and so on, under networks that call its classes by words or not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torchvision.models._meta import _IMAGENET_CATEGORIES as TORCHVISION

from ssld.common.errors import InputError
from ssld.data.labels import index_for, known_index, unknown_labels
from ssld.data.source import Source
from ssld.data.sources import open_source
from ssld.models.class_titles import class_titles

SOME = {"n11939491": 985, "n01440764": 0, "n02012849": 134, "n15075141": 999}
TIMM = [x.rpartition(" (n")[0] or x for x in class_titles(None, 1000, of_imagenet=True) or ()]


def source(root: Path, names: list[str]) -> Source:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / name / "x.png")
    return open_source(str(root))


def network(names: list[str] | None, count: int = 1000) -> SimpleNamespace:
    return SimpleNamespace(num_classes=count, label_names=names)


def accepted(images: Source, network: SimpleNamespace) -> list[int]:
    assert unknown_labels([images], network) is None
    found = index_for([images], network, "student"), known_index([images], network)
    one, other = ([index(images.label(i)) for i in range(len(images))] for index in found)
    assert one == other
    return one


@pytest.mark.parametrize("names", [None, TORCHVISION, TIMM, [f"{x}, else" for x in TORCHVISION]],
                         ids=["none", "torchvision", "timm", "hub"])  # fmt: skip
def test_some_of_imagenets_folders(tmp_path, names):
    assert accepted(source(tmp_path, list(SOME)), network(names)) == [SOME[x] for x in sorted(SOME)]


def test_a_network_that_has_ids_keeps_its_own_order(tmp_path):
    ids = class_ids()[::-1]
    found = accepted(source(tmp_path, list(SOME)), network(ids))
    assert found == [999 - SOME[x] for x in sorted(SOME)]


def class_ids() -> list[str]:
    from timm.data.imagenet_info import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


@pytest.mark.parametrize(
    ("folders", "teacher"),
    [
        (["n123", "n456"], network(None)),
        (["n01440764", "n123"], network(None)),
        (["n01440764", "dog"], network(TORCHVISION)),
        (["n01440764", "n00000001"], network(TORCHVISION)),
        (list(SOME), network(sorted(TORCHVISION))),
        (list(SOME), network([f"LABEL_{i}" for i in range(1000)])),
        (list(SOME), network(None, 100)),
        (list(SOME), network(None, 21841)),
    ],
    ids=["alike", "one alike", "a word", "no class", "sorted", "LABEL_0", "100", "21k"],
)
def test_other_folders_and_networks_are_refused_as_ever(tmp_path, folders, teacher):
    images = source(tmp_path, folders)
    assert unknown_labels([images], teacher)
    with pytest.raises(InputError):
        index_for([images], teacher, "student")
    assert {known_index([images], teacher)(x) for x in folders} == {-1}


def test_as_many_folders_as_a_small_network_has_classes_are_its_classes(tmp_path):
    assert accepted(source(tmp_path, list(SOME)), network(None, 4)) == [0, 1, 2, 3]
