"""Folders that the hub's `datasets` library writes with `save_to_disk`, spelled as its
`arrow_dataset.py` and `dataset_dict.py` spell them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pyarrow as pa
import pytest
from given import labels, picture, put

from ssld.common.errors import InputError
from ssld.data.sources import open_source, read_address
from ssld.engine.start import fingerprint

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def save(folder: Path, parts: list[list[int]], split: str = "train", image: str = "image") -> str:
    """A saved `Dataset` whose shades and labels are the numbers of `parts`, a file each."""
    features = {
        image: {"_type": "Image"},
        "label": {"names": ["zebra", "ape", "bee", "cat"], "_type": "ClassLabel"},
    }
    schema = pa.schema([(image, IMAGE), ("label", pa.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
    folder.mkdir(parents=True)
    for name, shades in zip(names, parts, strict=True):
        write(folder / name, schema, shades)
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "3d3b5d2e6e5a3d5f", "_format_columns": None, "_format_kwargs": {},
        "_format_type": None, "_output_all_columns": False, "_split": split,
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True))
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2, sort_keys=True))
    return str(folder)


def write(file: Path, schema: pa.Schema, shades: list[int]) -> None:
    """In two batches, as the library writes a thousand rows at a time."""
    rows = [{"bytes": picture(shade), "path": f"{shade}.png"} for shade in shades]
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for part in (slice(0, 1), slice(1, None)):
            columns = [pa.array(rows[part], IMAGE), pa.array(shades[part], pa.int64())]
            writer.write_batch(pa.record_batch(columns, schema=schema))


@pytest.mark.parametrize("image", ["image", "img"])
def test_a_saved_dataset(tmp_path, image):
    path = save(tmp_path / "set", [[0, 1], [3, 2]], image=image)
    write(
        tmp_path / "set/cache-1c80317fa3b1799d.arrow",
        pa.schema([(image, IMAGE), ("label", pa.int64())]),
        [9],
    )
    source = pickle.loads(pickle.dumps(open_source(path)))
    assert list(labels(source).values()) == ["zebra", "ape", "cat", "bee"]
    assert source.class_names == ["zebra", "ape", "bee", "cat"]
    assert source.sample_id(2) == "data-00000-of-00002/3.png".replace("00000-", "00001-")
    for i, shade in enumerate([0, 1, 3, 2]):
        assert source.read(i) == read_address(source.address(i)) == picture(shade)
    assert fingerprint([source]) and not list(tmp_path.glob("cache/**/*.arrow"))  # in place


def test_a_dictionary_of_datasets(tmp_path):
    for i, split in enumerate(("train", "extra", "test")):
        save(tmp_path / "dict" / split, [[i, i + 1]], split)
    (tmp_path / "dict/dataset_dict.json").write_text('{"splits": ["train", "extra", "test"]}')
    with pytest.raises(InputError, match=r"holds the splits train, extra, test, .*dict::train"):
        open_source(f"{tmp_path}/dict")
    for i, split in enumerate(("train", "extra", "test")):
        assert open_source(f"{tmp_path}/dict::{split}").read(0) == picture(i)
    with pytest.raises(InputError, match="no split is named so"):
        open_source(f"{tmp_path}/dict::val")


def test_remote_and_by_a_pattern(tmp_path):
    import fsspec

    path = Path(save(tmp_path / "set", [[0, 1], [3, 2]]))
    for file in path.iterdir():
        with fsspec.open(f"memory://saved/{file.name}", "wb") as copy:
            copy.write(file.read_bytes())
    for where in (
        "memory://saved",
        f"{path}/data-*.arrow",
        f"{path}/data-0000{{0..1}}-of-00002.arrow",
    ):
        source = open_source(where)
        assert [source.read(i) for i in range(4)] == [picture(i) for i in (0, 1, 3, 2)]


def test_images_that_are_files(tmp_path):
    put(tmp_path / "set/pictures/1.png", 1)
    kind = pa.schema([("image", IMAGE)])
    rows = pa.array([{"bytes": None, "path": str(tmp_path / "set/pictures/1.png")}], IMAGE)
    (tmp_path / "saved").mkdir()
    file = tmp_path / "saved/data-00000-of-00001.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, kind) as writer:
        writer.write_batch(pa.record_batch([rows], schema=kind))
    assert open_source(str(tmp_path / "saved")).read(0) == picture(1)


def test_damage_says_so(tmp_path):
    path = Path(save(tmp_path / "set", [[0, 1], [3, 2]]))
    file = path / "data-00001-of-00002.arrow"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])  # between batches: only the end of the stream is missing
    with pytest.raises(
        InputError, match="00001-of-00002.arrow: not a readable Arrow file .it ends"
    ):
        open_source(str(path))
    file.write_bytes(whole[: len(whole) // 2] + bytes(8))
    with pytest.raises(InputError, match="not a readable Arrow file"):
        open_source(str(path))
    file.unlink()
    with pytest.raises(InputError, match="data-00001-of-00002.arrow is missing, which state.json"):
        open_source(str(path))
    words = pa.table({"text": ["a"]})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, words.schema) as writer:
        writer.write_table(words)
    with pytest.raises(InputError, match="has the columns text; a manifest needs"):
        open_source(str(file))
