"""Human and generated annotations in one run, as users run it."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
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

COMMON = [
    "--steps=6", "--batch_size=4", "--log_every_steps=1", "--checkpoint.every_steps=2",
    "--evaluate_every_epochs=9", "--trackers=[]", "--data.workers=0", "--checkpoint.best=last",
    "--backbone=test_resnet", "--backbone.pretrained=false", "--schedule.warmup_epochs=0",
    "--data.labeled_share=0.5", "--schedule.decay=step", "--schedule.milestone_shares=[.5]",
]  # fmt: skip
TASKS = {
    "detection": ["--detector.name=ttfnet", "--augment.resize=square", "--augment.sizes=[64]",
                  "--augment.longest=null", "--augment.test_size=64", "--schedule.lr=0.4"],
    "segmentation": ["--segmenter.name=fcn", "--augment.crop=[32, 32]", "--schedule.lr=1"],
}  # fmt: skip
APART = ["--data.minibatch=apart", "--data.generated_share=0.5", "--accumulate=2"]
ALPHA, WEIGHT = 2, 0.2
BALANCED = [f"--balance.alpha={ALPHA}", "--balance.decay=0.5", "--ema.decay=0.9"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    make_scenes(root / "generated", train=10, val=1, seed=1)
    for i in range(6):
        picture = root / "labeled" / ("even", "odd")[i % 2] / f"{i}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / f"generated/images/train/train{i}.png", picture)
    return make_scenes(root / "human", train=6, val=2)


def place(task: str, root: Path, split: str) -> str:
    return boxes(root, split) if task == "detection" else f"{root}::{split}"


def words(task: str, scenes: Path, out: Path, *more: str) -> list[str]:
    generated = place(task, scenes.parent / "generated", "train")
    return [task, *COMMON, *TASKS[task], f"--data.train={place(task, scenes, 'train')}",
            f"--data.val={place(task, scenes, 'val')}", f"--data.generated={generated}",
            f"--out={out}", *more]  # fmt: skip


KINDS = ["detection mixed", "detection apart balanced classes", "segmentation mixed balanced"]


@pytest.fixture(scope="module", params=KINDS)
def joint(request, scenes, tmp_path_factory) -> tuple[str, list[str], Path]:
    task, minibatch, *more = request.param.split()
    out = tmp_path_factory.mktemp(task) / "run"
    labeled = [f"--classification.train={scenes.parent / 'labeled'}", "--classification.size=32",
               f"--classification.weight={WEIGHT}"]  # fmt: skip
    more = [word for name, words in (("balanced", BALANCED), ("classes", labeled)) if name in more
            for word in words]  # fmt: skip
    more += APART if minibatch == "apart" else []
    with pictures.drawn() if minibatch == "apart" else nullcontext():
        assert main(words(task, scenes, out, *more)) == 0
    return task, more, out


def lines_of(run: Path, kind: str = "train") -> list[dict]:
    lines = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == kind]
    return [{k: v for k, v in x.items() if not depends_on_the_clock(k)} for x in lines]


def test_a_joint_run_says_what_it_saw(joint, scenes) -> None:
    task, more, run = joint
    labeled = (run / "labeled.txt").read_text().split()
    assert len(labeled) == 3 and set(labeled) < {f"train{i}.png" for i in range(6)}
    preflight = json.loads((run / "preflight.json").read_text())
    images = {role: preflight[role][0]["images"] for role in ("train", "generated", "val")}
    assert images == {"train": 3, "generated": 10, "val": 2}
    assert "## generated" in (run / "preflight.md").read_text()
    lines = lines_of(run)
    assert [line["epoch"] for line in lines] == [round(4 * (t + 1) / 13, 4) for t in range(6)]
    assert [x["lr"] / lines[0]["lr"] for x in lines] == pytest.approx([1] * 3 + [0.1] * 3)
    seen = [line for line in lines if "loss_human" in line and "loss_generated" in line]
    assert len(seen) >= 3
    if "--accumulate=2" in more:
        joined_as_the_formula_says(lines)
    (evaluation,) = lines_of(run, "eval")
    assert evaluation["images"] == 2
    report = (run / "report.html").read_text()
    assert "loss by kind of image" in report
    balanced = any("balance" in word for word in more)
    assert ("what losses are multiplied by" in report) == balanced


def joined_as_the_formula_says(lines: list[dict]) -> None:
    """Balanced, each pass of one kind, beside labeled images."""
    factor, sums = 1.0, [[0.0, 0.0], [0.0, 0.0]]
    for line in lines:
        assert line["factor_generated"] == pytest.approx(factor, rel=1e-6)
        human, generated = line["loss_human"], line["loss_generated"]
        dense = (human + ALPHA * factor * generated) / (1 + ALPHA)
        assert line["loss"] == pytest.approx(dense + WEIGHT * line["loss_classes"], rel=1e-6)
        assert line["classes"] == pytest.approx(WEIGHT * line["loss_classes"], rel=1e-6)
        sums = [[0.5 * a + 0.5 * x, 0.5 * b + 0.5]
                for (a, b), x in zip(sums, (human, generated), strict=True)]  # fmt: skip
        factor = (sums[0][0] / sums[0][1]) / (sums[1][0] / sums[1][1])
    assert len({line["factor_generated"] for line in lines}) == len(lines)


def test_losses_of_each_kind_are_means_over_its_images(scenes, tmp_path) -> None:
    """Against the losses that the task gave, image by image."""
    from downstream.segmentation.task import SegmentationTask

    kept, whole = [], SegmentationTask.dense_losses
    with pytest.MonkeyPatch.context() as patch:

        def losses(self, segmenter, batch):
            terms = whole(self, segmenter, batch)
            kept.append(
                (sum(terms.values()).double().tolist(), batch.generated.tolist(), batch.ids)
            )
            return terms

        patch.setattr(SegmentationTask, "dense_losses", losses)
        assert main(words("segmentation", scenes, tmp_path / "run")) == 0
    for line, (values, generated, _) in zip(lines_of(tmp_path / "run"), kept, strict=True):
        for name, kind in (("loss_human", False), ("loss_generated", True)):
            of_kind = [x for x, g in zip(values, generated, strict=True) if g == kind]
            mean = sum(of_kind) / len(of_kind) if of_kind else None
            assert line.get(name) == (mean and pytest.approx(mean, rel=1e-9))
    human = {name for *_, g, ids in kept for name, x in zip(ids, g, strict=True) if not x}
    assert human <= set((tmp_path / "run/labeled.txt").read_text().split())


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_to_the_same_bits(joint, scenes, tmp_path, monkeypatch) -> None:
    task, more, run = joint
    whole = Trainer.train_step

    def killed(self, *args):
        if self.step == 3:
            raise Killed
        whole(self, *args)

    monkeypatch.setattr(Trainer, "train_step", killed)
    with pytest.raises(Killed):
        main(words(task, scenes, tmp_path / "run", *more))
    monkeypatch.undo()
    assert main(words(task, scenes, tmp_path / "run", *more, "--resume")) == 0
    for name in ("model/model.safetensors", "held_out.npz", "labeled.txt"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes(), name
    assert lines_of(tmp_path / "run") == lines_of(run)
    kept = [load_file(x / "checkpoints/step-00000006/auxiliary.safetensors")
            for x in (run, tmp_path / "run") if "--balance.alpha=2" in more]  # fmt: skip
    for key in kept[0] if kept else ():
        assert torch.equal(kept[0][key], kept[1][key]), key
    assert not kept or ("classes.weight" in kept[0]) == (task == "detection")
    assert not [key for key in load_file(run / "model/model.safetensors") if "auxiliary" in key]


@pytest.mark.parametrize("joint", [KINDS[1]], indirect=True)
def test_two_processes_see_what_one_sees(joint, scenes, tmp_path) -> None:
    task, more, run = joint
    started = sabotage.ranks(words(task, scenes, tmp_path / "two", *more), tmp_path / "said")
    assert [process.end() for process in started] == [0, 0], started[0].words
    assert (tmp_path / "two/labeled.txt").read_bytes() == (run / "labeled.txt").read_bytes()
    one, two = lines_of(run), lines_of(tmp_path / "two")
    for key in ("loss", "loss_human", "loss_generated", "loss_classes"):
        assert two[0][key] == pytest.approx(one[0][key], rel=1e-5), key
    for a, b in zip(one, two, strict=True):
        assert b["factor_generated"] == pytest.approx(a["factor_generated"], rel=1e-4)
    assert [x.keys() for x in one] == [x.keys() for x in two]
    facts = [json.loads((x / "run.json").read_text()) for x in (run, tmp_path / "two")]
    assert facts[0]["data_sha256"] == facts[1]["data_sha256"]


def refused(capsys, *argv: str) -> str:
    assert main(argv) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("task", TASKS)
def test_generated_annotations_of_held_out_images(scenes, tmp_path, capsys, task) -> None:
    given = words(task, scenes, tmp_path / "run")
    same = f"--data.generated={place(task, scenes, 'val')}"
    assert "2 of its images are held out" in refused(capsys, *given, same)
    copied = shutil.copytree(scenes, tmp_path / "copied")
    moved = f"--data.generated={place(task, copied, 'val')}"
    said = refused(capsys, *given, moved)
    assert "to the byte or" in said and "val0.png" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("joint", [KINDS[0], KINDS[2]], indirect=True)
def test_a_network_starts_from_a_whole_run(joint, scenes, tmp_path, capsys) -> None:
    task, _, run = joint
    given = words(task, scenes, tmp_path / "student", "--steps=1", "--schedule.lr=1e-12")
    assert main([*given, f"--init={run}", "--optimizer.weight_decay=0"]) == 0
    start, now = (load_file(x / "model/model.safetensors") for x in (run, tmp_path / "student"))
    for key in start:
        if "running_" not in key and "num_batches" not in key:
            assert (start[key] - now[key]).abs().max() < 1e-6, key
    facts = json.loads((tmp_path / "student/run.json").read_text())
    exported = json.loads((run / "run.json").read_text())["exported"]["sha256"]
    assert facts["start_sha256"] == exported
    # Another network in the place of that one: not gone on from.
    other = shutil.copytree(run / "model", tmp_path / "other")
    assert "with other settings: init" in refused(capsys, *given, f"--init={other}", "--resume")
    content = json.loads((other / "config.json").read_text())
    for change, said in (
        ({"head": {**content["head"], "name": "retinanet"}}, "head"),
        ({"backbone": {**content["backbone"], "mean": [0.4, 0.5, 0.5]}}, "backbone.mean"),
        ({"task": "segmentation" if task == "detection" else "detection"}, "task"),
    ):
        (other / "config.json").write_text(json.dumps({**content, **change}))
        words_ = words(task, scenes, tmp_path / "new", f"--init={other}")
        assert f"has {said} " in refused(capsys, *words_)
    assert "init: " in refused(capsys, *words_[:-1], f"--init={scenes}")
    assert not (tmp_path / "new").exists()
