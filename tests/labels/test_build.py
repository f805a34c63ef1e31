"""What a build writes: the same whatever happens to it, readable, small, checked."""

from __future__ import annotations

import gzip
import json
import math
import re
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sabotage
import torch
from PIL import Image
from safetensors.numpy import load_file

from ssld.data.config import AugmentConfig
from ssld.data.folder import FolderSource
from ssld.data.sampling import Sampler
from ssld.data.transforms import TrainView
from ssld.labels import format as files
from ssld.labels.batches import Cycle
from ssld.labels.label_set import LabelSet
from ssld.labels.stats import describe
from ssld.models.config import TeacherConfig
from ssld.models.teacher import open_teacher

ROOT = Path(__file__).parents[2]
VIEWS, TOP_K = 3, 5


def shards(folder: Path) -> dict[str, bytes]:
    """All that a build writes but its log and facts of the machine."""
    kept = (path for path in folder.iterdir() if path.suffix in (".safetensors", ".gz"))
    return {path.name: path.read_bytes() for path in [*kept, folder / files.INDEX]}


def asked(colours: Path, teacher12: Path, number: int, view: int) -> np.ndarray:
    """The teacher's log-probabilities of one view, asked for now."""
    source = FolderSource(str(colours / "unlabeled"))
    teacher, _ = open_teacher([TeacherConfig(checkpoint=str(teacher12))], "fp32")
    pixels = TrainView(AugmentConfig(), 32, 0)(source.read(number), source.sample_id(number), view)
    return teacher(pixels[None])[0].numpy()


def test_labels_are_what_the_teacher_says_of_each_view(labels, colours, teacher12):
    stored = LabelSet(str(labels)).labels("train")
    for number, view in ((0, 0), (17, 2), (59, 1)):
        expected = asked(colours, teacher12, number, view)
        classes, log_probs = stored(np.array([number]), np.array([view]))
        order = np.argsort(-expected)[:TOP_K]
        assert classes[0].tolist() == order.tolist()
        tail = np.log(np.exp(np.delete(expected, order)).sum())
        assert np.allclose(log_probs[0], [*expected[order], tail], rtol=1e-3, atol=1e-3)
        assert float(log_probs.exp().sum()) == pytest.approx(1.0, abs=1e-6)


