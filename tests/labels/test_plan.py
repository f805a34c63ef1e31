"""`ssld plan` and `ssld bench` of a run from stored labels, and of the labels themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

QUICK = "--seconds=0.02"


def planned(ssld, tmp_path: Path, *words: str) -> tuple[int, str, dict]:
    file = tmp_path / "plan.json"
    code, said = ssld("plan", *words, QUICK, f"--json={file}")
    return code, said, json.loads(file.read_text()) if file.exists() else {}


def test_a_run_from_labels_is_planned_without_its_teacher(labels, words, ssld, tmp_path):
    out = tmp_path / "run"
    given = words(out, labels=labels, steps=30, **{"teacher.checkpoint": None})
    code, said, found = planned(ssld, tmp_path, *given, "--price_per_hour=2")
    assert code == 0 and not out.exists(), said
    shards = labels.glob("*.safetensors")
    assert found["labels"] == {
        **{"views": 3, "top_k": 5, "classes": 12, "asked": 3 * 60 + 24},
        "bytes": sum(x.stat().st_size for x in shards),
    }
    rates, cost = found["rates"], found["cost"]
    assert found["teacher"] == [] and "teacher" not in rates
    assert list(cost["hours"]) == list(cost["cost"]) == ["stored_labels_each_run"]
    training = cost["hours"]["stored_labels_each_run"] - cost["of_which_evaluations"]
    assert training == pytest.approx(30 * 8 / rates["together"] / 3600)
    assert "5 of 12 classes of 3 views" in said and "each view is seen 1.3 times" in said
    assert "from stored labels" in said and "online" not in said


def test_labels_to_be_built_are_projected(words, ssld, tmp_path):
    amount = ["--views=4", "--top_k=7"]
    code, said, found = planned(ssld, tmp_path, *words(tmp_path / "run"), *amount)
    assert code == 0, said
    asked, rates = 4 * 60 + 24, found["rates"]
    assert found["labels"]["asked"] == asked and "--views 4 --top_k 7;" in said
    assert found["cost"]["stored_labels_gb"] == pytest.approx(asked * (7 * 4 + 2) / 1e9)
    once = asked / min(rates["loader"], rates["teacher"]) / 3600
    assert found["cost"]["hours"]["stored_labels_writing_once"] == pytest.approx(once)


def test_what_a_plan_of_labels_refuses(labels, words, ssld, tmp_path, colours):
    given = words(tmp_path / "run", labels=labels)
    code, said, found = planned(ssld, tmp_path, *given, "--views=4")
    assert code == 2 and "leave one of the two out" in said and not found
    other = words(tmp_path / "run", labels=labels, **{"data.unlabeled": colours / "train"})
    code, said, found = planned(ssld, tmp_path, *other)
    assert code == 2 and "not those that were labeled" in said and not found


def test_bench_of_stored_labels_and_a_few_fresh_views(labels, words, ssld, tmp_path):
    code, said = ssld("bench", *words(tmp_path / "run", labels=labels, fresh_share=0.5), QUICK)
    assert code == 0 and "step from stored labels" in said and "teacher alone" not in said, said
