"""`ssld selftrain` as users run it: all stages, killed and gone on with, changed, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from scenes import boxes, make_scenes

from downstream.sed.config import SedConfig
from downstream.selftrain.config import SelftrainConfig
from downstream.selftrain.recipe import as_asked
from ssld.cli.parse import parse
from ssld.cli.run import main
from ssld.common.errors import InputError
from ssld.common.settings import plain
from ssld.engine.config import EmaConfig
from ssld.engine.progress import depends_on_the_clock
from ssld.engine.run_folder import read_lines
from ssld.engine.trainer import Trainer

LOOP: dict[str, Any] = {
    "steps": 3, "batch_size": 2, "log_every_steps": 1, "trackers": [],
    "evaluate_every_epochs": 100, "checkpoint": {"every_steps": 1},
    "backbone": {"name": "test_resnet", "pretrained": False},
}  # fmt: skip
SCHEDULE = {"lr": 0.05, "warmup_epochs": 0, "decay": "step", "milestone_shares": [0.7, 0.9]}
DETECTION = {
    "detector": {"name": "ttfnet"},
    "augment": {"resize": "square", "sizes": [64], "longest": None, "test_size": 64},
    "schedule": SCHEDULE,
}
SEGMENTATION = {"segmenter": {"name": "fcn"}, "augment": {"crop": [32, 32]}}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    make_scenes(root / "unlabeled", train=4, val=1, seed=1)
    return make_scenes(root / "human", train=6, val=3)


def recipe(scenes: Path, task: str = "detection", **changes: Any) -> dict[str, Any]:
    where = {
        split: boxes(scenes, split) if task == "detection" else f"{scenes}::{split}"
        for split in ("train", "val")
    }
    data = {"labeled_share": 0.5, "workers": 0, **where}
    of_task = DETECTION if task == "detection" else SEGMENTATION
    tree = {
        "task": task,
        "unlabeled": str(scenes.parent / "unlabeled/images/train"),
        "teacher": {**LOOP, **of_task, "data": data},
        "labels": {"workers": 0, "shard_size": 2},
        "student": {"steps": 4},
        **changes,
    }
    return {key: value for key, value in tree.items() if value is not None}


def write(folder: Path, tree: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree))
    return str(file)


@pytest.fixture(scope="module")
def whole(scenes, tmp_path_factory) -> Path:
    """A recipe with all stages, run at once."""
    folder = tmp_path_factory.mktemp("whole")
    file = write(folder, recipe(scenes, baseline=True, oracle=True))
    assert main(["selftrain", file, f"--out={folder / 'run'}"]) == 0
    return folder / "run"


def facts(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def test_all_stages_are_side_by_side(whole, scenes) -> None:
    content = json.loads((whole / "selftrain.json").read_text())
    stages = content["stages"]
    assert list(stages) == ["teacher", "baseline", "oracle", "student"]
    assert [x["steps"] for x in stages.values()] == [3, 4, 4, 4]
    assert [x["human_images"] for x in stages.values()] == [3, 3, 6, 3]
    assert [x["generated_images"] for x in stages.values()] == [0, 0, 0, 4]
    assert (content["metric"], content["held_out_images"]) == ("ap", 3)
    learned = stages["teacher"]["score"] >= 1e-3
    assert (content["warning"] is None) == learned
    assert [(x["of"], x["less"]) for x in content["differences"]] == [
        ("student", "teacher"), ("student", "baseline"), ("student", "oracle")
    ]  # fmt: skip
    for x in content["differences"]:
        assert x["mean"] == stages[x["of"]]["score"] - stages[x["less"]]["score"]
    lists = [(whole / x / "labeled.txt").read_text() for x in ("teacher", "baseline", "student")]
    assert len(set(lists)) == 1 and not (whole / "oracle/labeled.txt").exists()
    settings = yaml.safe_load((whole / "student/config.yaml").read_text())
    assert settings["schedule"]["milestone_shares"] == [0.7, 0.9] and settings["init"] is None
    report = (whole / "report.html").read_text()
    assert "<h1>Self-training of ttfnet on test_resnet with 4 unlabeled images</h1>" in report
    for x in content["differences"]:
        weak = max(stages[x["of"]]["score"], stages[x["less"]]["score"])
        assert (x["caution"] is not None) == (1e-3 <= weak < 0.05)
    assert "student minus baseline" in report and 'href="labels/report.html"' in report
    assert "baseline, step 4: truth on the left" in report and "student, step 4" in report
    lines = [x for x in read_lines(whole / "student/metrics.jsonl") if x["kind"] == "train"]
    assert any("loss_generated" in line for line in lines)


def test_the_network_of_a_recipe_is_its_student(whole, scenes, tmp_path) -> None:
    drawn = []
    for name, run in (("recipe", whole), ("student", whole / "student")):
        assert (
            main(["predict", str(run), str(scenes / "images/val"), f"--out={tmp_path / name}"]) == 0
        )
        drawn.append((tmp_path / name / "predictions.jsonl").read_bytes())
    assert drawn[0] == drawn[1]
    file = write(tmp_path, recipe(scenes, teacher={"run": str(whole)}))
    with pytest.raises(InputError, match=f"give {whole / 'student'}"):
        as_asked(SelftrainConfig(file=file, out=str(tmp_path / "out")))


def test_held_out_images_are_refused_before_the_teacher_is_trained(scenes, tmp_path, capsys):
    unlabeled = shutil.copytree(scenes.parent / "unlabeled/images/train", tmp_path / "unlabeled")
    held_out = min((scenes / "images/val").iterdir())
    copy = shutil.copy(held_out, unlabeled / f"copy{held_out.suffix}")
    file = write(tmp_path / "run", recipe(scenes, unlabeled=str(unlabeled)))
    words = ["selftrain", file, f"--out={tmp_path / 'run/out'}"]
    assert main(words) == 2
    assert f"{copy.name} (is {held_out.name})" in capsys.readouterr().err
    assert not (tmp_path / "run/out/teacher").exists()
    copy.unlink()
    words += ["--teacher.steps=1", "--student.steps=1", "--baseline=true"]
    assert main(words) == 0  # the teacher is the baseline, which no run repeats
    said = capsys.readouterr().err
    assert " img_s=" in said and "labeled_img_s" not in said
    stages = json.loads((tmp_path / "run/out/selftrain.json").read_text())["stages"]
    assert list(stages) == ["teacher", "baseline", "student"]
    assert stages["baseline"] == stages["teacher"] and not (tmp_path / "run/out/baseline").exists()


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_what_will_be_held_out_is_refused_before_the_teacher_is_trained(tmp_path, capsys, task):
    many = make_scenes(tmp_path / "human", train=10, val=1)  # of fewer none is held out
    tree = recipe(many, task, unlabeled=str(many / "images/train"))
    for stage in ("teacher", "student"):
        tree[stage].get("data", {}).pop("val", None)
    assert main(["selftrain", write(tmp_path, tree), f"--out={tmp_path / 'out'}"]) == 2
    assert "1 of 10 are held out for evaluation, too" in capsys.readouterr().err
    assert not (tmp_path / "out/teacher").exists()


class Killed(BaseException):
    pass


def test_killed_in_every_stage_it_goes_on_to_the_same_bits(whole, scenes, tmp_path, monkeypatch):
    from downstream.pseudo_label.teacher import Detector

    file = write(tmp_path, recipe(scenes, baseline=True))
    words = ["selftrain", file, f"--out={tmp_path / 'run'}"]
    train_step, find, images = Trainer.train_step, Detector.find, iter(range(99))

    def killed_step(self, *args):
        if (self.run.folder.path.name, self.step) == at:
            raise Killed
        train_step(self, *args)

    def killed_find(self, pixels):
        if at == "labels" and next(images) == 3:
            raise Killed
        return find(self, pixels)

    monkeypatch.setattr(Trainer, "train_step", killed_step)
    monkeypatch.setattr(Detector, "find", killed_find)
    for at in (("teacher", 2), "labels", ("student", 3)):  # noqa: B007 - the functions look at it
        with pytest.raises(Killed):
            main(words)
    monkeypatch.undo()
    assert main(words) == 0
    for name in ("labels/annotations.json", "student/model/model.safetensors",
                 "baseline/model/model.safetensors", "student/held_out.npz"):  # fmt: skip
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name
    lines = [
        [{k: v for k, v in x.items() if not depends_on_the_clock(k)} for x in read_lines(file)]
        for file in (x / "student/metrics.jsonl" for x in (whole, tmp_path / "run"))
    ]
    assert lines[0] == lines[1]


def test_complete_stages_are_skipped_and_changed_ones_refused(whole, scenes, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "moved")
    file = write(tmp_path, recipe(scenes, baseline=True, oracle=True))
    words = ["selftrain", file, f"--out={run}"]
    before = (run / "student/metrics.jsonl").stat().st_mtime_ns
    assert main(words) == 0  # moved: nothing is done anew
    said = capsys.readouterr().out
    assert said.count("complete and unchanged, skipped") == 4 and "nothing to do" in said
    assert (run / "student/metrics.jsonl").stat().st_mtime_ns == before
    for change, what in (
        ("--student.ema.decay=0.5", "ema.decay was 0.0 and is 0.5"),
        ("--schedule.lr=0.1", "teacher was made with other settings: schedule.lr was 0.05"),
        ("--labels.threshold=0.001", "threshold: count, now 0.001"),
        ("--student.start=teacher", "went on from is another one now"),
    ):
        assert main([*words, change]) == 2
        assert what in capsys.readouterr().err, change
    teacher = (run / "teacher/run.json").read_bytes()
    changed = [*words, "--labels.threshold=0.001", "--overwrite"]
    assert main(changed) == 0  # other labels: the student is another one
    said = capsys.readouterr().out
    assert "teacher: complete" in said and "baseline: complete" in said
    assert "student: anew" in said and (run / "teacher/run.json").read_bytes() == teacher
    assert (
        facts(run / "student")["annotations_sha256"]
        != (facts(whole / "student")["annotations_sha256"])
    )


def test_a_given_teacher_from_which_the_student_starts(
    whole, scenes, tmp_path, monkeypatch, capsys
) -> None:
    from downstream.selftrain import outcome

    monkeypatch.setattr(outcome, "NO_SCORE", 1.0)  # as if it had learned nothing
    tree = recipe(scenes, teacher={"run": str(whole / "teacher")},
                  student={"steps": 2, "start": "teacher"})  # fmt: skip
    assert main(["selftrain", write(tmp_path, tree), f"--out={tmp_path / 'run'}"]) == 0
    student = facts(tmp_path / "run/student")
    assert student["start_sha256"] == facts(whole / "teacher")["exported"]["sha256"]
    assert not (tmp_path / "run/teacher").exists()
    stages = json.loads((tmp_path / "run/selftrain.json").read_text())["stages"]
    assert stages["teacher"]["folder"] == str(whole / "teacher")
    said = "the teacher learned nothing"
    assert f"warning: {said}" in capsys.readouterr().out
    assert said in (tmp_path / "run/report.html").read_text()


def test_a_segmenter_teaches_one(scenes, tmp_path) -> None:
    tree = recipe(scenes, "segmentation")
    tree["labels"]["pixel_threshold"] = 0.1
    for i, name in enumerate(("a", "b")):
        (tmp_path / "labeled" / name).mkdir(parents=True)
        shutil.copy(scenes / f"images/train/train{i}.png", tmp_path / "labeled" / name)
    labeled = {"train": str(tmp_path / "labeled"), "size": 32}
    tree["student"] |= {"balance": {"alpha": 0.5}, "classification": labeled}
    assert main(["selftrain", write(tmp_path, tree), f"--out={tmp_path / 'run'}"]) == 0
    content = json.loads((tmp_path / "run/selftrain.json").read_text())
    student = content["stages"]["student"]
    assert (student["human_images"], student["generated_images"]) == (3, 4)  # and two with classes
    assert content["metric"] == "miou"
    assert "ignored" in (tmp_path / "run/report.html").read_text()


def test_a_teacher_of_another_task_is_refused_and_a_copy_of_its_network_is_not(
    whole, scenes, tmp_path
) -> None:
    copy = shutil.copytree(whole / "teacher/model", tmp_path / "copy")
    whole_student = {**recipe(scenes)["teacher"], "steps": 4}
    tree = recipe(scenes, teacher={"run": str(copy)}, student=whole_student)
    found = asked(tmp_path, tree)
    assert found.labels.labeled == [boxes(scenes, "train")] and found.teacher == str(copy)
    with pytest.raises(InputError, match="is of detection, and the task is segmentation"):
        asked(tmp_path, recipe(scenes, "segmentation", teacher={"run": str(copy)}))


def test_a_missing_package_is_named_before_anything_is_read(scenes, tmp_path, monkeypatch):
    def refuse(what: str, *modules: str) -> None:
        raise InputError(f"{what} needs the package {modules[0]}, not installed here")

    monkeypatch.setattr("downstream.detection.config.require_packages", refuse)
    with pytest.raises(InputError, match="needs the package faster_coco_eval"):
        asked(tmp_path, recipe(scenes))


def asked(tmp_path: Path, tree: dict[str, Any], *overrides: str):
    file = write(tmp_path, {"out": str(tmp_path / "run"), **tree})
    return as_asked(SelftrainConfig(file=file, overrides=list(overrides)))


def test_what_a_stage_does_not_say_is_as_before(scenes, tmp_path) -> None:
    tree = recipe(scenes, baseline={"compile": True}, oracle={"seed": 7})
    tree["teacher"] |= {"accumulate": 2, "batch_size": 10}
    tree["student"] = {"steps": 9, "schedule": {"milestones": [1, 2]}, "accumulate": 5,
                       "data": {"minibatch": "apart"}, "balance": {"alpha": 2},
                       "classification": {"train": [str(scenes)], "weight": 0.2}}  # fmt: skip
    found = asked(
        tmp_path, tree, "schedule.lr=0.3", "student.ema.decay=.9", "labels.test.flip=true"
    )
    configs = found.configs
    assert list(configs) == ["teacher", "baseline", "oracle", "student"]
    student = configs["student"]
    assert [x.ema.decay for x in configs.values()] == [0, 0.9, 0.9, 0.9]
    assert [x.compile for x in configs.values()] == [False, True, False, False]
    assert [x.seed for x in configs.values()] == [0, 0, 7, 0]  # that one has all labels
    assert all(x.schedule.lr == 0.3 and x.batch_size == 10 for x in configs.values())
    assert student.schedule.milestones == [1, 2] and student.schedule.milestone_shares == []
    assert student.data.generated == [str(tmp_path / "run/labels")]
    assert [x.balance.alpha for x in configs.values()] == [None, None, None, 2]
    assert [x.classification.weight for x in configs.values()] == [0.5, 0.2, 0.2, 0.2]
    for stage in ("baseline", "oracle"):
        assert configs[stage].steps == 9 and configs[stage].data.generated == []
        assert configs[stage].data.minibatch == "mixed" and configs[stage].init is None
    assert [x.data.labeled_share for x in configs.values()] == [0.5, 0.5, 1.0, 0.5]
    assert found.labels.test.flip is True and found.labels.val == list(student.data.val)
    assert found.labels.run == str(tmp_path / "run/teacher")
    assert not found.teacher_is_baseline


def test_a_stage_that_leaves_something_out_takes_over_nothing_of_it(scenes, tmp_path) -> None:
    tree = recipe(scenes, baseline={"classification": {"train": []}}, oracle=True)
    tree["teacher"] |= {
        "classification": {"train": [str(scenes)], "weight": 0.2, "size": 32},
        "augment": {**tree["teacher"]["augment"], "policy": "randaugment", "randaugment_ops": 3},
    }  # fmt: skip
    configs = asked(tmp_path, tree, "student.augment.policy=none").configs
    assert [x.classification.weight for x in configs.values()] == [0.2, 0.5, 0.2, 0.2]
    assert [x.augment.randaugment_ops for x in configs.values()] == [3, 2, 2, 2]


def test_a_baseline_with_the_teacher_s_settings_is_the_teacher(scenes, tmp_path) -> None:
    tree = recipe(scenes, baseline=True)
    repeated = asked(tmp_path, tree, "teacher.steps=9", "student.steps=9")
    assert repeated.teacher_is_baseline and list(repeated.configs) == ["teacher", "student"]
    tree = {**tree, "baseline": {}}
    started = asked(tmp_path, {**tree, "student": {"steps": 9, "start": "teacher"}})
    assert started.configs["student"].init == str(tmp_path / "run/teacher")
    assert started.configs["baseline"].init is None


@pytest.mark.parametrize(
    ("change", "overrides", "said"),
    [
        ({"studnet": {}}, (), "'studnet' is no section; did you mean 'student'"),
        ({"task": "transfer"}, (), "task is 'transfer'"),
        ({"teacher": None}, (), "teacher is missing"),
        ({"unlabeled": None}, (), "unlabeled is missing"),
        ({"unlabeled": "nowhere"}, (), "unlabeled: nowhere: no such file"),
        ({"teacher": {"run": "nowhere"}}, (), "teacher.run: nowhere"),
        ({"teacher": {"run": ".", "steps": 3}}, (), "steps beside run"),
        ({"teacher": {"run": "."}}, (), "teacher.run . has no trained detector or segmenter"),
        ({"student": {"start": "end"}}, (), "start is 'end'"),
        ({"student": {"data": {"generated": ["x"]}}}, (), "data.generated is the recipe's"),
        ({"student": {"out": "x"}}, (), "student: out is the recipe's to decide"),
        ({"student": {"stepz": 3}}, (), "student: unknown setting 'stepz'"),
        ({}, ("student.seed=3",), "--student.seed: seed is 3 and the teacher's 0, which draws"),
        ({"labels": {"run": "x"}}, (), "labels: run is the recipe's to decide"),
        ({"labels": {"threshold": 2}}, (), "labels: threshold"),
        ({}, ("student.init=x",), "--student.init is the recipe's"),
        ({}, ("baseline.seed=1",), "the recipe has no baseline"),
        ({"student": {"epochs": 3}, "baseline": True}, (), "give student.steps instead"),
        ({"oracle": True}, ("data.labeled_share=1",), "--data.labeled_share: it would be the base"),
        ({"student": {"start": "teacher", "detector": {"name": "retinanet"}}}, (),
         "start is teacher, but detector is another one"),
        ({"student": {"start": "teacher", "data": {"classes": ["red", "blue"]}}}, (),
         "start is teacher, but data.classes is another one"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_the_first_stage(scenes, tmp_path, change, overrides, said):
    with pytest.raises(InputError) as raised:
        asked(tmp_path, recipe(scenes, **change) if change.get("teacher", 1) else
              {k: v for k, v in recipe(scenes).items() if k != "teacher"}, *overrides)  # fmt: skip
    assert said in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_run_of_ssld_sed_may_be_the_teacher(scenes, tmp_path) -> None:
    """As far as settings go; what it alone has is no student's."""
    (tmp_path / "sed/model").mkdir(parents=True)
    (tmp_path / "sed/model/config.json").write_text('{"task": "detection"}')
    tree = recipe(scenes)
    settings = {**tree["teacher"], "detector": {"name": "retinanet"}, "ema": {"decay": 0.5}}
    settings["data"] = {**settings["data"], "unlabeled": tree["unlabeled"]}
    config = parse("ssld sed", SedConfig, ["--out=sed"], settings=("sed", settings))
    (tmp_path / "sed/config.yaml").write_text(yaml.safe_dump(plain(config)))
    file = write(tmp_path, {**tree, "teacher": {"run": str(tmp_path / "sed")}})
    student = as_asked(SelftrainConfig(file=file, out=str(tmp_path / "out"))).configs["student"]
    assert student.detector.name == "retinanet" and student.data.labeled_share == 0.5
    assert student.ema == EmaConfig(0.5, "auto", 0.9)
