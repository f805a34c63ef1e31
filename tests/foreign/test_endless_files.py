"""What is named as an image and never ends is one unreadable image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ssld.data.storage import read_all


def test_a_device_or_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "a.jpg").write_bytes(b"x" * 70_000)
    for name in ("pipe.jpg", "zero.jpg"):
        with pytest.raises(OSError, match="a device or a pipe"):
            read_all(str(tmp_path / name))
    assert read_all(str(tmp_path / "a.jpg")) == b"x" * 70_000
    for path, error in ((tmp_path, IsADirectoryError), (tmp_path / "no", FileNotFoundError)):
        with pytest.raises(error):
            read_all(str(path))
