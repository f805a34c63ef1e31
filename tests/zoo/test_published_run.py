"""A run, published and pulled, is the same network to the last bit: what a distillation ends in."""

from __future__ import annotations

import json
from pathlib import Path

import pictures
import pytest
import short_runs
import timm
import torch

from ssld.__main__ import main

REPO = "org/colours"


def distill(out: Path, colours: Path, teacher: Path, **changes: object) -> Path:
    with pictures.left_out():
        assert main(["distill", *short_runs.words(colours, teacher, out, **changes)]) == 0
    return out


@pytest.fixture(scope="module")
def run(colours, teacher_file, tmp_path_factory) -> Path:
    """A short distillation of a student that is plain timm."""
    student = {"student.arch": "test_resnet", "data.labeled": colours / "train"}
    out = tmp_path_factory.mktemp("run") / "colours"
    return distill(out, colours, teacher_file, steps=12, batch_size=8, log_every_steps=2, **student)


def logits(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        return model.eval()(torch.randn(4, 3, 32, 32, generator=generator))


def test_distilled_published_pulled_and_loaded_it_answers_the_same(
    hub, token, run, tmp_path, capsys
):
    student = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True)
    words = ["zoo", "publish", str(run), "--repo", REPO]
    assert main([*words, "--dry_run"]) == 0 and hub.repos == {}
    assert main(words) == 0
    capsys.readouterr()
    assert main(words) == 0
    assert "nothing to do" in capsys.readouterr().out

    pulled = tmp_path / "pulled"
    assert main(["zoo", "pull", f"{REPO}@main", "--out", str(pulled)]) == 0
    assert main(["zoo", "verify", str(pulled)]) == 0
    again = timm.create_model(f"local-dir:{pulled}", pretrained=True)
    assert torch.equal(logits(again), logits(student))

    fetched = timm.create_model(f"hf-hub:{REPO}", pretrained=True)
    assert torch.equal(logits(fetched), logits(student))


def test_the_release_says_what_the_run_was(run, tmp_path):
    assert main(["zoo", "publish", str(run), "--to", str(tmp_path / "release")]) == 0
    facts = json.loads((tmp_path / "release/ssld.json").read_text())
    told = json.loads((run / "run.json").read_text())
    assert facts["recipe"]["steps"] == 12 and facts["recipe"]["student"]["arch"] == "test_resnet"
    assert facts["teacher"]["sha256"] == told["teacher_sha256"]
    assert facts["data"]["sha256"] == told["data_sha256"]
    assert facts["versions"]["timm"] == timm.__version__
    assert {"top1", "agreement1"} <= {metric["name"] for metric in facts["metrics"]}
    assert all(metric["command"].startswith("ssld ") for metric in facts["metrics"])


def test_a_folder_takes_a_release_over_an_earlier_one_and_nothing_else(run, tmp_path, capsys):
    to = tmp_path / "release"
    words = ["zoo", "publish", str(run), "--to", str(to)]
    assert main(words) == 0
    before = {path.name: path.read_bytes() for path in to.iterdir() if path.is_file()}
    renamed = [*words, "--name", "other"]
    assert main([*renamed, "--dry_run"]) == 0
    assert {path.name: path.read_bytes() for path in to.iterdir() if path.is_file()} == before
    assert main(renamed) == 0 and "# other" in (to / "README.md").read_text()
    (to / "mine.txt").write_text("not of the release")
    capsys.readouterr()
    assert main(words) == 2 and "mine.txt" in capsys.readouterr().err
    assert "# other" in (to / "README.md").read_text()


def test_publishing_killed_between_its_renames_loses_nothing(run, tmp_path, monkeypatch):
    to, rename = tmp_path / "release", Path.rename
    words = ["zoo", "publish", str(run), "--to", str(to)]
    assert main(words) == 0

    class Killed(BaseException):
        pass

    def killed(path: Path, target: Path) -> Path:
        if Path(target).name == "release":
            raise Killed
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(Killed):
        main([*words, "--name", "other"])
    monkeypatch.undo()
    assert not to.exists()
    assert main(words) == 0 and [path.name for path in tmp_path.iterdir()] == ["release"]
    assert main(["zoo", "verify", str(to)]) == 0


def test_a_students_architecture_may_be_one_of_the_zoo(colours, teacher_file, tmp_path):
    """Trained, exported, published: plain timm loads it where the architecture is plain."""
    student = {"student.arch": "lcnet_050_ssld"}
    distill(tmp_path / "run", colours, teacher_file, steps=2, **student)
    config = json.loads((tmp_path / "run/student/config.json").read_text())
    assert config["architecture"] == "lcnet_050" and config["num_classes"] == 3
