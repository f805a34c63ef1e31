"""Transfer: what learns at which rate, from which weights, and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from downstream.transfer.config import TransferConfig
from downstream.transfer.transfer import transfer
from ssld.cli.parse import parse
from ssld.cli.run import main
from ssld.data.sources import open_source
from ssld.data.transforms import EvalView
from ssld.distill.probe import scores
from ssld.engine.overwrite import foreign
from ssld.models.opening import open_network

FACTORS = {"conv1": 0.1, "bn1": 0.1, "layer1": 0.1, "layer2": 0.2, "layer3": 0.2, "layer4": 0.3}
"""The preset of PaddleClas (docs/en/tutorials/quick_start_en.md, `lr_mult_list`), by hand."""


def words(colours: Path, out: Path, **changes: Any) -> list[str]:
    settings = {
        "out": out,
        "steps": 4,
        "batch_size": 8,
        "log_every_steps": 2,
        "trackers": "[]",
        "schedule.lr": 1.0,
        "augment.size": 32,
        "probe.every_epochs": 0,
        "data.labeled": colours / "train",
        "data.val": colours / "val",
        "data.workers": 0,
        "backbone": "test_resnet",
        "backbone.pretrained": "false",
        **changes,
    }
    return [f"--{key}={value}" for key, value in settings.items()]


def parsed(colours: Path, out: Path, **changes: Any) -> TransferConfig:
    changes["backbone.name"] = changes.pop("backbone", "test_resnet")
    given = [x for x in words(colours, out, **changes) if not x.startswith("--backbone=")]
    return parse("ssld transfer", TransferConfig, given)


@pytest.fixture(scope="module")
def first(colours, tmp_path_factory) -> Path:
    """A run from random weights."""
    out = tmp_path_factory.mktemp("transfer") / "first"
    transfer(parsed(colours, out, **{"steps": 6, "probe.every_epochs": 1}))
    return out


def test_a_run_holds_nothing_that_its_own_overwriting_would_refuse(first):
    assert foreign(first) == []


def test_hits_are_those_of_the_exported_network(colours, first):
    with np.load(first / "held_out.npz") as file:
        found = dict(zip(file["ids"].tolist(), file["hits"].tolist(), strict=True))
    network = open_network("model", arch=None, checkpoint=str(first), input_size=32).eval()
    view = EvalView(32, network.crop_pct, network.interpolation)
    source, names = open_source(str(colours / "val")), network.label_names
    assert names == ["blue", "green", "red"]
    for i in range(len(source)):
        name = source.sample_id(i)
        with torch.no_grad():
            logits = network(view(source.read(i), name, 0)[None])[0]
        assert found.pop(name) == (names[int(logits.argmax())] == source.label(i))
    assert not found
    facts = json.loads((first / "run.json").read_text())
    assert facts["exported"]["metric"] == "last"  # no held-out image chose it
    lines = [json.loads(x) for x in (first / "metrics.jsonl").read_text().splitlines()]
    last = [x for x in lines if x["kind"] == "eval"][-1]
    assert last["step"] == 6 and {"knn", "linear"} <= last.keys()


def test_the_probe_before_is_of_the_features_as_they_came(colours, first, tmp_path):
    out = tmp_path / "second"
    changes = {"backbone": str(first), "backbone.pretrained": "true", "probe.every_epochs": 1}
    transfer(parsed(colours, out, **changes))
    network = open_network("model", arch=None, checkpoint=str(first), input_size=32).eval()
    view, pooled = EvalView(32, network.crop_pct, network.interpolation), []
    for part in ("train", "val"):
        source = open_source(str(colours / part))
        images = [view(source.read(i), source.sample_id(i), 0) for i in range(len(source))]
        model: Any = network.model
        with torch.no_grad():
            maps = model.forward_features(network.preprocess(torch.stack(images)))
            found = model.forward_head(maps, pre_logits=True).numpy()
        labels = [("blue", "green", "red").index(source.label(i)) for i in range(len(source))]  # type: ignore[arg-type]
        pooled.append((found, np.array(labels)))
    before = json.loads((out / "probe.json").read_text())["before"]
    assert before == pytest.approx(scores(pooled[0], pooled[1], 20))


@pytest.mark.parametrize(
    ("lr", "factors"),
    [
        ("tuned", FACTORS),
        ("same", dict.fromkeys(FACTORS, 1.0)),
        ("auto", dict.fromkeys(FACTORS, 1.0)),  # its run had no teacher
        ("[0,0.5,0.25,0.125,2]", {"conv1": 0, "bn1": 0, "layer1": 0.5, "layer2": 0.25,
                                  "layer3": 0.125, "layer4": 2}),
    ],
)  # fmt: skip
def test_what_learns_at_which_rate(colours, first, tmp_path, monkeypatch, lr, factors):
    """The factors reach the optimizer; all is trained, from the backbone's weights but for fc."""
    seen: dict[str, Any] = {}

    def note(run: Any, task: Any, network: Any) -> None:
        from ssld.engine.optimizer import build_optimizer

        seen["network"] = network
        seen["groups"] = build_optimizer(network, run.config.optimizer).param_groups
        seen["facts"] = run.facts
        run.folder.unlock()

    monkeypatch.setattr("downstream.transfer.transfer.train", note)
    changes = {"backbone": str(first), "backbone.pretrained": "true", "backbone.lr": lr}
    transfer(parsed(colours, tmp_path / "run", **changes))
    network = seen["network"]
    scale = {id(p): group["lr_scale"] for group in seen["groups"] for p in group["params"]}
    expected = {"fc": 1.0, **factors}
    for name, parameter in network.model.named_parameters():
        assert scale[id(parameter)] == expected[name.partition(".")[0]], name
        assert parameter.requires_grad
    before = load_file(first / "student" / "model.safetensors")
    for name, tensor in network.model.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith("fc."), name  # fc is fresh
    assert network.label_names == ["blue", "green", "red"]
    assert seen["facts"]["backbone"]["distilled"] is False


