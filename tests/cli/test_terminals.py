"""What a command's output may be connected to: nothing, ASCII, a pipe whose reader left."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from tqdm import tqdm

from ssld.__main__ import main
from ssld.cli.parse import parse
from ssld.cli.run import exit_code_of
from ssld.common import streams
from ssld.distill.config import DistillConfig

NAME = "f\u00e9-\u9c7c-\udce9.yaml"
GOOD = ["--out=o", "--steps=3", "--student.arch=s", "--data.labeled=d", "--teacher.arch=t"]


class Failing(io.TextIOBase):
    """A stream whose first write fails."""

    def __init__(self, error: OSError) -> None:
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def ssld(script: str, **env: str) -> subprocess.CompletedProcess:
    """A shell's view of `ssld`."""
    done = subprocess.run(
        ["bash", "-c", script.replace("ssld", f"{sys.executable} -m ssld")],
        capture_output=True,
        env={**os.environ, **env},
        text=True,
    )
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done


def test_a_reader_that_leaves():
    done = ssld("ssld zoo --help 2>&1 | true; echo ${PIPESTATUS[0]}", PYTHONUNBUFFERED="")
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_closed_streams_and_no_home():
    done = ssld("ssld distill --config nowhere.yaml <&- >&-; exit $?", TERM="dumb", HOME="")
    assert done.returncode == 2 and done.stderr.startswith("error: nowhere.yaml")
    done = ssld("ssld distill --config nowhere.yaml <&- >&- 2>&-; exit $?")
    assert (done.returncode, done.stderr) == (2, "")


def test_a_full_disk_behind_the_output():
    done = ssld("ssld --help > /dev/full")
    assert done.returncode == 2
    assert done.stderr == "error: standard output: No space left on device\n"


def test_ascii_alone(monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert exit_code_of(lambda: print("\u9c7c \udce9")) == 0
    assert exit_code_of(lambda: print(parse("p", DistillConfig, ["--config", NAME]))) == 2
    assert out.buffer.getvalue() == rb"\u9c7c \udce9" + b"\n"
    said = rb"error: f\xe9-\u9c7c-\udce9.yaml: no such file; give a YAML recipe"
    assert err.buffer.getvalue() == said + b"\n"


def test_what_a_terminal_would_obey_is_not_printed(capsys):
    assert exit_code_of(lambda: parse("p", DistillConfig, ["--config", "a\x1b]0;b\x07\u202e"])) == 2
    assert r"a\x1b]0;b\x07\u202e: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_leaves_while_it_works(stream, monkeypatch):
    monkeypatch.setattr(sys, stream, Failing(BrokenPipeError(32, "Broken pipe")))
    broken = sys.stdout if stream == "stdout" else sys.stderr
    monkeypatch.setattr(broken, "flush", lambda: broken.write(""), raising=False)
    work = lambda _: print("a", file=broken)  # noqa: E731
    assert exit_code_of(lambda: work(parse("p", DistillConfig, GOOD))) == streams.EXIT_NO_READER


def test_a_pipe_inside_is_not_the_output(monkeypatch, capsys):
    def work(_: DistillConfig) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    assert exit_code_of(lambda: work(parse("p", DistillConfig, GOOD))) == 2
    assert capsys.readouterr().err == "error: file system: Broken pipe\n"


def test_no_streams_at_all(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["nonsense"]) == 2 and main(["--version"]) == 0


def test_bars_only_where_a_cursor_moves(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert streams.is_terminal(Terminal()) and not streams.is_terminal(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not streams.is_terminal(Terminal())


def test_a_bar_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with tqdm(total=300, desc="masks", unit="img", **streams.bar_output()) as bar:
        for _ in range(300):
            bar.update()
    first, last = log.getvalue().splitlines()
    assert "0/300" in first and "300/300" in last and "\r" not in log.getvalue()
    monkeypatch.setattr(streams, "LINE_SECONDS", 0.0)
    with tqdm(total=2, desc="masks", leave=False, **streams.bar_output()) as bar:
        bar.update()
    assert [x[:6] for x in log.getvalue().splitlines()[2:]] == ["masks:"] * 2


def test_bars_of_a_notebook_share_a_line_of_standard_output(monkeypatch, capsys):
    class OutStream(io.StringIO):
        __module__ = "ipykernel.iostream"

    cell = OutStream()
    monkeypatch.setattr(sys, "stdout", cell)
    with tqdm(total=3, desc="steps", **streams.bar_output()) as bar:
        with tqdm(
            total=2, desc="evaluate", leave=False, **streams.bar_output(lines=False)
        ) as other:
            other.update(2)
        bar.update(3)
    drawn = cell.getvalue()
    assert "evaluate" in drawn and "3/3" in drawn and "\x1b" not in drawn
    assert drawn.count("\n") == 1 and capsys.readouterr().err == ""
    assert streams.bar_output(quiet=True) == {"disable": True}


def test_bars_that_are_no_lines_are_not_drawn_into_a_log(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert streams.bar_output(lines=False) == {"disable": True}
