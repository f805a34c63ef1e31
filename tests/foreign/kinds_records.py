"""What ssld itself wrote and something else changed: run folders, checkpoints, records of held-out
images, states of recipes and grids, judged pairs of a curation; through the commands that read
them."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from kinds_models import CONFIG, weights_file
from kinds_settings import yaml_of
from mutations import as_json, changed, damaged
from sandbox import Kind


@functools.cache
def recorded() -> dict[str, Any]:
    """A distillation of six steps and its second stage, as the files of their folders had them."""
    return json.loads(Path(__file__).with_name("recorded_run.json").read_text())


def lines_of(rng: random.Random, lines: list[Any]) -> bytes:
    """One JSON a line, some of which are changed."""
    found = []
    for line in lines:
        if rng.random() < 0.2:
            line = changed(rng, line, rng.choice((1, 1, 3)))
        found.append(as_json(rng, line).replace(b"\n", b" "))
        if rng.random() < 0.05:
            found.append(rng.choice((b"", b"[]", b"null", b"{", b"\xff", b"\0\0\0\0", found[-1])))
    end = rng.choice((b"\n", b"\n", b"", b"\n\0\0"))
    data = b"\n".join(found) + end
    return damaged(rng, data) if rng.random() < 0.1 else data


def write_run(rng: random.Random, folder: Path) -> None:
    """The folder of a run, of which one or more files are not what they were."""
    said = recorded()[rng.choice(("distill", "finetune"))]
    wrong = rng.choice(("config", "run", "run", "lines", "none"))
    settings = changed(rng, said["config"], rng.choice((1, 3))) if wrong == "config" else None
    text = yaml_of(rng, settings) if settings is not None else yaml.dump(said["config"]).encode()
    (folder / "config.yaml").write_bytes(text)
    facts = changed(rng, said["run"], rng.choice((1, 1, 3))) if wrong == "run" else said["run"]
    facts = json.loads(json.dumps(facts)) if wrong != "run" else facts
    lines = said["lines"]
    student = folder / "student"
    student.mkdir()
    (student / "config.json").write_text(json.dumps(CONFIG))
    (student / "model.safetensors").write_bytes(weights_file((("step", "6"),)))
    if wrong != "run":
        facts["exported"]["sha256"] = _sha256(weights_file((("step", "6"),)))
    (folder / "run.json").write_bytes(
        as_json(rng, facts) if wrong == "run" else json.dumps(facts).encode()
    )
    data = (
        lines_of(rng, lines)
        if wrong == "lines"
        else b"".join(json.dumps(x).encode() + b"\n" for x in lines)
    )
    (folder / "metrics.jsonl").write_bytes(data)
    (folder / "way").write_text(rng.choice(list(WAYS)))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def use_run(folder: Path, out: Path) -> None:
    WAYS[(folder / "way").read_text()](folder, out)


def _compare(folder: Path, out: Path) -> None:
    """`ssld compare` with the run as it was, without curves, which take half a second."""
    from ssld.compare import compare, report
    from ssld.compare.config import CompareConfig

    report.overlays = lambda runs: []
    whole_run(out / "whole")
    runs = [str(folder), str(out / "whole")]
    compare.compare(CompareConfig(runs=runs, out=str(out / "c.html"), json=str(out / "c.json")))


def _go_on(folder: Path, out: Path) -> None:
    """`ssld finetune --run`."""
    from ssld.cli.parse import parse
    from ssld.distill.config import FinetuneConfig
    from ssld.distill.parent_run import finetune_defaults

    words = ["--run", str(folder), "--out", str(out / "next"), "--data.labeled", "x"]
    parse("ssld finetune", FinetuneConfig, words, defaults=finetune_defaults)


def _resume(folder: Path, out: Path) -> None:
    """`--resume`: are the settings the same, and up to where did it come?"""
    from ssld.cli.parse import parse
    from ssld.distill.config import DistillConfig
    from ssld.engine.run_folder import changed_settings, read_lines

    settings = ("c.yaml", {**DISTILL, "out": str(folder), "resume": True})
    config = parse("ssld distill", DistillConfig, [], settings=settings)
    changed_settings(folder / "config.yaml", config, given=True)
    lines = read_lines(folder / "metrics.jsonl")
    assert all(isinstance(line, dict) for line in lines)


DISTILL = {
    "teacher": {"arch": "test_resnet"},
    "student": {"arch": "test_efficientnet"},
    "data": {"labeled": "/somewhere/train", "val": "/somewhere/val"},
    "steps": 6,
}


def _publish(folder: Path, out: Path) -> None:
    """`ssld zoo publish --to`, without curves, which take half a second."""
    from ssld.zoo import release_run as release
    from ssld.zoo.config import About

    release.draw_curves = lambda *_: None
    about = About(data_license="cc0-1.0", teacher_license="mit")
    release.assemble(folder, out / "release", about)


def _evaluate(folder: Path, out: Path) -> None:
    """Its student as a model, and as a backbone."""
    from downstream.backbone.config import BackboneConfig
    from downstream.backbone.weights import is_distilled
    from ssld.models.opening import open_network

    is_distilled(BackboneConfig(name=str(folder)))
    open_network("model", arch=None, checkpoint=str(folder))


def _ablated(folder: Path, out: Path) -> None:
    """As a trial of `ssld ablate`."""
    from ssld.ablate.results import read_trial

    (out / "trial").mkdir()
    (out / "trial" / "distill").symlink_to(folder)
    ablation = SimpleNamespace(stages=["distill"], out=out, folder=lambda trial: out / "trial")
    read_trial(ablation, SimpleNamespace(name="trial"))  # type: ignore[arg-type]


WAYS = {
    "compare": _compare,
    "go_on": _go_on,
    "resume": _resume,
    "publish": _publish,
    "evaluate": _evaluate,
    "ablate": _ablated,
}


def whole_run(folder: Path) -> None:
    """The recorded distillation as it was, with a student."""
    said, student = recorded()["distill"], folder / "student"
    student.mkdir(parents=True)
    data = weights_file((("step", "6"),))
    (student / "config.json").write_text(json.dumps(CONFIG))
    (student / "model.safetensors").write_bytes(data)
    facts = {**said["run"], "exported": {**said["run"]["exported"], "sha256": _sha256(data)}}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "config.yaml").write_text(yaml.dump(said["config"]))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in said["lines"]))


@functools.cache
def release_files() -> dict[str, bytes]:
    """What `ssld zoo publish` makes of that run."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        whole_run(place / "run")
        _publish(place / "run", place)
        made = place / "release"
        files = [x for x in made.rglob("*") if x.is_file()]
        return {x.relative_to(made).as_posix(): x.read_bytes() for x in files}


