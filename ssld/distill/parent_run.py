"""The finished run that a later stage goes on from, and the settings that it hands down.

Read while settings are parsed: imports neither torch nor timm.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ssld.common.errors import InputError
from ssld.common.files import read_object, reading
from ssld.common.recorded import MADE_AGAIN, check_recorded
from ssld.common.settings import flat, plain
from ssld.distill.config import FinetuneConfig, FixResConfig
from zoo.release import sha256_of

CONFIGS: dict[str, type[FinetuneConfig]] = {"finetune": FinetuneConfig, "fix": FixResConfig}
DAMAGED = "put a copy back, or take another run"
OF_ONE_RUN_ONLY = (
    *("run", "targets", "train", "resolutions", "labels", "fresh_share"),
    *("out", "resume", "overwrite", "allow_changes"),
)
"""Settings that are of one run and no other's."""
FINETUNE_LR_FACTOR = 0.01
"""Learning rate of the second stage over the first's: .016 / 1.6, .0054 / .54, .004 / .4 in the
reference's table (PaddleClas, docs on knowledge distillation)."""
FINETUNE_EPOCHS = 30.0
"""SSLD section 4.2."""
FIXRES_EPOCHS, FIXRES_LR = 11.0, 0.0005
"""FixResNet-50 CutMix: 11 epochs, 0.001 at batch 64 x 8 (facebookresearch/FixRes, README.md)."""


@dataclass(frozen=True)
class ParentRun:
    """The finished run that a stage goes on from."""

    run: str
    settings: dict[str, Any]
    facts: dict[str, Any]

    @property
    def taught(self) -> bool:
        """Whether its targets were a teacher's."""
        return self.facts["teacher_sha256"] is not None

    @property
    def exported(self) -> dict[str, Any]:
        return self.facts["exported"]

    def student_sha256(self) -> str:
        """
        Raises:
            InputError: its weights are gone, or not those that the run exported.
        """
        weights = Path(self.run) / "student" / "model.safetensors"
        try:
            digest = sha256_of(weights)
        except OSError as error:
            raise InputError(
                f"{weights.parent} has no {weights.name} ({error.strerror}): {MADE_AGAIN}"
            ) from error
        check_recorded(weights, "run", digest)
        return digest


def open_parent_run(run: str) -> ParentRun:
    """Read a finished run.

    Raises:
        InputError: no run folder, or one that has not finished.
    """
    folder = Path(run)
    try:
        settings = read_object(folder / "config.yaml", DAMAGED)
        facts = read_object(folder / "run.json", DAMAGED)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"run {run} is not a run folder ({error.filename} is missing)") from error
    if not facts.get("exported"):
        raise InputError(
            f"run {run} has not finished: start its command again with --resume, with fewer steps "
            "allowed by --allow_changes if it has seen enough"
        )
    with reading(folder / "run.json", DAMAGED):
        if "teacher_sha256" not in facts or "step" not in facts["exported"]:
            raise ValueError("it lacks teacher_sha256 or exported.step")
    return ParentRun(run, settings, facts)


def finetune_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """For `ssld.cli.parse`: what holds for a second stage where nothing else is given."""
    return _inherited("finetune", given)


def fix_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """The same for a resolution fix."""
    return _inherited("fix", given)


def _inherited(stage: str, given: dict[str, Any]) -> dict[str, Any]:
    run = given.get("run")
    if not run:
        return {}  # the configuration says that it is missing
    parent = open_parent_run(str(run))
    with reading(f"run {run}", DAMAGED):  # an older ssld, or an editor, left some of it out
        return settings_after(stage, parent.settings, parent.taught, str(run), given)


