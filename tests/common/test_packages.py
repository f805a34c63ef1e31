"""What an environment lacks stops nothing that does not need it."""

import subprocess
import sys

import pytest
from PIL import Image

from ssld.cli.commands import Command, work_of
from ssld.common import packages
from ssld.common.errors import InputError, attempt

WITHOUT = """
import sys
from importlib.machinery import PathFinder

absent = {"cv2", "faiss", "matplotlib", "pyarrow", "scipy", "simplejpeg", "sklearn", "tensorboard"}


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, *where):
        return None if name.partition(".")[0] in absent else PathFinder.find_spec(name, *where)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without
import downstream.deploy.evaluate, ssld.ablate.command  # noqa
import ssld.distill.distill, ssld.zoo.command  # noqa
from ssld.data.sources import open_source

source = open_source(sys.argv[1])
print(len(source), absent & set(sys.modules))
"""


def test_the_way_from_folders_imports_none_of_them(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.jpg")
    words = [sys.executable, "-c", WITHOUT, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 set()\n"
    assert "note: without simplejpeg Pillow decodes JPEGs" in done.stderr


def _absent(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_command_says_what_to_install():
    command = Command("", "", "test_packages:needs_arrow")
    with pytest.raises(InputError, match="pyarrow is not installed: pip install pyarrow"):
        work_of(command, None)
    with pytest.raises(ModuleNotFoundError, match="mistyped"):  # a fault of ours stays one
        work_of(Command("", "", "test_packages:mistyped"), None)


def test_a_torchvision_of_another_torch():
    with pytest.raises(InputError, match="do not fit together: .* 2.11 with 0.26 say; install"):
        work_of(Command("", "", "test_packages:unfit"), None)
    with pytest.raises(RuntimeError, match="out of memory"):
        work_of(Command("", "", "test_packages:out_of_memory"), None)


def unfit(config: object) -> None:
    raise RuntimeError("operator torchvision::nms does not exist")


def out_of_memory(config: object) -> None:
    raise RuntimeError("CUDA out of memory")


def needs_arrow(config: object) -> None:
    raise _absent("pyarrow.parquet")


def mistyped(config: object) -> None:
    raise _absent("mistyped")


def test_a_page_says_once_what_it_lacks(capsys):
    def draw():
        raise _absent("matplotlib")

    packages.say_left_out.cache_clear()
    notes = [attempt(f"the section {name!r}", draw) for name in "ab"]
    assert all("matplotlib is not installed: pip install matplotlib" in note for note in notes)
    assert capsys.readouterr().err == (
        "note: without matplotlib pages have no pictures; pip install matplotlib\n"
    )


def test_versions_name_what_is_not_there(monkeypatch):
    assert packages._version("no-such-distribution") == "none"
    assert packages.versions()["torch"][0].isdigit()
