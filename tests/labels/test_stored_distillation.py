"""`ssld distill --labels`: the same training as with the teacher, and of these views only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sabotage
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ssld.engine.progress import depends_on_the_clock
from ssld.labels import format as files
from ssld.labels import label_set
from ssld.labels.batches import Cycle
from ssld.models.teacher import Teacher

VIEWS, TOP_K, CLASSES = 3, 5, 12
ALONE = {"teacher.checkpoint": None, "teacher.verify": None}
"""Settings of a run from labels whose teacher is not at hand."""


def lines(run: Path) -> list[dict[str, Any]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in x.items() if not depends_on_the_clock(k)} for x in found]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student/model.safetensors")


@pytest.fixture
def online(words, ssld, monkeypatch) -> Callable[..., Path]:
    """Runs that ask their teacher, about the views that a run from labels takes, and round what it
    says as it would be stored."""
    from ssld.distill import setup

    answer = Teacher.forward

    def rounded(teacher: Teacher, images: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        return answer(teacher, images, temperature).half().float().log_softmax(-1)

    def run(out: Path, **changes: Any) -> Path:
        sampler = setup.Sampler
        with monkeypatch.context() as patch:
            patch.setattr(setup, "Sampler", lambda *x: Cycle(sampler(*x), VIEWS, x[2]))
            patch.setattr(Teacher, "forward", rounded)
            code, said = ssld("distill", *words(out, **changes))
        assert code == 0, said
        return out

    return run


def test_with_all_classes_it_is_online_distillation_on_the_same_views(
    words, ssld, tmp_path, online, small_shards
):
    labels, stored = tmp_path / "labels", tmp_path / "stored"
    code, said = ssld("labels", "build", *words(labels), f"--views={VIEWS}", f"--top_k={CLASSES}")
    assert code == 0 and f"{CLASSES} of {CLASSES} classes" in said
    code, said = ssld("distill", *words(stored, labels=labels, **ALONE))
    assert code == 0, said
    asked = online(tmp_path / "online")
    for ours, theirs in zip(lines(stored), lines(asked), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if key not in ("kind", "verdict"):
                assert ours[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    for name, tensor in weights(asked).items():
        assert torch.allclose(weights(stored)[name].float(), tensor.float(), 1e-3, 1e-5), name


def test_no_teacher_is_opened_and_all_that_it_decides_is_there(
    labels, words, ssld, tmp_path, monkeypatch
):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a teacher is made")

    monkeypatch.setattr(Teacher, "__init__", never)
    run = tmp_path / "run"
    code, said = ssld("distill", *words(run, labels=labels, seed=7, **ALONE))
    assert code == 0, said
    last = lines(run)[-1]
    assert last["kind"] == "eval" and 0 <= last["agreement1"] <= 1
    assert "the teacher is not better" not in last["verdict"]  # nobody has asked it
    facts = json.loads((run / "run.json").read_text())
    manifest = json.loads((labels / "manifest.json").read_text())
    assert facts["teacher_sha256"] == manifest["teacher_sha256"]
    assert facts["teacher"] == manifest["described"]["teacher"]
    assert facts["exported"]["metric"] == "agreement1"
    assert "as the student sees them" in (run / "report.html").read_text()


def test_held_out_images_are_judged_as_online(labels, words, ssld, tmp_path, online):
    still = {"steps": 1, "schedule.lr": 1e-12}  # both evaluate the same student
    stored, asked = tmp_path / "stored", online(tmp_path / "online", **still)
    code, said = ssld("distill", *words(stored, labels=labels, **still, **ALONE))
    assert code == 0, said
    ours, theirs = lines(stored)[-1], lines(asked)[-1]
    for key in ("agreement1", "agreement5", "agreement_chance", "classes_teacher", "images"):
        assert ours[key] == theirs[key], key
    assert ours["entropy_student"] == pytest.approx(theirs["entropy_student"])
    assert ours["divergence"] <= theirs["divergence"] + 1e-4  # a lower bound
    assert ours["entropy_teacher"] >= theirs["entropy_teacher"] - 1e-4  # an upper one


def test_a_resumed_run_ends_in_the_same_bits(labels, words, ssld, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    changes = {"labels": labels, "augment.policy": None, **ALONE}
    assert ssld("distill", *words(whole, **changes))[0] == 0
    command, said = ["distill", *words(killed, **changes)], tmp_path / "said"
    harm = [partial(sabotage.at_step, 6, sabotage.sigkill)]
    assert sabotage.run(command, said, harm)[0] == -9
    code, text = ssld(*command, "--resume")
    assert code == 0 and "at step 4" in text
    assert lines(whole) == lines(killed)
    assert all(torch.equal(x, weights(killed)[name]) for name, x in weights(whole).items())


def test_two_processes_are_the_same_training(labels, words, ssld, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    changes = {"labels": labels, "steps": 4, "data.workers": 1, **ALONE}
    assert ssld("distill", *words(one, **changes))[0] == 0
    started = sabotage.ranks(["distill", *words(two, **changes)], tmp_path / "said")
    assert [process.end() for process in started] == [0, 0], started[0].words
    for name, tensor in weights(one).items():
        assert torch.allclose(weights(two)[name].float(), tensor.float(), 1e-3, 1e-5), name


def other_machine(folder: Path) -> None:
    """This process has a disk of its own, on which the label set is that of `folder`."""
    os.chdir(folder.parent)
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@pytest.mark.parametrize("harm", ["none", "a bit of a shard", "another set"])
def test_what_only_one_machine_has_ends_all(labels, copied, words, tmp_path, harm):
    shared = tmp_path / "shared" / copied.name
    shutil.copytree(labels, shared)
    if harm == "a bit of a shard":  # the first, which the other machine's own process looks at
        file = copied / "train-000000.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif harm == "another set":
        changed = json.loads((copied / files.MANIFEST).read_text())
        (copied / files.MANIFEST).write_text(json.dumps({**changed, "images": {}}))
    run = tmp_path / "run"
    command = ["distill", *words(run, labels=copied.name, steps=1, **ALONE)]
    harms = [[partial(other_machine, folder)] for folder in (shared, copied)]
    started = sabotage.ranks(command, tmp_path / "said", harms)
    expected = 0 if harm == "none" else 2
    assert [process.end() for process in started] == [expected, expected], started[0].words
    if expected:
        reason = "is damaged" if harm == "a bit of a shard" else "have different label sets"
        assert all(reason in process.words for process in started)
        assert not run.exists()


def test_resume_with_other_labels_is_refused(labels, copied, words, ssld, tmp_path):
    run = tmp_path / "run"
    assert ssld("distill", *words(run, labels=labels, steps=4))[0] == 0
    changed = json.loads((copied / files.MANIFEST).read_text())
    (copied / files.MANIFEST).write_text(json.dumps({**changed, "images": {}}))
    again = words(run, labels=copied, steps=8, resume="true")
    code, said = ssld("distill", *again, '--allow_changes=["steps"]')
    assert code == 2 and "labels was" in said
    code, said = ssld("distill", *again, '--allow_changes=["steps","labels"]')
    assert code == 0, said


def test_a_share_of_fresh_views_asks_the_teacher(labels, words, ssld, tmp_path, monkeypatch):
    asked: list[int] = []
    answer = Teacher.forward

    def counted(teacher: Teacher, images: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        asked.append(len(images))
        return answer(teacher, images, temperature)

    monkeypatch.setattr(Teacher, "forward", counted)
    run = tmp_path / "run"
    code, said = ssld("distill", *words(run, labels=labels, fresh_share=0.3, steps=15))
    assert code == 0, said
    assert "it is asked about the fresh views of 30% of the samples, and no others" in said
    assert abs(sum(asked) / (15 * 8) - 0.3) < 0.12
    code, said = ssld("distill", *words(tmp_path / "x", labels=labels, fresh_share=0.3, **ALONE))
    assert code == 2 and "the teacher to ask" in said


def test_fresh_answers_are_those_that_would_be_stored(labels, teacher12, colours):
    """A batch whose views are asked for has the labels of the same views, stored."""
    import dataclasses

    from ssld.data.config import AugmentConfig
    from ssld.data.folder import FolderSource
    from ssld.data.loading import ViewBatches
    from ssld.distill.stored import _answered
    from ssld.labels.batches import TaughtBatches
    from ssld.models.config import TeacherConfig
    from ssld.models.teacher import open_teacher

    teacher, _ = open_teacher([TeacherConfig(checkpoint=str(teacher12))], "fp32")
    stored = label_set.LabelSet(str(labels))
    views = ViewBatches([FolderSource(str(colours / "unlabeled"))], stored.view(AugmentConfig()))
    batch = TaughtBatches(views, stored.labels("train"), VIEWS)(
        np.array([[0, 3, 1], [0, 9, 2], [0, 9, 0]])
    )
    waiting = dataclasses.replace(
        batch, classes=batch.classes.flip(0), log_probs=batch.log_probs * 0, fresh=[0, 1, 2]
    )
    answered = _answered(waiting, teacher, 1.0)
    assert torch.equal(answered.classes, batch.classes)
    assert torch.allclose(answered.log_probs, batch.log_probs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "words_of_it"),
    [
        ({"augment.flip": 0.1}, "augment.flip 0.5, and this run has 0.1"),
        ({"augment.policy": "randaugment"}, "augment.policy 'none'"),
        ({"augment.size": 64}, "size 32, and this run has 64"),
        ({"loss.temperature": 2}, "temperature 1.0, and this run has 2.0"),
        ({"teacher_view": "other"}, "teacher_view 'same', and this run has 'other'"),
        ({"teacher.mean": "[0.5, 0.5, 0.5]"}, "with mean [0.4, 0.5, 0.6], and here"),
        ({"features.weight": 1}, "features.weight is 1, but labels hold no features"),
    ],
)
def test_other_settings_are_refused(labels, words, ssld, tmp_path, change, words_of_it):
    code, said = ssld("distill", *words(tmp_path / "run", labels=labels, **change))
    assert code == 2 and words_of_it in said and not (tmp_path / "run").exists(), said


def test_another_teacher_is_refused(labels, words, ssld, tmp_path, teacher12):
    from safetensors import safe_open

    tensors = load_file(teacher12)
    tensors["fc.bias"] += 1e-3
    with safe_open(teacher12, "pt") as file:
        save_file(tensors, tmp_path / "other.safetensors", file.metadata())
    other = {"teacher.checkpoint": tmp_path / "other.safetensors"}
    code, said = ssld("distill", *words(tmp_path / "run", labels=labels, **other))
    assert code == 2 and "of another teacher" in said and not (tmp_path / "run").exists()


@pytest.fixture
def images(colours, tmp_path) -> Path:
    """The images of the labels, to be changed."""
    return Path(shutil.copytree(colours / "unlabeled", tmp_path / "images"))


@pytest.mark.parametrize("change", ["added", "gone", "size", "renamed"])
def test_other_samples_are_refused(labels, words, ssld, tmp_path, images, change):
    first = images / "blue 00 é.png"
    if change == "added":
        shutil.copy(first, images / "new.png")
    elif change == "renamed":
        first.rename(images / "blue 000.png")
    elif change == "gone":
        first.unlink()
    else:
        Image.new("RGB", (40, 48)).save(first)
    sources = {"data.unlabeled": images, "labels": labels}
    code, said = ssld("distill", *words(tmp_path / "run", **sources))
    reason = {
        "added": "'new.png' was added since",
        "renamed": "'blue 000.png' was added since",
        "gone": "'blue 00 é.png' is gone",
        "size": "'blue 00 é.png' had",
    }[change]
    assert code == 2 and reason in said and not (tmp_path / "run").exists(), said


def test_the_same_samples_elsewhere_are_the_same(labels, words, ssld, tmp_path, images):
    sources = {"data.unlabeled": images, "labels": labels, "steps": 2}
    code, said = ssld("distill", *words(tmp_path / "run", **sources))
    assert code == 0, said


def test_other_held_out_images_are_refused(labels, words, ssld, tmp_path, colours):
    val = {"data.val": colours / "train", "labels": labels}
    code, said = ssld("distill", *words(tmp_path / "run", **val))
    assert code == 2 and "the held-out images are not those that were labeled" in said


@pytest.fixture
def of_bitmaps(words, ssld, tmp_path) -> tuple[Path, dict[str, Any]]:
    """Labels of images whose files keep their size whatever they show."""
    rng, folder = np.random.default_rng(0), tmp_path / "bitmaps"
    folder.mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), np.uint8)).save(folder / f"{i}.bmp")
    sources = {"data.unlabeled": folder, "data.val": "[]", "data.holdout": 0, "steps": 2}
    out = tmp_path / "of_bitmaps"
    code, said = ssld("labels", "build", *words(out, **sources), "--views=2")
    assert code == 0, said
    return out, {**sources, "labels": out}


def test_a_changed_image_of_the_same_size_is_noticed_by_its_pixels(
    of_bitmaps, words, ssld, tmp_path
):
    out, settings = of_bitmaps
    sample, view, _ = files.read_index(out)["train"][0].fingerprints[0]
    Image.new("RGB", (48, 40)).save(tmp_path / f"bitmaps/{sample}.bmp")
    code, said = ssld("distill", *words(tmp_path / "run", **settings))
    assert code == 2 and "1 of 4 views" in said and f"{sample}.bmp" in said, (said, view)
    assert "these images have changed" in said and not (tmp_path / "run").exists()


def test_another_library_version_is_named_where_views_differ(
    of_bitmaps, words, ssld, tmp_path, monkeypatch
):
    out, settings = of_bitmaps
    manifest = json.loads((out / files.MANIFEST).read_text())
    manifest["versions"]["pillow"] = "1.0"
    (out / files.MANIFEST).write_text(json.dumps(manifest))
    code, said = ssld("distill", *words(tmp_path / "run", **settings))
    assert code == 0 and "pillow was 1.0 and is" in said and "are the same" in said
    from ssld.data import transforms

    box = transforms.crop_box
    monkeypatch.setattr(  # as a version would that rounds otherwise
        transforms, "crop_box", lambda draw, h, w, *ranges: box(draw, h - 1, w, *ranges)
    )
    code, said = ssld("distill", *words(tmp_path / "other", **settings))
    assert code == 2 and "pillow was 1.0 and is" in said and "install those" in said
    assert not (tmp_path / "other").exists()


def test_few_views_are_made_again_but_all_with_another_version(labels, monkeypatch):
    stored = label_set.LabelSet(str(labels))
    assert len(stored._marks("train")) == 4 * files_of(stored)
    monkeypatch.setattr(label_set, "CHECKED_VIEWS", 6)
    marks = stored._marks("train")
    assert len(marks) == 6 and len({sample // 16 for sample, *_ in marks}) == files_of(stored)
    stored.manifest["versions"]["torch"] = "1.0"
    assert len(stored._marks("train")) == 4 * files_of(stored)


def files_of(stored: label_set.LabelSet) -> int:
    return len(stored.index["train"])


def test_labels_of_another_view_of_each_image(words, ssld, tmp_path, colours, teacher12):
    """`teacher_view: other`: the label of view v is of that of number -1 - v."""
    from test_build import asked

    out, run = tmp_path / "labels", tmp_path / "run"
    other = {"teacher_view": "other"}
    assert ssld("labels", "build", *words(out, **other), "--views=2", "--top_k=5")[0] == 0
    stored = label_set.LabelSet(str(out)).labels("train")
    classes, _ = stored(np.array([5]), np.array([1]))
    assert classes[0].tolist() == np.argsort(-asked(colours, teacher12, 5, -2))[:5].tolist()
    code, said = ssld("distill", *words(run, labels=out, steps=2, **other))
    assert code == 0, said


def test_a_second_stage_refuses_labels(labels, words, ssld, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    assert ssld("distill", *words(run, labels=labels, fresh_share=0.5, steps=1))[0] == 0
    given = [f"--run={run}", f"--out={out}", f"--labels={labels}", "--data.labeled=x"]
    code, said = ssld("finetune", *given)
    assert code == 2 and "labels" in said and "leave it out" in said and not out.exists()


def test_a_second_stage_asks_the_teacher_that_the_run_names(labels, words, ssld, tmp_path, colours):
    run, out = tmp_path / "run", tmp_path / "out"
    assert ssld("distill", *words(run, labels=labels, fresh_share=0.5, steps=1))[0] == 0
    images = [f"--data.labeled={colours / 'unlabeled'}", f"--data.val={colours / 'val'}"]
    code, said = ssld("finetune", f"--run={run}", f"--out={out}", "--steps=1", *images)
    assert code == 0, said
    facts = json.loads((out / "run.json").read_text())
    assert facts["started_from"]["facts"]["labels"]["views"] == VIEWS
    assert facts["teacher_sha256"] == json.loads((run / "run.json").read_text())["teacher_sha256"]


def test_several_students_of_one_set_end_as_alone(labels, words, ssld, tmp_path, monkeypatch):
    monkeypatch.setattr(Teacher, "__init__", lambda *_, **__: pytest.fail("a teacher is made"))
    students = [
        {"name": "kl", "student": {"arch": "test_resnet"}},
        {"name": "soft", "student": {"arch": "test_convnext"}, "loss": {"name": "soft_ce"}},
    ]
    common = {"labels": labels, "student.arch": None, **ALONE}
    both = words(tmp_path / "both", students=json.dumps(students), **common)
    code, said = ssld("distill", *both)
    assert code == 0, said
    for name in ("kl", "soft"):
        run, alone = tmp_path / "both" / name, tmp_path / name
        code, said = ssld("distill", "--config", run / "config.yaml", f"--out={alone}")
        assert code == 0, said
        assert lines(run) == lines(alone)
        assert all(torch.equal(x, weights(alone)[key]) for key, x in weights(run).items())
    code, said = ssld("distill", *both, "--resume")
    assert code == 0 and said.count("complete and unchanged, skipped") == 2