def write_release(rng: random.Random, folder: Path) -> None:
    """A release whose ssld.json, config or card is another one, most of the time with sums that
    fit."""
    files = dict(release_files())
    manifest = json.loads(files.pop("ssld.json"))
    if rng.random() < 0.3:
        name = rng.choice(sorted(files))
        is_config = name == "config.json"
        tree = changed(rng, CONFIG, rng.choice((1, 3)))
        files[name] = as_json(rng, tree) if is_config else damaged(rng, files[name])
        if rng.random() < 0.8:
            manifest["files"][name] = {"sha256": _sha256(files[name]), "bytes": len(files[name])}
    if rng.random() < 0.8:
        manifest = changed(rng, manifest, rng.choice((1, 1, 3)))
    for name, data in {**files, "ssld.json": as_json(rng, manifest)}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def use_release(folder: Path, out: Path) -> None:
    """`ssld zoo publish --to`, and `pull`'s check."""
    from ssld.zoo.release_run import assemble
    from zoo.publish.local import place

    assemble(folder, out / "new", repo="a/b")
    place(out / "new", out / "placed", say=str)


def write_checkpoint(rng: random.Random, folder: Path) -> None:
    """Two checkpoints, the newer one changed, half of the time with sums that fit."""
    for step in (4, 6):
        place = folder / f"step-{step:08d}"
        place.mkdir()
        files = _checkpoint_files(step)
        if step == 6 or rng.random() < 0.1:
            name = rng.choice(sorted(files))
            files[name] = damaged(rng, files[name])
            if name == "state.json" and rng.random() < 0.7:
                tree = {"step": step, **recorded()["distill"]["state"]}
                files[name] = as_json(rng, changed(rng, tree))
        sums: Any = {name: _sha256(data) for name, data in files.items()}
        if rng.random() < 0.3:
            sums = changed(rng, sums)
        elif step == 6 and rng.random() < 0.5:
            sums = {name: _sha256(data) for name, data in _checkpoint_files(step).items()}
        for name, data in files.items():
            (place / name).write_bytes(data)
        (place / "manifest.json").write_bytes(as_json(rng, sums))


