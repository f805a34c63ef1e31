"""`--help`: a dozen settings, marked where they are declared; `--help all`: every one."""

from pkgutil import resolve_name

import pytest

from ssld.cli.commands import COMMANDS
from ssld.cli.help import _settings, help_of, short_settings
from ssld.cli.run import main
from ssld.distill.config import SupervisedConfig

CLASSES = {name: resolve_name(command.config) for name, command in COMMANDS.items()}
MOST = 20


@pytest.mark.parametrize("name", CLASSES)
def test_a_command_has_a_dozen_settings_that_matter(name):
    shown, known = short_settings(CLASSES[name]), [x for x, _ in _settings(CLASSES[name])]
    assert 0 < len(shown) <= MOST and set(shown) <= set(known)
    assert len(known) <= MOST or len(shown) > 3


def test_every_setting_is_in_one_of_the_two():
    known = {name for name, _ in _settings(SupervisedConfig)}
    short, whole = (help_of("ssld supervised", SupervisedConfig, (), x) for x in ([], ["all"]))
    for name in known:
        assert f"\n  --{name} " in whole
        assert (f"\n  --{name} " in short) == (name in short_settings(SupervisedConfig)), name
    assert f" shows {len(known) - len(short_settings(SupervisedConfig))} more settings" in short
    assert "schedule: Learning rate" in short and "optimizer: SGD" not in short
    assert "--help all" not in whole


@pytest.mark.parametrize(
    "words",
    [["ab", "--help"], ["recipe", "no.yaml", "-h"], ["compare", "A", "--out", "x", "--help"]],
    ids=lambda x: x[0],
)
def test_help_wins_over_what_is_missing(words, capsys):
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: ssld {words[0]} ") and "more settings" not in said


def test_what_a_command_refuses_is_in_no_help():
    helps = {name: help_of(f"ssld {name}", CLASSES[name], (), ["all"]) for name in CLASSES}
    names = ("distill", "supervised", "finetune")
    shown = [name for name in names if "--data.unlabeled" in helps[name]]
    assert shown == ["distill", "finetune"]
    assert "--data.labeled " in helps["supervised"] and "--data.holdout " in helps["supervised"]
