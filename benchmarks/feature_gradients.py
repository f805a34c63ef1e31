"""The gradients of the divergence and of the feature terms at students that have learned nothing,
for `TRAINING_SCALE` of ssld/distill/features.py and docs/features.md.

    python benchmarks/prepare.py evidence --packs PACKS --only clothing cifar   # once
    python benchmarks/feature_gradients.py          # a minute of one core

Norms over all weights that both terms reach, of the mean loss of one batch of 64 training views.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from measure import parser, show
from torch import Tensor

from ssld.data.config import AugmentConfig
from ssld.data.loading import ViewBatches, train_batches
from ssld.data.sampling import Sampler
from ssld.data.sources import open_source
from ssld.data.transforms import TrainView
from ssld.distill.divergence import training_divergence
from ssld.distill.features import TRAINING_SCALE, feature_loss, open_projection
from ssld.models.config import TeacherConfig
from ssld.models.opening import open_network
from ssld.models.teacher import Teacher, open_teacher

STUDENTS = ("mobilenetv3_small_050", "test_resnet", "resnet18", "mobilenetv2_050", "convnext_atto")
SETS = {"clothing": 64, "cifar": 32}
"""And the size of their views in px."""
BATCH = 64


def views(folder: Path, size: int) -> Tensor:
    """uint8 [b, h, w, 3]."""
    source = open_source(str(folder))
    sampler = Sampler([len(source)], None, 0)
    view = ViewBatches([source], TrainView(AugmentConfig(), size, 0))
    batches = train_batches(view, sampler, batch_size=BATCH, first_step=0, last_step=1, workers=0)
    return next(iter(batches)).images


def norms(student_name: str, teacher: Teacher, images: Tensor) -> dict[str, float]:
    """Of the gradients of KL and of both feature terms."""
    torch.manual_seed(0)
    student = open_network(
        "student", arch=student_name, num_classes=teacher.num_classes, input_size=images.shape[1]
    ).train()
    targets, (wanted,) = teacher(images, with_features=True)
    logits, own = student(images, with_features=True)
    projected = open_projection(student, teacher, 0)(own)
    terms = {"kl": training_divergence("kl", logits, targets)}
    terms |= {name: feature_loss(name, projected, wanted) for name in TRAINING_SCALE}
    weights, found = list(student.parameters()), {}
    for name, term in terms.items():
        found[name] = torch.autograd.grad(
            term.mean(), weights, retain_graph=True, allow_unused=True
        )
    both = [i for i, gradient in enumerate(found["cosine"]) if gradient is not None]
    return {
        name: float(torch.cat([gradients[i].flatten() for i in both]).norm())
        for name, gradients in found.items()
    }


def rows(evidence: Path, ratios: dict[str, list[float]]) -> Iterator[list[str]]:
    for name, size in SETS.items():
        teacher = open_teacher([TeacherConfig(checkpoint=f"{evidence}/teachers/{name}")], "fp32")[0]
        images = views(evidence / name / "unlabeled", size)
        for student in STUDENTS:
            found = norms(student, teacher, images)
            for term, values in ratios.items():
                values.append(found["kl"] / found[term])
            yield [name, student, f"{found['kl']:.2f}", *(f"{x[-1]:.1f}" for x in ratios.values())]


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--evidence", type=Path, default=Path("runs/evidence"))
    given = words.parse_args()
    torch.set_num_threads(1)
    ratios: dict[str, list[float]] = {name: [] for name in TRAINING_SCALE}
    show(
        ["teacher of", "student", "KL's gradient", *(f"KL : {name}" for name in ratios)],
        rows(given.evidence, ratios),
    )
    for name, values in ratios.items():
        print(f"{name}: median {statistics.median(values):.1f}, in training {TRAINING_SCALE[name]}")


if __name__ == "__main__":
    main()
