"""A teacher is used as its settings say, and named where it is at fault; a right one never is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pictures
import pytest
import short_runs
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ssld.__main__ import main
from ssld.common.errors import InputError
from ssld.distill.distill import Distillation
from ssld.distill.verify_teacher import judge
from ssld.models import teacher as teachers
from ssld.models.classifier import Classifier

METADATA = {
    "architecture": "test_resnet",
    "mean": "0.4,0.5,0.6",
    "std": "0.2,0.3,0.25",
    "input_size": "3,32,32",
}


def words(colours: Path, teacher_file: Path, out: Path, **changes: object) -> list[str]:
    once = {"checkpoint.every_steps": 100, "evaluate_every_epochs": 100}
    return short_runs.words(colours, teacher_file, out, **{**once, **changes})


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch) -> None:
    pictures.leave_out(monkeypatch)


@pytest.fixture
def formats(monkeypatch) -> list[torch.dtype]:
    """Number format of every forward pass of a teacher's network."""
    found: list[torch.dtype] = []

    def spied(*asked):
        (logits,) = answer(*asked)
        found.append(logits.dtype)
        return [logits]

    answer = teachers._in_parts
    monkeypatch.setattr(teachers, "_in_parts", spied)
    return found


@pytest.fixture
def targets(monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor, Classifier]]:
    """The targets of every step, what the teacher saw, and its network."""
    found = []

    def spied(self, student, batch):
        told = self.teacher.forward

        def forward(images, temperature=1.0):
            log_probs = told(images, temperature)
            found.append((log_probs.clone(), images.clone(), self.teacher.networks[0]))
            return log_probs

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.teacher, "forward", forward)
            return losses(self, student, batch)

    losses = Distillation.losses
    monkeypatch.setattr(Distillation, "losses", spied)
    return found


@pytest.mark.parametrize(
    ("precision", "dtype", "used"),
    [
        ("bf16", "fp32", torch.float32),
        ("bf16", None, torch.bfloat16),
        ("fp32", "bf16", torch.bfloat16),
    ],
)
def test_the_teachers_dtype_alone_decides(
    colours, teacher_file, tmp_path, formats, targets, precision, dtype, used
):
    given = {"precision": precision, "teacher.dtype": dtype, "data.labeled": colours / "train"}
    assert main(["distill", *words(colours, teacher_file, tmp_path / "run", **given)]) == 0
    assert len(formats) > 2 + 2 and set(formats) == {used}  # check, steps and evaluation alike
    assert len(targets) == 2
    for log_probs, images, network in targets:
        with torch.no_grad(), torch.autocast("cpu", used, enabled=used != torch.float32):
            plain = network(images).float().log_softmax(-1)
        assert torch.equal(log_probs, plain)


