"""`-m downstream.detection` and `-m downstream.segmentation` as users run them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pictures
import pytest
import sabotage
from PIL import Image
from safetensors.torch import load_file
from scenes import boxes, make_scenes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssld.cli.run import main
from ssld.engine.progress import depends_on_the_clock
from ssld.engine.run_folder import read_lines
from ssld.engine.trainer import Trainer

STEPS = 6
COMMON = [
    f"--steps={STEPS}", "--batch_size=2", "--log_every_steps=1", "--checkpoint.every_steps=2",
    "--evaluate_every_epochs=1", "--trackers=[]", "--data.workers=0",
    "--backbone=test_resnet", "--backbone.pretrained=false", "--schedule.warmup_epochs=0",
]  # fmt: skip
TASKS = {
    "detection": (
        ["--detector.name=ttfnet", "--augment.resize=square", "--augment.sizes=[64, 96]",
         "--augment.longest=null", "--augment.test_size=64", "--augment.colour=0.5",
         "--augment.mixup=1.5", "--augment.mosaic=0.5", "--schedule.lr=0.4"],
        "ap",
    ),
    "segmentation": (
        ["--segmenter.name=fcn", "--augment.crop=[48, 64]", "--schedule.lr=1", "--ema.decay=0.5",
         "--loss.dice_weight=0.1", '--loss.class_weights={"ground": 0.2}'],
        "miou",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes"))


def sources(task: str, root: Path) -> list[str]:
    paths = {
        split: boxes(root, split) if task == "detection" else f"{root}::{split}"
        for split in ("train", "val")
    }
    return [f"--data.{split}={path}" for split, path in paths.items()]


def train(task: str, root: Path, out: Path, *words: str) -> int:
    return main([task, *COMMON, *TASKS[task][0], *sources(task, root), f"--out={out}", *words])


@pytest.fixture(scope="module", params=list(TASKS))
def trained(request, scenes, tmp_path_factory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp(request.param) / "run"
    with pictures.drawn():
        assert train(request.param, scenes, out) == 0
    return request.param, out


def without_clock(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in x.items() if not depends_on_the_clock(k)} for x in lines]


def record(run: Path) -> dict[str, np.ndarray]:
    with np.load(run / "held_out.npz") as file:
        return {key: file[key] for key in file.files}


def test_a_run_says_what_it_found(trained, scenes) -> None:
    task, run = trained
    lines = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "eval"]
    assert lines and all(TASKS[task][1] in line and line["images"] == 5 for line in lines)
    if task == "segmentation":
        assert all(x["dice"] > 0 for x in read_lines(run / "metrics.jsonl") if "loss" in x)
    found = record(run)
    assert sorted(found["ids"].tolist()) == [f"val{i}.png" for i in range(5)]
    facts = json.loads((run / "run.json").read_text())
    assert facts["network"]["architecture"].endswith("on test_resnet")
    assert facts["backbone"] == {
        "pretrained": False, "distilled": False, "lr_factors": [1.0] * 5
    }  # fmt: skip
    preflight = json.loads((run / "preflight.json").read_text())
    assert preflight["train"][0]["images"] == 6 and preflight["in_train_and_val"] == []
    report = (run / "report.html").read_text()
    assert "Held-out images" in report and "By class" in report
    data = report.partition("<h2>Data</h2>")[2].partition("<h2>Network")[0]
    for role in ("train", "val"):
        (source,) = preflight[role]
        assert f"<h3>{role}</h3>\n<p>{source['facts'][0]}</p>" in data
        assert all(f"<li>{fact}</li>" in data for fact in source["facts"][1:])
        for i, one in enumerate(source["classes"]):
            assert f"<tr><th>{i}</th><td>{one['name']}</td>" in data
    pictures = sorted(path.name for path in (run / "pictures").iterdir())
    assert pictures == [f"step-{line['step']:08d}.jpg" for line in lines]
    with Image.open(run / "pictures" / pictures[-1]) as sheet:
        assert sheet.width > 2 * 2 * 48  # 2 pairs in a row
    with Image.open(run / "training-views.jpg") as sheet:
        assert sheet.width > 2 * 2 * 48
    assert 'src="training-views.jpg"' in report
    exported = facts["exported"]
    best = max(lines, key=lambda line: (line[TASKS[task][1]], line["step"]))
    assert (exported["step"], exported["value"]) == (best["step"], best[TASKS[task][1]])


def test_the_record_is_that_of_the_exported_network(trained) -> None:
    from downstream.ab.records import read_result

    task, run = trained
    result = read_result(run, task)  # refuses a record of another score
    assert result.record is not None and len(result.record.ids) == 5


class Killed(BaseException):
    pass


def sheets(folder: Path) -> list[int]:
    """Steps of the pictures that a TensorBoard would show."""
    found = []
    for file in folder.rglob("events.*"):
        events = EventAccumulator(str(file), size_guidance={"images": 0})
        events.Reload()
        found += [x.step for tag in events.Tags()["images"] for x in events.Images(tag)]
    return sorted(found)


def test_a_killed_run_goes_on_to_the_same_result(trained, scenes, tmp_path, monkeypatch):
    """Before its first checkpoint, and after one."""
    task, run = trained
    whole = Trainer.train_step

    def killed(self, *args):
        if self.step == step:
            raise Killed
        whole(self, *args)

    shown = '--trackers=["tensorboard"]'
    for step, words in ((1, []), (4, ["--resume"])):  # noqa: B007 - the function looks at it
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Trainer, "train_step", killed)
            train(task, scenes, tmp_path / "run", shown, *words)
    assert train(task, scenes, tmp_path / "run", shown, "--resume") == 0
    assert sheets(tmp_path / "run/tensorboard") == [
        int(path.stem.removeprefix("step-")) for path in sorted((run / "pictures").iterdir())
    ]
    for name in ("model/model.safetensors", "model/config.json", "held_out.npz"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes(), name
    if task == "detection":
        same = [(x / "predictions.json").read_bytes() for x in (run, tmp_path / "run")]
        assert same[0] == same[1]
    before, after = (read_lines(x / "metrics.jsonl") for x in (run, tmp_path / "run"))
    assert without_clock(before) == without_clock(after)


def test_two_processes_train_and_evaluate_as_one(scenes, tmp_path) -> None:
    """What two processes trained and evaluated is evaluated anew by one, and the first loss is
    that of one (detection: images of different sizes, padded to the largest of both processes')."""
    sizes = ["--augment.resize=shorter", "--augment.sizes=[48, 64, 96]", "--augment.longest=160"]
    started, words_of = [], {}
    for task in TASKS:
        words = [*COMMON, *TASKS[task][0], *sources(task, scenes), "--checkpoint.best=last",
                 "--test.flip=true",
                 *(sizes if task == "detection" else []), f"--out={tmp_path / task}"]  # fmt: skip
        words_of[task] = words
        started += sabotage.ranks([task, *words], tmp_path / f"{task}.said")
    for process in started:
        assert process.end() == 0, process.words
    for task, words in words_of.items():
        run = tmp_path / task
        two = record(run)
        for name in ("held_out.npz", "predictions.json"):
            (run / name).unlink(missing_ok=True)
        assert main([task, *words, "--resume"]) == 0
        one = record(run)
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[key], two[key]) for key in one)
        lines = read_lines(run / "metrics.jsonl")
        assert sum(line["kind"] == "train" for line in lines) == STEPS
        assert any(f"{TASKS[task][1]}_one_view" in line for line in lines)
        if task == "segmentation":  # FCN drops other activations out in each process
            continue
        assert main([task, *words[:-1], "--steps=1", f"--out={tmp_path / task}-alone"]) == 0
        alone = read_lines(tmp_path / f"{task}-alone" / "metrics.jsonl")
        first, only = ([x["loss"] for x in y if x["kind"] == "train"][0] for y in (lines, alone))
        assert first == pytest.approx(only, rel=1e-5)


