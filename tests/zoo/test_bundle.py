"""One tar for many releases, and tars made by someone who means no good."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo.errors import InputError
from zoo.publish.bundle import bundle, unbundle
from zoo.release import MANIFEST, seal


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for name in ("small", "large.v2"):
        folder = made[name] = tmp_path / "made" / f"folder of {name}"
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(name.encode() * 50_000)
        (folder / "config.json").write_text('{"architecture": "test_resnet"}')
        (folder / "deep" / "er" / "é.txt").write_text(name)
        seal(folder, {"name": name})
    return made


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_what_went_in_comes_out(folders: dict[str, Path], tmp_path: Path):
    tar = tmp_path / "new" / "zoo.tar"
    bundle(folders, tar)
    assert unbundle(tar, tmp_path / "out") == ["large.v2", "small"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["large.v2", "small"]
    for name, folder in folders.items():
        assert contents(tmp_path / "out" / name) == contents(folder)
    assert [path.name for path in tar.parent.iterdir()] == ["zoo.tar"]


def test_the_same_releases_give_the_same_bytes(folders: dict[str, Path], tmp_path: Path):
    bundle(folders, tmp_path / "a.tar")
    for folder in folders.values():
        (folder / "model.safetensors").touch()
        (folder / "model.safetensors").chmod(0o600)
    bundle(dict(reversed(folders.items())), tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_changed_release_is_not_bundled_and_an_older_bundle_stays(folders, tmp_path):
    tar = tmp_path / "zoo.tar"
    tar.write_bytes(b"older")
    (folders["small"] / "model.safetensors").write_bytes(b"x" * 250_000)
    with pytest.raises(InputError, match="model.safetensors was changed"):
        bundle(folders, tar)
    assert tar.read_bytes() == b"older" and not list(tmp_path.glob(".*"))
    with pytest.raises(InputError, match="'../up' cannot name a release"):
        bundle({"../up": folders["large.v2"]}, tar)


def test_an_identical_release_stays_and_a_different_one_is_refused(folders, tmp_path):
    tar, out = tmp_path / "zoo.tar", tmp_path / "out"
    bundle({"small": folders["small"]}, tar)
    unbundle(tar, out)
    inode = (out / "small").stat().st_ino
    bundle(folders, tar)
    assert unbundle(tar, out) == ["large.v2"]
    assert (out / "small").stat().st_ino == inode

    (out / "small" / "mine.txt").write_text("notes")
    (out / "large.v2").rename(tmp_path / "elsewhere")
    before = contents(out)
    with pytest.raises(InputError, match="out/small exists and is not the small of the bundle"):
        unbundle(tar, out)
    assert contents(out) == before and not (out / "large.v2").exists()


def member(name: str, content: bytes = b"x", **facts: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, content


def make(tar: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A tar that is a good bundle but for the given members."""
    names = ("model.safetensors", "config.json")
    content = b'{"architecture": "test_resnet"}'
    sha256 = hashlib.sha256(content).hexdigest()
    files = {name: {"sha256": sha256, "bytes": len(content)} for name in names}
    good = [member(f"net/{name}", content) for name in names]
    good.append(member(f"net/{MANIFEST}", json.dumps({"format": 1, "files": files}).encode()))
    with tarfile.open(tar, "w") as archive:
        for info, content in (*good, *members):
            archive.addfile(info, io.BytesIO(content))
    return tar


# one byte in the tar that comes out as a terabyte
SPARSE = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10**12)}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([member("net/../../escaped")], "leads out of the folder"),
        ([member("../escaped")], "leads out of the folder"),
        ([member("/tmp/escaped")], "leads out of the folder"),
        ([member("net//escaped")], "leads out of the folder"),
        ([member("net/./escaped")], "leads out of the folder"),
        ([member("net\\..\\escaped")], "characters that are not allowed"),
        ([member("net/\x1b[2Jescaped")], "characters that are not allowed"),
        ([member("net/l", b"", type=tarfile.SYMTYPE, linkname="/etc")], "a link to '/etc'"),
        ([member("net", b"", type=tarfile.SYMTYPE, linkname="..")], "a link to '..'"),
        ([member("net/h", b"", type=tarfile.LNKTYPE, linkname="../a")], "a link to '../a'"),
        ([member("net/c", b"", type=tarfile.CHRTYPE, devmajor=1)], "not a regular file"),
        ([member("net/p", b"", type=tarfile.FIFOTYPE)], "not a regular file"),
        ([member("net/s", pax_headers=SPARSE)], "not a regular file"),
        ([member(f"net/{MANIFEST}")], "twice"),
        ([member("net/a"), member("net/a/b")], "both as a file and as a folder"),
        ([member("readme.txt")], "belongs to no release"),
        ([member(".ssh/authorized_keys")], "belongs to no release"),
        ([member("other/model.safetensors")], "'other' without ssld.json"),
    ],
)
def test_an_evil_tar_is_refused_before_anything_is_written(tmp_path, members, reason):
    tar = make(tmp_path / "evil.tar", *members)
    with pytest.raises(InputError, match="nothing was extracted") as error:
        unbundle(tar, tmp_path / "deep" / "out")
    assert reason in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["evil.tar"]


def test_a_tar_made_by_tar_itself_with_folders_in_it_is_fine(tmp_path: Path):
    tar = make(tmp_path / "zoo.tar", member("net", b"", type=tarfile.DIRTYPE))
    assert unbundle(tar, tmp_path / "out") == ["net"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda tar: tar.write_bytes(tar.read_bytes().replace(b"llsm", b"llSm", 1)), "was changed"),
        (lambda tar: tar.write_bytes(tar.read_bytes()[:200_000]), "is damaged"),
        (lambda tar: tar.write_bytes(b"nonsense" * 200), "is damaged or not an uncompressed tar"),
        (lambda tar: tar.unlink(), "No such file"),
    ],
)
def test_a_damaged_bundle_puts_nothing_in_place(
    folders: dict[str, Path], tmp_path: Path, damage: Callable[[Path], object], reason: str
):
    tar, out = tmp_path / "zoo.tar", tmp_path / "out"
    bundle({"small": folders["small"]}, tar)
    damage(tar)
    with pytest.raises(InputError, match=reason) as error:
        unbundle(tar, out)
    assert str(tar) in str(error.value) and ".part" not in str(error.value)
    assert not out.exists() or not list(out.iterdir())


def test_a_file_that_the_release_does_not_list_is_refused(tmp_path: Path):
    tar = make(tmp_path / "zoo.tar", member("net/extra.pkl"))
    with pytest.raises(InputError, match="net holds extra.pkl, which ssld.json does not list"):
        unbundle(tar, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_list_that_names_other_places_is_refused(tmp_path: Path):
    (tmp_path / "secret").write_text("x")
    entry = {"sha256": "0" * 64, "bytes": 1}
    evil = json.dumps({"format": 1, "files": {"../../secret": entry}}).encode()
    tar = tmp_path / "zoo.tar"
    with tarfile.open(tar, "w") as archive:
        info, content = member(f"net/{MANIFEST}", evil)
        archive.addfile(info, io.BytesIO(content))
    with pytest.raises(InputError, match="is not inside the folder"):
        unbundle(tar, tmp_path / "out")
