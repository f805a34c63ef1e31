"""`students`: each ends as it would alone, whatever happens to the others and to the command."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pictures
import pytest
import sabotage
import short_runs
import timm
import torch
from safetensors.torch import load_file, save_file

from ssld.cli.run import main
from ssld.data.loading import Maker
from ssld.distill.distill import Distillation
from ssld.engine import start
from ssld.engine.progress import depends_on_the_clock
from ssld.models.classifier import Classifier
from ssld.models.config import TeacherConfig
from ssld.models.shared_teacher import SharedTeacher
from ssld.models.teacher import Teacher

STEPS, BATCH, ACCUMULATE = 8, 8, 2
STUDENTS: list[dict[str, Any]] = [
    {"name": "plain", "student": {"arch": "test_resnet", "args": {"drop_rate": 0.3}}},
    {
        "name": "average",
        "student": {"arch": "test_resnet"},
        "optimizer": {"name": "adamw"},
        "schedule": {"lr": 0.01},
        "ema": {"decay": 0.9},
    },
    {
        "name": "features",
        "student": {"arch": "test_convnext"},
        "loss": {"name": "js"},
        "features": {"weight": 0.5},
    },
]
NAMES = [student["name"] for student in STUDENTS]
MEND, TRY_AGAIN = 2, 75


@pytest.fixture(scope="module", autouse=True)
def quick_pictures() -> Iterator[None]:
    with pictures.left_out():
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """Weights of a teacher that says different things of different images."""
    torch.manual_seed(1)
    weights = timm.create_model("test_resnet", num_classes=3).state_dict()
    weights["fc.weight"] *= 40
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(weights, path, {"architecture": "test_resnet", "input_size": "3,32,32"})
    return path


@pytest.fixture(scope="module")
def words(colours, teacher):
    """The command line of all students, or of those that are given."""

    def make(out: Path, students: list[dict[str, Any]] = STUDENTS, *more: str) -> list[str]:
        changes = {
            "students": json.dumps(students),
            "student.arch": None,
            "steps": STEPS,
            "batch_size": BATCH,
            "accumulate": ACCUMULATE,
            "precision": "bf16",
            "log_every_steps": 2,
            "evaluate_every_epochs": 0.5,  # steps 4 and 8
            "checkpoint.every_steps": 2,
            "checkpoint.keep": 9,
        }
        return ["distill", *short_runs.words(colours, teacher, out, **changes), *more]

    return make


@dataclasses.dataclass
class Whole:
    """The command to which nothing happens, and what was counted in it."""

    out: Path
    streams: int = 0
    read: int = 0
    asked: int = 0

    def streaming(self, train_batches: Any) -> Any:
        def counted(make: Maker, *args: Any, **options: Any) -> Any:
            def reading(rows: Any) -> Any:
                self.read += len(rows)
                return make(rows)

            self.streams += 1
            return train_batches(reading, *args, **options)

        return counted

    def asking(self, answers: Any) -> Any:
        def counted(teacher: Teacher, *args: Any) -> Any:
            self.asked += (
                isinstance(teacher, SharedTeacher) and not torch.is_inference_mode_enabled()
            )
            return answers(teacher, *args)

        return counted


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory) -> Whole:
    result = Whole(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "train_batches", result.streaming(start.train_batches))
        patch.setattr(Teacher, "_answers", result.asking(Teacher._answers))
        assert main(words(result.out)) == 0
    return result


def outcome(run: Path) -> dict[str, Any]:
    """All that must not depend on what happened: tensors, lines, the best so far."""
    last = run / "checkpoints" / f"step-{STEPS:08d}"
    optimizer = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    tensors = {f"{file.stem}.{k}": v for file in last.glob("*.safetensors")
               for k, v in load_file(file).items()}  # fmt: skip
    tensors |= {f"{i}.{k}": v for i, state in optimizer.items() for k, v in state.items()}
    tensors |= load_file(run / "student/model.safetensors")
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {
        "tensors": tensors,
        "state": json.loads((last / "state.json").read_text()),
        "exported": json.loads((run / "run.json").read_text())["exported"],
        "lines": [{k: x for k, x in y.items() if not depends_on_the_clock(k)} for y in lines],
    }


def assert_same(run: Path, other: Path) -> None:
    """Bit by bit."""
    a, b = outcome(run), outcome(other)
    assert a["tensors"].keys() == b["tensors"].keys()
    wrong = [key for key, x in a["tensors"].items() if not torch.equal(x, b["tensors"][key])]
    assert not wrong, wrong[:3]
    assert {**a, "tensors": 0} == {**b, "tensors": 0}


@pytest.mark.parametrize("name", NAMES)
def test_each_ends_as_in_a_run_of_its_own(whole, tmp_path, name):
    """By the settings that it wrote: dropout, an average, features, accumulation and bf16."""
    run, alone = whole.out / name, tmp_path / "alone"
    assert main(["distill", "--config", str(run / "config.yaml"), f"--out={alone}"]) == 0
    assert_same(run, alone)
    assert (run / "report.html").is_file()
    facts = [json.loads((x / "run.json").read_text()) for x in (run, alone)]
    for key in ("student", "teacher", "teacher_sha256", "data_sha256", "val_sha256", "steps"):
        assert facts[0][key] == facts[1][key]
    assert facts[0]["flops_per_image"] == pytest.approx(facts[1]["flops_per_image"])


def test_each_batch_is_read_and_taught_once(whole):
    assert whole.streams == 1 and whole.read == STEPS * BATCH
    assert whole.asked == STEPS * ACCUMULATE


def poisoned(patch: pytest.MonkeyPatch, loss: str, step: int) -> None:
    """The loss of the student of that divergence is NaN at one step."""
    losses, calls = Distillation.losses, []

    def harmed(task: Distillation, student: Any, batch: Any) -> Any:
        terms = losses(task, student, batch)
        if task.loss.name == loss:
            calls.append(batch)
            if len(calls) == step * ACCUMULATE + 1:
                terms["divergence"] = terms["divergence"] * float("nan")
        return terms

    patch.setattr(Distillation, "losses", harmed)


def test_one_that_fails_leaves_the_others_alone_and_is_tried_again(
    whole, words, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "many"
    with monkeypatch.context() as patch:
        poisoned(patch, "js", 4)
        assert main(words(out)) == MEND
    said = capsys.readouterr().err
    sentence = "features: the loss term 'divergence' is not finite at step 4 for the samples"
    assert f"error: {sentence}" in said and "features has failed: the loss term" in said
    assert "(the others are complete, --resume tries features again)" in said
    for name in ("plain", "average"):
        assert_same(out / name, whole.out / name)
    assert max((out / "features/checkpoints").iterdir()).name == "step-00000004"
    assert main(words(out, STUDENTS, "--resume")) == 0
    said = capsys.readouterr().out
    assert "plain: complete and unchanged, skipped" in said and "features/checkpoints" in said
    for name in NAMES:
        assert_same(out / name, whole.out / name)


def test_a_teacher_without_numbers_ends_all(words, tmp_path, capsys, monkeypatch):
    forward = Classifier.forward

    def harmed(network: Classifier, images: torch.Tensor, *args: Any, **options: Any) -> Any:
        answer = forward(network, images, *args, **options)
        if network.training or torch.is_inference_mode_enabled() or len(images) != BATCH // 2:
            return answer
        return (answer[0] * float("nan"), answer[1])

    monkeypatch.setattr(Classifier, "forward", harmed)
    assert main(words(tmp_path / "many")) == MEND
    said = capsys.readouterr().err
    assert "error: the teacher's predictions are not finite" in said and "failed" not in said
    assert not list(tmp_path.glob("many/*/checkpoints/*"))


def steps_of(out: Path) -> list[int]:
    """The step of each student's last checkpoint."""
    found = [[int(x.name[-8:]) for x in (out / name / "checkpoints").iterdir()] for name in NAMES]
    return [max(steps, default=0) for steps in found]


