"""What a recipe's page, a fix and a comparison may claim, and what they must not hide."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pictures
import pytest
import yaml

from ssld.__main__ import main
from ssld.distill.fixres import chosen, deciding, halves
from ssld.health.resolution import FEW_IMAGES, describe_choice
from ssld.recipe.report import write_report

HEALTHY = {"images": 136.0, "labeled": 136.0, "top1": 0.6, "top1_chance": 0.06, "agreement1": 0.7,
           "agreement_chance": 0.1, "entropy_student": 0.5, "entropy_teacher": 0.4,
           "classes_student": 1.0, "classes_teacher": 1.0, "divergence": 0.2}  # fmt: skip
COLLAPSED = HEALTHY | {"top1": 0.5, "top1_chance": 0.5, "agreement1": 0.9, "agreement_chance": 0.9,
                       "classes_student": 1 / 17}  # fmt: skip
NOT = "not learning: it has collapsed to 1 of 17 classes"


def named(*ids: str) -> Any:
    class Source(SimpleNamespace):
        def __len__(self) -> int:
            return len(ids)

        def sample_id(self, i: int) -> str:
            return ids[i]

    return Source(path="x", class_names=None)


def ids(sources: list[Any]) -> set[str]:
    return {source.sample_id(i) for source in sources for i in range(len(source))}


def test_halves_are_all_images_once_and_depend_on_names_alone():
    all_ids = [f"class {i % 7}/im é {i}.png" for i in range(1000)]
    choose, report = halves([named(*all_ids)])
    assert ids(choose) | ids(report) == set(all_ids) and not ids(choose) & ids(report)
    assert 440 < len(ids(report)) < 560
    again = halves([named(*all_ids[::-1][:700]), named(*all_ids[:300])])
    assert (ids(again[0]), ids(again[1])) == (ids(choose), ids(report))
    twice = halves([named(*all_ids), named(*all_ids)])  # an image that is there twice
    assert ids(twice[1]) == ids(report)


def test_one_image_is_in_both_halves_and_nothing_is_claimed():
    choose, report = halves([named("one.png")])
    assert choose == report and ids(report) == {"one.png"}
    counts = {"chosen_on": 1, "reported_on": 1, "same": True}
    assert "no claim" in describe_choice(resolution(0.5, 0.9, 1) | {"images": counts})


def row(size: int, reported: float, choosing: float, **more: Any) -> dict[str, Any]:
    return {"size": size, **HEALTHY, "top1": reported,
            "choose": HEALTHY | {"top1": choosing} | more}  # fmt: skip


def test_the_half_that_reports_chooses_nothing():
    before = [row(224, 0.60, 0.50), row(320, 0.90, 0.49)]
    after = [row(224, 0.10, 0.51), row(320, 0.99, 0.50)]
    assert deciding(before[0], "top1") == "top1"
    moment, best = chosen(before, after, "top1", 17)
    assert (moment, best["size"], best["top1"]) == ("after", 224, 0.10)


def test_a_size_at_which_the_student_collapses_is_not_chosen():
    bad = row(320, 0.9, 0.9, **{k: COLLAPSED[k] for k in ("classes_student", "top1_chance")})
    assert chosen([row(224, 0.6, 0.5)], [bad], "top1", 17)[1]["size"] == 224


def resolution(before: float, after: float, images: int, **more: Any) -> dict[str, Any]:
    counted = HEALTHY | {"images": float(images), "labeled": float(images)}
    return {"chosen": 320, "classifier": "after", "metric": "top1",
            "before": {"size": 224, **counted, "top1": before},
            "metrics": {"size": 320, **counted, "top1": after},
            "images": {"chosen_on": images, "reported_on": images, "same": False},
            **more}  # fmt: skip


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (resolution(0.50, 0.53, FEW_IMAGES - 1), "too few to say what it brought"),
        (resolution(0.50, 0.53, 500), "as these intervals overlap no gain is shown"),
        (resolution(0.50, 0.53, 5000, chosen=224, classifier="before"), "the fix brought nothing"),
        ({**resolution(0.5, 0.6, 1), "images": None}, "chosen on these very images"),
    ],
)
def test_no_gain_is_claimed_that_is_not_shown(found, words):
    assert words in describe_choice(found)


def test_a_gain_that_is_there_is_claimed_with_its_images():
    said = describe_choice(resolution(0.50, 0.60, 5000))
    assert "chosen on 5,000 held-out images, reported on 5,000 others" in said
    assert "top-1 60.0% [58.6% to 61.3%] at 320 px, 50.0% [48.6% to 51.4%] at 224 px" in said
    assert "overlap" not in said


def stage(folder: Path, *evaluations: dict[str, Any], verdict: str, **facts: Any) -> None:
    folder.mkdir(parents=True)
    known = {"steps": 40, "peak_lr": 0.1, "student": {"input_size": 224}, "teacher_sha256": "ab"}
    exported = {"step": 40, "metric": "agreement1", "value": evaluations[-1]["agreement1"]}
    (folder / "run.json").write_text(json.dumps({**known, "exported": exported, **facts}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"student": {"num_classes": 17}}))
    count = len(evaluations)
    lines = [{"kind": "eval", "step": 40 * i // count, "epoch": float(i), "verdict": verdict, **e}
             for i, e in enumerate(evaluations, 1)]  # fmt: skip
    lines.insert(0, {"kind": "train", "step": 1, "epoch": 0.1, "loss": 1.0, "seconds": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The text of a recipe's page whose stages are given as (evaluation, verdict, facts)."""
    pictures.leave_out(monkeypatch)

    def write(fixed: dict[str, Any] | None = None, **stages: tuple[dict[str, Any], str]) -> str:
        for name, (evaluation, verdict) in stages.items():
            more = {"resolution": fixed} if name == "fix" else {}
            stage(tmp_path / name, evaluation, verdict=verdict, **more)
        if fixed:
            rows = [fixed["before"], {**fixed["metrics"]}]
            table = {"trained_at": 224, "fixed_at": 320, "before": rows, "after": rows}
            table |= {k: fixed[k] for k in ("metric", "chosen", "classifier", "images")}
            (tmp_path / "fix/resolutions.json").write_text(json.dumps(table))
        write_report(tmp_path, list(stages))
        return (tmp_path / "report.html").read_text()

    return write


