"""One process, two or three, killed or not: the same bytes."""

from __future__ import annotations

import json
import shutil
import tarfile
from functools import partial
from pathlib import Path

import labeling
import pytest
import sabotage
from labeling import contents, images
from scenes import boxes, make_scenes

TASKS = ("detection", "segmentation")
WRITE = "downstream.pseudo_label.shards:Shards.write"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A run of each task, and unlabeled images in a folder and a tar."""
    root = make_scenes(tmp_path_factory.mktemp("scenes"))
    sets = [boxes(root, split) for split in ("train", "val")]
    labeling.detector(root / "detection", *sets, ["red", "green", "blue"])
    sets = [f"{root}::{split}" for split in ("train", "val")]
    labeling.segmenter(root / "segmentation", *sets, ["ground", "red", "green", "blue"])
    with tarfile.open(root / "u.tar", "w") as tar:
        for path in sorted(images(root / "packed", 3, (64, 48), first=20).iterdir()):
            tar.add(path, path.name)
    images(root / "u", 4)
    shutil.copy(root / "images/train/train1.png", root / "u")
    (root / "u/broken.png").write_bytes(b"no image")
    return root


def words(root: Path, task: str, out: Path) -> list[str]:
    sources = json.dumps([str(root / name) for name in ("u", "u.tar")])
    return ["pseudo-label", str(root / task), f"--images={sources}", f"--out={out}",
            "--shard_size=2", "--max_unreadable=.5", "--pixel_threshold=.2",
            "--workers=1"]  # fmt: skip


@pytest.fixture(scope="module", params=TASKS)
def one(request, root, tmp_path_factory) -> tuple[str, dict[str, bytes]]:
    """What an undisturbed process writes."""
    folder = tmp_path_factory.mktemp("one")
    code, said = sabotage.run(words(root, request.param, folder / "out"), folder / "said")
    assert code == 0, said
    files = contents(folder / "out")
    assert len(files) == (4 if request.param == "detection" else 11)
    log = [json.loads(line) for line in (folder / "out/log.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in log} == {
        "annotate", "index images", "index labeled", "index val"
    }  # fmt: skip
    assert all(line["images_per_second"] > 0 and line["left_seconds"] >= 0 for line in log)
    assert log[-1]["left"] == 0
    return request.param, files


def test_processes_agree(one, root, tmp_path):
    task, expected = one
    processes = {"detection": 3, "segmentation": 2}[task]
    started = sabotage.ranks(
        words(root, task, tmp_path / "out"), tmp_path / "said", ((),) * processes
    )
    for process in started:
        assert process.end() == 0, process.words
    assert contents(tmp_path / "out") == expected
    lines = (tmp_path / "out/log.jsonl").read_text().splitlines()
    assert {json.loads(line)["process"] for line in lines} == set(range(processes))


KILLS = {
    "detection": [
        (WRITE, 1, False),
        ("os:fsync", 4, False),  # half a file has another name
        (WRITE, 7, True),
        ("downstream.pseudo_label.boxes:write_atomically", 1, True),
        ("downstream.pseudo_label.manifest:write_atomically", 2, False),
    ],
    "segmentation": [
        ("os:fsync", 1, False),
        (WRITE, 10, False),
        ("downstream.pseudo_label.masks:write_atomically", 3, True),
    ],
}
"""Where it is killed, each time when it was started again."""


def test_a_killed_one_goes_on(one, root, tmp_path):
    task, expected = one
    command, out = words(root, task, tmp_path / "out"), tmp_path / "out"
    done: dict[str, int] = {}
    for i, kill in enumerate(KILLS[task]):
        harm = partial(sabotage.at_call, kill[0], kill[1], sabotage.sigkill, kill[2])
        code, said = sabotage.run(command, tmp_path / f"killed {i}", [harm])
        assert code == -9, said
        assert not (out / "pseudo_labels.json").exists()
        now = {x.name: x.stat().st_mtime_ns for x in out.rglob("*-*.arrow") if x.name[0] != "."}
        assert done.items() <= now.items()  # what was there is not made again
        done = now
    assert len(done) == 5 + 3 + 3 + 5
    code, said = sabotage.run(command, tmp_path / "resumed")
    assert code == 0, said
    assert contents(out) == expected
    assert {path.name for path in out.rglob(".*")} <= {".lock"}


def test_a_lost_process_is_said_and_others_go_on(root, tmp_path):
    command = words(root, "detection", tmp_path / "out")
    harm = partial(sabotage.at_call, WRITE, 3, sabotage.sigkill)
    started = sabotage.ranks(command, tmp_path / "said", ((), (harm,)))
    codes = [process.end() for process in started]
    assert codes == [75, -9], [process.words for process in started]
    assert "the same command goes on" in started[0].words


def test_a_refusal_reaches_all_processes(root, tmp_path):
    command = ["pseudo-label", str(root / "detection"), f"--images={root / 'images/val'}",
               f"--out={tmp_path / 'out'}"]  # fmt: skip
    started = sabotage.ranks(command, tmp_path / "said", ((), ()))
    assert [process.end() for process in started] == [2, 2]
    assert "5 of 5 are held out" in started[0].words


def test_one_command_at_a_time(root, tmp_path):
    from ssld.common.files import locked

    with locked(tmp_path / "out"):
        code, said = sabotage.run(words(root, "detection", tmp_path / "out"), tmp_path / "said")
    assert code == 2 and "another command is at work" in said
