"""The cache of what is derived from sources: one maker a machine, nothing left behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from ssld.common.errors import InputError
from ssld.data import storage
from ssld.data.storage import derived


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "source").write_text("x")
    return tmp_path / "cache/ssld"


def make(target: Path) -> None:
    with open(target.parent.parent / "made", "a") as file:
        file.write("once\n")
    time.sleep(0.2)  # long enough for the others to come
    target.write_text("whole")


def want(source: str, start) -> None:
    start.wait()
    assert derived(source, "kind", make).read_text() == "whole"


def test_of_several_processes_one_makes_it(tmp_path, cache):
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    source = str(tmp_path / "source")
    ranks = [context.Process(target=want, args=(source, start)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert (cache.parent / "made").read_text() == "once\n"
    assert [path.suffix for path in cache.iterdir()] == [".kind"]  # no lock, nothing half-made


def test_what_a_killed_process_left_is_cleared(tmp_path, cache, monkeypatch):
    source, left = str(tmp_path / "source"), []
    target = derived(source, "kind", lambda target: left.append(target) or target.write_text("x"))
    target.unlink()
    host, own = storage.socket.gethostname(), left[0].name
    kinds = {
        "this machine's": own.replace(f".{os.getpid()}.", ".1."),
        "another one's": own.replace(f".{host}.", ".elsewhere."),
        "another one's, of old": own.replace(f".{host}.", ".long-ago."),
        "of another file": own.replace(".kind.", ".other."),
    }
    for name in kinds.values():
        (cache / name).write_text("half")
    (cache / f".{target.name}.lock").write_text("")  # its process is dead: the lock is free
    os.utime(cache / kinds["another one's, of old"], (0, 0))
    assert derived(source, "kind", lambda target: target.write_text("whole")) == target
    assert target.read_text() == "whole"
    stays = {kinds["another one's"], kinds["of another file"]}
    assert {path.name for path in cache.iterdir()} == {target.name, *stays}


def test_a_maker_that_fails_leaves_nothing(tmp_path, cache):
    def fail(target: Path) -> None:
        target.write_text("half")
        raise InputError("no image in it")

    for _ in range(2):
        with pytest.raises(InputError, match="no image in it"):
            derived(str(tmp_path / "source"), "kind", fail)
        assert not list(cache.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_cache_that_is_full_says_what_to_do(tmp_path, cache, code):
    def fail(target: Path) -> None:
        target.write_text("half")
        raise OSError(code, os.strerror(code))

    with pytest.raises(InputError, match=f"{os.strerror(code)}.*XDG_CACHE_HOME"):
        derived(str(tmp_path / "source"), "kind", fail)
    assert not list(cache.iterdir())


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(storage.fcntl, "flock", flock)
    path = derived(str(tmp_path / "source"), "kind", lambda target: target.write_text("whole"))
    assert path.read_text() == "whole"
