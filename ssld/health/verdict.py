"""Does it learn, without asking a label? One sentence from the evaluations of a run so far, and
what pages say of it.

The evaluations are lines of metrics.jsonl (`ssld/health/classification_metrics.py` says what they
hold). Causes of a run that does not learn are looked for in `ssld/health/causes.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ssld.common.metrics import CHANCE, METRICS, beyond_chance

FLAT_SHARE = 0.2
"""Flat is what has not risen for this share of the epochs so far, and at least `FLAT_COUNT`
evaluations."""
FLAT_COUNT = 3
SLIGHT_AGREEMENT = 0.2
"""Agreement beyond chance below which it is "slight" (Landis and Koch 1977, p. 165)."""
NO_AGREEMENT = 0.02
"""Feature agreement up to which features are no better than by chance, which is 0."""
SAME = 0.9999
"""Length of the mean of all directions from which on features are the same."""
STOP = "; consider stopping"
Kind = Literal["improving", "flat", "not learning", "too early"]


@dataclass(frozen=True)
class Verdict:
    """The judgement of a run."""

    kind: Kind
    sentence: str


def judge(
    evaluations: Sequence[dict[str, Any]],
    *,
    metric: str,
    num_classes: int,
    share_of_peak: float,
    early: bool = False,
    finished: bool = False,
) -> Verdict:
    """Judge a run by its evaluations, oldest first.

    Args:
        metric: of `METRICS`, the one whose trend counts.
        share_of_peak: the coming learning rate over the schedule's highest.
        early: the learning rate still rises, or this is the first of several evaluations; what has
            not begun to learn yet may.
        finished: no step is left; the sentence says what came of it.
    """
    if not evaluations:
        return Verdict("too early", "no evaluation yet")
    signs = symptoms(evaluations[-1], num_classes)
    if signs and not early:
        return Verdict("not learning", f"not learning: {'; '.join(signs)}")
    if finished and not signs and len(evaluations) < 2:
        shown = f"{METRICS[metric].label} {METRICS[metric].show(evaluations[-1][metric])}"
        return Verdict("too early", f"finished with {shown}; one evaluation shows no trend")
    if len(evaluations) < 2 or signs:
        more = f" ({'; '.join(signs)})" if signs else ""
        return Verdict("too early", f"too early to say{more}")
    result = _trend(evaluations, metric, share_of_peak)
    little = _little(evaluations[-1], metric)
    if not finished:
        return Verdict(result.kind, result.sentence + little)
    more = "; a longer schedule may bring more" if result.kind == "improving" else ""
    return Verdict(result.kind, f"finished, {result.sentence.removesuffix(STOP)}{little}{more}")


def is_not_learning(sentence: str | None) -> bool:
    """Whether that is what a verdict says."""
    return (sentence or "").removeprefix("finished, ").startswith("not learning")


def noted(evaluation: Mapping[str, Any], metric: str, num_classes: int) -> dict[str, Any]:
    """What is kept of an evaluation for `ssld.common.metrics.rank`, as JSON holds it."""
    result: dict[str, Any] = {"metric": metric, "value": evaluation[metric]}
    # A teacher that says one class of all images is agreed with by chance alone, whatever is said.
    several = round(evaluation.get("classes_teacher", 0) * num_classes) > 1
    if metric == "agreement1" and several:
        result["chance"] = evaluation[CHANCE[metric]]
    return {**result, "symptoms": symptoms(evaluation, num_classes)}


def level(evaluation: Mapping[str, Any]) -> str:
    """Each share with its chance level, in words; empty where there is none."""
    message = []
    for key, chance in CHANCE.items():
        if key in evaluation and chance in evaluation:
            share, by_chance = evaluation[key], evaluation[chance]
            kappa = beyond_chance(share, by_chance)
            name = METRICS[key].label
            message.append(
                f"{name} {share:.1%} where chance is {by_chance:.1%} (kappa {kappa:.2f})"
            )
    if "feature_agreement" in evaluation:
        agreement = evaluation["feature_agreement"]
        message.append(f"feature agreement {agreement:.1%} where chance is 0")
    return ", ".join(message)


def _little(evaluation: Mapping[str, Any], metric: str) -> str:
    """What is to be said of a share that is but a little above chance."""
    chance = evaluation.get(CHANCE.get(metric, ""), 0.0)
    share = evaluation[metric]
    if not chance or share >= 2 * chance or beyond_chance(share, chance) >= SLIGHT_AGREEMENT:
        return ""
    return f"; that is little above chance ({chance:.1%})"


def symptoms(evaluation: Mapping[str, Any], num_classes: int) -> list[str]:
    """What shows that a network has not learned, each as a phrase; empty when nothing does, or the
    evaluation is not one of a classifier or of features."""
    e, result = evaluation, _of_features(evaluation)
    if "entropy_student" not in evaluation or not num_classes:
        return result
    if math.isnan(e["entropy_student"]):
        return ["its predictions are not finite (NaN or infinite)"]
    count, log_c = max(1, e.get("images", 1)), math.log(num_classes)
    used = round(e.get("classes_student", 1) * num_classes)
    wanted = min(round(e.get("classes_teacher", 1) * num_classes), int(count))
    top1_chance = max(1 / num_classes, e.get("top1_chance", 0.0))
    if "agreement1" in e:
        if _at_chance(e["agreement1"], e["agreement_chance"], count):
            result.append(
                f"agreement@1 with the teacher is {e['agreement1']:.1%}, which is chance "
                f"({e['agreement_chance']:.1%})"
            )
        elif "top1" in e and _at_chance(e["top1"], top1_chance, e.get("labeled", count)):
            result.append(
                f"the student follows its teacher (agreement@1 {e['agreement1']:.1%}) but its "
                f"top-1 on labeled images is {e['top1']:.1%}, which is chance"
            )
        if e["entropy_teacher"] > 0.98 * log_c:
            result.append("the teacher itself says the same of all classes")
    elif "top1" in e and _at_chance(e["top1"], top1_chance, e.get("labeled", count)):
        result.append(f"top-1 is {e['top1']:.1%}, which is chance")
    if e["entropy_student"] > 0.98 * log_c and e.get("entropy_teacher", 0) < 0.9 * log_c:
        result.append(
            f"its predictions are uniform (entropy {e['entropy_student']:.3f} nats of ln "
            f"{num_classes} = {log_c:.3f})"
        )
    elif wanted > 1 and used <= max(1, wanted // 10):
        result.append(f"it has collapsed to {used} of {wanted} classes")
    return result


def _of_features(evaluation: Mapping[str, Any]) -> list[str]:
    """What shows that the feature term is not learned."""
    agreement = evaluation.get("feature_agreement")
    if agreement is None or agreement > NO_AGREEMENT or evaluation["images"] < 2:
        return []
    if math.isnan(agreement):
        return ["its projected features are not finite (NaN or infinite)"]
    if evaluation["feature_sameness_teacher"] > SAME:
        return ["the teacher itself has the same features for all images"]
    if evaluation["feature_sameness_student"] > SAME:
        return ["its projected features have collapsed: they are the same for all images"]
    return [f"feature agreement with the teacher is {agreement:.1%}, which is chance (0)"]


def _at_chance(share: float, chance: float, count: int) -> bool:
    """Within 99 % of what `count` draws give by chance, or hardly above it."""
    deviation = math.sqrt(chance * (1 - chance) / count)
    return share <= chance + max(2.576 * deviation, 0.01 * (1 - chance))


def _trend(evaluations: Sequence[dict[str, Any]], metric: str, share_of_peak: float) -> Verdict:
    known = METRICS[metric]
    sign = 1.0 if known.better == "higher" else -1.0
    epochs = [e["epoch"] for e in evaluations]
    values = [sign * x for x in _comparable(evaluations, metric)]
    now, best, last = values[-1], max(values), epochs[-1]
    shown = f"{known.label} {known.show(sign * now)}"
    reached = next(i for i, v in enumerate(values) if v >= best - _noise(evaluations[-1], metric))
    since = epochs[reached]
    still = len(values) - 1 - reached >= FLAT_COUNT and last - since >= FLAT_SHARE * last
    if still and not _divergence_falls(evaluations[reached:]):
        below = f", best {known.show(sign * best)}" if now < best else ""
        advice = (
            f"; the learning rate is still {share_of_peak:.0%} of its peak, its fall may bring more"
            if share_of_peak > 0.5
            else STOP
        )
        return Verdict("flat", f"flat since epoch {round(since, 2):g}: {shown}{below}{advice}")
    start = len(values) // 2 if len(values) > 3 else 0
    slope = _slope(epochs[start:], values[start:])
    if slope * (last - epochs[start]) < _noise(evaluations[-1], metric):
        slope = min(slope, 0.0)
    if slope <= 0 and not _divergence_falls(evaluations[start:]):
        going = "falling" if metric == "divergence" else "rising"
        return Verdict("flat", f"no longer {going} since epoch {round(since, 2):g}: {shown}")
    if slope <= 0:
        lower = evaluations[-1]["divergence"]
        return Verdict(
            "improving", f"still improving: the divergence falls ({lower:.4g}), {shown} stands"
        )
    per = f"{100 * slope:+.2g} points" if metric != "divergence" else f"{-slope:+.2g}"
    return Verdict("improving", f"still improving: {shown}, {per} per epoch lately")


def _comparable(evaluations: Sequence[dict[str, Any]], metric: str) -> list[float]:
    """The metric's values; agreement@1 as if chance had always been what it is at the last one."""
    chance = evaluations[-1].get("agreement_chance")
    if metric != "agreement1" or chance is None:
        return [e[metric] for e in evaluations]
    return [
        chance + (1 - chance) * beyond_chance(e[metric], e.get("agreement_chance", chance))
        for e in evaluations[:-1]
    ] + [evaluations[-1][metric]]


