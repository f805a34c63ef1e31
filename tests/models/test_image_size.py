"""What is said of a network that takes images of one size alone."""

from __future__ import annotations

import pytest
import timm

from ssld.common.errors import InputError
from ssld.models.classifier import Classifier
from ssld.models.image_size import size_advice


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        (
            "test_vit",
            {"img_size": 48, "dynamic_img_size": False},
            ", or give it `args: {dynamic_img_size: true}`, with which",
        ),
        ("levit_128s", {}, ", or give it `args: {img_size: 64}`, with which it does"),
        ("test_resnet", {"in_chans": 1}, ""),  # no size helps
        ("nobody's", {}, ""),
    ],
)
def test_what_makes_it_take_another_size_was_tried(name, args, said):
    advice = size_advice(name, args, (64, 64))
    assert advice.startswith(said) and bool(advice) == bool(said)


def test_a_student_of_another_size_is_one_sentence():
    model = timm.create_model("test_vit", img_size=48, dynamic_img_size=False)
    with pytest.raises(InputError, match="; set another size, or give it `args: {dynamic"):
        Classifier(model, input_size=64).cost()
    Classifier(model, input_size=48).cost()