def test_ten_lines_of_numpy_read_them(labels, monkeypatch, colours, teacher12):
    page = (ROOT / "docs/labels.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code) == 1 and len(code[0].strip().splitlines()) <= 12
    monkeypatch.chdir(labels.parent)
    read: dict[str, object] = {}
    exec(code[0], read)
    best = read["best"]
    assert isinstance(best, list) and len(best) == 60
    expected = asked(colours, teacher12, 0, 0)
    name, number, probability = best[0]
    assert name == "blue 00 é.png"
    assert number == expected.argmax() and np.isclose(probability, np.exp(expected.max()), 1e-2)


@pytest.mark.parametrize(
    ("shape", "least", "most"),
    [((4096, 16), 42, 43.5), ((100, 4), 44, 46), ((20, 2), 64, 66)],  # docs/labels.md
)
def test_bytes_per_view(tmp_path, shape, least, most):
    rng = np.random.default_rng(0)
    shard = files.write_shard(
        tmp_path,
        "train",
        0,
        0,
        {
            "classes": rng.integers(0, 1000, (*shape, 10)).astype(np.uint16),
            "log_probs": rng.normal(size=(*shape, 10)).astype(np.float16),
            "tail": np.zeros(shape, np.float16),
        },
        [[0, 0, "0" * 32]] * 4,
    )
    files.write_index(tmp_path, {"train": [shard], "val": []})
    names = [f"train/n{i % 9:08d}/n{i % 9:08d}_{i}.JPEG" for i in range(shape[0])]
    lines = "".join(json.dumps([name, 90_000 + i]) + "\n" for i, name in enumerate(names))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    size += len(gzip.compress(lines.encode()))
    assert files.bytes_per_view(10, 1000) == 42
    assert least < size / math.prod(shape) < most


def test_many_classes_take_more_bytes():
    assert files.number_type(2**16) is np.uint16 and files.number_type(2**16 + 1) is np.int32
    assert files.bytes_per_view(10, 70_000) == 62


def test_a_finished_build_is_left_alone(labels, words, ssld):
    before = {path.name: path.stat().st_mtime_ns for path in labels.iterdir()}
    code, said = ssld("labels", "build", *words(labels), f"--views={VIEWS}", f"--top_k={TOP_K}")
    assert code == 0 and "60 images in 3 views" in said
    after = {path.name: path.stat().st_mtime_ns for path in labels.iterdir()}
    assert before.pop(".lock") and after.pop(".lock") and before == after


def small() -> None:
    """In the process of a build: shards of 16 images, passes of 16."""
    from ssld.labels import build, format

    format.SHARD_VIEWS, build.FORWARD_IMAGES = 48, 16


def test_two_processes_and_a_kill_at_any_shard_end_in_the_same_bytes(labels, words, tmp_path):
    command = ["labels", "build", *words(tmp_path / "out"), f"--views={VIEWS}", f"--top_k={TOP_K}"]
    said, out = tmp_path / "said", tmp_path / "out"

    def kill(call: int) -> partial[None]:
        place = "ssld.labels.format:write_atomically"
        return partial(sabotage.at_call, place, call, sabotage.sigkill)

    # Four shards, and after each the note that it is done. One of two processes is killed when its
    # second shard is written and not noted, and later one alone in the middle of that shard.
    started = sabotage.ranks(command, said, [[small], [small, kill(4)]])
    assert [process.end() for process in started] == [75, -9], started[0].words
    assert "the same command goes on" in started[0].words
    assert sabotage.run(command, said, [small, kill(1)])[0] == -9
    notes = sorted(path.name for path in out.glob("train-0*.json"))
    assert notes == [f"train-00000{i}.json" for i in range(3)]
    assert not (out / files.INDEX).exists()
    kept = (out / "train-000000.safetensors").stat().st_mtime_ns
    started = sabotage.ranks(command, said, [[small], [small]])
    assert [process.end() for process in started] == [0, 0], started[0].words + started[1].words
    assert shards(out) == shards(labels)
    assert (out / "train-000000.safetensors").stat().st_mtime_ns == kept
    assert not list(out.glob("train-0*.json"))
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {line["process"] for line in log} == {0, 1}
    assert all(line["views_per_second"] > 0 for line in log)


def begun(folder: Path) -> None:
    """As the set was before its index, with a note for each shard."""
    for known in json.loads((folder / files.INDEX).read_text()).values():
        for shard in known:
            (folder / shard["file"]).with_suffix(".json").write_text(json.dumps(shard))
    (folder / files.INDEX).unlink()


def test_a_shard_that_was_cut_off_is_made_again(copied, labels, words, ssld, small_shards):
    begun(copied)
    cut, whole = (copied / f"train-00000{i}.safetensors" for i in (1, 2))
    cut.write_bytes(cut.read_bytes()[:-1])
    kept = whole.stat().st_mtime_ns
    code, said = ssld("labels", "build", *words(copied), f"--views={VIEWS}", f"--top_k={TOP_K}")
    assert code == 0 and shards(copied) == shards(labels), said
    assert whole.stat().st_mtime_ns == kept


def test_other_images_and_libraries_are_not_gone_on_with(copied, words, ssld, colours):
    begun(copied)
    amount = [f"--views={VIEWS}", f"--top_k={TOP_K}"]
    before = shards_but_index(copied)
    other = words(copied, **{"data.unlabeled": colours / "train"})
    code, said = ssld("labels", "build", *other, *amount)
    assert code == 2 and "samples.train.count 60, not 36: give another folder" in said
    manifest = json.loads((copied / files.MANIFEST).read_text())
    manifest["versions"]["pillow"] = "1.0"
    (copied / files.MANIFEST).write_text(json.dumps(manifest))
    code, said = ssld("labels", "build", *words(copied), *amount)
    assert code == 2 and "versions.pillow '1.0', not" in said
    assert shards_but_index(copied) == before


def test_a_signal_says_how_to_go_on(words, tmp_path):
    stop = partial(sabotage.signal_group, signal.SIGTERM)
    harm = partial(sabotage.at_call, "ssld.labels.build:write_shard", 2, stop)
    command = ["labels", "build", *words(tmp_path / "out"), f"--views={VIEWS}"]
    code, said = sabotage.run(command, tmp_path / "said", [small, harm])
    assert code == 75 and "stopped: SIGTERM; the same command goes on" in said
    assert (tmp_path / "out/train-000000.json").is_file()


def test_an_unfinished_set_is_named(copied, words, ssld, tmp_path):
    (copied / files.INDEX).unlink()
    for command in (["labels", "verify", copied], ["labels", "stats", copied]):
        code, said = ssld(*command)
        assert code == 2 and "not finished" in said and "it goes on" in said
    code, said = ssld("distill", *words(tmp_path / "run", labels=copied))
    assert code == 2 and "not finished" in said and not (tmp_path / "run").exists()


def test_a_damaged_set_is_not_called_built(copied, words, ssld):
    shard, amount = copied / "train-000000.safetensors", [f"--views={VIEWS}", f"--top_k={TOP_K}"]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    for harm in (lambda: shard.write_bytes(content), shard.unlink):
        harm()
        code, said = ssld("labels", "build", *words(copied), *amount)
        assert code == 2 and shard.name in said and "remove the folder" in said, said
        assert "images in" not in said


@pytest.mark.parametrize("harm", ["flipped", "shorter", "missing", "names"])
def test_verify_names_what_is_damaged(copied, words, ssld, tmp_path, harm):
    file = copied / ("train-ids.jsonl.gz" if harm == "names" else "train-000001.safetensors")
    content = bytearray(file.read_bytes())
    content[-1 if harm == "flipped" else len(content) // 2] ^= 1
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-2] if harm == "shorter" else content)
    code, said = ssld("labels", "verify", copied)
    assert code == (2 if harm == "names" else 1) and file.name in said
    if harm != "names":  # which are only read where the samples differ
        code, said = ssld("labels", "stats", copied)
        assert code == 2 and file.name in said and "views" not in said
        out = tmp_path / "run"
        code, said = ssld("distill", *words(out, labels=copied))
        assert code == 2 and file.name in said and not out.exists()


