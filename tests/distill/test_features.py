"""The feature term against closed forms in float64; what it is measured by; which settings go
together; that it is not there at weight 0."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from ssld.common.errors import InputError
from ssld.common.settings import plain
from ssld.data.config import DataConfig
from ssld.data.labels import NO_CLASSES, table_of
from ssld.data.loading import Batch
from ssld.distill.config import (
    DistillConfig,
    FeaturesConfig,
    FixResConfig,
    LossConfig,
)
from ssld.distill.distill import Distillation, distillation
from ssld.distill.divergence import training_divergence
from ssld.distill.features import (
    TRAINING_SCALE,
    feature_loss,
    open_projection,
    training_feature_loss,
)
from ssld.distill.parent_run import settings_after
from ssld.distill.task import Classification
from ssld.health.classification_metrics import ClassificationMetrics
from ssld.health.verdict import judge, level, symptoms
from ssld.models.classifier import Classifier
from ssld.models.config import StudentConfig, TeacherConfig
from ssld.models.teacher import Teacher, open_teacher
from ssld.plan.measure import HardLabels

LOSSES = ["cosine", "l2"]
GIVEN: dict[str, Any] = {
    "out": "run",
    "steps": 1,
    "student": StudentConfig(arch="test_resnet"),
    "teacher": TeacherConfig(arch="test_vit"),
    "data": DataConfig(unlabeled=["images"]),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(images: Tensor, weight: Tensor | None = None) -> Batch:
    n = len(images)
    weight = torch.ones(n) if weight is None else weight
    return Batch(images, weight, torch.full((n,), -1), [str(i) for i in range(n)], [])


def pixels(n: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)


def network(arch: str = "test_resnet", classes: int = 3, seed: int = 1) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(timm.create_model(arch, num_classes=classes), input_size=32)


def settings(**changes: Any) -> DistillConfig:
    return DistillConfig(**{**GIVEN, **changes})


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_the_closed_form(name):
    p, t = draw(5, 7).requires_grad_(), draw(5, 7, seed=1)
    found = feature_loss(name, p, t)
    (gradient,) = torch.autograd.grad(found.sum(), p)
    with torch.no_grad():
        length, other = p.norm(dim=1, keepdim=True), t.norm(dim=1, keepdim=True)
        cos = (p * t).sum(1, keepdim=True) / (length * other)
        values = {"cosine": 1 - cos[:, 0], "l2": ((p - t) ** 2).sum(1) / 7}
        gradients = {"cosine": (cos * p / length - t / other) / length, "l2": 2 * (p - t) / 7}
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, values[name])
    torch.testing.assert_close(gradient, gradients[name])
    assert torch.autograd.gradcheck(lambda x: feature_loss(name, x, t), p)
    scaled = training_feature_loss(name, p, t)
    torch.testing.assert_close(scaled, {"cosine": 12, "l2": 10}[name] * values[name])
    half = feature_loss(name, p.detach().bfloat16(), t.float())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, values[name].float(), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("name", LOSSES)
def test_a_projection_learns_a_linear_map(name):
    """Features of the student that the teacher's are a linear map of: nothing is left to lose."""
    own, true = draw(64, 6).float(), draw(9, 6, seed=1).float()
    wanted = own @ true.T + 0.5
    student: Any = lambda images, with_features: (images[:, :0], images)  # noqa: E731
    teacher: Any = lambda images, temperature, with_features: (images[:, :0], [wanted])  # noqa: E731
    torch.manual_seed(0)
    projection = nn.Linear(6, 9)
    features = FeaturesConfig(weight=0.5, loss=name)  # type: ignore[arg-type]
    task = Distillation(teacher, LossConfig(weight=0), features=features, projection=projection)
    assert task.auxiliary == {"projection": projection}
    optimizer = torch.optim.Adam(projection.parameters(), lr=0.05)
    first = task.losses(student, batch(own))["features"]
    expected = 0.5 * TRAINING_SCALE[name] * feature_loss(name, projection(own), wanted)
    torch.testing.assert_close(first, expected)
    for _ in range(400):
        terms = task.losses(student, batch(own))
        optimizer.zero_grad()
        terms["features"].mean().backward()
        optimizer.step()
    assert terms.keys() == {"features"}
    assert terms["features"].mean() < 1e-3 * first.mean()


