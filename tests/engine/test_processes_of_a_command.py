"""What the main process alone looks at, all processes know: what it saw, or what was wrong. How a
command that has no `--resume` goes on is said of it alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ssld.common.errors import InputError, Interrupted
from ssld.engine import processes
from ssld.engine.loop import lost_processes


def two(monkeypatch, look: Any) -> list[Any]:
    """What `on_main` returns or raises on each of two processes."""
    sent: list[Any] = []

    def send(shared: list[Any]) -> None:
        sent.append(list(shared)) if not sent else shared.__setitem__(slice(None), sent[0])

    monkeypatch.setattr(processes, "broadcast_object_list", send)
    answers = []
    for main in (True, False):
        rank: Any = SimpleNamespace(is_main_process=main, num_processes=2)
        try:
            answers.append(processes.on_main(rank, look, 3))
        except InputError as error:
            answers.append(error)
    return answers


def test_both_hear_what_the_main_process_saw(monkeypatch):
    calls = []
    assert two(monkeypatch, lambda x: calls.append(x) or x + 1) == [4, 4] and calls == [3]


def test_both_end_with_what_is_wrong_on_the_main_process(monkeypatch):
    def look(number: int) -> None:
        raise InputError(f"no {number}")

    assert list(map(str, two(monkeypatch, look))) == ["no 3", "no 3"]


def test_one_process_sends_nothing(monkeypatch):
    monkeypatch.delattr(processes, "broadcast_object_list")
    alone: Any = SimpleNamespace(is_main_process=True, num_processes=1)
    assert processes.on_main(alone, lambda *, of: of, of=2) == 2
    with pytest.raises(ZeroDivisionError):
        processes.on_main(alone, lambda: 1 / 0)


@pytest.mark.parametrize("kind", [InputError, Interrupted])
def test_a_command_without_resume_says_that_it_goes_on(kind):
    """What a stage of it says: a full disk, a signal, a damaged file."""
    for said, told in (
        ("free space, then go on with --resume", "free space, then the same command goes on"),
        ("delete it: --resume writes it anew", "delete it: the same command writes it anew"),
        ("give another folder", "give another folder"),
    ):
        with pytest.raises(kind, match=told), lost_processes("command"):
            raise kind(said)