def test_predictions_are_drawn(trained, scenes, tmp_path) -> None:
    task, run = trained
    (tmp_path / "images").mkdir()
    for path in (scenes / "images" / "val").iterdir():
        shutil.copy(path, tmp_path / "images")
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    words = [str(run), str(tmp_path / "images"), f"--out={out}", "--max_unreadable=0.5"]
    assert main(["predict", *words]) == 0
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [f"val{i}.png" for i in range(5)]
    for line in lines:
        with Image.open(tmp_path / "images" / line["image"]) as image:
            with Image.open(out / "images" / line["file"]) as drawn:  # with a legend below
                assert drawn.width >= image.width and drawn.height >= image.height
            if task == "segmentation":
                with Image.open(out / "masks" / line["image"]) as mask:
                    assert mask.size == image.size and np.asarray(mask).max() < 4
                assert sum(line["shares"].values()) == pytest.approx(1, abs=1e-4)
                assert drawn.height > image.height
            else:
                width, height = image.size
                for box in line["boxes"]:
                    x1, y1, x2, y2 = box["box"]
                    assert 0 <= x1 <= x2 <= width + 1e-3 and 0 <= y1 <= y2 <= height + 1e-3
    unreadable = json.loads((out / "unreadable.jsonl").read_text())
    assert unreadable["sample_id"] == "broken.png" and "not an image" in unreadable["reason"]
    assert main(["predict", *words]) == 2  # the folder is in use
    if task == "segmentation":  # of another set, whose ids are others
        copy = shutil.copytree(run / "model", tmp_path / "model")
        content = json.loads((copy / "config.json").read_text())
        assert content["view"]["ids"] == [0, 1, 2, 3]
        ids = [7, 300, 11, 0]
        content["view"]["ids"] = ids
        (copy / "config.json").write_text(json.dumps(content))
        assert main(["predict", str(copy), words[1], f"--out={tmp_path}/ids", words[3]]) == 0
        for line in lines:
            numbers, mask = (
                np.asarray(Image.open(x / "masks" / line["image"])) for x in (out, tmp_path / "ids")
            )
            assert mask.dtype == np.uint16 and (mask == np.array(ids)[numbers]).all()
        rows = json.loads((tmp_path / "ids/classes.json").read_text())["classes"]
        assert [row["id"] for row in rows] == ids and rows[1]["name"] == "red"