def test_verify_and_stats_of_a_sound_set(labels, ssld):
    assert ssld("labels", "verify", labels) == (
        0,
        f"labels: {labels}: all 5 shards have their sha256\n",
    )
    code, said = ssld("labels", "stats", labels, "--json=true")
    facts = json.loads(said)
    assert code == 0 and (facts["samples"], facts["held_out"], facts["shards"]) == (60, 24, 5)
    tensors = [load_file(path) for path in sorted(labels.glob("train-0*.safetensors"))]
    tail = np.exp(np.concatenate([x["tail"] for x in tensors]).astype(np.float64)).mean()
    assert facts["tail_probability"] == pytest.approx(tail) and 0 < tail < 1


@pytest.mark.parametrize(
    ("tail", "top_k", "much"), [(0.09, 10, True), (0.01, 10, False), (0.0, 100, False)]
)
def test_a_large_tail_is_said(tail, top_k, much):
    facts = {
        "folder": "labels", "samples": 9, "views": 2, "held_out": 3, "unreadable": 0, "bytes": 900,
        "top_k": top_k, "classes": 100, "bytes_per_view": 42.0, "shards": 2,
        "top1_probability": 0.5, "tail_probability": tail,
    }  # fmt: skip
    assert ("(--top_k) lose less" in describe(facts)) == much


