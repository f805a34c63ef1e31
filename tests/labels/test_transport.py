"""Label sets at another place: pushed and pulled in part, damaged, or of others."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import fsspec
import pytest

from ssld.labels import format as files
from ssld.labels import transport

SHARD = "train-000002.safetensors"


@pytest.fixture(params=["memory", "folder"])
def address(request, tmp_path) -> str:
    return f"memory://{uuid.uuid4()}/labels" if request.param == "memory" else f"{tmp_path}/there"


def content(folder: Path) -> dict[str, bytes]:
    kept = ("log.jsonl", ".lock")
    return {x.name: x.read_bytes() for x in folder.iterdir() if x.name not in kept}


def test_what_is_pushed_comes_back_and_trains(labels, ssld, words, tmp_path, address):
    code, said = ssld("labels", "push", labels, address)
    assert code == 0 and "10 files were sent" in said
    filesystem, root = fsspec.url_to_fs(address)
    assert b"3 augmented views of each of 60" in filesystem.cat_file(f"{root}/README.md")
    out = tmp_path / "out"
    code, said = ssld("labels", "pull", address, f"--out={out}")
    assert code == 0 and "5 shards came" in said
    assert content(out) == content(labels)
    assert ssld("labels", "push", labels, address)[1].endswith("0 files were sent\n")
    assert "0 shards came" in ssld("labels", "pull", address, f"--out={out}")[1]
    code, said = ssld("distill", *words(tmp_path / "run", labels=out, steps=1))
    assert code == 0, said


def test_a_stopped_pull_is_no_label_set_and_goes_on(labels, ssld, tmp_path, monkeypatch):
    address, out = f"memory://{uuid.uuid4()}/labels", tmp_path / "out"
    transport.push(labels, address)
    fetched, fetch = [], transport._fetched

    def stops(place, shard):
        if len(fetched) == 2:
            raise KeyboardInterrupt
        fetched.append(shard.file)
        return fetch(place, shard)

    with monkeypatch.context() as patch:
        patch.setattr(transport, "_fetched", stops)
        with pytest.raises(KeyboardInterrupt):
            transport.pull(address, out)
    code, said = ssld("labels", "verify", out)
    assert code == 2 and "not finished" in said
    code, said = ssld("labels", "pull", address, f"--out={out}")
    assert code == 0 and "3 shards came" in said
    assert content(out) == content(labels)


def test_a_stopped_push_cannot_be_pulled_and_goes_on(labels, ssld, tmp_path):
    address = f"memory://{uuid.uuid4()}/labels"
    transport.push(labels, address)
    filesystem, root = fsspec.url_to_fs(address)
    for name in (files.INDEX, SHARD):
        filesystem.rm_file(f"{root}/{name}")
    code, said = ssld("labels", "pull", address, f"--out={tmp_path / 'out'}")
    assert code == 2 and "not all of one" in said
    assert transport.push(labels, address) == 2
    assert transport.pull(address, tmp_path / "out") == 5


def test_a_bit_that_flips_on_the_way_is_noticed(labels, ssld, tmp_path):
    address, out = f"memory://{uuid.uuid4()}/labels", tmp_path / "out"
    transport.push(labels, address)
    filesystem, root = fsspec.url_to_fs(address)
    damaged = bytearray(filesystem.cat_file(f"{root}/{SHARD}"))
    damaged[-1] ^= 1
    filesystem.pipe_file(f"{root}/{SHARD}", bytes(damaged))
    code, said = ssld("labels", "pull", address, f"--out={out}")
    assert code == 2 and SHARD in said and "another sha256" in said
    assert "cannot be reached" not in said
    assert not (out / SHARD).exists() and not (out / files.INDEX).exists()


def test_other_labels_are_not_mixed(labels, copied, ssld, tmp_path):
    address = f"memory://{uuid.uuid4()}/labels"
    transport.push(labels, address)
    manifest = json.loads((copied / files.MANIFEST).read_text())
    (copied / files.MANIFEST).write_text(json.dumps({**manifest, "images": {}}))
    code, said = ssld("labels", "push", copied, address)
    assert code == 2 and "something else" in said
    before = content(copied)
    code, said = ssld("labels", "pull", address, f"--out={copied}")
    assert code == 2 and "other labels" in said and content(copied) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("")
    code, said = ssld("labels", "pull", address, f"--out={tmp_path / 'mine'}")
    assert code == 2 and "not empty" in said


def test_damaged_labels_are_not_pushed(copied, ssld):
    address = f"memory://{uuid.uuid4()}/labels"
    (copied / SHARD).unlink()
    code, said = ssld("labels", "push", copied, address)
    assert code == 2 and SHARD in said
    filesystem, root = fsspec.url_to_fs(address)
    assert not filesystem.exists(root)


@pytest.mark.parametrize("address", ["nowhere://x", "memory://nothing/here"])
def test_where_there_is_nothing(ssld, tmp_path, address):
    code, said = ssld("labels", "pull", address, f"--out={tmp_path / 'out'}")
    assert code == 2 and address in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("name", ["../x.safetensors", "train-000001.safetensors", "/etc/passwd"])
def test_an_index_names_shards_of_its_own_folder_only(copied, ssld, name):
    index = json.loads((copied / files.INDEX).read_text())
    index["train"][0]["file"] = name
    (copied / files.INDEX).write_text(json.dumps(index))
    code, said = ssld("labels", "verify", copied)
    assert code == 2 and "damaged" in said