def test_a_killed_command_goes_on_from_the_lowest_step(whole, words, tmp_path):
    out, said = tmp_path / "many", tmp_path / "said"
    kill = partial(sabotage.at_call, "ssld.engine.checkpoint:save", 2, sabotage.sigkill, True)
    # From steps 4, 4, 2 on: two steps of the last, three of all, and before the next one.
    signalled = partial(sabotage.signal_group, signal.SIGTERM)
    stop = partial(sabotage.at_call, "ssld.engine.trainer:Trainer.train_step", 12, signalled)
    for number, (harm, code, steps) in enumerate(
        [
            (kill, -signal.SIGKILL, [2, 2, 0]),
            (partial(sabotage.half_a_line, 7), -signal.SIGKILL, [4, 4, 2]),
            (stop, TRY_AGAIN, [STEPS] * 3),
        ]
    ):
        more = ["--resume"] if number else []
        found, text = sabotage.run(words(out, STUDENTS, *more), said, [harm])
        assert found == code, text
        assert steps_of(out) == steps
    assert "SIGTERM: a checkpoint of every run is written; go on with --resume" in said.read_text()
    assert main(words(out, STUDENTS, "--resume")) == 0
    for name in NAMES:
        assert_same(out / name, whole.out / name)


def swap_for_a_file(folder: Path, moved: Path) -> None:
    """root may write into any folder, but nobody into a file."""
    folder.rename(moved)
    folder.write_text("in the way")


