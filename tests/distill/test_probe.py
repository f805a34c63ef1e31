"""What features are worth, against a naive vote and clusters whose separability is known."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from ssld.data.loading import Batch
from ssld.distill.probe import features, scores
from ssld.models.classifier import Classifier


def clusters(seed, *, rows=60, classes=4, spread=1.0, dimensions=6):
    """Two draws (features, labels) of the same overlapping clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1, (classes, dimensions))
    drawn = []
    for _ in range(2):
        labels = rng.integers(0, classes, rows)
        x = centres[labels] + spread * rng.normal(0, 1, (rows, dimensions))
        drawn.append((x.astype(np.float32), labels))
    return drawn


def naive_vote(train, test, neighbours) -> float:
    """Wu et al. 2018, section 3.4: votes of the nearest by cosine, weighted by exp(sim / 0.07)."""
    hits = 0
    for x, label in zip(*test, strict=True):
        similar = []
        for y, voted in zip(*train, strict=True):
            a, b = x.astype(np.float64), y.astype(np.float64)
            similar.append((float(a @ b / np.sqrt((a @ a) * (b @ b))), int(voted)))
        votes: dict[int, float] = {}
        for similarity, voted in sorted(similar, reverse=True)[:neighbours]:
            votes[voted] = votes.get(voted, 0.0) + np.exp(similarity / 0.07)
        hits += max(votes, key=lambda c: votes[c]) == label
    return hits / len(test[1])


@pytest.mark.parametrize("neighbours", [1, 5, 20, 60])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_knn_equals_the_naive_vote(neighbours, seed):
    train, test = clusters(seed)
    found = scores(train, test, neighbours)["knn"]
    assert found == naive_vote(train, test, neighbours)
    assert 0.3 < found < 1  # clusters overlap: a vote that always or never fits proves nothing


def test_votes_are_weighted_by_similarity():
    # Two of three neighbours say 1, but the third is far nearer: exp(1 / T) > 2 exp(0.9 / T).
    angles = np.array([0.0, np.arccos(0.9), -np.arccos(0.9)])
    x = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    train, test = (x, np.array([0, 1, 1])), (x[:1], np.array([0]))
    assert scores(train, test, 3)["knn"] == 1.0
    close = np.array([0.0, np.arccos(0.97), -np.arccos(0.97)])  # exp(1 / T) < 2 exp(0.97 / T)
    x = np.stack([np.cos(close), np.sin(close)], 1).astype(np.float32)
    assert scores((x, train[1]), test, 3)["knn"] == 0.0


def test_knn_does_not_see_the_length_of_a_feature():
    train, test = clusters(3)
    lengths = np.random.default_rng(0).uniform(0.1, 9, (60, 1)).astype(np.float32)
    scaled = (train[0] * lengths, train[1]), (test[0] * lengths[::-1], test[1])
    assert scores(*scaled, 5)["knn"] == scores(train, test, 5)["knn"]


def test_more_neighbours_than_images_takes_all():
    train, test = clusters(4, rows=12)
    assert scores(train, test, 200) == scores(train, test, 12)


def halves(seed, rows=150):
    """The class is the sign of a small part of the features; the rest is loud noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    x = rng.normal(0, 100, (rows, 5))
    x[:, 0] = (2 * labels - 1) * rng.uniform(0.01, 0.02, rows)
    return x.astype(np.float32), labels


def test_linear_separates_what_is_separable_at_any_scale():
    found = scores(halves(0), halves(1), 10)
    assert found["linear"] > 0.97 and found["knn"] < 0.7


def test_nothing_is_read_from_noise():
    (x, labels), (y, others) = clusters(5, rows=400)
    rng = np.random.default_rng(0)
    found = scores((x, rng.permutation(labels)), (y, rng.permutation(others)), 10)
    assert max(found.values()) < 0.25 + 4 * np.sqrt(0.25 * 0.75 / 400)


def batch(labels, weight, seed=0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(labels), 32, 32, 3), dtype=torch.uint8, generator=generator)
    ids = [f"{seed}-{i}" for i in range(len(labels))]
    return Batch(images, torch.tensor(weight), torch.tensor(labels), ids, [])


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_features_are_what_the_classifier_sees(name):
    torch.manual_seed(0)
    network = Classifier(timm.create_model(name, num_classes=5).eval(), input_size=32)
    batches = [
        batch([3, -1, 0, 2], [1.0, 1.0, 0.0, 1.0], 1),
        batch([-1, 4], [1.0, 0.0], 2),  # none that counts
        batch([1, 1], [1.0, 1.0], 3),
    ]
    seen = []
    network.model.get_classifier().register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        network(torch.cat([batches[0].images[[0, 3]], batches[2].images]))
    found, labels = features(network, iter(batches))
    np.testing.assert_allclose(found, seen[0].numpy(), rtol=1e-4, atol=1e-5)
    assert found.dtype == np.float32 and labels.tolist() == [3, 2, 1, 1]


def test_no_labeled_image_gives_no_feature():
    network = Classifier(timm.create_model("test_resnet", num_classes=5).eval(), input_size=32)
    x, labels = features(network, [batch([-1, 2], [1.0, 0.0])])
    assert len(x) == len(labels) == 0
