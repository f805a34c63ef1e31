"""The digest of names and sizes: the same as ever, in bulk, and by the main process alone."""

from __future__ import annotations

import hashlib
import os
from types import SimpleNamespace

import numpy as np
import pytest
from given import picture, put, table, tar

from ssld.data.decode import Unreadable
from ssld.data.folder import FolderSource
from ssld.data.source import Subset, hold_out, share_of
from ssld.data.sources import open_source
from ssld.engine import processes, start
from ssld.engine.start import fingerprint


def one_by_one(sources) -> str:
    """As checkpoints of before have it."""
    digest = hashlib.sha256()
    for source in sources:
        for i in range(len(source)):
            digest.update(f"{source.sample_id(i)}\0{source.size(i)}\0".encode())
    return digest.hexdigest()


@pytest.fixture
def sources(tmp_path, monkeypatch) -> list:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for i in range(30):
        put(tmp_path / f"folder/{'ab'[i % 2]}/ü {i}.png", i)
    os.symlink("nowhere", tmp_path / "folder/broken.png")
    files = {"x/1.png": 5, "x/2.png": None, "日本.png": 0}
    shards = [tar(tmp_path / f"{k}.tar", [("a.png", picture(k)), ("b/ü.png", b"")]) for k in (1, 2)]
    rows = {"path": ["p", "q", "r"], "offset": [None, 0, 3], "size": [None, 7, 9]}
    return [
        open_source(str(tmp_path / "folder")),
        FolderSource("memory://fingerprint", files),
        open_source(str(tmp_path / "{1,2}.tar")),
        open_source(shards[0]),
        open_source(table(tmp_path / "a.parquet", sample_id=["x", "ü", "z"], **rows)),
        open_source(table(tmp_path / "b.parquet", sample_id=[1, 2], bytes=[b"", b"x"])),
        open_source(table(tmp_path / "c.parquet", image=[{"bytes": b"", "path": "ü"}])),
    ]


@pytest.mark.parametrize("rows", [1, 7, 65_536])
def test_the_digest_is_that_of_before(sources, monkeypatch, rows):
    monkeypatch.setattr(start, "FINGERPRINT_ROWS", rows)
    for source in sources:
        assert fingerprint([source]) == one_by_one([source])
    assert fingerprint(sources) == one_by_one(sources)
    assert fingerprint([]) == hashlib.sha256().hexdigest()
    kept, held = hold_out(sources[:1], 1)
    odd = [*kept, *held, *share_of(sources, 0.5), Subset(kept[0], np.array([2, 5]), keep=False)]
    assert len(held) == 1 and fingerprint(odd) == one_by_one(odd)


class Annotated:
    """Images of another package, which knows nothing of lists."""

    path = "annotated"

    def __len__(self) -> int:
        return 3

    def sample_id(self, i: int) -> str:
        return f"s{i}"

    def size(self, i: int) -> int | None:
        return i or None


def test_other_kinds_of_images_are_taken_one_by_one():
    assert fingerprint([Annotated()]) == one_by_one([Annotated()])


def test_others_get_the_sizes_from_the_main_process(tmp_path, monkeypatch):
    put(tmp_path / "a.png", 1)
    sent = []

    def rank(main: bool) -> tuple[dict, FolderSource]:
        source = FolderSource(str(tmp_path))
        part = Subset(source, np.array([0]), keep=True)
        topology = SimpleNamespace(is_main_process=main, num_processes=2)
        return start._fingerprints(topology, [part], [source]), source  # type: ignore[arg-type]

    monkeypatch.setattr(processes, "broadcast_object_list", lambda x: sent.append(x) or x)
    digests, _ = rank(True)
    monkeypatch.setattr(
        processes, "broadcast_object_list", lambda x: x.__setitem__(slice(None), sent[0])
    )
    stat, asked = os.stat, []
    monkeypatch.setattr(os, "stat", lambda path, **k: asked.append(str(path)) or stat(path, **k))
    again, source = rank(False)
    assert again == digests and not [path for path in asked if path.endswith(".png")]
    put(tmp_path / "a.png", b"other")
    with pytest.raises(Unreadable, match="changed since the run began"):
        source.read(0)
