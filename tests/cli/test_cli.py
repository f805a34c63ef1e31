"""Settings from YAML and command line, and one sentence for what is wrong."""

import signal
import subprocess
import sys

import pytest

from ssld.cli import run
from ssld.cli.commands import COMMANDS
from ssld.cli.parse import parse
from ssld.cli.run import exit_code_of
from ssld.common.errors import InputError
from ssld.distill.config import DistillConfig, SupervisedConfig

GOOD = [
    "--out",
    "o",
    "--steps",
    "3",
    "--student.arch",
    "s",
    "--data.labeled",
    "d",
    "--teacher.arch",
    "t",
]


def test_a_typed_length_overrules_that_of_a_file(tmp_path):
    recipe = tmp_path / "r.yaml"
    settings = "out: a\nstudent: {arch: s}\nteacher: {arch: t}\ndata: {unlabeled: x}\n"
    lengths = []
    for in_file, *typed in (
        ("epochs", "--steps=3"),
        ("steps", "--epochs", "2"),
        ("steps", "--steps=4"),
    ):
        recipe.write_text(f"{settings}{in_file}: 9\n")
        config = parse("p", DistillConfig, ["--config", str(recipe), *typed])
        lengths.append((config.epochs, config.steps))
    assert lengths == [(None, 3), (2, None), (None, 4)]
    for words in (["--epochs=2", "--steps=3"], ["--config", str(recipe), "--steps=null"]):
        with pytest.raises(InputError, match="give (exactly )?one of"):
            parse("p", DistillConfig, [*words, *GOOD[:2], *GOOD[4:]])
    assert parse("p", DistillConfig, [*GOOD, "--epochs=null"]).steps == 3


def test_yaml_then_overrides(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "out: a\nsteps: 5\nbatch_size: 32\nstudent: {arch: resnet18, args: {drop_rate: 0.1}}\n"
        "teacher: {arch: resnet50, mean: [0.5, 0.5, 0.5]}\ndata: {unlabeled: [x, y]}\n"
    )
    config = parse(
        "p", DistillConfig, ["--config", str(recipe), "--batch_size=64", "--loss.name", "js"]
    )
    assert (config.steps, config.batch_size, config.loss.name) == (5, 64, "js")
    assert config.student.args == {"drop_rate": 0.1}
    assert config.teacher.mean == (0.5, 0.5, 0.5)
    assert config.data.unlabeled == ["x", "y"] and config.data.labeled == []


def test_one_source_needs_no_list():
    assert parse("p", DistillConfig, GOOD).data.labeled == ["d"]


@pytest.mark.parametrize("switch", ["--resume", "--overwrite"])
def test_switches_stand_alone(switch):
    name = switch[2:]
    assert getattr(parse("p", DistillConfig, [*GOOD, switch]), name) is True
    assert getattr(parse("p", DistillConfig, [switch, *GOOD]), name) is True
    assert getattr(parse("p", DistillConfig, [*GOOD, f"{switch}=false"]), name) is False


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--teacher.arhc", "x"], "teacher.arch"),
        (["--batch_sise", "3"], "batch_size"),
        (["--epochs", "3"], "exactly one"),
        (["--steps", "many"], "steps is 'many'"),
        (["--loss.name", "jss"], "symmetric_kl"),
        (["--loss.temperature", "0"], "loss.temperature is 0"),
        (["--accumulate", "3"], "divides batch_size"),
        (["--data.fractions", "[0.5, 0.5]"], "data.fractions"),
        (["--teachers", "[{arch: u}]"], "not both"),
        (["--resume", "--overwrite"], "not both"),
        (["--augment.scale", "[0.9, 0.1]"], "augment.scale"),
    ],
)
def test_bad_settings_are_one_sentence(extra, said):
    with pytest.raises(InputError, match=".") as error:
        parse("p", DistillConfig, [*GOOD, *extra])
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("teacher: {arhc: q}\n", "did you mean 'teacher.arch'"),
        ("out: r\ntransfer: {epochs: 3}\n", "is a recipe, its stage transfer is no setting"),
        ("teaher: {arch: q}\n", "unknown setting 'teaher'"),
        ("out: [x\n", "not valid YAML"),
        ("- a\n", "holds no settings"),
        ("\x00", "not valid YAML"),
    ],
)
def test_bad_recipes_name_the_file(tmp_path, text, said):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(text)
    with pytest.raises(InputError) as error:
        parse("p", DistillConfig, ["--config", str(recipe)])
    assert said in str(error.value) and "bad.yaml" in str(error.value)