def test_weight_zero_is_the_divergence_alone_to_the_bit():
    teacher = Teacher([network(seed=2)], [TeacherConfig()])
    outcomes = []
    for weight in (0.0, 0.7):
        student = network()
        torch.manual_seed(5)
        task = distillation(settings(features=FeaturesConfig(weight=weight)), teacher, student)
        state = torch.get_rng_state()
        terms = task.losses(student, batch(pixels()))
        terms["divergence"].sum().backward()
        gradients = [p.grad for p in student.parameters()]
        outcomes.append((task, state, terms, gradients))
    (without, state, terms, gradients), (task, _, both, others) = outcomes
    assert without.auxiliary == {} and terms.keys() == {"divergence"}
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())  # no number was drawn for a projection
    old = training_divergence("kl", network()(pixels()), teacher(pixels()))
    assert torch.equal(terms["divergence"], old)
    assert both.keys() == {"divergence", "features"} and task.auxiliary.keys() == {"projection"}
    assert torch.equal(both["divergence"], terms["divergence"])
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))  # type: ignore[arg-type]


def test_the_projection_follows_from_the_seed():
    student, teacher = network(), Teacher([network("test_vit", 0)], [TeacherConfig()])
    one, again, other = (open_projection(student, teacher, seed) for seed in (0, 0, 1))
    assert one.weight.shape == (teacher.networks[0].feature_size, student.feature_size)
    assert torch.equal(one.weight, again.weight) and not torch.equal(one.weight, other.weight)


def test_an_average_is_measured_with_its_own_projection():
    teacher = Teacher([network("test_vit", 0)], [TeacherConfig()])
    features = FeaturesConfig(weight=1)
    student, average = network(classes=0).eval(), network(classes=0).eval()
    trained, averaged = (open_projection(student, teacher, seed) for seed in (0, 1))
    task = Distillation(teacher, LossConfig(weight=0), features=features, projection=trained)
    average.auxiliary = nn.ModuleDict({"projection": averaged})
    with torch.no_grad():
        found = task.evaluate(average, [batch(pixels())]).metrics()
        _, own = average(pixels(), with_features=True)
        _, (wanted,) = teacher(pixels(), with_features=True)
        expected = 1 - feature_loss("cosine", averaged(own), wanted).mean()
        other = 1 - feature_loss("cosine", trained(own), wanted).mean()
    assert found["feature_cosine"] == pytest.approx(float(expected), abs=1e-6)
    assert abs(float(expected - other)) > 1e-3
    assert not {"agreement1", "entropy_student", "classes_student"} & found.keys()


def measured(p: Tensor, t: Tensor, *, parts: int = 1) -> dict[str, float]:
    score = ClassificationMetrics(0, torch.device("cpu"), t.shape[1])
    weight = torch.ones(len(p))
    weight[0] = 0  # an unreadable image
    for rows in torch.arange(len(p)).chunk(parts):
        score.add_features(batch(p[rows], weight[rows]), p[rows], t[rows])
    return score.metrics()


def test_agreement_is_the_correlation_about_the_means():
    p, t = draw(40, 5).float() + 1, draw(40, 5, seed=1).float() + 2
    a, b = (x[1:].double() / x[1:].double().norm(dim=1, keepdim=True) for x in (p, t))
    cosine = (a * b).sum(1).mean()
    a0, b0 = a - a.mean(0), b - b.mean(0)
    agreement = (a0 * b0).sum() / (a0.square().sum() * b0.square().sum()).sqrt()
    for parts in (1, 3):
        found = measured(p, t, parts=parts)
        assert found["images"] == 39
        assert found["feature_cosine"] == pytest.approx(float(cosine), abs=1e-6)
        assert found["feature_agreement"] == pytest.approx(float(agreement), abs=1e-5)
        same = found["feature_sameness_student"], found["feature_sameness_teacher"]
        assert same == pytest.approx((float(a.mean(0).norm()), float(b.mean(0).norm())), abs=1e-6)
    assert measured(3 * t, t)["feature_agreement"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("case", "phrase"),
    [
        ("learned", None),
        ("constant", "its projected features have collapsed: they are the same for all images"),
        ("other", r"feature agreement with the teacher is .*%, which is chance \(0\)"),
        ("nan", r"its projected features are not finite"),
        ("teacher", "the teacher itself has the same features for all images"),
    ],
)
def test_the_verdict_names_what_is_wrong(case, phrase):
    """However high the cosine is: the teacher's features have much in common."""
    t = draw(200, 16).float() + 2
    p = {
        "learned": t + 0.5 * draw(200, 16, seed=1).float(),
        "constant": t.mean(0, keepdim=True).expand(200, 16),
        "other": draw(200, 16, seed=2).float() + 2,
        "nan": t * math.nan,
        "teacher": t,
    }[case]
    line = measured(p, t[:1].expand(200, 16) if case == "teacher" else t)
    if case in ("constant", "other"):
        assert line["feature_cosine"] > 0.75
    before = {**line, "epoch": 1.0, "feature_agreement": line["feature_agreement"] - 0.1}
    judged = judge(
        [before, {**line, "epoch": 2.0}],
        metric="feature_agreement", num_classes=0, share_of_peak=0.5,
    )  # fmt: skip
    if phrase is None:
        assert symptoms(line, 0) == [] and judged.kind == "improving"
        assert judged.sentence.startswith("still improving: feature agreement ")
        assert "feature agreement" in level(line)
    else:
        assert judged.kind == "not learning"
        assert re.match(f"not learning: {phrase}", judged.sentence), judged.sentence


