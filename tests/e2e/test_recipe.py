"""`ssld recipe`: three stages in one command, whatever happens to it."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pictures
import pytest
import sabotage
import torch
import yaml
from case import lines
from filelock import FileLock
from matplotlib.figure import Figure
from sabotage import kill_after, sigkill
from safetensors.torch import load_file
from stages import first_stage

from ssld.__main__ import main
from ssld.common.settings import plain
from ssld.common.settings_file import read_settings
from ssld.recipe.recipe import open_recipe

STAGES = ("distill", "finetune", "fix")


@pytest.fixture
def recipe(colours, teacher_file, tmp_path):
    """Writes a recipe of a few seconds; returns its file."""

    def write(**sections: Any) -> Path:
        tree = {
            "out": str(tmp_path / "out"),
            "distill": {**first_stage(colours, teacher_file), "trackers": [], "ema.decay": 0.9},
            "finetune": {"steps": 6},
            "fix": {"steps": 4, "schedule": {"lr": 1.0}, "resolutions": [24, 32]},
            **sections,
        }
        file = tmp_path / "F.yaml"
        file.write_text(yaml.safe_dump({k: v for k, v in tree.items() if v != "absent"},
                                       sort_keys=False))  # fmt: skip
        return file

    return write


def outcome(out: Path) -> dict[str, Any]:
    """All that must not depend on what happened on the way."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        found[f"{stage} weights"] = load_file(out / stage / "student/model.safetensors")
        found[f"{stage} config"] = json.loads((out / stage / "student/config.json").read_text())
        found[f"{stage} lines"] = lines(out / stage)
        found[f"{stage} settings"] = (out / stage / "config.yaml").read_text()
    found["resolutions"] = json.loads((out / "fix/resolutions.json").read_text())
    return found


def assert_same(a: dict[str, Any], b: dict[str, Any], out_a: Path, out_b: Path) -> None:
    for key in a:
        if key.endswith("weights"):
            assert all(torch.equal(a[key][name], b[key][name]) for name in b[key]), key
        elif key.endswith("settings"):
            assert _placeless(a[key], out_a, out_b) == _placeless(b[key], out_a, out_b), key
        else:
            assert a[key] == b[key], key


def _placeless(text: str, *places: Path) -> str:
    for place in places:
        text = text.replace(str(place), "")
    return text