def test_a_run_holds_nothing_that_its_own_overwriting_would_refuse(trained) -> None:
    from ssld.engine import overwrite

    overwrite.refuse(trained[1], {})


def test_a_flipped_bit_is_found(trained, scenes, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    file = run / "model/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-50] ^= 4
    file.write_bytes(data)
    for path in (run, run / "model"):
        assert (
            main(["predict", str(path), str(scenes / "images/val"), f"--out={tmp_path}/out"]) == 2
        )
        assert main(["export", str(path), f"--out={tmp_path}/m.onnx"]) == 2
        said = capsys.readouterr().err
        assert said.count("model.safetensors is damaged or was changed") == 2
    assert not (tmp_path / "out").exists() and not (tmp_path / "m.onnx").exists()


MANY: list[dict] = [{"scales": [1.0] * 999}, {"scales": [99.0]}, {"scales": [float("inf")]},
                    {"scales": "abc"}, {"scales": 1.0}, {"flip": 1}]  # fmt: skip
STRANGE = {
    "segmentation": MANY,
    "detection": [
        {"test": x}
        for x in (
            *MANY,
            {"merge": "eval"},
            {"soft_nms_sigma": 0},
            {"nms_iou": 2},
            {"x": 1},
            [],
            "abc",
        )
    ],
}


def test_a_strangers_description_opens_nothing(trained, scenes, tmp_path, capsys) -> None:
    task, run = trained
    shutil.copytree(run / "model", tmp_path / "model")
    file = tmp_path / "model/config.json"
    content = json.loads(file.read_text())
    backbone, view = content["backbone"], content["view"]
    huge = {"test_size": 9999} if task == "detection" else {"crop": [9999, 9999]}
    for changed, said in (
        ({"backbone": {**backbone, "architecture": "hf-hub:org/name"}}, "architecture"),
        ({"backbone": {**backbone, "architecture": f"local-dir:{tmp_path}"}}, "architecture"),
        ({"backbone": {**backbone, "args": {"checkpoint_path": "/x.pth"}}}, "checkpoint_path"),
        ({"backbone": {**backbone, "args": {"pretrained": True}}}, "pretrained"),
        ({"backbone": {**backbone, "mean": [1e300] * 3}}, "makes no numbers"),
        ({"view": {**view, **huge}}, "9999"),
        *(({"view": {**view, **x}}, "") for x in STRANGE[task]),
    ):
        file.write_text(json.dumps({**content, **changed}))
        words = [str(tmp_path / "model"), str(scenes / "images/val"), f"--out={tmp_path / 'o'}"]
        assert main(["predict", *words]) == 2, said
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_run_is_evaluated_on_a_set(trained, scenes, tmp_path, capsys) -> None:
    """On its own held-out images with the very numbers of the run."""
    task, run = trained
    data = next(x for x in sources(task, scenes) if x.startswith("--data.val"))
    words = ["evaluate", f"--model={run}", data.replace("data.val", "data"), "--workers=0"]
    assert main([*words, f"--out={tmp_path / 'result.json'}"]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "result.json").read_text())
    exported = json.loads((run / "run.json").read_text())["exported"]["step"]
    evaluations = [x for x in read_lines(run / "metrics.jsonl") if x["kind"] == "eval"]
    last = next(x for x in evaluations if x["step"] == exported)
    own = {key: x for key, x in found.items() if key in last}
    assert TASKS[task][1] in own and own == {key: last[key] for key in own}
    assert "on 5 images, 0 unreadable" in said and "green" in said
    assert {"red", "green", "blue"} <= {row["class"] for row in found["by_class"]}
    if task == "detection":
        results = tmp_path / "result-predictions.json"
        assert results.read_bytes() == (run / "predictions.json").read_bytes()
        assert found["predictions"] == str(results)
    assert main([*words, "--input_size=32"]) == 2
    assert "input_size is of classifiers" in capsys.readouterr().err
    photos = str(scenes / "images/val")
    assert main(["predict", str(run.parent), photos, f"--out={tmp_path / 'out'}"]) == 2
    assert f"or a copy of its `model` folder, such as {run}" in capsys.readouterr().err
    other = ["evaluate", f"--model={run}", f"--data={tmp_path}"]
    assert main(other) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_predictions_are_those_of_the_evaluation(trained, scenes, tmp_path) -> None:
    task, run = trained
    assert main(["predict", str(run), str(scenes / "images/val"), f"--out={tmp_path / 'out'}"]) == 0
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    if task == "segmentation":
        from downstream.segmentation.data.masks import open_masks

        source, found = open_masks(f"{scenes}::val"), record(run)
        for i, matrix in enumerate(found["confusion"]):
            mask = np.asarray(Image.open(tmp_path / f"out/masks/val{i}.png"))
            assert np.array_equal(np.bincount(mask.ravel(), minlength=4), matrix.sum(0))
            truth = source.mask(i)
            assert matrix.trace() == (truth == mask).sum()
        return
    evaluated = json.loads((run / "predictions.json").read_text())
    for i, line in enumerate(map(json.loads, lines)):
        of_image = [x for x in evaluated if x["image_id"] == 5 * i + 3]
        assert len(of_image) == len(line["boxes"]) > 0
        for one, other in zip(of_image, line["boxes"], strict=True):
            x, y, w, h = one["bbox"]
            assert other["box"] == pytest.approx([x, y, x + w, y + h], abs=1e-2)
            assert other["score"] == pytest.approx(one["score"], abs=1e-5)


