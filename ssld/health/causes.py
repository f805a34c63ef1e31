"""Why a run does not learn: each of the usual causes is checked, not guessed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssld.data.loading import Batch
from ssld.health.teacher_check import GIVEN, check_teacher
from ssld.models.classifier import Classifier
from ssld.models.teacher import Teacher

NO_CAUSE = "no cause found"
SHOWN = 3
"""Causes that are named."""
MOVED_TOO_LITTLE = 1e-3
"""Relative change of the weights since the start; a working run is beyond 1e-2 in an epoch."""
SAYS_NOTHING = 0.05
"""Of the ln C nats that a teacher of C classes could tell about an image."""
GREW_TOO_MUCH = 3.0
"""Norm of the weights over the norm they started with."""


def causes(
    student: Classifier,
    initial: dict[str, Tensor],
    batches: Sequence[Batch],
    teacher: Teacher | None,
) -> list[str]:
    """The likely causes, strongest evidence first, three at most.

    Args:
        student: the network that is judged, of which a copy in eval mode is not changed.
        initial: its parameters before the first step, on the CPU.
        batches: held-out images on the student's device, with labels where there are any.
    """
    result = [] if student.frozen_on_purpose else _frozen(student, initial)
    result += _dead(student, batches[0])
    accused, hints = _teacher(teacher, batches)
    result += accused
    result += _learning_rate(student, initial, batches[0], teacher, stuck=bool(result))
    if result:
        return result[:SHOWN]
    looked_at = "the weights move and do not explode, no layer is frozen or dead"
    if teacher is not None and teacher.num_classes:
        looked_at += ", and the teacher is not better with another normalisation or class order"
    return [f"{NO_CAUSE}: {looked_at}", *hints[:1]]


def _frozen(student: Classifier, initial: dict[str, Tensor]) -> list[str]:
    parameters = dict(student.model.named_parameters())
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    unmoved = [n for n, p in parameters.items() if torch.equal(p.detach().cpu(), initial[n])]
    others = [n for n in parameters if n not in set(unmoved)]  # all may move below rounding
    stuck = frozen or (unmoved if _moved(parameters, initial, others) > MOVED_TOO_LITTLE else [])
    if len(stuck) < 0.05 * len(parameters):
        return []  # a bias before a norm, say
    return [
        f"frozen layers: {len(stuck)} of {len(parameters)} weight tensors have not changed since "
        f"the start ({', '.join(stuck[:3])}{', ...' if len(stuck) > 3 else ''})"
    ]


def _moved(
    parameters: dict[str, nn.Parameter], initial: dict[str, Tensor], names: list[str]
) -> float:
    """Norm of the change of the named parameters over the norm that all started with."""
    size = _norm(initial.values())
    return _norm(parameters[n].detach().cpu() - initial[n] for n in names) / size if size else 0.0


def _norm(tensors: Iterable[Tensor]) -> float:
    """Of all their values together."""
    return math.sqrt(sum(float(x.double().square().sum()) for x in tensors))


@torch.inference_mode()
def _dead(student: Classifier, batch: Batch) -> list[str]:
    """The first layer after which every image looks the same, where the logits do not vary."""
    varies: list[tuple[str, bool]] = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() > 1 and len(output) > 1:
                values = output.float()
                spread = values.std(0).max() / values.abs().max().clamp(min=1e-30)
                varies.append((name, bool(spread > 1e-5)))

        return hook

    leaves = [(n, m) for n, m in student.model.named_modules() if not list(m.children())]
    handles = [module.register_forward_hook(look(name)) for name, module in leaves]
    try:
        if (batch.weight > 0).any():
            student(batch.images[batch.weight > 0])
    finally:
        for handle in handles:
            handle.remove()
    if not varies or varies[-1][1]:
        return []
    alive = [i for i, (_, does) in enumerate(varies) if does]
    name = varies[alive[-1] + 1][0] if alive else varies[0][0]
    return [f"dead layers: from {name} on, every image gives the same output"]


def _teacher(teacher: Teacher | None, batches: Sequence[Batch]) -> tuple[list[str], list[str]]:
    """Causes, and hints that are none."""
    accused: list[str] = []
    hints: list[str] = []
    if teacher is None:
        return accused, hints
    for name, network, config in zip(teacher.names, teacher.networks, teacher.configs, strict=True):
        if not network.num_classes:
            continue
        check = check_teacher(network, batches, config.dtype or "fp32")
        problem = check.problem(name)
        accused += [problem] if problem else []
        if check.fault:
            continue
        hints += [f"hint on the {name}, {hint}" for hint in check.hints]
        information = check.information.get(GIVEN, 0.0)
        if not problem and information < SAYS_NOTHING * math.log(network.num_classes):
            accused.append(
                f"the {name} says nearly the same about every image (it tells {information:.3f} "
                "nats): check teacher.checkpoint, unless the images are all of one kind"
            )
    return accused, hints


@torch.inference_mode()
def _learning_rate(
    student: Classifier,
    initial: dict[str, Tensor],
    batch: Batch,
    teacher: Teacher | None,
    *,
    stuck: bool,
) -> list[str]:
    """Too low or too high, by how far the weights went and how wrong the student is.

    Args:
        stuck: layers are frozen or dead, which explains weights that do not move.
    """
    trained = {n: p.detach().cpu() for n, p in student.model.named_parameters() if p.requires_grad}
    start = _norm(initial[n] for n in trained) or 1.0
    moved = _norm(p - initial[n] for n, p in trained.items())
    size = _norm(trained.values())
    if moved / start < MOVED_TOO_LITTLE:
        if stuck:
            return []
        return [
            f"learning rate too low: the weights have moved by {moved / start:.1e} of their size; "
            "raise schedule.lr"
        ]
    signs = []
    if size / start > GREW_TOO_MUCH:
        signs.append(f"the weights have grown {size / start:.1f} times")
    if teacher is not None and student.num_classes:
        log_t, log_s = teacher(batch.images), F.log_softmax(student(batch.images).float(), -1)
        log_t = log_t.clamp(min=-1e5)
        distance = float((log_t.exp() * (log_t - log_s)).sum(-1).mean())
        silence = math.log(student.num_classes) + float((log_t.exp() * log_t).sum(-1).mean())
        if distance > 1.2 * silence + 0.1:
            signs.append(
                f"the student is further from the teacher (KL {distance:.2f}) than if it said "
                f"nothing ({silence:.2f})"
            )
    return [f"learning rate too high: {' and '.join(signs)}; lower schedule.lr"] if signs else []
