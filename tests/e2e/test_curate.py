"""`ssld curate`, then `ssld distill` on its manifest, as a user runs them: what was planted in the
gallery is found, and nothing of it reaches training."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import curation
import pictures
import pytest
import sabotage
import timm
import yaml
from curation import names, table
from filelock import FileLock
from safetensors.torch import save_file

from ssld.__main__ import main


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with curation.features_once():
        yield curation.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def curated(world, teacher_file) -> Path:
    """The folder of a whole curation."""
    out = world.root / "out"
    with pictures.drawn():
        assert main(["curate", *world.settings(out, teacher_file)]) == 0
    return out


def test_every_gallery_image_is_selected_or_dropped_for_its_reason(world, curated):
    assert names(table(curated, "selected"), "location") == world.others
    reasons = {Path(row["path"]).name: row["reason"] for row in table(curated, "dropped")}
    assert reasons == {
        **dict.fromkeys(world.leaks, "protected"),
        **dict.fromkeys(world.labeled, "labeled"),
        **dict.fromkeys(world.unreadable, "unreadable"),
        **dict.fromkeys(world.copies, "copy"),
    }


def test_dropped_names_the_protected_image(curated):
    found = {Path(row["path"]).name: row["protected"] for row in table(curated, "dropped")}
    for i in range(len(curation.EDITS)):
        assert Path(found[f"img{3 * i:02d}.jpg"]).name == f"v{i}.jpg"
    assert Path(found["a exact é.jpg"]).name == "v0.jpg"
    assert found["empty.jpg"] is None


def test_the_manifest_counts_what_the_tables_hold(world, curated):
    manifest = json.loads((curated / "manifest.json").read_text())
    assert manifest["selected"] == len(world.others) == sum(manifest["achieved_k"])
    assert manifest["reasons"] == {"copy": 1, "labeled": 1, "protected": 8, "unreadable": 2}
    assert manifest["counts"]["readable"] == manifest["counts"]["gallery"] - 2
    assert {"a": "gallery", "b": "labeled", "exact": 1, "near": None} in manifest["leakage"]
    assert {"a": "gallery", "b": "protected", "exact": 2, "near": 8} in manifest["leakage"]


def test_ranks_count_from_the_surest_of_each_class(curated):
    rows = table(curated, "selected")
    for cls in {row["class"] for row in rows}:
        mine = [row for row in rows if row["class"] == cls]
        assert [row["rank"] for row in mine] == list(range(1, len(mine) + 1))
        assert [row["score"] for row in mine] == sorted((r["score"] for r in mine), reverse=True)


def test_the_settings_are_in_the_folder(curated, world):
    settings = yaml.safe_load((curated / "config.yaml").read_text())
    assert settings["gallery"] == [str(world.folder("gallery"))]
    assert settings["select"]["k"] == 100


def test_no_planted_leak_reaches_training(world, curated, teacher_file, tmp_path):
    """The manifest is an unlabeled source as it is; the samples of every step are noted."""
    seen = tmp_path / "seen.jsonl"
    words = {
        "out": tmp_path / "run",
        "data.labeled": world.folder("labeled"),
        "data.unlabeled": curated / "selected.parquet",
        "teacher.checkpoint": teacher_file,
        "teacher.verify": "false",
        "student.arch": "test_resnet",
        "augment.size": 32,
        "epochs": 2,
        "batch_size": 4,
        "data.workers": 0,
        "data.holdout": 0,
        "trackers": "[]",
    }
    argv = ["distill", *(f"--{name}={value}" for name, value in words.items())]
    note = functools.partial(sabotage.note_samples, str(seen))
    code, said = sabotage.run(argv, tmp_path / "said.txt", [note])
    assert code == 0, said
    trained = {Path(x).name for line in seen.read_text().splitlines() for x in json.loads(line)[1]}
    assert trained >= world.others
    assert not trained & (world.leaks | world.labeled | world.unreadable | world.copies)


def test_a_second_call_does_nothing_again(world, curated, teacher_file):
    before = curation.tables(curated)
    lines = (curated / "log.jsonl").read_text().splitlines()
    assert main(["curate", "select", *world.settings(curated, teacher_file)]) == 0
    assert curation.tables(curated) == before
    assert (curated / "log.jsonl").read_text().splitlines() == lines


def test_all_of_the_gallery_examined_first_selects_the_same(world, curated, teacher_file, tmp_path):
    """`duplicates` by itself looks at everything, `select` only at what it needs."""
    few = {"select.k": 3}
    for stages, out in (((["select"],), "lazy"), ((["duplicates"], ["select"]), "whole")):
        for stage in stages:
            settings = world.settings(tmp_path / out, teacher_file, **few)
            assert main(["curate", *stage, *settings]) == 0
    lazy, whole = (curation.tables(tmp_path / out) for out in ("lazy", "whole"))
    assert lazy["selected.parquet"] == whole["selected.parquet"]
    examined = [json.loads(x["manifest.json"])["counts"]["examined"] for x in (lazy, whole)]
    assert examined[0] < examined[1]


def test_an_override_of_the_report_is_honoured(world, curated, teacher_file, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(curated, out)
    pair = next(row for row in table(out, "pairs") if row["gallery"].endswith("img00.jpg"))
    clear = next(row for row in table(out, "pairs") if row["gallery"].endswith("new03.jpg"))
    lines = [
        {"gallery": pair["gallery"], "protected": pair["protected"], "verdict": "clear"},
        {"gallery": clear["gallery"], "protected": clear["protected"], "verdict": "duplicate"},
    ]
    (out / "overrides.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["curate", "select", *world.settings(out, teacher_file)]) == 0
    kept = names(table(out, "selected"), "location")
    assert "img00.jpg" in kept and "new03.jpg" not in kept
    assert sum(row["overridden"] for row in table(out, "pairs")) == 2


def test_duplicates_alone_with_and_without_a_teacher(world, teacher_file, tmp_path):
    folders = [f"--{name}={world.folder(name)}" for name in ("protected", "gallery")]
    for teacher in ([], [f"--teacher.checkpoint={teacher_file}"]):
        out = tmp_path / f"out{len(teacher)}"
        words = [*folders, "--out", str(out), "--workers=0", *teacher]
        assert main(["curate", "duplicates", *words]) == 0
        rows = table(out, "pairs")
        found = [row for row in rows if row["verdict"] == "duplicate"]
        assert names(found, "gallery") == world.leaks
        assert {row["verdict"] for row in rows} == {"duplicate", "clear"}
        asked = {"gallery", "protected", "cosine", "inliers", "mirrored", "ncc", "verdict"}
        assert asked <= rows[0].keys()


def bad(words: list[str], capsys) -> str:
    """Exit code 2 and one sentence."""
    assert main(["curate", *words]) == 2
    *sources, said = capsys.readouterr().err.strip().splitlines()
    assert all(re.search(r": \d+ images?, ", line) for line in sources), sources
    return said


def test_an_empty_protected_set_is_refused(world, teacher_file, tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    settings = world.settings(tmp_path / "out", teacher_file, protected=tmp_path / "nothing")
    said = bad(settings, capsys)
    assert "nothing" in said and "an empty protected set would protect nothing" in said
    assert not (tmp_path / "out").exists()
    assert "protected is empty" in bad(
        world.settings(tmp_path / "out", teacher_file, protected="[]"), capsys
    )


def test_a_protected_set_of_which_nothing_can_be_read_is_refused(
    world, teacher_file, tmp_path, capsys
):
    (tmp_path / "v").mkdir()
    (tmp_path / "v/a.jpg").write_bytes(b"no image")
    settings = {"protected": tmp_path / "v", "max_unreadable": 1}
    said = bad(world.settings(tmp_path / "out", teacher_file, **settings), capsys)
    assert "none of the images can be read" in said


def test_structureless_protected_images_are_reported(world, teacher_file, tmp_path, capsys):
    flat = curation.Image.new("RGB", (60, 60), (200, 30, 30))
    shutil.copytree(world.folder("protected"), tmp_path / "v")
    curation.save(flat, tmp_path / "v/flat.png")
    settings = world.settings(tmp_path / "out", teacher_file, protected=tmp_path / "v")
    assert main(["curate", "select", *settings]) == 0
    assert "1 protected image(s) have too little structure" in capsys.readouterr().out
    warnings = json.loads((tmp_path / "out/manifest.json").read_text())["warnings"]
    assert any("flat.png" in line for line in warnings)


def test_a_teacher_of_other_classes_than_the_labeled_set_is_refused(world, tmp_path, capsys):
    weights = timm.create_model("test_resnet", num_classes=5).state_dict()
    save_file(weights, tmp_path / "five.safetensors", {"architecture": "test_resnet"})
    said = bad(world.settings(tmp_path / "out", tmp_path / "five.safetensors"), capsys)
    assert "3 classes" in said and "5" in said and str(world.folder("labeled")) in said


def test_a_teacher_near_chance_is_refused(world, teacher_file, tmp_path, capsys):
    settings = world.settings(tmp_path / "out", teacher_file, **{"teacher.verify": "true"})
    assert "the teacher is near chance" in bad(settings, capsys)


def test_too_many_unreadable_files_stop_it(world, teacher_file, tmp_path, capsys):
    settings = world.settings(tmp_path / "out", teacher_file, max_unreadable=0.05)
    said = bad(settings, capsys)
    assert "2 of 27" in said and "max_unreadable" in said
    assert len(list((tmp_path / "out/index").glob("gallery-*.parquet"))) == 4  # still valid


def test_a_full_disk_leaves_valid_tables(world, teacher_file, tmp_path):
    out = tmp_path / "out"
    settings = world.settings(out, teacher_file)
    full = functools.partial(
        sabotage.at_call, "ssld.curate.tables:write_table", 6,
        functools.partial(sabotage.quota, 2048),  # said.txt itself is shorter
    )  # fmt: skip
    code, said = sabotage.run(["curate", "select", *settings], tmp_path / "said.txt", [full])
    assert code == 2 and "cannot be written (File too large)" in said
    assert [path.name for path in out.rglob(".*") if path.is_file()] == [".lock"]
    for path in out.rglob("*.parquet"):
        curation.pq.read_table(path)
    assert main(["curate", "select", *settings]) == 0
    assert names(table(out, "selected"), "location") == world.others


def test_select_without_a_teacher_is_refused(world, tmp_path, capsys):
    assert "teacher.arch is missing" in bad(world.settings(tmp_path / "out", None), capsys)


def test_a_folder_of_something_else_is_left_alone(world, teacher_file, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert "not the folder of a curation" in bad(world.settings(tmp_path, teacher_file), capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_wrong_override_is_refused(world, teacher_file, curated, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(curated, out)
    (out / "overrides.jsonl").write_text('{"gallery": "a.jpg"}\n')
    said = bad(["select", *world.settings(out, teacher_file)], capsys)
    assert "overrides.jsonl line 1" in said


def test_excluded_keys_from_a_source_and_a_list(world, curated, teacher_file, tmp_path):
    shutil.copytree(curated, tmp_path / "out")
    (tmp_path / "keys.txt").write_text("new04\n\nnew05\n")
    curation.save(curation.picture(999), tmp_path / "t/x/new06.jpg")
    keys = json.dumps([str(tmp_path / "keys.txt"), str(tmp_path / "t")])
    settings = world.settings(tmp_path / "out", teacher_file, **{"select.exclude_keys": keys})
    assert main(["curate", "select", *settings]) == 0
    gone = [r for r in table(tmp_path / "out", "dropped") if r["reason"] == "excluded_key"]
    assert names(gone, "path") == {"new04.jpg", "new05.jpg", "new06.jpg"}


def test_unsure_images_are_dropped_below_min_score(world, teacher_file, curated, tmp_path):
    shutil.copytree(curated, tmp_path / "out")
    rows = table(curated, "selected")
    least = sorted(row["score"] for row in rows)[len(rows) // 2]
    settings = world.settings(tmp_path / "out", teacher_file, **{"select.min_score": float(least)})
    assert main(["curate", "select", *settings]) == 0
    kept = table(tmp_path / "out", "selected")
    assert names(kept, "location") == names([r for r in rows if r["score"] >= least], "location")


def test_a_changed_image_is_indexed_and_judged_anew(teacher_file, tmp_path):
    world = curation.make(tmp_path / "world", clean=10)
    settings = world.settings(tmp_path / "out", teacher_file)
    assert main(["curate", "select", *settings]) == 0
    curation.save(curation.ImageOps.mirror(curation.picture(2)), world.folder("gallery/new02.jpg"))
    assert main(["curate", "select", *settings]) == 0
    assert "new02.jpg" not in names(table(tmp_path / "out", "selected"), "location")


def test_nothing_left_to_select_is_an_empty_table(world, teacher_file, tmp_path):
    """The gallery is the protected set itself, under other names."""
    gallery = tmp_path / "gallery"
    shutil.copytree(world.folder("protected"), gallery)
    settings = world.settings(tmp_path / "out", teacher_file, gallery=gallery)
    assert main(["curate", *settings]) == 0
    assert table(tmp_path / "out", "selected") == []
    assert {row["reason"] for row in table(tmp_path / "out", "dropped")} == {"protected"}
    assert (tmp_path / "out/report.html").is_file()


def test_an_override_holds_for_the_same_picture_under_another_name(
    world, curated, teacher_file, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(curated, out)
    settings = world.settings(out, teacher_file)
    line = {
        "gallery": str(world.folder("gallery") / "twin of new00.jpg"),
        "protected": str(world.folder("protected") / "v4.jpg"),
        "verdict": "duplicate",
    }
    (out / "overrides.jsonl").write_text(json.dumps(line) + "\n")
    assert main(["curate", "select", *settings]) == 0
    assert names(table(out, "selected"), "location") == world.others - {"new00.jpg"}


def test_tables_that_fit_no_more_are_removed_and_facts_that_fit_are_kept(
    world, curated, teacher_file, tmp_path, capsys
):
    out = tmp_path / "out"
    shutil.copytree(curated, out)
    before = json.loads((out / "manifest.json").read_text())
    assert main(["curate", "duplicates", *world.settings(out, teacher_file)]) == 0
    after = json.loads((out / "manifest.json").read_text())
    assert after["achieved_k"] == before["achieved_k"] and (out / "selected.parquet").is_file()
    other = world.settings(out, teacher_file, gallery=world.folder("labeled"))
    assert main(["curate", "index", *other]) == 0
    assert not [*out.glob("*.parquet")] and "removed what was made" in capsys.readouterr().out


def test_one_command_at_a_time(world, curated, teacher_file, capsys):
    with FileLock(curated / ".lock"):
        said = bad(["select", *world.settings(curated, teacher_file)], capsys)
    assert "another command is at work there" in said


def test_a_missing_list_of_keys_is_noticed_before_anything_is_written(
    world, teacher_file, tmp_path, capsys
):
    missing = {"select.exclude_keys": tmp_path / "keys.txt"}
    said = bad(world.settings(tmp_path / "out", teacher_file, **missing), capsys)
    assert "keys.txt: cannot be read" in said and not (tmp_path / "out").exists()
