"""Tables as the hub's `datasets` library, pandas and others write them."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from given import labels, picture, put, table

from ssld.common.errors import InputError
from ssld.data.labels import class_names, has_labels
from ssld.data.sources import key, open_source, read_address
from ssld.engine.start import fingerprint


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images(count: int, start: int = 0, paths: bool = True) -> list[dict]:
    rows = range(start, start + count)
    return [{"bytes": picture(i), "path": f"{i}.jpg" if paths else None} for i in rows]


@pytest.mark.parametrize("column", ["image", "img", "photo"])
@pytest.mark.parametrize("label", ["label", "fine_label"])
def test_a_table_of_the_hub(tmp_path, column, label):
    names = ["zebra", "ape", "bee"]  # in an order of its own
    columns = {column: images(4), label: [2, 0, -1, 1], "coarse": [0, 0, 0, 0]}
    path = table(tmp_path / "train-0.parquet", names, **columns)
    source = pickle.loads(pickle.dumps(open_source(path)))
    ids = [f"train-0/{i}.jpg" for i in range(4)]
    assert labels(source) == dict(zip(ids, ["bee", "zebra", None, "ape"], strict=True))
    assert source.class_names == class_names([source]) == names
    for i in range(4):
        assert source.read(i) == read_address(source.address(i)) == picture(i)
    assert key(source.sample_id(1)) == "1"
    assert source.labeled().tolist() == [True, True, False, True]


def test_ids_where_paths_are_none_or_twice(tmp_path):
    path = table(tmp_path / "x.parquet", image=images(2, paths=False))
    assert list(labels(open_source(path))) == ["x/x-000000", "x/x-000001"]
    twice = [{"bytes": picture(i), "path": "same.jpg"} for i in range(2)]
    path = table(tmp_path / "y.parquet", image=twice)
    assert list(labels(open_source(path))) == ["y/y-000000", "y/y-000001"]
    path = table(tmp_path / "z.parquet", image=pa.array([picture(1)], pa.large_binary()))
    assert open_source(path).read(0) == picture(1)


def test_images_that_are_not_in_the_table(tmp_path):
    put(tmp_path / "pictures/1.png", 1)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": "pictures/1.png"}], kind)
    source = open_source(table(tmp_path / "t.parquet", image=rows))
    assert source.read(0) == picture(1) and source.address(0).path.endswith("pictures/1.png")
    rows = pa.array([{"bytes": picture(2), "path": "x"}, {"bytes": None, "path": "y"}, None], kind)
    source = open_source(table(tmp_path / "u.parquet", image=rows))
    assert [source.read(i) for i in range(3)] == [picture(2), b"", b""]  # one by one unreadable


@pytest.mark.parametrize("how", ["pattern", "folder", "deeper", "braces", "remote"])
def test_several_files_are_one_source(tmp_path, how):
    import fsspec

    root = tmp_path if how != "deeper" else tmp_path / "data"
    for i in range(3):
        rows = {"image": images(2, 2 * i), "label": [i, None]}
        table(root / f"train-{i}-of-3.parquet", ["a", "b", "c"], **rows)
    path = {
        "pattern": f"{tmp_path}/train-*.parquet",
        "braces": f"{tmp_path}/train-{{0..2}}-of-3.parquet",
        "remote": "memory://several",
    }.get(how, str(tmp_path))
    if how == "remote":
        for file in root.glob("*.parquet"):
            with fsspec.open(f"memory://several/{file.name}", "wb") as copy:
                copy.write(file.read_bytes())
    source = pickle.loads(pickle.dumps(open_source(path)))
    assert list(labels(source).values()) == ["a", None, "b", None, "c", None]
    assert [source.read(i) for i in range(6)] == [picture(i) for i in range(6)]
    assert source.sample_id(5) == "train-2-of-3/5.jpg" and source.class_names == ["a", "b", "c"]
    mixed = np.array([5, 0, 3])
    ids, sizes = source.listed(mixed)
    assert ids == [source.sample_id(i) for i in mixed] and sizes == [None] * 3
    assert fingerprint([source]) == fingerprint(source.files)


def test_several_files_that_do_not_go_together(tmp_path):
    table(tmp_path / "a.parquet", sample_id=["x"], bytes=[picture(1)], label=[1])
    table(tmp_path / "b.parquet", sample_id=["x"], bytes=[picture(1)], label=[1])
    with pytest.raises(InputError, match="'x' is in more than one of the files"):
        open_source(f"{tmp_path}/*.parquet")
    table(tmp_path / "b.parquet", sample_id=["y"], bytes=[picture(1)], label=["one"])
    with pytest.raises(InputError, match="names in .*b.parquet and numbers in .*a.parquet"):
        open_source(str(tmp_path))
    table(tmp_path / "b.parquet", words=["y"])
    with pytest.raises(InputError, match="b.parquet: has the columns words; a manifest needs"):
        open_source(str(tmp_path))


def test_any_row_with_a_label_is_enough(tmp_path, capsys):
    rows = {"bytes": [picture(i) for i in range(3)], "sample_id": ["a", "b", "c"]}
    first_null = open_source(table(tmp_path / "n.parquet", label=[None, 1, 2], **rows))
    assert has_labels([first_null]) and "labels are numbers, 1 without" in capsys.readouterr().err
    none = pa.array([None] * 3, pa.int64())
    assert not has_labels([open_source(table(tmp_path / "m.parquet", label=none, **rows))])
    assert not has_labels([open_source(table(tmp_path / "o.parquet", label=[-1] * 3, **rows))])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (pa.array([3, None, -1], pa.int32()), [3, None, None]),
        (pa.array([3, 0, 255], pa.uint8()), [3, 0, 255]),
        (pa.array([3.0, None, float("nan")]), [3, None, None]),  # what pandas makes of null
        (pa.array(["cat", "", None]), ["cat", None, None]),
        (pa.array(["cat", "dog", "cat"]).dictionary_encode(), ["cat", "dog", "cat"]),
        (pa.array([7, None, 7]).dictionary_encode(), [7, None, 7]),
        (pa.array(["cat", "dog", None], pa.large_string()), ["cat", "dog", None]),
        (pa.array(["cat", "dog", None], pa.string_view()), ["cat", "dog", None]),
        (pa.array([None] * 3), [None] * 3),
        (pa.array([-7, 1, 2]), [-7, 1, 2]),  # refused where it is used
    ],
)
def test_labels_of_any_type(tmp_path, given, expected):
    rows = {"bytes": [picture(i) for i in range(3)], "sample_id": ["a", "b", "c"]}
    source = open_source(table(tmp_path / "t.parquet", label=given, **rows))
    assert list(labels(source).values()) == expected
    assert source.labeled().tolist() == [value is not None for value in expected]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([0.5, 1.0], "the column label is double; give integers or strings"),
        ([float("inf"), 1.0], "the column label is double"),
        ([True, False], "the column label is bool"),
        ([[1], [2]], "the column label is list"),
        (pa.array([1, 2**63], pa.uint64()), "beyond 64 bits"),
    ],
)
def test_labels_that_are_none(tmp_path, given, said):
    rows = {"bytes": [picture(i) for i in range(2)], "sample_id": ["a", "b"]}
    with pytest.raises(InputError, match=said):
        open_source(table(tmp_path / "t.parquet", label=given, **rows))


@pytest.mark.parametrize("label", [3, -2])
def test_a_label_beyond_the_names(tmp_path, label):
    path = table(tmp_path / "t.parquet", ["a", "b", "c"], image=images(2), label=[0, label])
    with pytest.raises(InputError, match=f"row 1 has label {label}, but the file names 3 classes"):
        open_source(path)


@pytest.mark.parametrize(
    "metadata", [b"{", b"[]", b"null", b'{"info": {"features": []}}', b"[" * 100_000, b"\xff",
                 b'{"info": {"features": {"label": {"names": [1, 2]}}}}',
                 b'{"info": {"features": {"label": {"names": ["a", "a"]}}}}']
)  # fmt: skip
def test_metadata_that_say_nothing(tmp_path, metadata):
    made = pa.table({"image": images(1), "label": [5]})
    pq.write_table(made.replace_schema_metadata({"huggingface": metadata}), tmp_path / "t.parquet")
    assert list(labels(open_source(str(tmp_path / "t.parquet"))).values()) == [5]


def test_folders_that_are_called_parquet_and_tables_beside_images(tmp_path, capsys):
    rows = {"image": images(1), "label": [1]}
    table(tmp_path / "spark.parquet/part-0.parquet", **rows)
    table(tmp_path / "spark.parquet/.part-0.parquet.crc", **rows)
    assert len(open_source(str(tmp_path / "spark.parquet"))) == 1
    put(tmp_path / "pictures/1.png")
    table(tmp_path / "pictures/list.parquet", **rows)
    capsys.readouterr()
    assert list(labels(open_source(str(tmp_path / "pictures")))) == ["1.png"]
    assert "left out: 1 .parquet (list.parquet)" in capsys.readouterr().err
