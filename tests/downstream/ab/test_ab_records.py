"""What run folders say for an A/B, and what is made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downstream.ab import analysis as ab
from downstream.ab import records as ab_records
from downstream.ab import report as ab_report
from downstream.ab.grid import ABConfig
from downstream.ab.records import Record, Result, read_result
from downstream.ab.report import forest
from downstream.ab.statistics import Point
from downstream.segmentation.confusion import scores
from ssld.common.errors import InputError

RNG = np.random.default_rng(0)


def write_run(folder: Path, key: str, values: list[float], **held_out: np.ndarray) -> Path:
    """A finished run with an evaluation every 10 steps, the last of which is exported."""
    folder.mkdir()
    lines: list[dict[str, Any]] = []
    for i, value in enumerate(values, 1):
        lines.append({"kind": "train", "step": 10 * i - 5, "seconds": 1.5})
        lines.append({"kind": "train", "step": 10 * i, "seconds": 0.5})
        lines.append({"kind": "eval", "step": 10 * i, "epoch": i, key: value})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    facts = {"exported": {"step": 10 * len(values)}}
    (folder / "run.json").write_text(json.dumps(facts))
    if held_out:
        np.savez(folder / "held_out.npz", **held_out)  # type: ignore[arg-type]
    return folder


def draws(images: int) -> np.ndarray:
    return np.random.default_rng(1).integers(images, size=(20, images))


def test_transfer(tmp_path):
    hits, ids = np.array([True, False, True, True, False]), np.array(list("abcde"))
    run = write_run(tmp_path / "run", "top1", [0.2, 0.6], ids=ids, hits=hits)
    (run / "probe.json").write_text('{"before": {"knn": 0.25}}')
    found = read_result(run, "transfer")
    assert found.score == 0.6 and found.curve == [Point(10, 2.0, 0.2), Point(20, 4.0, 0.6)]
    assert found.probe == {"before": {"knn": 0.25}}
    assert found.record is not None and found.record.ids == tuple("abcde")
    expected = [sum(hits[i] for i in draw) / 5 for draw in draws(5)]
    assert found.record.statistic(draws(5)) == pytest.approx(expected, abs=1e-12)


def test_segmentation_is_the_miou_of_the_summed_matrices(tmp_path):
    matrices = RNG.integers(0, 50, (8, 4, 4)) * (RNG.random((8, 4, 4)) < 0.4)
    matrices[1:, 3, :] = matrices[1:, :, 3] = 0  # a class that some draws do not have
    matrices[0, 3, 3], matrices[5] = 7, 0
    whole = scores(matrices.sum(0))["miou"]
    ids = np.array([f"i{i}" for i in range(8)])
    run = write_run(tmp_path / "run", "miou", [whole], ids=ids, confusion=matrices)
    record = read_result(run, "segmentation").record
    assert record is not None
    expected = [scores(matrices[draw].sum(0))["miou"] for draw in draws(8)]
    assert record.statistic(draws(8)) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(record.statistic(np.full((1, 8), 5))[0])


def test_detection_is_the_average_precision_of_each_draw(tmp_path):
    truth = {"objects": np.array([[2], [1]], np.int32), "label": np.zeros(3, np.int32)}
    truth |= {
        "image": np.array([0, 0, 1], np.int32),
        "score": np.array([0.9, 0.8, 0.7], np.float32),
    }
    truth |= {"match": np.array([[1] * 10, [0] * 10, [1] * 10], np.int8)}
    run = write_run(tmp_path / "run", "ap", [0.0], ids=np.array(["a", "b"]), **truth)
    with pytest.raises(InputError, match="make ap 0.5545, but the exported network has 0.0000"):
        read_result(run, "detection")  # precision 1 to recall 1/3, 2/3 to recall 2/3
    statistic = ab_records.MEASURES["detection"].statistic(truth)
    assert statistic(np.array([[1, 1]])) == pytest.approx([1.0])  # all of both found
    assert statistic(np.array([[0, 0]])) == pytest.approx([51 / 101])  # half, and all right


@pytest.mark.parametrize("of", ["keypoint", "mask"])
def test_what_finds_keypoints_or_masks_is_judged_by_them(tmp_path, of):
    """The record, too, is of these; AP of boxes is in the same line."""
    record = {"objects": np.array([[1], [1]], np.int32), "label": np.zeros(2, np.int32)}
    record |= {"image": np.array([0, 1], np.int32), "score": np.array([0.9, 0.8], np.float32)}
    record |= {"match": np.array([[1] * 10, [0] * 10], np.int8), "ids": np.array(["a", "b"])}
    key = f"{of}_ap"
    run = write_run(tmp_path / "run", key, [0.1, 51 / 101], **record)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    added = [{**line, "ap": 0.9} if line["kind"] == "eval" else line for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in added))
    found = read_result(run, "detection")
    assert (found.score, found.key) == (51 / 101, key) and found.record is not None
    assert [point.score for point in found.curve] == [0.1, 51 / 101]
    config = ABConfig(task="detection", file="F.yaml", backbones=["plain", "ssld"])
    analysis = ab.analyse(config, dict.fromkeys(FULL, {0: found, 1: found}))
    assert ab.as_json(analysis)["metric"] == key and analysis.label == f"{of} AP"
    assert f"## {of} AP, %" in ab_report.markdown(analysis)
    boxes = Result(0.5, [], None, {}, key="ap")
    with pytest.raises(InputError, match=f"judged by different metrics .AP and {of} AP."):
        ab.analyse(config, {**dict.fromkeys(FULL, {0: found}), (1, "same"): {0: boxes}})


def test_what_is_damaged_or_missing(tmp_path):
    run = write_run(tmp_path / "a", "ap", [0.5])
    with pytest.raises(InputError, match="no evaluation of the exported network has 'top1'"):
        read_result(run, "transfer")
    assert read_result(run, "detection").record is None
    (run / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"a is damaged \(JSONDecodeError.*remove it"):
        read_result(run, "detection")
    other = write_run(tmp_path / "b", "top1", [0.5], ids=np.array(["x"]), hits=np.array([True]))
    with pytest.raises(InputError, match="its images make top1 1.0000, but .* has 0.5000"):
        read_result(other, "transfer")


Scores = Mapping[tuple[int, str], list[float | None]]


def made(scores: Scores, images: int = 400, **more: Any) -> ab.Analysis:
    """An A/B of runs with these scores, by seed; None: not finished."""

    def result(score: float, place: int) -> Result:
        hits = (np.arange(images) < round(score * images)).astype(float)
        hits = np.random.default_rng(place).permutation(hits)
        curve = [Point(10 * i, 2.0 * i, score * i / 4) for i in range(1, 5)]
        ids = tuple(map(str, range(images)))
        probe = {"before": {"knn": 0.1, "linear": 0.2}}
        return Result(score, curve, Record(ids, lambda draw: hits[draw].mean(1)), probe)

    results = {
        place: {seed: result(x, seed) for seed, x in enumerate(values) if x is not None}
        for place, values in scores.items()
    }
    config = ABConfig(task="transfer", file="F.yaml", backbones=["plain", "ssld"], **more)
    return ab.analyse(config, results)


FULL: Scores = {
    (0, "same"): [0.50, 0.51, 0.52],
    (0, "tuned"): [0.45, 0.46, 0.47],
    (1, "same"): [0.52, 0.51, 0.53],
    (1, "tuned"): [0.60, 0.61, 0.62],
}


def test_three_comparisons():
    found = made(FULL)
    assert found.same is not None and found.tuned is not None and found.best is not None
    assert found.same.difference.by_seed == pytest.approx((0.02, 0.0, 0.01))
    assert found.same.difference.verdict == "no difference shown"
    assert found.tuned.difference.mean == pytest.approx(0.15)
    assert found.tuned.difference.verdict == "B better"
    assert found.best.rates == ("same", "tuned") and found.best.images == 400
    assert found.best.difference.mean == pytest.approx(0.10)
    reached = found.best.time_to_score
    assert reached is not None and reached.a is not None and reached.b is not None
    assert (reached.score, reached.a.step) == (pytest.approx(0.51), 40)
    assert reached.b.step == pytest.approx(40 * 0.51 / 0.61)
    assert reached.b.seconds == pytest.approx(8 * 0.51 / 0.61)
    assert made({k: FULL[1 - k[0], k[1]] for k in FULL}).tuned.difference.verdict == "A better"  # type: ignore[union-attr]


def test_a_score_that_is_not_reached():
    backwards = made({(side, rate): FULL[1 - side, rate] for side, rate in FULL})
    assert backwards.tuned is not None and backwards.tuned.time_to_score is not None
    assert backwards.tuned.time_to_score.b is None
    assert "| 61.00 | 40 | not reached | - | 8.0 | - |" in ab_report.markdown(backwards)
    assert ab.as_json(backwards)["differences_b_less_a"]["tuned"]["to_last_score_of_a"]["b"] is None


def test_only_pairs_count():
    missing = made({**FULL, (1, "same"): [None, 0.6, 0.7], (0, "tuned"): [None, None, None]})
    assert missing.same is not None and missing.same.seeds == (1, 2)
    assert missing.same.difference.by_seed == pytest.approx((0.09, 0.18))
    assert missing.tuned is None
    assert "| both at the tuned preset | - |" in ab_report.markdown(missing)
    none = made({place: [None] for place in FULL})
    assert "No seed has runs of both yet." in ab_report.markdown(none)


def test_one_seed_says_that_it_has_no_interval(tmp_path):
    found = made({place: values[:1] for place, values in FULL.items()})
    said = ab_report.markdown(found)
    assert (
        "One seed has no interval" in said
        and "B better" not in said
        and "±" not in said.split("Mean ±")[0]
    )
    assert ab.as_json(found)["differences_b_less_a"]["tuned"]["over_seeds"] is None
    ab_report.write_report(found, tmp_path / "report.html")


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        ([0.0, 0.0, 0.0], "none of the 6 runs learned anything"),
        ([0.0, 0.0005, 0.0], "none of the 6 runs learned anything"),
        ([0.25, 0.25, 0.25], "all 6 runs have the same score to the last digit (25.00 %)"),
        ([0.25, float("nan"), 0.25], "2 of 6 runs have no score that is a number"),
    ],
)
def test_runs_that_learned_nothing_are_not_compared(tmp_path, scores, why):
    config = ABConfig(task="detection", file="F.yaml", backbones=["plain", "ssld"])
    runs = {i: Result(x, [Point(10, 1.0, x)], None, {}) for i, x in enumerate(scores)}
    found = ab.analyse(config, dict.fromkeys(FULL, runs))
    said = ab_report.markdown(found)
    assert f"- Both at the same learning rate: no verdict: {why}" in said
    assert "no difference shown" not in said and "+0.00" not in said
    one = json.loads(json.dumps(ab.as_json(found), allow_nan=False))["differences_b_less_a"]
    assert why in one["same"]["verdict"] and one["same"]["mean"] is None
    assert one["same"]["to_last_score_of_a"] is None
    ab_report.write_report(found, tmp_path / "report.html")
    assert why in (tmp_path / "report.html").read_text()


def test_a_difference_of_weak_networks_is_said_with_a_caution():
    low = {place: [score / 25 for score in scores] for place, scores in FULL.items()}
    caution = "all scores are below 5 %, too weak for a difference to mean anything"
    weak = made(low)
    assert f"points of top-1), but {caution}." in ab_report.markdown(weak)
    assert ab.as_json(weak)["differences_b_less_a"]["tuned"]["caution"] == caution
    assert caution not in ab_report.markdown(made(FULL))  # nor where one of the two is no weak one
    assert caution not in ab_report.markdown(made({**FULL, (0, "tuned"): [0.02, 0.02, 0.03]}))


def test_one_side_that_learned_nothing_is_a_difference():
    worse = made({**FULL, (0, "same"): [0.0, 0.0, 0.0]})
    assert worse.same is not None and worse.same.difference.verdict == "B better"


def test_other_images_are_refused():
    found = made(FULL)
    other = found.results[1, "same"][1]
    assert other.record is not None
    record = Record((*other.record.ids[1:], "new"), other.record.statistic)
    results = {**found.results, (1, "same"): {1: Result(0.5, [], record, {})}}
    config = ABConfig(task="transfer", file="F.yaml", backbones=["plain", "ssld"])
    with pytest.raises(InputError, match="were not evaluated on the same images"):
        ab.analyse(config, results)


def test_runs_without_a_record_have_no_interval_over_images():
    found = made(FULL)
    results = {
        place: {seed: Result(x.score, x.curve, None, {}) for seed, x in runs.items()}
        for place, runs in found.results.items()
    }
    config = ABConfig(task="transfer", file="F.yaml", backbones=["plain", "ssld"])
    bare = ab.analyse(config, results)
    assert bare.tuned is not None and bare.tuned.difference.over_images is None
    assert bare.tuned.difference.deciding == bare.tuned.difference.over_seeds
    assert "The runs kept no record by image" in ab_report.markdown(bare)


def test_the_tables_say_what_the_numbers_are(tmp_path):
    found = made(FULL)
    said = ab_report.markdown(found)
    assert "| A plain | 51.00 ± 1.00 (3) | 46.00 ± 1.00 (3) |" in said
    assert "| both at the tuned preset | tuned | tuned | 3 | +15.00 | +15.00 to +15.00 |" in said
    assert "- Best against best: B better (+10.00 points of top-1)." in said
    assert "10.00 ± 0.00 | 20.00 ± 0.00 | - | - |" in said  # frozen features, before and after
    numbers = ab.as_json(found)
    assert len(numbers["runs"]) == 12 and numbers["backbones"] == {"A": "plain", "B": "ssld"}
    json.dumps(numbers)
    ab_report.write_report(found, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "http" not in page


def test_wide_intervals_run_out_of_the_picture():
    two = made({place: values[:2] for place, values in FULL.items()})
    assert two.same is not None and two.same.difference.over_seeds is not None
    assert two.same.difference.over_seeds.high > 0.1
    low, high = forest(two).axes[0].get_xlim()
    seen = [
        abs(x) for one in (two.same, two.tuned, two.best) if one for x in one.difference.by_seed
    ]
    assert high < 100 * 5 * (max(seen) + 0.1) and low < 0
