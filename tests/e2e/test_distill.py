"""Distillation as a user runs it: a command, a run folder, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pictures
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from ssld.__main__ import main


def arguments(colours: Path, teacher_file: Path, folder: Path, **changes) -> list[str]:
    settings = {
        "out": folder,
        "steps": 6,
        "batch_size": 8,
        "log_every_steps": 1,
        "student.arch": "test_resnet",
        "augment.size": 32,
        "teacher.checkpoint": teacher_file,
        "teacher.verify": "false",
        "data.labeled": colours / "train",
        "data.unlabeled": colours / "unlabeled",
        "data.val": colours / "val",
        "data.workers": 0,
        "trackers": "[]",
        **changes,
    }
    return [f"--{key}={value}" for key, value in settings.items() if value is not None]


def run(colours, teacher_file, folder, *extra, command="distill", **changes) -> int:
    return main([command, *arguments(colours, teacher_file, folder, **changes), *extra])


def metrics(out: Path, kind="train") -> list[dict]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student" / "model.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def finished(colours, teacher_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert run(colours, teacher_file, out, trackers='["tensorboard"]') == 0
    return out


def test_a_run_folder_holds_the_whole_truth(finished):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["student"]["num_classes"] == 3
    assert config["teacher"]["mean"] == [0.4, 0.5, 0.6] and config["teacher"]["input_size"] == 32
    assert config["teacher"]["dtype"] == "fp32"
    facts = json.loads((finished / "run.json").read_text())
    assert len(facts["teacher_sha256"]) == len(facts["data_sha256"]) == 64
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    lines = metrics(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "divergence", "lr", "images_per_second", "data_wait_percent"} <= lines[0].keys()
    assert {"top1", "agreement1", "agreement5", "divergence"} <= metrics(finished, "eval")[
        -1
    ].keys()
    assert (finished / "checkpoints" / "step-00000006" / "manifest.json").is_file()
    report = (finished / "report.html").read_text()
    assert "data:image/png;base64," in report and "http://" not in report.replace(
        "http://www.w3.org", ""
    )
    assert list((finished / "tensorboard").rglob("events*"))


def test_plain_timm_gives_the_trained_student(finished):
    student = timm.create_model(f"local-dir:{finished}/student", pretrained=True)
    assert student.num_classes == 3
    assert tuple(student.pretrained_cfg["input_size"]) == (3, 32, 32)
    state = load_file(finished / "checkpoints/step-00000006/student.safetensors")
    assert same(state, student.state_dict())


def test_the_written_config_repeats_the_run(finished, tmp_path):
    out = tmp_path / "again"
    assert main(["distill", "--config", str(finished / "config.yaml"), "--out", str(out)]) == 0
    assert same(weights(finished), weights(out))


def manifest(folder: Path, target: Path, labels: list) -> Path:
    paths = sorted(folder.rglob("*.png"))
    table = {
        "path": [str(p) for p in paths],
        "sample_id": [p.name for p in paths],
        "label": [labels[i % len(labels)] for i in range(len(paths))],
    }
    pq.write_table(pa.table(table), target)
    return target


def test_labels_are_never_read(colours, teacher_file, real_pictures, tmp_path, monkeypatch):
    trained = []
    for name, labels in (("true", [0, 1, 2]), ("poison", [2, 2, 0, 1])):
        source = manifest(colours / "train", tmp_path / f"{name}.parquet", labels)
        changes = {"data.labeled": source, "data.val": None}
        assert run(colours, teacher_file, tmp_path / name, **changes) == 0
        trained.append(weights(tmp_path / name))
        pictures.leave_out(monkeypatch)  # one page is drawn
    assert same(*trained)


@pytest.fixture
def shown(monkeypatch) -> list[torch.Tensor]:
    """What the teacher is shown in training, batch after batch."""
    from ssld.models.teacher import Teacher

    seen, forward = [], Teacher.forward

    def note(teacher, images, temperature=1.0):
        if not torch.is_inference_mode_enabled():  # an evaluation
            seen.append(images.clone())
        return forward(teacher, images, temperature)

    monkeypatch.setattr(Teacher, "forward", note)
    return seen


def test_the_teacher_can_see_another_view(colours, teacher_file, tmp_path, shown):
    noted = {}
    for name in ("same", "other"):
        shown.clear()
        changes = {"teacher_view": name, "data.val": "[]", "data.holdout": 0, "steps": 2}
        assert run(colours, teacher_file, tmp_path / name, **changes) == 0
        noted[name] = list(shown)
    assert len(noted["same"]) == len(noted["other"]) == 2
    assert not any(map(torch.equal, noted["same"], noted["other"]))
    assert not same(weights(tmp_path / "same"), weights(tmp_path / "other"))


def test_a_share_of_the_unlabeled_images(colours, teacher_file, tmp_path):
    assert run(colours, teacher_file, tmp_path / "half", **{"data.unlabeled_share": 0.5}) == 0
    facts = json.loads((tmp_path / "half" / "run.json").read_text())
    assert facts["images"] == {str(colours / "train"): 36, str(colours / "unlabeled"): 30}


def test_loader_workers_do_not_matter(colours, teacher_file, finished, tmp_path):
    assert run(colours, teacher_file, tmp_path / "run", **{"data.workers": 2}) == 0
    assert same(weights(finished), weights(tmp_path / "run"))


def test_accumulation_equals_the_large_batch(colours, teacher_file, tmp_path):
    losses = []
    for accumulate in (1, 2):  # a student without batch norm: its statistics are per forward pass
        changes = {"student.arch": "test_convnext", "accumulate": accumulate}
        out = tmp_path / str(accumulate)
        assert run(colours, teacher_file, out, **changes) == 0
        losses.append([line["loss"] for line in metrics(out)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("loss", ["js", "soft_ce"])
def test_a_student_learns_its_teacher(colours, teacher_file, tmp_path, loss):
    changes = {"loss.name": loss, "steps": 36, "batch_size": 16, "schedule.lr": 1.0}
    changes |= {"augment.scale": "[0.8, 1.0]", "evaluate_every_epochs": 100}
    assert run(colours, teacher_file, tmp_path / "run", **changes) == 0
    lines = metrics(tmp_path / "run")
    floor = 0.97 if loss == "soft_ce" else 0.5  # cross-entropy keeps the teacher's own entropy
    assert lines[-1]["divergence"] < floor * lines[0]["divergence"]


def test_ensemble_ema_and_bf16(colours, teacher_file, tmp_path):
    changes = {
        "teacher.checkpoint": None,
        "teacher.verify": None,
        "teachers": f"[{{checkpoint: {teacher_file}, verify: false}}, "
        f"{{checkpoint: {teacher_file}, verify: false, batch_norm: batch}}]",
        "ema.decay": 0.9,
        "precision": "bf16",
        "channels_last": "true",
    }
    assert run(colours, teacher_file, tmp_path / "run", **changes) == 0
    state = load_file(tmp_path / "run/checkpoints/step-00000006/ema.safetensors")
    assert same(state, weights(tmp_path / "run"))


def test_unreadable_images_are_counted_and_named(colours, teacher_file, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted((colours / "unlabeled").iterdir()):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "empty.jpg").touch()
    (folder / "truncated.png").write_bytes(path.read_bytes()[:200])
    changes = {"data.labeled": None, "data.unlabeled": folder, "steps": 9, "data.val": None}
    assert run(colours, teacher_file, tmp_path / "run", **changes) == 0
    named = (tmp_path / "run/unreadable.jsonl").read_text()
    assert "empty.jpg" in named and "truncated.png" in named
    assert metrics(tmp_path / "run")[-1]["unreadable"] == 2
    assert "empty.jpg" in capsys.readouterr().err
    changes["data.max_unreadable"] = 0.01
    assert run(colours, teacher_file, tmp_path / "strict", **changes) == 2
    said = capsys.readouterr().err
    assert "cannot be read" in said and "data.max_unreadable" in said


def bad(colours, teacher_file, tmp_path) -> dict[str, tuple[dict, str]]:
    """What a user may get wrong -> (changed settings, words of the answer)."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("x")
    return {
        "missing path": ({"data.unlabeled": tmp_path / "nowhere"}, "nowhere"),
        "empty folder": ({"data.unlabeled": tmp_path / "empty"}, "empty"),
        "class folder": ({"data.unlabeled": colours / "train"}, "class folder"),
        "class counts": ({"student.num_classes": 4}, "the teacher has 3"),
        "other architecture": ({"teacher.arch": "resnet18"}, "holds a 'test_resnet'"),
        "unknown timm name": ({"student.arch": "resnet5O"}, "resnet50"),
        "typo": ({"bach_size": 3}, "batch_size"),
        "full out": ({"out": tmp_path / "full"}, "not empty"),
        "foreign out": ({"out": tmp_path / "full", "overwrite": "true"}, "not a run folder"),
        "out is a file": ({"out": tmp_path / "file"}, "is a file"),
        "tracker": ({"trackers": '["nonsense"]'}, "nonsense"),
        "optimizer": ({"optimizer.name": "nonsense"}, "nonsense"),
        "fp16 on a CPU": ({"precision": "fp16"}, "fp16"),
        "chance": ({"teacher.verify": "true"}, "near chance"),
    }


