"""`ssld sed` as users run it: labeled and unlabeled images at once, an average as the teacher."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import pictures
import pytest
import sabotage
import torch
from safetensors.torch import load_file
from scenes import boxes, make_scenes

from ssld.cli.run import main
from ssld.engine.progress import depends_on_the_clock
from ssld.engine.run_folder import read_lines
from ssld.engine.trainer import Trainer

STEPS = 4
COMMON = [
    "sed", f"--steps={STEPS}", "--batch_size=2", "--log_every_steps=1", "--trackers=[]",
    "--checkpoint.every_steps=2", "--evaluate_every_epochs=1", "--checkpoint.best=last",
    "--backbone=test_resnet", "--backbone.pretrained=false", "--data.workers=0",
    "--data.labeled_share=0.5", "--data.unlabeled_per_labeled=2", "--consistency.scales=2",
    "--schedule.lr=4", "--schedule.warmup_epochs=0", "--schedule.decay=step",
    "--schedule.milestone_shares=[.5]", "--ema.decay=0.5", "--ema.end_decay=0.1",
    "--augment.sizes=[48, 64]", "--augment.test_size=64", "--augment.longest=null",
    "--detector.name=retinanet", "--detector.args={channels: 16}",
]  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes"), train=8, val=2)


def words(scenes: Path, out: Path, *more: str) -> list[str]:
    """The unlabeled images are the folder of all of them: labeled ones are left out."""
    return [*COMMON, f"--data.train={boxes(scenes, 'train')}", f"--data.val={boxes(scenes, 'val')}",
            f"--data.unlabeled={scenes / 'images/train'}", f"--out={out}", *more]  # fmt: skip


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sed") / "run"
    with pictures.drawn(), contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(words(scenes, out)) == 0
    assert "labeled_img_s=" in said.getvalue()  # not all that a step sees
    return out


def lines_of(run: Path, kind: str = "train") -> list[dict]:
    lines = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == kind]
    return [{k: v for k, v in x.items() if not depends_on_the_clock(k)} for x in lines]


def weights(run: Path, name: str, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{step:08d}/{name}.safetensors")


def test_a_run_says_what_it_learned_from(run, scenes) -> None:
    labeled = (run / "labeled.txt").read_text().split()
    (unlabeled,) = json.loads((run / "preflight.json").read_text())["unlabeled"]
    assert len(labeled) == 4 and unlabeled["images"] == 4
    (left_out,) = unlabeled["noticed"]
    places = {str(scenes / "images/train" / name) for name in labeled}
    assert left_out["count"] == 4 and set(left_out["examples"]) == places
    lines = lines_of(run)
    assert [line["epoch"] for line in lines] == [0.5, 1, 1.5, 2]  # over the labeled images
    of_unlabeled = {f"{x}_{y}" for x in ("scale", "distill") for y in ("classes", "boxes")}
    assert lines[0].keys() > of_unlabeled | {"classification", "boxes"}
    assert all(abs(line[term]) > 0 for line in lines for term in of_unlabeled)
    evaluations = lines_of(run, "eval")
    assert len(evaluations) == 2 and evaluations[0]["unlabeled_boxes"] >= 0


def test_the_teacher_follows_the_schedule_with_its_buffers_and_is_exported(run) -> None:
    """From the two checkpoints: of steps 3 and 4 it keeps end_decay, buffers too."""
    students, teachers = ([weights(run, x, s) for s in (2, 4)] for x in ("student", "ema"))
    exported = load_file(run / "model/model.safetensors")
    assert all(torch.equal(exported[key], x) for key, x in teachers[1].items())
    name = next(key for key in teachers[1] if key.endswith("running_mean"))
    for key in (name, "head.classification_head.cls_logits.weight"):
        assert not torch.equal(students[0][key], students[1][key])
        # Within two steps' way of the student: 0.9 of the last step, 0.09 of the one before.
        near = (teachers[1][key] - students[1][key]).norm()
        assert 0 < near < 0.2 * (teachers[0][key] - students[1][key]).norm() + 1e-6


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_to_the_same_bits(run, scenes, tmp_path, monkeypatch) -> None:
    whole = Trainer.train_step

    def killed(self, *args):
        if self.step == 3:
            raise Killed
        whole(self, *args)

    monkeypatch.setattr(Trainer, "train_step", killed)
    with pytest.raises(Killed):
        main(words(scenes, tmp_path / "run"))
    monkeypatch.undo()
    assert main(words(scenes, tmp_path / "run", "--resume")) == 0
    for name in ("student", "ema"):
        file = f"checkpoints/step-{STEPS:08d}/{name}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (run / file).read_bytes()
    for kind in ("train", "eval"):
        assert lines_of(tmp_path / "run", kind) == lines_of(run, kind)


def test_two_processes_train_what_one_trains(run, scenes, tmp_path) -> None:
    started = sabotage.ranks(words(scenes, tmp_path / "two"), tmp_path / "said")
    assert [process.end() for process in started] == [0, 0], started[0].words
    for one, two in zip(lines_of(run), lines_of(tmp_path / "two"), strict=True):
        assert one.pop("kind") == two.pop("kind")
        assert two == pytest.approx(one, rel=1e-3, abs=1e-6)
    for name in ("student", "ema"):
        one, two = weights(run, name), weights(tmp_path / "two", name)
        for key, x in one.items():
            torch.testing.assert_close(two[key], x, rtol=1e-3, atol=1e-4)


def test_held_out_images_and_nothing_unlabeled(scenes, tmp_path, capsys) -> None:
    copied = shutil.copytree(scenes / "images/val", tmp_path / "copied")
    given = words(scenes, tmp_path / "run")
    cases = {
        f"--data.unlabeled={copied}": "data.unlabeled: 2 of its images are held out in data.val",
        "--data.labeled_share=1": "all 8 images are labeled ones of data.train, so none is left",
        "--ema.decay=0": "ema.decay is 0, so that there would be no teacher",
        f"--classification.train={scenes}": "`ssld sed` has no joint training with classes",
        "--detector.name=ttfnet": "there is no Scale-Equivalent Distillation",
        "--detector.args={anchor_sizes: [8, 16, 32, 64, 100]}": "give sides that double",
        "--consistency.hard_threshold=.5": "consistency.soft is true, so that no label is hard",
        "--consistency={bins: 9, reweight: false}": "consistency.bins is 9, but consistency.rew",
        "--schedule.decay=poly": "give milestones with `decay: step`, and with it only",
    }
    for word, said in cases.items():
        assert main([*given, word]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_is_named(scenes, tmp_path, monkeypatch, capsys) -> None:
    from downstream.sed import model

    whole = model.unlabeled_losses

    def broken(*args, **kwargs):
        terms = whole(*args, **kwargs)
        return {**terms, "distill_classes": terms["distill_classes"] * float("nan")}

    monkeypatch.setattr(model, "unlabeled_losses", broken)
    assert main(words(scenes, tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert "the loss term 'distill_classes' is not finite at step 0 for the samples train" in said
