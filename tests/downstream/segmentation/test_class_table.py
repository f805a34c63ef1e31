"""Class tables: three ways to write one, and what is wrong with one in one sentence."""

from __future__ import annotations

import json

import pytest
from mask_sets import TABLE, folder, ids

from downstream.segmentation.data.class_table import read_table
from downstream.segmentation.data.masks import open_masks
from ssld.common.errors import InputError


def test_a_table_reads_alike_from_json_yaml_and_csv(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(TABLE))
    (tmp_path / "a.yaml").write_text(
        "ignore: 2\nclasses:\n- {id: 3, name: sky, color: '#0000ff'}\n"
        "- {id: 0, name: road, color: [128, 64, 128]}\n- {id: 1, name: car, color: '255,0,0'}\n"
    )
    (tmp_path / "a.csv").write_text(
        "id,name,colour,ignore\n3,sky,#0000FF,\n0,road,128 64 128,no\n1,car,#ff0000,\n2,,,yes\n"
    )
    tables = [read_table(tmp_path / f"a.{ending}") for ending in ("json", "yaml", "csv")]
    for table in tables:
        assert table.names == ["sky", "road", "car"]
        assert [row.id for row in table.classes] == [3, 0, 1] and table.ignored == [2]
        assert table.palette.tolist() == [[0, 0, 255], [128, 64, 128], [255, 0, 0]]


def test_255_is_ignored_only_where_a_table_says_nothing_of_ignoring(tmp_path):
    for tree, ignored in (
        (["a", "b"], [255]),
        ({"classes": ["a", "b"], "ignore": []}, []),
        ({"classes": ["a", "b"], "ignore": 7}, [7]),
        ([{"id": 0, "name": "a"}, {"id": 255, "name": "b"}], []),
    ):
        (tmp_path / "classes.json").write_text(json.dumps(tree))
        assert read_table(tmp_path / "classes.json").ignored == ignored


@pytest.mark.parametrize(
    "tree, said",
    [
        ("nothing", r"no list of classes"),
        (["a"], r"1 classes; give a row to each of 2 to 254"),
        ([f"c{i}" for i in range(255)], r"255 classes"),
        (["a", 3], r"classes\[1\]: is 3; give a name"),
        ([{"id": 0, "name": "a"}, {"name": "b"}], r"classes\[1\]: the field id is missing"),
        ([{"id": 0, "label": "a"}], r"classes\[0\]: the field name is missing \(label is none"),
        ([{"id": -1, "name": "a"}], r"classes\[0\]: id is -1; give a whole number"),
        ([{"id": 1.5, "name": "a"}], r"classes\[0\]: id is 1.5"),
        ([{"id": True, "name": "a"}], r"classes\[0\]: id is True"),
        ([{"id": 0, "name": "a"}, {"id": 0, "name": "b"}], r"id 0 belongs to both 'a' .* and 'b'"),
        (["a", "a"], r"name 'a' belongs to both"),
        ([{"id": 0, "name": "a", "colour": "red"}], r"classes\[0\]: colour is 'red'; give #rrgg"),
        ([{"id": 0, "name": "a", "colour": [0, 0, 256]}], r"classes\[0\]: colour is \[0, 0, 256\]"),
        ([{"id": 0, "name": "a", "ignore": "maybe"}], r"classes\[0\]: ignore is 'maybe'"),
        ({"classes": ["a", "b"], "ignore": [1]}, r"ignore: 1 is the id of the class 'b', too"),
        ({"classes": ["a", "b"], "ignore": "x"}, r"ignore is 'x'; give a whole number"),
    ],
)
def test_a_wrong_table_is_refused_with_its_row_and_field(tmp_path, tree, said):
    (tmp_path / "classes.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=said) as caught:
        read_table(tmp_path / "classes.json")
    assert "classes.json" in str(caught.value)


def test_a_table_that_cannot_be_parsed_is_refused(tmp_path):
    for name, text, said in (
        ("a.json", "{", "not JSON"),
        ("a.yaml", "a: [", "not YAML"),
        ("a.csv", "0,sky\n", "columns id and name"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=said):
            read_table(tmp_path / name)


def test_two_tables_are_refused(tmp_path):
    path = folder(tmp_path, {"a": ids()})
    (tmp_path / "classes.csv").write_text("id,name\n0,a\n1,b\n")
    with pytest.raises(InputError, match=r"has classes\.json and classes\.csv; keep one"):
        open_masks(path)