@functools.cache
def _optimizer() -> bytes:
    import torch

    file = io.BytesIO()
    state = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save(state, file)
    return file.getvalue()


def _checkpoint_files(step: int) -> dict[str, bytes]:
    state = {**recorded()["distill"]["state"], "step": step}
    return {
        "student.safetensors": weights_file(),
        "optimizer.pt": _optimizer(),
        "state.json": json.dumps(state).encode(),
    }


def use_checkpoint(folder: Path, out: Path) -> None:
    """What `--resume` does with it."""
    import timm

    from ssld.engine import checkpoint

    found = checkpoint.latest(folder)
    assert found is not None
    network = timm.create_model("test_efficientnet", num_classes=3)
    _, state = checkpoint.load(found, {"student": network})
    assert isinstance(state["step"], int)


def write_held_out(rng: random.Random, folder: Path) -> None:
    """A finished run downstream with its record of held-out images."""
    import numpy as np

    task = rng.choice(("transfer", "segmentation", "detection"))
    key, score = {
        "transfer": ("top1", 0.5),
        "segmentation": ("miou", 0.5),
        "detection": ("ap", 0.5),
    }[task]
    lines = [
        {"kind": "train", "step": 3, "epoch": 1.0, "seconds": 2.0, "loss": 1.0},
        {"kind": "eval", "step": 3, "epoch": 1.0, key: score, "knn": 0.3, "linear": 0.4},
    ]
    facts = {"exported": {"step": 3, "metric": "last", "sha256": "0" * 64}, "steps": 3}
    facts = changed(rng, facts) if rng.random() < 0.3 else facts
    (folder / "run.json").write_bytes(as_json(rng, facts))
    (folder / "metrics.jsonl").write_bytes(lines_of(rng, lines))
    arrays: dict[str, Any] = {"ids": np.array(["a", "b"]), "hits": np.array([1, 0], np.int8)}
    if task == "segmentation":
        arrays = {"ids": arrays["ids"], "confusion": np.full((2, 2, 2), 4)}
    if rng.random() < 0.3:
        name = rng.choice(list(arrays))
        arrays[rng.choice((name, "x"))] = rng.choice(
            (np.zeros(0), np.zeros((2, 2)), np.array([{}, []], object), np.full(2, np.nan))
        )
    file = io.BytesIO()
    rng.choice((np.savez, np.savez_compressed))(file, **arrays)
    data = damaged(rng, file.getvalue()) if rng.random() < 0.5 else file.getvalue()
    from downstream.ab.records import HELD_OUT, PROBE

    if rng.random() < 0.9:
        (folder / HELD_OUT).write_bytes(data)
    probe = {"before": {"knn": 0.1, "linear": 0.2}, "after": {"knn": 0.3, "linear": 0.4}}
    probe = changed(rng, probe) if rng.random() < 0.3 else probe
    (folder / PROBE).write_bytes(as_json(rng, probe))
    (folder / "task").write_text(task)


