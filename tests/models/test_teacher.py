"""The teacher is data: frozen whatever is called on it, averaged in probability space."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from ssld.common.errors import InputError
from ssld.models.classifier import Classifier
from ssld.models.config import TeacherConfig
from ssld.models.teacher import Teacher, open_one, open_teacher


def images(n=6, side=32):
    return torch.randint(
        0, 256, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def weights_of(teacher):
    return {k: v.clone() for k, v in teacher.state_dict().items()}


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_bitwise_unchanged_also_after_train(teacher_file, mode):
    teacher, digest = open_teacher(
        [TeacherConfig(checkpoint=str(teacher_file), batch_norm=mode)], "fp32"
    )
    before, first = weights_of(teacher), teacher(images())
    teacher.train()
    teacher.networks[0].model.train()
    second = teacher(images())
    assert torch.equal(first, second)
    after = teacher.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before) and before.keys() == after.keys()
    assert not any(p.requires_grad for p in teacher.parameters())
    assert len(digest) == 64


def test_batch_mode_is_the_references_train_mode(teacher_file):
    batch, _ = open_teacher(
        [TeacherConfig(checkpoint=str(teacher_file), batch_norm="batch")], "fp32"
    )
    evaluation, _ = open_teacher([TeacherConfig(checkpoint=str(teacher_file))], "fp32")
    drifting = evaluation.networks[0].model
    assert not torch.allclose(batch(images()), evaluation(images()))
    x = evaluation.networks[0].preprocess(images())
    drifting.train()  # as the reference leaves it
    expected = F.log_softmax(drifting(x), -1)
    torch.testing.assert_close(batch(images()), expected.detach(), atol=1e-5, rtol=1e-5)


def test_average_is_in_probability_space(teacher_file):
    other = Classifier(timm.create_model("test_resnet", num_classes=3).eval(), input_size=32)
    one, _ = open_teacher([TeacherConfig(checkpoint=str(teacher_file))], "fp32")
    both = Teacher([one.networks[0], other], [TeacherConfig(), TeacherConfig()])
    for temperature in (1.0, 4.0):
        expected = [
            F.softmax(n(images()).double() / temperature, -1) for n in (one.networks[0], other)
        ]
        got = both(images(), temperature)
        torch.testing.assert_close(
            got.double(), (sum(expected) / 2).log().detach(), atol=1e-5, rtol=1e-5
        )


def test_micro_batches_change_nothing(teacher_file):
    whole, _ = open_teacher([TeacherConfig(checkpoint=str(teacher_file))], "fp32")
    parts, _ = open_teacher([TeacherConfig(checkpoint=str(teacher_file), micro_batch=4)], "fp32")
    torch.testing.assert_close(whole(images(7)), parts(images(7)), atol=1e-5, rtol=1e-5)


def test_own_size_and_dtype(teacher_file):
    teacher, _ = open_teacher(
        [TeacherConfig(checkpoint=str(teacher_file), input_size=48, dtype="bf16")], "fp32"
    )
    predicted = teacher(images())
    assert predicted.dtype == torch.float32
    torch.testing.assert_close(predicted.exp().sum(-1), torch.ones(6))


def test_teachers_of_other_classes_are_refused(teacher_file):
    with pytest.raises(InputError, match="teacher 0 has 3 classes but teacher 1 has 1000"):
        one, _ = open_teacher([TeacherConfig(checkpoint=str(teacher_file))], "fp32")
        Teacher(
            [one.networks[0], Classifier(timm.create_model("test_resnet"))], [TeacherConfig()] * 2
        )


@pytest.mark.parametrize("settings", [{}, {"micro_batch": 3}, {"dtype": "bf16"}])
def test_features_come_with_the_very_predictions(settings, teacher_file):
    configs = [TeacherConfig(checkpoint=str(teacher_file), **settings)] * 2
    teacher, _ = open_teacher(configs, "fp32")
    alone, faulty = teacher(images(), 2.0), teacher.faulty
    log_probs, features = teacher(images(), 2.0, with_features=True)
    assert torch.equal(log_probs, alone) and torch.equal(teacher.faulty, faulty)
    size = teacher.networks[0].feature_size
    assert [x.shape for x in features] == [(len(images()), size)] * 2
    assert all(x.dtype == torch.float32 and not x.requires_grad for x in features)
    whole = teacher.networks[0].features(images())
    assert torch.allclose(features[0], whole, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"args": {"img_size": 48}}, 48),
        ({"args": {"img_size": [48, 48]}}, 48),
        ({"args": {"img_size": 48}, "input_size": 16}, 16),
    ],
)
def test_a_size_among_the_arguments_is_what_the_teacher_sees(tmp_path, settings, size):
    """And not the one that its weights name, at which this network would run as well."""
    weights = timm.create_model("test_vit", num_classes=3, img_size=48).state_dict()
    file = tmp_path / "teacher.safetensors"
    save_file(weights, file, {"architecture": "test_vit", "input_size": "3,32,32"})
    assert open_one(TeacherConfig(checkpoint=str(file), **settings)).input_size == size
