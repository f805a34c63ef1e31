"""Predictions that are no numbers are never right, never agree and bring nothing down."""

from __future__ import annotations

import torch

from ssld.data.loading import Batch
from ssld.health.classification_metrics import ClassificationMetrics


def batch(labels: list[int]) -> Batch:
    count = len(labels)
    images = torch.zeros(count, 4, 4, 3, dtype=torch.uint8)
    return Batch(images, torch.ones(count), torch.tensor(labels), ["x"] * count, [])


def test_they_are_not_right_whatever_the_label():
    for label in range(7):
        measured = ClassificationMetrics(7, torch.device("cpu"))
        measured.add(batch([label, label]), torch.full((2, 7), torch.nan))
        found = measured.metrics()
        assert found["top1"] == found["top5"] == 0.0 and found["ece"] == 0.0
        assert found["entropy_student"] != found["entropy_student"]


def test_one_of_many_spoils_no_other():
    logits = torch.eye(7) * 9
    logits[3, 1] = torch.inf
    measured = ClassificationMetrics(7, torch.device("cpu"))
    targets = (torch.eye(7) * 5).log_softmax(-1)
    measured.add(batch(list(range(7))), logits, targets, torch.zeros(7))
    assert measured.counted("top1") == (6, 7) and measured.counted("agreement1") == (6, 7)


def test_a_class_that_is_impossible_is_a_number():
    logits = torch.eye(7)
    logits[:, 6] = -torch.inf
    measured = ClassificationMetrics(7, torch.device("cpu"))
    measured.add(batch([0, 1, 2]), logits[:3])
    assert measured.counted("top1") == (3, 3) and 0 < measured.metrics()["entropy_student"] < 2
