"""`ssld evaluate` says where a top-1 is no better than chance, and only there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ssld.__main__ import main
from ssld.common.errors import InputError
from ssld.common.metrics import wilson
from ssld.distill import verify_teacher as verify
from ssld.health.evaluate import doubt_of

CLASSES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def good(colours, tmp_path_factory) -> Path:
    """A network that knows the colours: least squares on what random layers make of them."""
    import torch

    from ssld.data.labels import LabelIndex
    from ssld.data.loading import ViewBatches, eval_batches
    from ssld.data.sources import open_source
    from ssld.data.transforms import EvalView
    from ssld.engine.checkpoint import export
    from ssld.models.opening import open_network

    torch.manual_seed(0)
    network = open_network("model", arch="test_resnet", num_classes=3, input_size=32).eval()
    model: Any = network.model
    sources = [open_source(str(colours / "train"))]
    view = EvalView(32, network.crop_pct, network.interpolation)
    make = ViewBatches(sources, view, LabelIndex(CLASSES, 3))
    batches = list(eval_batches(make, batch_size=36))
    with torch.no_grad():
        (batch,) = batches
        x = model.forward_head(
            model.forward_features(network.preprocess(batch.images)), pre_logits=True
        )
        wanted = torch.eye(3)[batch.labels]
        centre = x.mean(0)
        weight = torch.linalg.lstsq(x - centre, wanted - 1 / 3, driver="gelsd").solution
        model.fc.weight.copy_(weight.T)
        model.fc.bias.copy_(1 / 3 - centre @ weight)
    network.label_names = CLASSES
    folder = tmp_path_factory.mktemp("good") / "model"
    export(network, folder, 0)
    return folder


@pytest.fixture
def evaluate(tmp_path, capsys):
    def run(model: Path, data: Path, *words: str) -> tuple[str, dict[str, Any]]:
        out = tmp_path / "result.json"
        given = [f"--model={model}", f"--data={data}", f"--out={out}", "--workers=0", *words]
        assert main(["evaluate", *given]) == 0
        said = capsys.readouterr()
        return said.out + said.err, json.loads(out.read_text())

    return run


def renamed(model: Path, folder: Path, names: list[str] | None) -> Path:
    """The same network with other words on its classes."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["label_names"] = names
    config["pretrained_cfg"].pop("label_names", None)
    config = {k: v for k, v in config.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_good_model_is_not_accused(good, colours, evaluate, tmp_path):
    said, found = evaluate(good, colours / "val")
    assert found["top1"] > 0.8 and found["chance"] == pytest.approx(1 / 3, abs=0.01)
    assert "chance" not in said
    shutil.copytree(colours / "val/blue", tmp_path / "only/blue")  # chance is still a third
    said, found = evaluate(good, tmp_path / "only")
    assert found["chance"] == pytest.approx(1 / 3) and "chance" not in said


def test_a_wrong_class_order_is_named_first(good, colours, evaluate, tmp_path):
    said, found = evaluate(renamed(good, tmp_path / "m", ["green", "red", "blue"]), colours / "val")
    assert found["top1"] < 0.2
    assert "warning: top-1 is no better than chance (3" in said and "and mean others" in said
    shutil.copytree(colours / "val", tmp_path / "other")
    for old, new in (("blue", "z"), ("green", "a"), ("red", "m")):
        (tmp_path / "other" / old).rename(tmp_path / "other" / new)
    nameless = renamed(good, tmp_path / "n", None)
    said, _ = evaluate(nameless, tmp_path / "other")
    assert "count the classes in another order than the model" in said
    assert "chance" not in evaluate(nameless, colours / "val")[0]


def test_a_wrong_normalisation_is_named(good, colours, evaluate):
    words = ("--mean=[200, 200, 200]", "--std=[0.001, 0.001, 0.001]")
    said, _ = evaluate(good, colours / "val", *words)
    assert "no better than chance" in said and "(mean [200.0, 200.0, 200.0]" in said


def test_a_model_that_says_one_class_only_is_named_however_common_that_class_is(
    teacher_file, colours, evaluate, tmp_path
):
    """58 % right by saying always the same: the untrained network's word is given most images."""
    words = (f"--checkpoint={teacher_file}",)
    shares = {}
    for name in CLASSES:
        data = tmp_path / name
        for other in CLASSES:
            for i, file in enumerate(sorted((colours / "train" / other).iterdir())):
                if other == name or i < 4:
                    (data / other).mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, data / other)
        said, found = evaluate(Path("test_resnet"), data, *words)
        shares[name] = found["top1"]
        assert "no better than chance" in said, (name, found)
    assert max(shares.values()) > 0.5


def result(hits: int, images: int, chance: float) -> dict[str, Any]:
    low, _ = wilson(hits, images)
    return {"top1": hits / images, "top1_low": low, "images": images, "chance": chance}


@pytest.mark.parametrize(
    ("hits", "images", "chance", "words"),
    [
        (2, 2, 0.5, "too few to tell"),
        (3, 3, 0.34, None),
        (5, 1000, 0.001, None),  # weak, and clearly above chance
        (2, 1000, 0.001, "no better than chance (0.10%)"),
        (0, 1000, 0.001, "no better"),
        (0, 1, 0.5, "no better"),
        (60, 100, 0.5, None),
        (59, 100, 0.5, "no better"),
    ],
)
def test_the_interval_decides(hits, images, chance, words):
    network: Any = SimpleNamespace(num_classes=1000, label_names=None, mean=(0.5,), std=(0.5,),
                                   input_size=224)  # fmt: skip
    said = doubt_of(result(hits, images, chance), network)
    assert (words in said) if words else said is None


def test_a_teacher_is_not_accused_for_want_of_images():
    """A run of few images sets one or two aside: a perfect teacher must be able to begin."""
    for hits, images, classes in ((1, 1, 3), (3, 4, 2), (2, 2, 2)):
        assert verify.judge(hits, images, classes, True).startswith("top-1 ")
    for hits, images, classes in ((0, 9, 3), (12, 36, 3), (52, 100, 2), (0, 20, 1000)):
        with pytest.raises(InputError, match="near chance"):
            verify.judge(hits, images, classes, True)


def test_of_one_class_there_is_no_chance():
    network: Any = SimpleNamespace(num_classes=1)
    assert doubt_of(result(3, 3, 1.0), network) is None