def test_three_stages_then_nothing_left_to_do(recipe, tmp_path, capsys, monkeypatch) -> None:
    # The plots of the recipe and of the fix are drawn; those of a training are by other tests.
    monkeypatch.setattr(Figure, "savefig", pictures.SAVEFIG)
    file, out = recipe(), tmp_path / "out"
    assert main(["recipe", str(file)]) == 0
    said = capsys.readouterr().out
    assert [f"{stage}: from the start" in said for stage in STAGES] == [True] * 3
    assert said.count("from the start") == 3
    runs = [yaml.safe_load((out / stage / "config.yaml").read_text()) for stage in STAGES]
    assert [run.get("run") for run in runs[1:]] == [str(out / "distill"), str(out / "finetune")]
    rates = [run["schedule"]["lr"] for run in runs]
    assert rates == [1.0, pytest.approx(0.01), 1.0]
    page = (out / "report.html").read_text()
    for stage in STAGES:
        assert f'<a href="{stage}/report.html">' in page
    best = json.loads((out / "fix/resolutions.json").read_text())
    row = next(x for x in best[best["classifier"]] if x["size"] == best["chosen"])
    assert f"{row['top1']:.1%}" in page and f"Exported for {best['chosen']} px" in page
    before = outcome(out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/student/*")}
    assert main(["recipe", str(file)]) == 0
    assert capsys.readouterr().out.count("complete and unchanged, skipped") == 3
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("*/student/*")}
    assert_same(outcome(out), before, out, out)


def test_sigkill_at_random_moments_of_all_stages(recipe, tmp_path, undisturbed) -> None:
    whole, whole_out, seconds = undisturbed
    file, cut, said = recipe(), tmp_path / "cut", tmp_path / "said.txt"
    draw, kills = random.Random(3), 0
    for _ in range(60):
        early = kills < 2  # so that two starts are not enough, however fast the machine is now
        moment = draw.uniform(*((0.05, 0.2) if early else (0.25, 0.75))) * seconds
        harm = [partial(kill_after, "ssld.recipe.command:recipe", moment)]
        code, words = sabotage.run(["recipe", str(file), f"--out={cut}"], said, harm)
        if code == 0:
            break
        assert code == -signal.SIGKILL, words
        kills += 1
    assert code == 0 and kills >= 2
    assert_same(outcome(cut), whole, cut, whole_out)


@pytest.mark.parametrize(
    "instant",
    [
        ("ssld.distill.fixres:sweep", 2),  # the fix is trained, its sizes are not evaluated
        ("ssld.distill.task:export", 1),  # they are, but the best is not exported
        ("ssld.recipe.stage_folder:StagePlace.note", 2),  # a stage is done, the next is not noted
    ],
)
def test_sigkill_at_chosen_instants(recipe, tmp_path, instant, undisturbed) -> None:
    file, out, said = recipe(), tmp_path / "out", tmp_path / "said.txt"
    harm = [partial(sabotage.at_call, *instant, sigkill)]
    assert sabotage.run(["recipe", str(file)], said, harm)[0] == -signal.SIGKILL
    code, words = sabotage.run(["recipe", str(file)], said)
    assert code == 0, words
    assert_same(outcome(out), undisturbed[0], out, undisturbed[1])


@pytest.fixture(scope="module")
def undisturbed(colours, teacher_file, tmp_path_factory) -> tuple[dict[str, Any], Path, float]:
    """What comes of a recipe, its folder, and how many seconds it worked."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write, begun = recipe.__wrapped__(colours, teacher_file, folder), folder / "begun"
    note = partial(sabotage.at_call, "ssld.recipe.command:recipe", 1, begun.touch)
    code, words = sabotage.run(["recipe", str(write())], folder / "said.txt", [note])
    seconds = time.time() - begun.stat().st_mtime
    assert code == 0, words
    return outcome(folder / "out"), folder / "out", seconds


def test_two_processes_run_all_stages(recipe, tmp_path) -> None:
    file, out = recipe(), tmp_path / "out"
    started = sabotage.ranks(["recipe", str(file)], tmp_path / "said.txt")
    assert [process.end() for process in started] == [0, 0], started[0].words + started[1].words
    assert started[0].words.count("from the start in") == 3
    for stage in STAGES:
        assert json.loads((out / stage / "run.json").read_text())["processes"] == 2
    again = sabotage.ranks(["recipe", str(file)], tmp_path / "said.txt")
    assert [process.end() for process in again] == [0, 0]
    assert again[0].words.count("complete and unchanged, skipped") == 3


def test_sigterm_stops_with_75_and_the_same_command_goes_on(recipe, tmp_path, undisturbed) -> None:
    file, out, said = recipe(), tmp_path / "out", tmp_path / "said.txt"
    stop = partial(sabotage.signal_group, signal.SIGTERM)
    harm = [partial(sabotage.at_step, 5, stop)]
    code, words = sabotage.run(["recipe", str(file)], said, harm)
    assert code == 75 and "the same command goes on" in words and "--resume" not in words
    # Now in what follows from the last evaluation, when no line is due any more.
    harm = [partial(sabotage.at_call, "ssld.distill.distill:Distillation.verdict", 2, stop)]
    code, words = sabotage.run(["recipe", str(file)], said, harm)
    assert code == 75 and "the same command goes on" in words.splitlines()[-1]
    assert not (out / "finetune").exists()
    assert sabotage.run(["recipe", str(file)], said)[0] == 0
    assert_same(outcome(out), undisturbed[0], out, undisturbed[1])


def test_a_changed_stage_is_refused_then_redone_with_what_follows(
    done, recipe, tmp_path, capsys
) -> None:
    out = done[1]
    before = outcome(out)
    changed = str(recipe(finetune={"steps": 6, "schedule": {"lr": 0.5}}))
    capsys.readouterr()
    assert main(["recipe", changed]) == 2
    error = capsys.readouterr().err
    assert "finetune was made with other settings: schedule.lr was 0.01 and is 0.5" in error
    assert "--overwrite" in error and error.count("\n") == 1
    assert_same(outcome(out), before, out, out)  # nothing was touched
    harm = [partial(sabotage.at_call, "ssld.recipe.stage_folder:StagePlace.note", 1, sigkill)]
    killed = sabotage.run(["recipe", changed, "--overwrite"], tmp_path / "said.txt", harm)
    assert killed[0] == -signal.SIGKILL  # nothing old may pass for the new
    assert main(["recipe", changed, "--overwrite"]) == 0
    said = capsys.readouterr().out
    assert "distill: complete and unchanged" in said
    assert "finetune: anew" in said and "fix: anew" in said
    assert not list(out.glob(".*.old-*"))
    after = outcome(out)
    same = all(torch.equal(after["distill weights"][k], v)
               for k, v in before["distill weights"].items())  # fmt: skip
    assert same and after["finetune lines"] != before["finetune lines"]


@pytest.fixture
def done(recipe, undisturbed, tmp_path) -> tuple[Path, Path]:
    """A recipe's file, and its finished folder, which was made elsewhere and moved here."""
    shutil.copytree(undisturbed[1], tmp_path / "out")
    return recipe(), tmp_path / "out"


def all_skipped(file: Path, capsys) -> None:
    capsys.readouterr()
    assert main(["recipe", str(file)]) == 0
    assert capsys.readouterr().out.count("complete and unchanged, skipped") == 3


def test_a_folder_that_was_moved_is_still_complete(done, capsys, monkeypatch) -> None:
    file, out = done
    all_skipped(file, capsys)
    monkeypatch.chdir(out.parent)
    assert main(["recipe", str(file), "--out", "out"]) == 0
    assert capsys.readouterr().out.count("complete and unchanged, skipped") == 3


def test_overwriting_with_bad_settings_loses_nothing(done, tmp_path, capsys) -> None:
    file, out = done
    (tmp_path / "empty").mkdir()
    before = outcome(out)
    for changes in ("--data.labeled=nowhere", f"--data.labeled={tmp_path / 'empty'}"):
        assert main(["recipe", str(file), "--overwrite", changes]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert_same(outcome(out), before, out, out)
    all_skipped(file, capsys)


def test_killed_before_the_new_one_begins_the_old_one_is_still_there(done, capsys) -> None:
    file, out = done
    harm = [partial(sabotage.at_call, "ssld.engine.run_folder:RunFolder.open", 1, sigkill)]
    words = ["recipe", str(file), "--overwrite", "--schedule.lr=0.5"]
    assert sabotage.run(words, out.parent / "said.txt", harm)[0] == -signal.SIGKILL
    assert not (out / "distill").exists()
    all_skipped(file, capsys)


def test_a_redo_that_was_killed_is_not_lost_to_a_typo_nor_the_old_one_to_the_redo(
    done, tmp_path, capsys
) -> None:
    file, out = done
    before = outcome(out)
    redo = ["recipe", str(file), "--overwrite", "--schedule.lr=0.5"]
    harm = [partial(sabotage.at_step, 9, sigkill)]
    assert sabotage.run(redo, tmp_path / "said.txt", harm)[0] == -signal.SIGKILL
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "no image.txt").touch()
    assert main([*redo, f"--data.unlabeled={tmp_path / 'broken'}"]) == 2
    half = yaml.safe_load((out / "distill/config.yaml").read_text())
    assert half["schedule"]["lr"] == 0.5 and list((out / "distill/checkpoints").iterdir())
    assert main(["recipe", str(file)]) == 2
    assert "schedule.lr was 0.5 and is 1.0" in capsys.readouterr().err
    assert main(["recipe", str(file), "--overwrite"]) == 0  # back to what was there
    assert capsys.readouterr().out.count("complete and unchanged, skipped") == 3
    assert_same(outcome(out), before, out, out)


def test_without_recipe_json_the_runs_say_what_they_are(done, capsys) -> None:
    file, out = done
    (out / "recipe.json").unlink()
    all_skipped(file, capsys)
    assert main(["recipe", str(file), "--schedule.lr=0.5"]) == 2
    assert "schedule.lr was 1.0 and is 0.5" in capsys.readouterr().err


def test_killed_between_the_first_two_files_of_a_run(done, undisturbed) -> None:
    file, out = done
    shutil.rmtree(out / "fix")
    (out / "fix").mkdir()
    shutil.copy(undisturbed[1] / "fix/config.yaml", out / "fix")
    assert main(["recipe", str(file)]) == 0
    assert_same(outcome(out), undisturbed[0], out, undisturbed[1])


@pytest.mark.parametrize("harm", ["gone", "short"])
def test_a_damaged_student_is_made_again_from_its_checkpoint(
    done, undisturbed, capsys, harm
) -> None:
    file, out = done
    weights = out / "distill/student/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    if harm == "gone":
        shutil.rmtree(weights.parent)
    assert main(["recipe", str(file)]) == 0
    said = capsys.readouterr().out
    assert "distill: going on" in said and said.count("complete and unchanged") == 2
    assert_same(outcome(out), undisturbed[0], out, undisturbed[1])


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("recipe.json", "recipe.json is damaged"),
        ("finetune/run.json", "run.json is damaged"),
        ("distill/config.yaml", "is not a run folder (no config.yaml): move it away"),
    ],
)
def test_damaged_files_are_one_sentence(done, capsys, file, said) -> None:
    path = done[1] / file
    for content in ("{", '{"distill": 3}') if file == "recipe.json" else ("{",):
        path.unlink() if path.suffix == ".yaml" else path.write_text(content)
        assert main(["recipe", str(done[0])]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error


def test_one_command_at_a_time(done, capsys) -> None:
    file, out = done
    with FileLock(out / ".lock"):
        assert main(["recipe", str(file)]) == 2
    assert "another command is at work there" in capsys.readouterr().err
    with FileLock(out / "distill/.lock"):
        words = ["distill", f"--config={out / 'distill/config.yaml'}", f"--out={out / 'distill'}"]
        assert main([*words, "--resume"]) == 2
    assert "another command is at work there" in capsys.readouterr().err
    all_skipped(file, capsys)


def test_overrides_reach_the_stage_that_they_name(recipe, tmp_path, capsys) -> None:
    words = ["--schedule.lr=0.5", "--finetune.targets", "human", "--out", str(tmp_path / "there")]
    assert main(["recipe", str(recipe(fix="absent")), *words]) == 0
    runs = [yaml.safe_load((tmp_path / "there" / stage / "config.yaml").read_text())
            for stage in ("distill", "finetune")]  # fmt: skip
    assert [run["schedule"]["lr"] for run in runs] == [0.5, pytest.approx(0.005)]
    assert runs[1]["targets"] == "human" and "targets" not in runs[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sections", "words", "said"),
    [
        ({"grid": {"seed": [1]}}, [], "it is for `ssld ablate`"),
        (
            {"finetune": {"data": {"labeled": "no/where"}}},
            [],
            "finetune: data.labeled: no/where: no",
        ),
        ({"polish": {}}, [], "'polish' is no stage"),
        ({"distill": "absent"}, [], "the stages are finetune, fix; give distill"),
        ({"out": "absent"}, [], "out is missing"),
        ({"finetune": 3}, [], "finetune is 3; give `name: value` lines"),
        ({"finetune": {"run": "x"}}, [], "finetune: run is the recipe's to decide"),
        ({"finetune": {"epoch": 3}}, [], "finetune: unknown setting 'epoch'; did you mean"),
        ({"fix": {"train": "all"}}, [], "fix: train is 'all'"),
        ({"fix": "absent"}, ["--fix.steps=1"], "the recipe has no stage fix"),
        ({}, ["--finetune.schedule.lr=-1"], "error: --finetune.schedule.lr: schedule.lr is -1"),
        ({"finetune": {"epoch": 3}}, ["--seed=3"], "F.yaml, finetune: unknown setting 'epoch'"),
    ],
)
def test_bad_recipes_are_refused_before_the_first_stage(
    recipe, tmp_path, capsys, sections, words, said
) -> None:
    assert main(["recipe", str(recipe(**sections)), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_plan_takes_a_recipe(recipe, tmp_path, capsys) -> None:
    assert main(["plan", str(recipe()), "--seconds=0.1", f"--json={tmp_path / 'plan.json'}"]) in (
        0,
        1,
    )
    assert "12 steps of 8" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(["plan", str(recipe(distill="absent"))]) == 2
    assert "has no section distill" in capsys.readouterr().err


def test_numbers_as_people_write_them(recipe, tmp_path) -> None:
    file = recipe()
    file.write_text(file.read_text().replace("finetune:\n", "finetune:\n  schedule: {lr: 1e-5}\n"))
    tree = read_settings(file)
    found = open_recipe(str(file), tree, None, [])
    first = found.config("distill", None, False)
    assert found.config("finetune", plain(first), True).schedule.lr == 1e-5


def test_no_recipe_is_one_sentence(capsys, tmp_path) -> None:
    assert main(["recipe"]) == 2
    assert "ssld recipe F.yaml" in capsys.readouterr().err
    assert main(["recipe", str(tmp_path / "none.yaml")]) == 2
    assert re.search("none.yaml'?: no such file", capsys.readouterr().err)
