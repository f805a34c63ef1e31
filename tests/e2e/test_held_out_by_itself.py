"""`ssld detection` without `data.val`: later commands know what was held out."""

from __future__ import annotations

import json
from pathlib import Path

from scenes import boxes, make_scenes

from downstream.pseudo_label.config import PseudoLabelConfig
from downstream.pseudo_label.labeled import open_labeled, open_val, paths_of
from downstream.pseudo_label.teacher import describe
from ssld.cli.run import main
from ssld.common.settings_file import read_settings

SMALL = [
    *("detection", "--backbone=test_resnet", "--backbone.pretrained=false", "--steps=1"),
    *("--batch_size=2", "--data.workers=0", "--detector.name=fcos", "--trackers=[]"),
    *("--augment.sizes=[64]", "--augment.test_size=64"),
]


def test_what_is_held_out_is_known_afterwards(tmp_path, capsys) -> None:
    scenes = make_scenes(tmp_path / "scenes", train=20, val=3)
    given = [boxes(scenes, "train"), boxes(scenes, "val")]
    run, first = tmp_path / "run", str(scenes / "train.json")
    assert main([*SMALL, f"--data.train={json.dumps(given)}", f"--out={run}"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "held out" in line]
    assert len(said) == 1 and said[0].startswith("held out: 2 images of data.train")
    lines = (run / "held_out.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [first] * 2
    assert not set(lines) & set((run / "labeled.txt").read_text().splitlines())
    assert json.loads((run / "run.json").read_text())["held_out"] == {first: 2}
    assert read_settings(Path(run / "config.yaml"))["data"]["holdout"] == 1000

    description = describe(str(run))
    config = PseudoLabelConfig(run=str(run), images=["x"], out="y")
    labeled, val, part, held_out = paths_of(config, description)
    (source,) = open_val(val, held_out, "detection", description.class_names)
    ids = {f"{first}\t{source.sample_id(i)}" for i in range(len(source))}
    assert ids == set(lines)
    opened = open_labeled(labeled, part, description)
    assert opened is not None and opened.images == 21
