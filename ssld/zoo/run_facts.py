"""What a run folder says of the making of its network: stages, teachers, licences, metrics;
without where files lie on a machine, and what opens a door."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ssld.common.errors import InputError
from ssld.common.files import read_object
from ssld.common.metrics import CHANCE, wilson
from ssld.common.published import without_secrets
from ssld.engine.run_folder import read_lines
from ssld.health.resolution import describe_choice
from ssld.health.verdict import symptoms
from ssld.zoo.config import About
from zoo.licences import combine, normalised, weights
from zoo.publish.card import METRICS

RECIPE = "config.yaml"
VERIFY_IMAGES = 1000
"""As in `ssld/distill/verify_teacher.py`: labeled images at most on which a run checks its
teacher."""


def run_facts(run: Path, step: int | None, about: About, model: str) -> dict[str, Any]:
    """What ssld.json says of the run that exported the network.

    Args:
        step: of the exported network.
        model: what commands on the card call it.

    Raises:
        InputError: the student of that step diverged, or a file of the run is damaged.
    """
    recipe, facts = (read_object(run / x, "publish another run") for x in (RECIPE, "run.json"))
    lines = read_lines(run / "metrics.jsonl")
    evaluations = [x for x in lines if x["kind"] == "eval"]
    last = evaluations[-1] if evaluations else {}
    evaluation = next((x for x in evaluations if x["step"] == step), {})
    if facts.get("resolution"):  # another size than the one that was evaluated in training
        evaluation = facts["resolution"]["metrics"]
    if any(isinstance(x, float) and not math.isfinite(x) for x in evaluation.values()):
        raise InputError(f"{run}: the student of step {step} diverged; publish another run")
    stages = list(_stages(recipe, facts))
    taught = [stage for stage in stages if _is_taught(stage[1])]
    content: dict[str, Any] = {
        "kind": "distilled" if taught else "supervised",
        "stages": [_command(settings) for settings, _ in reversed(stages)],
        "earlier_recipes": [without_secrets(settings) for settings, _ in reversed(stages[1:])],
        "labels_read": len(taught) < len(stages),
        "steps": facts["steps"],
        "reached": max((x["step"] for x in lines), default=step),
        "finished": facts.get("exported") is not None,
        "verdict": last.get("verdict"),
        "verdict_step": last.get("step"),
        "symptoms": _symptoms(recipe, evaluation),
        **({"chosen": describe_choice(facts["resolution"])} if facts.get("resolution") else {}),
        "recipe": without_secrets(recipe),
    }
    if _is_taught(facts) and not recipe.get("loss", {}).get("weight", 1):
        content["features_alone"] = True
    inherited = []
    for settings, of_stage in reversed(taught):
        content["teacher"] = teacher = _teacher(settings, of_stage, about)
        inherited += [(f"the teacher {x['name']}", x["license"]) for x in teacher["networks"]]
    student = stages[-1][0]["student"]
    if student.get("pretrained") or student.get("checkpoint"):
        start = weights(student.get("arch"), student.get("checkpoint"), "from a local file")
        inherited.append((f"the initial weights {start['name']}", start["license"]))
    inherited.append(("the training data", about.data_license))
    return {
        **content,
        "license": combine(about.license, list(dict.fromkeys(inherited))),
        "data": {
            "sha256": facts["data_sha256"],
            "val_sha256": facts["val_sha256"],
            "sources": _sources({k: v for _, x in stages for k, v in x.get("images", {}).items()}),
            "held_out": _sources(facts.get("held_out") or {}),
        },
        "versions": facts["versions"],
        "metrics": list(_metrics(recipe, facts, evaluation, about, model)),
    }


def _symptoms(recipe: dict[str, Any], evaluation: dict[str, Any]) -> list[str]:
    """What shows that the exported weights have not learned."""
    return symptoms(evaluation, recipe.get("student", {}).get("num_classes") or 0)


def _stages(
    recipe: dict[str, Any], facts: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Settings and facts of a run, of the one that it went on from, and so on."""
    yield recipe, facts
    start = facts.get("started_from")
    if start:
        yield from _stages(start["settings"], {**start["facts"], **start})


