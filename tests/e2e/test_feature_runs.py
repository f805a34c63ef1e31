"""Runs with a feature term, as a user makes them: killed ones, of two processes, with a teacher
that has no classifier, and what is made of their students."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sabotage
import timm
import torch
import yaml
from accelerate.state import AcceleratorState
from case import lines
from safetensors.torch import load_file, save_file
from short_runs import words

from ssld.__main__ import main
from ssld.engine.trainer import Trainer
from ssld.models.opening import open_network

STEPS = 6
BOTH = {"features.weight": 0.5}
ALONE = {"features.weight": 1, "loss.weight": 0, "teacher.args.num_classes": 0}


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory) -> Path:
    """Weights without a classifier, as DINO's are."""
    torch.manual_seed(1)
    model = timm.create_model("test_vit", num_classes=0, img_size=32)
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    save_file(model.state_dict(), path, {"architecture": "test_vit", "input_size": "3,32,32"})
    return path


@pytest.fixture(scope="module")
def alone(colours, backbone_file, tmp_path_factory) -> Path:
    """A finished run of features alone."""
    out = tmp_path_factory.mktemp("alone") / "run"
    changes = {
        **ALONE, "teacher.args.img_size": 32, "data.labeled": colours / "train", "ema.decay": 0.5,
        "steps": 6, "checkpoint.every_steps": 2, "probe.every_epochs": 0.1,
        "evaluate_every_epochs": 0.15,
    }  # fmt: skip
    assert main(["distill", *words(colours, backbone_file, out, **changes)]) == 0
    return out