def use_held_out(folder: Path, out: Path) -> None:
    """As `ssld ab` reads it."""
    import numpy as np

    from downstream.ab.records import read_result

    found = read_result(folder, (folder / "task").read_text())
    if found.record is not None:
        found.record.statistic(np.zeros((2, len(found.record.ids)), np.int64))


def write_states(rng: random.Random, folder: Path) -> None:
    """What a recipe, a grid and a curation keep, and pairs that a user judged."""
    tree = changed(rng, recorded()["recipe"], rng.choice((1, 1, 3)))
    (folder / "recipe.json").write_bytes(as_json(rng, tree))
    stage = folder / "distill"
    stage.mkdir()
    write_run(rng, stage)
    done = {"recipe": "0" * 64, "rows": [{"stage": "distill", "top1": 0.5}]}
    (folder / "done.json").write_bytes(as_json(rng, changed(rng, done)))
    judged = {"gallery": "a/0.jpg", "protected": "b/0.jpg", "verdict": "duplicate"}
    (folder / "overrides.jsonl").write_bytes(
        lines_of(rng, [judged, {**judged, "verdict": "clear"}])
    )
    curation = {"settings": {"protect": {"x": 1}}, "sets": {"gallery": {"images": 3}}, "files": {}}
    (folder / "manifest.json").write_bytes(as_json(rng, changed(rng, curation)))
    (folder / "log.jsonl").write_bytes(lines_of(rng, [{"stage": "match", "seconds": 1.0}] * 3))
    (folder / "way").write_text(rng.choice(list(STATES)))


def use_states(folder: Path, out: Path) -> None:
    STATES[(folder / "way").read_text()](folder)


def _stage(folder: Path) -> None:
    from ssld.recipe.stage_folder import StagePlace

    place = StagePlace(folder, "distill")
    place.check()
    if place.begun and not place.complete:
        place.changes({"seed": 1})
    place.changes({"seed": 1, "steps": 3})


def _overrides(folder: Path) -> None:
    from ssld.curate.near_duplicates.search import read_overrides

    index = SimpleNamespace(read=lambda columns: [])
    work = SimpleNamespace(out=folder, say=str)
    read_overrides(work, index, index)  # type: ignore[arg-type]


def _curation(folder: Path) -> None:
    """`ssld curate report`."""
    from ssld.curate.manifest import _before
    from ssld.curate.report.page import write_report

    place = folder.parent / "out" / "curation"
    shutil.copytree(folder, place)
    _before(place)
    write_report(place, lambda location: b"")


def _trial(folder: Path) -> None:
    from ssld.ablate.state import changed as since
    from ssld.ablate.state import done_rows

    trial = SimpleNamespace(recipe={"distill": {"seed": 0}}, name="a")
    done_rows(folder, trial)  # type: ignore[arg-type]
    since(folder, trial)  # type: ignore[arg-type]


STATES = {"stage": _stage, "overrides": _overrides, "curation": _curation, "trial": _trial}
RUNS = (
    "ssld.compare",
    "ssld.distill.parent_run",
    "ssld.distill",
    "ssld.zoo.release_run",
    "ssld.zoo.run_facts",
    "ssld.ablate.results",
)
RUNS += ("downstream.backbone.weights", "jsonargparse", "ssld.cli")
CURATION = (
    "ssld.curate.near_duplicates.search",
    "ssld.curate.report.page",
    "ssld.recipe.stage_folder",
)
KINDS = {
    "records.run": Kind(write_run, use_run, RUNS),
    "records.release": Kind(write_release, use_release, (*RUNS, "zoo.publish.local")),
    "records.checkpoint": Kind(write_checkpoint, use_checkpoint, ("ssld.engine.checkpoint",)),
    "records.held_out": Kind(write_held_out, use_held_out, ("downstream.ab.records",)),
    "records.states": Kind(write_states, use_states, (*CURATION, "ssld.ablate.state")),
}
