"""Which class a file is of is checked tensor by tensor, and the right one is found from shapes."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch

import zoo
from zoo.paddle.convert import convert, recognise
from zoo.paddle.rename import DoesNotFit, renamed


def empty(name: str, classes: int = 1000) -> dict[str, torch.Tensor]:
    """Tensors of the class's names and shapes, without memory."""
    shapes = {
        key: tuple(classes if n == 1000 and len(shape) < 3 else n for n in shape)
        for key, shape in reference.shapes(name).items()
    }
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("name", reference.CLASSES)
def test_every_class_is_recognised_by_its_shapes(name: str) -> None:
    assert recognise(empty(name)) == name


def test_a_wrong_class_is_refused_and_the_right_one_named() -> None:
    with pytest.raises(zoo.InputError, match="give `--class ResNet50_vd`"):
        convert(empty("ResNet50_vd"), "ResNet101_vd", "a.pdparams")
    with pytest.raises(zoo.InputError, match="give `--class MobileNetV1`"):
        convert(empty("MobileNetV1"), "ResNet50_vd", "a.pdparams")
    with pytest.raises(zoo.InputError, match="give `--class PPLCNet_x0_5`"):
        convert(empty("PPLCNet_x0_5"), "PPLCNet_x1_0", "a.pdparams")


def test_weights_of_no_known_class_are_refused() -> None:
    weights = {"a.weight": torch.zeros(3)}
    with pytest.raises(zoo.InputError, match="fit no class of the catalogue"):
        convert(weights, "ResNet50_vd", "a.pdparams")


@pytest.mark.parametrize("name", ["resnet50_vd", "ResNet50", "ResNet50_vds"])
def test_an_unknown_class_offers_the_nearest(name: str) -> None:
    with pytest.raises(zoo.InputError, match="did you mean .*ResNet50_vd"):
        convert({}, name, "a.pdparams")


@pytest.mark.parametrize("name", ["MobileNetV2", "GhostNet_x1_3", "PPLCNetV2_base", "HRNet_W18_C"])
def test_a_missing_or_further_tensor_is_named(name: str) -> None:
    weights = empty(name)
    missing = next(k for k in reversed(weights) if k.endswith("._mean"))
    without = {k: v for k, v in weights.items() if k != missing}
    with pytest.raises(zoo.InputError, match="running_mean|is missing"):
        convert(without, name, "a.pdparams")
    further = {**weights, "more.weight": torch.empty(3, device="meta")}
    with pytest.raises(zoo.InputError, match="no place for 'more.weight'"):
        convert(further, name, "a.pdparams")


def test_another_number_of_classes_is_kept() -> None:
    found = convert(empty("ResNet50_vd", classes=10), "ResNet50_vd", "a.pdparams")
    assert found["fc.weight"].shape == (10, 2048) and found["fc.bias"].shape == (10,)


def test_a_square_linear_layer_is_transposed_too() -> None:
    """By name, not by shape: with as many classes as features nothing else would tell."""
    weights = {
        k: torch.from_numpy(reference.fill(k, tuple(v.shape)))
        for k, v in empty("MobileNetV3_small_x0_35", classes=1280).items()
    }
    found = convert(weights, "MobileNetV3_small_x0_35", "a.pdparams")
    np.testing.assert_allclose(found["classifier.weight"], 0.8 * weights["fc.weight"].T)


def test_two_tensors_never_become_one() -> None:
    tensors = {"a1.weight": torch.zeros(1), "a2.weight": torch.ones(1)}
    with pytest.raises(DoesNotFit, match="two tensors would be 'b.weight'"):
        renamed(tensors, {r"a\d": "b"}, linear="b")