def outcome(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Every network of the last checkpoint, and the exported one."""
    files = (out / f"checkpoints/step-{STEPS:08d}").glob("*.safetensors")
    exported = load_file(out / "student/model.safetensors")
    return {path.stem: load_file(path) for path in files} | {"exported": exported}


def test_killed_and_resumed_is_undisturbed(colours, teacher_file, tmp_path, monkeypatch):
    changes = {**BOTH, "steps": STEPS, "ema.decay": 0.5, "checkpoint.every_steps": 2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["distill", *words(colours, teacher_file, whole, **changes)]) == 0
    step = Trainer.train_step
    for at in (1, 3, 5):

        def ends(trainer: Trainer, *arguments: Any, at: int = at) -> None:
            if trainer.step == at:
                trainer.run.folder.unlock()
                raise Killed
            step(trainer, *arguments)

        monkeypatch.setattr(Trainer, "train_step", ends)
        with pytest.raises(Killed):
            main(["distill", *words(colours, teacher_file, killed, **changes, resume="true")])
        AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(Trainer, "train_step", step)
    assert main(["distill", *words(colours, teacher_file, killed, **changes, resume="true")]) == 0
    assert lines(whole) == lines(killed)
    ours, theirs = outcome(whole), outcome(killed)
    assert ours.keys() == {"student", "ema", "auxiliary", "ema_auxiliary", "exported"}
    assert ours["auxiliary"].keys() == {"projection.weight", "projection.bias"}
    for name, network in ours.items():
        assert network.keys() == theirs[name].keys()
        assert all(torch.equal(x, theirs[name][key]) for key, x in network.items()), name
    train, (*_, last) = (
        [x for x in lines(whole) if x["kind"] == kind] for kind in ("train", "eval")
    )
    assert all(x["loss"] == pytest.approx(x["features"] + x["divergence"]) for x in train)
    assert {"agreement1", "feature_agreement", "feature_cosine"} <= last.keys()
    exported = timm.create_model(f"local-dir:{whole}/student", pretrained=True)
    assert exported.state_dict().keys() == ours["exported"].keys()  # nothing of the projection


def test_two_processes_agree_with_one(colours, backbone_file, tmp_path):
    changes = {
        **ALONE, "teacher.args.img_size": 32, "student.arch": "test_convnext", "steps": 5,
        "batch_size": 16, "schedule.lr": 0.1,
    }  # fmt: skip
    one, two = (words(colours, backbone_file, tmp_path / x, **changes) for x in ("one", "two"))
    assert main(["distill", *one]) == 0
    started = sabotage.ranks(["distill", *two], tmp_path / "said")
    assert [process.end() for process in started] == [0, 0], started[0].words
    first, second = (lines(tmp_path / x) for x in ("one", "two"))
    ours, theirs = ([x["loss"] for x in y if x["kind"] == "train"] for y in (first, second))
    assert len(ours) == 5 and theirs == pytest.approx(ours, rel=1e-3)
    keys = ("feature_cosine", "feature_agreement", "feature_sameness_student")
    for key in keys:
        assert second[-1][key] == pytest.approx(first[-1][key], rel=1e-3, abs=1e-4)
    for name in ("student", "auxiliary"):
        a, b = (
            load_file(tmp_path / x / f"checkpoints/step-00000005/{name}.safetensors")
            for x in ("one", "two")
        )
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4)


def test_a_backbone_teaches_its_features_alone(alone, colours, backbone_file, tmp_path, capsys):
    found = lines(alone)
    assert all(x["loss"] == x["features"] for x in found if x["kind"] == "train")
    last = [x for x in found if x["kind"] == "eval"][-1]
    assert "feature agreement" in last["verdict"] and {"knn", "linear"} <= last.keys()
    assert not {"agreement1", "top1", "divergence"} & last.keys()
    facts = json.loads((alone / "run.json").read_text())
    assert facts["exported"]["metric"] == "feature_agreement"
    student = open_network("model", arch=None, checkpoint=str(alone))
    assert student.num_classes == 0
    again = timm.create_model(f"local-dir:{alone}/student", pretrained=True)
    assert again.num_classes == 0
    assert "feature agreement with the teacher" in (alone / "report.html").read_text()
    refused = words(colours, backbone_file, tmp_path / "run", **{**ALONE, "loss.weight": 1})
    assert main(["distill", *refused, "--teacher.args.img_size=32"]) == 2
    assert "teacher has no classifier" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_comes_after_features_alone(alone, tmp_path, capsys):
    """A second stage goes on with the projection; labels make a classifier; a release says so."""
    stage = ["--run", str(alone), "--log_every_steps=1", "--probe.every_epochs=0"]
    second = tmp_path / "second"
    frozen = ["--steps=1", "--schedule.lr=1e-20", "--ema.decay=0"]
    assert main(["finetune", *stage, *frozen, "--out", str(second)]) == 0
    step = json.loads((alone / "run.json").read_text())["exported"]["step"]
    kept, taken = (
        load_file(path)
        for path in (
            alone / f"checkpoints/step-{step:08d}/ema_auxiliary.safetensors",
            second / "checkpoints/step-00000001/auxiliary.safetensors",
        )
    )
    assert all(torch.equal(kept[name], taken[name]) for name in kept)
    labeled = tmp_path / "labeled"
    words = ["--targets=human", "--steps=1", "--out", str(labeled)]
    assert main(["finetune", *stage, *words]) == 0
    assert yaml.safe_load((labeled / "config.yaml").read_text())["student"]["num_classes"] == 3
    assert main(["fix", *stage, "--steps=1", "--out", str(tmp_path / "fix")]) == 2
    assert "learned features alone" in capsys.readouterr().err
    release = tmp_path / "release"
    assert main(["zoo", "publish", str(alone), "--to", str(release)]) == 0
    card = (release / "README.md").read_text()
    assert "image-feature-extraction" in card and "without a classifier" in card
    assert "| feature agreement with the teacher |" in card


def test_a_plan_measures_it(colours, backbone_file, tmp_path, capsys):
    given = words(colours, backbone_file, tmp_path / "run", **ALONE)
    given += ["--teacher.args.img_size=32", "--seconds=0.05", f"--json={tmp_path / 'plan.json'}"]
    assert main(["plan", *given]) == 0
    said = capsys.readouterr().out
    assert "test_vit: features, as it has no classifier; not verified" in said
    assert "online" in said and "stored labels" not in said
    result = json.loads((tmp_path / "plan.json").read_text())
    assert result["rates"]["together"] > 0 and result["problems"] == []