BAD = [
    "missing path",
    "empty folder",
    "class folder",
    "class counts",
    "other architecture",
    "unknown timm name",
    "typo",
    "full out",
    "foreign out",
    "out is a file",
    "tracker",
    "optimizer",
    "fp16 on a CPU",
    "chance",
]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(colours, teacher_file, tmp_path, capsys, case):
    changes, words = bad(colours, teacher_file, tmp_path)[case]
    out = tmp_path / "out"
    assert run(colours, teacher_file, out, **changes) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and words in said
    assert not out.exists()
    assert (tmp_path / "full" / "thesis.txt").read_text() == "precious"


def test_not_finite_names_term_step_and_samples(colours, teacher_file, tmp_path, capsys):
    changes = {"schedule.lr": 1e38, "schedule.warmup_epochs": 0}
    assert run(colours, teacher_file, tmp_path / "run", **changes) == 2
    said = capsys.readouterr().err
    assert "'divergence' is not finite at step" in said and ".png" in said
    assert not (tmp_path / "run/student").exists()


def test_supervised_twin_and_evaluate(colours, real_pictures, tmp_path, capsys):
    out = tmp_path / "run"
    changes = {
        "teacher.checkpoint": None,
        "teacher.verify": None,
        "data.unlabeled": None,
        "steps": 40,
        "schedule.lr": 1.0,
        "label_smoothing": 0.1,
        "mixup": 0.2,
        "cutmix": 0.5,
        "evaluate_every_epochs": 100,
    }
    assert run(colours, None, out, command="supervised", **changes) == 0
    result = tmp_path / "result.json"
    arguments = ["--model", str(out), "--data", str(colours / "val"), "--workers", "0"]
    assert main(["evaluate", *arguments, "--out", str(result)]) == 0
    found = json.loads(result.read_text())
    assert found["images"] == 24 and found["top1"] > 0.9
    assert found["top1"] == pytest.approx(metrics(out, "eval")[-1]["top1"])
    assert found["top1_low"] < found["top1"] <= found["top1_high"]
    assert "95 %" in capsys.readouterr().out


def test_evaluate_refuses_classes_that_are_not_the_models(colours, capsys, tmp_path):
    torch.manual_seed(0)
    save_file(
        timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "w.safetensors"
    )
    arguments = ["--model", "test_resnet", "--checkpoint", str(tmp_path / "w.safetensors")]
    arguments += ["--data", str(colours / "val"), "--workers", "0"]
    assert main(["evaluate", *arguments]) == 2
    assert "names 3 classes (blue, green, red) and the model has 7" in capsys.readouterr().err


def test_errors_in_a_process_of_their_own_show_no_traceback(tmp_path):
    command = [sys.executable, "-m", "ssld.distill", "--out", str(tmp_path / "o"), "--steps", "1"]
    command += [
        "--student.arch",
        "test_resnet",
        "--teacher.arch",
        "t",
        "--data.labeled",
        "/no/where",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: data.labeled: ") and done.stderr.count("\n") == 1
