"""Which weights a backbone gets by which name, that all are used, and who says distilled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.resnet import ResNet

from downstream.backbone.backbone import open_backbone
from downstream.backbone.config import BackboneConfig
from downstream.backbone.weights import is_distilled
from ssld.common.errors import InputError
from ssld.engine.checkpoint import export
from ssld.models.opening import open_network
from zoo.release import seal

TAUGHT = {"teacher_sha256": "ab" * 32}
ALONE = {"teacher_sha256": None}


def _run(folder: Path, teacher_file: Path, facts: dict | None = None) -> Path:
    """A run folder with a student and what run.json says of its making."""
    network = open_network("student", arch=None, checkpoint=str(teacher_file), input_size=48)
    export(network, folder / "student", 7)
    if facts is not None:
        (folder / "run.json").write_text(json.dumps(facts))
    return folder


def _first(backbone) -> torch.Tensor:
    return backbone.state_dict()["model.conv1.0.weight"]


def test_every_way_to_name_weights(teacher_file, tmp_path):
    run = _run(tmp_path / "run", teacher_file, ALONE)
    expected = load_file(teacher_file)["conv1.0.weight"]
    for named in (
        {"name": str(run)},
        {"name": str(run / "student")},
        {"name": f"local-dir:{run / 'student'}"},
        {"checkpoint": str(run)},
        {"name": "test_resnet", "checkpoint": str(run)},
        {"checkpoint": str(teacher_file)},
        {"name": str(teacher_file)},
    ):
        backbone = open_backbone(BackboneConfig(**named))
        assert torch.equal(_first(backbone), expected)
        assert backbone.architecture == "test_resnet"
        assert (backbone.mean, backbone.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
        assert backbone.input_size == (32 if "teacher" in str(named) else 48)
        assert backbone.pretrained and not backbone.distilled
        random = open_backbone(BackboneConfig(**named, pretrained=False))
        assert not torch.equal(_first(random), expected) and not random.pretrained
        assert (random.mean, random.input_size) == (backbone.mean, backbone.input_size)
        assert random.state_dict().keys() == backbone.state_dict().keys()
        assert all(p.requires_grad for p in random.parameters())


def test_weights_of_the_zoo_by_name_are_distilled(tmp_path, monkeypatch):
    name = "lcnet_025_ssld"
    release = tmp_path / "published" / name
    release.mkdir(parents=True)
    save_file(timm.create_model(name).state_dict(), release / "model.safetensors")
    (release / "config.json").write_text(f'{{"architecture": "{name}"}}')
    seal(release, {"name": name, "kind": "converted"})
    monkeypatch.setenv("SSLD_ZOO_DIR", str(release.parent))
    monkeypatch.setenv("SSLD_ZOO_CACHE", str(tmp_path / "cache"))
    backbone = open_backbone(BackboneConfig(name))
    expected = load_file(release / "model.safetensors")["conv_stem.weight"]
    assert torch.equal(backbone.state_dict()["model.conv_stem.weight"], expected)
    assert backbone.distilled and backbone.tuned()
    assert set(backbone.lr_scales().values()) == {0.05, 0.1, 0.15}
    assert not open_backbone(BackboneConfig(name, pretrained=False)).distilled


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet50d_ssld", True),
        ("resnet50d_ssld.fix", True),
        ("hrnet_w18_ssld.paddle_in1k", True),
        ("lcnetv2_base.ssld_in1k", True),
        ("hf-hub:timm/lcnetv2_base.ssld_in1k", True),
        ("lcnetv2_base", False),
        ("resnet50d", False),
        ("resnet50d.ra2_in1k", False),
        ("hf-hub:timm/resnet50d.ra2_in1k", False),
    ],
)
def test_the_catalogue_says_which_published_weights_are_distilled(name, said):
    assert is_distilled(BackboneConfig(name)) == said
    assert not is_distilled(BackboneConfig(name, pretrained=False))


def test_a_checkpoint_decides_not_the_name_of_the_architecture(teacher_file):
    assert not is_distilled(BackboneConfig("resnet50d_ssld", checkpoint=str(teacher_file)))


def _after(facts: dict, start: dict, before: dict | None = None) -> dict:
    """run.json of a run that went on from another, which may have gone on from a third."""
    third = {"facts": before, "started_from": None} if before else None
    return {**facts, "started_from": {"facts": start, "started_from": third}}


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (TAUGHT, True),
        (ALONE, False),
        ({}, False),
        (None, False),
        (_after(ALONE, TAUGHT), True),
        (_after(ALONE, ALONE), False),
        (_after(ALONE, ALONE, TAUGHT), True),
        (_after(ALONE, ALONE, ALONE), False),
    ],
)
def test_a_run_says_whether_it_or_one_before_had_a_teacher(facts, said, teacher_file, tmp_path):
    run = _run(tmp_path / "run", teacher_file, facts)
    for named in (
        {"name": str(run)},
        {"name": str(run / "student")},
        {"checkpoint": str(run)},
        {"checkpoint": str(run / "student/model.safetensors")},
        {"name": f"local-dir:{run / 'student'}"},
    ):
        assert is_distilled(BackboneConfig(**named)) == said
        assert not is_distilled(BackboneConfig(**named, pretrained=False))


RELEASES = [
    ({"kind": "distilled"}, True),
    ({"kind": "supervised"}, False),
    ({"kind": "exported"}, False),
    ({"kind": "converted", "provenance": {"by": "PaddleClas"}}, True),
    ({"kind": "converted", "provenance": {"file": "mine.pdparams"}}, False),
]


@pytest.mark.parametrize(("facts", "said"), RELEASES)
def test_a_release_says_how_it_was_made(facts, said, tmp_path, monkeypatch):
    (tmp_path / "ssld.json").write_text(json.dumps(facts))
    assert is_distilled(BackboneConfig(str(tmp_path))) == said
    asked = []

    def download(repo, file, revision):
        asked.append((repo, file, revision))
        return tmp_path / file

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert is_distilled(BackboneConfig("hf-hub:org/colours@v1")) == said
    assert is_distilled(BackboneConfig("hf-hub:org/colours")) == said
    assert asked == [("org/colours", "ssld.json", "v1"), ("org/colours", "ssld.json", None)]


def test_a_repository_without_a_release_is_not_distilled(monkeypatch):
    def download(repo, file, revision):
        raise FileNotFoundError(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert not is_distilled(BackboneConfig("hf-hub:org/colours"))


@pytest.mark.parametrize("damage", ["missing", "unexpected", "of another shape", "diverged"])
def test_a_checkpoint_that_was_tampered_with_is_refused(teacher_file, tmp_path, damage):
    weights = load_file(teacher_file)
    key = "layer3.0.conv2.weight"
    if damage == "missing":
        del weights[key]
    elif damage == "unexpected":
        weights["layer5.0.conv2.weight"] = weights[key].clone()
    elif damage == "diverged":
        weights[key][0, 0, 0, 0] = float("nan")
    else:
        weights[key] = weights[key][:1].clone()
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    with pytest.raises(InputError, match=f"{damage}.*layer[35].0.conv2.weight"):
        open_backbone(BackboneConfig("test_resnet", checkpoint=str(path)))


@pytest.mark.parametrize("damage", [None, "missing", "unexpected", "head"])
def test_weights_that_timm_would_load_in_part_are_refused(tmp_path, damage):
    """timm is not strict with DLA, whatever the weights lack."""
    weights = timm.create_model("dla46_c").state_dict()
    if damage == "missing":
        del weights["level5.tree1.conv1.weight"]
    elif damage == "unexpected":
        weights["level3.extra"] = torch.zeros(1)
    elif damage == "head":
        del weights["fc.weight"]
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    config = BackboneConfig("dla46_c", {"pretrained_cfg_overlay": {"file": str(path)}})
    if damage in (None, "head"):
        backbone = open_backbone(config)
        assert "pretrained_cfg_overlay" not in backbone.args  # a file of this machine
        found = backbone.state_dict()["model.level5.tree1.conv1.weight"]
        assert torch.equal(found, weights["level5.tree1.conv1.weight"])
        return
    said = {"missing": "lack .*level5.tree1.conv1", "unexpected": "hold tensors .*level3.extra"}
    with pytest.raises(InputError, match=f"backbone dla46_c {said[damage]}"):
        open_backbone(config)


def _lose(model: ResNet) -> None:
    model.layer2 = torch.nn.Identity()  # type: ignore[assignment]


def _make_anew(model: ResNet) -> None:
    model.conv1[0].reset_parameters()  # type: ignore[operator,index]


def _replace(model: ResNet) -> None:
    old = model.layer2[0].conv1.weight  # type: ignore[union-attr]
    model.layer2[0].conv1.weight = torch.nn.Parameter(old.clone())  # type: ignore[union-attr]


@pytest.mark.parametrize("harm", [_lose, _make_anew, _replace])
def test_a_pyramid_that_is_not_the_classifiers_is_refused(monkeypatch, harm):
    """As if timm removed more than the head, or built parts of the network anew."""
    prune = ResNet.prune_intermediate_layers

    def harmful(self, *args, **kwargs):
        found = prune(self, *args, **kwargs)
        harm(self)
        return found

    monkeypatch.setattr(ResNet, "prune_intermediate_layers", harmful)
    with pytest.raises(InputError, match="test_resnet has other feature maps than its classifier"):
        open_backbone(BackboneConfig("test_resnet", pretrained=False))


def test_what_cannot_be_opened_is_one_sentence(teacher_file, tmp_path):
    damaged = _run(tmp_path / "run", teacher_file)
    (damaged / "run.json").write_text('{"steps": 3')
    cases = [
        ({}, "backbone.name is missing"),
        ({"name": "resnet50dd"}, "backbone.name 'resnet50dd'.*did you mean 'resnet50d'"),
        ({"name": "runs/nowhere"}, "backbone.name runs/nowhere: no such folder"),
        ({"name": str(tmp_path)}, "no config.json"),
        ({"name": "test_resnet", "args": {"nonsense": 1}}, "check backbone.args"),
        ({"name": "resnet18", "checkpoint": str(teacher_file)}, "holds a 'test_resnet'"),
        ({"name": str(damaged), "checkpoint": str(teacher_file)}, "are both weights"),
        ({"name": str(damaged)}, "run.json is damaged"),
    ]
    for settings, said in cases:
        pretrained = settings.get("name") != "test_resnet"
        with pytest.raises(InputError, match=said) as error:
            open_backbone(BackboneConfig(**settings, pretrained=pretrained))
        assert "\n" not in str(error.value)