def test_the_seed_decides_the_fresh_weights_alone(colours, first, tmp_path, monkeypatch):
    heads = []
    monkeypatch.setattr(
        "downstream.transfer.transfer.train", lambda run, _, network: heads.append(network)
    )
    for seed in (0, 0, 1):
        out = tmp_path / str(len(heads))
        changes = {"backbone": str(first), "backbone.pretrained": "true", "seed": seed}
        transfer(parsed(colours, out, **changes))
    a, b, c = (network.model for network in heads)
    assert torch.equal(a.fc.weight, b.fc.weight) and not torch.equal(a.fc.weight, c.fc.weight)
    assert torch.equal(a.conv1[0].weight, c.conv1[0].weight)


BAD = {
    "frozen": ({"backbone.frozen_stages": 1, "backbone.pretrained": "true"}, "trains the whole"),
    "norm": (
        {"backbone.freeze_batch_norm": "true", "backbone.pretrained": "true"},
        "the whole net",
    ),
    "name": ({"backbone": "test_resnt"}, "did you mean"),
    "none": ({"backbone": ""}, "backbone.name is missing"),
    "best": ({"checkpoint.best": "agreement1"}, "there is no teacher here; give top1 or last"),
    "smoothing": ({"label_smoothing": 1}, "label_smoothing is 1"),
    "optimizer": ({"optimizer.name": "sdg"}, "optimizer.name 'sdg' cannot be built"),
    "data": ({"data.labeled": "nowhere"}, "data.labeled: nowhere: no such file or folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_get_one_sentence_and_nothing_is_written(colours, tmp_path, capsys, case):
    changes, said = BAD[case]
    assert main(["transfer", *words(colours, tmp_path / "out", **changes)]) == 2
    found = capsys.readouterr().err
    assert said in found and found.startswith("error: ") and found.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_labels_must_be_names_or_known(colours, tmp_path, capsys):
    changes = {"data.labeled": colours / "unlabeled"}
    assert main(["transfer", *words(colours, tmp_path / "out", **changes)]) == 2
    assert "data.labeled names no classes: give one subfolder per class" in capsys.readouterr().err