def test_two_processes_agree_on_who_failed(whole, words, tmp_path):
    """One student's checkpoint of step 4 is refused to the first process, one's loss is NaN on the
    second at step 5, by when two students are left."""
    out = tmp_path / "many"
    checkpoints = out / "average/checkpoints"
    swap = partial(swap_for_a_file, checkpoints, out / "moved")
    harm: list[list[sabotage.Harm]] = [
        [partial(sabotage.at_call, "ssld.engine.checkpoint:save", 5, swap)],
        [partial(sabotage.poison, (3 * 4 + 2) * ACCUMULATE, 0)],
    ]
    started = sabotage.ranks(words(out), tmp_path / "said", harm)
    assert [process.end() for process in started] == [MEND, MEND], started[0].words
    for process in started:
        last = process.words.strip().splitlines()[-1]
        assert "plain: the loss term 'divergence' is not finite at step 5" in last
        assert "average: checkpoint" in last and "cannot be written" in last
        assert "(the others are complete, --resume tries average, plain again)" in last
    losses = [[x["loss"] for x in outcome(x / "features")["lines"] if x["kind"] == "train"]
              for x in (out, whole.out)]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_a_shared_teacher_says_what_the_teacher_says():
    torch.manual_seed(0)
    networks = [Classifier(timm.create_model("test_resnet", num_classes=3), input_size=32)]
    teacher = Teacher(networks, [TeacherConfig()])
    shared = SharedTeacher(teacher, kept=2, with_features=True)
    images, others = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    log_probs, (features,) = teacher(images, 2.0, with_features=True)
    assert torch.equal(shared(images, 2.0), log_probs)
    assert torch.equal(shared(images, 2.0, with_features=True)[1][0], features)
    assert torch.equal(shared(images), teacher(images))  # of another temperature
    with torch.no_grad():
        next(teacher.parameters()).fill_(float("nan"))
    assert shared(images).isfinite().all() and not shared.faulty.any()  # not asked again
    assert shared(others).isnan().all() and shared.faulty.all()
    assert not shared(images).isnan().any() and not shared.faulty.any()
    assert shared(images.clone()).isnan().all()


def test_python_takes_students(colours, teacher, tmp_path):
    import ssld

    run = ssld.distill(
        out=tmp_path, teacher={"checkpoint": teacher, "verify": False}, data=colours / "unlabeled",
        students=[{"name": "a", "student": {"arch": "test_resnet"}}], steps=1, batch_size=8,
        trackers=[],
    )  # fmt: skip
    assert list(run.students) == ["a"] and run.students["a"].student.num_classes == 3
    assert run.students["a"].metrics["step"] == 1
