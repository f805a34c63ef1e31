"""A flipped bit in a run's network is found by whatever opens it; untouched ones open."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pictures
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

from ssld.__main__ import main
from ssld.common import recorded
from ssld.common.errors import InputError
from ssld.models.opening import open_network
from zoo.release import MANIFEST

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def quick_pictures():
    with pytest.MonkeyPatch.context() as patch:
        pictures.leave_out(patch)
        patch.setattr(Figure, "savefig", one_pixel)
        yield


def one_pixel(figure: Figure, file: Any, **given: Any) -> None:
    if not isinstance(file, Path):
        return pictures.one_pixel(figure, file, **given)
    with file.open("wb") as opened:
        pictures.one_pixel(figure, opened, **given)


@pytest.fixture(autouse=True)
def said_anew():
    recorded._say_unrecorded.cache_clear()


def words(colours: Path, out: Path, **changes: object) -> list[str]:
    settings = {
        "out": out,
        "steps": 2,
        "batch_size": 8,
        "log_every_steps": 1,
        "checkpoint.every_steps": 1,
        "student.arch": "resnet10t",
        "augment.size": 32,
        "data.labeled": colours / "train",
        "data.val": colours / "val",
        "data.workers": 0,
        "trackers": "[]",
        **changes,
    }
    return [f"--{key}={value}" for key, value in settings.items() if value is not None]


@pytest.fixture(scope="module")
def finished(colours, tmp_path_factory) -> Path:
    """The run of a network that timm publishes weights of."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["supervised", *words(colours, out)]) == 0
    return out