def test_stages_that_do_not_learn_are_the_headline(page):
    said = page(distill=(HEALTHY, "finished, flat since epoch 1"), finetune=(COLLAPSED, NOT))
    lead = said.partition('class="lead">')[2].partition("</p>")[0]
    assert lead.startswith("Not learning: finetune (finetune: agreement@1 90.0% where chance is")
    assert "no result" in lead and "top-1" not in lead.partition("(")[0]
    assert 'class="verdict flat">distill: Finished, flat' in said
    assert f'class="verdict not">finetune: {NOT[:1].upper()}{NOT[1:]}.' in said


def test_a_fix_is_no_headline_of_other_images(page):
    good = (HEALTHY, "finished, flat since epoch 1")
    said = page(resolution(0.60, 0.629, 68), distill=good, fix=good)
    lead = said.partition('class="lead">')[2].partition("</p>")[0]
    assert lead.startswith("Top-1: distill 60.0% on 136 held-out images. The fix: ")
    assert "62.9" not in lead and "too few to say" in lead
    assert "verdict not" not in said and ">62.9%<" in said  # in the table, with its 68 images


def test_a_recipe_that_learns_is_told_in_numbers(page):
    good = "finished, flat since epoch 1"
    said = page(distill=(HEALTHY, good), finetune=(HEALTHY | {"top1": 0.7}, good))
    assert "Top-1: distill 60.0%, then finetune 70.0% on 136 held-out images." in said
    assert "ot learning" not in said


@pytest.fixture
def compare(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ssld.compare.report.overlays", lambda runs: [])
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*names: str) -> tuple[str, dict[str, Any], str]:
        out = tmp_path / "c.html"
        words = [*(str(tmp_path / name) for name in names), f"--out={out}"]
        assert main(["compare", *words, f"--json={tmp_path / 'c.json'}"]) == 0
        found = json.loads((tmp_path / "c.json").read_text())
        return capsys.readouterr().out, found, out.read_text()

    return run


def line_of(said: str, name: str) -> list[str]:
    return next(line for line in said.splitlines() if line.startswith(name)).split()


def test_a_collapsed_run_wins_no_row_of_a_comparison(compare, tmp_path):
    stage(tmp_path / "bad", COLLAPSED, verdict=NOT)
    stage(tmp_path / "good", HEALTHY, verdict="flat since epoch 1")
    said, found, page = compare("bad", "good")
    assert line_of(said, "agreement@1 last")[-2:] == ["90.0%", "*70.0%"]
    assert line_of(said, "chance of agreement@1")[-2:] == ["90.0%", "10.0%"]
    assert "warning: bad is not learning: its evaluations are no result" in said
    assert "agreement@1 90.0% where chance is 90.0%" in said and "bad is not learning" in page
    assert [run["not_learning"] for run in found["runs"]] == [True, False]


def test_of_a_run_that_collapsed_once_the_best_is_of_what_it_learned(compare, tmp_path):
    stage(tmp_path / "a", COLLAPSED, HEALTHY, verdict="flat since epoch 1")
    stage(tmp_path / "b", HEALTHY, verdict="flat since epoch 1")
    said, found, _ = compare("a", "b")
    assert found["runs"][0]["agreement1_best"] == 0.7 and "warning" not in said


def test_a_comparison_takes_the_half_that_reports(compare, tmp_path):
    fixed = resolution(0.60, 0.629, 500)
    stage(tmp_path / "a", HEALTHY, verdict="flat", resolution=fixed)
    stage(tmp_path / "b", HEALTHY | {"top1": 0.61}, verdict="flat")
    said, found, _ = compare("a", "b")
    assert line_of(said, "top-1 last")[-2:] == ["*62.9%", "61.0%"]
    assert "reported on 500 others" in found["runs"][0]["verdict"]