@pytest.mark.parametrize(
    ("change", "words_of_it"),
    [
        ({"augment.flip": 0.1}, "augment.flip 0.5, not 0.1"),
        ({"views": 4}, "views 3, not 4: give another folder, or remove it; a shard has all views"),
        ({"seed": 5}, "seed 0, not 5"),
        ({"loss.temperature": 2}, "temperature 1.0, not 2.0"),
    ],
)
def test_labels_of_others_are_not_gone_on_with(copied, words, ssld, change, words_of_it):
    (copied / files.INDEX).unlink()
    settings = {"views": VIEWS, "top_k": TOP_K, **change}
    before = shards_but_index(copied)
    code, said = ssld("labels", "build", *words(copied, **settings))
    assert code == 2 and words_of_it in said
    assert shards_but_index(copied) == before


def shards_but_index(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("change", "words_of_it"),
    [
        ({"teacher.batch_norm": "batch"}, "what else is in the batch"),
        ({"top_k": 3}, "5 or more"),
        ({"resume": "true"}, "this command goes on by itself"),
        ({"teacher.checkpoint": None}, "give teacher.arch"),
    ],
)
def test_what_cannot_be_stored_is_refused(words, ssld, tmp_path, change, words_of_it):
    out = tmp_path / "out"
    code, said = ssld("labels", "build", *words(out, **change))
    assert code == 2 and words_of_it in said and not out.exists()


def test_a_folder_of_something_else_is_refused(words, ssld, tmp_path):
    (tmp_path / "mine.txt").write_text("")
    code, said = ssld("labels", "build", *words(tmp_path))
    assert code == 2 and "no label set" in said


def test_an_unreadable_image_has_no_label(words, ssld, tmp_path, small_shards):
    rng = np.random.default_rng(0)
    for i in range(20):
        pixels = rng.integers(0, 255, (40, 48, 3), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02d}.png")
    (tmp_path / "images/03.png").write_bytes(b"no picture")
    sources = {"data.unlabeled": tmp_path / "images", "data.val": "[]", "data.holdout": 0}
    out = tmp_path / "labels"
    code, said = ssld("labels", "build", *words(out, **sources), "--views=2", "--top_k=5")
    assert code == 0 and "2 views of them unreadable" in said and "03.png" in said
    assert re.search(r"40 of 40 views, [0-9,]+ a second, 00:00 left\n", said)
    _, log_probs = LabelSet(str(out)).labels("train")(np.array([3, 4]), np.array([1, 1]))
    assert log_probs.isnan().all(1).tolist() == [True, False]
    run = tmp_path / "run"
    code, said = ssld("distill", *words(run, labels=out, **sources))
    assert code == 0, said
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(line["divergence"]) and line["unreadable"] == 1


def test_each_view_comes_once_in_as_many_passes_in_an_order_of_its_own():
    views, images = 5, 40
    order = Cycle(Sampler([30, 10], None, 3), views, 3)
    rows = order.draw(0, 2 * views * images)
    again = np.concatenate([order.draw(i, i + 100) for i in range(0, len(rows), 100)])
    assert np.array_equal(rows, again)
    plain = Sampler([30, 10], None, 3).draw(0, len(rows))
    assert np.array_equal(rows[:, :2], plain[:, :2])
    orders = []
    for source, index in {(x, y) for x, y, _ in rows.tolist()}:
        seen = rows[(rows[:, 0] == source) & (rows[:, 1] == index), 2]
        halves = seen[:views].tolist(), seen[views:].tolist()
        assert all(sorted(half) == list(range(views)) for half in halves)
        orders += map(tuple, halves)
    assert len(set(orders)) > 40  # of 80, among 120 possible ones
    other = Cycle(Sampler([30, 10], None, 3), views, 4).draw(0, len(rows))
    assert 0.1 < (other[:, 2] == rows[:, 2]).mean() < 0.3


def test_fresh_views_have_numbers_that_are_not_stored():
    order = Cycle(Sampler([1000], None, 0), 4, 0, fresh=0.25)
    rows = order.draw(0, 8000)
    fresh = rows[:, 2] >= 4
    assert abs(fresh.mean() - 0.25) < 0.02
    numbers = {tuple(row) for row in rows[fresh].tolist()}
    assert len(numbers) == fresh.sum()  # none comes twice
    assert torch.from_numpy(rows[~fresh, 2]).unique().tolist() == [0, 1, 2, 3]
