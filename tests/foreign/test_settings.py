"""Settings as strangers write them: one sentence, or what they meant."""

from __future__ import annotations

import itertools
import os

import pytest

from ssld.__main__ import main
from ssld.ablate import grid
from ssld.ablate.config import AblateConfig
from ssld.cli.parse import parse
from ssld.cli.run import exit_code_of
from ssld.common.errors import InputError
from ssld.common.settings_file import MOST_BYTES, read_settings
from ssld.curate.config import CurateConfig
from ssld.distill.config import DistillConfig
from ssld.recipe.recipe import open_recipe

GOOD = {
    "out": "o",
    "steps": "3",
    "student": "{arch: s}",
    "data": "{labeled: d}",
    "teacher": "{arch: t}",
}


def text(**lines: str) -> str:
    return "".join(f"{key}: {value}\n" for key, value in {**GOOD, **lines}.items())


def run(capsys, content: str | bytes, *words: str, tmp_path, kind=DistillConfig):
    """Exit code, the settings that a command was given, and what was said."""
    file, given = tmp_path / "f.yaml", []
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    file.write_bytes(data)
    code = exit_code_of(lambda: given.append(parse("p", kind, ["--config", str(file), *words])))
    said = capsys.readouterr().err
    assert code == (0 if given else 2)
    if not given:
        assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < 400, said
        assert said[:-1].isprintable()
    return code, (given or [None])[0], said


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghij")
)
BAD = {
    "tag": (text(steps="!!int x"), "line 2: 'x' is not a whole number"),
    "python": (text(out="!!python/object/apply:os.system [x]"), "no tag '!!python"),
    "bytes": (text(out="!!binary aGk="), "no tag '!!binary'"),
    "key": (text() + "? [a, b]\n: 1\n", "line 6: a key is a list"),
    "deep": ("a: " + "[" * 3000 + "]" * 3000 + "\n", "nested too deeply"),
    "deep mappings": ("a: " + "{a: " * 3000 + "}" * 3000 + "\n", "nested too deeply"),
    "laughs": (LAUGHS, "more than 100,000 values"),
    "itself": (text() + "x: &x [*x]\n", "line 6: a value holds itself"),
    "merged itself": ("a: &a {<<: *a}\n", "holds itself"),
    "merged number": (text() + "<<: 3\n", "for merging"),
    "twice": (text() + "steps: 4\n", "'steps' is there twice"),
    "nul": (text() + "seed: \0\n", "not valid YAML"),
    "nul in a name": (text(out='"a\\0b"'), r"out is 'a\x00b'"),
    "colours": (text(out='"a\\e[31mb"'), r"control character '\x1b'"),
    "line break": (text(out='"a\\nb"'), r"control character '\n'"),
    "tab": ("student:\n\tarch: s\n", "indent with spaces"),
    "digits": (text(steps="1" * 5000), "is not a whole number"),
    "quoted digits": (text(steps=f"'{'1' * 5000}'"), "give a whole number"),
    "digits of a float": (text(schedule=f"{{lr: {'1' * 5000}.0}}"), "schedule.lr is inf"),
    "nan": (text(schedule="{lr: .nan}"), "schedule.lr is nan: give a finite number"),
    "inf": (text(ema="{decay: -.inf}"), "ema.decay is -inf"),
    "1e400": (text(epochs="1e400"), "epochs is inf"),
    "nan in a list": (text(teachers="[{arch: a, mean: [.nan, 0, 0]}]"), "mean is nan"),
    "beyond": (text(seed=str(2**70)), "seed is beyond 64 bits"),
    "yes": (text(steps="yes"), "steps is 'True': give a whole number"),
    "yes for a float": (text(schedule="{lr: on}"), "schedule.lr is 'True': give a number"),
    "yes in a list": (text(data="{labeled: d, fractions: [true]}"), "data.fractions is 'True'"),
    "null": (text(out="~"), "out is missing"),
    "empty name": (text(out="''"), "out is empty"),
    "value for a group": (text(teacher="5"), "teacher is '5': give `name: value`"),
    "long value": (text(precision="x" * 5000), "['fp32', 'bf16', 'fp16']"),
    "long key": (text() + f"'{'k' * 900}': 1\n", "unknown setting"),
    "config in config": (text() + "config: f.yaml\n", "unknown setting 'config'"),
    "list": ("- a\n", "holds no settings"),
    "nothing": ("", "holds no settings"),
    "two documents": (text() + "---\n" + text(), "single document"),
    "latin 1": (text().encode() + b"seed: 1 # caf\xe9\n", "line 6 has the byte 0xe9"),
    "cut UTF-16": (text().encode("utf-16")[:-1], "no UTF-16"),
    "picture": (b"\xff\xd8\xff\xe0" + bytes(range(256)), "no UTF-8"),
    "big": (b"a: 1\n" * (MOST_BYTES // 5 + 1), "more than 1,048,576 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_sentence(name, tmp_path, capsys):
    content, expected = BAD[name]
    _, _, said = run(capsys, content, tmp_path=tmp_path)
    assert expected in said


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--schedule.lr=.nan", "schedule.lr is nan"),
        ("--schedule.lr=1e400", "schedule.lr is inf"),
        ("--steps=true", "steps is 'True'"),
        ("--teacher.mean=[0.5, ", "teacher.mean"),
        ("--steps=5.", "steps is '5.': give a whole number or null"),
        ("--steps=1:30", "steps is '1:30': give a number in decimal digits"),
        ("--steps=-0x1F", "steps is '-0x1F'"),
        ("--schedule.lr=0b11", "schedule.lr is '0b11'"),
        ("--schedule={lr: '1:30.5'}", "schedule.lr is '1:30.5'"),
        ("--teacher.mean=[0.5, 1:30, 0.5]", "teacher.mean is '1:30'"),
        (f"--steps={'1' * 5000}", "give a whole number"),
        ("--student.args={a: !!int x}", "student.args"),
        ("--student.args=" + "{a: " * 600, "student.args"),
        ("--schedule=5", "schedule is '5'"),
        ("--teacher.mean=[a, b, c]", "teacher.mean is 'a': give a number"),
        ("--out=a\x1b[31m", r"out is 'a\x1b[31m'"),
        ("--out=", "out is empty"),
        ("--data.labeled=", "data.labeled is empty"),
        (f"--seed={2**64}", "seed is beyond 64 bits"),
        ("--config=", "is a folder"),
        ("--config=/dev/zero", "bytes"),
        ("--config=nowhere.yaml", "nowhere.yaml: no such file"),
    ],
)
def test_bad_words_are_one_sentence(word, expected, tmp_path, capsys):
    _, _, said = run(capsys, text(), word, tmp_path=tmp_path)
    assert expected in said


@pytest.mark.parametrize(
    ("lines", "key", "value"),
    [
        ({"out": "2024-02-30"}, "out", "2024-02-30"),
        ({"out": "'runs/\U0001f600 \u9c7c'"}, "out", "runs/\U0001f600 \u9c7c"),
        ({"out": "~/runs/x"}, "out", "/home/me/runs/x"),
        ({"data": "{labeled: ['~/a', '~/b::~/c']}"}, "data.labeled",
         ["/home/me/a", "/home/me/b::/home/me/c"]),
        ({"teacher": "{arch: 'local-dir:~/t'}"}, "teacher.arch", "local-dir:/home/me/t"),
        ({"data": "{labeled: a~/b}"}, "data.labeled", ["a~/b"]),
        ({"steps": "1_000"}, "steps", 1000),
        ({"steps": "010"}, "steps", 10),
        ({"out": "1:30"}, "out", "1:30"),
        ({"data": "{labeled: [0x10]}"}, "data.labeled", ["0x10"]),
        ({"teacher": "{arch: t, args: {name: 1:30}}"}, "teacher.args", {"name": "1:30"}),
        ({"schedule": "{lr: 1e-5}"}, "schedule.lr", 1e-5),
        ({"schedule": ""}, "schedule.lr", 0.1),
        ({"student": "&s {arch: s}", "teacher": "{<<: *s, dtype: bf16}"}, "teacher.arch", "s"),
        ({"student": "{arch: s, args: {off: 1, 0: [x, {y: null}]}}"}, "student.args",
         {"off": 1, "0": ["x", {"y": None}]}),
    ],
)  # fmt: skip
def test_what_people_mean(lines, key, value, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    _, found, _ = run(capsys, text(**lines), tmp_path=tmp_path)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    "content",
    [
        text().replace("\n", "\r\n").encode(),
        text().replace("\n", "\r").encode(),
        b"\xef\xbb\xbf" + text().encode(),
        text().encode("utf-16"),
        ("# Fisch, \u9c7c\n" + text()).encode("utf-16-be").join([b"\xfe\xff", b""]),
    ],
    ids=["windows", "old mac", "mark", "utf-16", "utf-16 be"],
)
def test_encodings(content, tmp_path, capsys):
    assert run(capsys, content, tmp_path=tmp_path)[1].steps == 3


def test_words_know_the_home_folder_and_any_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "g.yaml").write_text("steps: 7\n")
    words = ["--config=~/g.yaml", "--out=~", "--teacher.checkpoint=~/t", "--data.labeled=caf\udce9"]
    _, found, _ = run(capsys, text(), *words, tmp_path=tmp_path)
    assert (found.steps, found.out) == (7, str(tmp_path))
    assert found.teacher.checkpoint == f"{tmp_path}/t" and found.data.labeled == ["caf\udce9"]


