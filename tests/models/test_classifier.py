"""Networks: their own preprocessing, strict loading, and what is said when weights do not fit."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from ssld.common.errors import InputError
from ssld.models.classifier import Classifier
from ssld.models.opening import open_network


def test_preprocess_is_the_textbook_formula():
    network = Classifier(
        timm.create_model("test_resnet"), input_size=8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)
    )
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    expected = (images.double() / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor(
        [0.5, 0.6, 0.7]
    )
    torch.testing.assert_close(
        network.preprocess(images).double(), expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5
    )


def test_preprocess_resizes_to_its_own_size():
    network = Classifier(timm.create_model("test_resnet"), input_size=24)
    flat = torch.full((1, 50, 50, 3), 200, dtype=torch.uint8)
    x = network.preprocess(flat)
    assert x.shape == (1, 3, 24, 24)
    assert x.std((2, 3)).max() < 1e-5


def test_metadata_of_the_weights_wins(teacher_file):
    network = open_network("teacher", arch=None, checkpoint=str(teacher_file))
    assert (network.mean, network.std, network.input_size) == (
        (0.4, 0.5, 0.6),
        (0.2, 0.3, 0.25),
        32,
    )
    assert network.num_classes == 3
    own = open_network(
        "teacher",
        arch=None,
        checkpoint=str(teacher_file),
        input_size=48,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    assert (own.mean, own.std, own.input_size) == ((0, 0, 0), (1, 1, 1), 48)


def test_float16_weights_become_float32(teacher_file, tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(teacher_file).items()}
    save_file(half, tmp_path / "half.safetensors")
    network = open_network(
        "teacher", arch="test_resnet", checkpoint=str(tmp_path / "half.safetensors")
    )
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_another_class_count_replaces_only_the_classifier(teacher_file):
    network = open_network("student", arch=None, checkpoint=str(teacher_file), num_classes=7)
    weights = load_file(teacher_file)
    assert network.num_classes == 7
    assert torch.equal(network.model.state_dict()["conv1.0.weight"], weights["conv1.0.weight"])


def _damaged(weights, damage):
    if damage == "missing":
        weights.pop("conv1.0.weight")
    elif damage == "unexpected":
        weights["extra.weight"] = torch.zeros(1)
    else:
        weights["conv1.0.weight"] = weights["conv1.0.weight"][:, :1].clone()
    return weights


@pytest.mark.parametrize("damage", ["missing", "unexpected", "another shape"])
def test_every_tensor_is_accounted_for(teacher_file, tmp_path, damage):
    path = tmp_path / "damaged.safetensors"
    save_file(_damaged(load_file(teacher_file), damage), path)
    with pytest.raises(InputError, match=damage) as error:
        open_network("teacher", arch="test_resnet", checkpoint=str(path))
    assert ("extra" if damage == "unexpected" else "conv1.0") in str(error.value)


def test_bad_models_are_named(teacher_file, tmp_path):
    cases = [
        (dict(arch="resnet5O"), "did you mean 'resnet50'"),
        (dict(arch="resnet50", checkpoint=str(teacher_file)), "holds a 'test_resnet'"),
        (dict(arch="resnet50", checkpoint="nowhere.safetensors"), "no such file"),
        (dict(arch="resnet50", checkpoint=__file__), "only safetensors files, what torch.save"),
        (dict(arch=f"local-dir:{tmp_path}"), "no config.json"),
        (dict(arch=None, checkpoint=str(tmp_path)), "no config.json"),
        (dict(arch="test_resnet", args={"nonsense": 1}), "check teacher.args"),
    ]
    for arguments, said in cases:
        with pytest.raises(InputError) as error:
            open_network("teacher", **arguments)
        assert said in str(error.value)
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"\x10\0\0\0\0\0\0\0not json at all!")
    with pytest.raises(InputError, match="is not a safetensors file"):
        open_network("teacher", arch="resnet50", checkpoint=str(junk))


def test_cost_against_hand_counted_multiply_adds():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 5),
    )
    model.pretrained_cfg = {"architecture": "hand"}
    parameters, macs = Classifier(model, input_size=10).cost()
    assert parameters == pytest.approx((3 * 4 * 9 + 4 + 4 * 5 + 5) / 1e6)
    assert macs == pytest.approx((10 * 10 * 4 * 27 + 20) / 1e6)


def test_cost_refuses_a_size_the_model_cannot_take():
    network = open_network("student", arch="test_vit", input_size=57)
    with pytest.raises(InputError, match="does not run on images of 57 px"):
        network.cost()


def test_local_dir_of_an_export(tmp_path, teacher_file):
    from ssld.engine.checkpoint import export

    network = open_network("student", arch=None, checkpoint=str(teacher_file), input_size=40)
    network.label_names = ["a", "b", "c"]
    export(network, tmp_path / "student", 7)
    before = (tmp_path / "student/model.safetensors").read_bytes()
    export(network, tmp_path / "student", 7)
    assert (tmp_path / "student/model.safetensors").read_bytes() == before
    plain = timm.create_model(f"local-dir:{tmp_path}/student", pretrained=True).eval()
    images = torch.rand(2, 3, 40, 40)
    torch.testing.assert_close(plain(images), network.model.eval()(images), rtol=0, atol=0)
    assert tuple(plain.pretrained_cfg["mean"]) == (0.4, 0.5, 0.6)
    assert tuple(plain.pretrained_cfg["input_size"]) == (3, 40, 40)
    assert json.loads((tmp_path / "student/config.json").read_text())["label_names"] == [
        "a",
        "b",
        "c",
    ]
    again = open_network("teacher", arch=None, checkpoint=str(tmp_path / "student"))
    assert again.label_names == ["a", "b", "c"] and again.input_size == 40
    assert again.sha256() == network.sha256()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_features_are_what_the_last_layer_makes_logits_of(name):
    torch.manual_seed(0)
    network = Classifier(timm.create_model(name, num_classes=5).eval(), input_size=32)
    images = torch.randint(0, 256, (3, 40, 32, 3), dtype=torch.uint8)
    passes = []
    network.model.register_forward_hook(lambda *_: passes.append("whole"))
    logits, features = network(images, with_features=True)
    assert features.shape == (3, network.feature_size) and not passes
    assert torch.equal(features, network.features(images))
    assert torch.equal(logits, network(images)) and passes == ["whole"]
    classifier = network.model.get_classifier()
    assert torch.allclose(classifier(features), logits, atol=1e-6)
    features.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in network.parameters())
