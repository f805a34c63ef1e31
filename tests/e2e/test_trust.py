"""A run that says whether it helps, and a plan that says what is wrong before it starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ssld.__main__ import main
from zoo.release import sha256_of


@pytest.fixture(scope="module")
def teacher(colours, tmp_path_factory) -> Path:
    """Weights of a classifier that knows the colours; its header says its preprocessing."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    settings = {
        "out": out,
        "steps": 60,
        "batch_size": 16,
        "student.arch": "test_resnet",
        "augment.size": 32,
        "schedule.lr": 1.0,
        "data.labeled": colours / "train",
        "data.val": colours / "val",
        "data.workers": 0,
        "evaluate_every_epochs": 100,
        "trackers": "[]",
    }
    assert main(["supervised", *(f"--{k}={v}" for k, v in settings.items())]) == 0
    return save(load_file(out / "student/model.safetensors"), out.parent / "teacher.safetensors")


def save(weights: dict[str, torch.Tensor], path: Path) -> Path:
    header = {"architecture": "test_resnet", "input_size": "3,32,32"}
    save_file(weights, path, header | {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"})
    return path


def permuted(teacher: Path, path: Path) -> Path:
    """The same teacher with its classes counted from the second one."""
    weights = load_file(teacher)
    for name in ("fc.weight", "fc.bias"):
        weights[name] = weights[name].roll(-1, 0).contiguous()
    return save(weights, path)


@pytest.fixture
def command(colours, teacher, tmp_path):
    """Run a command on the colours with some settings changed; its exit code."""

    def run(name: str, *words: str, **changes: Any) -> int:
        settings = {
            "out": tmp_path / "run",
            "steps": 40,
            "batch_size": 16,
            "student.arch": "test_resnet",
            "augment.size": 32,
            "schedule.lr": 1.0,
            "teacher.checkpoint": teacher,
            "data.unlabeled": colours / "unlabeled",
            "data.val": colours / "val",
            "data.workers": 0,
            "evaluate_every_epochs": 2.5,
            "trackers": "[]",
            **changes,
        }
        return main([name, *(f"--{k}={v}" for k, v in settings.items()), *words])

    return run


def metrics(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def verdict(out: Path) -> str:
    return metrics(out, "eval")[-1]["verdict"]


def test_a_good_run_says_that_it_improves(command, real_pictures, tmp_path):
    assert command("distill", **{"evaluate_every_epochs": 1, "schedule.lr": 0.03}) == 0
    said = [line["verdict"] for line in metrics(tmp_path / "run", "eval")]
    assert not any("not learning" in sentence for sentence in said[2:])
    assert any(sentence.startswith("still improving: agreement@1") for sentence in said)
    last = metrics(tmp_path / "run", "eval")[-1]
    assert last["agreement1"] > 0.9 and last["top1"] > 0.9
    assert last["images"] == 24 and last["classes_student"] == 1.0
    report = (tmp_path / "run/report.html").read_text()
    assert said[-1][1:20] in report
    for part in ("agreement with the teacher", "learning rate", "share of a step", "calibration"):
        assert part in report
    assert "Where student and teacher disagree most" in report and "http://" not in report


def test_a_learning_rate_that_is_too_low_is_named(command, tmp_path):
    assert command("distill", **{"schedule.lr": 1e-9}) == 0
    assert verdict(tmp_path / "run").startswith("not learning: ")
    assert "Likely causes: learning rate too low" in verdict(tmp_path / "run")


def test_a_learning_rate_that_is_too_high_is_named(command, tmp_path):
    assert command("distill", **{"schedule.lr": 30.0, "schedule.warmup_epochs": 0}) == 0
    said = [line["verdict"] for line in metrics(tmp_path / "run", "eval")]
    assert any(x.startswith("not learning: ") and "learning rate too high" in x for x in said)


def test_a_wrong_normalisation_is_named(command, tmp_path, colours):
    wrong = {"teacher.mean": "[120, 120, 120]", "teacher.std": "[60, 60, 60]"}
    wrong |= {"teacher.verify": "false"}
    assert command("distill", **wrong) == 0
    assert "not learning" in verdict(tmp_path / "run")
    assert "the teacher is better with normalisation" in verdict(tmp_path / "run")


def test_a_class_order_is_named(command, tmp_path, teacher):
    other = permuted(teacher, tmp_path / "other.safetensors")
    changes = {"teacher.checkpoint": other, "teacher.verify": "false"}
    assert command("distill", **changes) == 0
    assert "top-1 on labeled images" in verdict(tmp_path / "run")
    assert "class order shifted" in verdict(tmp_path / "run")


def test_probes_are_made_where_labels_are(command, tmp_path, colours):
    assert command("distill", **{"data.labeled": colours / "train", "probe.every_epochs": 2}) == 0
    probed = [line for line in metrics(tmp_path / "run", "eval") if "knn" in line]
    assert len(probed) == 3 and all(0 <= x["linear"] <= 1 for x in probed)
    assert probed[-1]["linear"] > 0.9


def test_without_val_images_are_held_out(command, tmp_path, capsys):
    assert command("distill", **{"data.val": "[]", "steps": 8}) == 0
    assert "held out: 3 training images" in capsys.readouterr().out
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert sum(facts["held_out"].values()) == 3 and sum(facts["images"].values()) == 57
    assert metrics(tmp_path / "run", "eval")[-1]["images"] == 3


def test_the_best_checkpoint_is_kept_and_exported(command, tmp_path):
    changes = {"checkpoint.every_steps": 10, "checkpoint.keep": 1, "checkpoint.best": "divergence"}
    # The second half, without its teacher's help, only makes it worse.
    assert command("distill", **changes, **{"optimizer.weight_decay": 0.5}) == 0
    out = tmp_path / "run"
    values = {line["step"]: line["divergence"] for line in metrics(out, "eval")}
    best = min(values, key=lambda step: (values[step], -step))
    exported = json.loads((out / "run.json").read_text())["exported"]
    digest, symptoms = exported.pop("sha256"), exported.pop("symptoms")
    assert symptoms  # all evaluations have some here: the best of them it is
    assert exported == {"step": best, "metric": "divergence", "value": values[best]}
    assert sha256_of(out / "student/model.safetensors") == digest
    kept = {path.name for path in (out / "checkpoints").iterdir()}
    assert kept == {f"step-{step:08d}" for step in (best, 40)}
    state = load_file(out / f"checkpoints/step-{best:08d}/student.safetensors")
    student = load_file(out / "student/model.safetensors")
    assert all(torch.equal(state[name], student[name]) for name in student)


def test_a_damaged_best_checkpoint_does_not_become_the_student(command, tmp_path, capsys):
    changes = {"checkpoint.every_steps": 10, "checkpoint.best": "divergence"}
    changes |= {"optimizer.weight_decay": 0.5}
    assert command("distill", **changes) == 0
    out = tmp_path / "run"
    exported = json.loads((out / "run.json").read_text())["exported"]
    assert exported["step"] < 40
    file = out / f"checkpoints/step-{exported['step']:08d}/student.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    best = load_file(out / "student/model.safetensors")
    assert command("distill", "--resume", **changes) == 0
    assert "student/ has the same network" in capsys.readouterr().err
    student = load_file(out / "student/model.safetensors")
    assert all(torch.equal(best[name], student[name]) for name in best)
    shutil.rmtree(out / "student")
    assert command("distill", "--resume", **changes) == 0
    assert "the student of the last step is exported" in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["exported"]["step"] == 40


def test_a_slow_average_is_not_judged_by_its_first_weights(command, tmp_path):
    assert command("distill", **{"ema.decay": 0.9999, "schedule.lr": 0.1}) == 0
    assert metrics(tmp_path / "run", "eval")[-1]["agreement1"] > 0.9


def test_resume_where_there_is_no_run(command, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("precious")
    assert command("distill", "--resume") == 2
    assert "not a run folder (no config.yaml): nothing to resume" in capsys.readouterr().err
    assert command("distill", "--resume", **{"out": tmp_path / "new", "steps": 2}) == 0
    assert "no checkpoint in" in capsys.readouterr().out


def test_a_damaged_config_is_refused(command, tmp_path, capsys):
    assert command("distill", **{"steps": 2}) == 0
    (tmp_path / "run/config.yaml").write_text("a: [")
    assert command("distill", "--resume", **{"steps": 2}) == 2
    assert "config.yaml is damaged" in capsys.readouterr().err


def test_best_by_top1_needs_labels(command, tmp_path, colours, capsys):
    changes = {"checkpoint.best": "top1", "data.val": colours / "unlabeled"}
    assert command("distill", **changes) == 2
    assert "checkpoint.best is top1 but no held-out image" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_changes_on_resume_are_refused_or_allowed_by_name(command, tmp_path, capsys):
    assert command("distill", **{"steps": 10}) == 0
    before = (tmp_path / "run/config.yaml").read_text()
    changed = {"steps": 20, "schedule.lr": 0.5, "data.workers": 1}
    assert command("distill", "--resume", **changed) == 2
    said = capsys.readouterr().err
    assert "schedule.lr was 1.0 and is 0.5; steps was 10 and is 20" in said
    assert '--allow_changes \'["schedule.lr", "steps"]\'' in said and "workers" not in said
    assert (tmp_path / "run/config.yaml").read_text() == before
    assert command("distill", "--resume", '--allow_changes=["schedule.lr"]', **changed) == 2
    assert "steps was 10" in (said := capsys.readouterr().err) and "schedule.lr was" not in said
    allowed = '--allow_changes=["schedule", "steps"]'
    assert command("distill", "--resume", allowed, **changed) == 0
    assert "resuming with changed settings: schedule.lr was 1.0" in capsys.readouterr().out
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert len(facts["changed_on_resume"]) == 2
    assert command("distill", "--resume", "--allow_changes=schedul.lr", **changed) == 2
    said = capsys.readouterr().err
    assert "allow_changes names 'schedul.lr'" in said and "did you mean 'schedule.lr'" in said
    assert metrics(tmp_path / "run", "train")[-1]["step"] == 20


def test_a_setting_that_the_run_did_not_know_was_as_its_default(command, tmp_path, capsys):
    """A run of an older version of ssld, whose config.yaml lacks what is new."""
    assert command("distill", **{"steps": 10}) == 0
    file = tmp_path / "run/config.yaml"
    settings = yaml.safe_load(file.read_text())
    del settings["schedule"]["milestone_shares"], settings["data"]["unlabeled_share"]
    file.write_text(yaml.safe_dump(settings))
    assert command("distill", "--resume", **{"steps": 10, "data.unlabeled_share": 0.5}) == 2
    said = capsys.readouterr().err
    assert "data.unlabeled_share was 1.0 and is 0.5; set" in said
    assert command("distill", "--resume", **{"steps": 10}) == 0


def test_another_teacher_on_resume_is_refused(command, tmp_path, teacher, capsys):
    same = tmp_path / "teacher.safetensors"
    shutil.copy(teacher, same)
    assert command("distill", **{"steps": 10, "teacher.checkpoint": same}) == 0
    before = (tmp_path / "run/config.yaml").read_text()
    permuted(teacher, same)
    changes = {"steps": 10, "teacher.checkpoint": same, "teacher.verify": "false"}
    allowed = '--allow_changes=["teacher.verify"]'
    assert command("distill", "--resume", allowed, **changes) == 2
    assert "with another teacher (sha256 was" in capsys.readouterr().err
    assert (tmp_path / "run/config.yaml").read_text() == before


@pytest.mark.parametrize("which", ["data.unlabeled", "data.val"])
def test_other_images_on_resume_are_refused(command, tmp_path, colours, capsys, which):
    images = tmp_path / "images"
    shutil.copytree(colours / "unlabeled", images)
    assert command("distill", **{"steps": 10, which: images}) == 0
    next(images.iterdir()).unlink()
    assert command("distill", "--resume", **{"steps": 10, which: images}) == 2
    assert "set of" in capsys.readouterr().err


@pytest.fixture
def plan(command, tmp_path):
    """Exit code and the JSON of a plan."""

    def run(**changes: Any) -> tuple[int, dict[str, Any]]:
        result = tmp_path / "plan.json"
        code = command("plan", f"--json={result}", "--seconds=0.05", **changes)
        assert not (tmp_path / "run").exists()
        return code, json.loads(result.read_text())

    return run


def test_a_plan_of_a_good_run(plan, colours, capsys):
    changes = {"data.labeled": colours / "train", "price_per_hour": 2.5, "epochs": 1000}
    code, found = plan(**{**changes, "steps": "null"})
    said = capsys.readouterr().out
    assert code == 0 and found["problems"] == [] and "problems  none found" in said
    assert found["teacher"][0]["top1"]["as given"] > 0.9
    assert [(s["role"], s["images"]) for s in found["sources"]] == [
        ("labeled", 36),
        ("unlabeled", 60),
        ("val", 24),
    ]
    schedule, cost, rates = found["schedule"], found["cost"], found["rates"]
    assert schedule["steps"] == 6000 and schedule["peak_lr"] == 1.0 * 16 / 256
    assert schedule["warmup_steps"] == 30 and "0.0625 at its peak" in said
    training = cost["hours"]["online"] - cost["of_which_evaluations"]
    assert training == pytest.approx(6000 * 16 / rates["together"] / 3600)
    assert cost["cost"]["online"] == pytest.approx(2.5 * cost["hours"]["online"])
    assert cost["wall"] == ("decode" if rates["loader"] < rates["both"] else "compute")
    # 3 classes and a tail of 1000 views of each image, and one of held-out ones
    assert cost["stored_labels_gb"] == pytest.approx((6000 * 16 + 24) * 14 / 1e9)
    assert "ssld labels build --views 1000;" in said
    assert found["disk"]["needed_mib"] == pytest.approx(4 * found["disk"]["checkpoint_mib"])
    assert 2.5 < found["disk"]["checkpoint_mib"] < 4  # 0.37 M weights and their momentum
    assert found["memory"]["peak_mib"] > 100


def test_a_plan_names_a_wrong_normalisation(plan, colours):
    wrong = {"teacher.mean": "[0, 0, 0]", "teacher.std": "[0.004, 0.004, 0.004]"}
    code, found = plan(**wrong, **{"data.val": colours / "train"})
    assert code == 1
    assert "the teacher is better with normalisation Inception's" in found["problems"][0]
    assert "set teacher.mean to [0.5, 0.5, 0.5]" in found["problems"][0]


def test_a_plan_names_a_permuted_class_order(plan, teacher, tmp_path, capsys):
    other = permuted(teacher, tmp_path / "other.safetensors")
    code, found = plan(**{"teacher.checkpoint": other})
    assert code == 1 and len(found["problems"]) == 1
    assert "class order shifted" in found["problems"][0]
    assert found["problems"][0] in capsys.readouterr().out


def test_a_plan_names_another_class_count(plan, tmp_path, teacher):
    weights = load_file(teacher)
    for name in ("fc.weight", "fc.bias"):
        weights[name] = torch.cat([weights[name], weights[name]])
    six = save(weights, tmp_path / "six.safetensors")
    code, found = plan(**{"teacher.checkpoint": six})
    assert code == 1
    assert "data.val names 3 classes" in found["problems"][0]
    assert "the teacher has 6, whose names it does not say" in found["problems"][0]
    code, found = plan(**{"teacher.checkpoint": six, "student.num_classes": 3})
    assert code == 1
    assert "student.num_classes is 3 but the teacher has 6 classes" in found["problems"][0]
    code, found = plan(**{"teacher.checkpoint": six, "teacher.verify": "false"})
    assert code == 0 and found["teacher"][0]["not_on_labels"]


def test_a_plan_names_swapped_channels(plan, teacher, tmp_path):
    weights = load_file(teacher)
    first = "conv1.0.weight"
    weights[first] = weights[first].flip(1).contiguous()
    code, found = plan(**{"teacher.checkpoint": save(weights, tmp_path / "bgr.safetensors")})
    assert code == 1 and "colour channels swapped" in found["problems"][0]


def test_a_plan_counts_what_cannot_be_read(plan, colours, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(colours / "unlabeled", images)
    for path in sorted(images.iterdir())[:15]:
        path.write_bytes(b"no image")
    code, found = plan(**{"data.unlabeled": images})
    source = next(s for s in found["sources"] if s["role"] == "unlabeled")
    assert (source["looked_at"], source["unreadable"]) == (60, 15)
    assert code == 1 and "15 of 60 images cannot be read" in found["problems"][0]


def test_a_plan_says_that_out_is_in_use(command, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("precious")
    assert command("plan", "--seconds=0.05") == 1
    assert "is not empty" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_bench_measures_the_parts_and_the_whole(command, tmp_path, capsys):
    result = tmp_path / "bench.json"
    assert command("bench", "--seconds=0.3", f"--json={result}") == 0
    found = json.loads(result.read_text())
    parts = ("loader", "teacher", "student", "both", "together", "supervised_together")
    assert all(found[part] > 0 for part in parts)
    assert found["ratio"] == pytest.approx(found["both"] / found["student"])
    assert 0 < sum(found["split"].values()) <= 100.5
    said = capsys.readouterr().out
    assert "distillation : supervised, all" in said and f"{found['ratio']:.3f}" in said
    assert not (tmp_path / "run").exists()


def test_every_line_splits_the_time_of_a_step(command, tmp_path):
    assert command("distill", **{"steps": 20}) == 0
    for line in metrics(tmp_path / "run", "train"):
        names = ("data_wait", "transfer", "teacher", "student_forward", "backward", "reduction")
        shares = [line[f"{name}_percent"] for name in (*names, "optimizer", "other")]
        assert sum(shares) == pytest.approx(100, abs=0.1) and min(shares) >= 0
        assert line["images_per_second_per_device"] == line["images_per_second"]
        assert 0 < line["supervised_ratio"] < 1 and line["mfu_percent"] > 0
        assert line["teacher_percent"] > 0 and line["backward_percent"] > 0