def test_no_home_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert "no home folder" in run(capsys, text(out="~/x"), tmp_path=tmp_path)[2]


def test_settings_from_a_pipe():
    read, write = os.pipe()
    os.write(write, text().encode())
    os.close(write)
    found = parse("p", DistillConfig, ["--config", f"/dev/fd/{read}"])
    os.close(read)
    assert found.steps == 3


@pytest.mark.parametrize(
    "content", ["distill: !!set {a}\nout: x\n", LAUGHS, "out: \0", "? [a]\n: 1\n", b"\xff\xfea"]
)
def test_recipes_and_grids_too(content, tmp_path, capsys):
    file = tmp_path / "f.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"f\.yaml"):
        read_settings(file)
    with pytest.raises(InputError, match=r"f\.yaml"):
        grid.build(str(file), read_settings(file), None, [])
    run(capsys, content, tmp_path=tmp_path, kind=CurateConfig)


def test_a_recipe_whose_out_is_a_number():
    with pytest.raises(InputError, match="out is 5"):
        open_recipe("f.yaml", {"out": 5, "distill": {}}, None, [])


def test_a_grid_in_utf_16_is_kept(tmp_path):
    from ssld.ablate.command import _noted

    file = tmp_path / "g.yaml"
    file.write_bytes("# \u9c7c\ngrid: {}\n".encode("utf-16"))
    assert "\u9c7c" in _noted(AblateConfig(str(file)))


@pytest.mark.parametrize(
    "words",
    [["quickstart", "--seed", "-1"], ["evaluate", "--model=m", "--data=d", "--workers", "-1"]],
)
def test_numbers_below_zero(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert "is -1: give 0 or more" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
