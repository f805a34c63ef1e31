"""What the stages after the first share: they go on from a finished run and are as that run was."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ssld.common.errors import InputError
from ssld.common.recorded import MADE_AGAIN, check_recorded
from ssld.common.settings import flat, plain
from ssld.common.written_files import read_object, reading
from ssld.distill.stage_config import FinetuneConfig, FixConfig

if TYPE_CHECKING:
    from ssld.distill.distill import Distillation
    from ssld.distill.setup import Setup
    from ssld.distill.supervised import Supervision
    from ssld.models.classifier import Classifier
    from ssld.models.teacher import Teacher

Stage = Literal["finetune", "fix"]
CONFIGS: dict[Stage, type[FinetuneConfig]] = {"finetune": FinetuneConfig, "fix": FixConfig}
DAMAGED = "put a copy back, or take another run"
OWN = ("run", "targets", "train", "resolutions", "out", "resume", "overwrite", "allow_changes")
"""Settings that are of one run and no other's."""
SLOWER = 0.01
"""Learning rate of the second stage over the first's: .016 / 1.6, .0054 / .54, .004 / .4 in the
reference's table (PaddleClas, docs on knowledge distillation)."""
FINETUNE_EPOCHS = 30.0
"""SSLD section 4.2."""
FIX_EPOCHS, FIX_LR = 11.0, 0.0005
"""FixResNet-50 CutMix: 11 epochs, 0.001 at batch 64 x 8 (facebookresearch/FixRes, README.md)."""


@dataclass(frozen=True)
class Start:
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
        from ssld.engine.export import weights_sha256

        student = Path(self.run) / "student"
        try:
            found = weights_sha256(student)
        except OSError as error:
            raise InputError(
                f"{student} has no model.safetensors ({error.strerror}): {MADE_AGAIN}"
            ) from error
        check_recorded(student / "model.safetensors", "run", found)
        return found


def open_start(run: str) -> Start:
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
    return Start(run, settings, facts)


def finetune_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """For `ssld.cli.parse`: what holds for a second stage where nothing else is given."""
    return _inherited("finetune", given)


def fix_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """The same for a resolution fix."""
    return _inherited("fix", given)


def _inherited(stage: Stage, given: dict[str, Any]) -> dict[str, Any]:
    run = given.get("run")
    if not run:
        return {}  # the configuration says that it is missing
    start = open_start(str(run))
    with reading(f"run {run}", DAMAGED):  # an older ssld, or an editor, left some of it out
        return settings_after(stage, start.settings, start.taught, str(run), given)


def settings_after(
    stage: Stage, settings: dict[str, Any], taught: bool, run: str, given: dict[str, Any]
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
    known = {field.name for field in fields(CONFIGS[stage])}
    found = {k: v for k, v in settings.items() if k in known and k not in OWN}
    found["targets"] = given.get("targets") or ("teacher" if taught else "human")
    if found["targets"] == "human":
        for key in ("teacher", "teachers", "teacher_view", "loss"):
            found.pop(key, None)
    found["student"] = {"checkpoint": run, "num_classes": settings["student"]["num_classes"]}
    found["data"] = _labeled_only(settings["data"])
    usual = {"finetune": FINETUNE_EPOCHS, "fix": FIX_EPOCHS}[stage]
    found["steps"], found["epochs"] = None, None if "steps" in given else usual
    schedule = dict(settings["schedule"])
    found["schedule"] = {**schedule, "lr": schedule["lr"] * SLOWER}
    if stage == "fix":
        found["schedule"]["lr"] = FIX_LR
        size = settings["augment"]["size"]
        # 224 -> 320 px, as Fix_ResNet50_vd_ssld_v2 (PaddleClas).
        found["augment"] = {"size": size and resolutions_from(size)[4]}
        found.pop("teacher_view", None)
    return found


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


def prepare(
    config: FinetuneConfig, start: Start
) -> tuple[Setup, Classifier, Teacher | None, str | None, Distillation | Supervision]:
    """Open everything that a stage needs, and say what it goes on from and what differs.

    Returns:
        set-up, student, teacher and its sha256 (None for human targets), task.

    Raises:
        InputError: what is missing or does not fit; nothing is written.
    """
    from ssld.distill.distill import Distillation, named
    from ssld.distill.setup import Setup
    from ssld.distill.supervised import Supervision
    from ssld.distill.verify_teacher import verify_teacher
    from ssld.models.teacher import open_teacher

    setup = Setup(config)
    for line in differences(start, config):
        setup.accelerator.print(line)
    setup.facts |= {"started_from": lineage(start), "start_sha256": start.student_sha256()}
    _warn_of_seen_images(setup, start)
    if config.targets == "human":
        student = setup.open_student(None, None)
        setup.describe({"student": student})
        return setup, student, None, None, Supervision(student.num_classes)
    teacher, digest = open_teacher(config.teachers or [config.teacher], config.precision)
    student = setup.open_student(teacher.num_classes, teacher.label_names)
    setup.describe({"student": student, **named(teacher)})
    verify_teacher(setup, teacher)
    return setup, student, teacher, digest, Distillation(teacher, config.loss)


FEW = 100
"""Held-out images below which one of them is more than a point."""


def _warn_of_seen_images(setup: Setup, start: Start) -> None:
    from ssld.engine.start import fingerprint

    count = sum(map(len, setup.val))
    main = setup.accelerator.is_main_process  # it alone asks for sizes of files, and prints
    if main and setup.held_out and fingerprint(setup.val) != start.facts["val_sha256"]:
        setup.accelerator.print(
            f"warning: data.val is empty, and the {count} images held out were trained on in "
            f"{start.run}: evaluations are too good"
        )
    if set(map(str, setup.config.data.val)) & set(map(str, setup.config.data.labeled)):
        setup.accelerator.print("warning: data.val is trained on: evaluations are too good")
    if 0 < count < FEW:
        setup.accelerator.print(f"warning: only {count} held-out images decide what is best")


def lineage(start: Start) -> dict[str, Any]:
    """What run.json says of the start: enough to know where weights come from without it."""
    kept = {k: v for k, v in start.facts.items() if k.startswith("teacher") or k == "images"}
    return {
        "run": start.run,
        "exported": start.exported,
        "settings": start.settings,
        "facts": {"steps": start.facts["steps"], **kept},
        "started_from": start.facts.get("started_from"),
    }


def differences(start: Start, config: FinetuneConfig) -> list[str]:
    """One line on the start, and one for every setting that is not as there."""
    before, now = flat(start.settings), flat(plain(config))
    fixed = isinstance(config, FixConfig)
    exported = start.exported
    reached = f", {exported['metric']} {exported['value']:.4f}" if exported.get("value") else ""
    lines = [f"goes on from {start.run} (step {exported['step']:,}{reached}), as there but for"]
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        # Resolved from the weights when the run starts, of this run alone, or not known there.
        if old == new or key.partition(".")[0] in OWN or key.startswith("student.a"):
            continue
        if key not in before:
            continue
        if fixed and key.startswith("augment.") and key != "augment.size":
            continue
        lines.append(f"  {key}: {old!r} -> {new!r}")
    if config.data.unlabeled:
        lines.append("  data.unlabeled: held-out images only, not trained on")
    return [*lines, "  views as for an evaluation"] if fixed else lines
