"""From a run to a sealed release. The run folders are made by hand with the code that writes them;
the network is real."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_model_data_config

from ssld.common.errors import InputError
from ssld.common.published import without_secrets
from ssld.distill.config import DistillConfig, SupervisedConfig
from ssld.engine.checkpoint import export
from ssld.engine.run_folder import RunFolder
from ssld.models.classifier import Classifier
from ssld.zoo.config import About
from ssld.zoo.release_run import assemble
from zoo.publish.card import write_card
from zoo.release import read_manifest, seal, verify

FILES = {"README.md", "config.json", "config.yaml", "curves.png", "model.safetensors"}
FILES |= {".eval_results/local-shop-val.yaml"}


def a_run(folder: Path, *, supervised: bool = False, **changes: Any) -> Path:
    """A run of 20 steps with evaluations at 10 and 20, the student of step 10 exported."""
    settings: dict[str, Any] = {
        "out": str(folder),
        "steps": 20,
        "student": {"arch": "test_resnet", "num_classes": 10},
        "data": {"labeled": ["/home/alice/secret/shop/train"], "val": ["/mnt/a/b/shop/val"]},
        "teacher": {"arch": "resnext101_32x16d.fb_wsl_ig1b_ft_in1k"},
        **changes,
    }
    if supervised:
        del settings["teacher"]
    facts = {
        "student": {"architecture": "test_resnet"},
        "teacher": {"architecture": "resnext101_32x16d", "parameters_m": 194.03},
        "teacher_top1": {"hits": 39, "images": 40, "low": 0.87, "high": 0.99},
        "teacher_sha256": "ab" * 32,
        "data_sha256": "cd" * 32,
        "val_sha256": "ef" * 32,
        "images": {"/home/alice/secret/shop/train": 30},
        "held_out": None,
        "steps": 20,
        "device": "cpu",
    }
    if supervised:
        facts = {k: v for k, v in facts.items() if k not in ("teacher", "teacher_top1")}
        facts["teacher_sha256"] = None
    config = SupervisedConfig if supervised else DistillConfig
    run = RunFolder(folder, main=True)
    run.open(_config(config, settings), facts)
    for step in (10, 20):
        run.log({"kind": "train", "step": step, "loss": 1 / step})
        line = {"top1": 0.8, "top5": 1.0, "images": 40.0, "ece": 0.1, "verdict": "flat"}
        agreement = {"agreement1": 0.9, "agreement5": 1.0, "divergence": 2 / step}
        run.log({"kind": "eval", "step": step, **line, **({} if supervised else agreement)})
    run.record("exported", {"step": 10, "metric": "agreement1", "value": 0.9})
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    export(Classifier(model, input_size=32, mean=(0.1, 0.2, 0.3)), folder / "student", 10)
    return folder


def _config(kind: type, settings: dict[str, Any]) -> Any:
    from ssld.data.config import DataConfig
    from ssld.models.config import StudentConfig, TeacherConfig

    groups = {"student": StudentConfig, "data": DataConfig, "teacher": TeacherConfig}
    return kind(**{k: groups[k](**v) if k in groups else v for k, v in settings.items()})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return a_run(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture(scope="module")
def released(run, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("releases") / "new/mine"
    return SimpleNamespace(facts=assemble(run, folder), folder=folder)


def test_a_release_is_sealed_and_says_where_it_comes_from(run, released):
    facts = verify(released.folder)
    assert facts == released.facts
    assert set(facts["files"]) == FILES
    assert (facts["name"], facts["kind"], facts["step"]) == ("mine", "distilled", 10)
    assert (facts["steps"], facts["reached"], facts["finished"]) == (20, 20, True)
    assert facts["architecture"] == "test_resnet" and facts["input_size"] == 32
    assert facts["parameters_m"] == 0.374 and facts["macs_m"] == 4.1
    assert facts["license"]["license"] == "cc-by-nc-4.0" and facts["license"]["noncommercial"]
    assert facts["teacher"]["sha256"] == "ab" * 32
    assert facts["teacher"]["networks"][0]["hub_id"] == f"timm/{facts['teacher']['name']}"
    assert facts["data"]["sources"] == [{"source": "shop/train", "images": 30}]
    assert facts["recipe"]["student"]["arch"] == "test_resnet" and "torch" in facts["versions"]
    assert ModelCard.load(released.folder / "README.md").data.to_dict()["license"] == "cc-by-nc-4.0"


def test_metrics_are_those_of_the_exported_step(released):
    metrics = {metric["name"]: metric for metric in released.facts["metrics"]}
    assert list(metrics) == ["top1", "top5", "agreement1", "agreement5", "divergence", "ece"]
    assert metrics["divergence"]["value"] == 0.2  # of step 10, not of 20
    top1 = metrics["top1"]
    assert (top1["value"], top1["images"], top1["dataset"]) == (0.8, 40, "shop/val")
    assert (round(top1["low"], 4), round(top1["high"], 4)) == (0.6524, 0.895)
    assert top1["command"] == "ssld evaluate --model . --data shop/val"
    assert metrics["agreement1"]["command"] == "ssld distill --config config.yaml"
    assert metrics["ece"]["low"] is None


def test_plain_timm_loads_the_very_network(run, released):
    model = timm.create_model(f"local-dir:{released.folder}", pretrained=True).eval()
    student = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), student(images))
    weights = "model.safetensors"
    assert (released.folder / weights).read_bytes() == (run / "student" / weights).read_bytes()
    config = json.loads((released.folder / "config.json").read_text())["pretrained_cfg"]
    assert config["license"] == "cc-by-nc-4.0" and "tag" not in config
    assert resolve_model_data_config(model)["mean"] == [0.1, 0.2, 0.3]


def test_assembling_twice_gives_the_same_bytes(run, released, tmp_path):
    (tmp_path / "b").mkdir()  # empty folders are taken
    assemble(run, tmp_path / "b")
    assert contents(tmp_path / "b") == contents(released.folder)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_nothing_of_the_machine_gets_in(released):
    for name, content in contents(released.folder).items():
        for secret in (b"alice", b"secret", b"/mnt", os.environ["PATH"].encode(), b"/tmp"):
            assert secret not in content, (name, secret)


def test_the_curves_are_a_picture_without_a_date(released):
    with Image.open(released.folder / "curves.png") as picture:
        assert picture.size[0] > 1000 and set(picture.info) <= {"dpi"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("runs/quick/val", "runs/quick/val"),
        ("/data/imagenet/val/", "imagenet/val"),
        ("/home/alice/val", "val"),
        ("/mnt/home/alice/a/b/c", "b/c"),
        ("/home/alice", "~"),
        ("~/x/y/z", "y/z"),
        ("~alice", "~"),
        ("../../alice/b/c", "b/c"),
        ("C:\\Users\\Alice\\pictures\\cats", "pictures/cats"),
        ("local-dir:/srv/models/t/student", "local-dir:t/student"),
        ("file:///home/alice/a/b/c.parquet", "b/c.parquet"),
        ("s3://key:secret@bucket/a/{0..9}.tar?token=x#y", "s3://bucket/a/{0..9}.tar"),
        ("https://u:p/w@host:80/a?sig=1", "https://host:80/a"),
        ("https://token@host/a", "https://host/a"),
        ("hf://datasets/o/n@main/x.parquet", "hf://datasets/o/n@main/x.parquet"),
        ("simplecache::s3://k:s@b/a", "simplecache::s3://b/a"),
        ("hf-hub:org/name@rev", "hf-hub:org/name@rev"),
        ("/data/shards/a-{0000..0511}.tar", "shards/a-{0000..0511}.tar"),
    ],
)
def test_paths_are_shortened_and_urls_lose_secrets(given, kept):
    assert without_secrets({"a": [given, 1, None]}) == {"a": [kept, 1, None]}


def test_what_the_publisher_says(tmp_path, run):
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"kept": 7, "gallery": "/home/alice/g/a", "list": [1]}))
    about = About(
        license="mit",
        data_license="CC-BY-4.0",
        datasets="imagenet-1k",
        evaluated_on="org/shop",
        description="Shop <i>things</i>.",
        curation=str(manifest),
    )
    facts = assemble(run, tmp_path / "out", about, repo="org/shop-net")
    assert facts["name"] == "shop-net"
    assert facts["license"]["license"] == "cc-by-nc-4.0"  # the teacher's forbids mit
    assert facts["data"]["curation"]["kept"] == 7
    assert facts["data"]["curation"]["gallery"] == "g/a"
    assert facts["metrics"][0]["command"].startswith("ssld evaluate --model hf-hub:org/shop-net ")
    assert (tmp_path / "out/.eval_results/org-shop.yaml").is_file()
    text = (tmp_path / "out/README.md").read_text()
    assert 'create_model("hf-hub:org/shop-net"' in text and "Shop &#60;i&#62;" in text


def test_a_supervised_run(tmp_path):
    facts = assemble(
        a_run(tmp_path / "run", supervised=True), tmp_path / "out", About(data_license="mit")
    )
    assert facts["kind"] == "supervised" and "teacher" not in facts
    assert facts["license"]["license"] == "apache-2.0" and not facts["license"]["note"]
    assert facts["metrics"][0]["images"] == 40


def test_initial_weights_pass_on_their_licence(tmp_path):
    student = {"arch": "resnext101_32x16d.fb_wsl_ig1b_ft_in1k", "pretrained": True}
    run = a_run(tmp_path / "run", supervised=True, student=student)
    facts = assemble(run, tmp_path / "out", About(data_license="mit"))
    assert facts["license"]["license"] == "cc-by-nc-4.0"


def test_a_teacher_of_ones_own(tmp_path, released):
    """Its release says its licence; without one only its publisher can."""
    run = a_run(tmp_path / "a", teacher={"checkpoint": str(released.folder)})
    assert assemble(run, tmp_path / "1")["teacher"]["license"] == "cc-by-nc-4.0"
    with pytest.raises(InputError, match="is published under cc-by-nc-4.0, not mit: leave"):
        assemble(run, tmp_path / "2", About(teacher_license="mit"))
    run = a_run(tmp_path / "b", teacher={"checkpoint": str(tmp_path / "a")})
    facts = assemble(run, tmp_path / "3")
    assert facts["teacher"]["license"] == "unknown"
    assert "base_model" not in (tmp_path / "3/README.md").read_text()
    about = About(teacher_license="mit", data_license="mit")
    assert assemble(run, tmp_path / "4", about)["license"]["license"] == "apache-2.0"


def test_several_teachers(tmp_path):
    run = a_run(tmp_path / "run")
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    recipe["teachers"] = [{"arch": "resnet50d"}, recipe["teacher"]]
    (run / "config.yaml").write_text(yaml.safe_dump(recipe))
    facts = json.loads((run / "run.json").read_text())
    fact = facts.pop("teacher")
    (run / "run.json").write_text(json.dumps({**facts, "teacher 0": fact, "teacher 1": fact}))
    assemble(run, tmp_path / "out")
    data = ModelCard.load(tmp_path / "out/README.md").data.to_dict()
    assert data["base_model"] == [
        "timm/resnet50d.ra2_in1k",
        "timm/resnext101_32x16d.fb_wsl_ig1b_ft_in1k",
    ]
    assert data["license"] == "cc-by-nc-4.0"


def test_accuracy_on_images_of_which_some_have_no_label_has_no_interval(tmp_path):
    run = a_run(tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    facts["teacher_top1"]["images"] = 20
    (run / "run.json").write_text(json.dumps(facts))
    metrics = {x["name"]: x for x in assemble(run, tmp_path / "out")["metrics"]}
    assert metrics["top1"]["images"] is None and metrics["top1"]["low"] is None
    assert metrics["agreement1"]["images"] == 40


def test_an_unfinished_run_is_released_and_says_so(tmp_path):
    run = a_run(tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    del facts["exported"]
    (run / "run.json").write_text(json.dumps({**facts, "steps": 1000}))
    assert not assemble(run, tmp_path / "out")["finished"]
    text = (tmp_path / "out/README.md").read_text()
    assert "step 10 of 1,000" in text and "not finished: it had reached step 20" in text


def test_an_exported_model(tmp_path, run):
    facts = assemble(run / "student", tmp_path / "out")
    assert (facts["kind"], facts["name"], facts["step"]) == ("exported", "mine", 10)
    assert facts["license"]["license"] == "other"  # nobody knows what it was trained on
    assert facts["metrics"] == [] and "curves.png" not in facts["files"]
    assert "[!WARNING]" in (tmp_path / "out/README.md").read_text()
    timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)


def test_a_release_is_kept_as_it_is(tmp_path, released):
    assemble(released.folder, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(released.folder)
    readme = released.folder / "README.md"
    assert "local-dir:" in readme.read_text()
    assemble(released.folder, tmp_path / "on a hub", repo="org/other")
    assert "hf-hub:org/other" in (tmp_path / "on a hub/README.md").read_text()
    edited = tmp_path / "edited"
    shutil.copytree(released.folder, edited)
    (edited / "README.md").write_text(readme.read_text() + "\nBy hand.\n")
    facts = {k: v for k, v in released.facts.items() if k not in ("format", "files")}
    seal(edited, facts)
    assemble(edited, tmp_path / "kept", repo="org/other")
    assert contents(tmp_path / "kept") == contents(edited)
    with pytest.raises(InputError, match="is a release already"):
        assemble(released.folder, tmp_path / "x", About(name="y"))
    assert not (tmp_path / "x").exists()


def test_a_release_without_a_card_gets_one(tmp_path, released):
    shutil.copytree(released.folder, tmp_path / "bare")
    (tmp_path / "bare/README.md").unlink()
    facts = {k: v for k, v in released.facts.items() if k not in ("format", "files")}
    seal(tmp_path / "bare", facts)
    assemble(tmp_path / "bare", tmp_path / "out", repo="org/x")
    assert "hf-hub:org/x" in (tmp_path / "out/README.md").read_text()
    assert "README.md" in verify(tmp_path / "out")["files"]
    assert not (tmp_path / "bare/README.md").exists()


def test_a_damaged_release_is_refused(tmp_path, released):
    shutil.copytree(released.folder, tmp_path / "bad")
    with (tmp_path / "bad/model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    with pytest.raises(InputError, match="bad: model.safetensors was changed"):
        assemble(tmp_path / "bad", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


@pytest.mark.parametrize("what", ["student", "config.yaml", "run.json", "diverged", "nan", "empty"])
def test_what_cannot_be_released_is_one_sentence(tmp_path, what):
    run = a_run(tmp_path / "run")
    weights = run / "student/model.safetensors"
    said = {"config.yaml": "is no run", "empty": "is no run", "run.json": "damaged"}
    if what == "student":
        shutil.rmtree(run / "student")
    elif what == "empty":
        shutil.rmtree(run)
    elif what == "config.yaml":
        (run / what).unlink()
    elif what == "run.json":
        (run / what).write_text("{")
    elif what == "diverged":
        tensors = load_file(weights)
        tensors["fc.bias"][0] = float("nan")
        save_file(tensors, weights, {"step": "10"})
    else:
        lines = (run / "metrics.jsonl").read_text().replace("0.2", "NaN")
        (run / "metrics.jsonl").write_text(lines)
    expected = {"student": "has no student/config.json yet", **said}.get(what, "diverged")
    with pytest.raises(InputError, match=expected) as error:
        assemble(run, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"run"}


def test_a_folder_in_use_is_refused(tmp_path, run):
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="is not empty: give a new folder"):
            assemble(run, folder)


@pytest.mark.parametrize(
    "bad",
    [{"name": "a/b"}, {"name": "<b>"}, {"license": "my own"}, {"evaluated_on": "a b"}],
)
def test_what_about_refuses(bad):
    with pytest.raises(ValueError, match="give"):
        About(**bad)


def test_a_card_can_be_written_again(released, tmp_path):
    """What `write_card` needs is in ssld.json."""
    shutil.copytree(released.folder, tmp_path / "again")
    write_card(tmp_path / "again", read_manifest(released.folder))
    assert contents(tmp_path / "again") == contents(released.folder)


@pytest.mark.parametrize("what", ["detector", "segmenter"])
def test_a_head_is_refused_by_its_name(what, tmp_path):
    """Its weights lie in model/, and no --resume brings a student/."""
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "config.yaml").write_text(f"{what}: {{name: fcn}}\n")
    content = {"task": "detection", "class_names": ["a"], "backbone": {}}
    (run / "model/config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"is a {what}, and releases are of backbones"):
        assemble(run, tmp_path / "a")
    with pytest.raises(InputError, match="is a network of detection"):
        assemble(run / "model", tmp_path / "b")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
