"""An `--overwrite` that is killed, or denied, at any instant: the old run is whole or gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from short_runs import tree

from ssld.common.files import write_atomically
from ssld.engine import overwrite
from ssld.engine.overwrite import OLD
from ssld.engine.run_folder import RunFolder
from ssld.recipe.stage_folder import StagePlace


def killed_at(monkeypatch, function: str, call: int) -> None:
    """End a later `Path.rename`, `Path.unlink`, ... at a call, as a kill would: nothing else of
    ours is done."""
    real, calls = getattr(Path, function), []

    def dying(path: Path, *args: object, **kwargs: object) -> object:
        calls.append(path)
        if len(calls) >= call:
            raise Killed
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, function, dying)


class Killed(BaseException):
    """Not an Exception, as a kill is none."""


def a_run(out: Path) -> RunFolder:
    return RunFolder(out, main=True)


@pytest.fixture
def old_run(tmp_path) -> Path:
    """The folder of a run, without one."""
    out = tmp_path / "run"
    for name in ("student/model.safetensors", "student/config.json", "metrics.jsonl"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("old")
    (out / "run.json").write_text('{"versions": {}}')
    (out / "config.yaml").write_text("seed: 0\n")
    return out


def start_anew(out: Path) -> None:
    """What a new run does to an old one."""
    with overwrite.giving_way(out, {}):
        write_atomically(out / "config.yaml", "seed: 1\n")
        write_atomically(out / "run.json", '{"versions": {}}')


@pytest.mark.parametrize("call", range(1, 5))
def test_killed_while_the_old_run_is_put_aside(old_run, monkeypatch, call):
    whole = tree(old_run)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, "rename", call)
        start_anew(old_run)
    aside = tree(old_run / OLD) if (old_run / OLD).exists() else {}
    left = {k: v for k, v in tree(old_run).items() if not k.startswith(OLD)}
    assert {**aside, **left} == whole
    a_run(old_run).recover()  # as --resume does
    assert tree(old_run) == whole and not (old_run / OLD).exists()
    start_anew(old_run)  # the same command
    assert set(tree(old_run)) == {"config.yaml", "run.json"}


def test_killed_before_the_new_run_has_begun(old_run, monkeypatch):
    whole = tree(old_run)
    overwrite._put_aside(old_run)
    (old_run / ".config.yaml.tmp").write_text("see")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, "rename", 2)  # and killed again while it is put back
        a_run(old_run).recover()
    a_run(old_run).recover()
    assert {k: v for k, v in tree(old_run).items() if "tmp" not in k} == whole


@pytest.mark.parametrize("call", range(1, 6))
def test_killed_while_the_old_run_is_removed(old_run, monkeypatch, call):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, "unlink", call)
        start_anew(old_run)
    assert (old_run / "config.yaml").read_text() == "seed: 1\n"
    a_run(old_run).recover()
    assert set(tree(old_run)) == {"config.yaml", "run.json"} and not (old_run / OLD).exists()


def test_a_full_disk_at_the_new_settings_leaves_the_old_run(old_run):
    whole = tree(old_run)
    with pytest.raises(OSError), overwrite.giving_way(old_run, {}):
        write_atomically(old_run / "config.yaml", "seed: 1\n")
        (old_run / "checkpoints").mkdir()
        raise OSError(28, "No space left on device")
    assert tree(old_run) == whole and not (old_run / OLD).exists()


@pytest.mark.parametrize("call", range(1, 5))
def test_an_entry_that_cannot_be_moved_leaves_the_old_run(old_run, monkeypatch, call):
    whole, real, calls = tree(old_run), Path.rename, []

    def denied(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == call:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, target)

    monkeypatch.setattr(Path, "rename", denied)
    with pytest.raises(ValueError, match="Permission denied.*it is as it was"):
        start_anew(old_run)
    assert tree(old_run) == whole and not (old_run / OLD).exists()


def test_an_old_run_that_cannot_be_removed_is_named_and_stays_apart(old_run, monkeypatch, capsys):
    real = Path.unlink

    def denied(path: Path, missing_ok: bool = False) -> None:
        if path.name == "config.json":
            raise PermissionError(13, "Permission denied", str(path))
        real(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", denied)
        start_anew(old_run)
    assert "cannot be deleted" in capsys.readouterr().err
    assert (old_run / OLD / "config.yaml").is_file()  # so that the next start goes on with it
    a_run(old_run).recover()
    assert set(tree(old_run)) == {"config.yaml", "run.json"}


def test_what_gets_into_a_stage_that_was_put_aside_is_kept(tmp_path, old_run, capsys):
    """By an older version, say."""
    place = StagePlace(tmp_path, "run")
    place.put_aside()
    (place.asides[0] / "thesis.tex").write_text("precious")
    place.forget_asides()
    assert tree(place.asides[0]) == {"thesis.tex": b"precious"}
    assert "look into it" in capsys.readouterr().err
