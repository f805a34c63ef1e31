"""Readers that break each promise on purpose, so that `sandbox.py` is seen to notice."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from mutations import MARK
from sandbox import Kind

from ssld.common.errors import InputError


def _hog(folder: Path, out: Path) -> None:
    import numpy as np

    np.ones(1_200_000_000, np.uint8)


def _much_more(folder: Path, out: Path) -> None:
    import numpy as np

    try:
        np.ones(2**34, np.uint8)
    except MemoryError as error:
        raise InputError(f"x: {type(error).__name__}") from error


def _raises(error: BaseException) -> Callable[[Path, Path], None]:
    def use(folder: Path, out: Path) -> None:
        raise error

    return use


def _connects(folder: Path, out: Path) -> None:
    with socket.socket() as made:
        made.settimeout(0.01)
        made.connect_ex(("192.0.2.1", 80))


def _run(folder: Path, out: Path) -> None:
    subprocess.run(["true"], check=True)


def _unlink_at(folder: Path, out: Path) -> None:
    place = os.open(folder, os.O_RDONLY)
    try:
        os.unlink("x", dir_fd=place)
    finally:
        os.close(place)


def _good(folder: Path, out: Path) -> str | None:
    (out / "a").write_text("x")
    (out / "a").rename(out / "b")
    number = int((folder / "x").read_text())
    if number % 3 == 1:
        raise InputError("x is 1; give 0")
    if number % 3 == 2:
        return "unreadable"
    return None


USES: dict[str, Callable[[Path, Path], str | None]] = {
    "good": _good,
    "traceback": _raises(KeyError("architecture")),
    "exit": _raises(SystemExit(3)),
    "crash": lambda folder, out: os.abort(),
    "hang": lambda folder, out: time.sleep(60),
    "hog": _hog,
    "much_more": _much_more,
    "writes": lambda folder, out: (out.parent.parent / "outside").write_text("x") and None,
    "removes": lambda folder, out: (folder / "x").unlink(),
    "removes_at": _unlink_at,
    "renames": lambda folder, out: (out.parent / "bystander.txt").rename(out / "x") and None,
    "links": lambda folder, out: (folder / "link").symlink_to("/etc"),
    "program": _run,
    "shell": lambda folder, out: os.system("true") and None,
    "code": lambda folder, out: exec(f"{MARK} = 1"),
    "connects": _connects,
    "lines": _raises(InputError("a\n" * 9)),
    "silent": _raises(InputError("")),
}


def _write(rng: random.Random, folder: Path) -> None:
    (folder / "x").write_text(str(rng.randrange(1000)))


KINDS = {f"planted.{name}": Kind(_write, use) for name, use in USES.items()}