def flip(file: Path, at: int = -100) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.fixture
def damaged(finished, tmp_path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    flip(run / "student" / WEIGHTS)
    return run


def commands(run: Path, colours: Path, out: Path) -> dict[str, list[str]]:
    """Everything that opens a run's network, as a user would type it."""
    val, train = str(colours / "val"), f"--data.labeled={colours / 'train'}"
    short = ["--steps=1", "--batch_size=8", f"--data.val={val}", f"--out={out}", "--trackers=[]"]
    short += ["--data.workers=0"]
    evaluate = ["evaluate", "--data", val, "--workers=0"]
    distill = words(colours, out, **{"teacher.verify": "false", "student.arch": "test_resnet"})
    start = {"student.arch": None, "student.checkpoint": run}
    return {
        "evaluate": [*evaluate, f"--model={run}"],
        "evaluate local-dir": [*evaluate, f"--model=local-dir:{run}/student"],
        "distill": ["distill", *distill, f"--teacher.checkpoint={run}"],
        "plan": ["plan", *distill, f"--teacher.checkpoint={run}"],
        "bench": ["bench", *distill, f"--teacher.checkpoint={run}"],
        "start": ["supervised", *words(colours, out, **start)],
        "finetune": ["fix", f"--run={run}", train, *short],
        "transfer": ["transfer", f"--backbone={run}", train, *short],
        "publish": ["zoo", "publish", str(run), f"--to={out}"],
        "export": ["zoo", "export", str(run), "--format=torchscript", f"--out={out}"],
        "predict": ["predict", str(run), val, f"--out={out}"],
    }


COMMANDS = (
    "evaluate,evaluate local-dir,distill,plan,bench,start,finetune,transfer,publish,export,predict"
).split(",")


@pytest.mark.parametrize("case", COMMANDS)
def test_a_flipped_bit_is_found_by(damaged, colours, tmp_path, capsys, case):
    out = tmp_path / "out"
    assert main(commands(damaged, colours, out)[case]) == 2
    said = capsys.readouterr().err
    assert f"student/{WEIGHTS} is damaged or was changed" in said.strip().splitlines()[-1]
    assert f"{damaged}/run.json says" in said and "--resume" in said
    assert not out.exists() or not any(out.iterdir())


@pytest.mark.parametrize("case", ["evaluate", "evaluate local-dir", "publish", "predict"])
def test_what_is_whole_is_opened(finished, colours, tmp_path, capsys, case):
    assert main(commands(finished, colours, tmp_path / "out")[case]) == 0
    assert "sha256" not in capsys.readouterr().err


def test_a_teacher_of_a_curation_is_compared(damaged, colours, tmp_path, capsys):
    images = [f"--gallery={colours / 'unlabeled'}", f"--protected={colours / 'val'}"]
    given = ["curate", "score", *images, f"--teacher.checkpoint={damaged}", "--workers=0"]
    assert main([*given, f"--out={tmp_path / 'out'}"]) == 2
    assert "is damaged or was changed" in capsys.readouterr().err


def test_links_to_a_run_are_compared(damaged, tmp_path):
    (tmp_path / "best").symlink_to(damaged / "student")
    (tmp_path / "weights.safetensors").symlink_to(damaged / "student" / WEIGHTS)
    for path in ("best", "weights.safetensors"):
        with pytest.raises(InputError, match="is damaged or was changed"):
            open_network("student", arch="resnet10t", checkpoint=str(tmp_path / path))


def test_weights_that_lie_elsewhere_are_compared(damaged, finished, tmp_path):
    """The file of a run may be a link to a larger disk."""
    file = damaged / "student" / WEIGHTS
    shutil.copy(finished / "student" / WEIGHTS, tmp_path / "stored")
    file.unlink()
    file.symlink_to(tmp_path / "stored")
    open_network("student", arch=None, checkpoint=str(damaged))
    flip(tmp_path / "stored")
    with pytest.raises(InputError, match="is damaged or was changed"):
        open_network("student", arch=None, checkpoint=str(damaged))


def test_every_byte_counts(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run/student" / WEIGHTS
    for at in (0, 8, 9, file.stat().st_size // 2, -1):
        flip(file, at)
        with pytest.raises(InputError, match="is damaged or was changed"):
            open_network("student", arch=None, checkpoint=str(tmp_path / "run"))
        flip(file, at)
    open_network("student", arch=None, checkpoint=str(tmp_path / "run"))


def test_a_checkpoint_is_compared_with_its_own_record(finished, tmp_path):
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    file = tmp_path / "checkpoints/step-00000002/student.safetensors"
    given = {"arch": "resnet10t", "checkpoint": str(file), "num_classes": 3}
    open_network("student", **given)
    flip(file)
    with pytest.raises(InputError, match="manifest.json says.*give another checkpoint"):
        open_network("student", **given)


def test_a_release_is_compared_with_its_own_record(finished, colours, tmp_path, capsys):
    assert main(["zoo", "publish", str(finished), f"--to={tmp_path / 'release'}"]) == 0
    given = ["evaluate", "--data", str(colours / "val"), "--workers=0"]
    assert main([*given, f"--model={tmp_path / 'release'}"]) == 0
    flip(tmp_path / "release" / WEIGHTS)
    for model in (tmp_path / "release", f"local-dir:{tmp_path / 'release'}"):
        assert main([*given, f"--model={model}"]) == 2
        assert "ssld.json says" in capsys.readouterr().err


def test_runs_without_a_recorded_sum_open_and_say_so_once(damaged, colours, capsys):
    facts = json.loads((damaged / "run.json").read_text())
    del facts["exported"]["sha256"]
    for changed in (facts, {k: v for k, v in facts.items() if k != "exported"}, []):
        recorded._say_unrecorded.cache_clear()
        (damaged / "run.json").write_text(json.dumps(changed))
        for _ in range(2):
            open_network("student", arch=None, checkpoint=str(damaged))
        said = capsys.readouterr().err
        assert said.count("note:") == 1 and "an older version" in said


def test_a_copy_of_the_folder_has_no_record(damaged, tmp_path, capsys):
    shutil.copytree(damaged / "student", tmp_path / "copy/student")
    (tmp_path / "copy/step-9").mkdir()
    shutil.copy(damaged / "student" / WEIGHTS, tmp_path / "copy/step-9/x.safetensors")
    (tmp_path / "copy/step-9" / MANIFEST).write_text("[]")  # nothing of ours
    (tmp_path / "copy/step-9/manifest.json").write_text('{"other": 1}')
    open_network("student", arch=None, checkpoint=str(tmp_path / "copy"))
    file = tmp_path / "copy/step-9/x.safetensors"
    open_network("student", arch="resnet10t", checkpoint=str(file), num_classes=3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", ["", "{", "\0", "[" * 100_000])
def test_a_damaged_record_is_named(damaged, content):
    (damaged / "run.json").write_text(content)
    with pytest.raises(InputError, match="run.json is damaged.*put a copy back"):
        open_network("student", arch=None, checkpoint=str(damaged))


def test_an_exported_student_does_not_claim_to_be_timms_weights(finished):
    """resnet10t has a tag, a licence and an origin in timm; these weights are none of theirs."""
    content = json.loads((finished / "student/config.json").read_text())
    said = content["pretrained_cfg"]
    assert content["architecture"] == "resnet10t" and said["num_classes"] == 3
    for key in ("tag", "license", "origin_url", "paper_ids", "url", "hf_hub_id", "notes"):
        assert key not in said, key
    import timm

    model = timm.create_model(f"local-dir:{finished}/student", pretrained=True)
    mine = load_file(finished / "student" / WEIGHTS)
    assert all(torch.equal(x, mine[name]) for name, x in model.state_dict().items())