def test_supervised_refuses_unlabeled_sources():
    arguments = ["--out", "o", "--steps", "3", "--student.arch", "s", "--data.labeled", "d"]
    with pytest.raises(InputError, match="leave data.unlabeled empty"):
        parse("p", SupervisedConfig, [*arguments, "--data.unlabeled", "u"])


@pytest.mark.parametrize(
    "command",
    [[], ["distill"], ["detection"], ["zoo", "publish"], ["quickstart"]],
    ids=lambda c: " ".join(c),
)
def test_help_does_not_import_torch(command):
    code = (
        "import sys; from ssld.__main__ import main\n"
        f"try:\n    main([*{command!r}, '--help'])\nexcept SystemExit as e:\n"
        "    assert not e.code\n"
        "assert not {'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_module_help_does_not_import_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ssld.distill", "--help", "all"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "timm", "accelerate"}
    for key in ("--teacher.batch_norm", "--data.fractions", "--checkpoint.every_steps"):
        assert key in done.stdout


def test_error_exit_and_traceback_only_when_asked(monkeypatch, capsys):
    def fail(_):
        raise InputError("a.jpg is empty")

    assert exit_code_of(lambda: fail(parse("p", DistillConfig, GOOD))) == 2
    assert capsys.readouterr().err == "error: a.jpg is empty\n"
    monkeypatch.setenv("SSLD_DEBUG", "1")
    with pytest.raises(InputError):
        exit_code_of(lambda: fail(parse("p", DistillConfig, GOOD)))


def sigterm(_: object) -> None:
    signal.raise_signal(signal.SIGTERM)


def ctrl_c(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [sigterm, ctrl_c])
def test_an_early_signal_says_resume_where_that_is_an_option(stop, monkeypatch, capsys):
    """While settings are read and torch is imported, before a command could say it better."""
    monkeypatch.setattr(run, "resolve_name", stop)
    for name, command in COMMANDS.items():
        assert run.main([*name.split(), "--out=o"]) in (75, 130)
        how = "go on with --resume" if command.exported else "the same command goes on"
        said = capsys.readouterr().err
        assert said.endswith(f"{how}\n") and said.count("\n") == 1, name


@pytest.mark.parametrize("command", ["distill", "supervised", "evaluate", "bench"])
def test_without_arguments(command, capsys):
    from ssld.__main__ import main

    assert main([command]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_pattern_that_the_shell_has_read(capsys):
    assert run.main(["evaluate", "--model", "x", "--data", "a/1.tar", "a/2.tar", "a/3.tar"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: 'a/2.tar a/3.tar' belongs to no setting: quote a pattern")
    assert run.main(["detection", "data=a.yaml", "epochs=3"]) == 2
    assert "they begin with --, as --data=a.yaml" in capsys.readouterr().err


def test_a_data_set_in_place_of_settings(tmp_path, capsys):
    file = tmp_path / "data.yaml"
    file.write_text("path: .\ntrain: images/train\nval: images/val\nnames: [a, b]\n")
    assert run.main(["detection", f"--config={file}", "--out=x"]) == 2
    told = capsys.readouterr().err
    assert f"{file} describes a data set, not settings: give --data.train {file}::train" in told
    file.write_text("epochs: 1\n")  # settings, which lack the sources
    assert run.main(["detection", f"--config={file}", "--out=x"]) == 2
    assert "describes a data set" not in capsys.readouterr().err
