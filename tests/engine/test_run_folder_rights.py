"""A run folder that cannot be written to, or that not every process sees: one sentence, early,
and nothing is lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssld.__main__ import main
from ssld.common.errors import InputError
from ssld.common.files import write_atomically
from ssld.data.config import DataConfig
from ssld.distill.config import DistillConfig
from ssld.engine import checkpoint, start
from ssld.engine.checkpoint import replace_export
from ssld.engine.overwrite import foreign, remove, replace_folder
from ssld.engine.run_folder import RunFolder, check_out
from ssld.models.config import StudentConfig, TeacherConfig


def config(out: Path, **changes: object) -> DistillConfig:
    return DistillConfig(
        out=str(out),
        steps=1,
        teacher=TeacherConfig(checkpoint=__file__),
        student=StudentConfig(arch="test_resnet"),
        data=DataConfig(labeled=[__file__]),
        **changes,  # type: ignore[arg-type]
    )


def denied(*names: str):
    """`os.access` of a user who may not write to these folders (the tests run as root)."""
    real = os.access
    return lambda path, mode: Path(path).name not in names and real(path, mode)


def test_out_in_a_folder_without_rights(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", denied("locked"))
    for out in (tmp_path / "locked", tmp_path / "locked/run", tmp_path / "locked/a/b/run"):
        with pytest.raises(InputError, match="locked is not writable; give another folder"):
            check_out(config(out))
    check_out(config(tmp_path / "run"))
    assert list((tmp_path / "locked").iterdir()) == []


def test_a_file_in_the_way_of_out(tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    given = ["distill", f"--teacher.checkpoint={__file__}", f"--data.labeled={__file__}"]
    for out in ("file", "file/run", "file/a/b"):
        assert (
            main([*given, "--student.arch=test_resnet", "--steps=1", f"--out={tmp_path / out}"])
            == 2
        )
        said = capsys.readouterr().err
        assert said.startswith(f"error: out {tmp_path / out}") and said.count("\n") == 1
    assert (tmp_path / "file").read_text() == "precious"


def test_a_folder_that_became_read_only_after_the_check(tmp_path, monkeypatch):
    """The lock, the settings and the facts are each refused in a sentence."""

    def refused(path: Path, *args, **kwargs) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with monkeypatch.context() as patch, pytest.raises(InputError, match="Read-only"):
        patch.setattr(Path, "mkdir", refused)
        RunFolder(tmp_path / "run", main=True).open(config(tmp_path / "run"), {})
    assert not (tmp_path / "run").exists()


class Full:
    """A disk that takes a number of writes and then none."""

    def __init__(self, monkeypatch, writes: int) -> None:
        self.left, real = writes, Path.open

        def opened(path: Path, mode: str = "r", *args, **kwargs):
            if set(mode) & set("wax"):
                self.left -= 1
                if self.left < 0:
                    raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return real(path, mode, *args, **kwargs)

        monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize("writes", [0, 1])
def test_a_full_disk_at_the_start_of_a_run_that_overwrites(tmp_path, monkeypatch, writes):
    out = tmp_path / "run"
    RunFolder(out, main=True).open(config(out), {"of": "the old"})
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with monkeypatch.context() as patch:
        Full(patch, writes)
        with pytest.raises(InputError, match=r"No space left on device\); free space"):
            RunFolder(out, main=True).open(config(out, overwrite=True, seed=1), {})
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert after == before and not foreign(out)


def test_a_full_disk_while_a_file_is_written_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    path.write_text("old")
    with monkeypatch.context() as patch:
        Full(patch, 0)
        with pytest.raises(InputError, match="run.json cannot be written"):
            write_atomically(path, "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder cannot be written"):
        write_atomically(tmp_path / "folder", "new")
    assert path.read_text() == "old" and sorted(x.name for x in tmp_path.iterdir()) == [
        "folder",
        "run.json",
    ]


def exported(folder: Path, text: str) -> None:
    def write(temporary: Path) -> None:
        (temporary / "config.json").write_text(text)
        (temporary / "model.safetensors").write_text(text)

    replace_export(folder, write)


def test_an_export_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    student = tmp_path / "student"
    exported(student, "old")
    (student / "README.md").write_text("precious")

    def refused(path: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch, pytest.raises(InputError, match="Permission denied"):
        patch.setattr(Path, "rename", refused)
        exported(student, "new")
    assert (student / "config.json").read_text() == "old"
    exported(student, "new")
    assert (student / "config.json").read_text() == "new"
    assert (student / "README.md").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_replacement_that_was_killed_is_finished_by_the_next(tmp_path):
    student = tmp_path / "student"
    exported(student, "old")
    (student / "README.md").write_text("precious")
    student.rename(tmp_path / ".student.old")  # and killed
    exported(student, "new")
    assert (student / "README.md").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_checkpoint_that_cannot_be_deleted_ends_no_run(tmp_path, monkeypatch):
    network, real = torch.nn.Linear(1, 1), Path.unlink

    def save(step: int) -> None:
        checkpoint.save(
            tmp_path, step, networks={"student": network}, optimizer={}, state={}, keep=1
        )

    def refused(path: Path, missing_ok: bool = False) -> None:
        if "step-00000001" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        real(path, missing_ok=missing_ok)

    save(1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        save(2)
    assert checkpoint.latest(tmp_path) == checkpoint.at(tmp_path, 2)
    save(3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_what_a_user_calls_like_a_checkpoint_is_none(tmp_path):
    for name in ("step-00000009.bak", "step-9", "step-00000010 copy", "step-final"):
        (tmp_path / name).mkdir()
    assert checkpoint.latest(tmp_path) is None and not checkpoint.all_in(tmp_path)


def test_links_are_replaced_and_not_followed(tmp_path):
    exported(tmp_path / "disk", "elsewhere")
    (tmp_path / "student").symlink_to("disk")
    exported(tmp_path / "student", "new")
    assert (tmp_path / "disk/config.json").read_text() == "elsewhere"
    assert (tmp_path / "student/config.json").read_text() == "new"
    (tmp_path / "tensorboard").symlink_to("disk")
    assert remove(tmp_path / "tensorboard") is None
    assert (tmp_path / "disk/config.json").exists() and not (tmp_path / "tensorboard").is_symlink()
    assert remove(tmp_path / "nowhere") is None
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "nowhere", tmp_path / "disk", "student")


def resumed(monkeypatch, out: Path, previous: Path | None, others: list[bool]) -> None:
    views = [(x, rank + 1, "second") for rank, x in enumerate(others)]
    monkeypatch.setattr(start, "gather_object", lambda own: [*own, *views])
    processes = SimpleNamespace(num_processes=1 + len(others), process_index=0)
    start._require_seen(previous, out, processes)  # type: ignore[arg-type]


def test_out_must_be_seen_by_every_process_to_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(start.socket, "gethostname", lambda: "first")
    step = checkpoint.at(tmp_path / "checkpoints", 8)
    resumed(monkeypatch, tmp_path, None, [False, False])  # nowhere one yet
    with pytest.raises(InputError, match="process 2 on second sees a checkpoint.*0 on first"):
        resumed(monkeypatch, tmp_path, None, [False, True])
    step.mkdir(parents=True)
    resumed(monkeypatch, tmp_path, step, [True, True])
    with pytest.raises(InputError, match="process 1 on second sees no .*step-00000008.*shared"):
        resumed(monkeypatch, tmp_path, step, [False, True])
    resumed(monkeypatch, tmp_path, step, [])
