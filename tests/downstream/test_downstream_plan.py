"""`ssld plan detection | segmentation | transfer`: what they say, accuse, and leave alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scenes import boxes, make_scenes

from downstream.dense.memory import held_bytes
from downstream.plan import plan
from ssld.cli.run import main

COMMON = [
    "--steps=40", "--batch_size=8", "--seconds=0.05", "--data.workers=0", "--trackers=[]",
    "--backbone=test_resnet", "--backbone.pretrained=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes"))


def words(task: str, root: Path, colours: Path, out: Path) -> list[str]:
    own = {
        "detection": [
            f"--data.train={boxes(root, 'train')}", f"--data.val={boxes(root, 'val')}",
            "--detector.name=ttfnet", "--augment.resize=square", "--augment.sizes=[64]",
            "--augment.longest=null", "--augment.test_size=64",
        ],
        "segmentation": [
            f"--data.train={root}::train", f"--data.val={root}::val", "--augment.crop=[48, 64]",
        ],
        "transfer": [
            f"--data.labeled={colours / 'train'}", f"--data.val={colours / 'val'}",
            "--augment.size=32",
        ],
    }  # fmt: skip
    return ["plan", task, *COMMON, *own[task], f"--out={out}", f"--json={out}.json"]


@pytest.mark.parametrize("task", ["detection", "segmentation", "transfer"])
def test_an_innocent_run_is_measured_and_nothing_is_written(
    task, scenes, colours, tmp_path, capsys
):
    out = tmp_path / "run"
    assert main(words(task, scenes, colours, out)) == 0
    said, result = capsys.readouterr().out, json.loads(Path(f"{out}.json").read_text())
    assert not out.exists()
    schedule, rates, hours = (result[key] for key in ("schedule", "rates", "hours"))
    assert (schedule["steps"], schedule["batch_size"]) == (40, 8)
    expected = {"detection": (6, 5), "segmentation": (6, 5), "transfer": (36, 24)}[task]
    assert (schedule["images"], schedule["held_out_images"]) == expected
    training = 40 * 8 / rates["together"] / 3600
    evaluations = schedule["evaluations"] * expected[1] / rates["evaluation"] / 3600
    assert hours["all"] == pytest.approx(training + evaluations)
    assert result["problems"] == [] and "none found" in said
    assert result["memory"]["largest_batch"] is None or result["memory"]["largest_batch"] >= 8
    assert "40 steps of 8" in said and "largest batch_size that fits" in said


def test_what_would_be_killed_is_said_before_a_step(scenes, colours, tmp_path, capsys, monkeypatch):
    out, seen = tmp_path / "run", []

    def held(*given) -> int:
        seen.append(held_bytes(*given))
        return seen[-1]

    monkeypatch.setattr(plan, "held_bytes", held)
    monkeypatch.setattr(plan, "free_bytes", lambda: 4 * seen[0])
    given = words("detection", scenes, colours, out)
    assert main(given) == 1
    said, result = capsys.readouterr().out, json.loads(Path(f"{out}.json").read_text())
    assert result["rates"] == {} and "hours" not in result
    assert "batch_size is 8 but a step on a few does not fit into memory" in said
    assert (
        "lower it or augment's sizes, or raise accumulate" in said and "time      not known" in said
    )
    monkeypatch.setattr(plan, "largest_batch", lambda *_, **__: {
        "largest_batch": 5, "how": "derived, 3.00 MiB an image", "image_mib": 3.0})  # fmt: skip
    monkeypatch.setattr(plan, "free_bytes", lambda: 400 * seen[0])
    assert main(given) == 1
    result = json.loads(Path(f"{out}.json").read_text())
    (problem,) = result["problems"]
    assert problem.startswith("batch_size is 8 but about 5 is the most that fits into memory")
    assert result["memory"]["measured_batch"] == 4 and result["hours"]["all"] > 0


def test_a_used_folder_and_a_word_that_is_no_task(scenes, colours, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert main(words("segmentation", scenes, colours, out)) == 1
    assert str(out) in capsys.readouterr().out and [x.name for x in out.iterdir()] == ["thesis.txt"]
    assert main(["plan", "detecton", "--out=x"]) == 2
    assert "did you mean 'detection'?" in capsys.readouterr().err
    assert main(["plan", "nowhere.yaml", "--out=x"]) == 2
    assert "nowhere.yaml: no such file" in capsys.readouterr().err
