"""Every name of the catalogue in timm: forward, backward, feature pyramid, export of its config."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import timm
import torch
from timm.models._hub import save_config_for_hf

import zoo
from zoo.architectures import is_plain
from zoo.registration import UNTRAINED

NAMES = sorted({entry.arch_name for entry in zoo.catalog().values()})
# strides of the pyramid: HGNet and PP-LCNetV2 have no map at stride 2
STRIDES = {"hgnet": [4, 8, 16, 32], "lcnetv2": [4, 8, 16, 32], "": [2, 4, 8, 16, 32]}
LARGE = {"se_hrnet_w64_ssld", "hrnet_w48_ssld", "hgnetv2_b6_ssld", "hgnet_base_ssld"}


@pytest.mark.parametrize("name", NAMES)
def test_maps_have_the_strides_and_channels_that_are_stated(name: str) -> None:
    with torch.device("meta"):  # sizes without numbers
        model = zoo.backbone(name, pretrained=False).eval()
    expected = next(v for k, v in STRIDES.items() if name.startswith(k))
    assert model.feature_info.reduction() == expected
    with torch.inference_mode():
        maps = model(torch.zeros(1, 3, 64, 96, device="meta"))
    channels = model.feature_info.channels()
    sizes = [(1, c, 64 // s, 96 // s) for c, s in zip(channels, expected, strict=True)]
    assert [tuple(x.shape) for x in maps] == sizes


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LARGE])
def test_every_parameter_learns(name: str) -> None:
    """One backward pass at the smallest size that batch statistics allow."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_exported_says_the_architecture_that_loads_it(name: str, tmp_path) -> None:
    """A plain one is named as timm names it, with its arguments: no package of ours is needed."""
    entry = zoo.find(name)
    with torch.device("meta"):
        model = timm.create_model(name)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    assert parameters == pytest.approx(entry.parameters_m, rel=0.01)
    save_config_for_hf(model, str(tmp_path / "config.json"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == entry.architecture
    assert {k: config["model_args"][k] for k in entry.args} == json.loads(json.dumps(entry.args))
    with torch.device("meta"):
        again = timm.create_model(config["architecture"], **config["model_args"])
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert {k: v.shape for k, v in again.state_dict().items()} == shapes


def test_timm_alone_has_the_plain_ones_and_importing_zoo_changes_only_two_names() -> None:
    plain = {e.architecture: e.args for e in zoo.catalog().values() if is_plain(e)}
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "import timm, torch\n"
        f"for name, args in {plain!r}.items():\n"
        "    with torch.device('meta'): timm.create_model(name, **args)\n"
        "assert 'zoo' not in sys.modules and 'ssld' not in sys.modules\n"
        "before = {n: timm.model_entrypoint(n) for n in timm.list_models()}\n"
        "import zoo\n"
        "after = {n: timm.model_entrypoint(n) for n in timm.list_models()}\n"
        "print(sorted(n for n in before if after[n] is not before[n]), len(after) - len(before))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    new = len(NAMES) - 2 + len(UNTRAINED)
    assert done.stdout.strip() == f"['hrnet_w18_ssld', 'hrnet_w48_ssld'] {new}", done.stderr
    assert len(plain) >= 13


def test_timm_lists_the_names_and_their_tags() -> None:
    assert set(NAMES) <= set(timm.list_models("*_ssld"))
    assert "resnet50d_ssld.fix" in timm.list_models("resnet50d_ssld*", pretrained=True)
    assert timm.get_pretrained_cfg("resnet50d_ssld.fix").input_size == (3, 320, 320)


def test_preprocessing_is_the_catalogues() -> None:
    config = timm.data.resolve_model_data_config(timm.create_model("lcnet_025_ssld"))
    entry = zoo.find("lcnet_025_ssld")
    assert config["mean"] == entry.mean and config["std"] == entry.std
    assert config["interpolation"] == entry.interpolation
    assert config["crop_pct"] == entry.crop_pct


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(zoo.InputError, match="resnet50d_ssld"):
        zoo.backbone("resnet50_ssld", pretrained=False)
    with pytest.raises(zoo.InputError, match=r"give resnet50d_ssld or .* or resnet50d_ssld.fix"):
        timm.create_model("resnet50d_ssld.v2", pretrained=True)


def test_weights_name_the_terms_that_they_inherit() -> None:
    """Whoever distils from them, or exports them, passes those on; the code's are not enough."""
    assert timm.get_pretrained_cfg("resnet50d_ssld").license == "cc-by-nc-4.0"
    assert timm.get_pretrained_cfg("hgnetv2_b0_ssld").license is None  # its teacher is not known


@pytest.mark.parametrize(
    "name", ["resnet34d_ssld", "res2net50d_ssld", "mobilenetv3_small_035_ssld"]
)
def test_our_architectures_can_be_scripted(name: str) -> None:
    model = timm.create_model(name, scriptable=True).eval()
    with pytest.warns(FutureWarning, match="deprecated"):  # of all of TorchScript
        scripted = torch.jit.script(model)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(scripted(images), model(images))


def test_zoo_waits_for_timm_and_whoever_only_asks_where_timm_is() -> None:
    """Also where a module of its own is the first to import timm."""
    code = (
        "import importlib.util, sys, zoo.catalog, zoo.release, ssld.common.errors\n"
        "assert not {'timm', 'torch'} & sys.modules.keys() and importlib.util.find_spec('timm')\n"
        "import zoo.architectures.hrnet, timm; print(len(timm.list_models('*_ssld')))\n"
        "assert zoo.InputError is ssld.common.errors.InputError\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(len(NAMES)), done.stderr
