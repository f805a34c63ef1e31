"""`ssld plan detection | segmentation | transfer`: what they say, accuse, and leave alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scenes import boxes, make_scenes

from downstream.dense.memory import held_bytes
from downstream.detection import command as detection
from downstream.detection.config import DetectionConfig
from downstream.plan import plan
from ssld.cli.parse import parse
from ssld.cli.run import main

COMMON = [
    "--steps=40", "--batch_size=8", "--seconds=0.05", "--data.workers=0", "--trackers=[]",
    "--backbone.name=test_resnet", "--backbone.pretrained=false",
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
    # Once an epoch, which is less than a step of the scenes: at every tenth step, where a line is.
    assert schedule["evaluations"] == 4
    training = 40 * 8 / rates["together"] / 3600
    judged = schedule["evaluations"] * expected[1] + schedule["probed_images"]
    assert schedule["probed_images"] == (2 * (36 + 24) if task == "transfer" else 0)
    evaluations = judged / rates["evaluation"] / 3600
    assert hours["all"] == pytest.approx(training + evaluations)
    assert result["problems"] == [] and "none found" in said
    assert result["memory"]["largest_batch"] is None or result["memory"]["largest_batch"] >= 8
    assert "40 steps of 8" in said and "largest batch_size that fits" in said


@pytest.fixture
def room(monkeypatch):
    """As much memory as so many images' forward passes keep."""

    def leave(images: float) -> None:
        seen: list[int] = []

        def held(*given) -> int:
            seen.append(held_bytes(*given))
            return seen[-1]

        monkeypatch.setattr(plan, "held_bytes", held)
        monkeypatch.setattr(plan, "free_bytes", lambda: int(images * seen[-1]))

    return leave


def test_what_would_be_killed_is_said_before_a_step(scenes, colours, tmp_path, capsys, room):
    out = tmp_path / "run"
    given = words("detection", scenes, colours, out)
    room(1)
    assert main(given) == 1
    said, result = capsys.readouterr().out, json.loads(Path(f"{out}.json").read_text())
    assert result["rates"] == {} and "hours" not in result and "time      not known" in said
    assert "batch_size is 8 but a step on a few does not fit into memory" in said
    assert "lower it or augment's sizes, or raise accumulate" in said
    room(4)  # of which a fifth stays free, and a step takes 1.3 times as much: two images
    assert main(given) == 1
    said, result = capsys.readouterr().out, json.loads(Path(f"{out}.json").read_text())
    (problem,) = result["problems"]
    assert problem.startswith("batch_size is 8 but about 2 is the most that fits into memory")
    assert "about 2 (projected from the" in said and "derived from steps of 2" in said
    assert result["hours"]["all"] > 0


def test_a_batch_of_two_large_images_is_not_accused(scenes, colours, tmp_path, capsys, room):
    """There is no room to try four; and a rate of the polynomial ends with the run."""
    out = tmp_path / "run"
    given = [*words("segmentation", scenes, colours, out), "--batch_size=2", "--steps=2"]
    room(4)
    assert main([*given, "--schedule.decay=poly"]) == 0
    result = json.loads(Path(f"{out}.json").read_text())
    assert result["memory"]["largest_batch"] == 2 and result["memory"]["measured_batch"] == 2
    assert result["schedule"]["evaluations"] == 1 and result["rates"]["together"] > 0


def test_memory_is_looked_at_with_the_largest_views(scenes, colours, tmp_path, monkeypatch):
    given = words("detection", scenes, colours, tmp_path / "run")[2:-1]
    given[given.index("--augment.sizes=[64]")] = "--augment.sizes=[32, 64]"
    given.remove("--seconds=0.05")
    run, task, model = detection.opened(parse("ssld detection", DetectionConfig, given))
    steps, sides = plan.Steps(run, task, model), []
    monkeypatch.setattr(steps, "step", lambda batches: sides.append(next(batches).images.shape[1]))
    usual = steps.batches(2)
    for _ in range(8):
        steps.step(usual)
    assert set(sides) == {32, 64}
    sides.clear()
    for _ in range(4):
        steps.try_step(2)
    assert set(sides) == {64}


@pytest.mark.parametrize(("bad", "of", "accused"), [(1, 4, False), (30, 200, True), (9, 9, True)])
def test_one_unreadable_image_among_a_few_says_nothing(bad, of, accused):
    config: Any = SimpleNamespace(
        batch_size=8, data=SimpleNamespace(max_unreadable=0.1), patience=None
    )
    result = {
        "memory": {"largest_batch": None},
        "disk": {"needed_mib": 1, "free_mib": 2},
        "unreadable": {"count": bad, "looked_at": of, "examples": ["a.jpg (cut off)"]},
    }
    problems = list(plan._of_measurements(result, config))
    assert bool(problems) == accused
    assert not accused or f"{bad} of {of} images looked at" in problems[0]


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


@pytest.mark.parametrize(("given", "said"), [
    (["configs/detection/retinanet.yaml"], "detection --config configs/detection/retinanet.yaml"),
    (["--config", "configs/segmentation/ocrnet.yaml"], "segmentation --config configs/segm"),
    (["configs/transfer/fixed.yaml"], "transfer configs/transfer/fixed.yaml"),
])  # fmt: skip
def test_a_file_of_another_task_is_told_how_it_is_planned(given, said, capsys):
    assert main(["plan", *given, "--out=x"]) == 2
    assert f"ssld plan {said}" in capsys.readouterr().err


def test_a_recipe_of_a_transfer_is_taken_as_its_command_takes_it(tmp_path, capsys):
    words = ["configs/transfer/fixed.yaml", f"--data.root={tmp_path}", "--backbone=test_resnet"]
    assert main(["plan", "transfer", *words, "--out=x"]) == 2
    assert f"data.root {tmp_path} has neither dtd/dtd" in capsys.readouterr().err