def test_a_teacher_without_a_classifier_is_for_features_alone():
    config = TeacherConfig(arch="test_vit", args={"num_classes": 0}, checkpoint=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssld.models.teacher.open_network", lambda *_, **__: network("test_vit", 0))
        with pytest.raises(InputError, match="loss.weight 0, features.weight 1"):
            open_teacher([config], "fp32")
        teacher, _ = open_teacher([config], "fp32", features_alone=True)
    log_probs, (features,) = teacher(pixels(), with_features=True)
    assert log_probs.shape == (6, 0) and features.shape == (6, teacher.networks[0].feature_size)
    assert not teacher.faulty.any() and torch.equal(teacher.answers(pixels())[0], features)
    with torch.no_grad():
        next(teacher.parameters()).fill_(math.nan)
    teacher(pixels(), with_features=True)
    assert teacher.faulty.shape == (1, 6) and teacher.faulty.all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": LossConfig(weight=0)}, "both 0: nothing is left to learn"),
        (
            {"features": FeaturesConfig(weight=0.5), "teacher": TeacherConfig(),
             "teachers": [TeacherConfig(arch="test_vit")] * 2},
            "features.weight is 0.5 with 2 teachers, whose features have no common average",
        ),
        (
            {"features": FeaturesConfig(weight=1), "loss": LossConfig(weight=0),
             "student": StudentConfig(arch="test_resnet", num_classes=7)},
            "student.num_classes is 7 but loss.weight is 0, which trains no classifier",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        settings(**changes)


def test_a_fix_does_not_train_features():
    data = DataConfig(labeled=["images"])
    with pytest.raises(ValueError, match="this stage trains the classifier, not the features"):
        FixResConfig(**{**GIVEN, "run": "run", "data": data}, features=FeaturesConfig(weight=1))


def test_features_alone_are_settings_of_a_run():
    alone = settings(features=FeaturesConfig(weight=1), loss=LossConfig(weight=0))
    assert alone.features_alone and not settings().features_alone
    assert not settings(features=FeaturesConfig(weight=1)).features_alone
    resolved = alone.resolved(network(classes=0), [network("test_vit", 0)])
    assert resolved.student.num_classes is None and resolved.features == alone.features
    assert dataclasses.replace(resolved, steps=2).features_alone  # what it wrote can be read again
    assert table_of("the student", network(classes=0)).count == NO_CLASSES.count


def after(stage: str, **changes: Any) -> dict[str, Any]:
    config = settings(**changes)
    student = network(classes=0 if config.features_alone else 3)
    tree = plain(config.resolved(student, [network()]))
    tree["data"]["labeled"] = ["labeled"]
    return settings_after(stage, tree, True, "run", {})


def test_stages_after_keep_it_where_features_are_trained():
    both = {"features": FeaturesConfig(weight=0.5)}
    assert after("finetune", **both)["features"] == {"weight": 0.5, "loss": "cosine"}
    assert "features" not in after("fix", **both)
    alone = {**both, "loss": LossConfig(weight=0)}
    assert after("finetune", **alone)["student"]["num_classes"] is None
    with pytest.raises(InputError, match="learned features alone: it has no classifier to fix"):
        after("fix", **alone)


def test_best_is_by_the_agreement_that_there_is():
    class Run:
        config = settings()

    run: Any = Run()
    assert Classification.monitor(Distillation(None, LossConfig()), run) == "agreement1"  # type: ignore[arg-type]
    alone = Distillation(None, LossConfig(weight=0))  # type: ignore[arg-type]
    assert alone.monitor(run) == "feature_agreement"
    assert HardLabels(3).monitor(run) == "top1"


def test_a_supervised_step_of_a_plan_gives_every_parameter_a_gradient():
    student, projection = network(), nn.Linear(4, 2)
    loss = HardLabels(3, [projection]).losses(student, batch(pixels()))["cross_entropy"]
    torch.testing.assert_close(
        loss, HardLabels(3).losses(student, batch(pixels()))["cross_entropy"]
    )
    loss.sum().backward()
    assert projection.weight.grad is not None and projection.weight.grad.abs().max() == 0