def test_pixels_are_normalised_in_float32_whatever_the_precision(teacher_file):
    teacher, _ = teachers.open_teacher(
        [teachers.TeacherConfig(checkpoint=str(teacher_file), input_size=24)], "fp32"
    )
    network = teacher.networks[0]
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    plain = network.preprocess(images)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert torch.equal(network.preprocess(images), plain)
    assert plain.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_evaluating_and_planning_use_the_precision_of_training(
    colours, teacher_file, tmp_path, monkeypatch, dtype
):
    """`plan` tries other preprocessings in the very precision in which the teacher teaches."""
    found = set()
    forward = Classifier.forward

    def spied(self, images):
        logits = forward(self, images)
        if not self.training and not any(p.requires_grad for p in self.parameters()):
            found.add(logits.dtype)
        return logits

    monkeypatch.setattr(Classifier, "forward", spied)
    given = {"precision": "bf16", "teacher.dtype": dtype, "seconds": 0.01, "images": 16}
    main(["plan", *words(colours, teacher_file, tmp_path / "run", **given)])
    assert found == {{"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]}


def spoiled(teacher_file: Path, out: Path, harm: str) -> Path:
    """The teacher's weights, so that it overflows for every image, or says the same. (Weights
    that are not finite themselves are refused when they are read.)"""
    weights = load_file(teacher_file)
    if harm == "constant":
        weights["fc.weight"].zero_()
    else:
        weights["fc.weight"][1] = 3e38 * (1 if harm == "inf" else weights["fc.weight"][1].sign())
    save_file(weights, out, METADATA)
    return out


SAID = {
    "nan": "the teacher's predictions are not finite",
    "inf": "the teacher's predictions are not finite",
    "constant": "the teacher predicts exactly the same for 16 different images",
}


@pytest.mark.parametrize("harm", SAID)
@pytest.mark.parametrize("labels", [True, False])
def test_a_teacher_that_cannot_teach_is_named_before_the_first_step(
    colours, teacher_file, tmp_path, capsys, harm, labels
):
    bad = spoiled(teacher_file, tmp_path / "bad.safetensors", harm)
    given = {"teacher.verify": "true", "data.labeled": colours / "train" if labels else None}
    if not labels:
        given["data.val"] = colours / "unlabeled"
    assert main(["distill", *words(colours, bad, tmp_path / "run", **given)]) == 2
    said = capsys.readouterr().err
    assert SAID[harm] in said and "teacher.checkpoint" in said and "schedule.lr" not in said
    if harm != "constant":
        assert "é.png" in said  # some of the samples
    assert not (tmp_path / "run").exists()


def test_the_one_of_several_teachers_is_named(colours, teacher_file, tmp_path, capsys):
    bad = spoiled(teacher_file, tmp_path / "bad.safetensors", "nan")
    pair = json.dumps([{"checkpoint": str(teacher_file)}, {"checkpoint": str(bad)}])
    given = {"teacher.checkpoint": None, "teacher.verify": None, "teachers": pair}
    assert main(["distill", *words(colours, bad, tmp_path / "run", **given)]) == 2
    assert "the teacher 1's predictions are not finite" in capsys.readouterr().err


def test_a_constant_teacher_may_be_meant_so(colours, teacher_file, tmp_path, capsys):
    bad = spoiled(teacher_file, tmp_path / "bad.safetensors", "constant")
    assert main(["distill", *words(colours, bad, tmp_path / "run")]) == 0
    assert "warning: the teacher predicts exactly the same" in capsys.readouterr().out


def test_equal_images_do_not_make_a_teacher_constant(teacher_file, tmp_path, capsys, colours):
    folder = tmp_path / "equal"
    folder.mkdir()
    for i in range(20):
        Image.new("RGB", (40, 40), (90, 100 + i // 18, 110)).save(folder / f"{i}.png")
    given = {"data.unlabeled": folder, "teacher.verify": "true", "data.val": folder}
    assert main(["distill", *words(colours, teacher_file, tmp_path / "run", **given)]) == 0


@pytest.mark.parametrize("view", ["same", "other"])
def test_a_teacher_that_fails_in_training_is_blamed_not_the_learning_rate(
    colours, teacher_file, tmp_path, capsys, monkeypatch, view
):
    """As half precision does that overflows on a few images only."""
    answer, calls = teachers._in_parts, []

    def fails(network, config, images, with_features):
        (logits,) = answer(network, config, images, with_features)
        calls.append(len(images))
        if len(images) == 8:  # a step's, not the check's before it
            logits[3] = torch.inf
        return [logits]

    monkeypatch.setattr(teachers, "_in_parts", fails)
    given = {"teacher_view": view}
    assert main(["distill", *words(colours, teacher_file, tmp_path / "run", **given)]) == 2
    said = capsys.readouterr().err
    assert "the teacher's predictions are not finite" in said and "at step 0" in said
    assert "schedule.lr" not in said and said.count(".png") == 1


def test_a_teacher_that_fails_on_held_out_images_is_named(
    colours, teacher_file, tmp_path, capsys, monkeypatch
):
    answer = teachers._in_parts

    def fails(network, config, images, with_features):
        (logits,) = answer(network, config, images, with_features)
        if torch.is_inference_mode_enabled():
            logits[-1, 0] = torch.nan
        return [logits]

    monkeypatch.setattr(teachers, "_in_parts", fails)
    given = {"data.val": colours / "unlabeled"}
    assert main(["distill", *words(colours, teacher_file, tmp_path / "run", **given)]) == 2
    said = capsys.readouterr()
    assert "the teacher's predictions are not finite" in said.err and ".png" in said.err
    assert "nan%" not in (said.out + said.err).lower()


def test_a_student_that_explodes_is_not_the_teachers_fault(colours, teacher_file, tmp_path, capsys):
    given = {"schedule.lr": 1e30, "steps": 6, "schedule.warmup_epochs": 0}
    assert main(["distill", *words(colours, teacher_file, tmp_path / "run", **given)]) == 2
    said = capsys.readouterr().err
    assert "is not finite at step" in said and "schedule.lr" in said and "teacher" not in said


@pytest.mark.parametrize("harm", SAID)
@pytest.mark.parametrize("labels", [True, False])
def test_plan_names_a_teacher_that_cannot_teach(
    colours, teacher_file, tmp_path, capsys, harm, labels
):
    bad = spoiled(teacher_file, tmp_path / "bad.safetensors", harm)
    file = tmp_path / "plan.json"
    given = {
        "seconds": 0.01,
        "json": file,
        "data.val": colours / ("val" if labels else "unlabeled"),
    }
    assert main(["plan", *words(colours, bad, tmp_path / "run", **given)]) == 1
    said = capsys.readouterr().out
    assert "the teacher cannot teach" in said and "nan%" not in said.lower()
    assert "nan nats" not in said.lower() and "NaN" not in file.read_text().replace("(NaN or", "")


def test_a_model_whose_predictions_are_no_numbers_is_not_evaluated(
    colours, teacher_file, tmp_path, capsys
):
    bad = spoiled(teacher_file, tmp_path / "bad.safetensors", "nan")
    given = ["--model=test_resnet", f"--checkpoint={bad}", f"--data={colours / 'val'}"]
    assert main(["evaluate", *given, "--workers=0"]) == 2
    assert "the model's predictions are not finite" in capsys.readouterr().err


@pytest.fixture(scope="module")
def blue_and_green(tmp_path_factory) -> Path:
    """A narrow domain: images differ in blue alone, which the teacher below hardly looks at."""
    folder = tmp_path_factory.mktemp("narrow")
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = np.full((40, 40, 3), (120, 90, 30 if i % 2 else 220), np.uint8)
        pixels += rng.integers(0, 9, pixels.shape).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def red_teacher(teacher_file, tmp_path_factory) -> Path:
    """Sure of what it says, which depends on red: two reds are two classes."""
    weights = load_file(teacher_file)
    stem = next(name for name, x in weights.items() if x.dim() == 4 and x.shape[1] == 3)
    weights[stem] *= torch.tensor([1.0, 0.02, 0.02]).view(1, 3, 1, 1)
    weights["fc.weight"] *= 3000
    model = timm.create_model("test_resnet", num_classes=3)
    model.load_state_dict(weights)
    network = Classifier(model, input_size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)).eval()
    reds = torch.tensor([[30, 90, 120], [220, 90, 120]], dtype=torch.uint8)
    with torch.no_grad():
        said = network(reds[:, None, None].expand(2, 32, 32, 3))
    weights["fc.bias"] -= said.mean(0)
    path = tmp_path_factory.mktemp("red") / "teacher.safetensors"
    save_file(weights, path, METADATA)
    return path


def test_other_preprocessing_that_seems_better_without_labels_is_a_hint(
    blue_and_green, red_teacher, tmp_path, capsys
):
    file = tmp_path / "plan.json"
    given = {"seconds": 0.01, "json": file, "teacher.verify": "true", "data.val": blue_and_green}
    given["data.unlabeled"] = blue_and_green
    assert main(["plan", *words(tmp_path, red_teacher, tmp_path / "run", **given)]) == 0
    said = capsys.readouterr().out
    assert "problems  none found" in said
    assert "hints     the teacher, colour channels swapped: predictions tell" in said
    assert "without labels that proves nothing" in said
    found = json.loads(file.read_text())
    assert found["problems"] == [] and found["hints"] and found["teacher"][0]["findings"] == []


def test_a_teacher_of_no_numbers_chooses_no_images(colours, teacher_file, tmp_path, capsys):
    bad = spoiled(teacher_file, tmp_path / "bad.safetensors", "nan")
    settings = {
        "out": tmp_path / "curated",
        "gallery": colours / "unlabeled",
        "protected": colours / "val",
        "teacher.checkpoint": bad,
        "select.k": 5,
        "workers": 0,
    }
    assert main(["curate", *(f"--{key}={value}" for key, value in settings.items())]) == 2
    said = capsys.readouterr()
    assert "the teacher's predictions are not finite" in said.err and "é.png" in said.err
    assert "nan%" not in (said.out + said.err).lower()


def test_few_images_refuse_no_teacher():
    """One image of which the teacher is right, or wrong, says nothing; three wrong ones do."""
    assert "too few to tell" in judge(1, 1, 3, True)
    assert "too few to tell" in judge(0, 1, 3, True)
    assert "too few" not in judge(3, 3, 3, True)
    with pytest.raises(InputError, match="near chance"):
        judge(1, 3, 3, True)
    with pytest.raises(InputError, match="near chance"):
        judge(0, 1, 1000, True)