VIEWS = ["--test.scales=[1.0, 1.5]", "--test.flip=true"]


def test_several_views(trained, scenes, tmp_path, capsys) -> None:
    """The same training evaluated in four views: one of them alone is the evaluation of the other
    run, and what the four bring is in the report."""
    task, run = trained
    metric, several = TASKS[task][1], tmp_path / "several"
    assert train(task, scenes, several, *VIEWS) == 0
    lines, plain = (
        [line for line in read_lines(x / "metrics.jsonl") if line["kind"] == "eval"]
        for x in (several, run)
    )
    for line, other in zip(lines, plain, strict=True):
        assert line[f"{metric}_one_view"] == other[metric]
        assert f"{metric}_one_view" not in other
    assert any(line[metric] != line[f"{metric}_one_view"] for line in lines)
    report, last = (several / "report.html").read_text(), lines[-1]
    assert "What several views bring" in report and "seen at 1, 1.5 times" in report
    gain = 100 * (last[metric] - last[f"{metric}_one_view"])
    assert f"<td>{gain:+.1f}</td>" in report
    assert "What several views bring" not in (run / "report.html").read_text()

    def predictions(of: Path, *words: str) -> str:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        assert main(["predict", str(of), str(scenes / "images/val"), f"--out={out}", *words]) == 0
        return (out / "predictions.jsonl").read_text()

    once, united = predictions(run), predictions(several)
    assert once != united  # what the run was evaluated with is what its network is used with
    assert predictions(several, "--test.scales=[1.0]", "--test.flip=false") == once
    assert predictions(run, *VIEWS) == united
    if task == "detection":
        assert predictions(several, "--test.merge=nms") != united
        out = f"--out={tmp_path / 'once'}"
        words = [str(run), str(scenes / "images/val"), out, "--test.merge=nms"]
        assert main(["predict", *words]) == 2  # it would change nothing
        assert "images are seen in one" in capsys.readouterr().err
        file = several / "model/config.json"
        content = json.loads(file.read_text())
        del content["view"]["test"]  # as it was written before there were views
        file.write_text(json.dumps(content))
        assert predictions(several) == once
    else:
        out = f"--out={tmp_path / 'merged'}"
        words = [str(run), str(scenes / "images/val"), out, "--test.merge=nms"]
        assert main(["predict", *words]) == 2
        assert "test.merge is a setting of detectors" in capsys.readouterr().err


