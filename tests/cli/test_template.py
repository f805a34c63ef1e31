"""`ssld init`: a file that its command takes as it stands, and with every comment taken away."""

import re
from pkgutil import resolve_name
from typing import get_args

import pytest
from scenes import boxes, make_scenes

from ssld.cli.commands import COMMANDS
from ssld.cli.help import short_settings
from ssld.cli.parse import parse
from ssld.cli.run import main
from ssld.cli.template import SOURCES, Task


@pytest.mark.parametrize("task", get_args(Task))
def test_the_file_is_what_its_command_takes(task, tmp_path, capsys):
    root, file = tmp_path / "Fotos: ärger'n #1", tmp_path / "my.yaml"
    make_scenes(root, train=2, val=1)
    places = {"detection": boxes(root, "train"), "segmentation": f"{root}::train"}
    source = places.get(task, str(root / "images/train"))
    assert main(["init", task, source]) == 0
    text = capsys.readouterr().out
    file.write_text(text, encoding="utf-8")
    config_class = resolve_name(COMMANDS[task].config)
    config = parse(f"ssld {task}", config_class, ["--config", str(file)])
    assert getattr(config.data, SOURCES[task]) == [source]
    assert not config.data.val and config.data.holdout > 0 and config.out == f"runs/{task}"

    names = "|".join({x.rpartition(".")[2] for x in short_settings(config_class)})
    whole = re.sub(rf"(?m)^( *)# (?=(?:{names}): )", r"\1", text)
    assert whole != text
    file.write_text(whole, encoding="utf-8")
    assert parse(f"ssld {task}", config_class, ["--config", str(file)]) == config


def test_bad_answers_write_nothing(tmp_path, capsys):
    photos = make_scenes(tmp_path / "empty" / "scenes", train=1, val=1) / "images" / "train"
    (tmp_path / "none").mkdir()
    for words, said in (
        (["init", "detection", str(tmp_path / "no")], "data.train: "),
        (["init", "detection", str(tmp_path / "none")], "is an empty folder"),
        (["init", "detection", str(photos)], "has neither Annotations"),
        (["init", "segmentation", str(photos)], "masks"),
        (["init", "detecting", str(tmp_path)], "give one of"),
        (["init", "detection"], "source is missing"),
    ):
        assert main(words) == 2
        out, error = capsys.readouterr()
        assert not out and said in error and error.count("\n") == 1