def _is_taught(facts: dict[str, Any]) -> bool:
    return "teacher" in facts or "teacher 0" in facts


def _command(recipe: dict[str, Any]) -> str:
    """The command that a run's settings are those of."""
    if "resolutions" in recipe:
        return "fix"
    return "finetune" if "run" in recipe else "distill" if "teacher" in recipe else "supervised"


def _metrics(
    recipe: dict[str, Any], facts: dict[str, Any], line: dict[str, Any], about: About, model: str
) -> Iterator[dict[str, Any]]:
    """The evaluation of the exported weights, of their average where the run kept one."""
    val = without_secrets(recipe["data"]["val"])
    again = f"ssld {_command(recipe)} --config {RECIPE}"
    where = shlex.quote(val[0] if len(val) == 1 else json.dumps(val))
    evaluate = f"ssld evaluate --model {model} --data {where}"
    if (facts.get("resolution") or {}).get("images"):  # measured on a half of them
        evaluate = again
    for name in METRICS:
        if name not in line:
            continue
        images = round(line["images"]) if name.startswith("agreement") else None
        if name in ("top1", "top5"):
            images = _labeled(facts, line, line[name])
        low, high = wilson(line[name] * images, images) if images else (None, None)
        yield {
            "name": name,
            "value": line[name],
            "chance": line.get(CHANCE.get(name, "")),
            "low": low,
            "high": high,
            "images": images,
            "dataset": about.evaluated_on or ", ".join(val) or "held-out training images",
            "dataset_id": about.evaluated_on,
            "command": evaluate if name in ("top1", "top5") and val else again,
        }


def _labeled(facts: dict[str, Any], line: dict[str, Any], share: float) -> int | None:
    """How many of the held-out images count for accuracy.

    Older lines of metrics.jsonl count labeled and other images together; a distillation has counted
    the labeled ones when it checked its teacher, supervised training knows no others."""
    images = round(line["images"])
    if "labeled" in line:
        return round(line["labeled"])
    if abs(share * images - round(share * images)) > 1e-6:
        return None  # it is a share of fewer
    verified = (facts.get("teacher_top1") or {}).get("images")
    supervised = facts["teacher_sha256"] is None
    return images if supervised or verified == min(images, VERIFY_IMAGES) else None


def _teacher(recipe: dict[str, Any], facts: dict[str, Any], about: About) -> dict[str, Any]:
    labels = facts.get("labels") or {}  # whose teacher was asked before, and not by the run
    configs = labels.get("teachers") or recipe.get("teachers") or [recipe["teacher"]]
    networks = []
    for i, config in enumerate(configs):
        fact = facts["teacher" if len(configs) == 1 else f"teacher {i}"]
        place = config.get("weights") or weights(
            config.get("arch"), config.get("checkpoint"), str(fact["architecture"])
        )
        network = {**fact, **without_secrets(place)}
        if about.teacher_license and network["license"] is None:
            network["license"] = normalised(about.teacher_license)
        elif about.teacher_license and network["license"] != normalised(about.teacher_license):
            raise InputError(
                f"{network['name']} is published under {network['license']}, not "
                f"{about.teacher_license}: leave teacher_license out"
            )
        networks.append({**network, "license": network["license"] or "unknown"})
    names, licenses = ([network[key] for network in networks] for key in ("name", "license"))
    top1 = facts.get("teacher_top1")
    return {
        "name": " + ".join(names),
        "license": licenses[0] if len(set(licenses)) == 1 else "several",
        "sha256": facts["teacher_sha256"],
        "top1": {"value": top1["hits"] / top1["images"], **top1} if top1 else None,
        "networks": networks,
    }


def _sources(images: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"source": without_secrets(path), "images": n} for path, n in images.items()]
