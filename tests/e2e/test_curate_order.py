"""The selection is a matter of the images alone: not of their order, names, shards or batches."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import curation
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssld.__main__ import main
from ssld.curate.select import score
from ssld.data.loading import ViewBatches, eval_batches
from ssld.data.sources import open_source
from ssld.data.transforms import EvalView

K = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with curation.features_once():
        yield curation.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True, scope="module")
def ties():
    """Probabilities so coarse that many images are equally sure."""
    patch = pytest.MonkeyPatch()
    patch.setattr(score, "STEP", 0.125)
    yield
    patch.undo()


def select(world: curation.World, teacher: Path, out: Path, **changes: Any) -> Path:
    settings = world.settings(out, teacher, **{"select.k": K, **changes})
    assert main(["curate", "select", *settings]) == 0
    return out


@pytest.fixture(scope="module")
def reference(world, teacher_file) -> Path:
    return select(world, teacher_file, world.root / "reference")


def chosen(out: Path) -> list[tuple]:
    rows = curation.table(out, "selected")
    return [(row["class"], row["rank"], row["score"], row["sha256"]) for row in rows]


def test_there_are_ties_at_the_last_place(reference):
    rows = curation.table(reference, "selected")
    last = min(row["score"] for row in rows if row["rank"] == K)
    beyond = [r for r in curation.table(reference, "dropped") if r["reason"] == "beyond_k"]
    assert any(row["score"] == last for row in beyond)


@pytest.mark.parametrize("changes", [{"shard_size": 1000}, {"shard_size": 2}, {"batch_size": 3}])
def test_sizes_of_work_change_nothing(changes, world, teacher_file, reference, tmp_path):
    assert chosen(select(world, teacher_file, tmp_path, **changes)) == chosen(reference)


def test_order_names_and_shards_change_nothing(world, teacher_file, reference, tmp_path):
    """Backwards in tars within tars, under other names, and as rows of a Parquet file."""
    files = sorted((world.folder("gallery")).iterdir(), reverse=True)
    nested(tmp_path / "whole.tar", {f"n{i % 2}/{90 - i}{f.suffix}": f for i, f in enumerate(files)})
    rows = {"sample_id": [f"x{i}" for i in range(len(files))]}
    rows["bytes"] = [file.read_bytes() for file in files]
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    for name in ("whole.tar", "rows.parquet"):
        out = select(world, teacher_file, tmp_path / "out", gallery=tmp_path / name)
        assert chosen(out) == chosen(reference)
        manifest = open_source(str(out / "selected.parquet"))
        view = EvalView(32, 1.0, "bilinear")
        read = list(eval_batches(ViewBatches([manifest], view), batch_size=8))
        assert sum(len(batch.ids) for batch in read) == len(manifest)
        assert not any(batch.unreadable for batch in read)


def nested(whole: Path, files: dict[str, Path]) -> None:
    """A tar of one tar for each folder."""
    with tarfile.open(whole, "w") as archive:
        for folder in sorted({name.partition("/")[0] for name in files}):
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w") as inner:
                for name, file in files.items():
                    if name.startswith(folder):
                        inner.add(file, name.partition("/")[2])
            member = tarfile.TarInfo(f"{folder}.tar")
            member.size = len(content.getvalue())
            content.seek(0)
            archive.addfile(member, content)


def test_an_unrelated_image_changes_nothing_else(teacher_file, tmp_path):
    world = curation.make(tmp_path / "world")
    before = select(world, teacher_file, tmp_path / "before", **{"select.k": 100})
    new = curation.save(curation.picture(4711), world.folder("gallery") / "a new one.jpg")
    after = select(world, teacher_file, tmp_path / "after", **{"select.k": 100})
    for name, column in (("pairs", "gallery"), ("dropped", "path"), ("selected", "location")):
        rows = curation.table(after, name)
        others = [row for row in rows if not row[column].endswith(new)]
        expected = curation.table(before, name)
        if name == "selected":  # it takes a place among the others
            assert len(rows) == len(others) + 1
            for row in [*others, *expected]:
                del row["rank"]
        assert others == expected
