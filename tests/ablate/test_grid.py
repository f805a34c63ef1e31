"""The file of an ablation: its trials, their names, bad input."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from ablation_bench import GRID, STAGE, Bench, trials

from ssld.ablate import grid


def test_every_combination_in_the_order_of_the_file(bench):
    teachers = {"r50": {"teacher.checkpoint": "a"}, "r101": {"teacher": {"checkpoint": "b"}}}
    lists = {"loss.temperature": [1, 4.0], "finetune.targets": ["teacher", "human"]}
    bench.write({**lists, "teacher": teachers, "seed": [3]}, finetune={"epochs": 2})
    found = trials(bench)
    names = ["loss.temperature", "finetune.targets", "teacher", "seed"]
    values = itertools.product("14", ["teacher", "human"], ["r50", "r101"], "3")
    expected = [
        ",".join(f"{name}={x}" for name, x in zip(names, place, strict=True)) for place in values
    ]
    assert [trial.name for trial in found] == expected
    last = found[-1].recipe
    assert last["distill"]["loss"] == {"temperature": 4.0} and last["distill"]["seed"] == 3
    assert last["distill"]["teacher"] == {"checkpoint": "b"}
    assert last["distill"]["student"] == {"arch": "test_resnet"}
    assert last["finetune"] == {"epochs": 2, "targets": "human"}


def test_names_are_safe_distinct_and_stay_when_the_grid_grows(bench):
    awkward = ["a/b", "a b", "a-b", "é", "..", "x" * 300, [0.5, 0.5], [1], [], True, None, "1e-5"]
    axes = {"student.args": [{"a": 1}, {"a": 2}], "data.fractions": awkward}
    bench.write(axes)
    names = [trial.name for trial in trials(bench)]
    assert len(set(names)) == len(names) == 2 * len(awkward)
    assert all(set(name) <= set(map(chr, range(33, 127))) - set("/\\*?'\"") for name in names)
    assert max(map(len, names)) < 200 and "fractions=0.5+0.5" in names[6]
    bench.write({**axes, "data.fractions": ["new", *reversed(awkward)]})
    assert set(names) < {trial.name for trial in trials(bench)}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "1e-5"),
        (0.0001, "1e-4"),
        (0.001, "0.001"),
        (30.0, "30"),
        (0.1, "0.1"),
        (2e-10, "2e-10"),
    ],
)
def test_numbers_are_shown_as_typed(value, text):
    assert grid.show(value) == text and float(text) == value


def test_lengths_replace_each_other_and_overrides_the_file(bench):
    bench.write({"epochs": [1, 2]}, finetune={"epochs": 3})
    found = trials(bench, "batch_size=16", "finetune.steps=5", "data.labeled=[a, b]")
    assert [trial.recipe["distill"]["epochs"] for trial in found] == [1, 2]
    for trial in found:
        assert "steps" not in trial.recipe["distill"] and trial.recipe["finetune"] == {"steps": 5}
        assert trial.recipe["distill"]["batch_size"] == 16
        assert trial.recipe["distill"]["data"]["labeled"] == ["a", "b"]


def test_yaml_as_people_write_it(bench):
    text = (
        "out: o\ndistill: {schedule.lr: 4e-1}\ngrid:\n  aa: {off: {}, on: {augment.flip: 1e-1}}\n"
    )
    bench.file.write_text(text + "  optimizer.weight_decay: [0, 1e-5]\n")
    found = trials(bench)
    assert [trial.name for trial in found][:2] == [
        "aa=off,optimizer.weight_decay=0",
        "aa=off,optimizer.weight_decay=1e-5",
    ]
    assert found[3].recipe["distill"]["optimizer"]["weight_decay"] == 1e-5
    assert found[3].recipe["distill"]["augment"]["flip"] == 0.1
    assert found[0].recipe["distill"]["schedule"]["lr"] == 0.4
    assert "augment" not in found[0].recipe["distill"]


def grids(**axes: Any) -> dict[str, Any]:
    return {"grid": {name.replace("__", "."): given for name, given in axes.items()}}


BAD = {
    "key": ({"gird": {}}, "'gird' is no stage; did you mean 'grid'?"),
    "first": ({"distill": None, "fix": {}, "supervised": {}}, "the stages are distill, fix"),
    "section": ({"distill": [1]}, "distill is [1]; give `name: value` lines"),
    "no grid": ({"grid": {}}, "`grid` is missing or empty"),
    "empty axis": (grids(seed=[]), "grid.seed is []"),
    "one value": (grids(seed=3), "grid.seed is 3; give a list"),
    "label": (grids(teacher={"a": "weights"}), "grid.teacher.a is weights; give"),
    "nothing": (grids(x={"a": {}, "b": None}), "grid.x sets nothing"),
    "twice": (grids(seed=[1, 1.0]), "grid.seed: 1 and 1 are the same"),
    "same": (grids(x={"a": {"seed": 1}, "b": {"seed": 1}}), "grid.x: a and b are the same"),
    "stage": (grids(finetune__epochs=[1]), "add `finetune: {}`"),
    "stage alone": (grids(distill=[1]), "name a setting of it, as in distill.epochs"),
    "both": (grids(seed=[1, 2], x={"a": {"distill.seed": 1}}), "grid.seed and grid.x both set"),
    "lengths": (grids(steps=[1], epochs=[2]), "grid.steps and grid.epochs both set"),
    "group": (grids(loss__name=["kl"], loss=[{}]), "grid.loss.name and grid.loss both set"),
    "axis twice": (grids(seed=[1], distill__seed=[2]), "both set distill.seed"),
    "out": ({"out": None}, "out is missing"),
    "setting": (grids(optimizer__decay=[1]), "unknown setting 'optimizer.decay'; did you mean"),
    "value": (grids(batch_size=[8, 0]), "batch_size is 0: give a number above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_get_one_sentence_and_nothing_is_written(checked, capsys, case):
    changes, words = BAD[case]
    tree = {"out": str(checked.out), "distill": STAGE, "grid": GRID, **changes}
    checked.file.write_text(yaml.safe_dump(tree, sort_keys=False))
    assert_refused(checked, capsys, words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--schedule.lt", "1"],
            "--schedule.lt: unknown setting 'schedule.lt'; did you mean 'schedule.lr'",
        ),
        (["--optimizer.weight_decay", "0"], "is on the grid"),
        (["--fix.epochs=1"], "add `fix: {}`"),
        (["--devices", "0"], "devices is 0"),
        (["--devices", "100000"], "CPU cores; give fewer"),
        (["--out", __file__], "is a file"),
        (["--out", str(Path(__file__).parent)], "not the folder of an ablation"),
    ],
)
def test_bad_words(checked, capsys, words, said):
    assert_refused(checked, capsys, said, *words)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("distill: {}\ngrid:\n  seed: [1]\n  seed: [2]\n", "'seed' is there twice"),
        ("grid: {x: {a: {seed: 1}, a: {seed: 2}}}\n", "'a' is there twice"),
        ("grid: [", "not valid YAML"),
        ("", "holds no settings"),
        (None, "no such file"),
    ],
)
def test_bad_yaml(bench, capsys, text, said):
    bench.file.write_text(text) if text is not None else bench.file.unlink()
    assert_refused(bench, capsys, said)


def assert_refused(bench: Bench, capsys, words: str, *more: str) -> None:
    assert bench.run(*more) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert words in said.err
    assert not bench.out.exists() and not bench.starts()