def _noise(evaluation: dict[str, Any], metric: str) -> float:
    """Half a standard error of a share (the images are the same each time), at least 0.1 points."""
    if metric == "divergence":
        return 0.01 * evaluation[metric]
    if metric == "feature_agreement":  # no share of images
        return 0.001
    share = evaluation[metric]
    return max(0.001, 0.5 * math.sqrt(share * (1 - share) / max(1, evaluation.get("images", 1))))


def _divergence_falls(evaluations: Sequence[dict[str, Any]]) -> bool:
    """By more than 2 % since the first of them; with rising agreement unseen, that is progress."""
    if "divergence" not in evaluations[-1] or len(evaluations) < 2:
        return False
    return evaluations[-1]["divergence"] < 0.98 * evaluations[0]["divergence"]


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least squares."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    square = sum((a - mean_x) ** 2 for a in x)
    product = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return product / square if square else 0.0


KINDS = {"still improving": "improving", "flat": "flat", "no longer": "flat"}
Lines = Sequence[Mapping[str, Any]]


def shown_verdict(evaluations: Lines, stage: str = "") -> tuple[str, str]:
    """The last verdict, and its kind, which a page colours it by.

    Args:
        evaluations: lines of metrics.jsonl, oldest first.
        stage: named first, on a page of several.
    """
    name = f"{stage}: " if stage else ""
    if not evaluations:
        return f"{name}No verdict: no evaluation yet.", ""
    verdict = str(evaluations[-1]["verdict"])
    begins = verdict.removeprefix("finished, ")
    kind = next((kind for words, kind in KINDS.items() if begins.startswith(words)), "")
    kind = "not" if is_not_learning(verdict) else kind
    return f"{name}{verdict[:1].upper()}{verdict[1:]}.", kind


def standing(evaluations: Lines, exported: Mapping[str, Any] | None, num_classes: int) -> str:
    """Where the last evaluation stands against chance, and which one `student/` holds.

    Args:
        exported: what run.json says, where the run has finished.
    """
    if not evaluations:
        return ""
    last = evaluations[-1]
    text = f"The last evaluation, step {last['step']:,}: {level(last) or 'no chance level'}."
    if not exported:
        return text
    step = exported["step"]
    line = next((x for x in evaluations if x["step"] == step), None)
    text += f" The exported student is that of step {step:,}"
    if line is None:
        return f"{text}, which was not evaluated."
    text += "." if line is last else f": {level(line) or 'no chance level'}."
    signs = "; ".join(symptoms(line, num_classes))
    return f"{text} It has symptoms: {signs}." if signs else text
