"""Words for ImageNet's classes, wherever a class is shown."""

from __future__ import annotations

import json

import pytest
import timm
from safetensors.torch import save_file

from ssld.curate.explain import _class
from ssld.curate.tables import Curation
from ssld.models.class_titles import class_titles, titled
from ssld.models.config import TeacherConfig
from ssld.models.opening import open_network
from ssld.models.teacher import Teacher


@pytest.mark.parametrize(
    ("count", "number", "word"),
    [(1000, 985, "daisy"), (1000, 0, "tench"), (11821, 0, None), (21841, 0, "organism"),
     (21843, 0, "organism"), (11221, 0, None), (21842, 985, "daisy")],
)  # fmt: skip
def test_words_by_number(count, number, word):
    sure = class_titles(None, count, of_imagenet=True)
    assert sure is not None and len(set(sure)) == count
    assert word is None or sure[number] == word
    unsure = class_titles(None, count, of_imagenet=False)
    assert unsure is not None and unsure[number].startswith(
        f"class {number} ({sure[number]} in ImageNet-"
    )


def test_who_has_none_and_who_has_own():
    assert class_titles(None, 999, of_imagenet=False) is None
    assert class_titles(None, 1001, of_imagenet=True) is None
    assert class_titles(["n1", "b"], 2, of_imagenet=False) == ["n1", "b"]
    assert class_titles(["n02007558", "n11939491"], 2, of_imagenet=False) == ["flamingo", "daisy"]
    cranes = titled(("n02012849", "n03126707", "n00000000"))
    assert cranes == ("crane (n02012849)", "crane (n03126707)", "n00000000")


def test_only_published_weights_are_surely_of_imagenet(monkeypatch, tmp_path):
    create = timm.create_model

    def without_a_hub(name, pretrained=False, **given):
        return create(name, **given)

    monkeypatch.setattr(timm, "create_model", without_a_hub)
    published = open_network("teacher", arch="test_resnet.r160_in1k", pretrained=True)
    assert published.class_titles[985] == "daisy" and published.label_names is None
    assert not open_network("student", arch="test_resnet.r160_in1k").of_imagenet
    other = open_network("teacher", arch="test_resnet.r160_in1k", pretrained=True, num_classes=5)
    assert other.class_titles is None
    save_file(published.model.state_dict(), tmp_path / "own.safetensors")
    own = open_network("teacher", arch="test_resnet", checkpoint=f"{tmp_path}/own.safetensors")
    assert own.class_titles[985] == "class 985 (daisy in ImageNet-1k)"
    teacher = Teacher([own, published], [TeacherConfig(arch="test_resnet")] * 2)
    assert teacher.class_titles[985] == "daisy" and teacher.label_names is None


@pytest.mark.parametrize("of_imagenet", [False, True])
def test_curation_names_them(tmp_path, of_imagenet):
    titles = class_titles(None, 1000, of_imagenet=of_imagenet)
    (tmp_path / "manifest.json").write_text(json.dumps({"label_names": titles}))
    curation = Curation(tmp_path)
    shown = "daisy" if of_imagenet else "daisy in ImageNet-1k"
    assert (
        _class(curation, 985) == f"class 985 ({shown})" and _class(curation, 1000) == "class 1000"
    )
