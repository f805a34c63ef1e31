"""Second stage, resolution fix and recipe, as commands."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from case import lines
from safetensors.torch import load_file
from stages import first_stage, words

from ssld.__main__ import main
from ssld.engine.overwrite import foreign
from ssld.health.verdict import symptoms
from ssld.models.opening import open_network


def config(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.fixture(scope="module")
def distilled(colours, teacher_file, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("first") / "distill"
    assert main(["distill", *words({**first_stage(colours, teacher_file), "out": str(out)})]) == 0
    return out


def finetune(run: Path, out: Path, *rest: str) -> int:
    return main(["finetune", f"--run={run}", f"--out={out}", *rest])


def test_the_second_stage_inherits_all_but_what_the_paper_changes(
    distilled, tmp_path, capsys
) -> None:
    assert finetune(distilled, tmp_path / "two", "--epochs=1") == 0
    before, after = config(distilled), config(tmp_path / "two")
    assert after["schedule"]["lr"] == pytest.approx(before["schedule"]["lr"] / 100)
    assert after["data"]["unlabeled"] == [] and after["data"]["labeled"]
    assert after["student"]["checkpoint"] == str(distilled)
    assert (after["epochs"], after["steps"], after["targets"]) == (1, None, "teacher")
    same = ("seed", "batch_size", "optimizer", "augment", "teacher", "loss", "precision", "probe")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    facts = json.loads((tmp_path / "two/run.json").read_text())
    assert facts["images"] == {after["data"]["labeled"][0]: 36}
    assert facts["started_from"]["settings"] == before
    said = capsys.readouterr().out
    assert "schedule.lr: 1.0 -> 0.01" in said and f"goes on from {distilled}" in said


def test_thirty_epochs_unless_something_is_said(distilled) -> None:
    from ssld.cli.parse import parse
    from ssld.distill.config import FinetuneConfig, FixResConfig
    from ssld.distill.parent_run import finetune_defaults, fix_defaults

    def parsed(kind, *rest: str):
        defaults = fix_defaults if kind is FixResConfig else finetune_defaults
        given = [f"--run={distilled}", "--out=o", *rest]
        return parse("x", kind, given, defaults=defaults)

    assert (parsed(FinetuneConfig).epochs, parsed(FinetuneConfig).steps) == (30, None)
    assert parsed(FinetuneConfig, "--steps=7").epochs is None
    assert parsed(FinetuneConfig, "--schedule.lr=0.5").schedule.lr == 0.5
    assert (parsed(FixResConfig).epochs, parsed(FixResConfig).schedule.lr) == (11, 0.0005)
    assert parsed(FixResConfig).augment.size == 44  # 10/7 of 32, in steps of 4


def test_the_second_stage_starts_from_the_exported_student(distilled, tmp_path) -> None:
    """At a rate of all but 0 nothing moves: the same weights come out."""
    rest = ("--steps=2", "--schedule.lr=1e-12", "--optimizer.weight_decay=0")
    assert finetune(distilled, tmp_path / "two", *rest) == 0
    a, b = (load_file(x / "student/model.safetensors") for x in (distilled, tmp_path / "two"))
    parameters = [key for key in a if "running" not in key and "batches" not in key]
    assert all(torch.allclose(a[key], b[key], atol=1e-6) for key in parameters)


def test_human_targets_read_the_labels_and_load_no_teacher(
    distilled, colours, tmp_path, capsys
) -> None:
    """With the labels of two classes swapped, the student learns them swapped."""
    swapped = tmp_path / "swapped"
    shutil.copytree(colours / "train", swapped)
    (swapped / "blue").rename(swapped / "x")
    (swapped / "green").rename(swapped / "blue")
    (swapped / "x").rename(swapped / "green")
    rest = (f"--data.labeled={swapped}", f"--data.val={swapped}", "--targets=human", "--steps=60",
            "--schedule.lr=3", "--evaluate_every_epochs=100",
            "--checkpoint.every_steps=100")  # fmt: skip
    assert finetune(distilled, tmp_path / "two", *rest) == 0
    last = [line for line in lines(tmp_path / "two") if line["kind"] == "eval"][-1]
    assert "agreement1" not in last and last["top1"] > 0.9
    facts = json.loads((tmp_path / "two/run.json").read_text())
    assert facts["teacher_sha256"] is None and "teacher" not in facts
    assert config(tmp_path / "two")["teacher"]["checkpoint"] is None
    assert "\nteacher:" not in capsys.readouterr().out


def test_teacher_targets_do_not_read_the_labels(distilled, colours, tmp_path) -> None:
    poisoned = tmp_path / "poisoned"
    shutil.copytree(colours / "train", poisoned)
    for i, name in enumerate(("blue", "green", "red")):
        (poisoned / name).rename(poisoned / f"class {i}")
    weights = []
    for name, data in (("a", colours / "train"), ("b", poisoned)):
        here = tmp_path / name / "train"
        shutil.copytree(data, here)
        flat = sorted(here.rglob("*.png"))
        for file in flat:  # the same ids either way: the folders are all that differs
            file.rename(here / f"{file.name}")
        for folder in [x for x in here.iterdir() if x.is_dir()]:
            folder.rmdir()
        assert finetune(distilled, tmp_path / name / "out", "--steps=4",
                        f"--data.labeled={here}") == 0  # fmt: skip
        weights.append(load_file(tmp_path / name / "out/student/model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_held_out_images_stay_those_of_the_first_stage(colours, teacher_file, tmp_path) -> None:
    changes = {"data.val": [], "steps": 4, "data.fractions": [0.0, 1.0]}
    settings = first_stage(colours, teacher_file, **changes)
    assert main(["distill", *words({**settings, "out": str(tmp_path / "one")})]) == 0
    assert finetune(tmp_path / "one", tmp_path / "two", "--steps=2") == 0
    one, two = (json.loads((tmp_path / x / "run.json").read_text()) for x in ("one", "two"))
    assert one["held_out"] and one["held_out"] == two["held_out"]
    assert one["val_sha256"] == two["val_sha256"]
    assert list(two["images"]) == [str(colours / "train")]


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ((), "run is missing"),
        (("--run=nowhere",), "nowhere is not a run folder"),
        (("--run={run}", "--data.unlabeled=x"), "trains on data.labeled only"),
        (("--run={run}", "--data.labeled=[]"), "data.labeled is empty"),
        (("--run={run}", "--target=human"), "unknown setting 'target'; did you mean 'targets'"),
    ],
)
def test_bad_input_is_one_sentence(rest, said, distilled, tmp_path, capsys) -> None:
    given = [word.format(run=distilled) for word in rest]
    assert main(["finetune", f"--out={tmp_path / 'two'}", *given]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "two").exists()


def test_a_run_that_has_not_finished_is_no_start(distilled, tmp_path, capsys) -> None:
    shutil.copytree(distilled, tmp_path / "half")
    facts = json.loads((tmp_path / "half/run.json").read_text())
    del facts["exported"]
    (tmp_path / "half/run.json").write_text(json.dumps(facts))
    assert finetune(tmp_path / "half", tmp_path / "two") == 2
    assert "has not finished" in capsys.readouterr().err


def test_resume_refuses_another_student_to_start_from(
    distilled, teacher_file, colours, tmp_path, capsys
) -> None:
    start = tmp_path / "one"
    shutil.copytree(distilled, start)
    assert finetune(start, tmp_path / "two", "--steps=4") == 0
    file = start / "student/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert finetune(start, tmp_path / "two", "--steps=4", "--resume") == 2
    assert "model.safetensors is damaged" in capsys.readouterr().err
    facts = json.loads((start / "run.json").read_text())
    facts["exported"]["sha256"] = hashlib.sha256(data).hexdigest()
    (start / "run.json").write_text(json.dumps(facts))
    assert finetune(start, tmp_path / "two", "--steps=4", "--resume") == 2
    assert "another student in `run` to start from" in capsys.readouterr().err


def fix(run: Path, out: Path, *rest: str) -> int:
    return main(["fix", f"--run={run}", f"--out={out}", "--steps=6", "--schedule.lr=1", *rest])


def table(out: Path) -> dict[str, Any]:
    return json.loads((out / "resolutions.json").read_text())


def moved(run: Path, out: Path) -> set[str]:
    """What six steps of a fix have changed of the student."""
    a = load_file(run / "student/model.safetensors")
    b = load_file(out / "checkpoints/step-00000006/student.safetensors")
    return {key for key in a if not torch.equal(a[key], b[key])}


def test_a_fix_trains_the_classifier_only(distilled, tmp_path) -> None:
    assert fix(distilled, tmp_path / "fix", "--resolutions=[24,32,40]") == 0
    assert moved(distilled, tmp_path / "fix") == {"fc.weight", "fc.bias"}
    facts = json.loads((tmp_path / "fix/run.json").read_text())
    forward = facts["teacher"]["macs_m"] + facts["student"]["macs_m"]  # and hardly a way back
    assert facts["flops_per_image"] == pytest.approx(2e6 * forward, rel=0.01)


def test_a_fix_can_train_the_last_norm_too(distilled, tmp_path) -> None:
    rest = ("--train=classifier_and_norm", "--resolutions=[32]")
    assert fix(distilled, tmp_path / "fix", *rest) == 0
    names = moved(distilled, tmp_path / "fix")
    (norm,) = {name.rpartition(".")[0] for name in names} - {"fc"}
    assert norm.startswith("layer4") and f"{norm}.running_mean" in names


def test_a_fix_reports_every_size_and_exports_the_best(distilled, colours, tmp_path) -> None:
    """The numbers of both halves together are those that `ssld evaluate` finds."""
    sizes = [24, 32, 48]
    rest = (f"--resolutions={sizes}", "--checkpoint.best=top1")
    assert fix(distilled, tmp_path / "fix", *rest) == 0
    found = table(tmp_path / "fix")
    assert [row["size"] for row in found["before"]] == [24, 32, 44, 48]  # 44: where it was fixed
    assert (found["trained_at"], found["fixed_at"], found["metric"]) == (32, 44, "top1")
    rows = [(row, moment) for moment in ("before", "after") for row in found[moment]]
    best, moment = max(rows, key=lambda x: (worth(x[0]), x[1] == "after", -x[0]["size"]))
    assert (found["chosen"], found["classifier"]) == (best["size"], moment)
    exported = timm.create_model(f"local-dir:{tmp_path / 'fix/student'}", pretrained=True)
    assert exported.pretrained_cfg["input_size"] == (3, best["size"], best["size"])
    for moment, run in (("before", distilled), ("after", tmp_path / "fix")):
        out = tmp_path / f"{moment}.json"
        assert main(["evaluate", f"--model={run}", f"--data={colours / 'val'}", "--workers=0",
                     "--input_size=48", f"--out={out}"]) == 0  # fmt: skip
        row = next(row for row in found[moment] if row["size"] == 48)
        hits = [half["top1"] * half["labeled"] for half in (row, row["choose"])]
        assert sum(hits) == pytest.approx(24 * json.loads(out.read_text())["top1"])
    facts = json.loads((tmp_path / "fix/run.json").read_text())
    assert facts["resolution"]["metrics"] == best  # what tables, cards and comparisons take
    assert "Resolution</h2>" in (tmp_path / "fix/report.html").read_text()
    assert foreign(tmp_path / "fix") == []  # or its own --overwrite would refuse it


def worth(row: dict[str, Any]) -> tuple[bool, float]:
    """By the half that chooses: no collapse, then top-1."""
    return not symptoms(row["choose"], 3), row["choose"]["top1"]


def test_a_fix_for_nothing_exports_the_student_as_it_came(distilled, tmp_path, capsys) -> None:
    """At a rate that destroys the classifier."""
    rest = ("--schedule.lr=1e4", "--resolutions=[32]", "--ema.decay=0")
    assert fix(distilled, tmp_path / "fix", *rest) == 0
    assert "its classifier as it came" in capsys.readouterr().out
    a, b = (load_file(x / "student/model.safetensors") for x in (distilled, tmp_path / "fix"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    found = table(tmp_path / "fix")
    assert (
        found["classifier"] == "before" and found["after"][0]["top1"] < found["before"][0]["top1"]
    )


def test_views_of_a_fix_are_those_of_an_evaluation(distilled, tmp_path, monkeypatch) -> None:
    from ssld.data.transforms import EvalView
    from ssld.distill import setup

    seen = []
    monkeypatch.setattr(setup, "ClassifierRun", _noting(setup.ClassifierRun, seen))
    assert fix(distilled, tmp_path / "fix", "--resolutions=[32]") == 0
    assert isinstance(seen[0].view, EvalView) and seen[0].view.size == 44


def _noting(kind: type, seen: list[Any]) -> Any:
    def make(**given: Any) -> Any:
        seen.append(kind(**given))
        return seen[-1]

    return make


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (("--augment.policy=autoaugment",), "makes its views as an evaluation does"),
        (("--resolutions=[0]",), "resolutions is [0]: give a number above 0"),
        (("--data.val=[]", "--data.holdout=0"), "held-out images choose the resolution"),
    ],
)
def test_bad_input_of_a_fix_is_one_sentence(rest, said, distilled, tmp_path, capsys) -> None:
    assert fix(distilled, tmp_path / "fix", *rest) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "fix").exists()


def test_a_fix_of_a_supervised_run_uses_the_labels(colours, tmp_path) -> None:
    given = {"steps": 4, "batch_size": 8, "student.arch": "test_resnet", "augment.size": 32,
             "data.labeled": str(colours / "train"), "data.val": str(colours / "val"),
             "data.workers": 0, "label_smoothing": 0.1}  # fmt: skip
    assert main(["supervised", *words({**given, "out": str(tmp_path / "one")})]) == 0
    assert finetune(tmp_path / "one", tmp_path / "two") == 2
    assert fix(tmp_path / "one", tmp_path / "fix", "--resolutions=[32]") == 0
    assert config(tmp_path / "fix")["targets"] == "human"


def test_frozen_parts_stay_in_eval_mode() -> None:
    network = open_network("student", arch="test_resnet", num_classes=3)
    network.freeze_but(["fc"])
    network.train()
    assert network.frozen_on_purpose
    training = {name for name, module in network.named_modules() if module.training}
    assert training == {"model.fc"}
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {
        "model.fc.weight", "model.fc.bias"}  # fmt: skip