def test_views_that_are_too_large(scenes, tmp_path, capsys) -> None:
    """Of the held-out images, which says the start and not the first evaluation."""
    words = ["--augment.resize=shorter", "--augment.sizes=[900]", "--augment.test_size=900"]
    assert train("detection", scenes, tmp_path / "run", *words, "--test.scales=[9.0]") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "test.scales: 9 makes a view of 8100 x" in said and "8192 is the most" in said


def test_an_export_is_checked(trained, tmp_path, capsys) -> None:
    import onnx

    task, run = trained
    out = tmp_path / "network.onnx"
    assert main(["export", str(run), f"--out={out}", "--size=[64, 96]"]) == 0
    assert "off by at most" in capsys.readouterr().out
    model = onnx.load(out)
    assert {entry.key for entry in model.metadata_props} >= {"mean", "std", "label_names"}
    shape = [x.dim_value for x in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape[1:] == [3, 64, 96]


def test_a_network_is_loaded_as_it_was_exported(trained) -> None:
    from downstream.dense.model import read_description
    from downstream.detection.model import open_detector
    from downstream.segmentation.model import open_segmenter

    task, run = trained
    folder, content = read_description(str(run))
    model = {"detection": open_detector, "segmentation": open_segmenter}[task](folder, content)
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == model.model.state_dict().keys()
    assert content["class_names"][-3:] == ["red", "green", "blue"]
    assert not model.training


def refused(capsys, task: str, *words: str) -> str:
    assert main([task, *COMMON, *TASKS[task][0], *words]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and "Traceback" not in said
    return said


@pytest.mark.parametrize("task", TASKS)
def test_what_bad_input_gets(task, scenes, tmp_path, capsys) -> None:
    out, given = f"--out={tmp_path / 'run'}", sources(task, scenes)
    assert "data.val is empty" in refused(capsys, task, out, given[0])
    assert "did you mean" in refused(capsys, task, out, *given, "--backbone=test_resnett")
    said = refused(capsys, task, out, *given, "--backbone=mixer_s16_224")
    assert "takes images of one size alone" in said
    said = refused(capsys, task, out, *given, '--data.classes=["red", "green", "sky"]')
    assert "data.train" in said and "blue" in said
    said = refused(capsys, task, out, given[0], "--data.val=nowhere")
    assert "data.val" in said and "nowhere" in said
    assert "batch_size" in refused(capsys, task, out, *given, "--accumulate=3")
    if task == "segmentation":
        said = refused(capsys, task, out, *given, "--test.crop=[32, 32]", "--test.stride=[33, 9]")
        assert "windows would leave pixels out" in said
        words = ["--segmenter.name=deeplabv3plus", "--batch_size=1"]
        assert "needs two" in refused(capsys, task, out, *given, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", TASKS)
def test_other_annotations_are_no_resume(trained, scenes, tmp_path, capsys, task) -> None:
    if trained[0] != task:
        return
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    other = make_scenes(tmp_path / "other", seed=1)
    assert train(task, other, run, "--resume", '--allow_changes=["data.train", "data.val"]') == 2
    assert "annotations" in capsys.readouterr().err


def test_a_class_count_that_differs_from_the_checkpoint(trained, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    file = run / "model" / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "class_names": content["class_names"][1:]}))
    assert main(["predict", str(run), str(tmp_path), f"--out={tmp_path / 'out'}"]) == 2
    (tmp_path / "image.png").touch()
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path), f"--out={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert "model.safetensors" in said and "of another shape" in said


def test_gradients_are_clipped_to_a_norm(scenes, tmp_path) -> None:
    """One step of plain SGD moves the weights by rate x norm."""
    weights = []
    for clip in ("1e-12", "0.01"):
        out = tmp_path / clip
        words = [f"--optimizer.clip_norm={clip}", "--optimizer.momentum=0", "--ema.decay=0",
                 "--optimizer.weight_decay=0", "--steps=1", "--schedule.lr=128"]  # fmt: skip
        assert train("segmentation", scenes, out, *words) == 0
        weights.append(load_file(out / "model" / "model.safetensors"))
    moved = [
        (weights[0][key].double() - weights[1][key].double()).square().sum()
        for key in weights[0]
        if "running_" not in key and "num_batches" not in key
    ]
    assert sum(moved) ** 0.5 == pytest.approx(128 * 2 / 256 * 0.01, rel=1e-3)


def test_a_detector_is_no_backbone(trained, scenes, tmp_path, capsys) -> None:
    task, run = trained
    words = [*sources(task, scenes), f"--out={tmp_path / 'run'}", f"--backbone={run}"]
    said = refused(capsys, task, *words, "--backbone.pretrained=true")
    assert str(run) in said and "give the network that it started from" in said