def settings_after(
    stage: str, settings: dict[str, Any], taught: bool, run: str, given: dict[str, Any]
) -> dict[str, Any]:
    """Settings of a stage that goes on from `run`, whose settings are given, nested.

    Args:
        taught: whether that run had a teacher.
        given: what the user says, by full name; decides between epochs and steps.
    """
    if stage == "finetune" and not (taught or "run" in settings):
        raise InputError(
            f"run {run} is one of ssld supervised: the second stage goes on from a distillation"
        )
    features_alone = settings.get("loss", {}).get("weight", 1) == 0
    if stage == "fix" and features_alone:
        raise InputError(f"run {run} learned features alone: it has no classifier to fix")
    known = {field.name for field in fields(CONFIGS[stage])}
    inherited = {k: v for k, v in settings.items() if k in known and k not in OF_ONE_RUN_ONLY}
    inherited["targets"] = given.get("targets") or ("teacher" if taught else "human")
    if inherited["targets"] == "human":
        for key in ("teacher", "teachers", "teacher_view", "loss", "features"):
            inherited.pop(key, None)
    inherited["student"] = {"checkpoint": run, "num_classes": settings["student"]["num_classes"]}
    inherited["data"] = _labeled_only(settings["data"])
    usual = {"finetune": FINETUNE_EPOCHS, "fix": FIXRES_EPOCHS}[stage]
    inherited["steps"], inherited["epochs"] = None, None if "steps" in given else usual
    schedule = dict(settings["schedule"])
    inherited["schedule"] = {**schedule, "lr": schedule["lr"] * FINETUNE_LR_FACTOR}
    if stage == "fix":
        inherited["schedule"]["lr"] = FIXRES_LR
        size = settings["augment"]["size"]
        # 224 -> 320 px, as Fix_ResNet50_vd_ssld_v2 (PaddleClas).
        inherited["augment"] = {"size": size and resolutions_from(size)[4]}
        inherited.pop("teacher_view", None)
        inherited.pop("features", None)
    return inherited


def _labeled_only(data: dict[str, Any]) -> dict[str, Any]:
    """Without the unlabeled sources, but where held-out images come from them."""
    if not data["val"] and data["holdout"]:
        return data
    fractions = (data["fractions"] or [])[: len(data["labeled"])]
    kept = fractions if sum(fractions) > 0 else None
    return {**data, "unlabeled": [], "unlabeled_share": 1.0, "fractions": kept}


def resolutions_from(size: int) -> list[int]:
    """Sides from 6/7 to 12/7 of the one that a student was trained at: 192 to 384 for 224 px."""
    unit = max(4, 4 * round(size / 28))
    return [size + k * unit for k in range(-1, 6)]


def lineage(parent: ParentRun) -> dict[str, Any]:
    """What run.json says of the start: enough to know where weights come from without it."""
    own = ("images", "labels")
    kept = {k: v for k, v in parent.facts.items() if k.startswith("teacher") or k in own}
    return {
        "run": parent.run,
        "exported": parent.exported,
        "settings": parent.settings,
        "facts": {"steps": parent.facts["steps"], **kept},
        "started_from": parent.facts.get("started_from"),
    }


def differences(parent: ParentRun, config: FinetuneConfig) -> list[str]:
    """One line on the start, and one for every setting that is not as there."""
    before, now = flat(parent.settings), flat(plain(config))
    fixed = isinstance(config, FixResConfig)
    exported = parent.exported
    reached = f", {exported['metric']} {exported['value']:.4f}" if exported.get("value") else ""
    lines = [f"goes on from {parent.run} (step {exported['step']:,}{reached}), as there but for"]
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        # Resolved from the weights when the run starts, of this run alone, or not known there.
        if old == new or key.partition(".")[0] in OF_ONE_RUN_ONLY or key.startswith("student.a"):
            continue
        if key not in before:
            continue
        if fixed and key.startswith("augment.") and key != "augment.size":
            continue
        lines.append(f"  {key}: {old!r} -> {new!r}")
    if config.data.unlabeled:
        lines.append("  data.unlabeled: held-out images only, not trained on")
    return [*lines, "  views as for an evaluation"] if fixed else lines
