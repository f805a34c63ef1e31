"""Which evaluation is the best where a constant prediction agrees with the teacher, and what pages
and cards say of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pictures
import pytest

from ssld.__main__ import main
from ssld.common.metrics import beyond_chance, rank
from ssld.health.verdict import judge, noted, symptoms
from ssld.zoo.release_run import assemble

CLASSES = 59
VARIED = {"entropy_teacher": 0.5, "classes_teacher": 12 / CLASSES, "images": 400.0}
COLLAPSED = VARIED | {"agreement1": 0.66, "agreement_chance": 0.66, "divergence": 0.2,
                      "entropy_student": 0.9, "classes_student": 1 / CLASSES}  # fmt: skip
HEALTHY = VARIED | {"agreement1": 0.55, "agreement_chance": 0.2, "divergence": 0.4,
                    "entropy_student": 0.6, "classes_student": 11 / CLASSES}  # fmt: skip


def worth(evaluation: dict[str, Any], metric: str = "agreement1") -> tuple[bool, float]:
    return rank(noted(evaluation, metric, CLASSES))


@pytest.mark.parametrize("metric", ["agreement1", "agreement5", "divergence", "top1"])
def test_a_collapse_is_behind_whatever_its_metric_says(metric):
    more = {"agreement5": 0.9, "top1": 0.7, "labeled": 400.0, "top1_chance": 0.1}
    less = more | {"agreement5": 0.6, "top1": 0.4}
    assert symptoms(COLLAPSED | more, CLASSES) and not symptoms(HEALTHY | less, CLASSES)
    assert worth(COLLAPSED | more, metric) < worth(HEALTHY | less, metric)


def test_agreement_counts_beyond_chance():
    easier = HEALTHY | {"agreement1": 0.6, "agreement_chance": 0.4}  # kappa 0.33 against 0.44
    assert worth(easier) < worth(HEALTHY)
    assert beyond_chance(0.55, 0.2) == pytest.approx(0.4375)
    assert beyond_chance(1.0, 1.0) == 0.0


@pytest.mark.parametrize("metric", ["agreement5", "top1"])
def test_healthy_evaluations_are_compared_by_the_metric_that_was_asked_for(metric):
    labels = {"top1": 0.5, "labeled": 400.0, "top1_chance": 0.1, "agreement5": 0.5}
    better = HEALTHY | labels | {metric: 0.6, "agreement1": 0.5}
    assert worth(HEALTHY | labels, metric) < worth(better, metric)


def test_where_the_teacher_says_one_class_only_agreement_is_all_there_is():
    one = {"classes_teacher": 1 / CLASSES, "agreement_chance": 1.0, "agreement1": 1.0}
    none = one | {"agreement_chance": 0.1, "agreement1": 0.1}
    assert worth(HEALTHY | none) < worth(HEALTHY | one)


def test_a_number_that_is_none_is_behind_all():
    assert worth(HEALTHY | {"divergence": float("nan")}, "divergence") < worth(
        HEALTHY | {"divergence": 1e9}, "divergence"
    )


def said(*evaluations: dict[str, Any], **more: Any) -> str:
    lines = [{"epoch": float(i), **e} for i, e in enumerate(evaluations, 1)]
    settings = {"metric": "agreement1", "num_classes": CLASSES, "share_of_peak": 0.1, **more}
    return judge(lines, **settings).sentence


@pytest.mark.parametrize("finished", [False, True])
def test_agreement_that_is_little_above_chance_is_said_so(finished):
    little = HEALTHY | {"agreement1": 0.5, "agreement_chance": 0.42}
    words = "little above chance (42.0%)"
    assert words in said(little | {"agreement1": 0.48}, little, finished=finished)
    assert "chance" not in said(HEALTHY | {"agreement1": 0.5}, HEALTHY, finished=finished)
    early = HEALTHY | {"agreement1": 0.02, "agreement_chance": 0.003}  # of many classes
    assert "chance" not in said(early | {"agreement1": 0.01}, early, finished=finished)


def test_an_early_collapse_is_no_peak_to_fall_from():
    first = COLLAPSED | {"agreement1": 0.7, "agreement_chance": 0.7}
    better = [HEALTHY | {"agreement1": 0.4 + 0.03 * i} for i in range(5)]
    assert said(first, *better).startswith("still improving: agreement@1 52.0%")


@pytest.fixture
def distil(colours, teacher_file, tmp_path, monkeypatch):
    """`ssld distill` whose evaluations find what they are told to."""
    pictures.leave_out(monkeypatch)
    monkeypatch.setattr("ssld.zoo.release_run.draw_curves", lambda path, *_: path.touch())
    out = tmp_path / "run"

    def run(*evaluations: dict[str, Any], words: tuple[str, ...] = ()) -> Path:
        left = [{**e, "classes_teacher": 1.0, "classes_student": share}
                for e, share in evaluations]  # fmt: skip
        monkeypatch.setattr(
            "ssld.health.classification_metrics.ClassificationMetrics.metrics",
            lambda _: dict(left.pop(0)),
        )
        settings = {"out": out, "steps": 9, "batch_size": 8, "log_every_steps": 3,
                    "evaluate_every_epochs": 0.666, "checkpoint.every_steps": 3,
                    "probe.every_epochs": 0, "student.arch": "test_resnet", "augment.size": 32,
                    "teacher.checkpoint": teacher_file, "teacher.verify": "false",
                    "data.labeled": colours / "train", "data.val": colours / "val",
                    "data.workers": 0, "trackers": "[]"}  # fmt: skip
        assert main(["distill", *(f"--{k}={v}" for k, v in settings.items()), *words]) == 0
        assert not left
        return out

    return run


GOOD, BAD, WORSE = (HEALTHY, 1.0), (COLLAPSED, 1 / 3), (COLLAPSED | {"agreement1": 0.7}, 1 / 3)


def exported(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())["exported"]


def test_a_collapsed_student_is_not_exported_and_page_and_card_say_how_it_stands(distil, tmp_path):
    out = distil(BAD, GOOD, WORSE)
    found = exported(out)
    assert (found["step"], found["value"], found["chance"]) == (6, 0.55, 0.2)
    page = (out / "report.html").read_text()
    assert 'class="verdict not">Not learning: ' in page
    assert "The last evaluation, step 9: agreement@1 70.0% where chance is 66.0%" in page
    assert "The exported student is that of step 6: agreement@1 55.0% where chance is 20.0%" in page
    facts = assemble(out, tmp_path / "release")
    card = (tmp_path / "release/README.md").read_text()
    assert facts["verdict"].startswith("not learning") and facts["verdict_step"] == 9
    assert facts["symptoms"] == []
    assert "> [!WARNING]\n> The run's own verdict: not learning" in card
    assert "The run's last verdict, of step 9: not learning" in card
    assert "| agreement@1 with the teacher | 55.00% | 20.00% |" in card


def test_where_all_have_symptoms_the_best_of_them_is_exported_and_said_to_have_some(
    distil, tmp_path
):
    out = distil(WORSE, BAD, BAD)
    assert exported(out)["step"] == 3 and "collapsed" in exported(out)["symptoms"][-1]
    assert "It has symptoms: " in (out / "report.html").read_text()
    assemble(out, tmp_path / "release")
    assert "Of these very weights: " in (tmp_path / "release/README.md").read_text()


def test_a_healthy_run_is_not_accused(distil, tmp_path):
    better = (HEALTHY | {"agreement1": 0.6}, 1.0)
    out = distil(GOOD, better, better)
    assert exported(out)["step"] == 9  # of equal ones the later
    page = (out / "report.html").read_text()
    assert "Not learning" not in page and "symptoms" not in page
    assert assemble(out, tmp_path / "release")["symptoms"] == []
    assert "learned" not in (tmp_path / "release/README.md").read_text()


def test_a_run_from_before_goes_on_and_its_collapsed_best_gives_way(distil):
    """Its checkpoints know the best by agreement@1 alone."""
    out = distil(WORSE, BAD, BAD)
    for last in out.glob("checkpoints/step-*9"):
        for file in last.iterdir():
            file.unlink()
        last.rmdir()
    for folder in out.glob("checkpoints/step-*"):
        state = json.loads((folder / "state.json").read_text())
        state["best"] = {"step": 3, "metric": "agreement1", "value": 0.7}
        (folder / "state.json").write_text(json.dumps(state))
        manifest = json.loads((folder / "manifest.json").read_text())
        digest = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest | {"state.json": digest}))
    assert exported(distil(GOOD, words=("--resume",)))["step"] == 9
